"""The verb `tune`; light to import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def tune(arguments: argparse.Namespace) -> int:
    """Settings that make the best avatars: a search with ASHA or PBT over albums with ground truth."""
    from launch.tuning import build_search, run_search

    search = build_search(
        Path(arguments.space),
        [Path(album) for album in arguments.album],
        config=arguments.config,
        overrides=arguments.overrides,
        out=Path(arguments.out),
    )
    text, whole = run_search(search)
    print(text, end="")
    return 0 if whole else 1


def add_verb(add: Any) -> None:
    """Put the verb into the command line; `add(verb, module)` makes a verb's parser."""
    if child := add(tune, "launch.tuning"):
        child.add_argument("space", metavar="SPACE.yaml", help="what is searched and how, see configs/tune")
        child.add_argument("album", metavar="ALBUM", nargs="+", help="folders with ground truth, from `studio`")
        child.add_argument("--config", metavar="NAME", help="configs/NAME.yaml or a YAML file that is tuned")
        child.add_argument("--out", metavar="DIR", default="out/tune", help="where it goes (default: %(default)s)")
