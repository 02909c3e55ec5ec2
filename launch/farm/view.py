"""Shows how a farm stands: in the terminal, in index.parquet and index.html, and in W&B."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.farm.gallery import write_gallery
from launch.farm.hosts import ClusterUse, cluster_use
from launch.farm.queue import PackQueue
from launch.farm.records import write_index
from launch.farm.summary import MAX_FAILURES, Summary
from modules.errors import OutputError

if TYPE_CHECKING:
    from trainer.loggers import SafeLogger

log = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0
_TERMINAL_EVERY_S = 1.0
# Writing a hundred thousand rows takes seconds: never more than a twentieth of the time.
_SHARE = 20.0
_TRACKED = ("albums_per_hour", "seconds_left", "workers", "memory_gib", "gpu_memory_gib", "gpu_percent")


class FarmView:
    """Looks at a queue now and then.

    Args:
        dataset: its folder.
        queue: what to show.
        index_every_s: see FarmConfig.
        tracker: W&B's run of the farm, where there is one.
    """

    def __init__(
        self, dataset: Path, queue: PackQueue, *, index_every_s: float, tracker: SafeLogger | None = None
    ) -> None:
        self.dataset, self.queue, self.index_every_s, self.tracker = dataset, queue, index_every_s, tracker
        self.started_s = time.monotonic()
        self._done_before = queue.counts()["done"]
        self._shown_s = self._indexed_s = float("-inf")
        self._index_took_s = 0.0
        self._use = ClusterUse()
        failed = [(name, record.reason or "") for name, record in queue.records.items() if record.state == "failed"]
        self._failures: deque[tuple[str, str]] = deque(failed[-MAX_FAILURES:], maxlen=MAX_FAILURES)
        self._status: Any = None

    def failed(self, name: str, reason: str) -> None:
        """An album has failed."""
        self._failures.append((name, reason))
        self._print(f"Album {name} failed: {reason}")

    def summary(self) -> Summary:
        """How the farm stands now."""
        counts = self.queue.counts()
        elapsed_s = time.monotonic() - self.started_s
        done = counts["done"] - self._done_before
        rate = done / elapsed_s * 3600 if done > 0 and elapsed_s > 0 else None
        left = counts["waiting"] + counts["running"]
        return Summary(
            counts=counts,
            albums_per_hour=rate,
            seconds_left=left / rate * 3600 if rate else None,
            elapsed_s=elapsed_s,
            gpu_percent=self._use.gpu_percent,
            gpu_memory_gib=self._use.gpu_memory_gib,
            memory_gib=self._use.memory_gib,
            workers=len(self.queue.running),
            failures=tuple(reversed(self._failures)),
        )

    def update(self, *, final: bool = False) -> None:
        """Show and write what is due."""
        now_s = time.monotonic()
        terminal = sys.stderr.isatty()
        if final or now_s - self._shown_s >= (_TERMINAL_EVERY_S if terminal else _LINE_EVERY_S):
            self._shown_s = now_s
            self._show(summary_line(self.summary()), final=final)
        if final or now_s - self._indexed_s >= max(self.index_every_s, self._index_took_s * _SHARE):
            self._use = cluster_use(self.dataset)
            self._track()
            if final and self.tracker is not None:
                self.tracker.finalize("success")
            try:
                self.write()
            except OutputError as error:
                # It is written again soon; a full disk is the packs' trouble already.
                if final:
                    raise
                log.warning("%s", error)
            self._indexed_s = time.monotonic()
            self._index_took_s = self._indexed_s - now_s

    def _track(self) -> None:
        if self.tracker is not None:
            summary = self.summary()
            figures = {name: getattr(summary, name) for name in _TRACKED}
            known = {name: float(value) for name, value in figures.items() if value is not None}
            counts = {name: float(number) for name, number in summary.counts.items()}
            # A farm that goes on shows its run where it stopped: seconds of the clock never go back.
            self.tracker.log_metrics(
                {f"farm/{name}": value for name, value in (counts | known).items()}, int(time.time())
            )

    def write(self) -> None:
        """Write the index and the page. Raises OutputError when the disk is full."""
        records = [self.queue.records[name] for name in sorted(self.queue.records)]
        write_index(self.dataset, records)
        write_gallery(self.dataset, records, self.summary())

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _show(self, line: str, *, final: bool) -> None:
        if not sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)
            return
        from rich.console import Console

        if self._status is None:
            self._status = Console(stderr=True).status("")
            self._status.start()
        self._status.update(line.replace("[", r"\["))
        if final:
            self.close()
            print(line, file=sys.stderr, flush=True)

    def _print(self, line: str) -> None:
        text = line if len(line) <= 300 else f"{line[:297]}..."
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def summary_line(summary: Summary) -> str:
    """One line: counts, rate, time left, use of machines."""
    parts = [
        f"{summary.count('done')} of {summary.total} albums done",
        f"{summary.count('running')} running",
        f"{summary.count('failed')} failed",
        f"{summary.count('waiting')} waiting",
        f"{summary.workers} packs at work",
    ]
    if summary.albums_per_hour is not None:
        parts.append(f"{summary.albums_per_hour:.1f} albums an hour")
    if summary.seconds_left:
        hours, minutes = divmod(round(summary.seconds_left / 60), 60)
        parts.append(f"{hours} h {minutes:02d} min left")
    if summary.gpu_percent is not None:
        parts.append(f"GPUs {summary.gpu_percent:.0f} %, {summary.gpu_memory_gib or 0:.0f} GiB")
    if summary.memory_gib is not None:
        parts.append(f"memory {summary.memory_gib:.0f} GiB")
    return ", ".join(parts)
