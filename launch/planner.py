"""How many albums a pack should have: from memory, from what albums have cost so far, and from who is waiting."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Before anything is measured: a pack's time goes to start-up and to the shared model by two fifths of a single album's.
_FIRST_SHARED, _FIRST_OWN = 0.4, 0.6
# Process, libraries and the frozen model's copies besides its weights.
_PROCESS_GIB = 1.5
# A row of PuzzleBooth's step keeps activations of about this part of the UNet's weights in float32; measured with the
# mini prior (`python -m launch bench booth`: 80 rows in 1.5 GiB, 0.07 GiB of weights). Whatever does not fit is halved.
_ROW_TO_UNET = 0.28


@dataclass(frozen=True, kw_only=True)
class PackCost:
    """What a pack of K albums takes: `shared + own * K`, of seconds and of memory in GiB.

    seconds_known: whether seconds are seconds; before anything is measured they are parts of a single album's time.
    """

    shared_s: float = _FIRST_SHARED
    own_s: float = _FIRST_OWN
    shared_gib: float = _PROCESS_GIB
    own_gib: float = 0.2
    seconds_known: bool = False

    def seconds(self, num_albums: int) -> float:
        return self.shared_s + self.own_s * num_albums

    def memory_gib(self, num_albums: int) -> float:
        return self.shared_gib + self.own_gib * num_albums


def first_cost(unet_gib: float, rows_per_album: int) -> PackCost:
    """A guess from the model's size.

    unet_gib: of its weights in float32. rows_per_album: images of an album in one step of PuzzleBooth.
    """
    return PackCost(
        shared_gib=_PROCESS_GIB + 2 * unet_gib,
        own_gib=max(_ROW_TO_UNET * unet_gib * rows_per_album, 0.01),
    )


def measured_cost(rows: Iterable[Mapping[str, Any]], guess: PackCost, *, on_gpu: bool) -> PackCost:
    """The cost that finished packs had, by least squares; `guess` where there is none.

    rows: {"num_albums", "seconds", "memory_gib", "gpu_gib"} of packs. Where all had the same size, the guess decides
    how a pack's time and memory divide into what is shared and what is an album's own.
    """
    rows = [row for row in rows if row.get("seconds") and row.get("num_albums")]
    if not rows:
        return guess
    shared_s, own_s = _line(
        [(row["num_albums"], row["seconds"]) for row in rows], guess.shared_s / (guess.shared_s + guess.own_s)
    )
    memory = "gpu_gib" if on_gpu else "memory_gib"
    used = [(row["num_albums"], row[memory]) for row in rows if row.get(memory)]
    shared_gib, own_gib = guess.shared_gib, guess.own_gib
    if used:
        shared_gib, own_gib = _line(used, guess.shared_gib / (guess.shared_gib + guess.own_gib))
    return PackCost(shared_s=shared_s, own_s=own_s, shared_gib=shared_gib, own_gib=own_gib, seconds_known=True)


def plan_pack_size(
    cost: PackCost,
    *,
    num_albums: int,
    num_workers: int,
    device_gib: float,
    largest: int,
    deadline_s: float = math.inf,
) -> int:
    """The pack size with which all albums are done soonest; of equals the larger, which starts fewer processes.

    Args:
        cost: of a pack.
        num_albums: that are waiting.
        num_workers: packs that run at the same time.
        device_gib: memory that a pack may fill.
        largest: no more.
        deadline_s: a pack has to be done within so many seconds, if albums of it are to be done at all; counts once
            seconds have been measured.
    Returns 1 at least: a pack that does not fit halves itself.
    """
    best, best_s = 1, math.inf
    for size in range(1, max(1, min(largest, num_albums)) + 1):
        if size > 1 and cost.memory_gib(size) > device_gib:
            break
        if size > 1 and cost.seconds_known and cost.seconds(size) > deadline_s:
            break
        rounds = math.ceil(math.ceil(num_albums / size) / max(num_workers, 1))
        total_s = rounds * cost.seconds(size)
        if total_s <= best_s * (1 + 1e-9):
            best, best_s = size, total_s
    return best


def seconds_left(cost: PackCost, *, sizes: Sequence[int], num_workers: int) -> float | None:
    """Seconds for packs of these sizes that have not begun; None before anything is measured."""
    if not cost.seconds_known:
        return None
    return sum(cost.seconds(size) for size in sizes) / max(num_workers, 1)


def weights_gib(folder: Path) -> float:
    """Size in float32 of the weights in a folder's .safetensors files (from their headers) or .bin files, in GiB."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total * 4 / 2**30 or sum(path.stat().st_size for path in folder.glob("*.bin")) / 2**30


def _line(points: Sequence[tuple[int, float]], shared_part: float) -> tuple[float, float]:
    """(shared, own) of shared + own * K through the points, neither below zero."""
    sizes = np.array([size for size, _ in points], float)
    values = np.array([value for _, value in points], float)
    if np.ptp(sizes) > 0:
        own, shared = np.polyfit(sizes, values, 1)
        if own >= 0 and shared >= 0:
            return float(shared), float(own)
    # shared = part * (shared + own), hence value = shared * (1 + K * (1 - part) / part)
    shared_part = min(max(shared_part, 0.01), 0.99)
    shared = float(np.mean(values / (1 + sizes * (1 - shared_part) / shared_part)))
    return shared, shared * (1 - shared_part) / shared_part
