"""A run that is killed in the middle of any stage and started again ends with the bytes of one that never stopped."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.smoke import STAGES, copy_until, leftovers, smoke_overrides, start
from trainer.config import load_config
from trainer.pipeline import run_album

# The precision of `--config mini`, which is what most people run.
WORDS = ("runtime.precision=bf16-mixed",)
TRAINED = ("booth", "geometry", "texture")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def album(albums: list[Path]) -> Path:
    return albums[1]


@pytest.fixture(scope="module")
def uninterrupted(album: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    run_album(album, load_config(None, smoke_overrides(out, backbone, *WORDS)))
    return out


def in_the_middle(out: Path, album: str, stage: str) -> bool:
    """Whether a run is seen to be at work in a stage: with two steps done and saved, where the stage has steps."""
    folder = out / album
    match stage:
        case "booth" | "geometry" | "texture":
            return any(out.glob(f".packs/{stage}-*/checkpoints/previous.ckpt"))
        case "evaluate":
            return (folder / "turntable.png").exists()
        case "report":
            return (folder / "metrics.json").exists()
        case _:
            return any(folder.glob(f"{stage}/.work-*"))


def is_over(out: Path, album: str, stage: str) -> bool:
    done = out / album / ("report.html" if stage == "report" else f"{stage}/manifest.json")
    return done.exists()


def end_in(stage: str, number: signal.Signals, album: Path, out: Path, backbone: Path, prepare: Callable[[], None]):
    """Start the command line, send the signal in the middle of a stage; gives (exit code, standard error)."""
    for _ in range(4):
        shutil.rmtree(out, ignore_errors=True)
        prepare()
        process = start("run", album, *smoke_overrides(out, backbone, *WORDS))
        try:
            while process.poll() is None and not in_the_middle(out, album.name, stage):
                time.sleep(0.001)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        # A busy machine may wake us up too late; then the stage is over, and we try again.
        if not is_over(out, album.name, stage):
            return process.returncode, errors
    pytest.fail(f"the {stage} stage was over each time before the signal came: {errors}")


def assert_same_bytes(out: Path, reference: Path, album: str) -> None:
    for name in ("metrics.json", "avatar.glb", "turntable.png", "turntable.mp4", "booth/personalization.safetensors"):
        assert (out / album / name).read_bytes() == (reference / album / name).read_bytes(), name
    assert leftovers(out) == []


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("assets", marks=slow),
        "booth",
        pytest.param("geometry", marks=slow),
        "texture",
        pytest.param("export", marks=slow),
        pytest.param("evaluate", marks=slow),
        pytest.param("report", marks=slow),
    ],
)
def test_kill_in_a_stage_changes_nothing(
    stage: str, album: Path, uninterrupted: Path, backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    out = tmp_path / "out"
    first = "evaluate" if stage == "report" else stage
    code, _ = end_in(stage, signal.SIGKILL, album, out, backbone, prepare=lambda: copy_until(first, uninterrupted, out))
    assert code == -signal.SIGKILL
    with caplog.at_level(logging.INFO, logger="trainer.fit"):
        run_album(album, load_config(None, smoke_overrides(out, backbone, *WORDS)))
    resumed = [record.getMessage() for record in caplog.records if "goes on from step" in record.getMessage()]
    assert len(resumed) == (stage in TRAINED)
    assert_same_bytes(out, uninterrupted, album.name)


@pytest.mark.parametrize(
    ("stage", "number", "code", "line"),
    [
        ("booth", signal.SIGINT, 130, "Interrupted; run the same command again to go on."),
        pytest.param("geometry", signal.SIGTERM, 143, "Terminated; run the same command again to go on.", marks=slow),
        pytest.param("export", signal.SIGINT, 130, "Interrupted; run the same command again to go on.", marks=slow),
        ("evaluate", signal.SIGTERM, 143, "Terminated; run the same command again to go on."),
    ],
)
def test_signal_ends_with_one_line_and_the_next_run_goes_on(
    stage: str,
    number: signal.Signals,
    code: int,
    line: str,
    album: Path,
    uninterrupted: Path,
    backbone: Path,
    tmp_path: Path,
):
    out = tmp_path / "out"
    found, errors = end_in(stage, number, album, out, backbone, prepare=lambda: copy_until(stage, uninterrupted, out))
    assert found == code, errors
    assert [text for text in errors.splitlines() if " step " not in text] == [line]
    run_album(album, load_config(None, smoke_overrides(out, backbone, *WORDS)))
    assert_same_bytes(out, uninterrupted, album.name)


@pytest.mark.slow
def test_ten_kills_at_any_time_change_nothing(album: Path, uninterrupted: Path, backbone: Path, tmp_path: Path):
    """Each attempt lives a little longer than the last one; shared images and imports are hit as well as stages."""
    out = tmp_path / "out"
    words = smoke_overrides(out, backbone, *WORDS)
    for attempt in range(10):
        process = start("run", album, *words)
        try:
            process.wait(timeout=3 + 0.9 * attempt)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    run_album(album, load_config(None, words))
    assert STAGES[-1] in {path.name for path in (out / album.name).iterdir()}
    assert_same_bytes(out, uninterrupted, album.name)
