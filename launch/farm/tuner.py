"""The glue between a farm and Ray Tune: one trial for each pack's part, suggested one at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher

from launch.farm.queue import Nothing
from launch.farm.worker import PARTS

if TYPE_CHECKING:
    from launch.farm.driver import _Farm


class PackSearcher(Searcher):
    """Suggests packs as a searcher suggests hyper-parameters, which lets Tune schedule as many as there is room for."""

    def __init__(self, farm: _Farm) -> None:
        super().__init__(metric="done", mode="max")
        self.farm = farm

    def suggest(self, trial_id: str) -> Any:
        found = self.farm.suggest(trial_id)
        if found is Nothing.EVER:
            return Searcher.FINISHED
        return None if isinstance(found, Nothing) else found

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.farm.ended(trial_id, result, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the dataset is the farm's memory."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a farm is started again, not restored")


class _Watch(tune.Callback):
    def __init__(self, farm: _Farm) -> None:
        self.farm = farm

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.farm.begun(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.farm.tick()


def run_tuner(farm: _Farm, trainable: Callable[[], type] | None, storage: Path) -> None:
    """Run trials until the farm has none left. `trainable` gives their class; PackTrial when None."""
    if trainable is None:
        from launch.farm.trial import PackTrial

        chosen: type = PackTrial
    else:
        chosen = trainable()
    # Tune looks for the result files that its loggers would have written, and says of every trial that there are none.
    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tuner", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Tune unpickles this with every trial: nothing of the farm's may hang on it.
    held = {part: farm.resources(part) for part in PARTS}
    resources = tune.with_resources(chosen, lambda config: tune.PlacementGroupFactory([held[config["part"]]]))
    tuner = tune.Tuner(
        resources,
        tune_config=tune.TuneConfig(
            search_alg=PackSearcher(farm),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"{trial.config['pack']}-{trial.config['part']}",
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name="farm", storage_path=str(storage), verbose=0, callbacks=[_Watch(farm)]),
    )
    tuner.fit()
