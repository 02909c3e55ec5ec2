"""What the farm itself costs: packs against single albums, a driver with ten thousand packs, a list of 100 000 albums.

Figures:
    farm_pack_throughput_ratio     albums a second in packs of four to albums a second one by one: eight tiny albums,
                                   two workers, every start-up included
    farm_overhead_ms_per_pack      wall time of a farm of 10 000 packs that do nothing, for each of them
    farm_driver_gib                most memory of that farm's driver, which knows 100 000 albums
    farm_scan_100000_s             a Parquet list of 100 000 albums, from the file to checked entries
    farm_plan_100000_s             and from there to planned packs, in a new dataset
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parents[2]
NUM_ALBUMS, NUM_PACKS = 100_000, 10_000
NUM_IDLE_WORKERS = 8


def bench() -> dict[str, float]:
    """All figures; 10 minutes and 4 GB of memory on two cores."""
    with tempfile.TemporaryDirectory(prefix="puzzlebooth-bench-") as folder:
        return {**_throughput(Path(folder)), **_in_process("scale", Path(folder))}


def _throughput(folder: Path) -> dict[str, float]:
    from datamodules.studio.album_writer import write_album
    from datamodules.studio.person import HELD_OUT_SEED
    from tests.integration.smoke import smoke_overrides
    from tests.tiny_backbone import write_tiny_backbone

    (folder / "backbone").mkdir()
    backbone = write_tiny_backbone(folder / "backbone")
    for index in range(8):
        write_album(folder / "albums" / f"a{index}", seed=HELD_OUT_SEED + index, num_photos=3, resolution=64)
    seconds = {}
    for size in (4, 1):
        words = smoke_overrides(folder / "unused", backbone, f"farm.pack_size={size}", "farm.cpus_per_pack=1")
        command = [
            sys.executable,
            "-m",
            "launch",
            "farm",
            folder / "albums",
            "--out",
            folder / f"dataset-{size}",
            *words,
        ]
        started = time.monotonic()
        subprocess.run(list(map(str, command)), cwd=PROJECT_ROOT, check=True, capture_output=True)
        seconds[size] = time.monotonic() - started
    return {
        "farm_pack_throughput_ratio": seconds[1] / seconds[4],
        "farm_packs_of_4_s": seconds[4],
        "farm_single_albums_s": seconds[1],
    }


def _in_process(name: str, folder: Path) -> dict[str, float]:
    """A measurement in a process of its own, whose memory is then its own, too."""
    code = f"import json, sys; from pathlib import Path; from tests.benchmarks.bench_farm import {name}; "
    code += f"print(json.dumps({name}(Path(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=PROJECT_ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def scale(folder: Path, num_albums: int = NUM_ALBUMS, num_packs: int = NUM_PACKS) -> dict[str, float]:
    """The figures of a farm of packs that do nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from launch.farm.config import FarmConfig
    from launch.farm.driver import run_farm
    from launch.farm.manifest import scan
    from launch.farm.plan import PackPlan
    from launch.farm.records import read_index
    from trainer.config import load_config

    manifest, dataset = folder / "albums.parquet", folder / "idle"
    rows = {
        "album": [f"/photos/{index % 1000:03d}/person {index:06d}" for index in range(num_albums)],
        "name": [f"person-{index:06d}" for index in range(num_albums)],
    }
    pq.write_table(pa.table(rows), manifest)
    figures: dict[str, float] = {}
    started = time.monotonic()
    entries = scan([manifest])
    figures["farm_scan_100000_s"] = time.monotonic() - started
    started = time.monotonic()
    size = num_albums // num_packs
    PackPlan(dataset).add(
        [entry.name for entry in entries[first : first + size]] for first in range(0, num_albums, size)
    )
    figures["farm_plan_100000_s"] = time.monotonic() - started

    from launch.farm import cluster

    settings = FarmConfig(pack_size=size, index_every_s=60, rescan_s=0, check_sources=False)
    # More workers than cores: they do nothing, and on a cluster there are hundreds.
    for name, value in cluster.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    paths = {"env_vars": {"PYTHONPATH": str(PROJECT_ROOT)}}
    ray.init(
        address="local",
        num_cpus=NUM_IDLE_WORKERS,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        runtime_env=paths,
    )
    started = time.monotonic()
    config = load_config("mini")
    result = run_farm([manifest], dataset, config, settings, trainable=_idle_trial)
    seconds = time.monotonic() - started
    assert all(record.state == "done" for record in result.records.values())
    assert len(read_index(dataset)) == num_albums
    figures["farm_overhead_ms_per_pack"] = seconds / num_packs * 1000
    # The most it has ever held, which Linux counts in KiB.
    status = Path("/proc/self/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    figures["farm_driver_gib"] = peak_kib / 2**20
    return figures


def _idle_trial() -> type:
    from launch.farm.trial import PackTrial

    class IdleTrial(PackTrial):
        """Writes records of albums on which nothing was done."""

        def step(self) -> dict[str, Any]:
            import dataclasses

            from launch.farm.records import AlbumRecord, album_folder
            from launch.farm.worker import PackSpec

            spec = PackSpec.parse(self.config["spec"])
            for name, source in spec.albums:
                folder = album_folder(Path(spec.dataset), name)
                folder.mkdir(parents=True, exist_ok=True)
                record = AlbumRecord(
                    name=name,
                    source=source,
                    state="done",
                    settings=spec.settings,
                    metrics={"avatar": {"psnr_fg": 15.0, "chamfer_cm": 1.5}},
                    timings={"booth": 1.0},
                    pack=spec.pack,
                    attempts=spec.attempt,
                )
                (folder / "result.json").write_text(json.dumps({"schema": 1, **dataclasses.asdict(record)}))
            return {"ended": "done", "reason": "", "done": True}

    return IdleTrial
