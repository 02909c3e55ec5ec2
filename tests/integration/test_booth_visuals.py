"""Samples and attention maps of a training in several processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.integration.smoke import config_of, leftovers, personalization
from trainer.pipeline import run_pack
from trainer.visual_files import read_visuals


def train(album: Path, out: Path, backbone: Path, *words: str) -> Path:
    """Train in two processes; returns the stage's folder."""
    (result,) = run_pack([album], config_of(out, backbone, "runtime.devices=2", *words), until="booth")
    assert result.failed is None
    assert leftovers(out) == []
    return result.folder / "booth"


def test_the_first_of_two_processes_draws_and_nothing_else_changes(
    albums: list[Path], backbone: Path, tmp_path: Path
) -> None:
    drawn = train(albums[0], tmp_path / "drawn", backbone, "runtime.visuals_every_steps=2")
    plain = train(albums[0], tmp_path / "plain", backbone, "runtime.visuals_every_steps=0")
    visuals = read_visuals(drawn / "visuals")
    assert visuals is not None
    assert [step for step, _ in visuals.samples] == [0, 2, 4, 6, 8]
    assert len(visuals.attention) > 0
    assert not (plain / "visuals").exists()
    expected = personalization(plain.parent)
    for name, value in personalization(drawn.parent).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.slow
def test_sharded_parameters_are_trained_without_pictures(
    albums: list[Path], backbone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("booth.adapter.kind=full", "booth.joint_phase.lr=1.0e-4", "runtime.strategy=fsdp")
    stage = train(albums[0], tmp_path, backbone, "runtime.visuals_every_steps=2", *words)
    assert not (stage / "visuals").exists()
    assert "no samples and attention maps while parameters are sharded" in capfd.readouterr().err
