"""What every test relies on: one thread, no network, and a reason wherever a test is skipped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

# A shell that starts the tests in the background lets them, and the processes that they interrupt, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported anywhere: OpenMP and the hub's client read these when they are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As the command line sets them: what it prints is tested, and libraries must not add to it.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("house")


def _missing_for(marker: str) -> str | None:
    """Why tests of this marker cannot run here; None when they can."""
    match marker:
        case "gpu":
            import torch

            return None if torch.cuda.is_available() else "no CUDA device"
        case "slurm":
            path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
            needed = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare")
            absent = [name for name in needed if shutil.which(name, path=path) is None]
            if absent:
                return f"not installed: {', '.join(absent)}"
            if os.geteuid() != 0:
                return "needs root"
            # The cluster lives in namespaces of its own, which some containers do not allow.
            spaces = ["--mount", "--uts", "--net", "--ipc", "--pid", "--fork", "--mount-proc"]
            allowed = subprocess.run(["unshare", *spaces, "true"], capture_output=True, check=False).returncode == 0
            return None if allowed else "namespaces are not allowed here"
        case "browser":
            found = any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
            return None if found else "chromium is not installed"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker in ("gpu", "slurm", "browser"):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = _missing_for(marker) if marked else None
        if reason:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
