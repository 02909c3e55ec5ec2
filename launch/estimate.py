"""What a run will take on this machine: the steps that `launch.step_costs` has timed, multiplied by their number.

All that costs hours is measured; what costs seconds (baking, export, figures) is known from docs/performance.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modules.errors import UserError

if TYPE_CHECKING:
    from trainer.config import RunConfig

# Seconds on two cores: a synthetic person's pictures, a texture of 2048 x 2048, the files of an avatar, its figures.
_SYNTHETIC_PERSON_S, _BAKE_S, _EXPORT_S, _EVALUATE_S = 0.3, 9.0, 5.0, 15.0
_SAMPLING_STEPS, _PROGRESS_STEPS = 20, 10
_STABLE_DIFFUSION_CELLS = 64


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What was measured, in GiB and in seconds with nothing else running.

    start_s: loading models, template and lattice. geometry_step_s, texture_step_s: by number of subjects. drawn_row_s:
    an image through the UNet without a gradient. free_gib: what the device has left, None where it cannot be seen.
    crowding: how much longer the steps took, with what else runs here. whole_steps: False where a step would
    have taken too long, and was made up of single images.
    """

    device: str
    start_s: float
    token_step_s: float
    joint_step_s: float
    geometry_step_s: Mapping[int, float]
    texture_step_s: Mapping[int, float]
    drawn_row_s: float
    memory_gib: float
    free_gib: float | None = None
    crowding: float = 1.0
    whole_steps: bool = True


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one run. seconds: with nothing else running; crowded_seconds: with what else runs here now. memory_gib: of the
    GPU where there is one. parts: of `seconds`, by name, in the run's order."""

    device: str
    seconds: float
    crowded_seconds: float
    memory_gib: float
    free_gib: float | None
    parts: Mapping[str, float]
    whole_steps: bool


def estimate(costs: StepCosts, config: RunConfig, *, num_assets: int, gender: str, has_truth: bool) -> Estimate:
    """What one album takes alone, all stages included; prior images only where `config.out` does not hold them."""
    booth, every, out = config.booth, config.runtime.visuals_every_steps, Path(config.out)
    subjects = num_subjects(config, has_truth=has_truth)
    rows = 2 * _SAMPLING_STEPS * (7 + num_assets)
    if every > 0:
        rows += 2 * _PROGRESS_STEPS * (2 + num_assets) * (math.ceil(booth.num_steps / every) + 1)
    prior_s = 0.0
    if booth.weight_prior > 0 and not _cached(out, f"samples-{gender}-*"):
        prior_s += 2 * _SAMPLING_STEPS * booth.num_prior_samples * costs.drawn_row_s
    if booth.weight_synthetic > 0 and not _cached(out, f"synthetic-*-{booth.num_synthetic_people}"):
        prior_s += booth.num_synthetic_people * _SYNTHETIC_PERSON_S
    bake_s = subjects * _BAKE_S * (config.texture.texture_size / 2048) ** 2
    parts = {
        "start": costs.start_s,
        "prior images": prior_s,
        "personalisation": booth.token_phase.steps * costs.token_step_s
        + booth.joint_phase.steps * costs.joint_step_s
        + rows * costs.drawn_row_s,
        "geometry": config.geometry.steps * costs.geometry_step_s[subjects],
        "texture": config.texture.steps * costs.texture_step_s[subjects] + bake_s,
        "export": _EXPORT_S + (_EVALUATE_S if has_truth else 0.0),
    }
    return Estimate(
        device=costs.device,
        seconds=sum(parts.values()),
        crowded_seconds=sum(parts.values()) * costs.crowding,
        memory_gib=costs.memory_gib,
        free_gib=costs.free_gib,
        parts=parts,
        whole_steps=costs.whole_steps,
    )


def num_subjects(config: RunConfig, *, has_truth: bool) -> int:
    """Avatars that a run distils: the words alone are one more, where there is something to measure."""
    return 2 if has_truth and config.baselines else 1


def model_cells(config: RunConfig) -> int:
    """Cells along a side of the pictures that the backbone works on; of one that is not here, Stable Diffusion's."""
    try:
        folder = backbone_folder(config.backbone.path)
        return int(json.loads((folder / "unet" / "config.json").read_bytes())["sample_size"])
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return _STABLE_DIFFUSION_CELLS


def backbone_folder(path: str) -> Path:
    """The backbone's folder on this machine; never asks the hub. Raises UserError where it is not (wholly) there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from modules.diffusion.sources import missing_parts, resolve_backbone
    from trainer.config import PROJECT_ROOT

    name, _, revision = path.partition("@")
    if (PROJECT_ROOT / path).exists() or name.count("/") != 1:
        return resolve_backbone(path, PROJECT_ROOT)
    try:
        found = try_to_load_from_cache(name, "unet/config.json", revision=revision or None)
    except HFValidationError:
        return resolve_backbone(path, PROJECT_ROOT)
    snapshot = Path(found).parents[1] if isinstance(found, str) else None
    if snapshot is None or missing_parts(snapshot):
        raise UserError(
            f"the model {path} (backbone.path) is not on this machine yet: the first run downloads it, or get it with "
            f"`hf download`, then check again"
        )
    return snapshot


def _cached(out: Path, pattern: str) -> bool:
    return any((out / ".cache").glob(f"{pattern}/manifest.json"))
