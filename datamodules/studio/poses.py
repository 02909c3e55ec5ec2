"""Random poses as joint rotations in world axes (x left, y up, z front) relative to the A-pose."""

from __future__ import annotations

import numpy as np

from modules.geometry.skinning import axis_rotation


def _both(left: float, right: float) -> tuple[tuple[str, float, float], tuple[str, float, float]]:
    # A turn about z that lifts the left arm lowers the right one.
    return ("left", 1.0, left), ("right", -1.0, right)


def sample_pose(rng: np.random.Generator, word: str, *, skirt: bool = False) -> dict[str, np.ndarray]:
    """Rotations for a pose word of vocabulary.POSES; a skirt keeps the steps short. "a-pose" is the identity."""
    if word == "a-pose":
        return {}
    if word not in ("standing", "walking", "arms raised", "posed"):
        raise ValueError(f"unknown pose word {word!r}")
    normal = rng.normal
    rotations = {
        "spine_middle": axis_rotation(1, normal(0, 6)) @ axis_rotation(0, normal(0, 4)),
        "spine_upper": axis_rotation(1, normal(0, 6)) @ axis_rotation(2, normal(0, 4)),
        "neck": axis_rotation(1, normal(0, 6)),
        "head": axis_rotation(1, normal(0, 9)) @ axis_rotation(0, normal(0, 6)),
    }
    stride = float(rng.uniform(14, 30)) * float(rng.choice([-1.0, 1.0])) if word == "walking" else 0.0
    lifts = rng.uniform(60, 115, 2)
    for side, sign, lift in _both(float(lifts[0]), float(lifts[1])):
        match word:
            case "standing":
                raised, swung, bent = rng.uniform(-38, -18), rng.uniform(-12, 15), rng.uniform(0, 30)
            case "walking":
                raised, swung, bent = rng.uniform(-36, -22), -sign * stride * rng.uniform(0.7, 1.3), rng.uniform(5, 40)
            case "arms raised":
                raised, swung, bent = lift, rng.uniform(-5, 20), rng.uniform(0, 30)
            case _:
                raised, swung = rng.uniform(-40, 55), rng.uniform(-20, 70)
                bent = rng.uniform(0, 90) * (rng.random() < 0.7)
        rotations[f"shoulder_{side}"] = axis_rotation(0, -swung) @ axis_rotation(2, sign * raised)
        rotations[f"collar_{side}"] = axis_rotation(2, sign * 0.15 * max(raised, 0))
        rotations[f"elbow_{side}"] = axis_rotation(0, -bent)
        lifted = sign * stride if word == "walking" else normal(0, 3)
        if word == "posed" and rng.random() < 0.5:
            lifted = rng.uniform(-15, 50)
        bend = max(0.0, -lifted) * 1.2 + (rng.uniform(0, 25) if word in ("walking", "posed") else 2.0)
        if skirt:
            lifted, bend = float(np.clip(lifted, -16, 20)), min(bend, 35.0)
        # The A-pose stands with legs apart; people mostly stand narrower.
        narrow = rng.uniform(-1, 7) if word != "posed" else rng.uniform(-10, 8)
        rotations[f"hip_{side}"] = axis_rotation(0, -lifted) @ axis_rotation(2, -sign * narrow)
        rotations[f"knee_{side}"] = axis_rotation(0, bend)
    return rotations
