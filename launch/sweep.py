"""Sweeps of Weights & Biases (configs/sweeps): are they valid, and what would an agent run? Asked without a server."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from launch.search_space import Dimension, Kind, check_dimensions, draw_points, parse_dimension, point_words
from modules.errors import UserError
from trainer.album_run import SUBJECT
from trainer.config import RunConfig, load_config
from trainer.metrics_table import FIGURES

# What the summary of a run's page calls the figures of the avatar; see trainer.loggers.
SUMMARY_NAMES: Mapping[str, str] = {f"evaluate/{SUBJECT}/{name}": name for name in FIGURES}
_ARGUMENTS = "${args_no_hyphens}"
_METHODS = ("grid", "random", "bayes")
_KEYS = {
    *("name", "description", "project", "entity", "program", "method", "metric", "run_cap", "early_terminate"),
    *("parameters", "command"),
}
_DISTRIBUTIONS: Mapping[str, Kind] = {
    "uniform": "uniform",
    "log_uniform_values": "log_uniform",
    "int_uniform": "int_uniform",
}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep.

    Attributes:
        path: its file.
        method: how W&B chooses points.
        figure: of trainer.metrics_table.FIGURES, that is optimised.
        dimensions: the space.
        command: as the file says it, with W&B's macros.
    """

    path: Path
    method: Literal["grid", "random", "bayes"]
    figure: str
    dimensions: tuple[Dimension, ...]
    command: tuple[str, ...]

    def points(self, num: int, seed: int = 0) -> list[dict[str, Any]]:
        """So many points as the method would choose them at first, when nothing is known yet."""
        if self.method != "grid":
            return draw_points(self.dimensions, num, seed)
        names = [dimension.key for dimension in self.dimensions]
        grid = itertools.product(*(dimension.values for dimension in self.dimensions))
        return [dict(zip(names, values, strict=True)) for values in itertools.islice(grid, num)]

    def words(self, point: Mapping[str, Any]) -> list[str]:
        """The words that an agent runs for a point, `/usr/bin/env` left out."""
        found: list[str] = []
        for part in self.command:
            found += point_words(point) if part == _ARGUMENTS else [] if part == "${env}" else [part]
        return found


def read_sweep(path: Path) -> Sweep:
    """A sweep's file, checked: every value of its parameters makes a valid configuration of the command that it runs.

    Raises:
        UserError: the file cannot be read, W&B would refuse it, a parameter is no key of the configuration or has a
            value that the key cannot have, the metric is none that a run shows, or the command is not this project's.
    """
    where = f"'{path}'"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the sweep {where}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(document, dict) or not {"method", "metric", "parameters", "command"} <= set(document):
        raise UserError(f"{where} is no sweep: it needs method, metric, parameters and command.")
    if unknown := set(document) - _KEYS:
        raise UserError(f"{where} has an unknown key '{min(unknown)}', expected {', '.join(sorted(_KEYS))}.")
    if document["method"] not in _METHODS:
        raise UserError(f"{where}: method is {document['method']!r}, expected one of {', '.join(_METHODS)}.")
    sweep = Sweep(
        path=path,
        method=document["method"],
        figure=_figure(document["metric"], where),
        dimensions=_dimensions(document["parameters"], document["method"], where),
        command=_command(document["command"], where),
    )
    arguments = _arguments(sweep)
    check_dimensions(
        sweep.dimensions,
        where,
        config=arguments.config,
        overrides=arguments.overrides,
        reserved={"out": "every run has a folder of its own"},
    )
    return sweep


def run_config(sweep: Sweep, point: Mapping[str, Any]) -> RunConfig:
    """The configuration that a point's run would have. Raises UserError as `load_config` does."""
    arguments = _arguments(sweep, point)
    return load_config(arguments.config, arguments.overrides)


def _figure(metric: Any, where: str) -> str:
    name = str(metric.get("name")) if isinstance(metric, dict) else ""
    if name not in SUMMARY_NAMES:
        raise UserError(f"{where}: metric is {name!r}, expected one of {', '.join(SUMMARY_NAMES)}.")
    figure = SUMMARY_NAMES[name]
    goal = "maximize" if FIGURES[figure].higher_is_better else "minimize"
    if metric.get("goal") != goal:
        raise UserError(f"{where}: goal is {metric.get('goal')!r}, expected {goal} for {name}.")
    return figure


def _dimensions(parameters: Any, method: str, where: str) -> tuple[Dimension, ...]:
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"{where}: parameters is empty, expected keys of the configuration.")
    found = []
    for key, said in parameters.items():
        if not isinstance(said, dict):
            raise UserError(f"{where}: '{key}' is {said!r}, expected values, value, or min and max.")
        dimension = parse_dimension(str(key), said["value"] if set(said) == {"value"} else said, where, _DISTRIBUTIONS)
        if method == "grid" and dimension.kind not in ("fixed", "values"):
            raise UserError(f"{where}: '{key}' is a range, expected values: a grid has to end.")
        found.append(dimension)
    return tuple(found)


def _command(command: Any, where: str) -> tuple[str, ...]:
    words = [str(part) for part in command] if isinstance(command, Sequence) and not isinstance(command, str) else []
    plain = [part for part in words if part != "${env}"]
    if plain[:4] != ["python", "-m", "launch", "run"] or plain.count(_ARGUMENTS) != 1:
        raise UserError(
            f"{where}: command is {' '.join(words) or command!r}, expected ${{env}} python -m launch run ALBUM "
            f"{_ARGUMENTS}, so that parameters come as key=value words."
        )
    if not any(part.startswith("out=") and "WANDB_RUN_ID" in part for part in plain):
        raise UserError(
            f"{where}: command gives all runs one folder, expected a word such as "
            "out=out/sweeps/NAME/${oc.env:WANDB_RUN_ID,local}."
        )
    return tuple(words)


def _arguments(sweep: Sweep, point: Mapping[str, Any] | None = None) -> argparse.Namespace:
    from launch.__main__ import parse

    return parse(sweep.words(point or {})[3:])
