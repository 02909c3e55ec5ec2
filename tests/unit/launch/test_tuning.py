"""A search without Ray: its file, what a trial trains and comes to, and the best configuration."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from launch.tuning import build_search, run_search
from launch.tuning_config import Search, TuneConfig
from launch.tuning_results import WORST, RungResult, best_result, mean_value, read_results, write_result, write_summary
from launch.tuning_trial import TrialStoppedError, run_rung
from modules.errors import UserError
from trainer.artifacts import StageFolder, write_json
from trainer.config import PROJECT_ROOT, load_config
from trainer.metrics_table import FIGURES

SPACE = """
tune: {metric: chamfer_cm, num_trials: 3, num_rungs: 2, reduction_factor: 4, max_crashes: 2}
space:
  geometry.lr: {values: [1.0e-3, 2.0e-3]}
  texture.guidance.method: {values: [sds, truth]}
  baselines: {values: [true, false]}
  booth.token_phase.steps: 0
"""
POINT = {"geometry.lr": 2e-3, "texture.guidance.method": "sds", "baselines": False, "booth.token_phase.steps": 0}


@pytest.fixture
def search(tmp_path: Path) -> Search:
    for name in ("ann", "bob"):
        (tmp_path / "albums" / name / "ground_truth").mkdir(parents=True)
    (tmp_path / "space.yaml").write_text(SPACE.replace("[sds, truth]", "[sds, asd]"))
    albums = [tmp_path / "albums" / name for name in ("ann", "bob")]
    return build_search(
        tmp_path / "space.yaml", albums, config="mini", overrides=["seed=3", "out=x"], out=tmp_path / "out"
    )


class Training:
    """Stands for `run_child`: finishes albums with the figures given, and keeps the commands."""

    def __init__(self, *ends: tuple[int, dict[str, float], str]) -> None:
        self.ends, self.commands, self.environments = list(ends), [], []

    def __call__(self, command: list[str], *, log: Path, env: dict[str, str], cwd: Path) -> int:
        assert cwd == PROJECT_ROOT
        self.commands.append([str(part) for part in command])
        self.environments.append(env)
        code, figures, said = self.ends.pop(0)
        out = Path(next(word for word in reversed(self.commands[-1]) if word.startswith("out=")).removeprefix("out="))
        for album, figure in figures.items():
            stage = StageFolder(out / album / "evaluate", "evaluate")
            key = stage.key({}, {}, 0)
            metrics = {"avatar": {"corrected": {"chamfer_cm": figure}}}
            write_json(stage.working(key) / "protocols.json", metrics)
            stage.commit(key, inputs={}, config={}, seed=0)
        with log.open("a") as file:
            file.write(said)
        return code


def test_a_trial_trains_all_albums_with_its_values_and_its_share_of_the_steps(search: Search, monkeypatch: Any) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    training = Training((0, {"ann": 2.0, "bob": 4.0}, "done\n"))
    result = run_rung(search, "trial_1", 1, POINT, run=training)
    (command,) = training.commands
    assert command[1:7] == ["-m", "launch", "run", *search.albums, "--config"]
    config = load_config(command[7], command[8:])
    whole = load_config("mini")
    assert (config.seed, config.geometry.lr, config.baselines) == (3, 2e-3, False)
    assert config.geometry.steps == round(whole.geometry.steps / 4)
    assert config.texture.steps == round(whole.texture.steps / 4)
    assert config.booth.joint_phase.steps == round(whole.booth.joint_phase.steps / 4)
    assert config.booth.token_phase.steps == 0
    assert config.out == str(search.rung_folder("trial_1", 1))
    assert config.runtime.wandb_group == "out"
    assert "SLURM_NTASKS" not in training.environments[0]
    assert training.environments[0]["CUDA_VISIBLE_DEVICES"] == ""
    assert (result.value, result.figures, result.failed) == (3.0, {"ann": 2.0, "bob": 4.0}, {})
    assert read_results(search) == [result]
    assert search.words(POINT, 2)[-1] == "booth.token_phase.steps=0"


def test_what_is_known_is_not_trained_again(search: Search) -> None:
    training = Training((0, {"ann": 2.0, "bob": 4.0}, ""))
    first = run_rung(search, "trial_1", 2, POINT, run=training)
    assert run_rung(search, "trial_1", 2, POINT, run=training) == first
    other = run_rung(search, "trial_2", 2, POINT, run=training)
    again = run_rung(search, "trial_3", 2, POINT, run=training)
    assert len(training.commands) == 1
    assert other.value == first.value
    assert other.taken_from == again.taken_from == "trial_1, rung 2"


def test_albums_that_fail_count_as_the_worst(search: Search) -> None:
    training = Training((1, {"ann": 2.0}, "a warning\nAlbum bob: it has no photos.\n"))
    result = run_rung(search, "trial_1", 2, POINT, run=training)
    assert result.value == (2.0 + WORST["chamfer_cm"]) / 2
    assert result.failed == {"bob": "it has no photos"}


def test_a_training_that_dies_is_started_again(search: Search) -> None:
    death = (137, {}, "Killed\n")
    training = Training(death, (1, {}, "Traceback\nKeyError: 1\n"), (0, {"ann": 2.0, "bob": 4.0}, ""))
    assert run_rung(search, "trial_1", 2, POINT, run=training).failed == {}
    result = run_rung(search, "trial_2", 1, POINT, run=Training(death, death, death))
    assert result.value == WORST["chamfer_cm"]
    assert result.failed["ann"].startswith("the training died (exit code 137): see ")


def test_a_full_disk_is_no_fault_of_the_values(search: Search) -> None:
    with pytest.raises(TrialStoppedError, match="trial_1, rung 2: The disk of 'x' is full"):
        run_rung(search, "trial_1", 2, POINT, run=Training((2, {"ann": 2.0}, "The disk of 'x' is full.\n")))
    assert read_results(search) == []


def test_values_that_exclude_each_other_fail_without_a_training(search: Search) -> None:
    point = {**POINT, "texture.guidance.method": "truth", "baselines": True}
    result = run_rung(search, "trial_1", 1, point, run=Training())
    assert result.value == WORST["chamfer_cm"]
    assert "baselines must be false" in result.failed["ann"]


def test_changed_points_never_exclude_each_other(search: Search) -> None:
    generator = random.Random(0)
    truth = dataclasses.replace(search.dimensions[1], values=("sds", "truth"))
    search = dataclasses.replace(search, dimensions=(search.dimensions[0], truth, *search.dimensions[2:]))
    found = [search.changed({**POINT, "baselines": True}, generator) for _ in range(30)]
    assert not any(point["baselines"] and point["texture.guidance.method"] == "truth" for point in found)
    assert len({json.dumps(point) for point in found}) > 2


def result_of(trial: str, rung: int, value: float, share: float = 1.0, **changes: Any) -> RungResult:
    point = {**POINT, "geometry.lr": 1e-3 if trial == "trial_2" else 2e-3}
    return RungResult(trial=trial, rung=rung, share=share, point=point, words=[], value=value, **changes)


def test_the_best_has_all_steps_and_all_albums(search: Search) -> None:
    results = [
        result_of("trial_1", 1, 0.5, share=0.25),
        result_of("trial_1", 2, 3.0),
        result_of("trial_2", 2, 2.0),
        result_of("trial_3", 2, 1.0, failed={"ann": "no photos"}),
    ]
    assert best_result(search, results) is results[2]
    higher = dataclasses.replace(search, tune=TuneConfig(metric="psnr"))
    assert best_result(higher, results) is results[1]
    assert best_result(search, results[:1]) is None


def test_the_best_configuration_is_one_that_a_run_takes(search: Search) -> None:
    write_result(search, result_of("trial_1", 2, 3.0))
    write_result(search, result_of("trial_2", 1, 2.5, share=0.25))
    write_result(search, result_of("trial_2", 2, 2.0))
    write_result(search, result_of("trial_3", 1, 51.0, share=0.25, failed={"bob": "no photos"}))
    text = write_summary(search, finished=True)
    config = load_config(str(Path(search.out) / "best.yaml"))
    assert config == load_config("mini", ["seed=3", "geometry.lr=1.0e-3", *search.words(POINT, 2)[3:]])
    assert (config.geometry.lr, config.seed, config.out) == (1e-3, 3, "out")
    assert "| trial_2 | 0.001 | sds | False | 2.500 | **2.000** |" in text
    assert "- trial_3, rung 1, bob: no photos" in text
    document = json.loads((Path(search.out) / "tune.json").read_text())
    assert (document["best"]["trial"], document["finished"], len(document["results"])) == ("trial_2", True, 4)


def test_without_a_best_there_is_no_configuration(search: Search) -> None:
    write_result(search, result_of("trial_3", 1, 51.0, share=0.25))
    assert "no best configuration" in write_summary(search, finished=True)
    assert "not finished" in write_summary(search, finished=False)
    assert not (Path(search.out) / "best.yaml").exists()


def test_a_finished_search_is_only_shown_and_another_one_is_refused(search: Search) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    write_json_of(search)
    write_result(search, result_of("trial_2", 2, 2.0))
    write_summary(search, finished=True)
    text, whole = run_search(search)
    assert whole
    assert "Best: trial_2, 2.000" in text
    with pytest.raises(UserError, match="holds another search"):
        run_search(dataclasses.replace(search, overrides=("seed=4",)))


def write_json_of(search: Search) -> None:
    Path(search.out).mkdir()
    write_json(Path(search.out) / "search.json", search)


def test_the_worst_of_every_figure_is_known() -> None:
    assert WORST.keys() == FIGURES.keys()
    assert mean_value("psnr", {"ann": 30.0}, 3) == 10.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("chamfer_cm", "champfer_cm", "metric is 'champfer_cm', did you mean 'chamfer_cm'"),
        ("num_trials", "num_trails", "Unknown key 'tune.num_trails'.*Did you mean 'tune.num_trials'"),
        ("num_rungs: 2", "num_rungs: 0", "num_rungs is 0, expected at least 1"),
        ("reduction_factor: 4", "reduction_factor: 1", "reduction_factor is 1, expected at least 2"),
        ("num_rungs: 2", "scheduler: pbt, max_concurrent: 2", "max_concurrent is 2, expected 0"),
        ("num_rungs: 2", "quantile: 0.6", "quantile is 0.6, expected more than 0 and at most 0.5"),
        ("num_rungs: 2", "resample: -0.1", "resample is -0.1, expected 0 to 1"),
        ("num_rungs: 2", "cpus_per_trial: 0", "cpus_per_trial is 0.0, expected a number above 0"),
        ("geometry.lr", "geometry.rate", "Unknown key 'geometry.rate' in the search space"),
        ("booth.token_phase.steps", "out", "'out' cannot be searched"),
        ("chamfer_cm", "lpips", "needs evaluation.lpips_backbone"),
    ],
)
def test_mistakes_are_said_before_anything_starts(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "ann" / "ground_truth").mkdir(parents=True)
    (tmp_path / "space.yaml").write_text(SPACE.replace("[sds, truth]", "[sds, asd]").replace(old, new))
    with pytest.raises(UserError, match=message):
        build_search(tmp_path / "space.yaml", [tmp_path / "ann"], config="mini", overrides=[], out=tmp_path / "out")


def test_albums_need_a_truth_and_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("space: {geometry.lr: {values: [0.001, 0.002]}}")
    for folder in ("a/ann", "b/ann"):
        (tmp_path / folder / "ground_truth").mkdir(parents=True)
    (tmp_path / "bob").mkdir()
    options: Any = {"config": "mini", "out": tmp_path / "out"}
    with pytest.raises(UserError, match="bob has no ground_truth folder"):
        build_search(tmp_path / "space.yaml", [tmp_path / "bob"], overrides=[], **options)
    with pytest.raises(UserError, match="Two albums are called 'ann'"):
        build_search(tmp_path / "space.yaml", [tmp_path / "a/ann", tmp_path / "b/ann"], overrides=[], **options)
    words = ["evaluation.protocol=reference"]
    with pytest.raises(UserError, match="is of the corrected protocol"):
        build_search(tmp_path / "space.yaml", [tmp_path / "a/ann"], overrides=words, **options)
    (tmp_path / "space.yaml").write_text("tune: {num_trials: 2}")
    with pytest.raises(UserError, match="has no space"):
        build_search(tmp_path / "space.yaml", [tmp_path / "a/ann"], overrides=[], **options)
