"""The finished albums once more as WebDataset shards: tar files that training programs stream from.

    DATASET/shards/000000.tar    samples one after the other, a sample's files side by side
    DATASET/shards/index.json    which album lies in which shard, with its hash

The sample of an album: KEY.glb, KEY.json (its record), KEY.turntable.png, KEY.orbit.000.png and so on with
KEY.orbit.cameras.json, KEY.tokens.safetensors, KEY.adapter.safetensors; KEY is the album's name, made safe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import tarfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.farm.records import AlbumRecord, album_folder
from modules.errors import UserError
from trainer.artifacts import folder_errors, hash_file, run_lock, to_plain, write_text

FOLDER, INDEX = "shards", "index.json"
# What a sample may hold: "orbit" are all files of that folder, "json" is the record.
MEMBERS = ("glb", "json", "turntable.png", "orbit", "tokens.safetensors", "adapter.safetensors")
_FILES = {
    "avatar.glb": "glb",
    "turntable.png": "turntable.png",
    "booth/learned_embeds.safetensors": "tokens.safetensors",
    "booth/lora.safetensors": "adapter.safetensors",
}
_SCHEMA = 1
# The index of many albums is large: it is kept now and then, so that a kill costs little.
_KEEP_EVERY_S = 30.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """An album in a shard. size: of its files, in bytes; hash: of the key, and of its files' names and contents."""

    record: AlbumRecord
    key: str
    size: int
    hash: str

    @property
    def entry(self) -> dict[str, str]:
        """The album in the index."""
        return {"name": self.record.name, "key": self.key, "hash": self.hash}


def write_shards(
    dataset: Path, records: Iterable[AlbumRecord], *, size_mb: float = 500, names: Collection[str] = MEMBERS
) -> list[Path]:
    """Bring DATASET/shards up to date with the done albums among `records`; returns the shards' paths in order.

    A shard that is whole, and whose albums are as they were, is left alone. One with an album that was made anew, or
    that is gone, is written again, and new albums go into new shards. Equal albums give equal bytes.

    Args:
        dataset: its folder.
        records: of the dataset's albums, in any order; only "done" ones count.
        size_mb: about how large a new shard gets, in 10^6 bytes; a single album may be larger.
        names: which of `MEMBERS` a sample holds; a file that an album does not have is left out.

    Raises:
        UserError: the disk is full, or size_mb or names are not as expected.
    """
    if not size_mb >= 1:
        raise UserError(f"The size of a shard is {size_mb:g} MB: give 1 or more.")
    if not names or set(names) - set(MEMBERS):
        found = ", ".join(sorted(set(names) - set(MEMBERS))) or "nothing"
        raise UserError(f"A sample of the shards cannot hold {found}: choose from {', '.join(MEMBERS)}.")
    wanted = {
        record.name: _sample(record, names)
        for record in sorted(records, key=lambda record: record.name)
        if record.state == "done"
    }
    folder = dataset / FOLDER
    with run_lock(folder, wait=True):
        return _update(dataset, wanted, size_mb * 1_000_000, names)


def read_shards(dataset: Path) -> list[dict[str, Any]]:
    """The shards of the index: {"file", "size", "sha256", "albums": [{"name", "key", "hash"}]}; empty without one."""
    try:
        index = json.loads((dataset / FOLDER / INDEX).read_text(encoding="utf-8"))
        return list(index["shards"]) if index["schema"] == _SCHEMA else []
    except (OSError, ValueError, TypeError, KeyError):
        return []


def sample_key(name: str) -> str:
    """An album's name as a key: letters, digits, "_" and "-" only; WebDataset splits names at the first dot.

    Different names have different keys: a name that had to be changed, or that looks like it, gets a hash at its end.
    """
    safe = re.sub(r"[^\w-]", "_", name)
    if safe == name and not re.search(r"-[0-9a-f]{12}\Z", name):
        return name
    return f"{safe}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"


def _sample(record: AlbumRecord, names: Collection[str]) -> _Sample:
    key = sample_key(record.name)
    files = _files(record, names)
    hashes, size = {extension: file["sha256"] for extension, file in files}, sum(file["size"] for _, file in files)
    if "json" in names:
        about = _about(record)
        hashes["json"] = hashlib.sha256(about).hexdigest()
        size += len(about)
    return _Sample(record=record, key=key, size=size, hash=_hash([key, hashes]))


def _files(record: AlbumRecord, names: Collection[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """(extension in the sample, entry of the record) of the files that a sample holds."""
    found = []
    for file in record.files:
        orbit = file["path"].startswith("orbit/")
        extension = file["path"].replace("/", ".") if orbit else _FILES.get(file["path"], "")
        if ("orbit" if orbit else extension) in names:
            found.append((extension, file))
    return found


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _about(record: AlbumRecord) -> bytes:
    about = {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}
    return json.dumps(about, sort_keys=True, default=to_plain).encode() + b"\n"


def _update(dataset: Path, wanted: Mapping[str, _Sample], max_bytes: float, names: Collection[str]) -> list[Path]:
    folder, former = dataset / FOLDER, read_shards(dataset)
    left = dict(wanted)
    # An album in two shards, as a kill may leave it, stays in the first.
    groups = [[left.pop(album["name"]) for album in shard["albums"] if album["name"] in left] for shard in former]
    groups += _new_groups(list(left.values()), max_bytes)
    # Numbers without a gap, as programs expect them: the last shard's albums take an empty one's place.
    while [] in groups:
        last = groups.pop()
        if last:
            groups[groups.index([])] = last
    index: list[dict[str, Any]] = []
    written_s = time.monotonic()
    for group in groups:
        path = folder / f"{len(index):06d}.tar"
        before = former[len(index)] if len(index) < len(former) else None
        if before is not None and before["albums"] == [sample.entry for sample in group] and _whole(path, before):
            index.append(before)
            continue
        shard = _write_shard(path, dataset, group, names)
        if shard["albums"]:
            index.append(shard)
        if time.monotonic() - written_s > _KEEP_EVERY_S:
            _write_index(folder, [*index, *former[len(index) :]])
            written_s = time.monotonic()
    _write_index(folder, index)
    named = {shard["file"] for shard in index}
    with folder_errors(folder):
        for path in folder.glob("*.tar"):
            if path.name not in named:
                path.unlink(missing_ok=True)
    return [folder / shard["file"] for shard in index]


def _new_groups(samples: Sequence[_Sample], max_bytes: float) -> list[list[_Sample]]:
    groups: list[list[_Sample]] = []
    size: float = max_bytes
    for sample in samples:
        if size + sample.size > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(sample)
        size += sample.size
    return groups


def _whole(path: Path, shard: Mapping[str, Any]) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == shard["size"]
    return False


def _write_shard(path: Path, dataset: Path, samples: Sequence[_Sample], names: Collection[str]) -> dict[str, Any]:
    """Write a shard whole or not at all; returns its entry of the index, with the albums that are in it."""
    temporary = path.with_name(f".{path.name}.tmp")
    written = []
    with folder_errors(path.parent):
        try:
            with temporary.open("wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    for sample in samples:
                        members = _read(dataset, sample, names)
                        for name, data in members:
                            about = tarfile.TarInfo(name)  # time and owner are 0: the bytes depend on the data only
                            about.size = len(data)
                            tar.addfile(about, io.BytesIO(data))
                        if members:
                            written.append(sample.entry)
                file.flush()
                os.fsync(file.fileno())
            digest, size = hash_file(temporary), temporary.stat().st_size
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return {"file": path.name, "size": size, "sha256": digest, "albums": written}


def _read(dataset: Path, sample: _Sample, names: Collection[str]) -> list[tuple[str, bytes]]:
    """The members of a sample, sorted; none when a file is not what the record says, as while it is made anew."""
    name, folder = sample.record.name, album_folder(dataset, sample.record.name)
    members = [(f"{sample.key}.json", _about(sample.record))] if "json" in names else []
    for extension, file in _files(sample.record, names):
        path = folder / file["path"]
        data = path.read_bytes() if path.is_file() else None
        if data is None or hashlib.sha256(data).hexdigest() != file["sha256"]:
            what = "is gone" if data is None else "has changed"
            log.warning("Album %s is left out of the shards: %s %s since the album was done.", name, path, what)
            return []
        members.append((f"{sample.key}.{extension}", data))
    return sorted(members)


def _write_index(folder: Path, shards: Sequence[Mapping[str, Any]]) -> None:
    write_text(folder / INDEX, json.dumps({"schema": _SCHEMA, "shards": shards}, indent=1) + "\n")
