"""Settings of the lattice and the fields on it, apart from the code: reading them does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TetGridConfig:
    """spacing_m: edge of the cubic cells. inner_m, outer_m: signed distances where the band ends."""

    spacing_m: float = 0.03
    inner_m: float = -0.07
    outer_m: float = 0.12

    def __post_init__(self) -> None:
        if not 0 < self.spacing_m < 1:
            raise ValueError(f"spacing_m must lie in (0, 1), found {self.spacing_m}")
        # Edges are at most one spacing long: beyond that, the band's two borders cannot share a tetrahedron.
        if self.inner_m > -self.spacing_m:
            raise ValueError(f"inner_m must be at most -spacing_m = {-self.spacing_m}, found {self.inner_m}")
        if self.outer_m < self.spacing_m:
            raise ValueError(f"outer_m must be at least spacing_m = {self.spacing_m}, found {self.outer_m}")


@dataclass(frozen=True, kw_only=True)
class SdfFieldConfig:
    """max_erosion_m: how far the surface may withdraw into the template, or None for no limit; outwards it is free.

    limit_m: signed distances stay within this of zero, so that the surface can still come back from far away.
    smoothing_rounds: how often gradients are averaged over the lattice.
    """

    max_erosion_m: float | None = 0.01
    limit_m: float = 0.15
    smoothing_rounds: int = 4

    def __post_init__(self) -> None:
        if self.max_erosion_m is not None and self.max_erosion_m < 0:
            raise ValueError(f"max_erosion_m must be at least 0 or none, found {self.max_erosion_m}")
        if not self.limit_m > 0:
            raise ValueError(f"limit_m must be positive, found {self.limit_m}")
        if self.smoothing_rounds < 0:
            raise ValueError(f"smoothing_rounds must be at least 0, found {self.smoothing_rounds}")


@dataclass(frozen=True, kw_only=True)
class ColorFieldConfig:
    """How colour is stored.

    kind: "dense" sums a few dense grids (fast on a CPU), "hash" is a multiresolution hash grid with a small network.
    cells_m: edge lengths in metres of the dense grids' cells. The rest belongs to "hash": num_levels grids whose
    resolution along the box's longest side grows from base_resolution to max_resolution, 2**log2_table_size entries of
    features_per_level numbers each, and one hidden layer of `hidden` units.
    """

    kind: Literal["dense", "hash"] = "dense"
    cells_m: tuple[float, ...] = (0.16, 0.08, 0.04, 0.02)
    num_levels: int = 16
    features_per_level: int = 2
    log2_table_size: int = 19
    base_resolution: int = 16
    max_resolution: int = 2048
    hidden: int = 32

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "hash"):
            raise ValueError(f"kind must be 'dense' or 'hash', found {self.kind!r}")
        if not self.cells_m or min(self.cells_m) <= 0:
            raise ValueError(f"cells_m must hold positive lengths in metres, found {self.cells_m}")
        for name in ("num_levels", "features_per_level", "base_resolution", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.max_resolution < self.base_resolution:
            raise ValueError(
                f"max_resolution must be at least base_resolution = {self.base_resolution}, found {self.max_resolution}"
            )
        if not 4 <= self.log2_table_size <= 24:
            raise ValueError(f"log2_table_size must lie in [4, 24], found {self.log2_table_size}")
