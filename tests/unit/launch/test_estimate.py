"""Time and memory of a run: the arithmetic by hand, and the measurement on a tiny model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from launch.estimate import StepCosts, backbone_folder, estimate, model_cells, num_subjects
from launch.step_costs import measure
from modules.errors import UserError
from tests.tiny_album import tiny_album
from tests.tiny_backbone import write_tiny_backbone
from trainer.config import RunConfig, load_config

COSTS = StepCosts(
    device="CPU",
    start_s=10.0,
    token_step_s=1.0,
    joint_step_s=2.0,
    geometry_step_s={1: 3.0, 2: 5.0},
    texture_step_s={1: 1.0, 2: 2.0},
    drawn_row_s=0.1,
    memory_gib=1.5,
    free_gib=4.0,
    crowding=2.0,
)
OVERRIDES = (
    "booth.token_phase.steps=10",
    "booth.joint_phase.steps=20",
    "booth.num_prior_samples=5",
    "booth.num_synthetic_people=10",
    "geometry.steps=7",
    "texture.steps=4",
    "texture.texture_size=1024",
    "runtime.visuals_every_steps=15",
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


def config(out: Path, *words: str) -> RunConfig:
    return load_config(None, [*OVERRIDES, f"out={out}", *words])


def test_by_hand(tmp_path: Path) -> None:
    found = estimate(COSTS, config(tmp_path), num_assets=3, gender="woman", has_truth=False)
    # 20 steps of two rows for 10 pictures; and 10 steps of two rows for 5 pictures before, within and after 30 steps.
    drawn = 20 * 2 * 10 + 10 * 2 * 5 * 3
    expected = {
        "start": 10.0,
        "prior images": 20 * 2 * 5 * 0.1 + 10 * 0.3,
        "personalisation": 10 * 1.0 + 20 * 2.0 + drawn * 0.1,
        "geometry": 7 * 3.0,
        "texture": 4 * 1.0 + 9.0 / 4,
        "export": 5.0,
    }
    assert found.parts == pytest.approx(expected)
    assert found.seconds == pytest.approx(sum(expected.values()))
    assert found.crowded_seconds == pytest.approx(2 * found.seconds)
    assert (found.memory_gib, found.free_gib, found.whole_steps) == (1.5, 4.0, True)


def test_truth_brings_a_baseline_and_figures(tmp_path: Path) -> None:
    found = estimate(COSTS, config(tmp_path), num_assets=3, gender="woman", has_truth=True)
    assert found.parts["geometry"] == pytest.approx(7 * 5.0)
    assert found.parts["texture"] == pytest.approx(4 * 2.0 + 2 * 9.0 / 4)
    assert found.parts["export"] == pytest.approx(20.0)
    assert num_subjects(config(tmp_path, "baselines=false"), has_truth=True) == 1


def test_prior_images_that_are_there_cost_nothing(tmp_path: Path) -> None:
    for name in ("samples-woman-1234abcd", "synthetic-64-10"):
        (tmp_path / ".cache" / name).mkdir(parents=True)
        (tmp_path / ".cache" / name / "manifest.json").touch()
    settings = config(tmp_path)
    assert estimate(COSTS, settings, num_assets=3, gender="woman", has_truth=False).parts["prior images"] == 0
    other = estimate(COSTS, settings, num_assets=3, gender="man", has_truth=False)
    assert other.parts["prior images"] == pytest.approx(20.0)


def test_a_model_that_is_not_here_is_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nobody/such-a-model .* is not on this machine yet"):
        backbone_folder("nobody/such-a-model")
    with pytest.raises(UserError, match="neither a folder"):
        backbone_folder("no_such_folder")
    absent = load_config(None, ["backbone.path=nobody/such-a-model"])
    assert model_cells(absent) == 64
    with pytest.raises(UserError, match="not on this machine yet"):
        measure(absent, tiny_album(), {1})


def test_the_models_cells_are_those_of_its_latents(backbone: Path) -> None:
    assert model_cells(load_config(None, [f"backbone.path={backbone}"])) == 8
    assert json.loads((backbone / "unet" / "config.json").read_text())["sample_size"] == 8


def test_a_distilled_truth_is_not_estimated() -> None:
    with pytest.raises(UserError, match=r"guidance\.method is truth"):
        measure(load_config(None, ["baselines=false", "geometry.guidance.method=truth"]), tiny_album(), {1})


def test_whole_steps_are_measured_where_they_are_short(backbone: Path, tmp_path: Path) -> None:
    import torch

    settings = config(tmp_path, f"backbone.path={backbone}", "geometry.grid.spacing_m=0.06", "booth.photos_per_step=2")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    costs = measure(settings, tiny_album(), {2})
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert costs.whole_steps
    seconds = [costs.start_s, costs.token_step_s, costs.joint_step_s, costs.drawn_row_s]
    seconds += [*costs.geometry_step_s.values(), *costs.texture_step_s.values()]
    assert all(0 < value < 60 for value in seconds)
    # A step has six rows, forward and backward.
    assert costs.joint_step_s > costs.drawn_row_s
    assert set(costs.geometry_step_s) == set(costs.texture_step_s) == {2}
    assert 0.1 < costs.memory_gib < 16
    assert costs.crowding >= 1
    found = estimate(costs, settings, num_assets=3, gender="woman", has_truth=True)
    assert found.seconds > 0
    assert list(tmp_path.iterdir()) == []

    single = measure(settings, tiny_album(), {1}, budget_s=0)
    assert not single.whole_steps
    # Four views with nfsd's three prompts, by hand.
    assert single.geometry_step_s[1] > 12 * single.drawn_row_s
    assert single.joint_step_s == pytest.approx(6 * 3.3 * single.drawn_row_s)
    assert single.memory_gib >= 1.5


def test_costs_hold_plain_values() -> None:
    json.dumps(dataclasses.asdict(COSTS))
