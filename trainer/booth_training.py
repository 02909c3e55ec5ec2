"""PuzzleBooth's training from its first step to its last: a phase after the other, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.strategies import Strategy

from modules.puzzlebooth import PuzzleBooth
from trainer.fit import fit
from trainer.runtime import RuntimeConfig
from trainer.tracking import Tracked


def train_booth(
    module: PuzzleBooth,
    batches: Callable[..., Any],
    *,
    folder: Path,
    runtime: RuntimeConfig,
    seed: int = 0,
    callbacks: Sequence[lightning.Callback] = (),
    strategy: Callable[[], Strategy] | None = None,
    max_steps: int | None = None,
    trackers: Path | Tracked | None = None,
) -> None:
    """Train both phases, going on from the checkpoint in `folder` where there is one.

    batches, trackers: see `fit`. strategy: makes one for each phase. max_steps: end before this step of the whole, as a
    kill would; None for the end.
    """
    continues = False
    for phase, (first, end) in module.phases.items():
        last = end if max_steps is None else min(end, max_steps)
        if last <= first:
            break
        module.enter(phase)
        fit(
            module,
            batches,
            first_step=first,
            continues=continues,
            max_steps=last,
            folder=folder,
            runtime=runtime,
            seed=seed,
            stage=f"PuzzleBooth ({phase})",
            callbacks=callbacks,
            strategy=strategy() if strategy else "auto",
            trackers=trackers,
        )
        continues = True
    if max_steps is None:
        module.finish()
