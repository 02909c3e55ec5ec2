"""What every segmentor offers: it finds the people of a photo, and the parts of the one who is chosen.

Two steps, since who the album is about can be told only when everybody in all of its photos is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from datamodules.segmentation.config import SegmentorConfig


class Box(NamedTuple):
    """Pixels of a photo, the lower bounds inside and the upper ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def holds(self, x: float, y: float) -> bool:
        """Whether a point, in pixels, lies inside."""
        return self.left <= x < self.right and self.top <= y < self.bottom


@dataclass(frozen=True, kw_only=True, eq=False)
class PersonFound:
    """Somebody in a photo.

    box: in pixels of the photo. area: share of the photo's pixels that is theirs. sharpness: how much fine structure
    they show (see `datamodules.selection.sharpness`). appearance: mean CIELAB colours (3,) by part, for telling people
    apart; parts need only be the same for one segmentor. outline: (h, w) bool, the box's pixels that are theirs, at the
    segmentor's own, coarser resolution.
    """

    box: Box
    area: float
    sharpness: float
    appearance: Mapping[str, np.ndarray]
    outline: np.ndarray = field(default_factory=lambda: np.ones((1, 1), bool))


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What is known of the subject in one photo.

    masks: asset name to (H, W) bool, disjoint. person: (H, W) bool with bare skin. view: one of eight directions or
    "overhead", None when it cannot be told. view_confidence: in [0, 1].
    """

    masks: dict[str, np.ndarray]
    person: np.ndarray
    view: str | None = None
    view_confidence: float = 0.0


class Segmentor(Protocol):
    """identity: names the method, its settings and its weights; results may be kept under it."""

    @property
    def identity(self) -> str: ...

    def people(self, photo: np.ndarray) -> list[PersonFound]:
        """Everybody in a photo (H, W, 3) uint8 sRGB, largest first."""
        ...

    def outfit(self, cuts: Sequence[Cut]) -> list[Parts]:
        """The parts of one and the same person in all their photos; what they wear is decided over all of them."""
        ...


class Cut(Protocol):
    """A photo, cut to the subject and brought to the working resolution."""

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 sRGB."""
        ...

    def others(self) -> np.ndarray:
        """(H, W) bool: pixels that belong to somebody else."""
        ...


def make_segmentor(config: SegmentorConfig, root: Path) -> Segmentor | None:
    """The segmentor of the settings, None for "given". root: what relative paths of weights start from.

    Raises UserError when weights are missing or damaged.
    """
    # The networks and their libraries load only where masks have to be made.
    match config.method:
        case "given":
            return None
        case "auto" | "mini":
            from datamodules.segmentation.mini import MiniParser

            return MiniParser.load(root / config.weights, config)
        case "grounded_sam":
            from datamodules.segmentation.grounded_sam import GroundedSam

            return GroundedSam.load(config, root, views=_view_of_the_mini_parser(config, root))


def _view_of_the_mini_parser(config: SegmentorConfig, root: Path) -> Callable[[np.ndarray], tuple[str, float]] | None:
    """Neither GroundingDINO nor SAM tells the direction of a photo; None where the mini parser is not there."""
    from datamodules.segmentation.mini import MiniParser

    folder = root / config.weights
    return MiniParser.load(folder, config).view if folder.is_dir() else None
