"""Which albums share a pack. The plan is a file of lines that are only ever added, which farms on one dataset share.

A pack that was interrupted goes on from its checkpoint only with the same albums, so a pack once planned stays as it is
until it is done, or until it is split because it dies. An album belongs to the pack that names it last.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.artifacts import folder_errors, run_lock

FARM = ".farm"
PLAN, ATTEMPTS = "plan.jsonl", "attempts.jsonl"


@dataclass(frozen=True, kw_only=True)
class PlannedPack:
    """Albums that are trained together.

    Attributes:
        name: "p000001" and so on; its folder is `.farm/packs/NAME`.
        albums: their names.
        parent: the pack that it is a part of, when it was split; None otherwise.
    """

    name: str
    albums: tuple[str, ...]
    parent: str | None = None


class PackPlan:
    """The plan of a dataset as this process has read it; every change is written before it counts.

    Raises UserError from every method when the disk is full or the folder cannot be written.
    """

    def __init__(self, dataset: Path) -> None:
        self.folder = dataset / FARM
        self.packs: dict[str, PlannedPack] = {}
        self.pack_of: dict[str, str] = {}  # album to the pack that named it last
        self._read_bytes = 0
        with folder_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have added."""
        path = self.folder / PLAN
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the end of a line that a kill cut short, or that is being written
                self._read_bytes += len(line)
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    kept = json.loads(line)
                    self._take(PlannedPack(name=kept["name"], albums=tuple(kept["albums"]), parent=kept["parent"]))

    def add(self, groups: Iterable[Sequence[str]]) -> list[PlannedPack]:
        """Plan packs of albums that have none yet; albums that another process has planned meanwhile are left out."""
        with self._locked():
            fresh = [[name for name in group if name not in self.pack_of] for group in groups]
            return self._append([(group, None) for group in fresh if group])

    def split(self, name: str) -> list[PlannedPack]:
        """Put both halves of a pack in its place; what another process has made of it already is returned as it is."""
        with self._locked():
            halves = [pack for pack in self.packs.values() if pack.parent == name]
            albums = self.packs[name].albums
            if halves or len(albums) < 2:
                return halves
            middle = (len(albums) + 1) // 2
            return self._append([(albums[:middle], name), (albums[middle:], name)])

    def regroup(self, packs: Iterable[PlannedPack], size: int) -> list[PlannedPack]:
        """New packs of `size` for the albums of packs that have not begun."""
        with self._locked():
            names = [
                album
                for pack in packs
                if not self.attempts_path(pack.name).exists()
                for album in pack.albums
                if self.pack_of[album] == pack.name
            ]
            return self._append([(names[start : start + size], None) for start in range(0, len(names), size)])

    def current(self) -> list[PlannedPack]:
        """Packs that own albums, in the order of planning; those that were split own none any more."""
        owners = set(self.pack_of.values())
        return [pack for name, pack in self.packs.items() if name in owners]

    def pack_folder(self, name: str) -> Path:
        """Where a pack's specification, log and attempts lie."""
        return self.folder / "packs" / name

    def attempts_path(self, name: str) -> Path:
        return self.pack_folder(name) / ATTEMPTS

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with run_lock(self.folder / "plan", wait=True):
            self.refresh()
            yield

    def _append(self, packs: Sequence[tuple[Sequence[str], str | None]]) -> list[PlannedPack]:
        made = [
            PlannedPack(name=f"p{len(self.packs) + index:06d}", albums=tuple(albums), parent=parent)
            for index, (albums, parent) in enumerate(packs, 1)
        ]
        if not made:
            return []
        path = self.folder / PLAN
        text = "".join(json.dumps({"name": p.name, "albums": p.albums, "parent": p.parent}) + "\n" for p in made)
        with folder_errors(self.folder), path.open("ab+") as file:
            # A line that a kill cut short ends here, and is no line of ours.
            size = file.seek(0, os.SEEK_END)
            if size > self._read_bytes:
                file.truncate(self._read_bytes)
            try:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(self._read_bytes)
                raise
        self._read_bytes += len(text.encode())
        for pack in made:
            self._take(pack)
        return made

    def _take(self, pack: PlannedPack) -> None:
        self.packs[pack.name] = pack
        for album in pack.albums:
            self.pack_of[album] = pack.name


def add_line(path: Path, row: dict[str, Any]) -> None:
    """Add a line of JSON to a file, whole lines only. Raises UserError when the disk is full."""
    with folder_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write((json.dumps(row) + "\n").encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that `add_line` wrote; those that a kill has cut short are left out."""
    rows = []
    try:
        text = path.read_bytes()
    except OSError:
        return []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows
