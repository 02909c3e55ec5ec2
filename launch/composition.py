"""The verbs `compose`, `edit` and `tryon`: new avatars out of finished ones."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.results import print_results
from modules.errors import UserError

if TYPE_CHECKING:
    from trainer.compose import Source
    from trainer.compose_config import ComposeConfig
    from trainer.config import RunConfig


def compose(arguments: argparse.Namespace) -> int:
    """A new avatar from pieces of several albums: A:face,haircut B:shirt,trousers."""
    from datamodules.pieces import parse_pieces

    pieces = parse_pieces(arguments.pieces)
    settings = _settings(arguments)
    config = _config(arguments, pieces[0].folder)
    for piece in pieces:
        if not piece.folder.is_dir():
            raise UserError(f"{piece.folder} is not a folder: give an album's output, for example out/ALBUM.")
    from trainer.compose import Composition, run_compositions

    sources = _sources([piece.folder for piece in pieces], config)
    chosen = tuple((source, piece.assets) for source, piece in zip(sources, pieces, strict=True))
    name = arguments.name or "+".join(_plain("_".join([source.folder.name, *names])) for source, names in chosen)
    composition = Composition(name=name, pieces=chosen, truth=_truth(arguments))
    return 0 if print_results(run_compositions([composition], config, settings)) else 1


def edit(arguments: argparse.Namespace) -> int:
    """A finished avatar with assets changed in words: jacket="blue leather jacket", cap=, "a red cap"."""
    from datamodules.word_edits import parse_edits
    from trainer.config import RunConfig, all_keys

    known = set(all_keys(RunConfig))
    words = [*arguments.edits, *arguments.overrides]
    arguments.overrides = [word for word in words if "=" in word and _is_setting(word.partition("=")[0], known)]
    edits = [word for word in words if word not in arguments.overrides]
    if not edits:
        raise UserError('Nothing is to be changed: say for example jacket="blue leather jacket".')
    folder = Path(arguments.folder)
    config = _config(arguments, folder)
    settings = _settings(arguments)
    from trainer.compose import Composition, read_source, run_compositions

    source = read_source(folder)
    changes = parse_edits(edits, source.album.asset_names)
    name = arguments.name or _plain("_".join([folder.resolve().name, *edits]))
    composition = Composition(name=name, pieces=((source, changes.kept),), said=changes.said, truth=_truth(arguments))
    return 0 if print_results(run_compositions([composition], config, settings)) else 1


def tryon(arguments: argparse.Namespace) -> int:
    """Figures of try-on: synthetic people in each other's clothes, against the truth that the studio renders."""
    from trainer.config import load_dataclass
    from trainer.likeness_config import LikenessConfig

    prefix = "likeness."
    words = [word.removeprefix(prefix) for word in arguments.overrides if word.startswith(prefix)]
    likeness = load_dataclass(LikenessConfig, None, words)
    arguments.overrides = [word for word in arguments.overrides if not word.startswith(prefix)]
    settings = _settings(arguments)
    folders = [Path(folder) for folder in arguments.folder]
    config = _config(arguments, folders[0])
    rows = arguments.rows.split(",")
    from trainer.try_on import run_try_on, try_on_table

    document = run_try_on(
        folders,
        Path(arguments.albums),
        config,
        settings,
        rows=rows,
        num_swaps=arguments.swaps,
        likeness=likeness if arguments.booth_only else None,
    )
    print(try_on_table(document))
    return 0 if not any(swap["failed"] for swap in document["swaps"]) else 1


def add_verbs(add: Any) -> None:
    """Put the three verbs into the command line; `add(verb, module)` makes a verb's parser."""
    if child := add(compose, "trainer.compose"):
        child.add_argument("pieces", metavar="FOLDER:ASSET,ASSET", nargs="+", help="what to take, and of whom")
        _add_common(child, default_out="out", named=True)
        child.add_argument(
            "--mode", choices=("merge", "joint"), help="add adapters up (default), or train on the pieces"
        )
    if child := add(edit, "trainer.compose"):
        child.add_argument("folder", metavar="FOLDER", help="an album's output, for example out/ALBUM")
        child.add_argument(
            "edits", metavar="ASSET=WORDS", nargs="+", help="replace or add an asset; without words, take it away"
        )
        _add_common(child, default_out="out", named=True)
    if child := add(tryon, "trainer.try_on"):
        child.add_argument("folder", metavar="FOLDER", nargs="+", help="outputs of studio albums")
        child.add_argument(
            "--booth-only", action="store_true", help="stop after the personalisation: only the colours of samples"
        )
        child.add_argument("--albums", metavar="DIR", default="out/studio", help="the albums (default: %(default)s)")
        child.add_argument("--swaps", metavar="N", type=int, default=3, help="how many swaps (default: %(default)s)")
        child.add_argument(
            "--rows",
            metavar="A,B",
            default="merge,joint,unchanged",
            help="what is compared (default: %(default)s); words alone and the template come with merge",
        )
        _add_common(child, default_out="out/tryon", named=False)


def _add_common(child: argparse.ArgumentParser, *, default_out: str, named: bool) -> None:
    child.add_argument(
        "--config", metavar="NAME", help="configs/NAME.yaml or a YAML file (default: the first source's)"
    )
    child.add_argument("--out", metavar="DIR", default=default_out, help="where it goes (default: %(default)s)")
    child.add_argument("--weight", metavar="W", type=float, help="what each adapter counts for in a merge")
    if named:
        child.add_argument("--name", metavar="NAME", help="name of the result's folder")
        child.add_argument("--truth", metavar="DIR", help="a folder with ground_truth/ to measure against")


def _settings(arguments: argparse.Namespace) -> ComposeConfig:
    from trainer.compose_config import ComposeConfig

    settings = ComposeConfig()
    if getattr(arguments, "mode", None):
        settings = dataclasses.replace(settings, mode=arguments.mode)
    try:
        return dataclasses.replace(settings, weight=arguments.weight)
    except ValueError as error:
        raise UserError(f"--weight: {error}.") from None


def _config(arguments: argparse.Namespace, first: Path) -> RunConfig:
    """The configuration that was asked for, else the one that the first source was made with, else the defaults."""
    from trainer.config import load_config

    saved = first / "config.yaml"
    name = arguments.config or (str(saved) if saved.is_file() else None)
    return load_config(name, [*arguments.overrides, f"out={arguments.out}"])


def _sources(folders: Sequence[Path], config: RunConfig) -> list[Source]:
    """Finished personalisations; of an album the one in config.out, which is made when it is missing."""
    from trainer.compose import read_source

    albums = [folder for folder in folders if _is_album(folder)]
    trained: dict[Path, Path] = {}
    if albums:
        from trainer.pipeline import run_pack

        for album, result in zip(albums, run_pack(albums, config, until="booth"), strict=True):
            if result.failed is not None:
                raise UserError(f"Album {result.name}: {result.failed}.")
            trained[album] = result.folder
    return [read_source(trained.get(folder, folder)) for folder in folders]


def _is_album(folder: Path) -> bool:
    return not (folder / "booth").is_dir() and any((folder / name).is_dir() for name in ("image", "mask"))


def _is_setting(key: str, known: set[str]) -> bool:
    """Whether a word before "=" is a configuration's key, perhaps a misspelt one, and not an asset's name."""
    return "." in key or key in known


def _truth(arguments: argparse.Namespace) -> Path | None:
    return Path(arguments.truth) if arguments.truth else None


def _plain(text: str) -> str:
    """Words as a folder's name."""
    return re.sub(r"[^\w.+]+", "-", text).strip("-.")[:100]
