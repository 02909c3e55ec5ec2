"""Albums by a table: one row per photo, UTF-8 text separated by commas, semicolons, tabs or bars.

Columns (in any order, the first two are needed):
    album, photo          the album's name; the photo's file, relative to the table
    mask_<asset>          a mask of that asset, white inside (mask_person is the whole person)
    view, framing, pose, background      words of the photo
    gender                man, woman or person; the same in all rows of an album, or given once
    subject_x, subject_y  a point on the subject: pixels of the upright photo, or fractions of it up to 1
A row that cannot be used is named with its line and set aside; the album goes on with the others.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datamodules.album_description import Gender
from datamodules.asset_names import canonical_asset
from datamodules.images import PHOTO_SUFFIXES, decode_photo
from datamodules.readers.config import ImportConfig
from datamodules.readers.source import (
    AlbumContent,
    AlbumSource,
    Listing,
    PhotoSource,
    Refused,
    SourceFolder,
    album_name,
    printable,
    unique_name,
)
from datamodules.views import parse_framing, parse_free_words, parse_view
from modules.errors import UserError

_NEEDED = ("album", "photo")
_WORDS = ("view", "framing", "pose", "background", "gender", "subject_x", "subject_y")
_MASK = "mask_"
_DELIMITERS = (",", ";", "\t", "|")
_MAX_BYTES = 256_000_000
_MAX_FIELD = 10_000
_GENDERS: Mapping[str, Gender] = {
    "man": "man", "male": "man", "woman": "woman", "female": "woman", "person": "person", "neutral": "person",
}  # fmt: skip


@dataclass
class _Rows:
    """What is gathered of one album."""

    photos: list[PhotoSource] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    genders: set[Gender] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    paths: set[Path] = field(default_factory=set)


def list_albums(files: SourceFolder, table: Path, config: ImportConfig) -> Listing:
    """The albums of a table, by name. UserError when it cannot be read as one."""
    albums: dict[str, _Rows] = {}
    refused: list[Refused] = []
    spelt: dict[str, str] = {}
    for line, row in _read_table(files, table):
        where = f"line {line}"
        if row is None:
            refused.append(Refused(where, "has more fields than the first line names"))
            continue
        try:
            name = album_name(row.get("album", ""))
        except UserError as error:
            refused.append(Refused(where, f"names no album: {error}"))
            continue
        # Where a disk does not tell capitals apart, such albums would be one folder.
        if spelt.setdefault(name.casefold(), name) != name:
            refused.append(Refused(where, f"names the album {name}, which is {spelt[name.casefold()]} in other lines"))
            continue
        _take(albums.setdefault(name, _Rows()), where, row, files, config)
    if not albums:
        reasons = "; ".join(f"{name} {reason}" for name, reason in refused[:3])
        raise UserError(f"{printable(table)} names no album ({reasons or 'it has no rows'}).")
    return Listing(
        albums=tuple(AlbumSource(name=name, keys=(), read=partial(_content, albums[name])) for name in sorted(albums)),
        refused=tuple(refused),
    )


def _read_table(files: SourceFolder, table: Path) -> list[tuple[int, dict[str, str] | None]]:
    """(line, column to text) for every row that is not blank; None for a row with too many fields."""
    try:
        data = files.read(table)
        if len(data) > _MAX_BYTES:
            raise UserError(f"has {len(data)} bytes, but a table of at most {_MAX_BYTES} is read")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{printable(table)} is not UTF-8 text; save it as UTF-8 (in Excel: CSV UTF-8).") from None
    except UserError as error:
        raise UserError(f"{printable(table)} {error}.") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(_DELIMITERS, key=lambda mark: len(set(_columns(first, mark)) & {*_NEEDED, *_WORDS}))
    columns = _columns(first, delimiter)
    if not set(_NEEDED) <= set(columns):
        raise UserError(
            f"{printable(table)} has no columns {' and '.join(name for name in _NEEDED if name not in columns)}: its "
            f"first line must name the columns, for example: album,photo,mask_face,view"
        )
    unknown = [name for name in columns if name not in (*_NEEDED, *_WORDS) and not name.startswith(_MASK)]
    double = [name for name in columns if columns.count(name) > 1]
    if unknown or double:
        what = f"the unknown column {unknown[0]!a}" if unknown else f"the column {double[0]!a} twice"
        raise UserError(
            f"{printable(table)} has {what[:80]}; known are {', '.join((*_NEEDED, *_WORDS))} and {_MASK}<asset>."
        )
    for name in columns:
        if name.startswith(_MASK):
            try:
                canonical_asset(name.removeprefix(_MASK))
            except ValueError as error:
                raise UserError(f"{printable(table)} has the column {name!a}: {error}.") from None
    rows: list[tuple[int, dict[str, str] | None]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    named = False
    try:
        for fields in reader:
            if not any(part.strip() for part in fields):
                continue
            if not named:
                named = True
                continue
            extra = any(part.strip() for part in fields[len(columns) :])
            rows.append((reader.line_num, None if extra else dict(zip(columns, fields, strict=False))))
    except csv.Error as error:
        raise UserError(f"{printable(table)} cannot be read after line {reader.line_num}: {error}.") from None
    return rows


def _columns(line: str, delimiter: str) -> list[str]:
    try:
        fields = next(csv.reader([line.rstrip("\r")], delimiter=delimiter), [])
    except csv.Error:
        return []
    return [name.strip().lower() for name in fields]


def _take(rows: _Rows, where: str, row: dict[str, str], files: SourceFolder, config: ImportConfig) -> None:
    """Put one row into its album, or say why not."""

    def refuse(reason: str) -> None:
        rows.refused.append(Refused(where, reason))

    long = [name for name, text in row.items() if len(text) > _MAX_FIELD]
    if long:
        refuse(f"has a {long[0]} of {len(row[long[0]])} characters")
        return
    try:
        path = _path(row.get("photo", ""), files, "photo")
    except UserError as error:
        refuse(str(error))
        return
    if path in rows.paths:
        refuse(f"names the photo {files.relative(path)} a second time")
        return
    rows.paths.add(path)
    masks: dict[str, Path] = {}
    for column, text in row.items():
        if column.startswith(_MASK) and text.strip():
            try:
                masks[canonical_asset(column.removeprefix(_MASK))] = _path(text, files, column)
            except UserError as error:
                refuse(f"{error}; the photo is taken without it")
    words: dict[str, str | None] = {
        "view": parse_view(row.get("view", ""), "eight") or parse_view(row.get("view", ""), "four"),
        "framing": parse_framing(row.get("framing", "")),
        "pose": parse_free_words(row.get("pose", "")),
        "background": parse_free_words(row.get("background", "")),
    }
    for column, word in words.items():
        if word is None and row.get(column, "").strip():
            refuse(f"has the {column} {printable(row[column])[:40]!r}, which is not known; it counts as unknown")
    if text := row.get("gender", "").strip().lower():
        if text in _GENDERS:
            rows.genders.add(_GENDERS[text])
        else:
            refuse(f"has the gender {printable(text)[:40]!r}, but man, woman or person was expected")
    try:
        point = _point(row, path, files, config)
    except UserError as error:
        refuse(f"{error}; it is left out")
        point = None
    rows.photos.append(
        PhotoSource(
            stem=unique_name(path.stem, rows.taken),
            path=path,
            masks=masks,
            subject_xy=point,
            view=words["view"],
            framing=words["framing"],
            pose=words["pose"],
            background=words["background"],
        )
    )


def _path(text: str, files: SourceFolder, column: str) -> Path:
    """A file that the table names. UserError for one that is missing or not inside the table's folder."""
    text = text.strip()
    if not text or "\0" in text:
        raise UserError(f"names no {column}")
    path = files.root / text
    if not files.allow_outside and (Path(text).is_absolute() or ".." in Path(text).parts):
        raise UserError(
            f"has the {column} {printable(text)[:80]!r} outside of the table's folder; move it in, or say "
            "allow_outside=true"
        )
    if path.suffix.lower() not in PHOTO_SUFFIXES:
        raise UserError(f"has the {column} {printable(text)[:80]!r}, which is none of {', '.join(PHOTO_SUFFIXES)}")
    if not files.has(path):
        raise UserError(f"has the {column} {printable(text)[:80]!r}, which is not there")
    return path


def _point(row: dict[str, str], path: Path, files: SourceFolder, config: ImportConfig) -> tuple[float, float] | None:
    """subject_x and subject_y as fractions of the photo."""
    texts = [row.get(name, "").strip() for name in ("subject_x", "subject_y")]
    if not any(texts):
        return None
    try:
        x, y = (float(text) for text in texts)
    except ValueError:
        raise UserError("has a subject_x, subject_y that are not two numbers") from None
    if not (math.isfinite(x) and math.isfinite(y) and x >= 0 and y >= 0):
        raise UserError("has a subject_x, subject_y that lie outside of the photo")
    if x <= 1 and y <= 1:
        return x, y
    photo = decode_photo(files.read(path), max_pixels=config.max_pixels, fit_px=16)
    if x >= photo.source_width_px or y >= photo.source_height_px:
        raise UserError("has a subject_x, subject_y that lie outside of the photo")
    return x / photo.source_width_px, y / photo.source_height_px


def _content(rows: _Rows) -> AlbumContent:
    if len(rows.genders) > 1:
        rows.refused.append(Refused("the gender", "is not the same in all rows; it counts as unknown"))
    return AlbumContent(
        photos=tuple(rows.photos),
        gender=next(iter(rows.genders)) if len(rows.genders) == 1 else "person",
        refused=tuple(rows.refused),
    )
