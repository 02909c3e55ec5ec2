"""What runs on each node of a training that is shared out: torchrun, to which a second SIGTERM says nothing new.

A cluster's scheduler sends SIGTERM to every process of a job, and the process that waits for the training passes its
own on. torchrun by itself takes the second one for impatience, and leaves workers behind that are about to save.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException


def main(words: Sequence[str]) -> int:
    """torchrun with these arguments; returns its exit code, or 143 when it was asked to end."""
    from torch.distributed.run import main as torchrun

    signal.signal(signal.SIGTERM, _end)
    try:
        torchrun(["--signals-to-handle=SIGINT,SIGHUP,SIGQUIT", *words])
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _end(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    # What torchrun's own handler raises: it ends the workers with this signal and waits for them.
    raise SignalException("asked to end", signal.Signals(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
