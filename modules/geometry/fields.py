"""What is optimised: colour fields and signed distances of a pack of albums.

Every parameter is stacked along a first axis of K albums and every operation stays within one album, so that an album's
field does not depend on the others of its pack. Shapes: K albums, P points, L levels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.geometry.config import ColorFieldConfig, SdfFieldConfig
from modules.geometry.tet_grid import TetGrid, smooth_on_grid

_HASH_PRIMES = (1, 2_654_435_761, 805_459_861)


class ColorField(nn.Module):
    """RGB for points inside a box. lower_m, upper_m: (3,) corners of the box; points outside see its nearest border."""

    lower_m: Tensor
    size_m: Tensor

    def __init__(self, num_albums: int, lower_m: np.ndarray, upper_m: np.ndarray) -> None:
        super().__init__()
        if num_albums < 1:
            raise ValueError(f"num_albums must be at least 1, found {num_albums}")
        lower, upper = np.asarray(lower_m, np.float32), np.asarray(upper_m, np.float32)
        if not (lower < upper).all():
            raise ValueError(f"lower_m must lie below upper_m along every axis, found {lower} and {upper}")
        self.num_albums = num_albums
        self.register_buffer("lower_m", torch.from_numpy(lower.copy()), persistent=False)
        self.register_buffer("size_m", torch.from_numpy(upper - lower), persistent=False)

    def unit(self, points: Tensor) -> Tensor:
        """Points (P, 3) in metres to the unit cube, clamped."""
        return ((points - self.lower_m) / self.size_m).clamp(0, 1)

    def forward(self, points: Tensor, album: int) -> Tensor:
        """Points (P, 3) in metres to RGB (P, 3) in [0, 1] of one album."""
        raise NotImplementedError


class DenseColorField(ColorField):
    """Trilinear lookups in dense grids of several cell sizes, summed, then a sigmoid; starts out grey everywhere."""

    def __init__(
        self, num_albums: int, lower_m: np.ndarray, upper_m: np.ndarray, config: ColorFieldConfig | None = None
    ) -> None:
        super().__init__(num_albums, lower_m, upper_m)
        config = config or ColorFieldConfig()
        shapes = [torch.ceil(self.size_m / cell).int().flip(0) + 1 for cell in config.cells_m]
        self.grids = nn.ParameterList(nn.Parameter(torch.zeros(num_albums, 3, *shape.tolist())) for shape in shapes)

    def forward(self, points: Tensor, album: int) -> Tensor:
        place = (self.unit(points) * 2 - 1).view(1, 1, 1, -1, 3)
        levels = [F.grid_sample(grid[album : album + 1], place, align_corners=True) for grid in self.grids]
        return torch.sigmoid(torch.stack(levels).sum(0).view(3, -1).T)


class HashGridField(ColorField):
    """A multiresolution hash grid and a small network (Müller et al. 2022), in plain torch.

    seeds: one per album, so that an album starts out the same in any pack; all zero by default.
    """

    _corners: Tensor

    def __init__(
        self,
        num_albums: int,
        lower_m: np.ndarray,
        upper_m: np.ndarray,
        config: ColorFieldConfig | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        super().__init__(num_albums, lower_m, upper_m)
        config = config or ColorFieldConfig(kind="hash")
        seeds = list(seeds) if seeds is not None else [0] * num_albums
        if len(seeds) != num_albums:
            raise ValueError(f"seeds must hold one seed per album, found {len(seeds)} for {num_albums} albums")
        growth = (config.max_resolution / config.base_resolution) ** (1 / max(config.num_levels - 1, 1))
        longest = float(self.size_m.max())
        self._levels: list[tuple[int, list[int], bool]] = []  # first entry, resolution per axis, hashed or not
        total = 0
        for level in range(config.num_levels):
            fineness = config.base_resolution * growth**level
            resolution = [max(1, int(np.ceil(fineness * float(side) / longest))) for side in self.size_m]
            num_corners = int(np.prod([side + 1 for side in resolution]))
            hashed = num_corners > 2**config.log2_table_size
            self._levels.append((total, resolution, hashed))
            total += 2**config.log2_table_size if hashed else num_corners
        self._mask = 2**config.log2_table_size - 1
        width = config.num_levels * config.features_per_level
        first, second, tables = [], [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            tables.append((torch.rand(total, config.features_per_level, generator=generator) * 2 - 1) * 1e-4)
            first.append(torch.randn(width, config.hidden, generator=generator) * (2 / width) ** 0.5)
            second.append(torch.randn(config.hidden, 3, generator=generator) * (1 / config.hidden) ** 0.5)
        self.tables = nn.Parameter(torch.stack(tables))
        self.hidden_weight = nn.Parameter(torch.stack(first))
        self.hidden_bias = nn.Parameter(torch.zeros(num_albums, config.hidden))
        self.output_weight = nn.Parameter(torch.stack(second))
        self.output_bias = nn.Parameter(torch.zeros(num_albums, 3))
        corners = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)])
        self.register_buffer("_corners", corners, persistent=False)

    def _entries(self, corner: Tensor, level: tuple[int, list[int], bool]) -> Tensor:
        """Lattice corners (..., 3) int64 to entries of the table."""
        start, resolution, hashed = level
        x, y, z = corner.unbind(-1)
        if hashed:
            return start + ((x * _HASH_PRIMES[0] ^ y * _HASH_PRIMES[1] ^ z * _HASH_PRIMES[2]) & self._mask)
        return start + (z * (resolution[1] + 1) + y) * (resolution[0] + 1) + x

    def forward(self, points: Tensor, album: int) -> Tensor:
        unit, table = self.unit(points), self.tables[album]
        features = []
        for level in self._levels:
            resolution = unit.new_tensor(level[1])
            scaled = unit * resolution
            lower = torch.minimum(scaled.detach().floor(), resolution - 1)
            fraction = (scaled - lower)[:, None]
            weights = torch.where(self._corners == 1, fraction, 1 - fraction).prod(2)
            entries = self._entries(lower.long()[:, None] + self._corners, level)
            looked_up = table.index_select(0, entries.reshape(-1)).view(*entries.shape, table.shape[1])
            features.append((weights[..., None] * looked_up).sum(1))
        hidden = torch.relu(torch.cat(features, 1) @ self.hidden_weight[album] + self.hidden_bias[album])
        return torch.sigmoid(hidden @ self.output_weight[album] + self.output_bias[album])


def make_color_field(
    config: ColorFieldConfig,
    num_albums: int,
    lower_m: np.ndarray,
    upper_m: np.ndarray,
    seeds: Sequence[int] | None = None,
) -> ColorField:
    """The colour field of a pack; `seeds` (one per album) matter to "hash" only, since "dense" starts from zero."""
    match config.kind:
        case "dense":
            return DenseColorField(num_albums, lower_m, upper_m, config)
        case "hash":
            return HashGridField(num_albums, lower_m, upper_m, config, seeds)


class SdfField(nn.Module):
    """Signed distances of K albums on one lattice, starting from the template's: `values` (K, N), negative inside."""

    def __init__(self, grid: TetGrid, num_albums: int, config: SdfFieldConfig | None = None) -> None:
        super().__init__()
        if num_albums < 1:
            raise ValueError(f"num_albums must be at least 1, found {num_albums}")
        self.config = config or SdfFieldConfig()
        self.grid = grid
        self.values = nn.Parameter(self._bounded(grid.template_sdf.expand(num_albums, -1)).clone())

    def forward(self, album: int) -> Tensor:
        """(N,) metres of one album."""
        return self.values[album]

    def _bounded(self, values: Tensor) -> Tensor:
        values = values.clamp(-self.config.limit_m, self.config.limit_m)
        if self.config.max_erosion_m is None:
            return values
        # Points deeper in the template than the erosion allows have template_sdf + max_erosion_m < 0: they stay inside.
        return torch.minimum(values, self.grid.template_sdf.to(values.device) + self.config.max_erosion_m)

    @torch.no_grad()
    def smooth_gradient_(self) -> None:
        """Average the gradient over the lattice; call between backward and the optimiser's step."""
        if self.values.grad is not None:
            self.values.grad.copy_(smooth_on_grid(self.grid, self.values.grad, self.config.smoothing_rounds))

    @torch.no_grad()
    def project_(self) -> None:
        """Put the values back into their bounds; call after the optimiser's step."""
        self.values.copy_(self._bounded(self.values))
