"""PuzzleBooth's training on several devices, on this machine or on more: a process for each, started and waited for.

The process that a user started keeps the album's folders and their locks; the workers read the job from the training
folder and leave their checkpoint there. Of several machines all see this folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from modules.errors import UserError
from trainer.agent import STOP_KEY
from trainer.album_run import AlbumRun
from trainer.artifacts import write_json
from trainer.config import PROJECT_ROOT, load_dataclass, save_config
from trainer.runtime import RuntimeConfig

if TYPE_CHECKING:
    from trainer.packs import Pack

JOB_NAME, CONFIG_NAME, ERROR_NAME = "job.json", "job_config.yaml", "error.json"
# Time to finish a step and save. The agents kill a worker that takes longer, and are ended a little later.
_AGENT_GRACE_S, _GRACE_S, _KILL_AFTER_S = 50, 60, 15


def train_in_workers(pack: Pack, runs: Sequence[AlbumRun], work: Path, runtime: RuntimeConfig) -> None:
    """Train admitted albums in `runtime.num_processes` processes of their own; returns when all steps are done.

    An interrupt or a termination is passed on; the workers save and end, and the same command goes on from there.

    Raises:
        MemoryError: a worker ran out of memory.
        UserError: what a worker said, or that one died.
    """
    check_strategy(pack)
    save_config(dataclasses.replace(pack.config, runtime=runtime), work / CONFIG_NAME)
    albums = [
        {"name": run.name, "source": str(run.source.resolve()), "folder": str(run.folder.resolve())} for run in runs
    ]
    slots = pack.personalization.num_albums, pack.personalization.num_tokens
    job = {"albums": albums, "out": str(pack.out.resolve()), "slots": slots}
    write_json(work / JOB_NAME, job)
    (work / ERROR_NAME).unlink(missing_ok=True)
    # The memory of this process's device is wanted by the first worker.
    pack.backbone.cpu()
    # Here, where a free port is found and taken at once, and not on whichever node comes first.
    meeting = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    command = [*_agents(runtime, meeting.port), "--module", "trainer.worker", str(work.resolve())]
    paths = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        # And not whatever is called `trainer` in the folder that the user is in.
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": str(runtime.num_threads or 1),
        "TORCHELASTIC_ERROR_FILE": str(work / "torchelastic.json"),
    }
    try:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
    except OSError as problem:
        raise UserError(
            f"runtime.node_launcher cannot be started ({problem.strerror}: {problem.filename}): give a "
            "command of this machine."
        ) from problem
    try:
        code = process.wait()
    except BaseException:
        _end(process, meeting)
        raise
    finally:
        pack.settle()
    if code != 0:
        if (work / ERROR_NAME).is_file():
            error = json.loads((work / ERROR_NAME).read_text())
            raise (MemoryError if error["kind"] == "memory" else UserError)(error["message"])
        raise UserError(
            f"A process of the {runtime.num_processes} that trained together has died (exit code {code}); what it "
            "printed is above. Run the same command again to go on from the last checkpoint."
        )


def check_strategy(pack: Pack) -> None:
    """Refuse what cannot be shared out. Raises UserError."""
    strategy, kind = pack.config.runtime.strategy, pack.config.booth.adapter.kind
    if strategy == "fsdp" and kind != "full":
        raise UserError(
            f"runtime.strategy=fsdp shards a full fine-tuning, found booth.adapter.kind={kind}: use ddp or "
            "deepspeed_stage_2, or booth.adapter.kind=full."
        )
    check_devices(pack.config.runtime)


def check_devices(runtime: RuntimeConfig) -> None:
    """Refuse more devices than this node has. Raises UserError."""
    num_gpus = torch.cuda.device_count()
    if runtime.accelerator != "cpu" and 0 < num_gpus < runtime.devices:
        raise UserError(
            f"runtime.devices is {runtime.devices}, but this machine shows {num_gpus} GPU(s) ({socket.gethostname()}): "
            "give no more, or look at CUDA_VISIBLE_DEVICES."
        )


def _agents(runtime: RuntimeConfig, port: int) -> list[str]:
    """The command that starts an agent on each node; torchrun's arguments at its end."""
    alone = runtime.num_nodes == 1
    host = "localhost" if alone else socket.gethostname()
    return [
        *([] if alone else shlex.split(runtime.node_launcher)),
        *(sys.executable, "-m", "trainer.agent", f"{host}:{port}"),
        f"--nnodes={runtime.num_nodes}",
        f"--nproc-per-node={runtime.devices}",
        f"--rdzv-id={secrets.token_hex(8)}",
        f"--shutdown-timeout={_AGENT_GRACE_S}",
    ]


def _end(process: subprocess.Popen[bytes], meeting: torch.distributed.TCPStore) -> None:
    """Ask the workers to save and end, and wait; an interrupt, or too long a wait, kills them."""
    main = threading.current_thread() is threading.main_thread()
    # Another SIGTERM would only say the same.
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN) if main else None
    try:
        meeting.set(STOP_KEY, "")
        process.wait(_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        # First so that what starts agents can end those on other nodes.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_AFTER_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        if main:
            signal.signal(signal.SIGTERM, former)


def load_job(work: Path) -> tuple[Pack, list[AlbumRun]]:
    """A worker's side: the pack and its albums, with what the stages before have made."""
    from datamodules.assets import load_assets
    from trainer.config import RunConfig
    from trainer.packs import Pack

    config = load_dataclass(RunConfig, work / CONFIG_NAME)
    job = json.loads((work / JOB_NAME).read_text())
    runs = [
        AlbumRun(name=album["name"], source=Path(album["source"]), folder=Path(album["folder"]))
        for album in job["albums"]
    ]
    for run in runs:
        run.prepared = load_assets(run.stage("assets").path)
    return Pack(runs, config, out=Path(job["out"]), slots=tuple(job["slots"])), runs
