"""Checkpoints from which a training goes on as if nothing had happened: atomic, checked, with every random state.

One checkpoint and its predecessor are kept in FOLDER/checkpoints. The predecessor is there for a file that the disk
has damaged; a kill cannot damage one, since it is written under another name, flushed and renamed.
"""

from __future__ import annotations

import logging
import os
import random
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from trainer.artifacts import SCRATCH_FOLDER, folder_errors

log = logging.getLogger(__name__)

STATE_NAME = "puzzlebooth"
LAST_NAME = "last.ckpt"
PREVIOUS_NAME = "previous.ckpt"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A readable checkpoint.

    Attributes:
        path: the file.
        num_steps: steps done when it was written.
    """

    path: Path
    num_steps: int


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a training folder; damaged ones are passed over with a warning.

    Returns:
        None when there is nothing to go on from: the training starts from its beginning.
    """
    for name in (LAST_NAME, PREVIOUS_NAME):
        path = folder / SCRATCH_FOLDER / name
        if not path.is_file():
            continue
        try:
            return Checkpoint(path=path, num_steps=_read_num_steps(path))
        except Exception as error:  # torch raises half a dozen kinds for damaged files
            log.warning("The checkpoint '%s' is damaged (%s): passing it over.", path, str(error).splitlines()[0])
    return None


def load_weights(module: lightning.LightningModule, path: Path) -> None:
    """Give a module the weights of a checkpoint, without a trainer."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)


def capture_random_state() -> dict[str, Any]:
    """State of the global generators of Python, numpy and torch, as types that `weights_only=True` reads."""
    version, words, gauss = random.getstate()
    # The legacy global generator is what third-party code draws from, so it is what has to be kept.
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo what was drawn since `capture_random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device_state.cpu() for device_state in state["cuda"]])


class StepKeeper(lightning.Callback):
    """Counts the steps, ends the training after `max_steps`, and saves.

    A step is one batch. (Lightning counts optimiser calls, of which a module with several optimisers makes several.)

    Args:
        folder: the training folder.
        max_steps: steps in all, those before a resume included.
        every_steps: save at least every so many steps; 0 for never.
        every_s: save at least every so many seconds; 0 for never.

    Attributes:
        num_steps: steps done.
        stop_requested: set from outside (a signal) to save and end after the current step.
    """

    def __init__(self, folder: Path, *, max_steps: int, every_steps: int, every_s: float) -> None:
        self.folder = folder / SCRATCH_FOLDER
        self.max_steps = max_steps
        self.every_steps = every_steps
        self.every_s = every_s
        self.num_steps = 0
        self.stop_requested = False
        self._random_state: dict[str, Any] | None = None
        self._saved_at_s = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._saved_at_s = time.monotonic()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._random_state is not None:
            # Only now: building the loader's iterator has drawn from the global generators since the load.
            restore_random_state(self._random_state)
            self._random_state = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.num_steps += 1
        ends = self.num_steps >= self.max_steps or self.stop_requested
        by_steps = self.every_steps > 0 and self.num_steps % self.every_steps == 0
        by_time = self.every_s > 0 and time.monotonic() - self._saved_at_s >= self.every_s
        if ends or by_steps or trainer.strategy.broadcast(by_time):
            self.save(trainer)
        if ends:
            trainer.should_stop = True

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[STATE_NAME] = {"num_steps": self.num_steps, "random_state": capture_random_state()}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.num_steps = checkpoint[STATE_NAME]["num_steps"]
        self._random_state = checkpoint[STATE_NAME]["random_state"]

    def save(self, trainer: lightning.Trainer) -> None:
        """Write `last.ckpt`; what was last becomes `previous.ckpt`.

        Raises:
            UserError: the disk is full or the folder cannot be written; the former checkpoints are still there.
        """
        last, temporary = self.folder / LAST_NAME, self.folder / f"{LAST_NAME}.tmp"
        with folder_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                trainer.save_checkpoint(temporary)
                if trainer.is_global_zero:
                    with temporary.open("rb") as file:
                        os.fsync(file.fileno())
                    if last.exists():
                        os.replace(last, self.folder / PREVIOUS_NAME)
                    os.replace(temporary, last)
            except RuntimeError as error:
                temporary.unlink(missing_ok=True)
                if "write failed" in str(error) or "No space left" in str(error):
                    # torch's zip writer hides the system's error number.
                    raise OSError(28, "No space left on device", str(self.folder)) from error
                raise
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        self._saved_at_s = time.monotonic()


def _read_num_steps(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        # torch does not compare the checksums that it writes, so a flipped bit would pass unseen.
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of '{damaged}'")
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)[STATE_NAME]["num_steps"])
