"""`ray job submit` carries the checkout to a cluster that has only the dependencies, and the farm runs there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.farm.records import read_index
from tests.integration.smoke import PROJECT_ROOT, smoke_overrides

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
ENVIRONMENT = os.environ | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise Ray takes another address than the loopback's
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def head() -> Iterator[str]:
    """The address of a Ray head's job server on the loopback, for this test alone."""
    # Ray puts sockets deep into it, whose paths may have 107 bytes: pytest's own folders are too long for that.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    port = free_port()
    command = [*RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={free_port()}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--include-dashboard=true", "--num-cpus=2"]
    command += ["--object-store-memory=100000000", f"--temp-dir={folder}", "--disable-usage-stats"]
    address = f"http://127.0.0.1:{port}"
    with (folder / "head.log").open("w") as log:
        # From a folder without the project: what a job needs has to be carried there.
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, cwd=folder)
        try:
            for _ in range(90):
                listed = subprocess.run(
                    [*RAY, "job", "list", "--address", address], env=ENVIRONMENT, capture_output=True
                )
                if listed.returncode == 0:
                    break
                assert process.poll() is None, (folder / "head.log").read_text()
                time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_farm_is_submitted_as_a_job(head: str, albums: list[Path], backbone: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    words = [*smoke_overrides(tmp_path, backbone), "farm.address=auto", "farm.pack_size=2"]
    command = [*RAY, "job", "submit", "--address", head, "--working-dir", "."]
    command += ["--", sys.executable, "-m", "launch", "farm", str(albums[0].parent), "--out", str(dataset), *words]
    for _ in range(20):
        run = subprocess.run(command, cwd=PROJECT_ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        # The head answers before it can take jobs, and says so.
        if "No available agent" not in run.stderr + run.stdout:
            break
        time.sleep(3)
    assert run.returncode == 0, f"{run.stdout[-6000:]}\n{run.stderr[-3000:]}"
    assert "2 of 2 albums done" in run.stdout
    records = read_index(dataset)
    assert [(record.name, record.state) for record in records] == [("man", "done"), ("woman", "done")]
    # The code came with the job: the packs ran from Ray's copy of it.
    log = (dataset / ".farm" / "packs" / "p000001" / "log.txt").read_text()
    assert "Texture" in log
