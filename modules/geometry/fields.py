"""Colour fields of a pack of albums.

Every parameter is stacked along a first axis of K albums and every operation stays within one album, so that an album's
field does not depend on the others of its pack. Shapes: K albums, P points, L levels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.geometry.config import ColorFieldConfig
from modules.geometry.hash_grid import HashLayout

_MOST_FITTED = 20_000


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
        self._layout = HashLayout(
            self.size_m.tolist(),
            config.num_levels,
            config.log2_table_size,
            config.base_resolution,
            config.max_resolution,
        )
        total = self._layout.total
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

    def forward(self, points: Tensor, album: int) -> Tensor:
        unit, table = self.unit(points), self.tables[album]
        features = []
        for level in range(len(self._layout.levels)):
            entries, weights = self._layout.lookup(unit, level)
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


def fit_colors(
    field: ColorField, points: Tensor, colors: Tensor, *, steps: int = 60, learning_rate: float = 0.1
) -> None:
    """Bring a field of one album to given colours, in place, before it is trained.

    points: (P, 3) in metres. colors: (P, 3) in [0, 1]; rows with NaN are unknown and become grey. Deterministic.
    """
    known = torch.isfinite(colors).all(1)
    target = torch.where(known[:, None], colors, torch.full_like(colors, 0.5)).clamp(0.02, 0.98)
    stride = max(1, len(points) // _MOST_FITTED)
    points, target = points[::stride], target[::stride].to(points.dtype)
    optimizer = torch.optim.Adam(field.parameters(), learning_rate, betas=(0.9, 0.99))
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(field(points, 0), target).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
