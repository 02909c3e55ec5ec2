"""The verbs that make and measure the shipped weights: `pretrain` and `card`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_PARTS = ("prior", "parser")
_FOLDERS = {"prior": "mini", "parser": "mini_parser"}


def pretrain(arguments: argparse.Namespace) -> int:
    """The small diffusion prior, or the small parser, trained on the studio's renders."""
    from trainer.config import config_path, load_dataclass

    yaml_path = config_path(arguments.config) if arguments.config else None
    out = Path(arguments.out or f"out/{arguments.part}")
    if arguments.part == "parser":
        from trainer.parser_training_config import ParserTrainingConfig

        parser_config = load_dataclass(ParserTrainingConfig, yaml_path, arguments.overrides)
        from trainer.parser_training import run_parser_training

        print(run_parser_training(parser_config, out))
        return 0
    from trainer.pretrain_config import PretrainConfig

    config = load_dataclass(PretrainConfig, yaml_path, arguments.overrides)
    from trainer.pretrain import run_pretrain

    print(run_pretrain(config, out))
    return 0


def card(arguments: argparse.Namespace) -> int:
    """What shipped weights can do, on people they have never seen, with a sheet of pictures to look at."""
    from trainer.config import PROJECT_ROOT, load_dataclass
    from trainer.prior_card_config import CardConfig, ParserCardConfig

    weights = arguments.weights or f"weights/{_FOLDERS[arguments.part]}"
    out = Path(arguments.out)
    if arguments.part == "parser":
        parser_config = load_dataclass(ParserCardConfig, None, arguments.overrides)
        from trainer.parser_card import run_parser_card

        print(json.dumps(run_parser_card(PROJECT_ROOT / weights, parser_config, out), indent=2))
        return 0
    config = load_dataclass(CardConfig, None, arguments.overrides)
    from modules.diffusion.backbone import Backbone, BackboneConfig
    from trainer.prior_card import run_card

    backbone = Backbone.load(BackboneConfig(path=weights), root=PROJECT_ROOT)
    print(json.dumps(run_card(backbone, config, out), indent=2))
    return 0


def add_verbs(add: Any) -> None:
    """Put both verbs into the command line; `add(verb, module)` makes a verb's parser."""
    part = {"choices": _PARTS, "default": "prior", "help": "which of the two (default: %(default)s)"}
    if child := add(pretrain, "trainer.pretrain"):
        child.add_argument("--part", **part)
        child.add_argument("--config", metavar="NAME", help="configs/NAME.yaml or a YAML file")
        child.add_argument("--out", metavar="DIR", help="where it goes (default: out/prior or out/parser)")
    if child := add(card, "trainer.prior_card"):
        child.add_argument("--part", **part)
        child.add_argument(
            "weights", metavar="WEIGHTS", nargs="?", help="a diffusers folder, a hub id, or a parser's folder"
        )
        child.add_argument("--out", metavar="DIR", default="out/card", help="where it goes (default: %(default)s)")
