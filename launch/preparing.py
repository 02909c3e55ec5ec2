"""The verb `prepare`: photos in, checked assets out, before hours of training begin."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.results import one_line
from modules.errors import UserError

if TYPE_CHECKING:
    from datamodules.assets import PreparedAlbum
    from trainer.pipeline import AlbumResult

_EXIT_FAILED = 1
_MAX_NAME_BYTES = 255


def prepare(arguments: argparse.Namespace) -> int:
    """Photos to checked assets: the subject, masks, names and views; what cannot be used, with reasons."""
    from trainer.config import load_config

    out = [f"out={arguments.out}"] if arguments.out else []
    config = load_config(arguments.config, [*arguments.overrides, *out])
    albums = [Path(album) for album in arguments.album]
    if arguments.name and len(albums) > 1:
        raise UserError("--name fits one album only: leave it out, and each result has its album's name.")
    if arguments.name and len(os.fsencode(arguments.name)) > _MAX_NAME_BYTES:
        raise UserError(f"--name has more than {_MAX_NAME_BYTES} bytes, which no folder's name can have: shorten it.")
    for album in albums:
        if not album.is_dir():
            raise UserError(one_line(f"{album} is not a folder: give the folder that holds the album's photos."))
    from trainer.pipeline import run_pack

    try:
        results = run_pack(albums, config, names=[arguments.name] if arguments.name else None, until="assets")
    except UserError as error:
        raise type(error)(one_line(str(error))) from None
    return 0 if _print(results) else _EXIT_FAILED


def _print(results: Sequence[AlbumResult]) -> bool:
    from datamodules.assets import load_assets

    for result in results:
        if result.failed is not None:
            print(one_line(f"Album {result.name}: {result.failed}."), file=sys.stderr)
            continue
        print(*map(one_line, summary(load_assets(result.folder / "assets"))), sep="\n")
        sheet = result.folder / "assets" / "assets.png"
        print(one_line(f"  look at {sheet}; change it with: python -m launch review {result.folder}"))
    return all(result.failed is None for result in results)


def summary(album: PreparedAlbum) -> list[str]:
    """What was understood of an album, in lines."""
    present = album.present.sum(0)
    assets = [
        f"{name}{f' ({words})' if words else ''} in {count}"
        for name, words, count in zip(album.asset_names, album.asset_words, present, strict=True)
    ]
    known = [view for view in album.views if view]
    views = [f"{view} {known.count(view)}" for view in sorted(set(known), key=lambda view: (-known.count(view), view))]
    if len(known) < len(album.views):
        views.append(f"unknown {len(album.views) - len(known)}")
    lines = [
        f"{album.name}: {album.gender}, {len(album.stems)} photos, {len(album.set_aside)} set aside",
        f"  assets: {', '.join(assets)}",
        f"  views: {', '.join(views)}",
    ]
    lines += [f"  set aside: {item.name}: {item.reason}" for item in album.set_aside]
    lines += [f"  note: {note}" for note in album.notes]
    return lines


def add_verbs(add: Any) -> None:
    """Put `prepare` into the command line; `add(verb, module)` makes a verb's parser."""
    if child := add(prepare, "trainer.pipeline"):
        child.add_argument("album", metavar="ALBUM", nargs="+", help="a folder of photos; masks and words are optional")
        child.add_argument("--config", metavar="NAME", help="configs/NAME.yaml or a YAML file")
        child.add_argument("--out", metavar="DIR", help="where results go (default: out)")
        child.add_argument("--name", metavar="NAME", help="name of the result's folder (default: the album's)")
