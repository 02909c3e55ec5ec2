"""Searches on a real Ray: halving with the driver killed in the middle, and a population over generations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.smoke import PROJECT_ROOT, config_of, smoke_overrides, times
from trainer.config import load_config
from trainer.pipeline import run_album

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ASHA = """
tune: {metric: chamfer_cm, scheduler: asha, num_trials: 3, num_rungs: 2, reduction_factor: 2}
space:
  geometry.lr: {min: 1.0e-4, max: 1.0e-2, distribution: log_uniform}
  texture.lr: {values: [0.005, 0.01]}
  baselines: false
"""
PBT = """
tune: {metric: psnr_fg, scheduler: pbt, num_trials: 3, num_generations: 3, quantile: 0.34, resample: 0}
space:
  texture.lr: {values: [0.002, 0.005, 0.01, 0.02]}
  baselines: false
"""


def start(space: Path, album: Path, out: Path, backbone: Path) -> subprocess.Popen[str]:
    """`python -m launch tune` in the background, with two cores for two trials at a time."""
    words = [word for word in smoke_overrides(out, backbone) if not word.startswith("out=")]
    command = [sys.executable, "-m", "launch", "tune", str(space), str(album), "--out", str(out), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=PROJECT_ROOT, text=True, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> str:
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return said


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trainings(out: Path) -> list[int]:
    """Processes that have the search's folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"out={out}" in words:
            found.append(int(path.parent.name))
    return found


def rung_files(out: Path) -> dict[str, int]:
    return {name: time for name, time in times(out / "trials").items() if name.count("/") == 1 and "rung" in name}


def test_halving_goes_on_after_its_driver_was_killed(albums: list[Path], backbone: Path, tmp_path: Path) -> None:
    out, space = tmp_path / "out", tmp_path / "space.yaml"
    space.write_text(ASHA)
    process = start(space, albums[1], out, backbone)
    # Two rungs are done, and a third training has begun.
    wait_for(lambda: len(list(out.glob("trials/*/rung_*.json"))) >= 2, process)
    wait_for(lambda: bool(list(out.glob("trials/*/rung_*/.packs/booth-*"))), process)
    assert len({path.parent.name for path in out.glob("trials/*/rung_1.log")}) >= 2
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 30
    while trainings(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert trainings(out) == []
    done = {name: when for name, when in rung_files(out).items() if name.endswith(".json")}
    said = finish(start(space, albums[1], out, backbone))
    # What was done before the kill was not done again, and its log was not touched.
    after = rung_files(out)
    assert {name: after[name] for name in done} == done
    document = json.loads((out / "tune.json").read_text())
    assert document["finished"]
    results = {(result["trial"], result["rung"]): result for result in document["results"]}
    assert {trial for trial, _ in results} == {"trial_1", "trial_2", "trial_3"}
    assert not any(result["failed"] for result in results.values())
    whole = [result for result in results.values() if result["rung"] == 2]
    best = document["best"]
    assert best["value"] == min(result["value"] for result in whole)
    assert f"Best: {best['trial']}" in said
    # The steps of the first rung are half of the second's.
    steps = {}
    for trial, rung in results:
        config = load_config(str(out / "trials" / trial / f"rung_{rung}" / "man" / "config.yaml"))
        steps[rung] = config.geometry.steps
    assert steps == {1: 4, 2: 8}
    # An ordinary run with the best configuration gives the figure of the search.
    best_config = load_config(str(out / "best.yaml"), [f"out={tmp_path / 'again'}"])
    assert best_config.geometry.lr == best["point"]["geometry.lr"]
    result = run_album(albums[1], best_config)
    assert result.metrics["avatar"]["corrected"]["chamfer_cm"] == pytest.approx(best["value"], rel=5e-3)
    # A finished search is only shown again.
    assert "Best:" in finish(start(space, albums[1], out, backbone))


def test_a_population_takes_over_values_and_stages_of_the_best(
    albums: list[Path], backbone: Path, tmp_path: Path
) -> None:
    out, space = tmp_path / "out", tmp_path / "space.yaml"
    space.write_text(PBT)
    process = start(space, albums[1], out, backbone)
    wait_for(lambda: len(list(out.glob("trials/*/rung_2.json"))) >= 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start(space, albums[1], out, backbone))
    document = json.loads((out / "tune.json").read_text())
    results = {(result["trial"], result["rung"]): result for result in document["results"]}
    assert len(results) == 9
    for rung in (1, 2):
        ranked = sorted((result for (_, at), result in results.items() if at == rung), key=lambda one: one["value"])
        worst, donor = ranked[0], ranked[-1]
        if worst["value"] == donor["value"]:
            continue
        rates = [0.002, 0.005, 0.01, 0.02]
        before, after = donor["point"]["texture.lr"], results[worst["trial"], rung + 1]["point"]["texture.lr"]
        assert abs(rates.index(after) - rates.index(before)) <= 1
        # Whoever was not replaced has kept its values, and was not trained again.
        kept = results[donor["trial"], rung + 1]
        assert (kept["value"], kept["seconds"]) == (donor["value"], 0)
    # Personalisation and shape do not depend on the colours' rate: they are links to one and the same file.
    folders = [path for path in out.glob("trials/*/rung_*/man/booth/personalization.safetensors")]
    first = [path for path in folders if path.parts[-4] != "rung_1"]
    linked = {path.stat().st_ino for path in folders if path.parts[-4] == "rung_1"}
    assert all(path.stat().st_ino in linked for path in first)
    assert config_of(out, backbone).texture.steps == load_config(str(out / "best.yaml")).texture.steps
