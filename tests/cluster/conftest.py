"""A private Slurm cluster of two nodes for a test's script, and what tiny runs on it are made of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import albums as albums
from tests.integration.conftest import backbone as backbone

PROJECT_ROOT = Path(__file__).resolve().parents[2]
Lab = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def lab(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Run a bash script on the login node of a new cluster (see lab.sh); returns what it printed and its exit code.

    The script runs in `tmp_path` with `set -euo pipefail`, and finds the variables PROJECT (the repository's root),
    PYTHON (this interpreter) and those given by keyword: also lab.sh's CORES, GPUS and MEMORY_MB. The nodes see the
    repository, the environment, and whatever lies in the session's temporary folders. Slurm's own logs are in
    tmp_path/lab-N/log.

    Keyword timeout_s: then everything is killed, and the test fails with what there was to read.
    """
    calls: list[Path] = []

    def run(script: str, *, timeout_s: float = 240, **variables: object) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / f"lab-{len(calls)}"
        calls.append(folder)
        shared = dict.fromkeys(map(str, (PROJECT_ROOT, tmp_path_factory.getbasetemp(), sys.prefix, sys.base_prefix)))
        # A job of this very cluster must not be taken for one of the cluster that the tests may be running on.
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        environment = outer | {
            "SHARED": " ".join(shared),
            "PROJECT": str(PROJECT_ROOT),
            "PYTHON": sys.executable,
            **{name: str(value) for name, value in variables.items()},
        }
        command = ["bash", str(PROJECT_ROOT / "tests/cluster/lab.sh"), str(folder)]
        command += ["bash", "-c", f"set -euo pipefail\n{script}"]
        # Files and no pipes: what the nodes leave behind could hold a pipe open after the end.
        out, err = folder.with_suffix(".out"), folder.with_suffix(".err")
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=stdout, stderr=stderr)
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                # The namespace's first process dies with it, and everything in there with that one.
                process.kill()
                process.wait()
                logs = "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in tmp_path.glob("*.out"))
                pytest.fail(f"The script has not ended within {timeout_s} s.\n{err.read_text()[-4000:]}\n{logs}")
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())

    return run
