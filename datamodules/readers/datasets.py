"""The datasets that can be imported, by name."""

from __future__ import annotations

from pathlib import Path

from datamodules.readers.config import ImportConfig
from datamodules.readers.source import Listing, SourceFolder, printable
from modules.errors import UserError

DATASETS = ("puzzle_ioi", "4d_dress", "csv")


def open_dataset(name: str, source: Path, config: ImportConfig) -> tuple[SourceFolder, Listing, int | None]:
    """Access to a dataset's files, its albums, and how many photos of each are taken when nothing is said (None: all).

    Raises UserError when `source` is not what the reader expects.
    """
    from datamodules.readers import csv_manifest, four_d_dress, puzzle_ioi

    root = source
    if name == "csv":
        if not source.is_file():
            raise UserError(f"{printable(source)} is not a file: give the table, for example albums.csv.")
        root = source.parent
    files = SourceFolder(root, max_file_bytes=config.max_file_bytes, allow_outside=config.allow_outside)
    match name:
        case "puzzle_ioi":
            return files, puzzle_ioi.list_albums(files, config), None
        case "4d_dress":
            return files, four_d_dress.list_albums(files, config), four_d_dress.DEFAULT_PHOTOS
        case "csv":
            return files, csv_manifest.list_albums(files, files.root / source.name, config), None
    raise UserError(f"{name!a} is no dataset that can be imported; known are {', '.join(DATASETS)}.")
