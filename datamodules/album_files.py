"""The files of an album folder: listed by name, read only when regular, small enough and inside the folder."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Collection
from pathlib import Path

from datamodules.asset_names import canonical_asset
from modules.errors import UserError

# Every asset takes a mask of every photo, and a word of its own in prompts; nobody wears this many things.
MAX_ASSETS = 40


class AlbumFolder:
    """Access to one album's files. Raises UserError when the folder is missing, a file, or out of reach."""

    def __init__(self, folder: Path, max_file_bytes: int) -> None:
        try:
            if not folder.exists():
                raise UserError(f"the album folder {folder} does not exist; give the folder that holds the photos")
            if not folder.is_dir():
                raise UserError(f"the album {folder} is a file, but a folder of photos was expected")
            self.root = folder.resolve()
        except OSError as error:
            raise UserError(f"the album {folder} cannot be reached ({error.strerror}); check the path") from None
        self.path = folder
        self.max_file_bytes = max_file_bytes

    def entries(self, folder: Path) -> list[Path]:
        """The visible entries of the album or of a folder in it, by name. Nothing is opened."""
        try:
            if not folder.resolve().is_relative_to(self.root):
                raise UserError(f"{folder} is a link that leads out of the album; copy its files into the album")
            names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
        except OSError as error:
            raise UserError(f"{folder} cannot be read ({error.strerror}); check its permissions") from None
        return [folder / name for name in names]

    def read(self, path: Path) -> bytes:
        """The bytes of a file. Raises UserError whose message completes "photo.jpg ..." to a sentence."""
        try:
            if not path.resolve().is_relative_to(self.root):
                raise UserError("is a link that leads out of the album; copy the file into the album")
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UserError("is not a regular file")
            if status.st_size > self.max_file_bytes:
                raise UserError(f"has {status.st_size} bytes, more than album.max_file_bytes={self.max_file_bytes}")
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror}); check that it is there and its permissions") from None
        except RuntimeError:
            raise UserError("is a link that leads to itself") from None


def counted_asset(text: str, counted: set[str]) -> str:
    """`canonical_asset` of a mask's name, put into `counted`. Raises ValueError as it does, and for too many assets."""
    name = canonical_asset(text)
    if name not in counted and len(counted) == MAX_ASSETS:
        raise ValueError(f"would be one asset more than the {MAX_ASSETS} that an album can have; remove or join some")
    counted.add(name)
    return name


def split_mask_name(name: str, stems: Collection[str], known_assets: Collection[str]) -> tuple[str, str] | None:
    """A mask's stem "a_b_tank_top" to a photo's stem and an asset's name, both of which may hold underscores.

    A split whose asset is known (named in the album's JSON) is preferred, then the longest photo stem. None when no
    photo of the album has such a stem.
    """
    name = unicodedata.normalize("NFC", name)
    cuts = [index for index, character in enumerate(name) if character == "_" and name[:index] in stems]
    splits = [(name[:cut], name[cut + 1 :]) for cut in cuts if name[cut + 1 :]]

    def rank(split: tuple[str, str]) -> tuple[bool, int]:
        try:
            known = canonical_asset(split[1]) in known_assets
        except ValueError:
            known = False
        return known, len(split[0])

    return max(splits, key=rank, default=None)
