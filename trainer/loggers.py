"""Where metrics go: always `metrics.jsonl`, and Weights & Biases or TensorBoard where asked for."""

from __future__ import annotations

import json
import logging
import math
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from modules.errors import UserError
from trainer.artifacts import folder_errors, hash_json, write_text
from trainer.runtime import LoggerKind

log = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, in the order of writing; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class JsonlLogger(Logger):
    """Appends one JSON object per logged step: `{"step": 10, "loss": 0.25}`; a value that is not finite is null.

    Args:
        path: the file.
        start_step: the step from which the training goes on; rows of later steps, written by a run that was
            killed after its last checkpoint, are dropped.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, path: Path, start_step: int = 0) -> None:
        super().__init__()
        self.path = path
        with folder_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] < start_step]
        write_text(path, "".join(kept))

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the manifest keeps the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step}
        for name, value in metrics.items():
            if name != "epoch":  # Lightning adds it; the whole training is one epoch
                row[name] = float(value) if math.isfinite(value) else None
        # Opened for each row, so that what is written survives a kill.
        with folder_errors(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class SafeLogger(Logger):
    """Passes everything on to another logger until that one fails; from then on it is silent.

    A tracker's server or disk trouble must never end a training that took hours.
    """

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner = inner
        self._broken = False

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        return self.inner.version

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._pass_on("log_hyperparams", params, *args, **kwargs)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._pass_on("log_metrics", metrics, step)

    def save(self) -> None:
        self._pass_on("save")

    def finalize(self, status: str) -> None:
        self._pass_on("finalize", status)

    def _pass_on(self, method: str, *args: Any, **kwargs: Any) -> None:
        if self._broken:
            return
        try:
            getattr(self.inner, method)(*args, **kwargs)
        except Exception as error:
            self._broken = True
            log.warning("%s failed and is switched off: %s", type(self.inner).__name__, error)


def build_loggers(kind: LoggerKind, folder: Path, *, name: str, start_step: int = 0) -> list[Logger]:
    """The loggers of a training; the first one is always the `JsonlLogger`.

    Args:
        kind: which further logger. W&B is offline when the environment has neither a key nor a mode.
        folder: the training folder.
        name: the run's name in the tracker.
        start_step: see `JsonlLogger`.

    Raises:
        UserError: the tracker's package is not installed.
    """
    loggers: list[Logger] = [JsonlLogger(folder / METRICS_NAME, start_step)]
    scratch = folder / ".tracker"
    try:
        match kind:
            case "jsonl":
                pass
            case "wandb":
                from lightning.pytorch.loggers import WandbLogger

                offline = not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"))
                scratch.mkdir(parents=True, exist_ok=True)
                # The id makes a resumed training go on in the same run.
                run_id = f"{name}-{hash_json(folder.resolve())[:12]}"
                tracker = WandbLogger(name=name, save_dir=scratch, offline=offline, id=run_id, resume="allow")
                loggers.append(SafeLogger(tracker))
            case "tensorboard":
                from lightning.pytorch.loggers import TensorBoardLogger

                loggers.append(SafeLogger(TensorBoardLogger(save_dir=scratch, name=name, version=0)))
    except ModuleNotFoundError as error:
        raise UserError(
            f"runtime.logger is '{kind}', but its package is not installed: "
            f"pip install {kind}, or set runtime.logger=jsonl."
        ) from error
    return loggers
