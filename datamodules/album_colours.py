"""What colour each part of the body has in an album: where the colour field starts, before a model is asked.

Small parts (face, hair, shoes) fill a few latent cells of a view of the whole person, and a distillation that starts
from grey hardly reaches them. The photos say their colours: the median of an asset's pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion

from datamodules.assets import PreparedAlbum
from modules.geometry.body_parts import BODY_PARTS, BodyPart

# What each known asset covers on the body; later ones are worn over earlier ones. Other names cover nothing known.
COVERED: dict[str, tuple[BodyPart, ...]] = {
    "haircut": ("scalp",),
    "tank top": ("torso",),
    "t-shirt": ("torso", "upper arms"),
    "shirt": ("torso", "upper arms", "forearms"),
    "jumper": ("torso", "upper arms", "forearms"),
    "skirt": ("thighs",),
    "shorts": ("thighs",),
    "trousers": ("thighs", "shins"),
    "dress": ("torso", "thighs"),
    "jacket": ("torso", "upper arms", "forearms"),
    "shoes": ("feet",),
    "cap": ("scalp",),
}
_ALWAYS_BARE: tuple[BodyPart, ...] = ("face", "neck", "hands")
# A limb shows skin only where what is worn above it on that limb is known to end.
_BARE_BELOW: dict[BodyPart, tuple[BodyPart, ...]] = {
    "upper arms": ("torso",),
    "forearms": ("torso",),
    "shins": ("thighs",),
}
_OF_ONE_COLOUR = ("haircut", "shoes", "cap")
_MIN_PIXELS = 24


def asset_colour(album: PreparedAlbum, name: str, *, lit: bool = False) -> np.ndarray | None:
    """Median sRGB (3,) in [0, 1] of an asset over all photos, each photo counting alike; None where it is not seen.

    lit: of the brighter half of its pixels, whose shading hides least of the albedo; for assets of one colour.
    A rim of one pixel, which background has leaked into, does not count where the asset is wide enough.
    """
    if name not in album.asset_names:
        return None
    index = album.asset_names.index(name)
    medians = []
    for image, mask in zip(album.images, album.masks[:, index], strict=True):
        inner = binary_erosion(mask)
        chosen = inner if inner.sum() >= _MIN_PIXELS else mask
        if chosen.sum() < _MIN_PIXELS:
            continue
        pixels = image[chosen] / 255
        if lit:
            brightness = pixels.mean(1)
            pixels = pixels[brightness >= np.median(brightness)]
        medians.append(np.median(pixels, 0))
    return np.median(medians, 0) if medians else None


@dataclass(frozen=True, kw_only=True)
class BodyColours:
    """sRGB (3,) in [0, 1] of the parts of the body whose colour the album tells. plain: those of them that are small or
    bare, of one colour and without a pattern."""

    of_part: Mapping[BodyPart, np.ndarray]
    plain: frozenset[BodyPart]

    def at(self, parts: np.ndarray) -> np.ndarray:
        """(P, 3) float colours for indices (P,) into BODY_PARTS; NaN where unknown."""
        table = np.array([self.of_part.get(part, np.full(3, np.nan)) for part in BODY_PARTS])
        return table[parts]

    def is_plain(self, parts: np.ndarray) -> np.ndarray:
        """(P,) bool for indices (P,) into BODY_PARTS."""
        return np.array([part in self.plain for part in BODY_PARTS])[parts]


def body_colours(album: PreparedAlbum) -> BodyColours:
    """What the album's masks tell; parts that no known asset covers, or that words describe, are left out."""
    colours: dict[BodyPart, np.ndarray] = {}
    plain: set[BodyPart] = set()
    for name, parts in COVERED.items():
        if name in album.in_words:
            # Words say what it looks like, and they may contradict what lies below it.
            colours = {part: colour for part, colour in colours.items() if part not in parts}
            plain -= set(parts)
        elif (colour := asset_colour(album, name, lit=name in _OF_ONE_COLOUR)) is not None:
            colours |= dict.fromkeys(parts, colour)
            plain = plain | set(parts) if name in _OF_ONE_COLOUR else plain - set(parts)
    skin = asset_colour(album, "face", lit=True)
    if skin is not None and "face" not in album.in_words:
        bare = list(_ALWAYS_BARE)
        bare += [part for part, above in _BARE_BELOW.items() if all(one in colours for one in above)]
        if "haircut" not in album.asset_names and "cap" not in album.asset_names:
            bare.append("scalp")
        for part in bare:
            if part not in colours:
                colours[part] = skin
                plain.add(part)
    return BodyColours(of_part=colours, plain=frozenset(plain))
