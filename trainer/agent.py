"""What runs on each node of a training that is shared out: torchrun, which the process that waits for it can end.

That process may be on another node, behind a command that starts agents and is not to be signalled: it would kill them
before they have saved. So it holds a store that every agent looks at, and its end is a request to end, too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.api import SignalException

STOP_KEY = "puzzlebooth/stop"
_LOOK_EVERY_S = 0.5


def main(words: Sequence[str]) -> int:
    """torchrun with the arguments behind the first one, which is the store's HOST:PORT; returns an exit code.

    An end that was asked for is no error: whoever started several agents might kill the others.
    """
    from torch.distributed.run import main as torchrun

    endpoint, *arguments = words
    host, port = endpoint.rsplit(":", 1)
    store = TCPStore(host, int(port), is_master=False, wait_for_workers=False)
    asked, ended = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, _end)
    watcher = threading.Thread(target=_watch, args=(store, asked, ended), daemon=True)
    watcher.start()
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-conf=is_host=0"]
    try:
        torchrun(["--signals-to-handle=SIGINT,SIGHUP,SIGQUIT", *meeting, *arguments])
    except SignalException as error:
        return 0 if asked.is_set() else 128 + error.sigval
    finally:
        # A thread that is inside of the store when the interpreter ends is unwound through C++, which aborts.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ended.set()
        watcher.join()
    return 0


def _watch(store: TCPStore, asked: threading.Event, ended: threading.Event) -> None:
    try:
        while not store.check([STOP_KEY]):
            if ended.wait(_LOOK_EVERY_S):
                return
    except RuntimeError:
        pass  # Nobody waits any more.
    asked.set()
    if not ended.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _end(number: int, frame: Any) -> None:
    # A cluster's scheduler may send one of its own. torchrun takes a second one for impatience, and leaves workers
    # behind that are about to save.
    signal.signal(number, signal.SIG_IGN)
    # What torchrun's own handler raises: it ends the workers with this signal and waits for them.
    raise SignalException("asked to end", signal.Signals(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
