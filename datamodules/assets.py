"""Stage "prepare": from a checked album to the arrays that training reads.

N photos, A assets, R the working resolution in pixels. The cleaning rules are those of PuzzleAvatar (Xiu et al., TOG
2024) and its release, with two choices of our own, which `clean_masks` explains.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.album import Album, AlbumConfig, SetAside, resize_mask
from datamodules.asset_names import GLASSES, order_assets
from datamodules.atomic import write_bytes
from datamodules.contact_sheet import contact_sheet
from modules.errors import UserError

_FORMAT = 2
_WORDS = ("views", "framings", "poses", "backgrounds")
_BITS = ("valid", "masks", "person")
_STRINGS = ("asset_names", "asset_words", "stems")


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedAlbum:
    """An album as arrays, photos in the order of their names.

    images: (N, R, R, 3) uint8 sRGB, photos scaled to fit, centred, and padded with the mean grey of their rim.
    valid: (N, R, R) bool, False on that padding, which losses must leave out.
    masks: (N, A, R, R) bool, disjoint in each photo, False on padding.
    person: (N, R, R) bool, the whole person; the union of the masks where the album has no mask of it.
    asset_names, asset_words: A each. stems, views, framings, poses, backgrounds: N each; None is unknown. in_words: the
    assets that are said in words alone, which have no token and no mask; an album as it was photographed has none.
    """

    name: str
    gender: str
    content_hash: str
    asset_names: tuple[str, ...]
    asset_words: tuple[str, ...]
    stems: tuple[str, ...]
    views: tuple[str | None, ...]
    framings: tuple[str | None, ...]
    poses: tuple[str | None, ...]
    backgrounds: tuple[str | None, ...]
    images: np.ndarray
    valid: np.ndarray
    masks: np.ndarray
    person: np.ndarray
    set_aside: tuple[SetAside, ...] = ()
    notes: tuple[str, ...] = ()
    in_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        photos, assets = len(self.stems), len(self.asset_names)
        side = self.images.shape[1] if self.images.ndim == 4 else 0
        expected = {
            "images": ((photos, side, side, 3), np.uint8),
            "valid": ((photos, side, side), np.bool_),
            "masks": ((photos, assets, side, side), np.bool_),
            "person": ((photos, side, side), np.bool_),
        }
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} must be {shape} {np.dtype(dtype)}, found {array.shape} {array.dtype}")
        if any(len(getattr(self, name)) != photos for name in _WORDS) or len(self.asset_words) != assets:
            raise ValueError(f"words must be given for each of {photos} photos and {assets} assets")

    @property
    def resolution(self) -> int:
        """R, the side of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def present(self) -> np.ndarray:
        """(N, A) bool: which asset can be seen in which photo."""
        return np.asarray(self.masks.any((2, 3)))


def clean_masks(
    masks: dict[str, np.ndarray], config: AlbumConfig
) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """One photo's masks by name, (H, W) bool, made disjoint; and the (asset, reason) pairs of those that were dropped.

    In this order: glasses are merged into the face; masks under `min_mask_fraction` of the photo are dropped; a mask
    that covers `max_mask_fraction` of the person (the union of all masks) is dropped as a mistaken whole-person mask,
    but only if most of the other masks lie inside it, because a coat seen from behind covers as much and is right;
    overlaps go to the smaller mask, since small things are worn over large ones and large masks are the careless ones.
    """
    dropped: list[tuple[str, str]] = []
    masks = dict(masks)
    if (glasses := masks.pop(GLASSES, None)) is not None:
        if "face" in masks:
            masks["face"] = masks["face"] | glasses
        else:
            dropped.append((GLASSES, "has no face in this photo to be merged into"))

    def drop_small(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept = {}
        for name, mask in found.items():
            fraction = float(mask.mean())
            if mask.any() and fraction >= config.min_mask_fraction:
                kept[name] = mask
            else:
                dropped.append((name, f"covers {fraction:.3%} of the photo, less than {config.min_mask_fraction:.3%}"))
        return kept

    masks = drop_small(masks)
    if len(masks) > 1:
        person = np.any(list(masks.values()), 0)
        for name, mask in list(masks.items()):
            others = np.any([other for key, other in masks.items() if key != name], 0)
            fraction = mask.sum() / person.sum()
            if fraction >= config.max_mask_fraction and (others & mask).sum() * 2 > others.sum():
                dropped.append((name, f"covers {fraction:.0%} of the person and lies over the other masks"))
                del masks[name]
                break  # with it the person's outline changes, so no second mask is judged by the old one
    taken = np.zeros(next(iter(masks.values())).shape, bool) if masks else np.zeros((0, 0), bool)
    disjoint: dict[str, np.ndarray] = {}
    for name in sorted(masks, key=lambda key: int(masks[key].sum())):  # stable: of equal ones the earlier asset wins
        disjoint[name] = masks[name] & ~taken
        taken |= masks[name]
    disjoint = drop_small(disjoint)
    return {name: disjoint[name] for name in order_assets(disjoint)}, dropped


def square(image: np.ndarray, masks: list[np.ndarray], side_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A photo (H, W, 3) uint8 and its masks (H, W) bool on a square canvas, aspect ratio kept, centred.

    Returns the image (R, R, 3) uint8, padded with the mean grey of its outermost pixels; valid (R, R) bool, False on
    padding; and masks (A, R, R) bool, False on padding.
    """
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if (new_height, new_width) != (height, width):
        resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.LANCZOS)
        image = np.asarray(resized)
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    top, left = (side_px - new_height) // 2, (side_px - new_width) // 2
    inside = (slice(top, top + new_height), slice(left, left + new_width))
    canvas = np.full((side_px, side_px, 3), round(float(rim.mean())), np.uint8)
    canvas[inside] = image
    valid = np.zeros((side_px, side_px), bool)
    valid[inside] = True
    placed = np.zeros((len(masks), side_px, side_px), bool)
    for index, mask in enumerate(masks):
        placed[(index, *inside)] = resize_mask(mask, new_height, new_width)
    return canvas, valid, placed


def prepare_assets(album: Album, folder: Path) -> PreparedAlbum:
    """Clean the masks, bring the photos to squares, and write assets.npz, assets.json and assets.png into `folder`.

    The same album gives the same bytes. Raises UserError when no usable mask, or too few photos, remain after cleaning.
    """
    prepared = assets_of(album)
    save_assets(prepared, folder)
    return prepared


def assets_of(album: Album) -> PreparedAlbum:
    """`prepare_assets` without the files."""
    config = album.config
    set_aside = list(album.set_aside)
    kept = []
    for photo in album.photos:
        masks, dropped = clean_masks(photo.masks, config)
        set_aside += [SetAside(f"{photo.stem}_{name}", f"this mask {reason}") for name, reason in dropped]
        if masks:
            kept.append((photo, masks))
        else:
            set_aside.append(SetAside(photo.stem, "none of its masks is left after cleaning"))
    if len(kept) < config.min_photos:
        reason = f"{set_aside[-1].name}: {set_aside[-1].reason}" if set_aside else "there are no others"
        raise UserError(
            f"the album {album.folder} has {len(kept)} photos left after its masks were cleaned, but at least "
            f"{config.min_photos} (album.min_photos) are needed ({reason})"
        )
    present = {name for _, masks in kept for name in masks}
    assets = [asset for asset in album.assets if asset.name in present]
    for name in album.asset_names:
        if name not in present:
            merged = name == GLASSES and "face" in present
            set_aside.append(
                SetAside(name, f"this asset {'is part of the face' if merged else 'has no usable mask left'}")
            )
    side = config.working_resolution
    images = np.empty((len(kept), side, side, 3), np.uint8)
    valid = np.empty((len(kept), side, side), bool)
    masks_nahw = np.empty((len(kept), len(assets), side, side), bool)
    person = np.empty((len(kept), side, side), bool)
    for index, (photo, masks) in enumerate(kept):
        nothing = np.zeros(photo.image.shape[:2], bool)
        ordered = [masks.get(asset.name, nothing) for asset in assets]
        union = np.any(ordered, axis=0)
        ordered.append(union if photo.person is None else union | photo.person)
        images[index], valid[index], placed = square(photo.image, ordered, side)
        masks_nahw[index], person[index] = placed[:-1], placed[-1]
    photos = [photo for photo, _ in kept]
    return PreparedAlbum(
        name=album.name,
        gender=album.gender,
        content_hash=album.content_hash,
        asset_names=tuple(asset.name for asset in assets),
        asset_words=tuple(asset.words for asset in assets),
        stems=tuple(photo.stem for photo in photos),
        views=tuple(photo.view for photo in photos),
        framings=tuple(photo.framing for photo in photos),
        poses=tuple(photo.pose for photo in photos),
        backgrounds=tuple(photo.background for photo in photos),
        images=images,
        valid=valid,
        masks=masks_nahw,
        person=person,
        set_aside=tuple(set_aside),
        notes=album.notes,
    )


def save_assets(prepared: PreparedAlbum, folder: Path) -> None:
    """Write assets.npz (pixels), assets.png (a sheet to look at) and, last, assets.json (words)."""
    arrays = io.BytesIO()
    named: dict[str, Any] = {name: np.packbits(getattr(prepared, name), -1) for name in _BITS}
    np.savez_compressed(arrays, images=prepared.images, **named)
    write_bytes(folder / "assets.npz", arrays.getvalue())
    sheet = io.BytesIO()
    contact_sheet(prepared).save(sheet, "PNG")
    write_bytes(folder / "assets.png", sheet.getvalue())
    words = {key: getattr(prepared, key) for key in ("name", "gender", "content_hash", *_STRINGS, *_WORDS, "notes")}
    words |= {
        "format": _FORMAT,
        "resolution": prepared.resolution,
        "set_aside": [item._asdict() for item in prepared.set_aside],
    }
    if prepared.in_words:
        # Only where there are any: other albums keep their bytes, and with them all that was trained on them.
        words["in_words"] = prepared.in_words
    write_bytes(folder / "assets.json", (json.dumps(words, indent=1, ensure_ascii=False) + "\n").encode())


def load_assets(folder: Path) -> PreparedAlbum:
    """Read what `save_assets` wrote. Raises UserError when files are missing, damaged or of another version."""
    words_path, arrays_path = folder / "assets.json", folder / "assets.npz"
    again = "delete this folder and prepare the album again"
    try:
        words: dict[str, Any] = json.loads(words_path.read_bytes())
        if words["format"] != _FORMAT:
            raise UserError(f"{words_path} has format {words['format']}, but {_FORMAT} was expected; {again}")
        side = int(words["resolution"])
        with np.load(arrays_path, allow_pickle=False) as arrays:
            images = arrays["images"]
            fields: dict[str, Any] = {key: np.unpackbits(arrays[key], -1, count=side).astype(bool) for key in _BITS}
        fields |= {key: tuple(words[key]) for key in (*_STRINGS, *_WORDS, "notes")}
        return PreparedAlbum(
            name=words["name"],
            gender=words["gender"],
            content_hash=words["content_hash"],
            images=images,
            **fields,
            set_aside=tuple(SetAside(item["name"], item["reason"]) for item in words["set_aside"]),
            in_words=tuple(words.get("in_words", ())),
        )
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing, but a prepared album was expected; {again}") from None
    except Exception as error:  # a damaged archive can raise anything from zipfile, zlib, numpy or json
        raise UserError(f"{folder} holds no intact prepared album ({type(error).__name__}: {error}); {again}") from None
