"""What every reader hands over: a dataset's albums, and access to its files, which are never trusted."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamodules.album_description import Gender
from modules.errors import UserError

if TYPE_CHECKING:
    from modules.geometry.mesh import TexturedMesh

_MAX_NAME_BYTES = 120
_MAX_ENTRIES = 1_000_000


class Refused(NamedTuple):
    """Something of the source that is not taken, and the reason, which completes its name to a sentence."""

    name: str
    reason: str


class SourceFolder:
    """Reads files below one folder: regular, bounded, and inside it unless `allow_outside`. UserError otherwise."""

    def __init__(self, root: Path, *, max_file_bytes: int, allow_outside: bool = False) -> None:
        try:
            if not root.is_dir():
                raise UserError(f"{printable(root)} is not a folder: give the folder that the dataset was unpacked to.")
            self.root = root.resolve()
        except OSError as error:
            raise UserError(f"{printable(root)} cannot be reached ({error.strerror}); check the path.") from None
        self.max_file_bytes = max_file_bytes
        self.allow_outside = allow_outside

    def read(self, path: Path) -> bytes:
        """The bytes of a file. Raises UserError whose message completes "photo.jpg ..." to a sentence."""
        try:
            self._check_inside(path)
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UserError("is not a regular file")
            if status.st_size > self.max_file_bytes:
                raise UserError(f"has {status.st_size} bytes, more than max_file_bytes={self.max_file_bytes}")
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror}); check that it is there and its permissions") from None
        except (RuntimeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError("has a path that cannot be followed") from None

    def has(self, path: Path) -> bool:
        """Whether there is such a file; what it leads to is checked when it is read."""
        try:
            return path.is_file()
        except (OSError, ValueError):
            return False

    def files(self, folder: Path, *suffixes: str) -> list[Path]:
        """The visible files of a folder with one of the suffixes (lower case), by name; none where there is none."""
        return [path for path in self._entries(folder) if path.suffix.lower() in suffixes and self.has(path)]

    def folders(self, folder: Path) -> list[Path]:
        """The visible folders in a folder, by name."""
        return [path for path in self._entries(folder) if path.is_dir()]

    def _entries(self, folder: Path) -> Iterator[Path]:
        try:
            if not folder.is_dir():
                return
            self._check_inside(folder)
            names = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        names.append(entry.name)
                    if len(names) > _MAX_ENTRIES:
                        raise UserError(f"{printable(folder)} holds more than {_MAX_ENTRIES} entries.")
        except OSError as error:
            raise UserError(f"{printable(folder)} cannot be read ({error.strerror}); check its permissions.") from None
        for name in sorted(names):
            yield folder / name

    def _check_inside(self, path: Path) -> None:
        if not self.allow_outside and not path.resolve().is_relative_to(self.root):
            raise UserError("leads out of the source; copy it in, or say allow_outside=true")

    def relative(self, path: Path) -> str:
        """The path as it is written into files and messages: from the source's folder, printable."""
        return printable(path.relative_to(self.root) if path.is_relative_to(self.root) else path.name)


@dataclass(frozen=True, kw_only=True)
class PhotoSource:
    """A photo to be taken.

    stem: its name in the album. path: its file. masks: asset to mask file. labels: draws masks for a photo of the given
    (height, width), asset to (H, W) bool. Words are None where unknown; the view may be found out when it is needed.
    subject_xy: a point on the subject, in fractions of the upright photo's width and height.
    """

    stem: str
    path: Path
    masks: Mapping[str, Path] = field(default_factory=dict)
    labels: Callable[[int, int], Mapping[str, np.ndarray]] | None = None
    view: str | Callable[[], str | None] | None = None
    framing: str | None = None
    pose: str | None = None
    background: str | None = None
    subject_xy: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """mesh: in the avatar's frame (see `scan.stand`). labels: (H, W) uint8 asset index of each texel or None.
    info: how it came to be, for ground_truth/scan.json.
    """

    mesh: TexturedMesh
    labels: np.ndarray | None = None
    asset_names: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AlbumContent:
    """One album's content; `truth` makes its ground truth, or is None where there is no scan."""

    photos: Sequence[PhotoSource]
    gender: Gender = "person"
    asset_words: Mapping[str, str] = field(default_factory=dict)
    truth: Callable[[], Truth] | None = None
    refused: Sequence[Refused] = ()


@dataclass(frozen=True, kw_only=True)
class AlbumSource:
    """An album of a dataset. name: of its folder. keys: what `subjects` may call it. read: looks through its files."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[], AlbumContent]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The albums of a dataset by name, and what was refused before it could be said to belong to one of them."""

    albums: tuple[AlbumSource, ...]
    refused: tuple[Refused, ...] = ()


def printable(text: str | Path) -> str:
    """A name as it may be printed: one line, valid Unicode."""
    text = str(text)
    return text if text.isprintable() else ascii(text)[1:-1]


def plain_name(text: str) -> str:
    """A name for a file or folder made of letters, digits, dots and hyphens; never empty, hidden or long."""
    name = re.sub(r"[^\w.+]+", "-", text.encode("utf-8", "replace").decode()).replace("_", "-").strip("-.")
    if len(name.encode()) > _MAX_NAME_BYTES:
        mark = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
        name = name.encode()[: _MAX_NAME_BYTES - 9].decode("utf-8", "ignore").strip("-.") + "-" + mark
    return name or "unnamed"


def unique_name(text: str, taken: set[str]) -> str:
    """`plain_name`, with a number behind it where that is taken; the result is added to `taken`."""
    name = base = plain_name(text)
    number = 2
    while name.lower() in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name.lower())
    return name


def album_name(*parts: str) -> str:
    """The folder name of an album, its parts joined by underscores. UserError for a part that cannot be in one."""
    for part in parts:
        if not part or not part.isprintable() or part.startswith(".") or "/" in part or "\\" in part:
            raise UserError(f"{printable(part)!r} cannot be an album's name; rename it")
    name = "_".join(parts)
    if len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        raise UserError(f"{printable(name)[:40]!r}... is longer than {_MAX_NAME_BYTES} bytes; give it a shorter name")
    return name


def select_albums(albums: Sequence[AlbumSource], subjects: str) -> tuple[AlbumSource, ...]:
    """Those whose name or one of whose keys fits a pattern of `subjects`. UserError for a pattern that fits none."""
    patterns = [pattern.strip() for pattern in subjects.split(",") if pattern.strip()]
    if not patterns:
        return tuple(albums)
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = {
            album.name for album in albums if any(fnmatch.fnmatchcase(k, pattern) for k in (album.name, *album.keys))
        }
        if not fitting:
            there = ", ".join(album.name for album in albums[:5])
            raise UserError(f"subjects: {printable(pattern)!r} fits no album of the dataset (it has {there}, ...).")
        chosen |= fitting
    return tuple(album for album in albums if album.name in chosen)


def list_outfits(
    files: SourceFolder,
    root: Path,
    is_outfit: Callable[[Path], bool],
    make: Callable[[Path], Callable[[], AlbumContent]],
) -> Listing:
    """The albums of ROOT/<subject>/<outfit>, named <subject>_<outfit>; `make` gives what reads such a folder."""
    albums: dict[str, AlbumSource] = {}
    refused: list[Refused] = []
    for subject in files.folders(root):
        try:
            found = [folder for folder in files.folders(subject) if is_outfit(folder)]
        except UserError as error:
            refused.append(Refused(files.relative(subject), str(error)))
            continue
        for folder in found:
            try:
                name = album_name(subject.name, folder.name)
                if name in albums:
                    raise UserError(f"has the same album name {name} as another folder; rename it")
            except UserError as error:
                refused.append(Refused(files.relative(folder), str(error)))
                continue
            keys = (subject.name, f"{subject.name}/{folder.name}")
            albums[name] = AlbumSource(name=name, keys=keys, read=make(folder))
    return Listing(albums=tuple(albums.values()), refused=tuple(refused))


def draw(photos: Sequence[PhotoSource], number: int | None, *, seed: int, album: str) -> tuple[PhotoSource, ...]:
    """`number` of the photos, in their order; which ones depends on the seed and the album's name only.

    Ranked by a hash of each photo's name, so a smaller number is part of a larger one.
    """
    if number is None or number >= len(photos):
        return tuple(photos)

    def rank(photo: PhotoSource) -> bytes:
        return hashlib.sha256(f"{seed}\0{album}\0{photo.stem}".encode("utf-8", "replace")).digest()

    kept = {photo.stem for photo in sorted(photos, key=rank)[:number]}
    return tuple(photo for photo in photos if photo.stem in kept)
