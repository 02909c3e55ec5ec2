"""A tetrahedral lattice in a narrow band around a body, on which signed distances are stored.

Shapes: N lattice vertices, M tetrahedra, E edges. Signed distances are in metres and negative inside.
The lattice is body-centred cubic: corners of a cubic lattice plus the centres of its cells, four tetrahedra around each
edge between neighbouring centres (Labelle and Shewchuk 2007). All tetrahedra have the same, good shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from modules.geometry.config import TetGridConfig
from modules.geometry.winding import signed_distance

_EDGE_CORNERS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


@dataclass(frozen=True, kw_only=True)
class TetGrid:
    """The lattice, computed once per template.

    vertices: (N, 3) float32, metres. tets: (M, 4) int64, positively oriented. edges: (E, 2) int64, unique, ascending.
    tet_edges: (M, 6) int64 into `edges`, for the corner pairs 01, 02, 03, 12, 13, 23. template_sdf: (N,) float32.
    boundary_sign: (N,) float32; 1 on the band's outer border, -1 on its inner border, 0 elsewhere: surfaces may not
    reach the border, or they would be open there. adjacency: sparse (N, N) float32, the neighbours' mean.
    """

    vertices: Tensor
    tets: Tensor
    edges: Tensor
    tet_edges: Tensor
    template_sdf: Tensor
    boundary_sign: Tensor
    adjacency: Tensor = field(repr=False)
    spacing_m: float

    @property
    def num_vertices(self) -> int:
        return len(self.vertices)

    @classmethod
    def around_mesh(cls, vertices: np.ndarray, faces: np.ndarray, config: TetGridConfig | None = None) -> TetGrid:
        """Build the band around a mesh with vertices (V, 3) in metres and faces (T, 3); the mesh need not be closed."""
        config = config or TetGridConfig()
        vertices = np.asarray(vertices, np.float64)
        margin = config.outer_m + config.spacing_m
        points, tets = _lattice(vertices.min(0) - margin, vertices.max(0) + margin, config.spacing_m)
        # Most of the box is far away: distances are only worked out where a triangle can be within reach.
        centers = vertices[faces].mean(1)
        extent = np.linalg.norm(vertices[faces] - centers[:, None], axis=2).max()
        reach = max(config.outer_m, -config.inner_m) + extent + config.spacing_m
        near = np.isfinite(cKDTree(centers).query(points, distance_upper_bound=reach)[0])
        sdf = np.full(len(points), np.inf)
        sdf[near] = signed_distance(points[near], vertices, faces)
        inside_band = (sdf >= config.inner_m) & (sdf <= config.outer_m)
        kept = inside_band[tets].all(1)
        border = np.zeros(len(points), bool)
        border[tets[~kept]] = True
        tets = tets[kept]
        used, renumbered = np.unique(tets, return_inverse=True)
        sign = np.where(sdf < 0, -1.0, 1.0) * border
        return cls.from_tets(points[used], renumbered.reshape(-1, 4), sdf[used], sign[used], config.spacing_m)

    @classmethod
    def from_tets(
        cls, vertices: np.ndarray, tets: np.ndarray, sdf: np.ndarray, boundary_sign: np.ndarray, spacing_m: float
    ) -> TetGrid:
        """Derive edges and adjacency for any tetrahedra: the one way in, also for a refined lattice.

        vertices (N, 3), tets (M, 4) positively oriented, sdf (N,), boundary_sign (N,).
        """
        num_vertices = len(vertices)
        pairs = np.sort(tets[:, _EDGE_CORNERS].reshape(-1, 2), 1).astype(np.int64)
        keys, tet_edges = np.unique(pairs[:, 0] * num_vertices + pairs[:, 1], return_inverse=True)
        edges = np.stack([keys // num_vertices, keys % num_vertices], 1)
        both = np.concatenate([edges, edges[:, ::-1]])
        degree = np.bincount(both[:, 0], minlength=num_vertices)
        adjacency = torch.sparse_coo_tensor(
            torch.from_numpy(both.T.copy()),
            torch.from_numpy((1.0 / degree[both[:, 0]]).astype(np.float32)),
            (num_vertices, num_vertices),
            check_invariants=True,
        )
        return cls(
            vertices=torch.from_numpy(vertices.astype(np.float32)),
            tets=torch.from_numpy(tets.astype(np.int64)),
            edges=torch.from_numpy(edges),
            tet_edges=torch.from_numpy(tet_edges.reshape(-1, 6).astype(np.int64)),
            template_sdf=torch.from_numpy(sdf.astype(np.float32)),
            boundary_sign=torch.from_numpy(boundary_sign.astype(np.float32)),
            adjacency=adjacency.coalesce(),
            spacing_m=spacing_m,
        )

    def to(self, device: str | torch.device) -> TetGrid:
        """The same lattice on another device."""
        moved: dict[str, Any] = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **moved)


def smooth_on_grid(grid: TetGrid, values: Tensor, rounds: int = 4) -> Tensor:
    """Average values (..., N) over the lattice: each round takes half of itself and half of its neighbours' mean.

    Applied to the gradient of signed distances it moves whole patches of surface instead of single vertices.
    """
    columns = values.reshape(-1, grid.num_vertices).T
    for _ in range(rounds):
        columns = 0.5 * columns + 0.5 * torch.sparse.mm(grid.adjacency, columns)
    return columns.T.reshape(values.shape)


def _lattice(lower: np.ndarray, upper: np.ndarray, spacing_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) and positively oriented tetrahedra (M, 4) of a body-centred cubic lattice that covers a box."""
    num_cells = np.ceil((upper - lower) / spacing_m).astype(int) + 1
    num_corners = num_cells + 1
    corners = np.indices(num_corners).reshape(3, -1).T
    cells = np.indices(num_cells).reshape(3, -1).T
    points = lower + spacing_m * np.concatenate([corners, cells + 0.5])

    def corner_index(corner: np.ndarray) -> np.ndarray:
        return np.ravel_multi_index(tuple(corner.T), tuple(num_corners))

    def center_index(cell: np.ndarray) -> np.ndarray:
        return len(corners) + np.ravel_multi_index(tuple(cell.T), tuple(num_cells))

    tets = []
    for axis in range(3):
        step, first, second = np.eye(3, dtype=int)[[axis, (axis + 1) % 3, (axis + 2) % 3]]
        cell = cells[cells[:, axis] < num_cells[axis] - 1]
        # The square face between a cell and the next one, counter-clockwise around the axis.
        square = [corner_index(cell + step + offset) for offset in (0 * first, first, first + second, second)]
        lower_center, upper_center = center_index(cell), center_index(cell + step)
        for side in range(4):
            tets.append(np.stack([lower_center, square[side], square[(side + 1) % 4], upper_center], 1))
    return points, np.concatenate(tets)
