"""What colour the assets of an album have, and what they cover on the body: where the colour field starts, and what
stays of it.

Small parts (face, hair, shoes) fill a few latent cells of a view of the whole person, and a distillation that starts
from grey hardly reaches them; garments it paints with soft borders. The photos say the colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion

from datamodules.assets import PreparedAlbum
from modules.geometry.asset_regions import AssetColors
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
SKIN, UNTOLD = "skin", ""
# A few of a small model's cells in a view of the whole person.
_SMALL: tuple[BodyPart, ...] = ("face", "scalp", "neck", "hands", "feet")
_ALWAYS_BARE: tuple[BodyPart, ...] = ("face", "neck", "hands")
# A limb shows skin only where what is worn above it on that limb is known to end.
_BARE_BELOW: dict[BodyPart, tuple[BodyPart, ...]] = {
    "upper arms": ("torso",),
    "forearms": ("torso",),
    "shins": ("thighs",),
}
_MIN_PIXELS, _RIM = 24, 2
_BRIGHTEST = 0.9
_PALETTE, _LEAST_SHARE = 3, 0.15
# Its sleeves may be of any length.
_OPEN_SLEEVES = "dress"
# The face's mask holds eyes, brows and lips, which are not what skin looks like.
_FACE = "face"


def album_colors(album: PreparedAlbum) -> list[AssetColors]:
    """What the album tells of each of its assets, and of bare skin where it shows a face.

    The last one, if any, is `UNTOLD`, of no known colour: the parts of the body of which nothing is told, or of which
    words say something else than the photos.
    """
    seen = {name: pixels for name in album.asset_names if (pixels := _asset_pixels(album, name))}
    shading, found = _shading(photo for pixels in seen.values() for photo in pixels), []
    area = {name: sum(map(len, pixels)) for name, pixels in seen.items()}
    worn: set[BodyPart] = set()
    for name, pixels in seen.items():
        if name == _FACE or name in album.in_words:
            continue
        parts = COVERED.get(name, ())
        worn |= set(parts)
        same = sum(area[other] for other in seen if other == name or set(parts) & set(COVERED.get(other, ())))
        asset = _asset_colors(name, parts, pixels, shading)
        # The information of a pixel of these parts being this asset's, in nats.
        found.append(replace(asset, rarity=-math.log(area[name] / same)))
    said = {part for name in album.in_words for part in COVERED.get(name, ())}
    if _FACE in seen and _FACE not in album.in_words:
        bare = [*_ALWAYS_BARE]
        bare += [part for part, above in _BARE_BELOW.items() if set(above) <= worn - said]
        if not {"haircut", "cap"} & set(album.asset_names):
            bare.append("scalp")
        parts = tuple(part for part in bare if part not in worn | said)
        unsure = {"upper arms", "forearms"} if _OPEN_SLEEVES in album.asset_names else set()
        skin = _asset_colors(SKIN, parts, seen[_FACE], shading)
        found.append(replace(skin, sure=tuple(part for part in parts if part not in unsure), anywhere=True))
        worn |= set(parts)
    untold = tuple(part for part in BODY_PARTS if part in said or part not in worn)
    if untold or any(name not in COVERED for name in album.in_words):
        found.append(AssetColors(name=UNTOLD, parts=untold, albedo=None, palette=np.zeros((0, 3)), sure=_small(untold)))
    return found


def first_colors(assets: Iterable[AssetColors], parts: np.ndarray) -> np.ndarray:
    """Albedo (P, 3) of what is worn outermost on parts of the body, given as indices (P,) into BODY_PARTS; NaN where
    nothing is known."""
    of = {asset.name: asset for asset in assets}
    table = np.full((len(BODY_PARTS), 3), np.nan)
    # Words may contradict what lies below: they come last.
    for name in (SKIN, *COVERED, UNTOLD):
        if name in of:
            albedo = of[name].albedo
            table[[BODY_PARTS.index(part) for part in of[name].parts]] = np.nan if albedo is None else albedo
    return table[parts]


def _asset_colors(name: str, parts: tuple[BodyPart, ...], pixels: list[np.ndarray], shading: float) -> AssetColors:
    """The albedo is the median over photos of the mean colour, which has a pattern's proportions, without the shading.
    The palette has that, and the colours of a pattern, each with and without shading."""
    middle = np.median if name == SKIN else np.mean
    albedo = np.clip(np.median([middle(photo, 0) for photo in pixels], 0) / shading, 0, 1)
    colors = albedo[None]
    if name != SKIN:
        few = np.concatenate([photo[:: max(1, len(photo) // 300)] for photo in pixels])
        reduced = Image.fromarray(np.rint(few * 255).astype(np.uint8)[None]).quantize(_PALETTE)
        shown = np.asarray(reduced.getpalette() or [])[: 3 * _PALETTE].reshape(-1, 3) / 255
        shares = np.bincount(np.asarray(reduced).ravel(), minlength=len(shown)) / len(few)
        colors = np.concatenate([colors, np.clip(shown[shares > _LEAST_SHARE] / shading, 0, 1)])
    return AssetColors(
        name=name,
        parts=parts,
        albedo=albedo,
        palette=np.concatenate([colors, colors * shading]),
        sure=_small(parts),
    )


def _small(parts: tuple[BodyPart, ...]) -> tuple[BodyPart, ...]:
    return tuple(part for part in parts if part in _SMALL)


def _shading(pixels: Iterable[np.ndarray]) -> float:
    """How bright a surface is in the photos on the average, beside its albedo, in (0, 1].

    pixels: (P, 3) of each asset in each photo. The median of their mean brightness beside that of the brightest tenth,
    which faces the light.
    """
    ratios = []
    for photo in pixels:
        brightness = photo.mean(1)
        ratios.append(float(brightness.mean() / max(np.quantile(brightness, _BRIGHTEST), 1e-3)))
    return min(1.0, float(np.median(ratios))) if ratios else 1.0


def _asset_pixels(album: PreparedAlbum, name: str) -> list[np.ndarray]:
    """sRGB (P, 3) in [0, 1] of an asset in each photo that shows enough of it.

    A rim of `_RIM` pixels, which what is beside has leaked into, does not count where the asset is wide enough.
    """
    found = []
    for image, mask in zip(album.images, album.masks[:, album.asset_names.index(name)], strict=True):
        inner = binary_erosion(mask, iterations=_RIM)
        chosen = inner if inner.sum() >= _MIN_PIXELS else mask
        if chosen.sum() >= _MIN_PIXELS:
            found.append(image[chosen] / 255)
    return found
