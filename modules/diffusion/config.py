"""Settings of the backbone, the adapters and the guidance, apart from the code: reading them does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modules.geometry.camera import ViewVocabulary

Weighting = Literal["dreamfusion", "clean"]
# The mini prior's autoencoder gathers blocks of 4 x 4 pixels, so latents have a quarter of the image's side.
CODEC_DOWNSAMPLING = 4


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which model, and how it is spoken to.

    path: a local folder in diffusers layout, relative to the project's root or absolute. view_vocabulary: view words
    it was trained on. scene_words: whether its captions name framing, pose and background (the mini prior's do).
    attention: "plain" matrix products or torch's "fused" kernel; "auto" takes plain on a CPU.
    """

    path: str = "weights/mini"
    view_vocabulary: ViewVocabulary = "eight"
    scene_words: bool = True
    attention: Literal["auto", "plain", "fused"] = "auto"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """rank and alpha of the adapters (scale alpha / sqrt(rank)); whether the text encoder gets some too."""

    rank: int = 16
    alpha: float = 4.0
    text_encoder: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, found {self.rank}")


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Score distillation. Timesteps are fractions of the schedule, drawn uniformly from an interval that moves from
    (min_start, max_start) to (min_end, max_end) over the run. max_gradient: element-wise clamp of the latents'
    gradient, 0 for none.
    """

    method: Literal["nfsd", "sds", "csd"] = "nfsd"
    weighting: Weighting = "clean"
    guidance_scale: float = 7.5
    min_start: float = 0.02
    max_start: float = 0.98
    min_end: float = 0.02
    max_end: float = 0.98
    max_gradient: float = 0.0

    def __post_init__(self) -> None:
        for low, high in ((self.min_start, self.max_start), (self.min_end, self.max_end)):
            if not 0 <= low < high <= 1:
                raise ValueError(f"timestep fractions must satisfy 0 <= min < max <= 1, found {low} and {high}")
        for name in ("guidance_scale", "max_gradient"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")

    def interval(self, progress: float) -> tuple[float, float]:
        """The interval of timestep fractions at a progress in [0, 1]."""
        return (
            self.min_start + (self.min_end - self.min_start) * progress,
            self.max_start + (self.max_end - self.max_start) * progress,
        )
