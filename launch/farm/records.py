"""What a dataset knows of its albums: one small file beside each result, and all of them as one table.

`albums/NAME/result.json` is the truth. Whoever finishes an album writes it, whole or not at all, so that no process is
needed to keep it, and `index.parquet` is only what all of them say together.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.artifacts import folder_errors, write_json

ALBUMS, RESULT, INDEX = "albums", "result.json", "index.parquet"
State = Literal["waiting", "running", "done", "failed"]
STATES: tuple[State, ...] = ("waiting", "running", "done", "failed")
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class AlbumRecord:
    """One row of the index.

    Attributes:
        name: of the album, and of its folder below `albums/`.
        source: folder of the photos.
        state: "waiting" and "running" are what a driver sees at the moment; only "done" and "failed" are kept in files.
        reason: why it failed, one sentence; None otherwise.
        attempts: how often a pack with this album began.
        metrics: row ("avatar", "template", "words_only") to headline figures; empty without ground truth.
        files: what the album's folder holds for others, as {"path": relative to the folder, "size", "sha256"}; of a
            failed album its traceback.txt, if there is one.
        settings: hash of the resolved configuration without what does not change a result.
        source_hash: of the album's file names, sizes and times, by which a change is noticed.
        versions: packages that shape a result.
        git_revision: of the code; None outside a checkout.
        timings: stage to this album's share of the time, in seconds.
        pack: name of the pack that it was made in.
        num_albums: of that pack.
        host: machine that it was made on.
        finished_at: ISO 8601 in UTC; None while it is not.
    """

    name: str
    source: str
    state: State
    reason: str | None = None
    attempts: int = 0
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    files: Sequence[Mapping[str, Any]] = field(default_factory=list)
    settings: str = ""
    source_hash: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    pack: str = ""
    num_albums: int = 0
    host: str = ""
    finished_at: str | None = None

    @property
    def seconds(self) -> float:
        """This album's share of the time of all its stages."""
        return float(sum(self.timings.values()))


def album_folder(dataset: Path, name: str) -> Path:
    """Where everything of an album lies."""
    return dataset / ALBUMS / name


def write_record(dataset: Path, record: AlbumRecord) -> None:
    """Keep a finished or failed album's record beside its files. Raises UserError when the disk is full."""
    folder = album_folder(dataset, record.name)
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, {"schema": _SCHEMA, **dataclasses.asdict(record)})


def read_record(dataset: Path, name: str) -> AlbumRecord | None:
    """The record that lies in an album's folder; None where there is none that can be read."""
    try:
        with open(os.path.join(dataset, ALBUMS, name, RESULT), "rb") as file:
            kept = json.load(file)
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or kept.pop("schema", None) != _SCHEMA:
        return None
    try:
        return AlbumRecord(**kept)
    except TypeError:
        return None


def table_of(records: Iterable[AlbumRecord]) -> Any:
    """The records as a `pyarrow.Table`, a row for each in the order given.

    Figures have columns of their own, `avatar_chamfer_cm` for metrics["avatar"]["chamfer_cm"], null where there are
    none; `versions` and `timings` are maps, `files` a list of structures.
    """
    import pyarrow as pa

    rows = list(records)
    figures = sorted({(row, name) for record in rows for row, names in record.metrics.items() for name in names})
    file_type = pa.struct([("path", pa.string()), ("size", pa.int64()), ("sha256", pa.string())])
    columns: dict[str, Any] = {
        name: pa.array([getattr(record, name) for record in rows], pa.string())
        for name in ("name", "source", "state", "reason")
    }
    columns["attempts"] = pa.array([record.attempts for record in rows], pa.int32())
    for row, name in figures:
        values = [record.metrics.get(row, {}).get(name) for record in rows]
        columns[f"{row}_{name}"] = pa.array(values, pa.float64())
    columns["seconds"] = pa.array([record.seconds for record in rows], pa.float64())
    columns["timings"] = pa.array([list(record.timings.items()) for record in rows], pa.map_(pa.string(), pa.float64()))
    columns["files"] = pa.array([[dict(file) for file in record.files] for record in rows], pa.list_(file_type))
    for name in ("settings", "source_hash", "git_revision", "pack", "host", "finished_at"):
        columns[name] = pa.array([getattr(record, name) for record in rows], pa.string())
    columns["num_albums"] = pa.array([record.num_albums for record in rows], pa.int32())
    columns["versions"] = pa.array(
        [list(record.versions.items()) for record in rows], pa.map_(pa.string(), pa.string())
    )
    return pa.table(columns)


def write_index(dataset: Path, records: Iterable[AlbumRecord]) -> Path:
    """Write `index.parquet` whole or not at all; returns its path. Raises UserError when the disk is full."""
    import pyarrow.parquet as pq

    path = dataset / INDEX
    # Of each process its own: two farms may fill one dataset.
    temporary = path.with_name(f".{INDEX}.{socket.gethostname()}.{os.getpid()}.tmp")
    with folder_errors(dataset):
        try:
            pq.write_table(table_of(records), temporary, compression="zstd")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def read_index(dataset: Path) -> list[AlbumRecord]:
    """The records of `index.parquet`; empty where there is none that can be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(dataset / INDEX)
    except (OSError, pa.ArrowInvalid):
        return []
    plain = {item.name for item in dataclasses.fields(AlbumRecord)} & set(table.column_names)
    records = []
    for row in table.to_pylist(maps_as_pydicts="strict"):
        metrics: dict[str, dict[str, float]] = {}
        for column in table.column_names:
            if column in plain or column == "seconds" or row[column] is None:
                continue
            for kind in ("avatar", "template", "words_only"):
                if column.startswith(f"{kind}_"):
                    metrics.setdefault(kind, {})[column.removeprefix(f"{kind}_")] = row[column]
        records.append(AlbumRecord(metrics=metrics, **{name: row[name] for name in plain}))
    return records
