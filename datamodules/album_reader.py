"""Reads an album folder: what is there, what of it can be used, and the reason for everything that cannot."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.album import (
    IMAGE_FOLDER,
    MASK_FOLDER,
    Album,
    AlbumConfig,
    Asset,
    Photo,
    SetAside,
    resize_mask,
)
from datamodules.album_description import (
    ALBUM_FILE,
    REFERENCE_FILE,
    AlbumDescription,
    PhotoWords,
    parse_description,
)
from datamodules.album_files import AlbumFolder, counted_asset, split_mask_name
from datamodules.asset_names import PERSON, order_assets
from datamodules.assistants import Assistants
from datamodules.bare_photos import BarePhoto, segment_photos
from datamodules.captioning.captioner import CaptionRequest
from datamodules.images import PHOTO_SUFFIXES, DecodedPhoto, decode_mask, decode_photo
from datamodules.overridden_album import apply_overrides
from datamodules.overrides import OVERRIDES_FILE, AlbumOverrides, merge_overrides, parse_overrides
from modules.errors import UserError

_LAYOUT = f"{MASK_FOLDER}/<photo>_<asset>.png, for example {MASK_FOLDER}/001_face.png"


def read_album(folder: Path, config: AlbumConfig | None = None, assistants: Assistants | None = None) -> Album:
    """Read and check an album folder. What cannot be used is listed in `set_aside`, each with its reason.

    assistants: make masks and words where the album brings none; without them such photos are set aside.

    Nothing is written, and no file outside the folder is read: links that lead out of it are refused. Raises UserError
    when the folder is missing or unreadable, when its JSON is not valid, and when too few photos with masks remain.
    """
    return _Reader(Path(folder), config or AlbumConfig(), assistants or Assistants()).read()


class _Reader:
    """Holds what is gathered while one album is read."""

    def __init__(self, folder: Path, config: AlbumConfig, assistants: Assistants) -> None:
        self.folder = folder
        self.config = config
        self.assistants = assistants
        self.files = AlbumFolder(folder, config.max_file_bytes)
        self.set_aside: list[SetAside] = []
        self.notes: list[str] = []
        self.hash = hashlib.sha256()

    def read(self) -> Album:
        self.overrides = merge_overrides(self._overrides(), self.assistants.overrides)
        description = self._description()
        files = {stem: path for stem, path in self._photo_files().items() if not self._dropped(stem, path)}
        masks = self._mask_files(files, description)
        # Masks of two sources do not share names: who brings some is asked for all, unless told otherwise.
        bare = [stem for stem in files if stem not in masks] if not masks or self._fills_in() else []
        photos: list[Photo] = []
        for stem, path in files.items():
            if stem in bare:
                continue
            if len(photos) == self.config.max_photos:
                self._refuse(path.name, f"the album already has {len(photos)} photos (album.max_photos)")
            elif photo := self._photo(stem, path, masks.get(stem, []), _photo_words(description, stem, path.name)):
                photos.append(photo)
        if bare:
            photos = self._with_bare(photos, bare, files, description)
        photos = self._fraction(photos)
        self._check_words_are_used(description, files)
        if len(photos) < self.config.min_photos:
            reasons = "; ".join(f"{item.name}: {item.reason}" for item in self.set_aside[:3])
            raise UserError(
                f"the album {self.folder} has {len(photos)} usable photos, but at least {self.config.min_photos} "
                f"(album.min_photos) are needed ({reasons or 'there are no others'})"
            )
        return apply_overrides(self._described(photos, description), self.overrides)

    def _described(self, photos: Sequence[Photo], description: AlbumDescription) -> Album:
        """The album with gender, names and words, which its own JSON says or else the captioner."""
        config, gender, own_words = self.config.captioner, description.gender, self._words(description)
        words = own_words
        names = order_assets({name for photo in photos for name in photo.masks})
        asks = bool(photos) and (config.method != "auto" or not description.file_name)
        if asks and self.assistants.captioner is not None:
            request = CaptionRequest(
                photos=[photo.image for photo in photos],
                masks=[photo.masks for photo in photos],
                asset_names=tuple(names),
            )
            said = self.assistants.words(request)
            if said is not None:
                photos = [_renamed(photo, said.names) for photo in photos]
                words = {**said.words, **own_words}
                gender = said.gender if gender == "person" else gender
                self.notes += said.notes
                answer = (said.gender, sorted(said.names.items()), sorted(said.words.items()))
                self.hash.update(repr(answer).encode())
        shown = {name for photo in photos for name in photo.masks}
        for name in own_words:
            if name not in shown:
                self._refuse(name, f"{description.file_name} names this asset, but no usable photo has a mask of it")
        assets = self._assets(photos, description, words)
        self.hash.update(description.file_name.encode() + b"\0" + description.data)
        return Album(
            # A folder's name may hold line breaks, and bytes that are not UTF-8; what is written must be text.
            name="".join(letter if letter.isprintable() else "?" for letter in self.files.root.name) or "album",
            folder=self.folder,
            gender=gender,
            assets=assets,
            photos=tuple(photos),
            set_aside=tuple(self.set_aside),
            notes=(*description.notes, *self.notes),
            content_hash=self.hash.hexdigest(),
            config=self.config,
            overrides=self.overrides,
        )

    def _fills_in(self) -> bool:
        return self.config.segmentor.method in ("mini", "grounded_sam")

    def _dropped(self, stem: str, path: Path) -> bool:
        if self.overrides.drops_photo(stem):
            self._refuse(path.name, f"{OVERRIDES_FILE} drops it")
            return True
        return False

    def _overrides(self) -> AlbumOverrides:
        path = self.folder / OVERRIDES_FILE
        if not os.path.lexists(path):
            return AlbumOverrides()
        return parse_overrides(path, self._text_file(path), self.config.view_vocabulary)

    def _text_file(self, path: Path) -> bytes:
        """The bytes of a file without which the album cannot be understood. Raises UserError with its name."""
        try:
            return self.files.read(path)
        except UserError as error:
            raise UserError(f"{path} {error}") from None

    def _with_bare(
        self, photos: list[Photo], bare: Sequence[str], files: dict[str, Path], description: AlbumDescription
    ) -> list[Photo]:
        """`photos` and those of the bare ones that can be used, in the files' order."""
        segmentor = self.assistants.segmentor()
        if segmentor is None and not photos:
            refused = [item for item in self.set_aside if item.name.startswith(MASK_FOLDER + "/")]
            found_instead = f" (found {refused[0].name}: {refused[0].reason})" if refused else ""
            raise UserError(
                f"the album {self.folder} has no masks that belong to its photos{found_instead}, but each photo needs "
                f"one per asset as {_LAYOUT}; set album.segmentor.method=mini to have them made"
            )
        if segmentor is None:
            for stem in bare:
                self._refuse(files[stem].name, f"has no mask; masks are named {_LAYOUT}")
            return photos
        room = max(0, self.config.max_photos - len(photos))
        for stem in bare[room:]:
            self._refuse(files[stem].name, f"the album already has {self.config.max_photos} photos (album.max_photos)")
        readable = [
            BarePhoto(
                stem=stem, file_name=_printable(files[stem].name), decode=functools.partial(self._decode, files[stem])
            )
            for stem in bare[:room]
        ]
        found = segment_photos(readable, segmentor, self.config, self.overrides)
        self.set_aside += found.set_aside
        self.notes += [f"the masks were made by: {segmentor.identity}", *found.notes]
        self.hash.update(segmentor.identity.encode())
        for photo in found.photos:
            words = _photo_words(description, photo.stem, files[photo.stem].name)
            self._hash(files[photo.stem].name, self.files.read(files[photo.stem]))
            said = {name: value for name, value in vars(words).items() if value is not None}
            photos.append(dataclasses.replace(photo, **said))
        rank = {stem: index for index, stem in enumerate(files)}
        return sorted(photos, key=lambda photo: rank[photo.stem])

    def _decode(self, path: Path, fit_px: int) -> np.ndarray:
        """Pixels of a photo, its longer side at most `fit_px`. Raises UserError for what cannot be used."""
        return self._decoded(self.files.read(path), fit_px).pixels

    def _decoded(self, data: bytes, fit_px: int) -> DecodedPhoto:
        decoded = decode_photo(data, max_pixels=self.config.max_pixels, fit_px=fit_px)
        size = (decoded.source_width_px, decoded.source_height_px)
        if min(size) < self.config.min_side_px:
            raise UserError(f"has only {size[0]} x {size[1]} pixels; the short side needs {self.config.min_side_px}")
        return decoded

    def _refuse(self, name: str, reason: str) -> None:
        self.set_aside.append(SetAside(_printable(name), reason))

    def _description(self) -> AlbumDescription:
        present = [name for name in (ALBUM_FILE, REFERENCE_FILE) if os.path.lexists(self.folder / name)]
        if not present:
            self.notes.append(
                f"there is no {ALBUM_FILE}, so the person's gender, the shape words and the views count as unknown"
            )
            return AlbumDescription()
        if len(present) == 2:
            self.notes.append(f"both {ALBUM_FILE} and {REFERENCE_FILE} are present; only {ALBUM_FILE} was read")
        path = self.folder / present[0]
        return parse_description(path, self._text_file(path), self.config.view_vocabulary)

    def _photo_files(self) -> dict[str, Path]:
        """Stem (NFC) to file, in the order of names."""
        image_folder = self.folder / IMAGE_FOLDER
        own_folder = os.path.isdir(image_folder)
        files: dict[str, Path] = {}
        for path in self.files.entries(image_folder if own_folder else self.folder):
            if path.suffix.lower() not in PHOTO_SUFFIXES:
                if own_folder:
                    self._refuse(path.name, f"is none of the photo types {', '.join(PHOTO_SUFFIXES)}")
                continue
            stem = unicodedata.normalize("NFC", path.stem)
            if not stem.isprintable():
                self._refuse(path.name, "has characters in its name that cannot be printed; rename it")
            elif stem in files:
                self._refuse(path.name, f"has the same name as {files[stem].name}; rename one of them and its masks")
            else:
                files[stem] = path
        if not files:
            where = image_folder if own_folder else self.folder
            raise UserError(f"{where} holds no photos; put files of type {', '.join(PHOTO_SUFFIXES)} there")
        return files

    def _mask_files(self, stems: Collection[str], description: AlbumDescription) -> dict[str, list[tuple[str, Path]]]:
        """Stem to its (asset, mask file) pairs."""
        mask_folder = self.folder / MASK_FOLDER
        found: dict[str, list[tuple[str, Path]]] = {}
        assets: set[str] = set()
        for path in self.files.entries(mask_folder) if os.path.isdir(mask_folder) else []:
            name = f"{MASK_FOLDER}/{path.name}"
            if path.suffix.lower() not in PHOTO_SUFFIXES:
                self._refuse(name, f"is no image; masks are named {_LAYOUT}")
            elif (match := split_mask_name(path.stem, stems, description.asset_words)) is None:
                self._refuse(name, f"its name fits no photo of the album; masks are named {_LAYOUT}")
            else:
                try:
                    found.setdefault(match[0], []).append((counted_asset(match[1], assets), path))
                except ValueError as error:
                    self._refuse(name, str(error))
        return found

    def _photo(self, stem: str, path: Path, masks: list[tuple[str, Path]], words: PhotoWords) -> Photo | None:
        if not masks:
            self._refuse(path.name, f"has no mask; masks are named {_LAYOUT}")
            return None
        try:
            data = self.files.read(path)
            decoded = self._decoded(data, self.config.working_resolution)
        except UserError as error:
            self._refuse(path.name, str(error))
            return None
        size = (decoded.source_width_px, decoded.source_height_px)
        self._hash(path.name, data)
        found: dict[str, np.ndarray] = {}
        for asset, mask_path in masks:
            mask = self._mask(mask_path, path.name, size, decoded.pixels.shape[:2])
            if mask is not None:
                found[asset] = mask | found[asset] if asset in found else mask
        person = found.pop(PERSON, None)
        if not found:
            self._refuse(path.name, "none of its masks can be used")
            return None
        return Photo(
            stem=stem,
            image=decoded.pixels,
            masks={name: found[name] for name in order_assets(found)},
            person=person,
            view=words.view,
            framing=words.framing,
            pose=words.pose,
            background=words.background,
        )

    def _mask(self, path: Path, photo: str, size: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray | None:
        name = f"{MASK_FOLDER}/{path.name}"
        try:
            data = self.files.read(path)
            mask = decode_mask(data, max_pixels=self.config.max_pixels)
        except UserError as error:
            self._refuse(name, str(error))
            return None
        height, width = mask.shape
        # Equal aspect ratios up to the rounding of one side to whole pixels.
        if abs(width * size[1] - height * size[0]) > max(*size, width, height):
            self._refuse(
                name,
                f"has {width} x {height} pixels, but {photo} has {size[0]} x {size[1]} when shown upright; "
                f"save the mask in the photo's size and orientation",
            )
            return None
        if not mask.any():
            self._refuse(name, "is empty: no pixel is white")
            return None
        mask = resize_mask(mask, shape[0], shape[1])
        if not mask.any():
            self._refuse(name, "has so few white pixels that none is left at the working resolution")
            return None
        self._hash(path.name, data)
        return mask

    def _hash(self, name: str, data: bytes) -> None:
        self.hash.update(unicodedata.normalize("NFC", name).encode() + b"\0" + hashlib.sha256(data).digest())

    def _fraction(self, photos: list[Photo]) -> list[Photo]:
        """The share of the photos that the configuration asks for, in their order.

        Ranked by their pixels: every second one by name would take all of one kind from an album that alternates. A
        smaller share is part of a larger one.
        """
        config = self.config
        number = min(len(photos), max(math.ceil(config.photo_fraction * len(photos)), config.min_photos))
        if number == len(photos):
            return photos
        ranked = sorted(photos, key=lambda photo: hashlib.sha256(photo.image.tobytes()).digest())
        kept = {photo.stem for photo in ranked[:number]}
        for photo in photos:
            if photo.stem not in kept:
                self._refuse(photo.stem, f"is left out, since album.photo_fraction is {config.photo_fraction:g}")
        self.hash.update("\0".join(sorted(kept)).encode())
        return [photo for photo in photos if photo.stem in kept]

    def _words(self, description: AlbumDescription) -> dict[str, str]:
        """Asset name to its words in prompts."""
        if self.config.descriptions == "short":
            return description.asset_words
        if not description.asset_descriptions:
            where = self.folder / (description.file_name or ALBUM_FILE)
            raise UserError(
                f'album.descriptions is "long", but {where} has no "descriptions": add them to {ALBUM_FILE}, like '
                '{"descriptions": {"shirt": "long-sleeved red striped white"}}, or set album.descriptions=short'
            )
        self.notes += [
            f"{description.file_name} has no long description of {name}; its shape words are used"
            for name in description.asset_words
            if name not in description.asset_descriptions
        ]
        return description.asset_words | description.asset_descriptions

    def _assets(
        self, photos: Sequence[Photo], description: AlbumDescription, words: Mapping[str, str]
    ) -> tuple[Asset, ...]:
        used = {name for photo in photos for name in photo.masks}
        if description.asset_words:
            self.notes += [
                f'there are masks of "{name}", which {description.file_name} does not name; its words stay empty'
                for name in order_assets(used)
                if name not in words
            ]
        return tuple(Asset(name=name, words=words.get(name, "")) for name in order_assets(used))

    def _check_words_are_used(self, description: AlbumDescription, files: dict[str, Path]) -> None:
        known = set(files) | {unicodedata.normalize("NFC", path.name) for path in files.values()}
        for name in description.photos:
            if name not in known:
                self._refuse(name, f"{description.file_name} names this photo, but the album has no such file")


def _photo_words(description: AlbumDescription, stem: str, file_name: str) -> PhotoWords:
    words = description.photos
    return words.get(stem) or words.get(unicodedata.normalize("NFC", file_name)) or PhotoWords()


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _renamed(photo: Photo, names: Mapping[str, str]) -> Photo:
    """With the captioner's names; masks that get the same name are united."""
    masks: dict[str, np.ndarray] = {}
    for name, mask in photo.masks.items():
        new = names.get(name, name)
        masks[new] = masks[new] | mask if new in masks else mask
    return dataclasses.replace(photo, masks={name: masks[name] for name in order_assets(masks)})
