"""How busy the machines of a farm are: each writes a small file now and then, and the driver adds them up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from launch.farm.plan import FARM

HOSTS = "hosts"
_EVERY_S = 15.0
_FRESH_S = 120.0


@dataclass(frozen=True, kw_only=True)
class ClusterUse:
    """Sums over machines that have reported lately; None where nothing is known.

    memory_gib, gpu_memory_gib: in use. gpu_percent: mean over GPUs.
    """

    num_hosts: int = 0
    memory_gib: float | None = None
    gpu_memory_gib: float | None = None
    gpu_percent: float | None = None


class HostUse:
    """Reports for this machine, at most every quarter of a minute."""

    def __init__(self, dataset: Path) -> None:
        self.folder = dataset / FARM / HOSTS
        self._reported_s = -_EVERY_S

    def report(self) -> None:
        """Write what is in use; trouble with it is no trouble of the pack."""
        if time.monotonic() - self._reported_s < _EVERY_S:
            return
        self._reported_s = time.monotonic()
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{socket.gethostname()}.json"
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                temporary.write_text(json.dumps(measure() | {"at": time.time()}))
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


def measure() -> dict[str, float]:
    """Memory in use on this machine and on its GPUs in GiB, and how busy these are in percent."""
    found: dict[str, float] = {}
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    used_kib = int(lines["MemTotal"].split()[0]) - int(lines["MemAvailable"].split()[0])
    found["memory_gib"] = used_kib / 2**20
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        rows = [[float(value) for value in line.split(",")] for line in text.splitlines() if line.strip()]
        if rows:
            found["gpu_percent"] = sum(row[0] for row in rows) / len(rows)
            found["gpu_memory_gib"] = sum(row[1] for row in rows) / 1024
            found["num_gpus"] = float(len(rows))
    return found


def cluster_use(dataset: Path) -> ClusterUse:
    """What the machines of a dataset's farms have reported within two minutes."""
    rows = []
    for path in (dataset / FARM / HOSTS).glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            row = json.loads(path.read_text())
            if time.time() - row["at"] <= _FRESH_S:
                rows.append(row)
    gpus = [row for row in rows if row.get("num_gpus")]
    num_gpus = sum(row["num_gpus"] for row in gpus)
    return ClusterUse(
        num_hosts=len(rows),
        memory_gib=sum(row["memory_gib"] for row in rows) if rows else None,
        gpu_memory_gib=sum(row["gpu_memory_gib"] for row in gpus) if gpus else None,
        gpu_percent=sum(row["gpu_percent"] * row["num_gpus"] for row in gpus) / num_gpus if gpus else None,
    )
