"""`assets.yaml`: what a person decided about an album, which stands against everything that `prepare` found out.

    gender: woman
    subject: {photo: IMG_0001, at: [0.42, 0.55]}    # a point of the person who is meant, from the left top corner
    assets:
      shirt: {name: blouse, words: long-sleeved}    # another name, other shape words
      cap: drop                                     # or keep, against a file that drops it
    photos:
      IMG_0007: drop
      IMG_0001: {view: front, framing: full body, pose: standing, background: plain, drop_masks: [shoes]}

Assets and photos have the names under which they were found. `unknown` takes back a view, framing, pose or background.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from datamodules.album_description import Gender
from datamodules.asset_names import PERSON, canonical_asset, clean_words, order_assets
from datamodules.images import PHOTO_SUFFIXES
from datamodules.strict_yaml import kind, parse_yaml, shown
from datamodules.views import parse_framing, parse_free_words, parse_view, view_words
from modules.errors import UserError
from modules.geometry.camera import FRAMINGS, ViewVocabulary

OVERRIDES_FILE = "assets.yaml"
# Beside a prepared album: the decisions that it was prepared with.
APPLIED_FILE = "overrides.yaml"
GENDERS: tuple[Gender, ...] = get_args(Gender)
UNKNOWN = "unknown"
_MAX_BYTES = 1 << 18
_MAX_STEM = 255
_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DROP, _KEEP = "drop", "keep"
_WORDS = ("view", "framing", "pose", "background")
EntryT = TypeVar("EntryT", "AssetOverride", "PhotoOverride")


@dataclass(frozen=True, kw_only=True)
class SubjectPoint:
    """A point of the person who is meant: the photo's `photo_key`, and x and y in [0, 1] from its left top corner."""

    photo: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class AssetOverride:
    """None is unsaid. name: canonical. words: "" for none. drop: False keeps what an earlier file drops."""

    name: str | None = None
    words: str | None = None
    drop: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PhotoOverride:
    """None is unsaid. view, framing, pose, background: UNKNOWN takes back what was found. drop_masks: asset names."""

    view: str | None = None
    framing: str | None = None
    pose: str | None = None
    background: str | None = None
    drop: bool | None = None
    drop_masks: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class AlbumOverrides:
    """The decisions. assets: by the canonical name under which they were found; photos: by `photo_key`."""

    gender: Gender | None = None
    subject_point: SubjectPoint | None = None
    assets: Mapping[str, AssetOverride] = field(default_factory=dict)
    photos: Mapping[str, PhotoOverride] = field(default_factory=dict)

    def drops_photo(self, stem: str) -> bool:
        """Whether the photo is not to be used; it need not be decoded."""
        return self.photos.get(photo_key(stem), PhotoOverride()).drop is True

    def keeps_photo(self, stem: str) -> bool:
        """Whether a person wants this photo, even if it looks blurred or like another one."""
        return self.photos.get(photo_key(stem), PhotoOverride()).drop is False


def read_overrides(path: Path, vocabulary: ViewVocabulary = "eight") -> AlbumOverrides:
    """The decisions in a file; none where there is no file. Raises UserError when it cannot be read or is not valid."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file, but a file of decisions was expected; move it away")
        if status.st_size > _MAX_BYTES:
            raise UserError(f"{path} has {status.st_size} bytes, but at most {_MAX_BYTES} are read; shorten it")
        data = path.read_bytes()
    except FileNotFoundError:
        return AlbumOverrides()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    return parse_overrides(path, data, vocabulary)


def parse_overrides(path: Path, data: bytes, vocabulary: ViewVocabulary = "eight") -> AlbumOverrides:
    """Parse the bytes of `path`. Raises UserError, whose sentence names file, key, what was found and expected."""
    return _Parser(path, vocabulary).parse(parse_yaml(path, data, max_bytes=_MAX_BYTES))


def photo_key(name: str) -> str:
    """The name under which a photo is kept here: NFC and without endings, so that `IMG_1` and `IMG_1.JPG` are one."""
    key = unicodedata.normalize("NFC", name)
    while cut := next((len(end) for end in PHOTO_SUFFIXES if key.lower().endswith(end) and len(key) > len(end)), 0):
        key = key[:-cut]
    return key


def asset_name(text: str) -> str:
    """`canonical_asset` of what a person writes. Raises ValueError for "person", which is no asset, as well."""
    name = canonical_asset(text)
    if name == PERSON:
        raise ValueError(f'"{PERSON}" is the mask of the whole person and no asset; choose another name')
    return name


class _Parser:
    def __init__(self, path: Path, vocabulary: ViewVocabulary) -> None:
        self.path = path
        self.vocabulary = vocabulary

    def parse(self, content: Any) -> AlbumOverrides:
        table = self._table(content, "the file", ("gender", "subject", "assets", "photos"))
        gender = table.get("gender")
        return AlbumOverrides(
            gender=None if gender is None else self._choice(gender, "gender", GENDERS),
            subject_point=self._subject(table.get("subject")),
            assets=self._entries(table.get("assets"), "asset", self._asset_key, self._asset),
            photos=self._entries(table.get("photos"), "photo", self._stem, self._photo),
        )

    def _entries(
        self, content: Any, what: str, name_of: Callable[[Any, str], str], read: Callable[[Any, str], EntryT]
    ) -> dict[str, EntryT]:
        found: dict[str, EntryT] = {}
        written: dict[str, str] = {}
        for key, value in self._table(content, f'"{what}s"').items():
            name, where = name_of(key, f'"{what}s"'), f"{what} {shown(key)}"
            if name in found:
                raise self._error(f"{where} is the same as {shown(written[name])}", "one entry for it")
            entry = read({"drop": _SWITCH_WORDS[value]} if _is_switch(value) else value, where)
            written[name] = key
            if entry != type(entry)():
                found[name] = entry
        return found

    def _asset(self, value: Any, where: str) -> AssetOverride:
        table = self._table(value, where, ("name", "words", "drop"), shorthand=True)
        name, words = table.get("name"), table.get("words")
        return AssetOverride(
            name=None if name is None else self._asset_key(name, f'"name" of {where}'),
            words=None if words is None else self._checked(clean_words, words, f'"words" of {where}'),
            drop=self._switch(table.get("drop"), where),
        )

    def _photo(self, value: Any, where: str) -> PhotoOverride:
        table = self._table(value, where, (*_WORDS, "drop", "drop_masks"), shorthand=True)
        masks = table.get("drop_masks")
        if masks is not None and not isinstance(masks, list):
            raise self._error(f'"drop_masks" of {where} is {kind(masks)}', "a list like [shoes, cap]")
        said = {key: table[key] for key in _WORDS if table.get(key) is not None}
        return PhotoOverride(
            **{key: self._photo_word(key, text, f'"{key}" of {where}') for key, text in said.items()},
            drop=self._switch(table.get("drop"), where),
            drop_masks=None
            if masks is None
            else tuple(order_assets(self._asset_key(name, f'"drop_masks" of {where}') for name in masks)),
        )

    def _photo_word(self, key: str, value: Any, where: str) -> str:
        text = self._text(value, where, "a word")
        if text.strip().lower() == UNKNOWN:
            return UNKNOWN
        match key:
            case "view":
                word, known = parse_view(text, self.vocabulary), view_words(self.vocabulary)
            case "framing":
                word, known = parse_framing(text), FRAMINGS
            case _:
                word, known = parse_free_words(text), ()
        if word is None:
            expected = f"one of {', '.join((*known, UNKNOWN))}" if known else "up to 60 letters, digits and spaces"
            raise self._error(f"{where} is {shown(text)}", expected, _hint(text, known))
        return word

    def _subject(self, value: Any) -> SubjectPoint | None:
        if value is None:
            return None
        table = self._table(value, '"subject"', ("photo", "at"))
        form = "a photo and a point like {photo: IMG_0001, at: [0.42, 0.55]}"
        for key in ("photo", "at"):
            if table.get(key) is None:
                raise self._error(f'"subject" has no "{key}"', form)
        at = table["at"]
        try:
            if not isinstance(at, list):
                raise TypeError
            x, y = (float(number) for number in at)
        except (TypeError, ValueError):
            raise self._error(f'"at" of "subject" is {kind(at)}', "two numbers like [0.42, 0.55]") from None
        if not (0 <= x <= 1 and 0 <= y <= 1):
            found = f"[{x:g}, {y:g}]" if math.isfinite(x) and math.isfinite(y) else "not finite"
            raise self._error(f'"at" of "subject" is {found}', "fractions of the photo's width and height from 0 to 1")
        return SubjectPoint(photo=self._stem(table["photo"], '"photo" of "subject"'), x=x, y=y)

    def _asset_key(self, value: Any, where: str) -> str:
        return self._checked(asset_name, value, where)

    def _stem(self, value: Any, where: str) -> str:
        name = self._text(value, where, "a photo's name")
        key = photo_key(name)
        if not key or len(key) > _MAX_STEM or not key.isprintable() or "/" in key:
            raise self._error(f"a photo of {where} is {shown(name)}", "a photo's name without folder, like IMG_0001")
        return key

    def _checked(self, check: Callable[[str], str], value: Any, where: str) -> str:
        text = self._text(value, where, "text")
        try:
            return check(text)
        except ValueError as error:
            raise UserError(f"{self.path}: {where}: {error}") from None

    def _switch(self, value: Any, where: str) -> bool | None:
        if value is None:
            return None
        text = self._text(value, f'"drop" of {where}', "true or false").strip().lower()
        if text not in _SWITCH:
            raise self._error(f'"drop" of {where} is {shown(text)}', "true or false")
        return _SWITCH[text]

    def _choice(self, value: Any, key: str, known: tuple[Any, ...]) -> Any:
        text = self._text(value, f'"{key}"', f"one of {', '.join(known)}").strip().lower()
        if text not in known:
            raise self._error(f'"{key}" is {shown(text)}', f"one of {', '.join(known)}", _hint(text, known))
        return text

    def _text(self, value: Any, where: str, expected: str) -> str:
        if not isinstance(value, str):
            raise self._error(f"{where} is {kind(value)}", expected)
        return value

    def _table(self, value: Any, where: str, known: tuple[str, ...] = (), *, shorthand: bool = False) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            form = f"a table of {', '.join(known)}" if known else "a table with a name for each entry"
            raise self._error(f"{where} is {kind(value)}", f"{form}{', or the word drop' if shorthand else ''}")
        for key in value:
            if known and key not in known:
                raise self._error(
                    f"{where} has the unknown key {shown(key)}", f"one of {', '.join(known)}", _hint(key, known)
                )
        return value

    def _error(self, found: str, expected: str, hint: str = "") -> UserError:
        return UserError(f"{self.path}: {found}, but {expected} was expected{hint}")


_SWITCH_WORDS = {_DROP: "true", _KEEP: "false"}


def _is_switch(value: Any) -> bool:
    return isinstance(value, str) and value in _SWITCH_WORDS


def _hint(text: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(text.strip().lower(), list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def merge_overrides(base: AlbumOverrides, over: AlbumOverrides) -> AlbumOverrides:
    """Both files' decisions; of what both decide, `over` wins, value by value.

    An asset or photo of which `over` says anything but "drop" is kept: who renames it means to use it.
    """
    return AlbumOverrides(
        gender=over.gender or base.gender,
        subject_point=over.subject_point or base.subject_point,
        assets=_merge_entries(base.assets, over.assets),
        photos=_merge_entries(base.photos, over.photos),
    )


def _merge_entries(base: Mapping[str, EntryT], over: Mapping[str, EntryT]) -> dict[str, EntryT]:
    merged = dict(base)
    for name, entry in over.items():
        said = {key: value for key, value in _said(entry).items() if value is not None}
        before = merged.get(name)
        if before is None:
            merged[name] = entry
        elif said:
            kept = {"drop": False} if before.drop else {}
            merged[name] = dataclasses.replace(before, **(kept | said))
    return merged


def _said(entry: AssetOverride | PhotoOverride) -> dict[str, Any]:
    return {item.name: getattr(entry, item.name) for item in dataclasses.fields(entry)}


def dump_overrides(overrides: AlbumOverrides) -> str:
    """The decisions as YAML, sorted, that reads back equal; the same decisions give the same text."""
    document: dict[str, Any] = {}
    if overrides.gender is not None:
        document["gender"] = overrides.gender
    if (point := overrides.subject_point) is not None:
        document["subject"] = {"photo": point.photo, "at": [point.x, point.y]}
    for key, entries in (("assets", overrides.assets), ("photos", overrides.photos)):
        found = {name: _entry_document(entries[name]) for name in sorted(entries)}
        if found := {name: value for name, value in found.items() if value}:
            document[key] = found
    if not document:
        return ""
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def _entry_document(entry: AssetOverride | PhotoOverride) -> str | dict[str, Any]:
    said = {key: value for key, value in _said(entry).items() if value is not None}
    if set(said) == {"drop"}:
        return _DROP if said["drop"] else _KEEP
    return {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}
