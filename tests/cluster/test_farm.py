"""The farm on a real Slurm and a real Ray, with all that happens on a cluster."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from datamodules.studio.album_writer import write_album
from datamodules.studio.person import HELD_OUT_SEED
from launch.farm.plan import read_lines
from launch.farm.records import AlbumRecord, read_index
from tests.cluster.conftest import Lab
from tests.integration.smoke import launch, leftovers, smoke_overrides

NUM_ALBUMS = 32
POISONED = "album07"
# As short as a whole run can be, and without what the farm does not care for.
SHORT = (
    "booth.token_phase.steps=1",
    "booth.joint_phase.steps=3",
    "booth.num_synthetic_people=1",
    "geometry.steps=4",
    "geometry.cameras.views_per_step=1",
    "texture.steps=4",
    "texture.refinement_steps=2",
    "texture.cameras.views_per_step=1",
    "baselines=false",
    "evaluation.num_samples=500",
    "export.formats=[]",
    "runtime.visuals_every_steps=0",
)
FARM = (
    "farm.pack_size=4",
    "farm.backoff_s=1",
    "farm.max_backoff_s=4",
    "farm.index_every_s=2",
    "farm.grace_s=20",
    "farm.object_store_mb=80",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studio albums, one of which has photos that are none. Four people are enough: files are linked."""
    folder = tmp_path_factory.mktemp("photos")
    people = tmp_path_factory.mktemp("people")
    for index in range(4):
        write_album(people / str(index), seed=HELD_OUT_SEED + index, num_photos=3, resolution=64)
    for index in range(NUM_ALBUMS):
        name = f"album{index:02d}"
        shutil.copytree(people / str(index % 4), folder / name, copy_function=os.link)
    for photo in (folder / POISONED / "image").iterdir():
        photo.unlink()
        photo.write_bytes(b"poison")
    return folder


def overrides(backbone: Path) -> list[str]:
    return [word for word in smoke_overrides(Path(), backbone, *SHORT) if not word.startswith("out=")]


@pytest.fixture(scope="module")
def undisturbed(photos: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AlbumRecord]:
    """The albums one pack after the other, in peace."""
    dataset = tmp_path_factory.mktemp("undisturbed") / "dataset"
    words = [*overrides(backbone), *FARM, "farm.scheduler=alone"]
    run = launch("farm", photos, "--out", dataset, *words, timeout_s=900)
    assert run.returncode == 1, run.stderr[-4000:]
    return {record.name: record for record in read_index(dataset)}


@pytest.mark.slurm
def test_a_farm_outlives_whatever_happens(
    lab: Lab, photos: Path, backbone: Path, undisturbed: dict[str, AlbumRecord], tmp_path: Path
) -> None:
    (tmp_path / "words").write_text("\n".join([*overrides(backbone), *FARM]))
    run = lab(
        """
        dataset=$DISK/dataset
        mapfile -t words < words
        job=$(sbatch --parsable --nodes=2 --time=60 "$PROJECT/slurm/farm.sh" "$PHOTOS" --out "$dataset" "${words[@]}")
        bash "$PROJECT/tests/cluster/chaos.sh" "$job" "$dataset" "$DISK"
        while [[ $(squeue --noheader --job="$job" --format=%T) =~ RUNNING|PENDING|COMPLETING ]]; do sleep 1; done
        scontrol show job "$job" | grep -E 'JobState|Restarts|ExitCode'
        cp -a "$dataset" "$KEPT"
        """,
        timeout_s=1500,
        CORES=1,
        SMALL_MB=3000,
        DISK=tmp_path / "lab-0" / "small",
        PHOTOS=photos,
        KEPT=tmp_path / "kept",
        VENV=sys.prefix,
    )
    said = "\n".join(path.read_text() for path in tmp_path.glob("farm-*.out"))
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}\n{said[-8000:]}"
    print(run.stdout, said[-3000:])
    dataset = tmp_path / "kept"
    records = {record.name: record for record in read_index(dataset)}
    assert len(records) == NUM_ALBUMS
    assert {name for name, record in records.items() if record.state != "done"} == {POISONED}
    reason = records[POISONED].reason
    assert reason == undisturbed[POISONED].reason
    assert reason is not None
    assert "photo" in reason
    for name, record in records.items():
        for row, figures in undisturbed[name].metrics.items():
            assert record.metrics[row] == pytest.approx(figures, rel=5e-3), name
    # Nothing was done twice to its end, and nothing lies about.
    finished: Counter[str] = Counter()
    for path in (dataset / ".farm" / "packs").glob("*/attempts.jsonl"):
        finished.update(
            row["name"] for row in read_lines(path) if row.get("event") == "album" and row["state"] == "done"
        )
    assert finished == Counter(dict.fromkeys(set(records) - {POISONED}, 1))
    assert leftovers(dataset / "albums") == []
    assert [path.name for path in (dataset / ".farm").glob("stop-*")] == []
    assert [path.name for path in dataset.rglob("*.tmp")] == []
    for name, record in records.items():
        for file in record.files:
            assert (dataset / "albums" / name / file["path"]).stat().st_size == file["size"]
    # Each event has left its trace.
    for trace in ("kill a pack's process", "kill the raylet", "kill the driver", "fill the disk", "is down", "urgent"):
        assert trace in run.stdout
    assert "Restarts=1" in run.stdout
    assert "The farm has ended early" in said
    assert "The disk of" in said or "disk" in said
