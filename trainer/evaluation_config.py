"""Settings of the comparison with ground truth; light to import, unlike `trainer.evaluation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Options of the comparison with ground truth.

    protocol: which set of rules. num_samples: surface points on each mesh. resolution: pictures in pixels, square.
    seed: of the surface points. lpips_backbone: file with VGG-16's ImageNet weights, empty to leave LPIPS out.
    """

    protocol: Literal["reference", "corrected", "both"] = "both"
    num_samples: int = 100_000
    resolution: int = 512
    seed: int = 0
    lpips_backbone: str = ""

    def __post_init__(self) -> None:
        if self.protocol not in ("reference", "corrected", "both"):
            raise ValueError(f"protocol must be reference, corrected or both, found {self.protocol!r}")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, found {self.num_samples}")
        if self.resolution < 16:
            raise ValueError(f"resolution must be at least 16 (the window of SSIM and LPIPS), found {self.resolution}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")
