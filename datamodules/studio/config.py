"""Settings of the studio, apart from the code: reading them does not import what renders people."""

from __future__ import annotations

from dataclasses import dataclass

from datamodules.studio.vocabulary import HELD_OUT_SEED


@dataclass(frozen=True, kw_only=True)
class StudioConfig:
    """How many albums, and what is in one. resolution: pixels of a photo's side. num_workers: processes."""

    num_people: int = 4
    first_seed: int = HELD_OUT_SEED
    num_photos: int = 16
    resolution: int = 512
    num_workers: int = 2

    def __post_init__(self) -> None:
        for name in ("num_people", "num_photos", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.resolution < 32:
            raise ValueError(f"resolution must be at least 32, found {self.resolution}")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must be at least 0, found {self.first_seed}")
