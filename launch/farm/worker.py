"""One pack, in a process of its own: `python -m launch.farm.worker SPEC`, with SPEC as JSON, started by the farm.

It writes each album's record as soon as the album is done. The pack's attempts.jsonl gets a line at its beginning, for
each such album, and at its end. A beginning without an end is a death.
"""

from __future__ import annotations

import dataclasses
import datetime
import faulthandler
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launch.farm.manifest import source_hash
from launch.farm.plan import ATTEMPTS, FARM, add_line
from launch.farm.records import ALBUMS, AlbumRecord, album_folder, read_record, write_record
from modules.errors import FolderInUse, UserError
from trainer.artifacts import (
    StageFolder,
    folder_errors,
    git_revision,
    hash_file,
    run_lock,
    versions,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from trainer.pipeline import AlbumResult, Until

log = logging.getLogger(__name__)

# How a pack's process ends, by exit code; every other code is a death.
DONE, TROUBLE, BUSY, STOPPED = 0, 74, 75, 143
Part = Literal["prepare", "train", "finish", "all"]
PARTS: tuple[Part, ...] = ("prepare", "train", "finish", "all")
# The last stage of each part.
UNTIL: Mapping[Part, Until | None] = {"prepare": "assets", "train": "texture", "finish": None, "all": None}
TRACEBACK, SPEC, LOG = "traceback.txt", "spec.json", "log.txt"
CONFIG = "config.yaml"
_STAGES = ("assets", "booth", "geometry", "texture", "export", "evaluate")
_LISTED = (
    *("avatar.glb", "avatar_animated.glb", "avatar.obj", "avatar.mtl", "avatar.png", "avatar.usdz"),
    *("turntable.mp4", "turntable.png", "report.html", "metrics.json"),
    *("booth/learned_embeds.safetensors", "booth/lora.safetensors"),
)


@dataclass(frozen=True, kw_only=True)
class PackSpec:
    """What a worker is told.

    Attributes:
        dataset: its folder.
        pack: the pack's name.
        part: which stages; "all" where none has a trial of its own.
        albums: (name, source) of each.
        config: YAML file of the resolved configuration.
        settings: see AlbumRecord.
        attempt: this is the pack's so-manieth, from 1.
        group: name of the farm in W&B.
    """

    dataset: str
    pack: str
    part: Part
    albums: tuple[tuple[str, str], ...]
    config: str
    settings: str
    attempt: int = 1
    group: str = ""

    @staticmethod
    def parse(text: str) -> PackSpec:
        """What `json.dumps(dataclasses.asdict(spec))` wrote."""
        kept = json.loads(text)
        return PackSpec(**{**kept, "albums": tuple((name, source) for name, source in kept["albums"])})


def run_spec(spec: PackSpec) -> int:
    """Do a part of a pack. Returns the exit code.

    DONE: all its albums have come to this part's end, or have failed; BUSY: another process is at the pack; TROUBLE:
    the disk, the backbone or another thing that is not the albums' fault. Raises whatever kills it.
    """
    dataset = Path(spec.dataset)
    folder = dataset / FARM / "packs" / spec.pack
    try:
        with run_lock(folder):
            begun = {"attempt": spec.attempt, "part": spec.part, "host": socket.gethostname(), "pid": os.getpid()}
            write_json(folder / SPEC, dataclasses.asdict(spec))
            add_line(folder / ATTEMPTS, {"event": "begin", "at": _now(), **begun})
            started = time.monotonic()
            _work(spec, dataset)
            cost = _cost(time.monotonic() - started, len(spec.albums))
            add_line(folder / ATTEMPTS, {"event": "end", "at": _now(), "part": spec.part, "ended": "done", **cost})
    except FolderInUse:
        return BUSY
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        # Best effort: the disk may be full.
        _say_end(folder / ATTEMPTS, spec, "trouble", str(error))
        return TROUBLE
    except (KeyboardInterrupt, SystemExit):
        _say_end(folder / ATTEMPTS, spec, "stopped", "")
        return STOPPED
    return DONE


def _work(spec: PackSpec, dataset: Path) -> None:
    from trainer.config import RunConfig, load_dataclass
    from trainer.pipeline import run_pack

    config = load_dataclass(RunConfig, Path(spec.config), [f"out={dataset / ALBUMS}"])
    if not config.runtime.wandb_group:
        config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, wandb_group=spec.group))
    hashes = {name: source_hash(source) for name, source in spec.albums}
    chosen = [(name, source) for name, source in spec.albums if not _is_done(dataset, name, spec, hashes[name])]
    if not chosen:
        return
    attempts = dataset / FARM / "packs" / spec.pack / ATTEMPTS

    def keep(result: AlbumResult) -> None:
        # What an album has come to is known at its end, or when it fails on the way.
        if result.failed is not None or UNTIL[spec.part] is None:
            if result.traceback:
                _write_traceback(dataset, result.name, result.traceback)
            else:
                (result.folder / TRACEBACK).unlink(missing_ok=True)
            record = _record(spec, dataset, result, dict(chosen)[result.name], hashes[result.name])
            write_record(dataset, record)
            add_line(attempts, {"event": "album", "at": _now(), "name": record.name, "state": record.state})

    run_pack(
        [Path(source) for _, source in chosen],
        config,
        names=[name for name, _ in chosen],
        until=UNTIL[spec.part],
        on_result=keep,
    )


def _is_done(dataset: Path, name: str, spec: PackSpec, digest: str) -> bool:
    record = read_record(dataset, name)
    return (
        record is not None
        and record.state == "done"
        and record.settings == spec.settings
        and record.source_hash == digest
    )


def _record(spec: PackSpec, dataset: Path, result: AlbumResult, source: str, digest: str) -> AlbumRecord:
    from trainer.metrics_table import summary

    folder = album_folder(dataset, result.name)
    manifests = {name: StageFolder(folder / name, name).manifest or {} for name in _STAGES}
    done = result.failed is None
    return AlbumRecord(
        name=result.name,
        source=source,
        state="done" if done else "failed",
        reason=result.failed,
        attempts=spec.attempt,
        metrics={row: summary(figures) for row, figures in result.metrics.items()},
        files=list_files(folder, _LISTED if done else (TRACEBACK,)),
        settings=spec.settings,
        source_hash=digest,
        versions=versions(),
        git_revision=git_revision(),
        timings={
            name: manifest["timings"]["album_s"] for name, manifest in manifests.items() if manifest.get("timings")
        },
        pack=spec.pack,
        num_albums=len(spec.albums),
        host=socket.gethostname(),
        finished_at=_now(),
    )


def list_files(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """{"path", "size", "sha256"} of those files that are there, and of renders all round."""
    orbit = sorted((folder / "orbit").glob("*")) if names is _LISTED else []
    paths = [folder / name for name in names] + orbit
    return [
        {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": hash_file(path)}
        for path in paths
        if path.is_file()
    ]


def _write_traceback(dataset: Path, name: str, trace: str) -> None:
    folder = album_folder(dataset, name)
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / TRACEBACK, trace)


def fail_album(dataset: Path, record: AlbumRecord, trace: str) -> None:
    """Record that an album has failed for good, with what its process printed last."""
    _write_traceback(dataset, record.name, trace)
    files = list_files(album_folder(dataset, record.name), (TRACEBACK,))
    write_record(dataset, dataclasses.replace(record, files=files))


def log_end(path: Path, num_bytes: int) -> str:
    """The last bytes of a log as text; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _cost(seconds: float, num_albums: int) -> dict[str, Any]:
    """What the pack took: time, the most of this process's memory, and of the device's, in GiB."""
    import torch

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gpu = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else None
    return {"seconds": seconds, "num_albums": num_albums, "memory_gib": resident, "gpu_gib": gpu}


def _say_end(path: Path, spec: PackSpec, ended: str, reason: str) -> None:
    try:
        add_line(path, {"event": "end", "at": _now(), "part": spec.part, "ended": ended, "reason": reason})
    except UserError as error:
        log.info("%s", error)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _terminate(number: int, frame: Any) -> None:
    raise SystemExit(STOPPED)


def main(argv: Sequence[str]) -> int:
    """Read the specification and do it, with whatever kills it written to standard error."""
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGTERM, _terminate)
    # What a cluster sends before its time is up; it goes to every process of a job step.
    signal.signal(signal.SIGUSR1, _terminate)
    try:
        return run_spec(PackSpec.parse(argv[0]))
    except BaseException:
        traceback.print_exc()
        return 70


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
