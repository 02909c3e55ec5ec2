"""Runs at tiny size: their settings, the real command line as a process, and what lies in a folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from trainer.config import RunConfig, load_config
from trainer.export import OPTIONAL_FILES, USD_FILE

PROJECT_ROOT = Path(__file__).resolve().parents[2]
STAGES = ("assets", "booth", "geometry", "texture", "export", "evaluate")
# USD needs a package that the development extra holds; without it the others are there.
RESULTS = (
    *("avatar.glb", "turntable.mp4", "turntable.png", "report.html", "metrics.json", "config.yaml"),
    *(name for name in OPTIONAL_FILES if name != USD_FILE or importlib.util.find_spec("pxr")),
)


def smoke_overrides(out: Path, backbone: Path, *words: str) -> list[str]:
    """key=value words of a run that takes seconds: few steps, small pictures, a coarse grid. `words` come last."""
    return [
        f"out={out}",
        f"backbone.path={backbone}",
        "album.working_resolution=64",
        "booth.token_phase.steps=3",
        "booth.joint_phase.steps=5",
        "booth.adapter.rank=2",
        "booth.photos_per_step=2",
        "booth.num_synthetic_people=2",
        "booth.num_prior_samples=2",
        "geometry.steps=8",
        "geometry.grid.spacing_m=0.06",
        "geometry.cameras.views_per_step=2",
        "texture.steps=8",
        "texture.texture_size=128",
        "texture.album_share=0.5",
        "texture.cameras.views_per_step=2",
        "export.turntable_frames=4",
        "export.turntable_resolution=64",
        "evaluation.num_samples=1000",
        "evaluation.resolution=64",
        "runtime.accelerator=cpu",
        "runtime.num_threads=1",
        "runtime.checkpoint_every_steps=1",
        "runtime.log_every_steps=2",
        *words,
    ]


def config_of(out: Path, backbone: Path, *words: str) -> RunConfig:
    return load_config(None, smoke_overrides(out, backbone, *words))


def launch(*words: str | Path, timeout_s: float = 240, **options) -> subprocess.CompletedProcess[str]:
    """`python -m launch WORDS`, to its end."""
    command = [sys.executable, "-m", "launch", *map(str, words)]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=timeout_s, **options)


def start(*words: str | Path) -> subprocess.Popen[str]:
    """`python -m launch WORDS`, going on in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *map(str, words)],
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tree(folder: Path) -> list[str]:
    """Names of all files below a folder, the locks left out."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


def times(folder: Path) -> dict[str, int]:
    """When each file below a folder was written, in nanoseconds."""
    return {name: os.stat(folder / name).st_mtime_ns for name in tree(folder)}


def leftovers(out: Path) -> list[str]:
    """Whatever is of no use after a run: temporary files, working folders, checkpoints, the pack's scratch."""
    found = []
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        hidden = path.name.startswith(".") and name not in (".cache", ".packs") and path.name != ".lock"
        if hidden or ".tmp" in path.name or path.suffix == ".ckpt" or name.startswith(".packs/"):
            found.append(name)
    return sorted(found)


def copy_until(stage: str, source: Path, target: Path) -> None:
    """Copy an output folder as it was before `stage` of every album: earlier stages, shared caches, no results."""
    shutil.copytree(source, target)
    for album in target.iterdir():
        for name in STAGES[STAGES.index(stage) :]:
            shutil.rmtree(album / name, ignore_errors=True)
        for name in RESULTS:
            (album / name).unlink(missing_ok=True)


def personalization(album: Path) -> dict[str, np.ndarray]:
    return load_file(album / "booth" / "personalization.safetensors")


def read_metrics(album: Path) -> dict[str, dict[str, float]]:
    return json.loads((album / "metrics.json").read_text())


def assert_same_metrics(one: Path, two: Path, rel: float) -> None:
    first, second = read_metrics(one), read_metrics(two)
    assert first.keys() == second.keys()
    for row, figures in first.items():
        assert figures == pytest.approx(second[row], rel=rel), row


def assert_same_album(one: Path, two: Path) -> None:
    """Equal up to the rounding of sums in another order.

    Where rounding moves a vertex by a micrometre, the surface is cut into other charts, so that texels and the vertices
    along seams differ; hence the looser bound on the metrics.
    """
    first, second = personalization(one), personalization(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=1e-4, atol=1e-6, err_msg=name)
    with np.load(one / "geometry" / "avatar.npz") as ours, np.load(two / "geometry" / "avatar.npz") as theirs:
        np.testing.assert_array_equal(ours["faces"], theirs["faces"])
        np.testing.assert_allclose(ours["vertices"], theirs["vertices"], atol=1e-4)
    assert_same_metrics(one, two, rel=5e-3)
