"""What is to be done next, and what a pack's end means: the farm's decisions, without Ray and without waiting."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.farm.config import FarmConfig
from launch.farm.manifest import AlbumEntry, source_hash
from launch.farm.plan import PackPlan, PlannedPack, read_lines
from launch.farm.records import AlbumRecord, State, album_folder, read_record
from launch.farm.worker import LOG, Part, fail_album, log_end
from modules.errors import UserError
from trainer.artifacts import git_revision, versions

log = logging.getLogger(__name__)

Ending = Literal["done", "busy", "stopped", "trouble", "died", "lost"]
_TOGETHER: tuple[Part, ...] = ("all",)
_APART: tuple[Part, ...] = ("prepare", "train", "finish")
# Nodes go and farms are killed without a pack being to blame, so that counts for less.
_LOST_PER_DEATH = 4
_BUSY_AGAIN_S = 30.0
_LOG_TAIL_BYTES = 20_000
# So many packs are given out beyond those that have a device, so that none waits for the next.
_TRAINED_AHEAD = 2


class Nothing(enum.Enum):
    """Why there is no pack to begin."""

    NOW = "now"  # some will come: of running packs, of pauses
    EVER = "ever"


@dataclass
class _PackState:
    pack: PlannedPack
    parts: list[Part]  # that are left
    attempts: int = 0
    deaths: int = 0
    lost: int = 0
    progress: int = -1


class PackQueue:
    """Packs that wait, run, pause and are done.

    Args:
        dataset: its folder.
        entries: the albums.
        settings: hash of the configuration, see AlbumRecord.
        config: how to go about it.
        num_workers: packs that can run at the same time.
        apart: whether preparation and export are parts of their own.
        pack_size: (albums that wait) -> size of a new pack.
        clock: seconds, for tests.

    Attributes:
        records: what each album has come to.
        running: names of packs that have been given out and have not ended.
        drained: no pack is begun any more.
    """

    def __init__(
        self,
        dataset: Path,
        entries: Sequence[AlbumEntry],
        *,
        settings: str,
        config: FarmConfig,
        num_workers: int = 1,
        apart: bool = False,
        pack_size: Callable[[int], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dataset, self.settings, self.config = dataset, settings, config
        self.num_workers, self.parts = max(num_workers, 1), _APART if apart else _TOGETHER
        self.pack_size = pack_size or (lambda waiting: config.pack_size or config.max_pack_size)
        self.clock = clock
        self.plan = PackPlan(dataset)
        self.sources: dict[str, str] = {}
        self.records: dict[str, AlbumRecord] = {}
        self.running: dict[str, Part] = {}
        self.drained = False
        self._states: dict[str, _PackState] = {}
        self._ready: dict[Part, list[str]] = {part: [] for part in self.parts}
        self._paused: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._troubles, self._trouble_since_s, self._closed_until_s = 0, 0.0, float("-inf")
        self._busy: set[str] = set()
        self.add(entries)

    # -- albums -------------------------------------------------------------------------------------------------------

    def add(self, entries: Iterable[AlbumEntry]) -> list[str]:
        """Take in albums that are new; returns the names of those that are to be done."""
        fresh = [entry for entry in entries if entry.name not in self.sources]
        if not fresh:
            return []
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(self._look, fresh))
        self.records |= {record.name: record for record in found}
        self.sources |= {entry.name: entry.source for entry in fresh}
        wanted = [record.name for record in found if record.state == "waiting"]
        self.plan.refresh()
        if self.config.pack_size:
            # Packs that never began need not keep a size that is no longer wanted.
            planned = {self.plan.pack_of[name] for name in wanted if name in self.plan.pack_of}
            packs = [self.plan.packs[name] for name in sorted(planned)]
            too_large = [pack for pack in packs if not pack.parent and len(pack.albums) > self.config.pack_size]
            self.plan.regroup(too_large, self.config.pack_size)
        new = [name for name in wanted if name not in self.plan.pack_of]
        size = max(1, self.pack_size(len(new))) if new else 1
        self.plan.add(new[start : start + size] for start in range(0, len(new), size))
        for name in sorted({self.plan.pack_of[name] for name in wanted} - self._states.keys()):
            self._admit(self.plan.packs[name])
        return wanted

    def _look(self, entry: AlbumEntry) -> AlbumRecord:
        """What an album has come to; "waiting" where something is left to do."""
        record = read_record(self.dataset, entry.name)
        if record is not None and record.settings == self.settings and record.source == entry.source:
            if record.state == "failed" and not self.config.retry_failed:
                return record
            if record.state == "done":
                now = source_hash(entry.source) if self.config.check_sources else ""
                # An album whose photos are gone keeps its avatar.
                if now in ("", record.source_hash):
                    return record
        return AlbumRecord(name=entry.name, source=entry.source, state="waiting")

    def _admit(self, pack: PlannedPack) -> None:
        state = _PackState(pack, list(self.parts), progress=self._progress(pack))
        for row in read_lines(self.plan.attempts_path(pack.name)):
            if row.get("event") == "begin":
                state.attempts += 1
                state.lost += 1  # unless its end follows
            elif row.get("event") == "end":
                state.lost = max(0, state.lost - 1)
        self._states[pack.name] = state
        self._enqueue(state)

    def _enqueue(self, state: _PackState) -> None:
        self._ready[state.parts[0]].append(state.pack.name)

    # -- giving out ---------------------------------------------------------------------------------------------------

    def next(self) -> tuple[PlannedPack, Part] | Nothing:
        """The pack to begin now, and with which part: finishing before training, and training before preparing."""
        while self._paused and self._paused[0][0] <= self.clock():
            _, _, name = heapq.heappop(self._paused)
            self._busy.discard(name)
            self._enqueue(self._states[name])
        closed = self.drained or self.clock() < self._closed_until_s
        for part in () if closed else reversed(self.parts):
            if self._is_ahead(part):
                continue
            while self._ready[part]:
                state = self._states[self._ready[part].pop(0)]
                if not self._waiting(state.pack):
                    continue
                state.attempts += part == self.parts[0]
                self.running[state.pack.name] = part
                return state.pack, part
        if self.running or (not self.drained and (self._paused or any(self._ready.values()))):
            return Nothing.NOW
        return Nothing.EVER

    def _is_ahead(self, part: Part) -> bool:
        """Whether more of a part would only wait: for a GPU, or for somebody to train on what was prepared."""
        training = sum(running == "train" for running in self.running.values())
        match part:
            case "train":
                return training >= self.num_workers + _TRAINED_AHEAD
            case "prepare":
                return training + len(self._ready["train"]) >= 2 * self.num_workers + _TRAINED_AHEAD
        return False

    def begun(self, name: str) -> None:
        """A worker has taken the pack up."""
        for album in self._waiting(self._states[name].pack):
            self.records[album] = dataclasses.replace(self.records[album], state="running", pack=name)

    def attempt_of(self, name: str) -> int:
        return max(1, self._states[name].attempts)

    def _waiting(self, pack: PlannedPack) -> list[str]:
        return [
            name for name in pack.albums if name in self.records and self.records[name].state in ("waiting", "running")
        ]

    # -- ends ---------------------------------------------------------------------------------------------------------

    def ended(self, name: str, how: Ending, reason: str = "") -> list[str]:
        """A pack's part has come to its end. Returns the albums that are finished with it, done or failed.

        Raises UserError when the machine's trouble does not end.
        """
        state = self._states[name]
        part = self.running.pop(name)
        finished = self._gather(state)
        if how == "done":
            self._troubles = 0
            state.deaths = state.lost = 0
            state.parts = state.parts[1:] or [part]
            if self._waiting(state.pack):
                self._enqueue(state)
            return finished
        for album in self._waiting(state.pack):
            self.records[album] = dataclasses.replace(self.records[album], state="waiting")
        if not self._waiting(state.pack) or how == "stopped":
            return finished
        if how == "busy":
            self._busy.add(name)
            self._pause(state, _BUSY_AGAIN_S)
        elif how == "trouble":
            self._trouble(state, reason)
        else:
            finished += self._died(state, how, reason)
        return finished

    def _gather(self, state: _PackState) -> list[str]:
        """Read the records that a worker has left."""
        finished = []
        for name in self._waiting(state.pack):
            record = read_record(self.dataset, name)
            if record is None or record.settings != self.settings:
                continue
            # It may have been done by another farm on this dataset; but failed it has only if it did so now.
            now = record.pack == state.pack.name and record.attempts == state.attempts
            if record.state == "done" or now:
                self.records[name] = record
                finished.append(name)
        return finished

    def _trouble(self, state: _PackState, reason: str) -> None:
        """The machines' trouble is that of all packs: none begins for a while."""
        now_s = self.clock()
        if self._troubles == 0:
            self._trouble_since_s = now_s
        if now_s - self._trouble_since_s >= self.config.max_trouble_s and self._troubles:
            minutes = (now_s - self._trouble_since_s) / 60
            raise UserError(f"The farm gives up after {minutes:.0f} minutes in which all it tried ended so: {reason}")
        # Of packs that ran when it began, each tells of the same trouble.
        if now_s >= self._closed_until_s:
            self._troubles += 1
            self._closed_until_s = now_s + self._backoff_s(self._troubles)
            log.warning("No pack begins for %.0f s: %s", self._closed_until_s - now_s, reason)
        self._enqueue(state)

    def _died(self, state: _PackState, how: Ending, reason: str) -> list[str]:
        progress = self._progress(state.pack)
        if progress > state.progress:
            state.deaths = state.lost = 0
        state.progress = progress
        state.deaths += how == "died"
        state.lost += how == "lost"
        limit = self.config.max_attempts
        hopeless = state.deaths >= limit or state.lost >= limit * _LOST_PER_DEATH
        if len(state.pack.albums) > 1 and (hopeless or state.deaths >= min(2, limit)):
            halves = self.plan.split(state.pack.name)
            log.warning(
                "Pack %s has died %d times (%s): going on with its halves %s.",
                state.pack.name,
                state.deaths + state.lost,
                reason,
                " and ".join(half.name for half in halves),
            )
            for half in halves:
                self._admit(half)
            return []
        if hopeless:
            return self._give_up(state, reason)
        pause_s = self._backoff_s(state.deaths + state.lost)
        log.warning("Pack %s has died (%s); it begins again in %.0f s.", state.pack.name, reason, pause_s)
        self._pause(state, pause_s)
        return []

    def _give_up(self, state: _PackState, reason: str) -> list[str]:
        failed = self._waiting(state.pack)
        number = state.deaths + state.lost
        for name in failed:
            record = AlbumRecord(
                name=name,
                source=self.sources[name],
                state="failed",
                reason=f"its process died {number} times ({reason}); the last lines it printed are in traceback.txt",
                attempts=state.attempts,
                settings=self.settings,
                source_hash=source_hash(self.sources[name]),
                versions=versions(),
                git_revision=git_revision(),
                pack=state.pack.name,
                num_albums=len(state.pack.albums),
                finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
            fail_album(
                self.dataset,
                record,
                log_end(self.plan.pack_folder(state.pack.name) / LOG, _LOG_TAIL_BYTES) or "There is no log of it.\n",
            )
            self.records[name] = record
        return failed

    def _progress(self, pack: PlannedPack) -> int:
        """How many stages of a pack's albums are complete."""
        return sum(1 for name in pack.albums for _ in album_folder(self.dataset, name).glob("*/manifest.json"))

    def _pause(self, state: _PackState, seconds: float) -> None:
        heapq.heappush(self._paused, (self.clock() + seconds, next(self._order), state.pack.name))

    def _backoff_s(self, number: int) -> float:
        return min(self.config.backoff_s * 2.0 ** (number - 1), self.config.max_backoff_s)

    def only_busy(self) -> bool:
        """Whether all that is left is in the hands of other processes."""
        paused = {name for _, _, name in self._paused}
        return bool(paused) and paused <= self._busy and not self.running and not any(self._ready.values())

    # -- looking on ---------------------------------------------------------------------------------------------------

    def counts(self) -> dict[State, int]:
        """Albums by state."""
        found: dict[State, int] = {"done": 0, "running": 0, "failed": 0, "waiting": 0}
        for record in self.records.values():
            found[record.state] += 1
        return found
