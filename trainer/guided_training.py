"""Training of the geometry or the texture stage: a phase after the other, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning

from modules.guided_stage import GuidedStage
from trainer.fit import fit
from trainer.runtime import RuntimeConfig
from trainer.tracking import Tracked


def train_guided(
    module: GuidedStage,
    *,
    folder: Path,
    runtime: RuntimeConfig,
    seed: int = 0,
    stage: str = "fit",
    max_steps: int | None = None,
    callbacks: Sequence[lightning.Callback] = (),
    trackers: Path | Tracked | None = None,
) -> None:
    """Train all phases, going on from the checkpoint in `folder` where there is one.

    max_steps: end before this step of the whole, as a kill would; None for the end. callbacks, trackers:
    see `fit`.
    """
    continues = False
    for phase, (first, end) in enumerate(module.phases):
        last = end if max_steps is None else min(end, max_steps)
        if last <= first and phase > 0:
            break
        module.enter(phase)
        fit(
            module,
            lambda step: step,
            first_step=first,
            continues=continues,
            max_steps=last,
            folder=folder,
            runtime=runtime,
            seed=seed,
            stage=stage if len(module.phases) == 1 else f"{stage} ({phase + 1} of {len(module.phases)})",
            callbacks=callbacks,
            trackers=trackers,
        )
        continues = True
