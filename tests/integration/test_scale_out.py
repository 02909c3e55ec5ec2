"""PuzzleBooth in two processes: the same training as in one, whatever the strategy, and every end of it."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from modules.errors import UserError
from tests.integration.smoke import config_of, leftovers, personalization, smoke_overrides, start
from trainer.loggers import read_metrics
from trainer.pipeline import run_pack

TWO = ("runtime.devices=2",)
BOOTH = ("runtime.log_every_steps=1", "runtime.visuals_every_steps=0", "booth.compose_fraction=0.5")
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")


def train(albums: list[Path], out: Path, backbone: Path, *words: str) -> dict[str, list[dict[str, float]]]:
    """Losses of every step by album."""
    results = run_pack(albums, config_of(out, backbone, *BOOTH, *words), until="booth")
    assert [result.failed for result in results] == [None] * len(albums)
    return {result.name: read_metrics(result.folder / "booth" / "metrics.jsonl") for result in results}


def assert_close(one: Path, two: Path, tolerance: float) -> None:
    first, second = personalization(one), personalization(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        difference = np.linalg.norm(second[name] - value) / max(np.linalg.norm(value), 1e-6)
        assert difference < tolerance, f"{name} differs by {difference:.1e}"


@pytest.fixture(scope="module")
def alone(albums: list[Path], backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    train(albums, out, backbone)
    return out


def test_two_processes_train_a_pack_like_one(albums: list[Path], backbone: Path, alone: Path, tmp_path: Path) -> None:
    found = train(albums, tmp_path, backbone, *TWO)
    for name, rows in found.items():
        expected = read_metrics(alone / name / "booth" / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(8))
        for one, two in zip(expected, rows, strict=True):
            assert two == pytest.approx(one, rel=2e-3)
        assert_close(alone / name, tmp_path / name, 2e-3)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_the_stages_behind_go_on_in_one_process(albums: list[Path], backbone: Path, tmp_path: Path) -> None:
    (result,) = run_pack(albums[:1], config_of(tmp_path, backbone, *BOOTH, *TWO), until="texture")
    assert result.failed is None
    assert [row["step"] for row in read_metrics(result.folder / "texture" / "metrics.jsonl")] == list(range(8))


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_has_the_losses_of_ddp(albums: list[Path], backbone: Path, tmp_path: Path, stage: int) -> None:
    expected = train(albums[:1], tmp_path / "ddp", backbone, *TWO)
    found = train(albums[:1], tmp_path / "zero", backbone, *TWO, f"runtime.strategy=deepspeed_stage_{stage}")
    for one, two in zip(expected["woman"], found["woman"], strict=True):
        assert two == pytest.approx(one, rel=2e-3)
    assert_close(tmp_path / "ddp" / "woman", tmp_path / "zero" / "woman", 5e-3)


@pytest.mark.slow
def test_fully_sharded_fine_tuning_has_the_losses_of_ddp(albums: list[Path], backbone: Path, tmp_path: Path) -> None:
    words = ("booth.adapter.kind=full", "booth.joint_phase.lr=1.0e-4")
    expected = train(albums[:1], tmp_path / "ddp", backbone, *TWO, *words)
    found = train(albums[:1], tmp_path / "fsdp", backbone, *TWO, *words, "runtime.strategy=fsdp")
    for one, two in zip(expected["woman"], found["woman"], strict=True):
        assert two == pytest.approx(one, rel=2e-3)
    # Of all weights together: a key's bias has no gradient, for softmax does not see it, and AdamW makes steps of its
    # rounding errors. The weights move by half a percent.
    one, two = (personalization(tmp_path / name / "woman") for name in ("ddp", "fsdp"))
    squares = [((two[name] - value) ** 2).sum() for name, value in one.items()]
    assert sum(squares) < (2e-4) ** 2 * sum((value**2).sum() for value in one.values())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("deepspeed_stage_2", marks=needs_deepspeed)])
def test_a_terminated_group_goes_on_where_it_was(
    albums: list[Path], backbone: Path, tmp_path: Path, strategy: str
) -> None:
    words = (*BOOTH, *TWO, f"runtime.strategy={strategy}", "booth.joint_phase.steps=40")
    straight = train(albums[:1], tmp_path / "straight", backbone, *words[len(BOOTH) :])
    overrides = smoke_overrides(tmp_path / "stopped", backbone, *words)
    run = start("run", albums[0], *overrides)
    metrics: list[Path] = []
    while not metrics or len(read_metrics(metrics[0])) < 8:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.1)
        metrics = list((tmp_path / "stopped" / ".packs").glob("booth-*/metrics.jsonl"))
    run.send_signal(signal.SIGTERM)
    assert run.wait(90) == 143
    assert "go on" in run.communicate()[1]
    assert len(read_metrics(metrics[0])) < 40
    workers = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert workers.stdout == "", "no worker is left"
    resumed = train(albums[:1], tmp_path / "stopped", backbone, *words[len(BOOTH) :])
    for one, two in zip(straight["woman"], resumed["woman"], strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert_close(tmp_path / "straight" / "woman", tmp_path / "stopped" / "woman", 1e-4)


@pytest.mark.slow
def test_what_a_worker_says_reaches_the_user(albums: list[Path], backbone: Path, tmp_path: Path) -> None:
    words = ("booth.photos_per_step=1", "booth.weight_prior=0", "booth.weight_synthetic=0")
    with pytest.raises(UserError, match="A step has 1 images, which 2 processes or accumulations cannot share"):
        train(albums[:1], tmp_path, backbone, *TWO, *words)


def test_a_launcher_that_is_not_there_is_said(albums: list[Path], backbone: Path, tmp_path: Path) -> None:
    words = ("runtime.num_nodes=2", "runtime.node_launcher=no-such-command -x")
    with pytest.raises(UserError, match=r"runtime\.node_launcher cannot be started \(No such file .*no-such-command"):
        train(albums[:1], tmp_path, backbone, *words)


def test_what_cannot_be_shared_out_is_refused(albums: list[Path], backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fsdp shards a full fine-tuning, found booth\.adapter\.kind=lora"):
        train(albums[:1], tmp_path, backbone, *TWO, "runtime.strategy=fsdp")


def test_more_devices_than_there_are_is_refused(
    albums: list[Path], backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"runtime\.devices is 2, but this machine shows 1 GPU"):
        train(albums[:1], tmp_path, backbone, *TWO, "runtime.accelerator=auto")
