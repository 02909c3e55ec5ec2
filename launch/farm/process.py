"""A pack's part as a process of its own, watched by whoever gave it out.

The process can be asked to save and end, gives all memory back, and takes nothing with it when it dies. It never
outlives the one that started it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch.child import run_child
from launch.farm.hosts import HostUse
from launch.farm.plan import FARM
from launch.farm.worker import BUSY, DONE, LOG, STOPPED, TROUBLE, PackSpec, log_end
from modules.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_STOP_CHECK_S = 1.0


def run_pack_process(config: Mapping[str, Any], tick: Callable[[], None] = lambda: None) -> tuple[str, str]:
    """Run a pack's process to its end. Returns how it ended ("done", "busy", "stopped", "trouble", "died"), and why.

    config: {"spec": PackSpec as JSON, "stop": path of a file that asks everybody to end, "grace_s": seconds for that,
    "threads": of the process}. tick: called about every second.
    """
    spec = PackSpec.parse(config["spec"])
    folder = Path(spec.dataset) / FARM / "packs" / spec.pack
    try:
        code = run_child(
            [sys.executable, "-m", "launch.farm.worker", config["spec"]],
            log=folder / LOG,
            stop=_stop(Path(config["stop"]), HostUse(Path(spec.dataset)), tick),
            grace_s=config["grace_s"],
            env=child_environment(os.environ, config["threads"]),
            cwd=PROJECT_ROOT,
        )
    except (OSError, UserError) as error:
        return "trouble", str(error)
    names = {DONE: "done", BUSY: "busy", STOPPED: "stopped", TROUBLE: "trouble"}
    if code in names:
        return names[code], _last_line(folder / LOG) if code == TROUBLE else ""
    how = f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
    return "died", f"{how}: {last}" if (last := _last_line(folder / LOG)) else how


def child_environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    """The environment of a pack's process: this one's, without what makes Lightning look for Slurm's other tasks."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("SLURM_")}
    paths = [str(PROJECT_ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    # Ray sets it to the number of cores that the actor holds, where a user has not.
    kept["OMP_NUM_THREADS"] = str(threads)
    for name, value in (
        ("OMP_WAIT_POLICY", "passive"),
        ("PYTHONUNBUFFERED", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
    ):
        kept.setdefault(name, value)
    return kept


def _stop(path: Path, use: HostUse, tick: Callable[[], None]) -> Callable[[], bool]:
    asked_s = -_STOP_CHECK_S
    found = False

    def stop() -> bool:
        nonlocal asked_s, found
        if not found and time.monotonic() - asked_s >= _STOP_CHECK_S:
            asked_s = time.monotonic()
            found = path.exists()
            use.report()
            tick()
        return found

    return stop


def _last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log_end(path, 4000).splitlines()]
    return next((line for line in reversed(lines) if line), "")[:300]
