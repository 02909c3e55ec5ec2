"""Settings of the verb `import`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class PuzzleIOIConfig:
    """scan_unit_m: metres of one unit of a scan's file. floor: height in the scan's units below which the stand and the
    floor are cut away, as the benchmark does. turn_deg: angle by which a scan is turned about its vertical axis
    (counter-clockwise seen from above) to face +z; the camera table replaces it where there is one.
    """

    scan_unit_m: float = 0.001
    floor: float = -570.0
    turn_deg: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scan_unit_m <= 1:
            raise ValueError(f"scan_unit_m must lie in (0, 1], found {self.scan_unit_m}")
        for name in ("floor", "turn_deg"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class FourDDressConfig:
    """upper, lower, outer: the assets that these labels are called; the outfits known to be dresses have their upper
    label called so whatever is said here. face: whether the skin of the head becomes the asset "face".
    truth_frame: TAKE/FRAME of the scan that is the ground truth ("Take2/00006"); "" takes the first frame of the take
    that stands most like an A-pose.
    """

    upper: str = "shirt"
    lower: str = "trousers"
    outer: str = "jacket"
    face: bool = True
    truth_frame: str = ""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What is taken of a dataset.

    subjects: names or patterns, separated by commas ("00122,0013*", "03632/outfit13"); "" takes all.
    photos_per_album: how many photos of each album, drawn by `seed`; None takes all, and 40 of a 4D-Dress outfit.
    max_side_px: photos and masks are scaled down to it. max_pixels, max_file_bytes: bounds on one file of the source,
    checked before it is decoded. allow_outside: read files that links or paths lead to outside of the source.
    ground_truth: whether scans become ground_truth/. texture_px: a scan's texture is scaled down to it.
    """

    subjects: str = ""
    photos_per_album: int | None = None
    seed: int = 0
    max_side_px: int = 2048
    max_pixels: int = 80_000_000
    max_file_bytes: int = 1 << 29
    allow_outside: bool = False
    ground_truth: bool = True
    texture_px: int = 2048
    puzzle_ioi: PuzzleIOIConfig = field(default_factory=PuzzleIOIConfig)
    four_d_dress: FourDDressConfig = field(default_factory=FourDDressConfig)

    def __post_init__(self) -> None:
        if self.photos_per_album is not None and self.photos_per_album < 1:
            raise ValueError(f"photos_per_album must be at least 1, found {self.photos_per_album}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, found {self.seed}")
        for name in ("max_pixels", "max_file_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("max_side_px", "texture_px"):
            if not 16 <= getattr(self, name) <= 16384:
                raise ValueError(f"{name} must lie in [16, 16384], found {getattr(self, name)}")
