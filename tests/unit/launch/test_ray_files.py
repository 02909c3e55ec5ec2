"""What is handed to Ray's own programs: its cluster file, and the script that they copy away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from trainer.config import PROJECT_ROOT

CLUSTER = PROJECT_ROOT / "configs" / "clusters" / "ray.yaml"


def test_ray_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = CLUSTER.read_text()
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    # What is said of the command is true of it.
    assert "launch/ray_job.py farm" in text
    assert (PROJECT_ROOT / "launch" / "ray_job.py").is_file()


def test_the_script_runs_wherever_it_was_copied_to(tmp_path: Path) -> None:
    script = shutil.copy(PROJECT_ROOT / "launch" / "ray_job.py", tmp_path)
    (tmp_path / "albums").mkdir()
    run = subprocess.run(
        [sys.executable, script, "farm", "albums", "--out", "dataset", "farm.address=auto"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert "albums names no album" in run.stderr
