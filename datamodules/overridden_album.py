"""An album after a person's decisions: renamed, joined, dropped."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from datamodules.album import Album, Asset, Photo, SetAside
from datamodules.asset_names import order_assets
from datamodules.overrides import (
    OVERRIDES_FILE,
    UNKNOWN,
    AlbumOverrides,
    AssetOverride,
    PhotoOverride,
    dump_overrides,
    photo_key,
)
from modules.errors import UserError

_DROPS = f"{OVERRIDES_FILE} drops it"


def apply_overrides(album: Album, overrides: AlbumOverrides) -> Album:
    """The album as the decisions want it.

    All renaming happens at once, so that two assets can change names; assets that get the same name are joined, their
    masks united. What is dropped is set aside with its reason; decisions that fit nothing become notes. The content
    hash takes the decisions in. Raises UserError when too little of the album is left.
    """
    if overrides == AlbumOverrides():
        return album
    return _Change(album, overrides).result()


class _Change:
    def __init__(self, album: Album, overrides: AlbumOverrides) -> None:
        self.album = album
        self.overrides = overrides
        self.set_aside = list(album.set_aside)
        self.new_names = {name: self._asset(name).name or name for name in album.asset_names}
        self.dropped = [name for name in album.asset_names if self._asset(name).drop]

    def _asset(self, name: str) -> AssetOverride:
        return self.overrides.assets.get(name, AssetOverride())

    def result(self) -> Album:
        self.set_aside += [SetAside(name, _DROPS) for name in self.dropped]
        photos = tuple(photo for before in self.album.photos if (photo := self._photo(before)) is not None)
        used = order_assets(name for photo in photos for name in photo.masks)
        self._check_enough(photos)
        for name in self.album.asset_names:
            if name not in self.dropped and self.new_names[name] not in used:
                self.set_aside.append(SetAside(name, f"{OVERRIDES_FILE} drops every mask of it"))
        decisions = f"{self.album.content_hash}\0{dump_overrides(self.overrides)}"
        return dataclasses.replace(
            self.album,
            gender=self.overrides.gender or self.album.gender,
            assets=tuple(Asset(name=name, words=self._words(name)) for name in used),
            photos=photos,
            set_aside=tuple(self.set_aside),
            notes=(*self.album.notes, *self._notes()),
            content_hash=hashlib.sha256(decisions.encode()).hexdigest(),
        )

    def _photo(self, photo: Photo) -> Photo | None:
        entry = self.overrides.photos.get(photo_key(photo.stem), PhotoOverride())
        if entry.drop:
            self.set_aside.append(SetAside(photo.stem, _DROPS))
            return None
        masks: dict[str, np.ndarray] = {}
        unwanted = self._found_names(entry.drop_masks or ())
        for name, mask in photo.masks.items():
            if name in self.dropped:
                continue
            if name in unwanted:
                self.set_aside.append(SetAside(f"{photo.stem}_{name}", _DROPS))
                continue
            new = self.new_names[name]
            masks[new] = masks[new] | mask if new in masks else mask
        if not masks:
            self.set_aside.append(SetAside(photo.stem, f"{OVERRIDES_FILE} drops all of its masks"))
            return None
        return dataclasses.replace(
            photo,
            masks={name: masks[name] for name in order_assets(masks)},
            view=_said(entry.view, photo.view),
            framing=_said(entry.framing, photo.framing),
            pose=_said(entry.pose, photo.pose),
            background=_said(entry.background, photo.background),
        )

    def _found_names(self, names: Iterable[str]) -> set[str]:
        """Names of masks as they were found; a name that is only a new one stands for what is renamed to it."""
        found = set()
        for name in names:
            found |= {name} if name in self.new_names else {old for old, new in self.new_names.items() if new == name}
        return found

    def _words(self, name: str) -> str:
        """Shape words of an asset after renaming: those of the file, then those of the asset that had the name."""
        before = {
            asset.name: asset.words
            for asset in self.album.assets
            if self.new_names[asset.name] == name and asset.name not in self.dropped
        }
        said = [words for old in before if (words := self._asset(old).words) is not None]
        return said[0] if said else before.get(name) or next(filter(None, before.values()), "")

    def _check_enough(self, photos: Sequence[Photo]) -> None:
        if not photos:
            what = "every asset" if set(self.dropped) >= set(self.album.asset_names) else "every photo"
            raise UserError(
                f"{OVERRIDES_FILE} drops {what} of the album {self.album.folder}; keep at least one, that an avatar "
                "can be made of"
            )
        if len(photos) < (least := self.album.config.min_photos):
            raise UserError(
                f"{OVERRIDES_FILE} leaves {len(photos)} photos of the album {self.album.folder}, but at least {least} "
                "(album.min_photos) are needed; drop fewer"
            )

    def _notes(self) -> Iterable[str]:
        found = self.album.asset_names
        targets = {entry.name for entry in self.overrides.assets.values()}
        for name in self.overrides.assets:
            # An entry under a new name comes of an asset that was renamed, and renamed again.
            if name not in found and name not in targets:
                yield f'{OVERRIDES_FILE} names the asset "{name}", which was not found{_hint(name, found)}'
        stems = {photo_key(photo.stem) for photo in self.album.photos}
        aside = {photo_key(item.name) for item in self.album.set_aside}
        for key, entry in self.overrides.photos.items():
            if key not in stems and key not in aside:
                yield f'{OVERRIDES_FILE} names the photo "{key}", which the album does not have{_hint(key, stems)}'
            elif key not in stems and not entry.drop:
                yield f'{OVERRIDES_FILE} says something of the photo "{key}", which is set aside'
            for name in entry.drop_masks or ():
                if name not in found and name not in targets:
                    yield (
                        f'{OVERRIDES_FILE} drops a mask "{name}" of the photo "{key}", but no asset has that name'
                        f"{_hint(name, found)}"
                    )
        point = self.overrides.subject_point
        if point is not None and point.photo not in stems:
            reason = "is set aside" if point.photo in aside else "the album does not have"
            yield f'the subject of {OVERRIDES_FILE} is a point of the photo "{point.photo}", which {reason}'


def _said(word: str | None, found: str | None) -> str | None:
    return found if word is None else None if word == UNKNOWN else word


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""
