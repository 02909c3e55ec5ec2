"""A program that runs beside this process, writes to a log, and never outlives it.

Between the two stands a keeper, a small process that imports nothing of this project. It is told of its parent's death
by the end of a pipe, which also works where the parent is one of many threads of a Ray worker. With it die all that the
program has started, those in sessions of their own included: on Linux orphans are given to the keeper, and to nobody
else.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

_POLL_S = 0.1
# Beyond its own grace the keeper has only to end processes, which takes no longer than this.
_KEEPER_GRACE_S = 15.0
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36


def run_child(
    command: Sequence[str | Path],
    *,
    log: Path,
    stop: Callable[[], bool] = lambda: False,
    grace_s: float = 60.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> int:
    """Run a command to its end, in a session of its own; returns its exit code, 128 + n where signal n ended it.

    Whatever it has started and left behind is killed before this returns, and all of it at once when this process dies,
    be it with kill -9. An exception out of `stop`, and an interrupt, end the command as `stop` does.

    Args:
        command: words; the first one is looked for in PATH.
        log: what the command prints is appended to this file.
        stop: asked ten times a second; once it says True the command gets SIGTERM, and SIGKILL `grace_s` later.
        grace_s: seconds; 0 kills at once.
        env: the whole environment of the command; this process's own when None.
        cwd: the command's working folder; this process's own when None.

    Raises:
        OSError: the log cannot be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # By its path and without site packages: it starts in a few milliseconds and needs no project around it.
    keeper = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid()), str(float(grace_s))]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*keeper, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=None if env is None else dict(env),
            cwd=cwd,
        )
    try:
        while process.poll() is None and not stop():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
    finally:
        _end(process, grace_s)
    code = process.returncode
    return 128 - code if code < 0 else code


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Have the keeper end what is still there, and wait for it."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(grace_s + _KEEPER_GRACE_S)
    except BaseException as error:
        # The second interrupt of an impatient user, or a keeper that hangs: its end is that of the command.
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    finally:
        assert process.stdin is not None
        process.stdin.close()


# -- the keeper's side -------------------------------------------------------------------------------------------------


def _keep(parent: int, grace_s: float, command: list[str]) -> int:
    """Run the command, pass SIGTERM on to it, and kill it when the parent is gone."""
    prctl = _prctl()
    prctl(_SET_CHILD_SUBREAPER, 1)
    terminated: list[float] = []
    signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(time.monotonic()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        _become(command, prctl)
    passed_on = False
    try:
        while True:
            if (code := _reaped(pid)) is not None:
                return code
            if os.getppid() != parent or _is_closed(sys.stdin.fileno()):
                return 128 + signal.SIGKILL
            if terminated and not passed_on:
                passed_on = True
                if grace_s > 0:
                    _send(pid, signal.SIGTERM)
            if terminated and time.monotonic() - terminated[0] >= grace_s:
                # What this returns is how the command ended, not that it was told to.
                _send(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                return _exit_code(status)
    finally:
        _kill_all(pid)


def _become(command: list[str], prctl: Callable[[int, int], object]) -> NoReturn:
    try:
        os.setpgid(0, 0)
        # Should the keeper be killed, the command is as well.
        prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _reaped(pid: int) -> int | None:
    """The command's exit code once it has ended; adopted processes that have ended are cleared away."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (done := os.waitpid(-1, os.WNOHANG))[0] != 0:
            if done[0] == pid:
                found = _exit_code(done[1])
    return found


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _is_closed(pipe: int) -> bool:
    """Wait a moment for the parent's end of the pipe to be closed, or for a signal."""
    ready, _, _ = select.select([pipe], [], [], _POLL_S)
    return bool(ready) and not os.read(pipe, 1)


def _kill_all(pid: int) -> None:
    """Kill the command's group and all processes below this one, until there is none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + _KEEPER_GRACE_S / 2
    while time.monotonic() < deadline:
        left = list(_descendants(os.getpid()))
        for found in left:
            _send(found, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        if not left:
            return
        time.sleep(_POLL_S / 10)


def _descendants(root: int) -> Iterator[int]:
    """Processes below `root`, from /proc; none where there is no such folder."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                # The name of a program stands in brackets and may hold any character.
                children.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    waiting = [root]
    while waiting:
        found = children.get(waiting.pop(), [])
        yield from found
        waiting += found


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _prctl() -> Callable[[int, int], object]:
    """Linux's prctl; elsewhere a function that does nothing."""
    try:
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).prctl
    except (ImportError, OSError, AttributeError):
        return lambda option, value: None
    return lambda option, value: call(option, ctypes.c_ulong(value), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(_keep(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
