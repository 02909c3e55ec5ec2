"""A search on Ray Tune: one trial per point of the space, one process per training, and schedulers that survive a kill.

ASHA. Rung r of R trains with f ** (r - R) of the steps, f being the reduction factor, and ends with an evaluation.
Every rung is a whole training and not the first part of a longer one: learning rates and noise levels follow the number
of steps, so that a short training shows how a setting does, while the first ninth of a long one would show its
beginning. What does not depend on steps is not done again. With three rungs and a factor of three a trial that goes all
the way costs 1.44 trainings. Nine trials cost 3 trainings in the textbook and somewhat more here: a trial goes on as
soon as it is among the best so far, which early ones always are.

PBT. A generation is a whole training of the population. After it the worst take over the values of one of the best,
change them, and link its finished stages; a stage whose settings are the same by then is not done again, and a trial
that keeps its values costs nothing. Weights are never carried over into a training with other settings: the result of a
stage would depend on what was tried before, and `run --config best.yaml` could not make it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from launch.farm.cluster import ray_cluster
from launch.search_space import draw_points
from launch.tuning_config import Search
from launch.tuning_results import read_results, write_summary
from launch.tuning_trial import run_rung
from modules.errors import UserError
from trainer.metrics_table import format_figure

_NAME = "search"
_CHECKPOINT = "rung.json"
# A trial whose node or worker dies is begun again so many times; its training goes on from its checkpoints.
_MAX_DEATHS = 3
_OBJECT_STORE_MB = 128


def drive(search: Search) -> None:
    """Do a search, or what is left of it; results are in files when this returns.

    Raises:
        UserError: a trial asks for more than the machines have, or could not be done for want of disk and the like.
        KeyboardInterrupt: after Ctrl-C.
    """
    storage = Path(search.out) / "ray"
    with _ray(search):
        grid = _tuner(search, storage).fit()
    if grid.num_errors:
        # The last line of a worker's traceback says what it was.
        line = str(grid.errors[0]).strip().splitlines()[-1].rpartition("Error: ")[2].rstrip(".")
        raise UserError(
            f"{grid.num_errors} trial(s) could not be done: {line}. Mend that and run the same command again to go on."
        )
    if grid.num_terminated < len(grid):
        raise KeyboardInterrupt


def train_trial(drawn: dict[str, Any], search: Search) -> None:
    """A trial from the rung after its last checkpoint to the last one; runs in a worker of Ray."""
    name, done = tune.get_context().get_trial_name(), 0
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            done = json.loads((Path(folder) / _CHECKPOINT).read_text())["rung"]
    for rung in range(done + 1, search.tune.last_rung + 1):
        result = run_rung(search, name, rung, drawn["point"])
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _CHECKPOINT).write_text(json.dumps({"rung": rung}))
            report = {search.tune.metric: result.value, "rung": rung, "budget": _budget(search, rung)}
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


class RememberingHalving(ASHAScheduler):
    """ASHA that knows after a restart what the trials before it have reached; Ray's own forgets.

    Args:
        search: what is searched.
    """

    def __init__(self, search: Search) -> None:
        super().__init__(
            time_attr="budget",
            grace_period=1,
            reduction_factor=search.tune.reduction_factor,
            max_t=_budget(search, search.tune.num_rungs),
        )
        self._search = search

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        # What Ray has not heard of yet the trial reports again, from its file.
        heard = (trial.last_result or {}).get("rung", 0)
        for result in read_results(self._search):
            if result.trial == str(trial) and result.rung <= heard:
                value = (self._metric_op or 1.0) * result.value
                self._trial_info[trial.trial_id].on_result(trial, _budget(self._search, result.rung), value)


class RememberingPopulation(PopulationBasedTraining):
    """PBT in generations, which knows after a restart where its trials are; Ray's own forgets.

    Args:
        search: what is searched.
    """

    def __init__(self, search: Search) -> None:
        super().__init__(
            time_attr="rung",
            perturbation_interval=1,
            quantile_fraction=search.tune.quantile,
            custom_explore_fn=_Change(search),
            log_config=False,
            synch=True,
        )

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        result = trial.last_result or {}
        if "rung" in result:
            own = self._trial_state[trial]
            self._save_trial_state(own, result["rung"], result, trial)
            own.last_perturbation_time = result["rung"]
            if trial.status == Trial.PENDING:
                # It waits for the others, as it did before.
                trial.set_status(Trial.PAUSED)
        reached = [state.last_train_time for known, state in self._trial_state.items() if not known.is_finished()]
        self._next_perturbation_sync = 1 + min(reached, default=0)


class _Change:
    """What PBT calls to change the values of a copied trial; it can be pickled."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        point = self.search.changed(config["drawn"]["point"], random.Random())
        return {**config, "drawn": {**config["drawn"], "point": point}}


class _Progress(tune.Callback):
    """A line on standard error for every rung, and tables that are up to date."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        metric, last = self.search.tune.metric, self.search.tune.last_rung
        shown = format_figure(metric, result[metric])
        print(f"{trial}: {metric} {shown} at rung {result['rung']} of {last}", file=sys.stderr, flush=True)
        write_summary(self.search, finished=False)


def _tuner(search: Search, storage: Path) -> tune.Tuner:
    # Ray asks for a function of the configuration alone.
    def trial(config: dict[str, Any]) -> None:
        train_trial(config["drawn"], search)

    resources = {"cpu": search.tune.cpus_per_trial, "gpu": search.tune.gpus_per_trial}
    trainable = tune.with_resources(trial, resources)
    if tune.Tuner.can_restore(str(storage / _NAME)):
        return tune.Tuner.restore(str(storage / _NAME), trainable, resume_unfinished=True, restart_errored=True)
    points = draw_points(search.dimensions, search.tune.num_trials, search.tune.seed)
    digits = len(str(len(points)))
    drawn = [{"name": f"trial_{index:0{digits}d}", "point": point} for index, point in enumerate(points, start=1)]
    scheduler: TrialScheduler
    match search.tune.scheduler:
        case "asha":
            scheduler = RememberingHalving(search)
        case "pbt":
            scheduler = RememberingPopulation(search)
        case "none":
            scheduler = FIFOScheduler()
    return tune.Tuner(
        trainable,
        param_space={"drawn": tune.grid_search(drawn)},
        tune_config=tune.TuneConfig(
            metric=search.tune.metric,
            mode="max" if search.tune.higher_is_better else "min",
            scheduler=scheduler,
            max_concurrent_trials=search.tune.max_concurrent or None,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=_NAME,
            storage_path=str(storage),
            stop={"rung": search.tune.last_rung},
            verbose=0,
            callbacks=[_Progress(search)],
            failure_config=tune.FailureConfig(max_failures=_MAX_DEATHS),
            # All checkpoints are kept: of a newer one the state that is restored may not know yet.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None),
        ),
    )


def _name(trial: Trial) -> str:
    return str(trial.config["drawn"]["name"])


def _budget(search: Search, rung: int) -> int:
    """Steps of a rung, in units of the first rung's."""
    return search.tune.reduction_factor ** (rung - 1)


@contextlib.contextmanager
def _ray(search: Search) -> Iterator[None]:
    """A Ray of its own on this machine, or the cluster that RAY_ADDRESS names."""
    # What is restored after a kill is not older than so many seconds.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
    with ray_cluster("", object_store_mb=_OBJECT_STORE_MB) as ray:
        found = ray.cluster_resources()
        for kind, num in (("CPU", search.tune.cpus_per_trial), ("GPU", search.tune.gpus_per_trial)):
            if num > found.get(kind, 0):
                setting = f"tune.{kind.lower()}s_per_trial"
                raise UserError(f"{setting} is {num:g}, but Ray finds {found.get(kind, 0):g} {kind}(s): ask for less.")
        yield
