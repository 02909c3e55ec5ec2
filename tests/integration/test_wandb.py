"""W&B offline, read back: of a pack that is killed between stages each album has one run, with all of its report."""

from __future__ import annotations

import itertools
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.smoke import config_of, smoke_overrides, start
from tests.wandb_file import OfflineRun, read_run
from trainer.loggers import read_metrics
from trainer.metrics_table import FIGURES, PROTOCOLS
from trainer.pipeline import run_pack
from trainer.report_charts import album_curves
from trainer.tracking import run_id

pytest.importorskip("wandb", reason="wandb is not installed")
pytestmark = pytest.mark.slow
WORDS = ("runtime.logger=wandb", "runtime.visuals_every_steps=4")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def read_runs(out: Path) -> list[OfflineRun]:
    """In the order in which they were begun."""
    return [read_run(path) for path in sorted(out.glob("trackers/wandb/offline-run-*/*.wandb"))]


def values(run: OfflineRun, name: str, stage: str) -> dict[int, Any]:
    """Step to value; what was logged last holds."""
    return {row[f"{stage}/step"]: row[name] for row in run.history if name in row}


def test_two_albums_killed_between_stages(albums: list[Path], backbone: Path, tmp_path: Path, offline: None) -> None:
    out = tmp_path / "out"
    process = start("run", *albums, *smoke_overrides(out, backbone, *WORDS))
    try:
        deadline = time.monotonic() + 200
        while not list(out.glob(".packs/geometry-*/checkpoints/previous.ckpt")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    config = config_of(out, backbone, *WORDS)
    results = run_pack(albums, config)
    assert [result.failed for result in results] == [None, None]
    ids = {run_id(out / result.name): result.name for result in results}
    # A file for each process; the folder's name tells the run's, of which the killed process may have written no more.
    folders = sorted(out.glob("trackers/wandb/offline-run-*"))
    begun = [folder.name[folder.name.index("puzzlebooth-") :] for folder in folders]
    assert sorted(begun) == sorted([*ids, *ids])
    found = {ids[run.id]: run for run in read_runs(out) if run.exit_code is not None}
    assert found.keys() == set(ids.values())
    for name, whole in found.items():
        assert (whole.name, whole.group, whole.job_type, whole.exit_code) == (name, "out", "puzzlebooth", 0)
        assert (whole.config["booth"]["adapter"]["rank"], whole.config["album_name"]) == (2, name)
        assert whole.config["album"]["working_resolution"] == 64
        folder = out / name
        shown = 0
        for stage in ("booth", "geometry", "texture"):
            curves = album_curves(read_metrics(folder / stage / "metrics.jsonl"), name)
            assert curves
            for term, points in curves.items():
                assert values(whole, f"{stage}/{term}", stage) == pytest.approx(dict(points)), term
                shown += len(points)
        assert shown > 30
        protocols = json.loads((folder / "evaluate" / "protocols.json").read_text())
        for row, protocol in itertools.product(protocols, PROTOCOLS):
            for figure in FIGURES:
                value = protocols[row][protocol].get(figure)
                if isinstance(value, int | float):
                    between = "" if protocol == "corrected" else f"{protocol}/"
                    assert whole.summary[f"evaluate/{row}/{between}{figure}"] == pytest.approx(value)
        assert {key for key in whole.summary if key.startswith("seconds/")} >= {"seconds/booth", "seconds/texture"}
        # Pictures of the training before the kill, too.
        pictures = values(whole, "booth/media/samples/_type", "booth")
        assert set(pictures) == set(values(whole, "booth/media/attention/_type", "booth")) == {0, 4, 8}
        media = {key: path for row in whole.history for key, path in row.items() if key.endswith("/path")}
        (place,) = out.glob(f"trackers/wandb/offline-run-*-{whole.id}/files/{media['avatar/path']}")
        assert place.read_bytes() == (folder / "avatar.glb").read_bytes()
        assert list(out.glob(f"trackers/wandb/offline-run-*-{whole.id}/files/{media['turntable/path']}"))
    # A pack that is complete has nothing to tell.
    run_pack(albums, config)
    assert len(read_runs(out)) == 4
