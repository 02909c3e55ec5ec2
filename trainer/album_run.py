"""One album on its way through the stages: where its folders are, what it is made of, and whether it can go on."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.album import IMAGE_FOLDER, MASK_FOLDER
from datamodules.album_description import ALBUM_FILE, REFERENCE_FILE
from datamodules.assets import PreparedAlbum
from datamodules.images import PHOTO_SUFFIXES
from datamodules.overrides import OVERRIDES_FILE
from trainer.artifacts import StageFolder
from trainer.canonical import hash_file, hash_json

SUBJECT, BASELINE, TEMPLATE = "avatar", "words_only", "template"


@dataclass
class AlbumRun:
    """One album on its way through the stages. `failed` holds the reason once it cannot go on, `traceback` the place.

    keys and inputs: of the trained stages that it has come to, by the stage's name.
    """

    name: str
    source: Path
    folder: Path
    prepared: PreparedAlbum | None = None
    has_truth: bool = False
    failed: str | None = None
    traceback: str | None = None
    keys: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.folder / name, name)

    @property
    def album(self) -> PreparedAlbum:
        assert self.prepared is not None, "the assets stage comes first"
        return self.prepared

    def fail(self, stage: str, reason: str, *, seed: int) -> None:
        """Leave the pack in a trained stage; its manifest keeps the reason (no full stop at its end)."""
        self.failed = reason
        self.stage(stage).fail(self.keys[stage], reason, inputs=self.inputs[stage], seed=seed)


def album_key(folder: Path, max_file_bytes: int) -> str:
    """A hash of an album's files as they are, without decoding a photo.

    Hidden files (a file manager's) and other folders (ground truth, or results that were put there) do not count, and
    only the names count of files that are never read: films, pipes, links out of the album, more than `max_file_bytes`.
    """
    root = os.path.realpath(folder)
    found: dict[str, str] = {}
    for place in (folder, folder / IMAGE_FOLDER, folder / MASK_FOLDER):
        for path in _entries(place, root):
            if not path.name.startswith(".") and (_is_read(path) or not path.is_dir()):
                # A name may hold bytes that are not UTF-8.
                name = path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()
                found[name] = _content(path, root, max_file_bytes)
    return hash_json(found)


def _entries(place: Path, root: str) -> list[Path]:
    try:
        return list(place.iterdir()) if place.is_dir() and _is_inside(place, root) else []
    except OSError:
        # Its reader says so, and what to do.
        return []


def _is_read(path: Path) -> bool:
    """Whether a file of this name is one that an album is made of."""
    return path.suffix.lower() in PHOTO_SUFFIXES or path.name in (ALBUM_FILE, REFERENCE_FILE, OVERRIDES_FILE)


def _content(path: Path, root: str, max_file_bytes: int) -> str:
    if not _is_read(path):
        return ""
    try:
        if not _is_inside(path, root):
            return "outside"
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "unread"
        return hash_file(path) if status.st_size <= max_file_bytes else f"{status.st_size} bytes"
    except OSError as error:
        return f"unread ({error.strerror})"


def _is_inside(path: Path, root: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def content_key(folder: Path) -> str:
    """A hash of the files of a folder that is trusted, an avatar's ground truth. Hidden files do not count."""
    found = folder.iterdir() if folder.is_dir() else []
    files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    return hash_json({path.name: hash_file(path) for path in files})
