"""Constants of the shared body surface, and small mesh operations on it: normals, smoothing, sheets and tubes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numba
import numpy as np

from modules.geometry.body import STATURE_M, body_data


@dataclass(frozen=True, kw_only=True)
class CanonicalBody:
    """The neutral body at stature 1.70 m: canonical (V, 3), arm coordinate (V,), head weight (V,), neighbours as
    CSR.
    """

    vertices: np.ndarray
    arm: np.ndarray
    head: np.ndarray
    neighbor_start: np.ndarray
    neighbor: np.ndarray


def _along_arm(points: np.ndarray, shoulder: np.ndarray, elbow: np.ndarray, wrist: np.ndarray) -> np.ndarray:
    upper, lower = elbow - shoulder, wrist - elbow
    first = (points - shoulder) @ upper / (upper @ upper)
    second = (points - elbow) @ lower / (lower @ lower)
    return np.where(first < 1, 0.5 * first, 0.5 + 0.5 * np.maximum(second, 0))


@cache
def canonical_body() -> CanonicalBody:
    """Computed once per process from the body file."""
    data = body_data()
    vertices = data.vertices[0]
    scale = np.float32(STATURE_M / np.ptp(vertices[:, 1]))
    vertices, joints = vertices * scale, data.joints[0] * scale
    dense, names = data.dense_weights(), data.joint_names
    coordinate = np.full(len(vertices), -1.0)
    for side in ("left", "right"):
        chain = [names.index(f"{part}_{side}") for part in ("shoulder", "elbow", "wrist")]
        on_arm = dense[:, chain].sum(1) > 0.5
        coordinate[on_arm] = np.maximum(_along_arm(vertices, *joints[chain])[on_arm], 0.0)
    edges = np.unique(
        np.concatenate([data.faces[:, [a, b]] for a in range(3) for b in range(3) if a != b]).astype(np.int64), axis=0
    )
    start = np.searchsorted(edges[:, 0], np.arange(len(vertices) + 1))
    return CanonicalBody(
        vertices=vertices.astype(np.float32),
        arm=coordinate.astype(np.float32),
        head=dense[:, names.index("head")].astype(np.float32),
        neighbor_start=start.astype(np.int32),
        neighbor=edges[:, 1].astype(np.int32),
    )


@numba.njit(cache=True, fastmath=True, nogil=True)
def _accumulate_normals(vertices, faces, normals):  # pragma: no cover - compiled
    normals[:] = 0
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        vx, vy, vz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for corner in (a, b, c):
            normals[corner, 0] += nx
            normals[corner, 1] += ny
            normals[corner, 2] += nz
    for vertex in range(vertices.shape[0]):
        x, y, z = normals[vertex, 0], normals[vertex, 1], normals[vertex, 2]
        inverse = 1.0 / (np.sqrt(x * x + y * y + z * z) + 1e-12)
        normals[vertex, 0], normals[vertex, 1], normals[vertex, 2] = x * inverse, y * inverse, z * inverse


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) float32 unit normals, weighted by area, of vertices (V, 3) float32 and faces (T, 3) int32."""
    normals = np.empty_like(vertices)
    _accumulate_normals(vertices, faces, normals)
    return normals


@numba.njit(cache=True, fastmath=True, nogil=True)
def smooth(vertices, start, neighbor, amount, num_iterations):  # pragma: no cover - compiled
    """Laplacian smoothing of (V, 3) vertices, each moved by its own `amount` in [0, 1] towards its neighbours' mean."""
    current = vertices.copy()
    moved = vertices.copy()
    for _ in range(num_iterations):
        for vertex in range(vertices.shape[0]):
            weight = amount[vertex]
            if weight == 0:
                continue
            first, last = start[vertex], start[vertex + 1]
            for axis in range(3):
                mean = 0.0
                for slot in range(first, last):
                    mean += current[neighbor[slot], axis]
                moved[vertex, axis] = (1 - weight) * current[vertex, axis] + weight * mean / (last - first)
        current[:] = moved
    return current


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part added to the body, in canonical space.

    vertices: (P, 3) float32. faces: (Q, 3) int32. chart: (C, 2) texture coordinates in [0, 1], chart_vertex: (C,) the
    vertex of each, chart_faces: (Q, 3) into chart.
    """

    vertices: np.ndarray
    faces: np.ndarray
    chart: np.ndarray
    chart_vertex: np.ndarray
    chart_faces: np.ndarray


def grid_faces(num_rows: int, num_columns: int, *, closed: bool) -> np.ndarray:
    """(Q, 3) int32 triangles of a grid of vertices in row-major order; closed joins the last column to the first."""
    columns = np.arange(num_columns if closed else num_columns - 1)
    rows = np.arange(num_rows - 1)
    row, column = (part.ravel() for part in np.meshgrid(rows, columns, indexing="ij"))
    following = (column + 1) % num_columns
    a, b = row * num_columns + column, row * num_columns + following
    c, d = a + num_columns, b + num_columns
    return np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)]).astype(np.int32)


def _chart(num_rows: int, num_columns: int) -> np.ndarray:
    v, u = np.meshgrid(np.linspace(0, 1, num_rows), np.linspace(0, 1, num_columns), indexing="ij")
    return np.stack([u.ravel(), v.ravel()], 1)


def sleeve(rings: np.ndarray) -> Piece:
    """An open band from rings (R, C, 3), top to bottom, columns running rightwards as seen from outside."""
    num_rows, num_columns = rings.shape[:2]
    index = np.arange(num_rows * num_columns).reshape(num_rows, num_columns)
    return Piece(
        vertices=rings.reshape(-1, 3).astype(np.float32),
        faces=grid_faces(num_rows, num_columns, closed=True),
        chart=_chart(num_rows, num_columns + 1),
        chart_vertex=np.concatenate([index, index[:, :1]], 1).ravel(),
        chart_faces=np.concatenate(_seamed(num_rows, num_columns)).astype(np.int32),
    )


def _seamed(num_rows: int, num_columns: int) -> list[np.ndarray]:
    """The faces of a closed grid in the order of `grid_faces`, on a chart with one more column."""
    row, column = (part.ravel() for part in np.meshgrid(range(num_rows - 1), range(num_columns), indexing="ij"))
    a = row * (num_columns + 1) + column
    b, c = a + 1, a + num_columns + 1
    return [np.stack([a, c, b], 1), np.stack([b, c, c + 1], 1)]


def slab(outer: np.ndarray, inner: np.ndarray) -> Piece:
    """A closed volume between two grids (R, C, 3). Seen from outside, rows run downwards and columns rightwards."""
    num_rows, num_columns = outer.shape[:2]
    count = num_rows * num_columns
    faces = grid_faces(num_rows, num_columns, closed=False)
    index = np.arange(count).reshape(num_rows, num_columns)
    ring = np.concatenate([index[0, :-1], index[:-1, -1], index[-1, :0:-1], index[:0:-1, 0]])
    following = np.roll(ring, -1)
    rim = np.concatenate(
        [np.stack([ring, following, ring + count], 1), np.stack([following, following + count, ring + count], 1)]
    )
    faces = np.concatenate([faces, faces[:, [0, 2, 1]] + count, rim]).astype(np.int32)
    chart = _chart(num_rows, num_columns)
    chart_faces = faces.copy()
    chart_faces[-len(rim) :] %= count  # the rim takes the colours of the outer side's border
    return Piece(
        vertices=np.concatenate([outer.reshape(-1, 3), inner.reshape(-1, 3)]).astype(np.float32),
        faces=faces,
        chart=np.concatenate([chart * [0.48, 1.0], chart * [0.48, 1.0] + [0.52, 0.0]]),
        chart_vertex=np.arange(2 * count),
        chart_faces=chart_faces,
    )


def tube(path: np.ndarray, radius: np.ndarray, *, num_sides: int = 10, closed: bool = False) -> Piece:
    """A round tube along path (N, 3) with radius (N,); an open path should end with radii near zero."""
    following, before = np.roll(path, -1, 0), np.roll(path, 1, 0)
    tangent = following - before
    if not closed:
        tangent[0], tangent[-1] = path[1] - path[0], path[-1] - path[-2]
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    reference = np.array([1.0, 0.0, 0.0]) if abs(tangent[:, 0]).max() < 0.9 else np.array([0.0, 0.0, 1.0])
    side = np.cross(tangent, reference)
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    other = np.cross(tangent, side)
    angle = np.linspace(0, 2 * np.pi, num_sides, endpoint=False)
    ring = side[:, None] * np.cos(angle)[None, :, None] + other[:, None] * np.sin(angle)[None, :, None]
    vertices = path[:, None] + ring * radius[:, None, None]
    if closed:
        vertices = np.concatenate([vertices, vertices[:1]])
    piece = sleeve(vertices)
    centroid = vertices[0].mean(0)
    first = piece.vertices[piece.faces[0]]
    if np.cross(first[1] - first[0], first[2] - first[0]) @ (first.mean(0) - centroid) < 0:
        return Piece(
            vertices=piece.vertices,
            faces=piece.faces[:, [0, 2, 1]],
            chart=piece.chart,
            chart_vertex=piece.chart_vertex,
            chart_faces=piece.chart_faces[:, [0, 2, 1]],
        )
    return piece


def merge(pieces: list[Piece]) -> Piece:
    """Several pieces as one; their charts are stacked above each other."""
    vertex_base = np.cumsum([0] + [len(piece.vertices) for piece in pieces])
    chart_base = np.cumsum([0] + [len(piece.chart) for piece in pieces])
    count = len(pieces)
    return Piece(
        vertices=np.concatenate([piece.vertices for piece in pieces]),
        faces=np.concatenate([piece.faces + base for piece, base in zip(pieces, vertex_base, strict=False)]),
        chart=np.concatenate([(p.chart * [1, 0.9] + [0, 0.05 + i]) / [1, count] for i, p in enumerate(pieces)]),
        chart_vertex=np.concatenate([p.chart_vertex + base for p, base in zip(pieces, vertex_base, strict=False)]),
        chart_faces=np.concatenate([p.chart_faces + base for p, base in zip(pieces, chart_base, strict=False)]),
    )
