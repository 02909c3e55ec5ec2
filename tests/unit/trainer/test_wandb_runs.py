"""Weights & Biases: one run per album, whatever happens to the process, and nothing that it does stops a training."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainer import loggers, tracking
from trainer.loggers import SafeLogger, build_loggers, finished_trackers
from trainer.result_tracking import track_album
from trainer.tracking import Background, Tracked, album_figures, album_metrics, mean_figures, run_id, wandb_mode

PICTURE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
KEYS = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_PROJECT", "WANDB_BASE_URL")


class FakeRun:
    """A run that keeps what it is given."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.id = options, options.get("id", "given")
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.defined: dict[str, str | None] = {}
        self.finished: int | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        assert self.finished is None
        self.logged.append(values)

    def finish(self, exit_code: int = 0) -> None:
        self.finished = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The package as far as it is called; `begun` holds its runs."""
    module: Any = ModuleType("wandb")
    module.run, module.begun = None, []
    module.Settings = SimpleNamespace
    module.Image = lambda image: ("image", Path(image).name if isinstance(image, str) else image.shape)
    module.Video = lambda path, format: ("video", Path(path).name)
    module.Object3D = lambda path: ("model", Path(path).name)

    def init(**options: Any) -> FakeRun:
        module.begun.append(FakeRun(options))
        return module.begun[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    loggers._RUNS.clear()
    yield module
    loggers._RUNS.clear()


def tracked(out: Path, *names: str, stage: str = "booth", group: str = "") -> Tracked:
    albums = {name: out / name for name in names}
    return Tracked(folder=out / "trackers", stage=stage, albums=albums, group=group, config={"seed": 3})


def settled() -> None:
    """What was logged so far has arrived."""
    assert loggers._RUNS[0].background.wait(10)


def test_a_row_is_split_by_albums() -> None:
    row = {"loss": 3.0, "epoch": 0, "album/ann/loss": 1.0, "album/bob/loss": 5.0}
    assert album_metrics(row, "ann", "booth") == {"booth/loss": 1.0, "booth/pack/loss": 3.0}
    assert album_metrics({"loss": 3.0}, "ann", "booth") == {"booth/loss": 3.0}
    assert album_metrics({"loss": 3.0}, "ann", "") == {"loss": 3.0}


def test_figures_have_the_names_of_the_table() -> None:
    metrics = {"avatar": {"corrected": {"psnr": 20, "lpips": {"absent": "no weights"}}, "reference": {"psnr": 18.0}}}
    assert album_figures(metrics, {"booth": 2}) == {
        "seconds/booth": 2.0,
        "evaluate/avatar/psnr": 20.0,
        "evaluate/avatar/reference/psnr": 18.0,
    }
    assert mean_figures([{"a": 1.0, "b": 1.0}, {"a": 3.0}]) == {"a": 2.0}
    assert mean_figures([]) == {}


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [(None, "", "offline"), ("WANDB_API_KEY", "secret", "online"), ("WANDB_MODE", "disabled", "disabled")],
)
def test_it_is_offline_without_a_key(
    fake_wandb: Any, monkeypatch: Any, variable: str, value: str, expected: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, value)
    assert wandb_mode() == expected


def test_a_login_counts_as_a_key(fake_wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://own.server/")
    assert wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine")
    assert wandb_mode() == "offline"


def test_stages_and_phases_of_an_album_share_one_run(tmp_path: Path, fake_wandb: Any) -> None:
    for stage, first_step in (("booth", 0), ("booth", 100), ("geometry", 0)):
        place = tracked(tmp_path / "out", "ann", "bob", stage=stage)
        _, logger = build_loggers("wandb", tmp_path / stage, first_step=first_step, trackers=place)
        logger.log_metrics({"loss": 1.0, "album/ann/loss": 0.5}, 7)
        logger.log_image("samples/bob", PICTURE, first_step + 8)
        logger.finalize("success")
    ann, bob = fake_wandb.begun
    assert [run.options["name"] for run in (ann, bob)] == ["ann", "bob"]
    assert [run.options["id"] for run in (ann, bob)] == [run_id(tmp_path / "out" / name) for name in ("ann", "bob")]
    assert ann.options["group"] == bob.options["group"] == "out"
    assert ann.options["mode"] == "offline"
    assert "resume" not in ann.options
    assert ann.options["dir"] == str(tmp_path / "out" / "trackers")
    pack = place.pack
    assert ann.options["tags"] == [pack]
    assert ann.options["config"] == {"seed": 3, "pack": pack, "num_albums": 2, "album_name": "ann"}
    assert [run.options["settings"].x_disable_stats for run in (ann, bob)] == [False, True]
    assert ann.logged == [
        {"booth/loss": 0.5, "booth/pack/loss": 1.0, "booth/step": 7},
        {"booth/loss": 0.5, "booth/pack/loss": 1.0, "booth/step": 107},
        {"geometry/loss": 0.5, "geometry/pack/loss": 1.0, "geometry/step": 7},
    ]
    assert bob.logged[:2] == [
        {"booth/loss": 1.0, "booth/step": 7},
        {"booth/media/samples": [("image", (2, 4, 3))], "booth/step": 8},
    ]
    assert ann.defined == {
        "booth/step": None,
        "booth/*": "booth/step",
        "geometry/step": None,
        "geometry/*": "geometry/step",
    }
    assert ann.finished is None


def test_a_key_makes_runs_that_are_resumed(tmp_path: Path, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    build_loggers("wandb", tmp_path / "work", trackers=tracked(tmp_path, "ann", group="farm"))
    settled()
    (run,) = fake_wandb.begun
    assert (run.options["mode"], run.options["resume"], run.options["group"]) == ("online", "allow", "farm")
    assert run.options["settings"].init_timeout <= 60


def test_a_training_of_no_album_has_a_run_of_its_own(tmp_path: Path, fake_wandb: Any) -> None:
    _, logger = build_loggers("wandb", tmp_path / "prior")
    logger.log_metrics({"loss": 1.0}, 7)
    logger.log_image("sheet", PICTURE, 8)
    settled()
    (run,) = fake_wandb.begun
    assert (run.options["name"], run.options["id"]) == ("prior", run_id(tmp_path / "prior"))
    assert run.options["dir"] == str(tmp_path / "prior" / "trackers")
    assert run.logged == [{"loss": 1.0, "step": 7}, {"sheet": [("image", (2, 4, 3))], "step": 8}]
    assert run.defined == {"step": None, "*": "step"}
    assert (logger.name, logger.version) == ("wandb", run.id)


def conclude(out: Path, name: str, **changes: Any) -> None:
    arguments = {"state": "1", "figures": {"evaluate/avatar/psnr": 20.0}, "media": {}, "failed": None} | changes
    with finished_trackers():
        track_album(name, out / name, tracked(out, name), **arguments)


def test_an_album_is_concluded_once(tmp_path: Path, fake_wandb: Any) -> None:
    media = {"turntable": tmp_path / "turntable.mp4", "avatar": tmp_path / "avatar.glb"}
    for _ in range(2):
        conclude(tmp_path, "ann", media=media)
    (run,) = fake_wandb.begun
    assert run.logged == [{"turntable": ("video", "turntable.mp4"), "avatar": ("model", "avatar.glb")}]
    assert run.summary == {"evaluate/avatar/psnr": 20.0}
    assert run.finished == 0
    # Another result of the same album is told in the same run.
    conclude(tmp_path, "ann", state="2")
    assert [run.id for run in fake_wandb.begun] == [run.id, run.id]


def test_what_a_killed_process_has_told_is_told_again_offline(
    tmp_path: Path, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = [
        ("booth", 1, {"booth/loss": 1.0}),
        ("booth", 2, {"booth/media/samples": tmp_path / "samples_2.png"}),
        ("geometry", 1, {"geometry/loss": 2.0}),
        ("texture", 1, {"texture/loss": 3.0}),
    ]
    for stage, start_step in (("geometry", 0), ("geometry", 5), ("texture", 5)):
        place = tracked(tmp_path, "ann", stage=stage)
        build_loggers("wandb", tmp_path / "work", start_step=start_step, trackers=place)
    conclude(tmp_path, "ann", history=history)
    # Of the geometry stage this process has told all; the texture stage it took up in the middle.
    assert fake_wandb.begun[0].logged == [
        {"booth/loss": 1.0, "booth/step": 1},
        {"booth/media/samples": ("image", "samples_2.png"), "booth/step": 2},
        {"texture/loss": 3.0, "texture/step": 1},
    ]
    monkeypatch.setenv("WANDB_MODE", "online")
    conclude(tmp_path, "bob", history=history)
    assert fake_wandb.begun[1].logged == []


def test_an_album_that_failed_says_why(tmp_path: Path, fake_wandb: Any) -> None:
    conclude(tmp_path, "ann", figures={}, failed="no photos")
    (run,) = fake_wandb.begun
    assert (run.summary, run.finished, run.logged) == ({"failed": "no photos"}, 1, [])


def test_runs_are_ended_also_by_an_error(tmp_path: Path, fake_wandb: Any) -> None:
    def train() -> None:
        with finished_trackers():
            build_loggers("wandb", tmp_path / "work", trackers=tracked(tmp_path, "ann", "bob"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert [run.finished for run in fake_wandb.begun] == [0, 0]


def test_a_run_that_a_caller_has_open_shows_all_albums_and_is_left_open(tmp_path: Path, fake_wandb: Any) -> None:
    fake_wandb.run = FakeRun({"id": "caller"})
    with finished_trackers():
        _, logger = build_loggers("wandb", tmp_path / "work", trackers=tracked(tmp_path, "ann", "bob"))
        logger.log_metrics({"album/ann/loss": 1.0, "album/bob/loss": 2.0}, 0)
        for name, psnr in (("ann", 20.0), ("bob", 30.0)):
            figures = {"evaluate/avatar/psnr": psnr}
            track_album(name, tmp_path / name, tracked(tmp_path, name), state="1", figures=figures, media={})
    assert fake_wandb.begun == []
    assert fake_wandb.run.finished is None
    assert fake_wandb.run.logged == [
        {"album/ann/booth/loss": 1.0, "booth/step": 0},
        {"album/bob/booth/loss": 2.0, "booth/step": 0},
    ]
    assert fake_wandb.run.summary == {
        "album/ann/evaluate/avatar/psnr": 20.0,
        "album/bob/evaluate/avatar/psnr": 30.0,
        "evaluate/avatar/psnr": 25.0,
    }


def test_a_run_of_a_sweep_has_the_id_that_the_agent_gave(
    tmp_path: Path, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    with finished_trackers():
        _, logger = build_loggers("wandb", tmp_path / "work", trackers=tracked(tmp_path, "ann"))
        logger.log_metrics({"loss": 1.0}, 0)
        figures = {"evaluate/avatar/psnr": 20.0}
        track_album("ann", tmp_path / "ann", tracked(tmp_path, "ann"), state="1", figures=figures, media={})
    (run,) = fake_wandb.begun
    assert not {"id", "name", "group"} & set(run.options)
    assert run.logged == [{"booth/loss": 1.0, "booth/step": 0}]
    assert run.summary == {"evaluate/avatar/psnr": 20.0}
    assert run.finished == 0


def test_a_server_that_refuses_is_given_up_with_one_warning(
    tmp_path: Path, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**options: Any) -> None:
        raise ConnectionError("no server")

    fake_wandb.init = init
    conclude(tmp_path, "ann")
    _, logger = build_loggers("wandb", tmp_path / "work", trackers=tracked(tmp_path, "ann"))
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    logger.log_metrics({"loss": 1.0}, 1)
    # Once for each pack that a process does.
    assert [record.getMessage() for record in caplog.records] == [
        "Weights & Biases failed and is switched off: no server"
    ] * 2
    assert not list(tmp_path.glob("trackers/*.json"))


def test_a_server_that_hangs_holds_nobody_up(
    tmp_path: Path, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hanging = threading.Event()
    fake_wandb.init = lambda **options: hanging.wait(20)
    monkeypatch.setattr(Background.wait, "__defaults__", (0.2,))
    started = time.monotonic()
    with finished_trackers():
        _, logger = build_loggers("wandb", tmp_path / "work", trackers=tracked(tmp_path, "ann"))
        for step in range(3):
            logger.log_metrics({"loss": 1.0}, step)
        logger.finalize("success")
    assert time.monotonic() - started < 5
    hanging.set()
    assert [record.getMessage() for record in caplog.records] == [
        "Weights & Biases failed and is switched off: it has not answered for 0.2 s"
    ]


def test_too_many_waiting_calls_end_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_MAX_WAITING", 3)
    background, gate, done = Background("Tracker"), threading.Event(), []
    background.call(lambda: gate.wait(20))
    for index in range(10):
        background.call(lambda index=index: done.append(index))
    gate.set()
    assert background.is_broken
    assert not background.wait(1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert len(done) <= 4


def test_a_folder_that_cannot_be_written_is_said_before_the_training(tmp_path: Path, fake_wandb: Any) -> None:
    from modules.errors import UserError

    (tmp_path / "trackers").write_text("in the way")
    with pytest.raises(UserError, match="is in the way of a folder"):
        build_loggers("wandb", tmp_path / "work", trackers=tracked(tmp_path, "ann"))


def test_weights_and_biases_itself_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    from tests.wandb_file import read_run

    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    loggers._RUNS.clear()
    with finished_trackers():
        _, logger = build_loggers("wandb", tmp_path / "work", trackers=tracked(tmp_path, "ann"))
        assert isinstance(logger, SafeLogger)
        logger.log_metrics({"loss": 1.0}, 4)
        logger.log_image("samples/ann", PICTURE, 5)
        track_album("ann", tmp_path / "ann", tracked(tmp_path, "ann"), state="1", figures={"a/b": 2.0}, media={})
    (path,) = tmp_path.glob("trackers/wandb/offline-run-*/*.wandb")
    run = read_run(path)
    assert (run.id, run.name, run.job_type, run.exit_code) == (run_id(tmp_path / "ann"), "ann", "puzzlebooth", 0)
    assert (run.history[0]["booth/loss"], run.history[0]["booth/step"]) == (1.0, 4)
    assert run.history[1]["booth/media/samples/_type"] == "images/separated"
    assert (run.summary["a/b"], run.config["seed"]) == (2.0, 3)
    assert run.step_metrics == {"booth/*": "booth/step"}
    (picture,) = path.parent.glob("files/media/images/booth/media/samples*.png")
    assert picture.stat().st_size > 0
    assert json.loads((tmp_path / "trackers" / f"{run.id}.json").read_text()) == {"album": "ann", "state": "1"}
