"""Programs that run beside a process: their log, their end, and that none of them outlives whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.child import run_child

ROOT = Path(__file__).resolve().parents[3]


def wait_for(happened: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.02)
    return False


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids_in(path: Path, num: int) -> list[int]:
    """Numbers that a program writes into a file, once there are so many of them."""
    assert wait_for(lambda: path.exists() and len(path.read_text().split()) >= num), "the program has not started"
    return [int(word) for word in path.read_text().split()]


# Writes its own number and that of a process in a session of its own, which nobody in the family tree would find.
PARENT = """
import os, subprocess, sys, time
other = subprocess.Popen(["sleep", "300"], start_new_session=True)
print(os.getpid(), other.pid, file=open(sys.argv[1], "w"), flush=True)
{then}
"""


def program(path: Path, then: str = "time.sleep(300)") -> list[str]:
    return [sys.executable, "-c", PARENT.format(then=then), str(path)]


@pytest.mark.parametrize("code", [0, 3, 143])
def test_the_exit_code_and_what_is_printed_arrive(tmp_path: Path, code: int) -> None:
    log = tmp_path / "new" / "child.log"
    for _ in range(2):
        words = ["sh", "-c", f"echo said $WORD in $PWD; echo failed >&2; cat; exit {code}"]
        assert run_child(words, log=log, env=os.environ | {"WORD": "hello"}, cwd=tmp_path) == code
    assert log.read_text() == f"said hello in {tmp_path}\nfailed\n" * 2


def test_a_signal_that_ends_it_is_seen_in_the_exit_code(tmp_path: Path) -> None:
    assert run_child(["sh", "-c", "kill -SEGV $$"], log=tmp_path / "log") == 128 + signal.SIGSEGV


def test_a_program_that_is_not_there_is_said_in_the_log(tmp_path: Path) -> None:
    assert run_child(["no-such-program"], log=tmp_path / "log") == 127
    assert (tmp_path / "log").read_text() == "no-such-program: No such file or directory\n"


def test_stop_gives_it_time_to_save(tmp_path: Path) -> None:
    script = "trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.05; done"
    log = tmp_path / "log"
    code = run_child(["sh", "-c", script], log=log, stop=lambda: log.read_text() == "ready\n", grace_s=60)
    assert code == 143
    assert log.read_text() == "ready\nsaved\n"


@pytest.mark.parametrize("grace_s", [0.0, 0.3])
def test_one_that_does_not_listen_is_killed_with_all_that_it_has_started(tmp_path: Path, grace_s: float) -> None:
    pids = tmp_path / "pids"
    ignore = "import signal; signal.signal(15, signal.SIG_IGN); open(sys.argv[1] + '.deaf', 'w'); time.sleep(300)"
    deaf = program(pids, ignore)
    started = time.monotonic()
    code = run_child(deaf, log=tmp_path / "log", stop=(tmp_path / "pids.deaf").exists, grace_s=grace_s)
    assert code == 128 + signal.SIGKILL
    assert time.monotonic() - started < 15
    assert not any(is_alive(pid) for pid in pids_in(pids, 2))


def test_what_a_finished_program_leaves_behind_is_killed(tmp_path: Path) -> None:
    assert run_child(program(tmp_path / "pids", "sys.exit(5)"), log=tmp_path / "log") == 5
    assert not any(is_alive(pid) for pid in pids_in(tmp_path / "pids", 2))


def test_an_error_while_waiting_ends_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def stop() -> bool:
        if pids.exists():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run_child(program(pids), log=tmp_path / "log", stop=stop, grace_s=5)
    assert not any(is_alive(pid) for pid in pids_in(pids, 2))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """The parent waits in a thread that is not its main one, as in a Ray worker."""
    pids = tmp_path / "pids"
    script = (
        "import sys, threading; from pathlib import Path; from launch.child import run_child\n"
        "threading.Thread(target=lambda: run_child(sys.argv[2:], log=Path(sys.argv[1]))).start()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log"), *program(pids)], cwd=ROOT)
    family = pids_in(pids, 2)
    assert all(map(is_alive, family))
    parent.send_signal(number)
    parent.wait(10)
    assert wait_for(lambda: not any(map(is_alive, family)))


def test_it_dies_with_its_keeper(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def kill_keeper() -> bool:
        if pids.exists() and pids.read_text():
            status = Path(f"/proc/{pids_in(pids, 2)[0]}/stat").read_text()
            os.kill(int(status.rpartition(")")[2].split()[1]), signal.SIGKILL)
            # Until the keeper is seen to be gone there is nothing further to kill.
            pids.rename(tmp_path / "seen")
        return False

    assert run_child(program(pids), log=tmp_path / "log", stop=kill_keeper) == 128 + signal.SIGKILL
    leader, other = pids_in(tmp_path / "seen", 2)
    assert wait_for(lambda: not is_alive(leader))
    os.kill(other, signal.SIGKILL)
