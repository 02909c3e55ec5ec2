"""A process that prepares albums one after another and writes down how each call ended, for a test to judge.

    python hostile_child.py JOB.json REPORT.jsonl

JOB: {"calls": [{"arguments": [...]}, ...], "guarded": folder, "out": folder, "limit_s": seconds}. Each line of the
report is {"code", "out", "err", "crash", "seconds", "peak_mib", "touched"}; `touched` lists what was opened that lies
in the guarded folder's `canary`, or was opened for writing outside `out`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Late(BaseException):
    """The album took too long."""


def _late(*_: object) -> NoReturn:
    raise _Late


class _Watch:
    """Sees every file that Python opens, and every folder that it lists."""

    def __init__(self, guarded: str, out: str) -> None:
        self.guarded, self.out = os.path.realpath(guarded), os.path.realpath(out)
        self.touched: list[str] = []
        self.busy = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy or event not in ("open", "os.listdir", "os.scandir"):
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        self.busy = True
        try:
            real = os.path.realpath(os.fsdecode(path))
            inside = real.startswith(self.guarded + os.sep)
            writes = event == "open" and bool((arguments[2] or 0) & _WRITES)
            if real.startswith(os.path.join(self.guarded, "canary")):
                self.touched.append(f"{event} {real!a}")
            elif inside and writes and not (real + os.sep).startswith(self.out + os.sep):
                self.touched.append(f"{event} for writing {real!a}")
            elif real in ("/dev/zero", f"/proc/{os.getpid()}/mem"):
                self.touched.append(f"{event} {real!a}")
        finally:
            self.busy = False


def _call(arguments: list[str], limit_s: int, watch: _Watch) -> dict[str, Any]:
    from launch.__main__ import main

    watch.touched = []
    files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - closed below, once read
    saved = [os.dup(number) for number in (1, 2)]
    for number, file in enumerate(files, 1):
        # Decoders in C write past Python's streams.
        os.dup2(file.fileno(), number)
    crash, code = None, None
    started = time.monotonic()
    signal.alarm(limit_s)
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        crash = traceback.format_exc()
    finally:
        signal.alarm(0)
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(saved, 1):
            os.dup2(old, number)
            os.close(old)
    said = []
    for file in files:
        file.seek(0)
        said.append(file.read().decode("utf-8", "surrogateescape"))
        file.close()
    return {
        "code": code,
        "out": said[0],
        "err": said[1],
        "crash": crash,
        "seconds": time.monotonic() - started,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "touched": watch.touched,
    }


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    watch = _Watch(job["guarded"], job["out"])
    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, _late)
    with open(sys.argv[2], "w", encoding="ascii") as report:
        for call in job["calls"]:
            print(json.dumps(_call(call["arguments"], job["limit_s"], watch)), file=report, flush=True)


if __name__ == "__main__":
    main()
