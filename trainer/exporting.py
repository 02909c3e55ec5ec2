"""Exporting weights now and then while a training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning
import torch

from trainer.checkpoint import StepKeeper

_LOOK_EVERY_STEPS = 20


class ExportRegularly(lightning.Callback):
    """Calls `export` every `every_s` seconds in the first process, and ends the training after `max_minutes` (0: never)
    with a checkpoint, so that the same command goes on from there.
    """

    def __init__(self, export: Callable[[], None], every_s: float, max_minutes: float) -> None:
        self.export, self.every_s, self.max_minutes = export, every_s, max_minutes
        self.started = self.exported = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        now = time.monotonic()
        if trainer.is_global_zero and now - self.exported > self.every_s:
            self.export()
            self.exported = time.monotonic()
        if self.max_minutes and trainer.global_step % _LOOK_EVERY_STEPS == 0:
            over = torch.tensor(float(now - self.started > 60 * self.max_minutes))
            if trainer.strategy.reduce(over, reduce_op="max") > 0:
                # The keeper comes after this callback: it saves, and ends the training.
                for callback in trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(callback, StepKeeper):
                        callback.stop_requested = True
