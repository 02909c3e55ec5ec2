"""The Ray cluster that a farm runs on: one that is there, or one that is started on this machine alone."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_CONNECT_S = 60.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A trial without a GPU must not hide all GPUs from whatever is started beside it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The dataset is the farm's memory; Tune's own files would be thousands of folders that nobody reads.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # Signals are the farm's: Tune would end its loop, and leave the packs to be killed.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # By default a searcher is asked for one trial at a time, since others learn from results. This one does not.
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Room for packs.

    Attributes:
        num: packs that can run at the same time.
        on_gpu: whether a pack has a GPU, or a part of one.
        cpus, gpus: that it holds.
        memory_gib: of the device, that it may fill.
    """

    num: int
    on_gpu: bool
    cpus: float
    gpus: float
    memory_gib: float


@contextlib.contextmanager
def ray_cluster(address: str, *, object_store_mb: int) -> Iterator[Any]:
    """The `ray` module, connected; what was started here is ended.

    Raises UserError when Ray is not installed, or nobody answers at the address.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("The farm needs Ray, which is not installed: pip install -e '.[farm]'.") from error
    paths = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")]))
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": paths, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
    }
    # In a job this names the job's cluster; Ray's own "auto" would take any that it finds on the machine.
    named = os.environ.get("RAY_ADDRESS", "")
    wanted = named or address if address in ("", "auto") else address
    if ray.is_initialized():
        yield ray
        return
    try:
        if wanted and wanted != "local":
            _connect(ray, wanted, common)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=object_store_mb * 2**20,
                num_cpus=len(os.sched_getaffinity(0)),
                **common,
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"No Ray cluster at '{wanted or 'local'}': {first}") from error
    try:
        yield ray
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:
    """Connect to a cluster, which may be just about to begin."""
    deadline_s = time.monotonic() + _CONNECT_S
    while True:
        try:
            ray.init(address=address, **options)
            return
        except (ConnectionError, RuntimeError, TimeoutError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(2)


def await_nodes(ray: Any, number: int, patience_s: float = _CONNECT_S) -> None:
    """Wait until a cluster has so many machines: those that join later would find packs planned for fewer."""
    deadline_s = time.monotonic() + patience_s
    while sum(node["Alive"] for node in ray.nodes()) < number and time.monotonic() < deadline_s:
        time.sleep(min(1.0, patience_s))


def find_workers(ray: Any, *, cpus: float, gpus: float, fraction: float) -> Workers:
    """How many packs a cluster has room for at the moment, and how much memory each.

    cpus, gpus: of a pack. fraction: of the memory that may be filled.

    Raises UserError when not even one pack fits.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    on_gpu = gpus > 0 and any(node["Resources"].get("GPU", 0) > 0 for node in nodes)
    num, memory_gib = 0, math.inf
    for node in nodes:
        have = node["Resources"]
        room = math.floor(have.get("CPU", 0) / cpus + 1e-6)
        if on_gpu:
            room = min(room, math.floor(have.get("GPU", 0) / gpus + 1e-6))
        if room:
            num += room
            # Ray's own figure leaves out what it keeps for itself.
            memory_gib = min(memory_gib, have.get("memory", 0) / 2**30 / room)
    if num == 0:
        most = max((node["Resources"].get("CPU", 0) for node in nodes), default=0)
        raise UserError(
            f"No machine of the cluster has room for a pack of {cpus:g} cores"
            + (f" and {gpus:g} GPUs" if on_gpu else "")
            + f" (the largest has {most:g} cores): give farm.cpus_per_pack or farm.gpus_per_pack."
        )
    if on_gpu:
        memory_gib = _gpu_gib(ray) * min(gpus, 1.0)
    return Workers(num=num, on_gpu=on_gpu, cpus=cpus, gpus=gpus if on_gpu else 0, memory_gib=memory_gib * fraction)


def this_machine(*, cpus: float, fraction: float) -> Workers:
    """Room for one pack, on this machine's GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        memory_gib, on_gpu = torch.cuda.get_device_properties(0).total_memory / 2**30, True
    else:
        memory_gib, on_gpu = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, False
    return Workers(num=1, on_gpu=on_gpu, cpus=cpus, gpus=float(on_gpu), memory_gib=memory_gib * fraction)


def _gpu_gib(ray: Any) -> float:
    """Memory of a GPU of the cluster, asked on the machine that has it."""

    @ray.remote(num_gpus=0.01, num_cpus=0.01, max_retries=2)
    def ask() -> float:
        import torch

        return torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else 0.0

    try:
        return float(ray.get(ask.remote(), timeout=180)) or 16.0
    except Exception:
        # A guess that any GPU of a cluster has; a pack that is too large halves itself.
        return 16.0
