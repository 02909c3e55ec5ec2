"""Settings of the export; light to import, unlike `trainer.export`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

FORMATS = ("obj", "usd")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How the avatar is written.

    rig: give avatar.glb (and USD) a skeleton with skin weights. animation: also write avatar_animated.glb, which stands
    at ease and walks; this needs the rig. formats: "obj" and "usd" beside GLB, which is always written; USD is left out
    where the package usd-core is not installed.
    max_texture_px: a larger texture is scaled down to this side. turntable_frames: frames of one whole turn;
    turntable_resolution: side in pixels, even, as H.264 needs; turntable_fps: frames a second. elevation_deg: how far
    above the horizon the camera stands. strip_views: views in the strip. supersampling: samples per pixel along a side.
    background: grey behind the person, 0 to 1. orbit_frames: pictures all round with a transparent background, and
    their cameras, in a folder of their own; 0 writes none. orbit_resolution: their side in pixels.
    """

    rig: bool = True
    animation: bool = True
    formats: tuple[str, ...] = ("obj", "usd")
    max_texture_px: int = 2048
    turntable_frames: int = 36
    turntable_resolution: int = 256
    turntable_fps: int = 18
    elevation_deg: float = 5.0
    strip_views: int = 8
    supersampling: int = 2
    background: float = 1.0
    orbit_frames: int = 0
    orbit_resolution: int = 512

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_texture_px", 16, 16384),
            ("turntable_frames", 1, 3600),
            ("turntable_resolution", 16, 4096),
            ("turntable_fps", 1, 120),
            ("elevation_deg", -80, 80),
            ("strip_views", 1, 64),
            ("supersampling", 1, 8),
            ("background", 0, 1),
            ("orbit_frames", 0, 1000),
            ("orbit_resolution", 16, 4096),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], found {getattr(self, name)}")
        for name, count in Counter(self.formats).items():
            if name not in FORMATS or count > 1:
                expected = "each of obj and usd at most once (glb is always written)"
                raise ValueError(f"formats must hold {expected}, found {list(self.formats)}")
        if self.animation and not self.rig:
            raise ValueError("animation must be false where rig is false, found true; only a skeleton can move")
        if self.turntable_resolution % 2:
            raise ValueError(f"turntable_resolution must be even, found {self.turntable_resolution}")

    def key_settings(self) -> dict[str, Any]:
        """What the export's files depend on.

        Settings of the orbit are in it only where one is rendered: exports from before there were any stay valid.
        """
        settings = asdict(self)
        if not self.orbit_frames:
            del settings["orbit_frames"], settings["orbit_resolution"]
        return settings
