"""The one place that builds a `lightning.Trainer`, and the one way in which a module is trained."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from modules.errors import UserError
from trainer.callbacks import ProgressReport
from trainer.checkpoint import StepKeeper, find_checkpoint, load_weights
from trainer.loggers import build_loggers
from trainer.runtime import LoggerKind, RuntimeConfig
from trainer.tracking import Tracked

__all__ = ["FitResult", "LoggerKind", "RuntimeConfig", "build_trainer", "fit"]

log = logging.getLogger(__name__)

Batches = Callable[..., Any] | lightning.LightningDataModule | Iterable[Any]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training did.

    Attributes:
        num_steps: steps done in all.
        start_step: of these, done by an earlier process.
        seconds: time that this process took.
    """

    num_steps: int
    start_step: int
    seconds: float


class StepDataset(IterableDataset):
    """Batches `start_step` to `max_steps - 1` of a function step -> batch; each worker takes every n-th.

    Where a step is shared out, among processes or among `accumulate` batches, the function is called as
    (step, part, num_parts) and gives the rows of that part.
    """

    def __init__(self, batch_at: Callable[..., Any], start_step: int, max_steps: int, accumulate: int = 1) -> None:
        self.batch_at = batch_at
        self.start_step = start_step
        self.max_steps = max_steps
        self.accumulate = accumulate

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        num_parts = self.accumulate * (torch.distributed.get_world_size() if distributed else 1)
        for step in range(self.start_step + first, self.max_steps, stride):
            if num_parts == 1:
                yield self.batch_at(step)
                continue
            for part in range(rank * self.accumulate, (rank + 1) * self.accumulate):
                yield self.batch_at(step, part, num_parts)


def build_trainer(
    runtime: RuntimeConfig,
    *,
    folder: Path,
    callbacks: Sequence[lightning.Callback] = (),
    loggers: Sequence[Logger] = (),
    strategy: str | Strategy = "auto",
) -> lightning.Trainer:
    """A trainer without validation, samples or checkpoints of its own; the callbacks decide when it ends."""
    return lightning.Trainer(
        accelerator=runtime.accelerator,
        devices=runtime.devices,
        num_nodes=runtime.num_nodes,
        precision=runtime.precision,
        accumulate_grad_batches=runtime.accumulate_batches,
        strategy=strategy,
        # Who belongs to the group is what torchrun says, and nobody else: a cluster's scheduler leaves numbers in the
        # environment that describe its allocation, in which this may be one of many trainings.
        plugins=[TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()],
        max_epochs=-1,
        max_steps=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=runtime.log_every_steps,
        # CUDA has operators without a deterministic kernel (nvdiffrast's among them): warn there, insist on the CPU.
        deterministic=runtime.deterministic
        and ("warn" if torch.cuda.is_available() and runtime.accelerator != "cpu" else True),
        benchmark=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        use_distributed_sampler=False,
    )


def fit(
    module: lightning.LightningModule,
    batches: Batches,
    *,
    max_steps: int,
    folder: Path,
    runtime: RuntimeConfig,
    first_step: int = 0,
    continues: bool = False,
    seed: int = 0,
    stage: str = "fit",
    callbacks: Sequence[lightning.Callback] = (),
    strategy: str | Strategy = "auto",
    num_workers: int = 0,
    trackers: Path | Tracked | None = None,
) -> FitResult:
    """Train `module` for `max_steps` steps, going on from the checkpoint in `folder` where there is one.

    A step is one batch, or `runtime.accumulate_batches` of them. The checkpoint holds what `module.state_dict()` gives
    (filter frozen weights there and set `module.strict_loading = False`), the optimisers, the schedulers and the global
    random states. Resuming equals never having stopped as long as batch `step` depends on the seed and the step only.

    Args:
        module: manual or automatic optimisation; clips its own gradients; logs with `self.log`.
        batches: a function step -> batch, a pure one with generators of its own; or a data module or loader, walked
            again and again. Only with the function (or a loader with `state_dict`) is resume exact.
        max_steps: steps in all, `first_step` included.
        first_step: where this training begins: a phase after the one that left its last checkpoint in `folder` at this
            step, whose weights it takes over, with optimisers of its own.
        continues: the module comes from that earlier phase in this very process, so that it has those weights.
        folder: gets `checkpoints/` and `metrics.jsonl`.
        runtime: device, precision, intervals.
        seed: of the global generators, at the beginning of the training.
        stage: name in the progress.
        callbacks: further ones.
        strategy: Lightning's strategy or its name.
        num_workers: processes that make batches ahead; 0 makes them in this process.
        trackers: where TensorBoard's or W&B's files go, and whose training they show; see `build_loggers`.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
        KeyboardInterrupt: after SIGINT, once the current step is done and saved; SIGTERM goes to the handler that
            was there before, likewise.
    """
    started_s = time.monotonic()
    checkpoint = find_checkpoint(folder)
    start_step = max(first_step, checkpoint.num_steps if checkpoint else 0)
    if start_step >= max_steps:
        # Also without a checkpoint: Lightning would go round for ever, looking for the first of no steps.
        # Pieces are of a later phase, which reads them itself: the end of each phase is a whole file.
        if checkpoint and checkpoint.num_processes is None:
            load_weights(module, checkpoint.path)
        return FitResult(num_steps=start_step, start_step=start_step, seconds=time.monotonic() - started_s)
    if checkpoint and start_step == first_step:
        if not continues:
            load_weights(module, checkpoint.path)
        checkpoint = None
    pieces = isinstance(strategy, DeepSpeedStrategy)
    if checkpoint and checkpoint.num_processes != (runtime.num_processes if pieces else None):
        raise UserError(
            f"The checkpoint {checkpoint.path} was left by {checkpoint.num_processes or 1} processes with "
            f"runtime.strategy={'deepspeed' if checkpoint.num_processes else 'ddp or fsdp'}, and only as many can go "
            "on from it: give the same settings again, or delete it."
        )
    if checkpoint:
        log.info("%s goes on from step %d.", stage, start_step)
    if runtime.num_threads:
        torch.set_num_threads(runtime.num_threads)
    _seed_everything(seed)

    keeper = StepKeeper(
        folder,
        first_step=first_step,
        max_steps=max_steps,
        every_steps=runtime.checkpoint_every_steps,
        every_s=runtime.checkpoint_every_s,
    )
    progress = ProgressReport(stage, max_steps=max_steps, start_step=start_step, every_s=runtime.log_every_s)
    loggers: list[Logger] = []
    # Of several processes the first one writes; torchrun tells which one that is, long before Lightning knows.
    if os.environ.get("RANK", "0") == "0":
        loggers = build_loggers(runtime.logger, folder, start_step=start_step, first_step=first_step, trackers=trackers)
    with _quiet_lightning(), _deterministic_restored(), _SignalsAtStepEnd(keeper) as signals:
        trainer = build_trainer(
            runtime,
            folder=folder,
            # The keeper last: what the others keep in the checkpoint is then up to date.
            callbacks=[*callbacks, progress, signals, keeper],
            loggers=loggers,
            strategy=strategy,
        )
        source: Any = batches
        if callable(batches) and not isinstance(batches, (lightning.LightningDataModule, DataLoader)):
            dataset = StepDataset(batches, start_step, max_steps, runtime.accumulate_batches)
            source = DataLoader(dataset, batch_size=None, num_workers=num_workers)
        try:
            # Lightning takes a data module in the place of a loader, too.
            trainer.fit(module, source, ckpt_path=checkpoint.path if checkpoint else None, weights_only=True)
        except SystemExit as error:
            # Lightning turns an interrupt before the first step into an exit of its own.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
    return FitResult(num_steps=keeper.num_steps, start_step=start_step, seconds=time.monotonic() - started_s)


class _SignalsAtStepEnd(lightning.Callback):
    """Holds SIGINT and SIGTERM back until the step is done and saved, then gives them to whom they were meant for.

    The second interrupt is not held back. Terminations are, however many: the scheduler of a cluster and the parent
    process send one each, and who is in a hurry kills.
    """

    def __init__(self, keeper: StepKeeper) -> None:
        self.keeper = keeper
        self._outer: dict[int, Any] = {}
        self._received: int | None = None

    def __enter__(self) -> _SignalsAtStepEnd:
        if threading.current_thread() is threading.main_thread():
            self._outer = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Lightning has set a SIGTERM handler of its own by now, which would end the loop without a checkpoint.
        for number in self._outer:
            signal.signal(number, self._hold_back)

    def _hold_back(self, number: int, frame: Any) -> None:
        self._received = number
        self.keeper.stop_requested = True
        if number == signal.SIGINT:
            signal.signal(number, self._outer[number])

    def __exit__(self, *error: object) -> None:
        for number, handler in self._outer.items():
            signal.signal(number, handler)
        # Also after an error that somebody may mend, such as a pack that did not fit into memory.
        mended = error[0] is None or (isinstance(error[0], type) and issubclass(error[0], Exception))
        if self._received is not None and mended:
            signal.raise_signal(self._received)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


@contextlib.contextmanager
def _deterministic_restored() -> Iterator[None]:
    """Lightning switches deterministic algorithms on for the whole process; give back what was set before."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence what is no news here: device tables, tips, and warnings about choices that were made on purpose."""
    lightning_logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in lightning_logs]
    with warnings.catch_warnings():
        for message in (
            r".*does not have many workers",
            r".*`training_step` returned `None`",
            r".*You're resuming from a checkpoint that ended before the epoch ended",
            r".*GPU available but not used",
            r".*isinstance\(treespec, LeafSpec\)",
            r".*Found \d+ module\(s\) in eval mode at the start of training",
            r"The `srun` command is available",
            r"Since DeepSpeed handles gradient clipping internally",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger in lightning_logs:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(lightning_logs, levels, strict=True):
                logger.setLevel(level)
