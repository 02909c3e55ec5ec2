"""Settings of `tune`, and the file that holds them and the search space; light to import."""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launch.search_space import Dimension, change_point, check_dimensions, parse_dimension, point_words, word
from modules.errors import UserError
from trainer.config import RunConfig, load_config, load_dataclass
from trainer.metrics_table import FIGURES

# What a rung's share of the budget is a share of.
STEP_KEYS = ("booth.token_phase.steps", "booth.joint_phase.steps", "geometry.steps", "texture.steps")
_RESERVED = {"out": "every trial has a folder of its own"}


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How a search is done: the section `tune` of a search space's file.

    Attributes:
        metric: the figure of the avatar's row in the metrics table that decides, as a mean over the albums.
        scheduler: "asha" begins all trials with a small share of the steps and goes on with the best; "pbt" improves
            a population over generations; "none" trains every trial to its end.
        num_trials: points drawn from the space; the size of the population for "pbt".
        num_rungs: "asha" measures a trial so many times, the last time with all steps.
        reduction_factor: from rung to rung a trial has so many times the steps, and one of so many trials goes on.
        num_generations: "pbt" measures a trial so many times.
        quantile: share of the population that "pbt" replaces after a generation by changed copies of the best.
        resample: probability that a changed copy draws a value anew and not from nearby.
        max_concurrent: trials at a time; 0 for as many as the resources allow, and always so for "pbt".
        cpus_per_trial: CPU cores that a trial reserves.
        gpus_per_trial: GPUs, or a share of one, that a trial reserves; without it a trial sees no GPU.
        max_crashes: a training that dies is started again so many times, before its trial counts as failed.
        seed: of the points that are drawn.
    """

    metric: str = "chamfer_cm"
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    num_trials: int = 9
    num_rungs: int = 3
    reduction_factor: int = 3
    num_generations: int = 4
    quantile: float = 0.25
    resample: float = 0.25
    max_concurrent: int = 0
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_crashes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in FIGURES:
            near = difflib.get_close_matches(self.metric, FIGURES, n=1)
            hint = f"did you mean '{near[0]}'" if near else f"expected one of {', '.join(FIGURES)}"
            raise ValueError(f"metric is {self.metric!r}, {hint}")
        least_values = {
            "num_trials": 1,
            "num_rungs": 1,
            "reduction_factor": 2,
            "num_generations": 1,
            "max_concurrent": 0,
            "gpus_per_trial": 0,
            "max_crashes": 0,
            "seed": 0,
        }
        for name, least in least_values.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if not 0 < self.cpus_per_trial < float("inf") or not self.gpus_per_trial < float("inf"):
            raise ValueError(f"cpus_per_trial is {self.cpus_per_trial}, expected a number above 0")
        if not 0 < self.quantile <= 0.5:
            raise ValueError(f"quantile is {self.quantile}, expected more than 0 and at most 0.5")
        if not 0 <= self.resample <= 1:
            raise ValueError(f"resample is {self.resample}, expected 0 to 1")
        if self.scheduler == "pbt" and self.max_concurrent:
            raise ValueError(
                f'max_concurrent is {self.max_concurrent}, expected 0 with scheduler "pbt", whose trials wait for each '
                "other: limit them with cpus_per_trial or gpus_per_trial"
            )

    @property
    def higher_is_better(self) -> bool:
        """The metric's direction."""
        return FIGURES[self.metric].higher_is_better

    @property
    def last_rung(self) -> int:
        """How many times a trial is measured that goes all the way; rungs count from 1."""
        return {"asha": self.num_rungs, "pbt": self.num_generations, "none": 1}[self.scheduler]

    def share(self, rung: int) -> float:
        """Share of the steps at a rung, up to 1."""
        return float(self.reduction_factor) ** (rung - self.num_rungs) if self.scheduler == "asha" else 1.0


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """A search space's file.

    Attributes:
        tune: how the search is done.
        space: dotted key of the configuration to `{values: [...]}`, `{min, max, distribution}` or a fixed value.
    """

    tune: TuneConfig = field(default_factory=TuneConfig)
    space: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Search:
    """Everything that decides what a search does, the same in its driver and in every trial.

    Attributes:
        out: the search's folder, absolute.
        albums: folders with ground truth, absolute.
        config: of the run that is tuned, as `python -m launch run --config` takes it; None for the defaults.
        overrides: key=value words, likewise.
        tune: how the search is done.
        dimensions: the space.
    """

    out: str
    albums: tuple[str, ...]
    config: str | None
    overrides: tuple[str, ...]
    tune: TuneConfig
    dimensions: tuple[Dimension, ...]

    def trial_folder(self, name: str) -> Path:
        """Where a trial keeps its rungs."""
        return Path(self.out) / "trials" / name

    def rung_folder(self, name: str, rung: int) -> Path:
        """Where a trial's training at a rung writes its albums."""
        return self.trial_folder(name) / f"rung_{rung}"

    def best_config(self, point: Mapping[str, Any]) -> RunConfig:
        """The configuration of a point with all its steps. Raises UserError where its values exclude each other."""
        return load_config(self.config, [*self.overrides, *point_words(point)])

    def words(self, point: Mapping[str, Any], rung: int) -> list[str]:
        """What a rung's training changes in the configuration, its folder left out. Raises UserError likewise."""
        words = [word("runtime.wandb_group", Path(self.out).name), *self.overrides, *point_words(point)]
        share, config = self.tune.share(rung), self.best_config(point)
        if share < 1:
            for key in STEP_KEYS:
                steps: Any = config
                for part in key.split("."):
                    steps = getattr(steps, part)
                # A phase that is switched off stays so, and one that is not keeps at least a step.
                words.append(word(key, max(1, round(steps * share)) if steps else 0))
        return words

    def changed(self, point: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
        """A point near this one, with values that do not exclude each other."""
        for _ in range(20):
            found = change_point(self.dimensions, point, generator, resample=self.tune.resample)
            try:
                self.best_config(found)
            except UserError:
                continue
            return found
        return dict(point)


def read_space(path: Path, config: str | None = None, overrides: Sequence[str] = ()) -> SpaceConfig:
    """A search space's file, checked against the configuration that it is a space of.

    Raises:
        UserError: the file cannot be read, a section, setting or key is misspelt, or a value is out of its range.
    """
    found = load_dataclass(SpaceConfig, path)
    where = f"'{path}'"
    if not found.space:
        raise UserError(
            f"{where} has no space: say for example `space: {{geometry.lr: {{values: [1.0e-3, 2.0e-3]}}}}`."
        )
    check_dimensions(dimensions_of(found, path), where, config=config, overrides=overrides, reserved=_RESERVED)
    return found


def dimensions_of(space: SpaceConfig, path: Path) -> tuple[Dimension, ...]:
    """The dimensions of a file's space, in its order. Raises UserError."""
    return tuple(parse_dimension(str(key), said, f"'{path}'") for key, said in space.space.items())
