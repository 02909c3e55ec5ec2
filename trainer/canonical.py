"""Canonical JSON and content hashes: equal values give equal bytes, on every machine and in every process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def to_plain(value: Any) -> Any:
    """Turn dataclasses, paths, tuples, sets, mappings and numpy or torch scalars into plain JSON types.

    Raises:
        TypeError: for a value that has no canonical form (an object, a tensor of more than one element, a key that is
            not a string, number or None).
        ValueError: for NaN and infinity.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, found {value}")
        return float(value)
    if isinstance(value, Path):
        return value.as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if any(not isinstance(name, (str, int)) for name in value):
            raise TypeError(f"expected words or whole numbers as keys, found {list(value)}")
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [to_plain(item) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return to_plain(value.item())
    raise TypeError(f"no canonical form for {type(value).__name__}: {value!r}")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; see `to_plain` for what is taken and refused.

    A float that is a whole number is written as `2.0`, so 2 and 2.0 differ, as they do in a typed configuration.
    """
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_json(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(folder: Path, patterns: Sequence[str] = ("*",)) -> str:
    """SHA-256 (hex) of the relative names and contents of the files below `folder`.

    Args:
        folder: the root; its own name does not count.
        patterns: glob patterns of file names to take; files and folders whose name starts with a dot are left out.
    """
    folder = Path(folder)
    found = {
        path.relative_to(folder).as_posix(): path
        for pattern in patterns
        for path in folder.rglob(pattern)
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    return hash_json({name: hash_file(path) for name, path in found.items()})
