"""Settings of the geometry and texture stages, apart from the modules: reading them does not import lightning."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from modules.diffusion.config import GuidanceConfig
from modules.geometry.config import ColorFieldConfig, SdfFieldConfig, TetGridConfig


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Views per subject and step, and how often each framing is drawn.

    full_body, upper_body, head, hands, feet: relative weights; hands and feet are close-ups of either side, for models
    that know such pictures.
    """

    views_per_step: int = 4
    full_body: float = 0.55
    upper_body: float = 0.2
    head: float = 0.25
    hands: float = 0.0
    feet: float = 0.0
    elevation_min_deg: float = -10.0
    elevation_max_deg: float = 25.0
    fov_y_deg: float = 30.0
    resolution_factor: int = 2

    def __post_init__(self) -> None:
        if self.views_per_step < 1:
            raise ValueError(f"views_per_step must be at least 1, found {self.views_per_step}")
        if self.resolution_factor not in (1, 2, 4):
            raise ValueError(f"resolution_factor must be 1, 2 or 4, found {self.resolution_factor}")
        weights = ("full_body", "upper_body", "head", "hands", "feet")
        for name in weights:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if not sum(getattr(self, name) for name in weights) > 0:
            raise ValueError("full_body, upper_body, head, hands and feet must not all be 0")
        if self.elevation_min_deg > self.elevation_max_deg:
            raise ValueError(
                f"elevation_min_deg must be at most elevation_max_deg, found {self.elevation_min_deg} and "
                f"{self.elevation_max_deg}"
            )
        if not 0 < self.fov_y_deg < 170:
            raise ValueError(f"fov_y_deg must lie in (0, 170), found {self.fov_y_deg}")


@dataclass(frozen=True, kw_only=True)
class GeometryConfig:
    """The geometry stage. lr is in metres a step; it falls to `final_lr_factor` of itself linearly.

    template: the surface to start from: "anny", "smplx" (needs the package and, in the folder smplx_models, its
    licensed files), or the path of an A-posed mesh (OBJ, PLY, GLB), which need not be closed.
    subdivide_at: fractions of the steps at which tetrahedra that the surface crosses are split in eight.
    least_part: connected parts with less than this fraction of the surface are dropped at the end.
    """

    steps: int = 150
    lr: float = 2e-3
    final_lr_factor: float = 0.2
    weight_laplacian: float = 0.1
    weight_normal_consistency: float = 0.0
    weight_eikonal: float = 0.0
    template: str = "anny"
    smplx_models: str = ""
    subdivide_at: tuple[float, ...] = ()
    least_part: float = 0.01
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
        for name in ("weight_laplacian", "weight_normal_consistency", "weight_eikonal"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        bounds = [0.0, *self.subdivide_at, 1.0]
        if any(later <= earlier for earlier, later in pairwise(bounds)):
            raise ValueError(f"subdivide_at must hold ascending fractions within (0, 1), found {self.subdivide_at}")
        if not 0 <= self.least_part < 1:
            raise ValueError(f"least_part must lie in [0, 1), found {self.least_part}")


@dataclass(frozen=True, kw_only=True)
class TextureConfig:
    """The texture stage and the bake.

    max_faces: triangles that the avatar may have; 0 leaves them as they are. The colours are learned on all of them and
    baked on those that are left.
    background: "plain" draws white, grey or black for each view and says so to models whose captions do; "learned"
    trains a smooth one by viewing direction along with the colours, of which no prompt speaks.
    shading: "unlit" shows the model the bare albedo; "random" lights the surface at random in every view, so that the
    model's light need not be stored in the albedo.
    start: "album" gives each part of the body the colour that it has in the photos before the first step; "grey" none.
    album_share: how much of the album's colour each asset's region takes in the end, in [0, 1]: a model that is too
    small for garments' borders and for faces, hands and feet paints them soft and grey. 0 leaves all to the model.
    refinement_steps: of the solver that fits the baked texels to renders of the field; 0 leaves the plain bake.
    """

    steps: int = 250
    lr: float = 0.03
    final_lr_factor: float = 0.1
    texture_size: int = 2048
    refinement_steps: int = 12
    max_faces: int = 0
    guidance: GuidanceConfig = field(
        default_factory=lambda: GuidanceConfig(
            method="sds", guidance_scale=4.0, min_start=0.5, max_start=0.98, min_end=0.02, max_end=0.5
        )
    )
    background: Literal["plain", "learned"] = "plain"
    shading: Literal["unlit", "random"] = "unlit"
    start: Literal["album", "grey"] = "album"
    album_share: float = 0.0
    cameras: CameraConfig = field(default_factory=CameraConfig)
    color: ColorFieldConfig = field(default_factory=ColorFieldConfig)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, found {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, found {self.lr}")
        if not 0 <= self.album_share <= 1:
            raise ValueError(f"album_share must lie in [0, 1], found {self.album_share}")
        if self.texture_size < 16:
            raise ValueError(f"texture_size must be at least 16, found {self.texture_size}")
        if self.refinement_steps < 0:
            raise ValueError(f"refinement_steps must not be negative, found {self.refinement_steps}")
        if self.max_faces and self.max_faces < 500:
            raise ValueError(f"max_faces must be 0 (as they are) or at least 500, found {self.max_faces}")
