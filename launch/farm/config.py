"""Settings of a farm; `farm.KEY=value` on the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FarmConfig:
    """How albums are shared out among workers, and what happens when something goes wrong.

    Attributes:
        scheduler: "ray" runs packs on all of a cluster, "alone" one after the other on this machine, without Ray;
            several such processes may share a dataset.
        address: of a Ray cluster, for example "auto"; "" takes the environment's RAY_ADDRESS, or starts Ray here.
        await_nodes: so many machines of the cluster are waited for, a minute at most, before packs are planned.
        pack_size: albums of a pack; 0 plans it from memory, measured cost, deadline and the number of workers.
        max_pack_size: no planned pack is larger.
        cpus_per_pack: cores that a pack's training holds; 0 for runtime.num_threads, or one.
        gpus_per_pack: GPUs that it holds where the cluster has some; fractions put several packs on one GPU.
        cpu_stages_apart: prepare and export albums in trials of their own, which hold no GPU; "auto" does so where the
            cluster has GPUs.
        cpus_per_cpu_stage: cores that such a trial holds.
        memory_fraction: of a device's memory that plans may fill.
        max_attempts: an album whose pack has died so often without getting on, at last alone, is failed.
        backoff_s: pause before a pack that died begins anew; it doubles with each death.
        max_backoff_s: the longest such pause.
        max_trouble_s: when for so long all that was tried has ended with a full disk, or another trouble that no album
            is to blame for, the farm gives up.
        deadline_s: seconds from now within which all is to be done; packs are not planned larger than what fits. 0 for
            none.
        rescan_s: seconds between looks for albums that were added; 0 for never.
        index_every_s: seconds between two writings of index.parquet and index.html.
        check_sources: do an album again whose files have changed since.
        retry_failed: try albums again that failed in an earlier run.
        shards: write WebDataset shards at the end.
        shard_size_mb: of such a shard.
        grace_s: seconds that a pack has for its last checkpoint when it is asked to stop.
        end_file: a file that is made once the farm has come to its end by itself, for a script that starts it again
            otherwise; "" for none.
        object_store_mb: memory for Ray's object store where Ray is started here; packs do not use it.
    """

    scheduler: Literal["ray", "alone"] = "ray"
    address: str = ""
    await_nodes: int = 0
    pack_size: int = 0
    max_pack_size: int = 8
    cpus_per_pack: float = 0.0
    gpus_per_pack: float = 1.0
    cpu_stages_apart: Literal["auto", "always", "never"] = "auto"
    cpus_per_cpu_stage: float = 1.0
    memory_fraction: float = 0.9
    max_attempts: int = 3
    backoff_s: float = 10.0
    max_backoff_s: float = 600.0
    max_trouble_s: float = 3600.0
    deadline_s: float = 0.0
    rescan_s: float = 60.0
    index_every_s: float = 30.0
    check_sources: bool = True
    retry_failed: bool = True
    shards: bool = False
    shard_size_mb: float = 1000.0
    grace_s: float = 90.0
    end_file: str = ""
    object_store_mb: int = 100

    def __post_init__(self) -> None:
        least_values = {
            "await_nodes": 0,
            "pack_size": 0,
            "max_pack_size": 1,
            "cpus_per_pack": 0,
            "gpus_per_pack": 0,
            "max_attempts": 1,
            "backoff_s": 0,
            "max_backoff_s": 0,
            "max_trouble_s": 0,
            "deadline_s": 0,
            "rescan_s": 0,
            "index_every_s": 0,
            "grace_s": 0,
            "object_store_mb": 80,
        }
        for name, least in least_values.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} is {value}, expected at least {least}")
        for name in ("cpus_per_cpu_stage", "shard_size_mb"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(f"memory_fraction is {self.memory_fraction}, expected more than 0 and at most 1")
