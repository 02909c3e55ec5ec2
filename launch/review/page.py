"""What the review page shows of a prepared album, and what its changes mean for `assets.yaml`.

Every control of the page has an address: `gender`, `a3.name` (`.words`, `.keep`) for the fourth asset, `p0.view`
(`.keep`, `.m1` for a mask) for the first photo, `ra0` and `rp0` for assets and photos that were dropped before. Values
are text, or bool where something is kept or not. The page sends back the addresses whose values a person changed.
"""

from __future__ import annotations

import io
import shlex
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.album import AlbumConfig
from datamodules.asset_names import CANONICAL_ASSETS, clean_words, order_assets
from datamodules.assets import load_assets
from datamodules.atomic import write_bytes
from datamodules.contact_sheet import asset_colours
from datamodules.overrides import (
    APPLIED_FILE,
    GENDERS,
    OVERRIDES_FILE,
    UNKNOWN,
    AlbumOverrides,
    AssetOverride,
    PhotoOverride,
    asset_name,
    dump_overrides,
    merge_overrides,
    photo_key,
    read_overrides,
)
from datamodules.views import view_words
from modules.errors import UserError
from trainer.artifacts import StageFolder

STAGE = "assets"
# Comments that open the file; one without them was written by hand, and is kept beside the new one.
HEADER = (
    "# What a person decided about this album; it stands against what `prepare` finds out.\n"
    "# Written by the page `python -m launch review`; it may be edited by hand as well, but comments get lost.\n"
)
_OPACITY = 128
_JPEG_QUALITY = 88


class FieldErrors(Exception):  # noqa: N818 - what the page shows beside its fields
    """Values that cannot be taken: address to a sentence; "page" for the page as a whole."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("; ".join(errors.values()))
        self.errors = dict(errors)


class Review:
    """One prepared album under review. Its methods may be called from several threads.

    Args:
        folder: an album's output, for example out/ALBUM. Raises UserError when it holds no prepared album, or when
            what was decided before cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        stage = folder / STAGE
        if not stage.is_dir():
            raise UserError(f"{folder} holds no prepared album: give an album's output, for example out/ALBUM.")
        self.folder = folder
        self.path = folder / OVERRIDES_FILE
        self.album = load_assets(stage)
        settings = (StageFolder(stage, STAGE).manifest or {}).get("config") or {}
        vocabulary = settings.get("view_vocabulary")
        self.vocabulary = vocabulary if vocabulary in ("four", "eight") else AlbumConfig().view_vocabulary
        self.views = tuple(dict.fromkeys([*view_words(self.vocabulary), *filter(None, self.album.views)]))
        self.applied = read_overrides(stage / APPLIED_FILE, self.vocabulary)
        self._lock = threading.Lock()
        now = self._decided(read_overrides(self.path, self.vocabulary))
        self.found = [self._found_names(name) for name in self.album.asset_names]
        self.present = self.album.present
        self.masks = [self._mask_names(index, now) for index in range(len(self.album.stems))]
        here = {name for names in self.found for name in names}
        self.dropped_assets = [name for name in order_assets(now.assets) if now.assets[name].drop and name not in here]
        stems = {photo_key(stem) for stem in self.album.stems}
        self.dropped_photos = [key for key in sorted(now.photos) if now.photos[key].drop and key not in stems]

    def _decided(self, file: AlbumOverrides) -> AlbumOverrides:
        return merge_overrides(self.applied, file)

    def _found_names(self, name: str) -> list[str]:
        """The names under which the parts of a prepared asset were found, before the decisions were applied."""
        assets = self.applied.assets
        renamed = [old for old, entry in assets.items() if entry.name == name and old != name and not entry.drop]
        own = assets.get(name, AssetOverride())
        return order_assets([*renamed, *([name] if own.name in (None, name) and not own.drop else [])])

    def _mask_names(self, index: int, now: AlbumOverrides) -> list[str]:
        """Masks of a photo: those that are there, by their prepared names, then those that were dropped before."""
        there = [name for name, seen in zip(self.album.asset_names, self.present[index], strict=True) if seen]
        names = {old: name for name, found in zip(self.album.asset_names, self.found, strict=True) for old in found}
        gone = [names.get(old, old) for old in self._photo(now, index).drop_masks or ()]
        return [*there, *(name for name in dict.fromkeys(gone) if name not in there)]

    def _photo(self, decided: AlbumOverrides, index: int) -> PhotoOverride:
        return decided.photos.get(photo_key(self.album.stems[index]), PhotoOverride())

    def _olds(self, name: str) -> list[str]:
        """Found names behind the name of a mask on the page."""
        names = self.album.asset_names
        return self.found[names.index(name)] if name in names else [name]

    def state(self) -> dict[str, Any]:
        """What the page shows, ready for JSON; `values` by address."""
        album = self.album
        file = read_overrides(self.path, self.vocabulary)
        present = self.present
        colours = ["#" + bytes(colour).hex() for colour in asset_colours(len(album.asset_names))]
        return {
            "name": album.name,
            "genders": [[word, "person, unsaid" if word == "person" else word] for word in GENDERS],
            "views": self.views,
            "known_assets": CANONICAL_ASSETS,
            "assets": [
                {"name": name, "colour": colour, "photos": int(present[:, index].sum())}
                for index, (name, colour) in enumerate(zip(album.asset_names, colours, strict=True))
            ],
            "photos": [
                {
                    "name": stem,
                    "about": [word for word in (album.framings[index], album.poses[index]) if word],
                    "masks": [
                        [name, album.asset_names.index(name) if name in album.asset_names else None]
                        for name in self.masks[index]
                    ],
                    "painted": np.nonzero(present[index])[0].tolist(),
                }
                for index, stem in enumerate(album.stems)
            ],
            "dropped_assets": self.dropped_assets,
            "dropped_photos": self.dropped_photos,
            "set_aside": [[item.name, item.reason] for item in album.set_aside],
            "notes": album.notes,
            "values": self._values(self._decided(file)),
            "pending": self._decided(file) != self.applied,
            "file": str(self.path),
            "command": self._command(),
        }

    def _values(self, now: AlbumOverrides) -> dict[str, str | bool]:
        album = self.album
        values: dict[str, str | bool] = {"gender": now.gender or album.gender}
        for index, found in enumerate(self.found):
            entries = [now.assets.get(old, AssetOverride()) for old in found]
            said = [entry.words for entry in entries if entry.words is not None]
            values[f"a{index}.name"] = (entries[0].name or found[0]) if found else album.asset_names[index]
            values[f"a{index}.words"] = said[0] if said else album.asset_words[index]
            values[f"a{index}.keep"] = not entries or not all(entry.drop for entry in entries)
        for index, view in enumerate(album.views):
            entry = self._photo(now, index)
            values[f"p{index}.view"] = (view or "") if entry.view is None else entry.view.replace(UNKNOWN, "")
            values[f"p{index}.keep"] = not entry.drop
            gone = set(entry.drop_masks or ())
            for number, name in enumerate(self.masks[index]):
                values[f"p{index}.m{number}"] = not gone & {name, *self._olds(name)}
        for key, names, decided in (("ra", self.dropped_assets, now.assets), ("rp", self.dropped_photos, now.photos)):
            for number, name in enumerate(names):
                values[f"{key}{number}"] = name in decided and not decided[name].drop
        return values

    def _command(self) -> str:
        target = self.folder.resolve()
        words = ["python", "-m", "launch", "run", "ALBUM", "--out", str(self.folder.parent)]
        return shlex.join([*words, *(["--name", target.name] if target.name != self.album.name else [])])

    def save(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Take changed values by address into `assets.yaml`, and return the new `state`.

        What the file says besides stays. Raises FieldErrors for values that cannot be taken (then nothing is written),
        ValueError for an address or a type that no page of ours sends, and UserError when the file cannot be read or
        written.
        """
        with self._lock:
            file = read_overrides(self.path, self.vocabulary)
            before = self._decided(file)
            values = self._values(before)
            for address, value in changes.items():
                if type(values.get(address)) is not type(value):
                    raise ValueError(f"there is no value {address[:40]!a} of this type")
            errors: dict[str, str] = {}
            over = self._overrides({**values, **changes}, frozenset(changes), before, errors)
            if not errors and not self._enough({**values, **changes}):
                errors["page"] = "Nothing would be left: keep at least one asset, and one photo with a mask of it."
            if errors:
                raise FieldErrors(errors)
            merged = merge_overrides(file, over)
            if merged != file:
                self._write(merged)
            return self.state()

    def _write(self, merged: AlbumOverrides) -> None:
        old = self.path.read_bytes() if self.path.exists() else b""
        if old.strip() and not old.startswith(HEADER.encode()):
            write_bytes(self.path.with_name(OVERRIDES_FILE + ".bak"), old)
        write_bytes(self.path, (HEADER + dump_overrides(merged)).encode())

    def _overrides(
        self,
        values: Mapping[str, Any],
        changed: frozenset[str],
        before: AlbumOverrides,
        errors: dict[str, str],
    ) -> AlbumOverrides:
        """The changed values as decisions under the names that were found."""

        def read(address: str, check: Callable[[str], str]) -> str | None:
            if address not in changed:
                return None
            try:
                return check(values[address])
            except ValueError as error:
                errors[address] = f"{str(error)[:1].upper()}{str(error)[1:]}."
                return None

        assets: dict[str, AssetOverride] = {}
        photos: dict[str, PhotoOverride] = {}
        for index, found in enumerate(self.found):
            entry = AssetOverride(name=read(f"a{index}.name", asset_name), words=read(f"a{index}.words", clean_words))
            keep = f"a{index}.keep"
            if keep in changed or entry != AssetOverride():
                for old in found:
                    # Said along with a new name, which alone would bring a dropped asset back.
                    drop = not values[keep] if keep in changed else before.assets.get(old, AssetOverride()).drop
                    assets[old] = AssetOverride(name=entry.name, words=entry.words, drop=drop)
        for index, stem in enumerate(self.album.stems):
            view = read(f"p{index}.view", self._view)
            now = self._photo(before, index)
            masks = self._dropped_masks(index, values, changed, now)
            keep = f"p{index}.keep"
            if keep in changed or view is not None or masks is not None:
                drop = not values[keep] if keep in changed else now.drop
                photos[photo_key(stem)] = PhotoOverride(view=view, drop=drop, drop_masks=masks)
        for number, name in enumerate(self.dropped_assets):
            if f"ra{number}" in changed:
                assets[name] = AssetOverride(drop=not values[f"ra{number}"])
        for number, name in enumerate(self.dropped_photos):
            if f"rp{number}" in changed:
                photos[name] = PhotoOverride(drop=not values[f"rp{number}"])
        gender = read("gender", self._gender)
        return AlbumOverrides(gender=gender, assets=assets, photos=photos)  # type: ignore[arg-type]

    def _dropped_masks(
        self, index: int, values: Mapping[str, Any], changed: frozenset[str], now: PhotoOverride
    ) -> tuple[str, ...] | None:
        gone = set(now.drop_masks or ())
        touched = False
        for number, name in enumerate(self.masks[index]):
            if (address := f"p{index}.m{number}") in changed:
                touched = True
                gone = gone - {name, *self._olds(name)} if values[address] else gone | set(self._olds(name))
        return tuple(order_assets(gone)) if touched else None

    def _view(self, text: str) -> str:
        if text and text not in self.views:
            raise ValueError(f"the view must be one of {', '.join(self.views)}, or unknown")
        return text or UNKNOWN

    def _gender(self, text: str) -> str:
        if text not in GENDERS:
            raise ValueError(f"the gender must be one of {', '.join(GENDERS)}")
        return text

    def _enough(self, values: Mapping[str, Any]) -> bool:
        if any(values[f"ra{number}"] for number in range(len(self.dropped_assets))) or any(
            values[f"rp{number}"] for number in range(len(self.dropped_photos))
        ):
            return True  # what comes back has masks that are not known here
        names = self.album.asset_names
        kept = {name for index, name in enumerate(names) if values[f"a{index}.keep"]}
        return any(
            values[f"p{index}.keep"]
            and any(
                values[f"p{index}.m{number}"] and (name in kept or name not in names)
                for number, name in enumerate(masks)
            )
            for index, masks in enumerate(self.masks)
        )

    def photo_jpeg(self, photo: int) -> bytes:
        """A photo's square. Raises IndexError."""
        return _encoded(Image.fromarray(self.album.images[photo]), "JPEG", quality=_JPEG_QUALITY)

    def mask_png(self, photo: int, asset: int) -> bytes:
        """A mask in its asset's colour, transparent elsewhere, to be laid over the photo. Raises IndexError."""
        image = Image.fromarray(self.album.masks[photo, asset].astype(np.uint8), "P")
        image.putpalette(bytes(3) + bytes(asset_colours(len(self.album.asset_names))[asset]))
        return _encoded(image, "PNG", transparency=bytes([0, _OPACITY]))


def _encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format_, **options)
    return data.getvalue()
