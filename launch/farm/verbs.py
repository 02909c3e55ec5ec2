"""The verb `farm`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from modules.errors import UserError

_PREFIX = "farm."


def farm(arguments: argparse.Namespace) -> int:
    """Many albums: packs of them, scheduled by Ray Tune, into a dataset."""
    from launch.farm.config import FarmConfig
    from trainer.config import load_config, load_dataclass

    words = [word.removeprefix(_PREFIX) for word in arguments.overrides if word.startswith(_PREFIX)]
    settings = load_dataclass(FarmConfig, None, words)
    config = load_config(arguments.config, [word for word in arguments.overrides if not word.startswith(_PREFIX)])
    if not arguments.out:
        raise UserError("Say with --out where the dataset goes.")
    from launch.farm.driver import run_farm

    dataset = Path(arguments.out)
    result = run_farm([Path(source) for source in arguments.albums], dataset, config, settings)
    done = sum(record.state == "done" for record in result.records.values())
    failed = [record for record in result.records.values() if record.state == "failed"]
    print(f"{done} of {len(result.records)} albums done.")
    print(f"Index: {dataset / 'index.parquet'}  Page: {dataset / 'index.html'}")
    for record in failed:
        print(f"Album {record.name}: {record.reason}.", file=sys.stderr)
    if result.stopped is not None:
        print("Stopped; run the same command again to go on.", file=sys.stderr)
        return 128 + (signal.SIGTERM if result.stopped == signal.SIGUSR1 else result.stopped)
    return 1 if failed else 0


def add_verbs(add: Any) -> None:
    """Put the verb into the command line; `add(verb, module)` makes a verb's parser."""
    if child := add(farm, "launch.farm.driver"):
        child.add_argument(
            "albums",
            metavar="ALBUMS",
            nargs="+",
            help="a folder of album folders, or a list of them (.txt, .jsonl, .parquet)",
        )
        child.add_argument("--out", metavar="DATASET", help="where the dataset goes")
        child.add_argument("--config", metavar="NAME", help="configs/NAME.yaml or a YAML file")
