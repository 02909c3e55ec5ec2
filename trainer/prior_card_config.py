"""Settings of the prior's card, light to import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """num_seeds: samples per colour and per view. num_people: held-out people for the loss."""

    num_seeds: int = 4
    num_people: int = 24
    num_steps: int = 25
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        for name in ("num_seeds", "num_people", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ParserCardConfig:
    """The parser's card. num_people: held-out people, photographed per_person times at resolution pixels a side.

    min_confidence: views that are said with less do not count as said. num_shown: pictures on the sheet.
    """

    num_people: int = 40
    per_person: int = 8
    resolution: int = 192
    min_confidence: float = 0.7
    num_shown: int = 24

    def __post_init__(self) -> None:
        for name in ("num_people", "per_person", "num_shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.resolution % 16:
            raise ValueError(f"resolution must be a multiple of 16, found {self.resolution}")
