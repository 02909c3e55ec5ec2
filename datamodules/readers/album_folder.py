"""A standard album folder out of what a reader found: image/, mask/, album.json, ground_truth/ and import.json.

Photos are decoded, turned upright, brought to sRGB and written anew, so no metadata (EXIF, GPS, thumbnails) comes
along. The folder appears when it is complete. Its bytes depend on the source and the settings only.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.album import resize_mask
from datamodules.asset_names import canonical_asset
from datamodules.images import decode_mask, decode_photo
from datamodules.readers.config import ImportConfig
from datamodules.readers.source import (
    AlbumContent,
    AlbumSource,
    PhotoSource,
    Refused,
    SourceFolder,
    Truth,
    draw,
    printable,
)
from modules.errors import UserError

RECORD = "import.json"
_VERSION = 1
_JPEG_QUALITY = 95
_TRUTH_FOLDER = "ground_truth"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An album that was made, or was there already (`new` False), and what was not taken."""

    folder: Path
    num_photos: int
    num_masks: int
    has_truth: bool
    refused: tuple[Refused, ...]
    new: bool


def import_album(
    source: AlbumSource,
    out: Path,
    files: SourceFolder,
    config: ImportConfig,
    *,
    reader: str,
    default_photos: int | None = None,
) -> Imported:
    """Write OUT/<name>. An album that the same settings have made before is left as it is.

    Raises UserError when the source has no usable photo, and when the folder is there but was not made so.
    """
    folder = out / source.name
    key = _key(config, reader)
    if os.path.lexists(folder):
        return _made_before(folder, key)
    content = source.read()
    number = default_photos if config.photos_per_album is None else config.photos_per_album
    photos = draw(content.photos, number, seed=config.seed, album=source.name)
    refused = list(content.refused)
    if len(photos) < len(content.photos):
        refused.append(Refused(f"{len(content.photos) - len(photos)} photos", "are left out (photos_per_album)"))
    temporary = out / f".{source.name}.importing"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        writer = _Writer(temporary, files, config, refused)
        words = {photo.stem: writer.photo(photo) for photo in photos}
        if not writer.num_photos:
            reasons = "; ".join(f"{name} {reason}" for name, reason in refused[:3])
            raise UserError(f"has no usable photo ({reasons or 'there are none'})")
        has_truth = config.ground_truth and content.truth is not None and writer.truth(content)
        _write_json(temporary / "album.json", _description(content, words, writer.assets))
        record = {
            "key": key,
            "reader": reader,
            "photos": writer.num_photos,
            "masks": writer.num_masks,
            "ground_truth": has_truth,
            "from": {photo.stem: files.relative(photo.path) for photo in photos if words[photo.stem] is not None},
            "not_taken": [{"name": printable(name), "reason": reason} for name, reason in refused],
        }
        _write_json(temporary / RECORD, record)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Imported(
        folder=folder,
        num_photos=writer.num_photos,
        num_masks=writer.num_masks,
        has_truth=has_truth,
        refused=tuple(refused),
        new=True,
    )


def _key(config: ImportConfig, reader: str) -> str:
    """Changes with every setting that changes an album; which subjects are taken does not."""
    settings = {name: value for name, value in asdict(config).items() if name != "subjects"}
    text = json.dumps([_VERSION, reader, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _made_before(folder: Path, key: str) -> Imported:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["key"] != key:
            raise UserError("was imported before with other settings; remove its folder or give another --out")
        return Imported(
            folder=folder,
            num_photos=int(record["photos"]),
            num_masks=int(record["masks"]),
            has_truth=bool(record["ground_truth"]),
            refused=tuple(Refused(str(item["name"]), str(item["reason"])) for item in record["not_taken"]),
            new=False,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"is there already, but no import made it (no {RECORD}); give another --out") from None


class _Writer:
    """Writes one album's files; what cannot be used goes into `refused`."""

    def __init__(self, folder: Path, files: SourceFolder, config: ImportConfig, refused: list[Refused]) -> None:
        self.folder = folder
        self.files = files
        self.config = config
        self.refused = refused
        self.num_photos = self.num_masks = 0
        self.assets: set[str] = set()
        (folder / "image").mkdir(parents=True)

    def photo(self, photo: PhotoSource) -> dict[str, Any] | None:
        """Write a photo and its masks; returns its words, or None when it cannot be used."""
        name = self.files.relative(photo.path)
        try:
            data = self.files.read(photo.path)
            decoded = decode_photo(data, max_pixels=self.config.max_pixels, fit_px=self.config.max_side_px)
        except UserError as error:
            self.refused.append(Refused(name, str(error)))
            return None
        _write_image(self.folder / "image" / f"{photo.stem}.jpg", decoded.pixels, quality=_JPEG_QUALITY, format="JPEG")
        self.num_photos += 1
        source_size = (decoded.source_height_px, decoded.source_width_px)
        masks: dict[str, np.ndarray] = {}
        for asset, path in photo.masks.items():
            mask = self._mask_file(path, source_size, name)
            if mask is not None:
                masks[asset] = mask
        if photo.labels is not None:
            try:
                masks |= photo.labels(*source_size)
            except UserError as error:
                self.refused.append(Refused(f"the masks of {name}", str(error)))
        for asset, mask in masks.items():
            small = resize_mask(mask, *decoded.pixels.shape[:2])
            if small.any():
                self._write_mask(photo.stem, asset, small)
        try:
            view = photo.view() if callable(photo.view) else photo.view
        except UserError as error:
            self.refused.append(Refused(f"the view of {name}", str(error)))
            view = None
        words: dict[str, Any] = {
            key: value
            for key, value in (
                ("view", view),
                ("framing", photo.framing),
                ("pose", photo.pose),
                ("background", photo.background),
            )
            if value is not None
        }
        if photo.subject_xy is not None:
            words["subject"] = [round(float(value), 5) for value in photo.subject_xy]
        return words

    def _mask_file(self, path: Path, size: tuple[int, int], photo: str) -> np.ndarray | None:
        name = self.files.relative(path)
        try:
            mask = decode_mask(self.files.read(path), max_pixels=self.config.max_pixels)
        except UserError as error:
            self.refused.append(Refused(name, str(error)))
            return None
        height, width = mask.shape
        if abs(width * size[0] - height * size[1]) > max(*size, width, height):
            sizes = f"has {width} x {height} pixels, but {photo} has {size[1]} x {size[0]} when shown upright"
            self.refused.append(Refused(name, sizes))
            return None
        return mask

    def _write_mask(self, stem: str, asset: str, mask: np.ndarray) -> None:
        (self.folder / "mask").mkdir(exist_ok=True)
        path = self.folder / "mask" / f"{stem}_{asset.replace(' ', '_')}.png"
        _write_image(path, mask.astype(np.uint8) * 255, format="PNG")
        self.num_masks += 1
        self.assets.add(asset)

    def truth(self, content: AlbumContent) -> bool:
        """Write ground_truth/; a scan that cannot be used is refused, and the album goes on without."""
        assert content.truth is not None
        try:
            truth = content.truth()
        except UserError as error:
            self.refused.append(Refused("the ground truth", str(error)))
            return False
        write_truth(self.folder / _TRUTH_FOLDER, truth)
        return True


def write_truth(folder: Path, truth: Truth) -> None:
    """Write avatar.glb and scan.json, and labels.png and labels.json where there are labels."""
    from modules.geometry.mesh import save_textured_mesh

    folder.mkdir(parents=True)
    save_textured_mesh(folder / "avatar.glb", truth.mesh)
    if truth.labels is not None:
        _write_image(folder / "labels.png", truth.labels, format="PNG")
        _write_json(folder / "labels.json", {"assets": list(truth.asset_names)})
    _write_json(folder / "scan.json", dict(truth.info))


def _description(content: AlbumContent, words: Mapping[str, dict[str, Any] | None], masked: set[str]) -> dict[str, Any]:
    """album.json. Assets are named where the source has words for them; masks name the others by themselves."""
    named = {canonical_asset(name): text for name, text in content.asset_words.items()}
    if masked:
        named = {name: text for name, text in named.items() if name in masked}
    photos = {stem: said for stem, said in words.items() if said}
    return {"gender": content.gender, "assets": named, "photos": photos}


def _write_image(path: Path, pixels: np.ndarray, **settings: Any) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **settings)
    path.write_bytes(buffer.getvalue())


def _write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
