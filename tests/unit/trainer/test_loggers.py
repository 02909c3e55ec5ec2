"""Metrics files, and trackers that must never stop a training."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from lightning.pytorch.loggers import Logger

from modules.errors import UserError
from trainer.loggers import JsonlLogger, SafeLogger, build_loggers, read_metrics


class FaultyTracker(Logger):
    """A real logger whose server has gone."""

    name = "faulty"
    version = 3

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def log_metrics(self, metrics, step=None):
        self.num_calls += 1
        raise ConnectionError("no server")

    def log_hyperparams(self, params, *args, **kwargs):
        self.num_calls += 1


def test_rows_of_later_steps_and_a_cut_line_are_dropped_on_resume(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    logger = JsonlLogger(path)
    for step in range(4):
        logger.log_metrics({"loss": step / 2, "epoch": 0}, step)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 3]
    JsonlLogger(path, start_step=2).log_metrics({"loss": 9}, 2)
    assert read_metrics(path) == [{"step": 0, "loss": 0.0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 9.0}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="is full"):
        logger.log_metrics({"loss": 1.0}, 0)


def test_a_broken_tracker_is_switched_off_with_one_warning(caplog):
    tracker = FaultyTracker()
    logger = SafeLogger(tracker)
    logger.log_hyperparams({"a": 1})
    for step in range(3):
        logger.log_metrics({"loss": 1.0}, step)
    logger.save()
    logger.finalize("success")
    assert tracker.num_calls == 2
    assert [record.getMessage() for record in caplog.records] == ["FaultyTracker failed and is switched off: no server"]
    assert (logger.name, logger.version) == ("faulty", 3)


def test_the_file_is_always_written(tmp_path):
    (logger,) = build_loggers("jsonl", tmp_path, name="booth")
    assert isinstance(logger, JsonlLogger)
    assert (logger.name, logger.version) == ("jsonl", 0)
    logger.log_hyperparams({})


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_a_missing_package_is_said_before_the_training(tmp_path, monkeypatch, kind):
    class Absent:
        def __init__(self, **kwargs):
            raise ModuleNotFoundError(kind)

    name = {"wandb": "WandbLogger", "tensorboard": "TensorBoardLogger"}[kind]
    monkeypatch.setattr(f"lightning.pytorch.loggers.{name}", Absent)
    with pytest.raises(UserError, match=f"runtime.logger is '{kind}'.*not installed"):
        build_loggers(kind, tmp_path, name="booth")


@pytest.mark.parametrize(("key", "offline"), [(None, True), ("secret", False)])
def test_weights_and_biases_is_offline_without_a_key(tmp_path, monkeypatch, key, offline):
    calls = []

    class Recorded(FaultyTracker):
        def __init__(self, **kwargs):
            super().__init__()
            calls.append(kwargs)

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", Recorded)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    for _ in range(2):
        assert isinstance(build_loggers("wandb", tmp_path, name="booth")[1], SafeLogger)
    assert calls[0]["offline"] is offline
    assert calls[0]["id"] == calls[1]["id"]
