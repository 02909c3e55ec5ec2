"""Metrics files, and trackers that must never stop a training."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import numpy as np
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
    (logger,) = build_loggers("jsonl", tmp_path)
    assert isinstance(logger, JsonlLogger)
    assert (logger.name, logger.version) == ("jsonl", 0)
    logger.log_hyperparams({})


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_a_missing_package_is_said_before_the_training(tmp_path, monkeypatch, kind):
    class Absent:
        def __init__(self, **kwargs):
            raise ModuleNotFoundError(kind)

    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger", Absent)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=f"runtime.logger is '{kind}'.*not installed"):
        build_loggers(kind, tmp_path)


PICTURE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


class FakeBoard(FaultyTracker):
    """What `TensorBoardLogger` offers for pictures and numbers, kept instead of written."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.numbers: list[tuple[dict[str, float], int]] = []
        self.pictures: list[tuple[str, np.ndarray, int, str]] = []

    @property
    def experiment(self):
        return self

    def log_metrics(self, metrics, step=None):
        self.numbers.append((metrics, step))

    def add_image(self, tag, img_tensor, global_step, dataformats):
        if tag == "faulty":
            raise OSError("no room")
        self.pictures.append((tag, img_tensor, global_step, dataformats))


@pytest.fixture
def fake_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger", FakeBoard)


def test_tensorboard_gets_pictures_and_numbers_at_steps_over_all_phases(tmp_path: Path, fake_board: None) -> None:
    for start_step, purged in ((0, 0), (100, 101)):
        file, board = build_loggers("tensorboard", tmp_path, start_step=start_step, first_step=100)
        assert isinstance(board, SafeLogger)
        assert isinstance(board.inner, FakeBoard)
        assert board.inner.options == {
            "save_dir": tmp_path / "trackers",
            "name": "",
            "version": "",
            "purge_step": purged,
        }
    for logger in (file, board):
        logger.log_metrics({"loss": 1.0}, 7)
        logger.log_image("samples/ada", PICTURE, 110)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 107, "loss": 1.0}]
    assert board.inner.numbers == [({"loss": 1.0}, 107)]
    assert board.inner.pictures == [("samples/ada", PICTURE, 110, "HWC")]


def test_a_board_that_refuses_a_picture_is_switched_off(
    tmp_path: Path, fake_board: None, caplog: pytest.LogCaptureFixture
) -> None:
    _, board = build_loggers("tensorboard", tmp_path)
    for name in ("faulty", "faulty", "samples/ada"):
        board.log_image(name, PICTURE, 0)
    assert [record.getMessage() for record in caplog.records] == ["FakeBoard failed and is switched off: no room"]
    assert board.inner.pictures == []


def test_a_tracker_without_pictures_goes_on_without() -> None:
    tracker = FaultyTracker()
    SafeLogger(tracker).log_image("samples/ada", PICTURE, 0)
    assert tracker.num_calls == 0


def test_tensorboard_itself_shows_pictures_and_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start_step in (0, 4):
        _, board = build_loggers("tensorboard", tmp_path, start_step=start_step)
        for step in range(start_step, 6):
            board.log_metrics({"loss": 10.0 * start_step + step}, step)
            board.log_image("samples/ada", PICTURE, step + 1)
        board.finalize("success")
    events = EventAccumulator(str(tmp_path / "trackers"), size_guidance={"images": 0}).Reload()
    found = {event.step: event.value for event in events.Scalars("loss")}
    assert {step: found[step] for step in (0, 3, 5)} == {0: 0.0, 3: 3.0, 5: 45.0}
    assert [event.step for event in events.Images("samples/ada")] == [1, 2, 3, 4, 5, 6]
    assert (events.Images("samples/ada")[0].width, events.Images("samples/ada")[0].height) == (4, 2)
