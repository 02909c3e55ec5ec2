"""Reads what W&B keeps of an offline run.

A .wandb file is seven bytes of header and then a log in blocks of 32 KiB, as LevelDB writes one, of protobuf records.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER, _BLOCK = 7, 32768


@dataclass
class OfflineRun:
    """One file: rows of history in order, the summary at its end, and what the run is called."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None


def read_run(path: Path) -> OfflineRun:
    """A run from its .wandb file; of one that was killed, as far as it was written."""
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun()
    for data in _chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                said = record.run
                run.id, run.name, run.group, run.job_type = (
                    said.run_id,
                    said.display_name,
                    said.run_group,
                    said.job_type,
                )
                run.tags = list(said.tags)
                run.config |= {_name(item): json.loads(item.value_json) for item in said.config.update}
            case "history":
                run.history.append({_name(item): json.loads(item.value_json) for item in record.history.item})
            case "summary":
                run.summary |= {_name(item): json.loads(item.value_json) for item in record.summary.update}
            case "metric":
                said = record.metric
                if said.step_metric:
                    run.step_metrics[said.glob_name or said.name] = said.step_metric
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def _name(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _chunks(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    position, begun = _HEADER, b""
    while position + 7 <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        piece = data[position + 7 : position + 7 + size]
        if len(piece) < size:
            return
        position += 7 + size
        match kind:
            case 1:
                yield piece
            case 2:
                begun = piece
            case 3:
                begun += piece
            case 4:
                yield begun + piece
