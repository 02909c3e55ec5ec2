"""What a search may choose: for a key of the configuration some values, a range, or one value that is fixed.

`tune` and the files of W&B sweeps share this; light to import.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from modules.errors import UserError
from trainer.config import RunConfig, all_keys, load_config, unknown_key

Kind = Literal["fixed", "values", "uniform", "log_uniform", "int_uniform"]
DISTRIBUTIONS: Mapping[str, Kind] = {name: name for name in ("uniform", "log_uniform", "int_uniform")}  # type: ignore[misc]
# A drawn number has so many digits: enough for any setting, and a table of them can still be read.
_DIGITS = 4
_MAX_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One key of the configuration and what it may be.

    Attributes:
        key: dotted, for example `booth.joint_phase.lr`.
        kind: "fixed" and "values" choose from `values`, the others draw a number from `low` to `high`, both included.
        values: of a kind that YAML knows; one for "fixed".
        low: the least number.
        high: the largest number.
    """

    key: str
    kind: Kind
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def draw(self, generator: random.Random) -> Any:
        """A value by chance."""
        match self.kind:
            case "fixed" | "values":
                return generator.choice(self.values)
            case "uniform":
                return self._rounded(generator.uniform(self.low, self.high))
            case "log_uniform":
                return self._rounded(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
            case "int_uniform":
                return generator.randint(int(self.low), int(self.high))

    def near(self, value: Any, generator: random.Random) -> Any:
        """A neighbour of a value: the next one of a list, or a number that is a fifth larger or smaller."""
        up = generator.random() < 0.5
        match self.kind:
            case "fixed":
                return value
            case "values":
                index = self.values.index(value) + (1 if up else -1)
                return self.values[min(max(index, 0), len(self.values) - 1)]
            case "int_uniform":
                step = max(1, round(abs(value) / 5))
                return int(min(max(value + (step if up else -step), self.low), self.high))
            case _:
                return self._rounded(value * (1.2 if up else 0.8))

    def extremes(self) -> tuple[Any, ...]:
        """Values that stand for all when the search space is checked."""
        if self.kind in ("fixed", "values"):
            return self.values
        return (int(self.low), int(self.high)) if self.kind == "int_uniform" else (self.low, self.high)

    def _rounded(self, value: float) -> float:
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def parse_dimension(key: str, said: Any, where: str, distributions: Mapping[str, Kind] = DISTRIBUTIONS) -> Dimension:
    """A dimension as a file says it: {values: [...]}, {min, max, distribution}, or the value itself.

    where: names the file in messages. distributions: what a file may call them, and what they are; the first one is
    taken where none is given. Raises UserError.
    """
    if not isinstance(said, Mapping):
        return Dimension(key=key, kind="fixed", values=(said,))
    names = set(said)
    if names == {"values"}:
        if not isinstance(said["values"], Sequence) or isinstance(said["values"], str) or not said["values"]:
            raise UserError(f"{where}: '{key}' has values {said['values']!r}, expected a list such as [1, 2].")
        return Dimension(key=key, kind="values", values=tuple(said["values"]))
    if not {"min", "max"} <= names <= {"min", "max", "distribution"}:
        found = ", ".join(sorted(map(str, names))) or "nothing"
        raise UserError(
            f"{where}: '{key}' has {found}, expected `values`, or `min`, `max` and `distribution`, or just a value."
        )
    low, high, name = said["min"], said["max"], said.get("distribution", next(iter(distributions)))
    if name not in distributions:
        raise UserError(f"{where}: '{key}' has distribution {name!r}, expected one of {', '.join(distributions)}.")
    kind = distributions[name]
    number = int if kind == "int_uniform" else (int, float)
    if not all(isinstance(end, number) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high)):
        wanted = "whole numbers" if kind == "int_uniform" else "numbers (write 1.0e-5: in YAML 1e-5 is a word)"
        raise UserError(f"{where}: '{key}' goes from {low!r} to {high!r}, expected {wanted}.")
    if low >= high or (kind == "log_uniform" and low <= 0):
        least = "min above 0 and " if kind == "log_uniform" else ""
        raise UserError(f"{where}: '{key}' goes from {low} to {high}, expected {least}min below max.")
    return Dimension(key=key, kind=kind, low=float(low), high=float(high))


def check_dimensions(
    dimensions: Sequence[Dimension],
    where: str,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    reserved: Mapping[str, str] | None = None,
) -> None:
    """Try every value, and both ends of every range, on the configuration that the search starts from.

    reserved: keys that cannot be searched, and why. Raises UserError for an unknown key or a value that it cannot have.
    """
    known = set(all_keys(RunConfig))
    for dimension in dimensions:
        if dimension.key not in known:
            raise UserError(f"{where}: {unknown_key(dimension.key, RunConfig, 'in the search space')}")
        if reason := (reserved or {}).get(dimension.key):
            raise UserError(f"{where}: '{dimension.key}' cannot be searched, since {reason}.")
    fixed = [word(dimension.key, dimension.values[0]) for dimension in dimensions if dimension.kind == "fixed"]
    for dimension in dimensions:
        for value in dimension.extremes():
            try:
                load_config(config, [*overrides, *fixed, word(dimension.key, value)])
            except UserError as error:
                said = str(error).replace(" on the command line", "")
                raise UserError(f"{where}: '{dimension.key}' cannot be {value!r}: {said}") from error


def draw_points(dimensions: Sequence[Dimension], num: int, seed: int) -> list[dict[str, Any]]:
    """So many points of the space, {key: value}, all different; fewer where there are not so many. The seed decides."""
    generator = random.Random(seed)
    points: list[dict[str, Any]] = []
    for _ in range(num):
        for _ in range(_MAX_TRIES):
            point = {dimension.key: dimension.draw(generator) for dimension in dimensions}
            if point not in points:
                points.append(point)
                break
    return points


def change_point(
    dimensions: Sequence[Dimension], point: Mapping[str, Any], generator: random.Random, *, resample: float
) -> dict[str, Any]:
    """A point near another one; each value is drawn anew with the probability `resample` (0 to 1)."""
    changed = {}
    for dimension in dimensions:
        anew = generator.random() < resample
        value = point[dimension.key]
        changed[dimension.key] = dimension.draw(generator) if anew else dimension.near(value, generator)
    return changed


def word(key: str, value: Any) -> str:
    """A key and its value as the command line takes them."""
    # Quotes only where YAML would take the word for something else.
    plain = isinstance(value, str) and yaml.safe_load(value) == value
    return f"{key}={value if plain else json.dumps(value)}"


def point_words(point: Mapping[str, Any]) -> list[str]:
    """A point as key=value words."""
    return [word(key, value) for key, value in point.items()]
