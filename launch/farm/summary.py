"""How a farm stands at one moment: what the terminal, the dataset's page and the logger show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launch.farm.records import STATES, State

MAX_FAILURES = 20


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts and rates of a farm.

    Attributes:
        counts: state -> albums in it; a state that is missing counts as 0.
        albums_per_hour: rate at which albums are done; None while none is.
        seconds_left: until the last album, at that rate; None while it is not known.
        elapsed_s: since this farm was started.
        gpu_percent: mean use of the GPUs, 0 to 100; None without a GPU.
        gpu_memory_gib: GPU memory in use, all GPUs together; None without a GPU.
        memory_gib: main memory in use by the farm's processes; None where it cannot be told.
        workers: packs that run at the moment.
        failures: (album, reason) of the failed albums, the newest first; `MAX_FAILURES` of them at most.
    """

    counts: Mapping[State, int] = field(default_factory=dict)
    albums_per_hour: float | None = None
    seconds_left: float | None = None
    elapsed_s: float = 0.0
    gpu_percent: float | None = None
    gpu_memory_gib: float | None = None
    memory_gib: float | None = None
    workers: int = 0
    failures: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        unknown = set(self.counts) - set(STATES)
        if unknown:
            raise ValueError(f"counts must be of {', '.join(STATES)}, found {sorted(unknown)}")
        if len(self.failures) > MAX_FAILURES:
            raise ValueError(f"failures must hold at most {MAX_FAILURES}, found {len(self.failures)}")

    def count(self, state: State) -> int:
        """Albums in a state."""
        return self.counts.get(state, 0)

    @property
    def total(self) -> int:
        """All albums."""
        return sum(self.counts.values())

    @property
    def over(self) -> bool:
        """Whether no album runs or waits any more."""
        return not self.count("running") and not self.count("waiting")
