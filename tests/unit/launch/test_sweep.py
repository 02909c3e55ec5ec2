"""Sweeps of Weights & Biases, looked at without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.sweep import SUMMARY_NAMES, read_sweep, run_config
from modules.errors import UserError
from trainer.config import PROJECT_ROOT

SWEEPS = sorted((PROJECT_ROOT / "configs" / "sweeps").glob("*.yaml"))
COMMAND = [
    *("${env}", "python", "-m", "launch", "run", "album", "--config", "mini", "${args_no_hyphens}"),
    "out=out/${oc.env:WANDB_RUN_ID,local}",
]
GOOD: dict[str, Any] = {
    "method": "random",
    "metric": {"name": "evaluate/avatar/chamfer_cm", "goal": "minimize"},
    "parameters": {
        "geometry.lr": {"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"},
        "booth.adapter.rank": {"values": [4, 8]},
        "baselines": {"value": False},
    },
    "command": COMMAND,
}


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_every_shipped_sweep_is_valid_and_its_runs_can_be_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "one")
    sweep = read_sweep(path)
    points = sweep.points(5)
    assert len(points) == 5
    for point in points:
        config = run_config(sweep, point)
        assert config.out.endswith("/one")
        assert config.runtime.logger == "wandb"
        for key, value in point.items():
            found: Any = config
            for part in key.split("."):
                found = getattr(found, part)
            assert found == value
    # The album of the command is one that can be measured.
    assert (PROJECT_ROOT / sweep.words(points[0])[4] / "ground_truth").is_dir()


def test_shipped_sweeps_are_there() -> None:
    assert len(SWEEPS) >= 2


def test_words_are_what_an_agent_runs(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path / "sweep.yaml"))
    words = sweep.words({"geometry.lr": 0.002, "baselines": False})
    assert words == [
        *("python", "-m", "launch", "run", "album", "--config", "mini"),
        *("geometry.lr=0.002", "baselines=false", "out=out/${oc.env:WANDB_RUN_ID,local}"),
    ]
    (point,) = sweep.points(1)
    assert 1e-4 <= point["geometry.lr"] <= 1e-2
    assert point["booth.adapter.rank"] in (4, 8)
    assert point["baselines"] is False


def test_a_grid_is_walked_in_order_and_ends(tmp_path: Path) -> None:
    parameters = {"booth.adapter.rank": {"values": [4, 8]}, "seed": {"values": [0, 1]}}
    sweep = read_sweep(write(tmp_path / "sweep.yaml", method="grid", parameters=parameters))
    ranks = [(point["booth.adapter.rank"], point["seed"]) for point in sweep.points(9)]
    assert ranks == [(4, 0), (4, 1), (8, 0), (8, 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method is 'magic', expected one of grid, random, bayes"),
        ({"metrics": {}}, "unknown key 'metrics'"),
        ({"metric": {"name": "loss", "goal": "minimize"}}, "metric is 'loss', expected one of evaluate/avatar/"),
        ({"metric": {"name": "evaluate/avatar/psnr", "goal": "minimize"}}, "goal is 'minimize', expected maximize"),
        ({"parameters": {}}, "parameters is empty"),
        ({"parameters": {"geometry.lr": 0.1}}, "expected values, value, or min and max"),
        ({"parameters": {"geometry.rate": {"value": 1}}}, "Unknown key 'geometry.rate'.*Did you mean"),
        ({"parameters": {"geometry.steps": {"values": [10, -1]}}}, "'geometry.steps' cannot be -1: .*negative"),
        (
            {"parameters": {"geometry.lr": {"min": 1, "max": 2, "distribution": "beta"}}},
            "distribution 'beta', expected",
        ),
        ({"parameters": {"out": {"value": "x"}}}, "'out' cannot be searched"),
        ({"method": "grid", "parameters": {"geometry.lr": {"min": 0.1, "max": 0.2}}}, "a grid has to end"),
        ({"command": ["${program}", "${args}"]}, "expected .*python -m launch run ALBUM"),
        ({"command": COMMAND[:-1]}, "gives all runs one folder"),
        ({"command": [*COMMAND, "boot.lr=1"]}, "Unknown key 'boot'"),
    ],
)
def test_mistakes_are_said_in_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_sweep(write(tmp_path / "sweep.yaml", **changes))


def test_files_that_are_no_sweeps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read the sweep"):
        read_sweep(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        read_sweep(tmp_path / "broken.yaml")
    (tmp_path / "other.yaml").write_text("geometry: {lr: 1}")
    with pytest.raises(UserError, match="is no sweep"):
        read_sweep(tmp_path / "other.yaml")


def test_names_of_the_summary_are_those_of_the_table() -> None:
    assert SUMMARY_NAMES["evaluate/avatar/chamfer_cm"] == "chamfer_cm"
