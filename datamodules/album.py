"""An album folder of a user's, checked: which photos and masks can be used, and why the others cannot.

Layout:
    ALBUM/image/<stem>.jpg  (or the photos directly in ALBUM)     ALBUM/mask/<stem>_<asset>.png
    ALBUM/album.json        (or the reference implementation's gpt4v_response.json; both are optional)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from datamodules.album_description import Gender
from datamodules.captioning.config import CaptionerConfig
from datamodules.overrides import AlbumOverrides
from datamodules.segmentation.config import SegmentorConfig
from datamodules.selection import SelectionConfig
from modules.geometry.camera import ViewVocabulary

IMAGE_FOLDER = "image"
MASK_FOLDER = "mask"


@dataclass(frozen=True, kw_only=True)
class AlbumConfig:
    """What is read of an album, and the rules by which masks are cleaned.

    min_photos: fewer usable photos end in an error. max_photos: further ones are set aside. max_pixels, max_file_bytes:
    bounds on one file, checked before it is decoded. min_side_px: smallest accepted short side of a photo.
    working_resolution: side in pixels of the squares the photos are brought to. min_mask_fraction: of the photo's area;
    max_mask_fraction: of the person's (PuzzleAvatar drops masks below 0.1 % and from 90 %). photo_fraction: share
    of the usable photos that is taken, at least min_photos of them; which ones depends on their pixels only.
    descriptions: the words of assets, "short" on their shape, or the "long" descriptions of album.json.
    min_view_confidence: a view that was estimated with less stays unknown.
    segmentor, selection, captioner: what is done for photos without masks, and for albums without words.
    """

    min_photos: int = 1
    max_photos: int = 500
    max_pixels: int = 80_000_000
    max_file_bytes: int = 1 << 28
    min_side_px: int = 16
    working_resolution: int = 512
    min_mask_fraction: float = 0.001
    max_mask_fraction: float = 0.9
    view_vocabulary: ViewVocabulary = "eight"
    photo_fraction: float = 1.0
    descriptions: Literal["short", "long"] = "short"
    min_view_confidence: float = 0.7
    segmentor: SegmentorConfig = field(default_factory=SegmentorConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)

    def __post_init__(self) -> None:
        for name in ("min_photos", "max_pixels", "max_file_bytes", "min_side_px"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.max_photos < self.min_photos:
            raise ValueError(f"max_photos must be at least min_photos ({self.min_photos}), found {self.max_photos}")
        if not 16 <= self.working_resolution <= 4096:
            raise ValueError(f"working_resolution must lie in [16, 4096], found {self.working_resolution}")
        if not 0 <= self.min_mask_fraction < 1:
            raise ValueError(f"min_mask_fraction must lie in [0, 1), found {self.min_mask_fraction}")
        if not 0 < self.max_mask_fraction <= 1:
            raise ValueError(f"max_mask_fraction must lie in (0, 1], found {self.max_mask_fraction}")
        if self.view_vocabulary not in ("four", "eight"):
            raise ValueError(f'view_vocabulary must be "four" or "eight", found {self.view_vocabulary!r}')
        if not 0 < self.photo_fraction <= 1:
            raise ValueError(f"photo_fraction must lie in (0, 1], found {self.photo_fraction}")
        if not 0 <= self.min_view_confidence <= 1:
            raise ValueError(f"min_view_confidence must lie in [0, 1], found {self.min_view_confidence}")
        if self.descriptions not in ("short", "long"):
            raise ValueError(f'descriptions must be "short" or "long", found {self.descriptions!r}')


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One puzzle piece: its name ("shirt") and shape words ("short-sleeved"; may be empty)."""

    name: str
    words: str = ""


class SetAside(NamedTuple):
    """A photo, mask or asset that is not used, and the reason in one sentence."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """image: (H, W, 3) uint8 sRGB, upright, its longer side at most the working resolution. masks: asset name to (H, W)
    bool, as they came (they may overlap). person: (H, W) bool, the whole person with bare skin, from the mask
    `<stem>_person.png`, or None. Words are None where unknown.
    """

    stem: str
    image: np.ndarray
    masks: dict[str, np.ndarray]
    person: np.ndarray | None = None
    view: str | None = None
    framing: str | None = None
    pose: str | None = None
    background: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Album:
    """A checked album.

    assets: in canonical order, face first; each has a mask in some photo. content_hash: sha256 of what was used (the
    files' names and bytes, not the folder's place). notes: sentences on what was taken differently than written.
    overrides: a person's decisions, as they were applied.
    """

    name: str
    folder: Path
    gender: Gender
    assets: tuple[Asset, ...]
    photos: tuple[Photo, ...]
    set_aside: tuple[SetAside, ...]
    notes: tuple[str, ...]
    content_hash: str
    config: AlbumConfig = field(default_factory=AlbumConfig)
    overrides: AlbumOverrides = field(default_factory=AlbumOverrides)

    @property
    def asset_names(self) -> tuple[str, ...]:
        return tuple(asset.name for asset in self.assets)


def resize_mask(mask: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """(H, W) bool to another size: a pixel is inside when at least half of its area was."""
    if mask.shape == (height_px, width_px):
        return mask
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize((width_px, height_px), Image.Resampling.BOX)) >= 128
