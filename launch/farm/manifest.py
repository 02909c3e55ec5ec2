"""Which albums there are: a folder of them, a list, or a table; no photo is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.errors import UserError

_LISTS = (".txt", ".jsonl", ".parquet")
_PATH_COLUMNS = ("album", "path", "source")
_MAX_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class AlbumEntry:
    """An album to be done: its name, which is that of its result's folder, and the folder of its photos."""

    name: str
    source: str


def scan(sources: Sequence[Path]) -> list[AlbumEntry]:
    """The albums of all sources, sorted by name.

    Args:
        sources: each a folder whose sub-folders are albums (hidden ones are passed over), or a list of albums: .txt
            (one folder a line, # for remarks), .jsonl or .parquet with a column "album" (or "path", "source") and,
            where wished, "name". Relative folders start from the list's own.

    Raises:
        UserError: a source is missing or cannot be read, names no album, or two albums have one name.
    """
    found: dict[str, AlbumEntry] = {}
    for source in sources:
        number = 0
        for where, entry in _entries(source):
            number += 1
            _check_name(entry.name, where)
            other = found.setdefault(entry.name, entry)
            if other.source != entry.source:
                raise UserError(
                    f"Two albums have the name '{entry.name}': {other.source} and {entry.source} ({where}). "
                    "Give one of them another name (a column 'name' in a .jsonl or .parquet list)."
                )
        if number == 0:
            raise UserError(f"{source} names no album: give a folder of album folders, or a .txt, .jsonl or .parquet.")
    return [found[name] for name in sorted(found)]


def source_hash(source: str) -> str:
    """A hash of the names, sizes and times of an album's files, hidden ones left out; "" when it cannot be read.

    It changes when a photo is added or exchanged, and no file has to be opened for it.
    """
    seen: list[tuple[str, int, int]] = []
    waiting = [("", source)]
    try:
        while waiting:
            prefix, folder = waiting.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        waiting.append((f"{prefix}{entry.name}/", entry.path))
                    else:
                        status = entry.stat()
                        seen.append((prefix + entry.name, status.st_size, status.st_mtime_ns))
    except OSError:
        return ""
    return hashlib.sha256(json.dumps(sorted(seen)).encode(errors="surrogateescape")).hexdigest()[:32]


def _entries(source: Path) -> Iterator[tuple[str, AlbumEntry]]:
    """(where it stands, album) for one source."""
    if source.is_dir():
        yield from _of_folder(source)
        return
    if not source.exists():
        raise UserError(f"{source} is not there: give a folder of album folders, or a .txt, .jsonl or .parquet list.")
    try:
        match source.suffix.lower():
            case ".txt":
                yield from _of_text(source)
            case ".jsonl":
                yield from _of_rows(source, _read_jsonl(source))
            case ".parquet":
                yield from _of_rows(source, _read_parquet(source))
            case _:
                raise UserError(f"{source} is no list of albums: expected a folder or one of {', '.join(_LISTS)}.")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"Cannot read the list {source}: {reason}.") from error


def _of_folder(folder: Path) -> Iterator[tuple[str, AlbumEntry]]:
    root = os.path.abspath(folder)
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir():
                    yield str(folder), AlbumEntry(entry.name, entry.path)
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}.") from error


def _of_text(path: Path) -> Iterator[tuple[str, AlbumEntry]]:
    root = os.path.abspath(path.parent)
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if text and not text.startswith("#"):
                yield f"{path}, line {number}", _entry(text, None, root)


def _of_rows(path: Path, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[str, AlbumEntry]]:
    root = os.path.abspath(path.parent)
    for number, row in rows:
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f'{where} is {str(row)[:80]!r}, expected an object such as {{"album": "photos/anna"}}.')
        folder = next((row[column] for column in _PATH_COLUMNS if row.get(column)), None)
        name = row.get("name")
        if not isinstance(folder, str) or not (name is None or isinstance(name, str)):
            columns = ", ".join(_PATH_COLUMNS)
            raise UserError(f"{where} names no folder: expected text in a column called one of {columns}.")
        yield where, _entry(folder, name, root)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}, row {number} is not valid JSON: {error}.") from error


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        columns = [name for name in (*_PATH_COLUMNS, "name") if name in file.schema_arrow.names]
        if not set(columns) & set(_PATH_COLUMNS):
            raise UserError(f"{path} has no column called one of {', '.join(_PATH_COLUMNS)}.")
        number = 0
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}.") from error


def _entry(folder: str, name: str | None, root: str) -> AlbumEntry:
    path = os.path.normpath(os.path.join(root, folder))
    return AlbumEntry(name or os.path.basename(path), path)


def _check_name(name: str, where: str) -> None:
    """It becomes a folder's name, here and on whatever system the dataset is copied to."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise UserError(f"{where}: the name {name!r} is not valid Unicode; give the album another one.") from None
    if name.startswith(".") or not name or "/" in name or "\\" in name or not name.isprintable():
        raise UserError(
            f"{where}: {name!r} cannot be an album's name: give one of letters, digits and signs, without a slash, "
            "that does not begin with a full stop."
        )
    if size > _MAX_NAME_BYTES:
        raise UserError(f"{where}: the name {name[:40]!r}... has {size} bytes, expected at most {_MAX_NAME_BYTES}.")
