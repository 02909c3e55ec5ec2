"""Agents that torchrun's workers belong to: how they are started on several nodes, and how they are ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from trainer import workers
from trainer.agent import STOP_KEY
from trainer.runtime import RuntimeConfig

ROOT = Path(__file__).resolve().parents[3]
# What a node launcher does: two nodes, each with a name of its own, and an end with the first error.
LAUNCHER = """
import subprocess, sys, time
nodes = [subprocess.Popen(sys.argv[1:]) for _ in range(2)]
while None in (codes := [node.poll() for node in nodes]) and not any(codes):
    time.sleep(0.05)
for node in nodes:
    if node.poll() is None:
        node.kill()
sys.exit(any(codes))
"""
# Says that it is there; ends well after a moment once it is asked to, whatever it is asked in the meantime.
WORKER = """
import os, signal, sys, time
from pathlib import Path
def end(number, frame):
    signal.signal(number, signal.SIG_IGN)
    time.sleep(0.5)
    Path(sys.argv[1], "saved-" + os.environ["RANK"]).touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
Path(sys.argv[1], "began-" + os.environ["RANK"]).write_text(os.environ["WORLD_SIZE"])
if os.environ["RANK"] == os.environ.get("FAILS"):
    sys.exit(7)
time.sleep(60)
"""


def start(tmp_path: Path, **environment: str) -> tuple[subprocess.Popen[bytes], torch.distributed.TCPStore]:
    """A group of two nodes with a worker each."""
    launcher, worker = tmp_path / "each node.py", tmp_path / "stub_worker.py"
    launcher.write_text(LAUNCHER)
    worker.write_text(WORKER)
    runtime = RuntimeConfig(num_nodes=2, node_launcher=shlex.join([sys.executable, str(launcher)]))
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    command = [*workers._agents(runtime, store.port), str(worker), str(tmp_path)]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen(command, env=variables, start_new_session=True, stderr=subprocess.DEVNULL)
    end_s = time.monotonic() + 60
    while len(list(tmp_path.glob("began-*"))) < 2 and process.poll() is None and time.monotonic() < end_s:
        time.sleep(0.05)
    return process, store


def test_one_node_needs_no_launcher() -> None:
    command = workers._agents(RuntimeConfig(devices=3, node_launcher="never"), 1234)
    assert command[:4] == [sys.executable, "-m", "trainer.agent", "localhost:1234"]
    assert {"--nnodes=1", "--nproc-per-node=3"} <= set(command)


def test_a_group_over_two_nodes_saves_when_asked_however_often(tmp_path: Path) -> None:
    process, store = start(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.glob("began-*")} == {"began-0": "2", "began-1": "2"}
    agents = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    # As a scheduler does it: to everybody, at the same time.
    for agent in map(int, agents.stdout.split()):
        os.kill(agent, signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    workers._end(process, store)
    assert signal.getsignal(signal.SIGTERM) is before
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


def test_being_asked_is_no_error_of_an_agent(tmp_path: Path) -> None:
    process, store = start(tmp_path)
    store.set(STOP_KEY, "")
    assert process.wait(30) == 0
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


def test_an_agent_leaves_no_thread_inside_of_the_store(tmp_path: Path) -> None:
    # One that is there when the interpreter ends aborts the process, now and then.
    script = tmp_path / "agent_that_tells.py"
    script.write_text(
        "import sys, threading\n"
        "from trainer import agent\n"
        "code = agent.main(sys.argv[1:])\n"
        "print([thread.name for thread in threading.enumerate() if '_watch' in thread.name])\n"
        "sys.exit(code)\n"
    )
    worker = tmp_path / "worker_of_a_moment.py"
    worker.touch()
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    command = workers._agents(RuntimeConfig(), store.port)
    command[command.index("-m") : command.index("-m") + 2] = [str(script)]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, str(worker)], env=variables, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stdout


def test_agents_end_with_whoever_waits_for_them(tmp_path: Path) -> None:
    process, store = start(tmp_path)
    del store
    process.wait(30)
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


def test_the_death_of_a_worker_is_the_end_of_all(tmp_path: Path) -> None:
    process, _store = start(tmp_path, FAILS="1")
    assert process.wait(30) == 1


def test_who_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_GRACE_S", 0.5)
    monkeypatch.setattr(workers, "_KILL_AFTER_S", 0.5)
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    workers._end(process, store)
    assert process.returncode == -signal.SIGKILL
    process.stdout.close()
