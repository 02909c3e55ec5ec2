"""The verb `import`: albums out of a dataset or a table."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from modules.errors import OutputError, UserError

_SUBJECTS = "subjects="
_SHOWN = 5


def import_albums(arguments: argparse.Namespace) -> int:
    """Album folders out of a dataset (puzzle_ioi, 4d_dress) or a table of photos (csv)."""
    from datamodules.readers.config import ImportConfig
    from trainer.config import load_dataclass

    # YAML would read a subject's name such as 00122 as an octal number.
    words = [word for word in arguments.overrides if not word.startswith(_SUBJECTS)]
    config = load_dataclass(ImportConfig, None, words)
    for word in arguments.overrides:
        if word.startswith(_SUBJECTS):
            config = dataclasses.replace(config, subjects=word.removeprefix(_SUBJECTS).strip("[]"))
    from datamodules.readers.datasets import open_dataset
    from datamodules.readers.source import select_albums

    files, listing, default_photos = open_dataset(arguments.dataset, Path(arguments.source), config)
    chosen = select_albums(listing.albums, config.subjects)
    out = Path(arguments.out)
    if out.resolve() == files.root:
        raise UserError(f"--out {out} is the source itself: give another folder for the albums.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"--out {out} is a file, but a folder for the albums was expected.") from None
    from datamodules.readers.album_folder import import_album

    for refused in listing.refused:
        print(f"{refused.name} {refused.reason}.", file=sys.stderr)
    failed = 0
    for index, album in enumerate(chosen, 1):
        label = f"[{index}/{len(chosen)}] {album.name}"
        try:
            done = import_album(album, out, files, config, reader=arguments.dataset, default_photos=default_photos)
        except OutputError:
            raise
        except UserError as error:
            failed += 1
            print(f"{label}: failed, it {_sentence(error)}", file=sys.stderr, flush=True)
            continue
        parts = [f"{done.num_photos} photos", f"{done.num_masks} masks"]
        parts += ["ground truth"] if done.has_truth else []
        parts += [] if done.new else ["was there already"]
        print(f"{label}: {', '.join(parts)}", flush=True)
        for name, reason in done.refused[:_SHOWN] if done.new else ():
            print(f"  not taken: {name} {reason}", flush=True)
        if done.new and len(done.refused) > _SHOWN:
            print(f"  and {len(done.refused) - _SHOWN} more, see {done.folder / 'import.json'}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} albums in {out}")
    return 1 if failed else 0


# `import` is a word of Python's own, so no function can be written with that name.
import_albums.__name__ = "import"


def _sentence(error: UserError) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith(".") else text + "."


def add_verb(add: Any) -> None:
    """Put the verb into the command line; `add(verb, module)` makes a verb's parser."""
    if child := add(import_albums, "datamodules.readers.datasets"):
        child.add_argument("dataset", choices=("puzzle_ioi", "4d_dress", "csv"), help="what kind of source it is")
        child.add_argument("source", metavar="SOURCE", help="the dataset's folder, or the table's file")
        child.add_argument("--out", metavar="ALBUMS", required=True, help="where the album folders go")
