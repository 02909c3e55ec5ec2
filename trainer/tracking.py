"""What a tracker such as Weights & Biases shows of a pack: which albums, under which names; and calls that never block.

Nothing here imports a tracker.
"""

from __future__ import annotations

import logging
import netrc
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from trainer.canonical import hash_json, to_plain
from trainer.metrics_table import FIGURES, PROTOCOLS, protocol_figures

if TYPE_CHECKING:
    from trainer.config import RunConfig

log = logging.getLogger(__name__)

TRACKERS_NAME = "trackers"
_MAX_WAITING = 10_000
# What a tracker may take at the end of a training; a server that does not answer by then is given up.
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """Where a training's tracker puts its files, and whose training it is.

    Attributes:
        folder: of the files.
        training: folder in it for trackers that keep trainings apart (TensorBoard).
        stage: first part of the names of metrics: "booth", "geometry" or "texture"; empty for a training of its own.
        albums: name to output folder; empty for a training that is of no album.
        group: under which the runs stand together; the name of the folder above the albums when empty.
        config: the resolved configuration, as plain values.
    """

    folder: Path
    training: str = ""
    stage: str = ""
    albums: Mapping[str, Path] = field(default_factory=dict)
    group: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pack(self) -> str:
        """A name of the pack, the same whenever the same albums go together."""
        return f"pack-{hash_json(sorted(str(folder.resolve()) for folder in self.albums.values()))[:8]}"


def tracked_albums(
    config: RunConfig, out: Path, albums: Mapping[str, Path], *, stage: str = "", training: str = ""
) -> Tracked:
    """How a pack's albums (name to output folder) in `out` are tracked, see `Tracked`."""
    return Tracked(
        folder=out / TRACKERS_NAME,
        training=training,
        stage=stage,
        albums=dict(albums),
        group=config.runtime.wandb_group or out.resolve().name,
        config=to_plain(config),
    )


def run_id(folder: Path) -> str:
    """Of the run that shows an output folder: whoever goes on with the album goes on with its run."""
    return f"puzzlebooth-{hash_json(folder.resolve())[:12]}"


def album_metrics(metrics: Mapping[str, float], album: str, stage: str) -> dict[str, float]:
    """A row of a pack's metrics as the run of one album shows it: `booth/loss`.

    Terms of the album (`album/<name>/<term>`) stand for the means over the pack, as in the report; the means are then
    called `booth/pack/<term>`. Terms of other albums are left out.
    """
    prefix, begin = f"album/{album}/", f"{stage}/" if stage else ""
    own = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    means = {name: value for name, value in metrics.items() if not name.startswith("album/") and name != "epoch"}
    where = f"{begin}pack/" if own else begin
    return {f"{begin}{name}": value for name, value in own.items()} | {
        f"{where}{name}": value for name, value in means.items()
    }


def album_figures(metrics: Mapping[str, Any], timings_s: Mapping[str, float]) -> dict[str, float]:
    """What a finished album's run says of it: `evaluate/avatar/chamfer_cm` and the like, and `seconds/booth`.

    metrics: what `AlbumResult` holds, row to protocols. Figures of the protocol "corrected" have the plain names, those
    of "reference" are called `evaluate/avatar/reference/chamfer_cm`.
    """
    found: dict[str, float] = {f"seconds/{stage}": float(seconds) for stage, seconds in timings_s.items()}
    for row, measured in metrics.items():
        for protocol in PROTOCOLS:
            between = "" if protocol == "corrected" else f"{protocol}/"
            figures = protocol_figures(measured, protocol)
            for name in FIGURES:
                if isinstance(figures.get(name), int | float):
                    found[f"evaluate/{row}/{between}{name}"] = float(figures[name])
    return found


def mean_figures(albums: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over albums of what all of them have."""
    shared = set.intersection(*map(set, albums)) if albums else set()
    return {name: sum(figures[name] for figures in albums) / len(albums) for name in sorted(shared)}


def wandb_mode() -> str:
    """What the environment asks for, "online" where somebody has given a key (or `wandb login`), else "offline"."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "")).hostname or "api.wandb.ai"
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        found = None
    return "online" if found else "offline"


class Background:
    """Calls things one after the other in a thread of its own, so that a server that hangs holds nobody up.

    The first one that fails, or too many that wait, end it with one warning; nothing is called after that.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._waiting: queue.Queue[Callable[[], object]] = queue.Queue(_MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._broken = False

    @property
    def is_broken(self) -> bool:
        """Whether it has given up."""
        return self._broken

    def call(self, work: Callable[[], object]) -> None:
        """Have `work` called soon; returns at once."""
        if self._broken:
            return
        if self._thread is None:
            # A daemon: a call that never returns must not keep the process from its end.
            self._thread = threading.Thread(target=self._run, name=f"{self.name} calls", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            self._give_up(f"it does not keep up ({_MAX_WAITING} calls are waiting)")

    def wait(self, timeout_s: float = PATIENCE_S) -> bool:
        """Wait until all has been called that was given so far; gives up, and says so, after the time."""
        if self._broken or self._thread is None:
            return not self._broken
        done = threading.Event()
        self.call(done.set)
        if not done.wait(timeout_s) and not self._broken:
            self._give_up(f"it has not answered for {timeout_s:g} s")
        return not self._broken

    def _run(self) -> None:
        while True:
            work = self._waiting.get()
            if self._broken:
                # Whoever waits is let go.
                if isinstance(getattr(work, "__self__", None), threading.Event):
                    work()
                continue
            try:
                work()
            except Exception as error:
                self._give_up(str(error) or type(error).__name__)

    def _give_up(self, reason: str) -> None:
        if not self._broken:
            self._broken = True
            log.warning("%s failed and is switched off: %s", self.name, reason)
