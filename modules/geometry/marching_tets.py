"""Differentiable surface extraction from signed distances on a tetrahedral lattice (marching tetrahedra).

Which edges are crossed has no gradient; where they are crossed has one, to the signed distances and to the offsets of
the lattice's vertices (Shen et al. 2021, Deep Marching Tetrahedra).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from modules.errors import AlbumFailed
from modules.geometry.tet_grid import TetGrid

_EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
# Distances are kept this far from zero, in spacings: a crossing on a lattice vertex would make triangles without area,
# and its gradient would have no bound.
_LEAST_DISTANCE = 1e-3


@cache
def _triangle_table() -> tuple[np.ndarray, np.ndarray]:
    """For each of 16 sign patterns (bit i: corner i inside): up to two triangles of edges (16, 2, 3), and how many.

    The winding is found on a reference tetrahedron, so that normals point from the inside corners to the outside ones.
    """
    reference = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    table, count = np.zeros((16, 2, 3), np.int64), np.zeros(16, np.int64)
    for pattern in range(1, 15):
        inside = [i for i in range(4) if pattern >> i & 1]
        outside = [i for i in range(4) if i not in inside]
        if len(inside) == 2:
            (a, b), (c, d) = inside, outside
            ring = [(a, c), (a, d), (b, d), (b, c)]
        else:
            ring = [(i, o) for i in inside for o in outside]
        edges = [_EDGES.index((min(pair), max(pair))) for pair in ring]
        middles = np.array([reference[list(pair)].mean(0) for pair in ring])
        normal = np.cross(middles[1] - middles[0], middles[2] - middles[0])
        if normal @ (reference[outside].mean(0) - reference[inside].mean(0)) < 0:
            edges.reverse()
        table[pattern, 0] = edges[:3]
        count[pattern] = len(edges) - 2
        if len(edges) == 4:
            table[pattern, 1] = edges[0], edges[2], edges[3]
    return table, count


def extract_mesh(grid: TetGrid, sdf: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The zero level set as triangles.

    sdf: (N,) metres, negative inside. offsets: (N, 3) metres added to the lattice's vertices, or None.
    Returns vertices (V, 3), differentiable with respect to sdf and offsets, and faces (T, 3) int64, counter-clockwise
    from outside. The mesh is closed: on the band's border the sign is held fixed, so that a surface that grows as far
    stops just inside the band. Raises AlbumFailed where nothing is left or a value is not finite.
    """
    if sdf.shape != (grid.num_vertices,):
        raise ValueError(f"sdf must have the shape ({grid.num_vertices},), found {tuple(sdf.shape)}")
    if not bool(torch.isfinite(sdf.detach()).all()):
        raise AlbumFailed("the geometry has signed distances that are not finite")
    least = _LEAST_DISTANCE * grid.spacing_m
    sdf = torch.where(grid.boundary_sign > 0, sdf.clamp(min=least), sdf)
    sdf = torch.where(grid.boundary_sign < 0, sdf.clamp(max=-least), sdf)
    value = sdf.detach()
    nudged = torch.where(value < 0, value.clamp(max=-least), value.clamp(min=least))
    sdf = sdf + (nudged - value)

    inside = value < 0
    pattern = (inside[grid.tets] * torch.tensor([1, 2, 4, 8], device=sdf.device)).sum(1)
    active = torch.nonzero((pattern > 0) & (pattern < 15)).squeeze(1)
    if not len(active):
        raise AlbumFailed("the geometry has no surface left: every signed distance has the same sign")
    crossed = inside[grid.edges[:, 0]] != inside[grid.edges[:, 1]]
    vertex_of_edge = torch.cumsum(crossed, 0) - 1

    table, count = (torch.from_numpy(part).to(sdf.device) for part in _triangle_table())
    pattern = pattern[active]
    ring = grid.tet_edges[active].gather(1, table[pattern].flatten(1))
    second = torch.nonzero(count[pattern] == 2).squeeze(1)
    faces = vertex_of_edge[torch.cat([ring[:, :3], ring[second, 3:]])]

    start, end = grid.edges[crossed].unbind(1)
    positions = grid.vertices.to(sdf.dtype) if offsets is None else grid.vertices.to(sdf.dtype) + offsets
    from_start, from_end = sdf.index_select(0, start), sdf.index_select(0, end)
    fraction = (from_start / (from_start - from_end))[:, None]
    first, last = positions.index_select(0, start), positions.index_select(0, end)
    return first + fraction * (last - first), faces
