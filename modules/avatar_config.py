"""Settings of the geometry and texture stages, apart from the modules: reading them does not import lightning."""

from __future__ import annotations

from dataclasses import dataclass, field

from modules.diffusion.config import GuidanceConfig
from modules.geometry.config import ColorFieldConfig, SdfFieldConfig, TetGridConfig


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Views per subject and step, and how often each framing is drawn (full body, upper body, head)."""

    views_per_step: int = 4
    full_body: float = 0.55
    upper_body: float = 0.2
    head: float = 0.25
    elevation_min_deg: float = -10.0
    elevation_max_deg: float = 25.0
    fov_y_deg: float = 30.0
    resolution_factor: int = 2

    def __post_init__(self) -> None:
        if self.views_per_step < 1:
            raise ValueError(f"views_per_step must be at least 1, found {self.views_per_step}")
        if self.resolution_factor not in (1, 2, 4):
            raise ValueError(f"resolution_factor must be 1, 2 or 4, found {self.resolution_factor}")
        for name in ("full_body", "upper_body", "head"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if not self.full_body + self.upper_body + self.head > 0:
            raise ValueError("full_body, upper_body and head must not all be 0")
        if self.elevation_min_deg > self.elevation_max_deg:
            raise ValueError(
                f"elevation_min_deg must be at most elevation_max_deg, found {self.elevation_min_deg} and "
                f"{self.elevation_max_deg}"
            )
        if not 0 < self.fov_y_deg < 170:
            raise ValueError(f"fov_y_deg must lie in (0, 170), found {self.fov_y_deg}")


@dataclass(frozen=True, kw_only=True)
class GeometryConfig:
    """The geometry stage. lr is in metres a step; it falls to `final_lr_factor` of itself linearly."""

    steps: int = 150
    lr: float = 2e-3
    final_lr_factor: float = 0.2
    weight_laplacian: float = 0.1
    guidance: GuidanceConfig = field(
        default_factory=lambda: GuidanceConfig(method="nfsd", min_start=0.02, max_start=0.5, min_end=0.02, max_end=0.25)
    )
    cameras: CameraConfig = field(default_factory=CameraConfig)
    grid: TetGridConfig = field(default_factory=TetGridConfig)
    sdf: SdfFieldConfig = field(default_factory=SdfFieldConfig)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, found {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, found {self.lr}")


@dataclass(frozen=True, kw_only=True)
class TextureConfig:
    """The texture stage and the bake."""

    steps: int = 250
    lr: float = 0.03
    final_lr_factor: float = 0.1
    texture_size: int = 1024
    guidance: GuidanceConfig = field(
        default_factory=lambda: GuidanceConfig(
            method="sds", guidance_scale=4.0, min_start=0.5, max_start=0.98, min_end=0.02, max_end=0.5
        )
    )
    cameras: CameraConfig = field(default_factory=CameraConfig)
    color: ColorFieldConfig = field(default_factory=ColorFieldConfig)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, found {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, found {self.lr}")
        if self.texture_size < 16:
            raise ValueError(f"texture_size must be at least 16, found {self.texture_size}")
