"""Progress of a training: a bar on a terminal, one line per interval elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class ProgressReport(lightning.Callback):
    """Shows stage, step, loss and time left.

    Args:
        stage: the stage's name.
        max_steps: steps in all.
        start_step: steps that an earlier process did.
        every_s: seconds between two lines where there is no terminal; 0 for a line at every step.
        console: where to write; standard error when None, which keeps standard output for results.
    """

    def __init__(
        self, stage: str, *, max_steps: int, start_step: int = 0, every_s: float = 30.0, console: Console | None = None
    ) -> None:
        self.stage = stage
        self.max_steps = max_steps
        self.start_step = start_step
        self.every_s = every_s
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._step = start_step
        self._started_s = self._shown_s = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._started_s = self._shown_s = time.monotonic()
        self._step = self.start_step
        if self.console.is_terminal and trainer.is_global_zero:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self.console)
            self._task = self._progress.add_task(self.stage, total=self.max_steps, completed=self.start_step, loss="")
            self._progress.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step += 1
        if not trainer.is_global_zero:
            return
        loss = _loss_text(trainer, outputs)
        if self._progress is not None:
            self._progress.update(self._task, completed=self._step, loss=loss)
            return
        now_s = time.monotonic()
        if now_s - self._shown_s >= self.every_s or self._step >= self.max_steps:
            self._shown_s = now_s
            seconds_a_step = (now_s - self._started_s) / (self._step - self.start_step)
            left = _duration_text((self.max_steps - self._step) * seconds_a_step)
            print(f"{self.stage}: step {self._step}/{self.max_steps} {loss}, {left} left", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _loss_text(trainer: lightning.Trainer, outputs: Any) -> str:
    value = trainer.callback_metrics.get("loss")
    if value is None:
        value = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return f"loss {float(value):.4g}" if isinstance(value, torch.Tensor) and value.numel() == 1 else ""


def _duration_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
