"""A tree of triangles that answers nearest-triangle and winding-number queries, compiled by numba.

The tree halves the triangles at the median of their longest extent. Every node keeps its bounding box, for exact
nearest distances with pruning, and its dipole (summed area vector at the area-weighted centre), for the fast winding
number of Barill et al. 2018: far groups of triangles count as one dipole, near ones exactly.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from scipy.spatial import cKDTree

_LEAF_SIZE = 8


@numba.njit(cache=True, fastmath=True, nogil=True)
def _squared_distance(px, py, pz, corners, t):  # pragma: no cover - compiled
    """Squared distance from a point to a triangle, by the region of the plane in which the projection falls."""
    ax, ay, az = corners[t, 0, 0], corners[t, 0, 1], corners[t, 0, 2]
    ux, uy, uz = corners[t, 1, 0] - ax, corners[t, 1, 1] - ay, corners[t, 1, 2] - az
    vx, vy, vz = corners[t, 2, 0] - ax, corners[t, 2, 1] - ay, corners[t, 2, 2] - az
    wx, wy, wz = px - ax, py - ay, pz - az
    uu, uv, vv = ux * ux + uy * uy + uz * uz, ux * vx + uy * vy + uz * vz, vx * vx + vy * vy + vz * vz
    uw, vw = ux * wx + uy * wy + uz * wz, vx * wx + vy * wy + vz * wz
    ww = wx * wx + wy * wy + wz * wz
    determinant = uu * vv - uv * uv
    if determinant > 1e-12 * uu * vv:
        s, r = (vv * uw - uv * vw) / determinant, (uu * vw - uv * uw) / determinant
        if s >= 0 and r >= 0 and s + r <= 1:
            x, y, z = wx - s * ux - r * vx, wy - s * uy - r * vy, wz - s * uz - r * vz
            return x * x + y * y + z * z
    # Otherwise the nearest point lies on an edge; that also covers triangles without area.
    best = 1e300
    s = min(1.0, max(0.0, uw / uu)) if uu > 0 else 0.0
    best = min(best, ww - 2 * s * uw + s * s * uu)
    s = min(1.0, max(0.0, vw / vv)) if vv > 0 else 0.0
    best = min(best, ww - 2 * s * vw + s * s * vv)
    ex, ey, ez = vx - ux, vy - uy, vz - uz
    fx, fy, fz = wx - ux, wy - uy, wz - uz
    ee, ef = ex * ex + ey * ey + ez * ez, ex * fx + ey * fy + ez * fz
    s = min(1.0, max(0.0, ef / ee)) if ee > 0 else 0.0
    best = min(best, fx * fx + fy * fy + fz * fz - 2 * s * ef + s * s * ee)
    return max(best, 0.0)


@numba.njit(cache=True, fastmath=True, nogil=True)
def _solid_angle(px, py, pz, corners, t):  # pragma: no cover - compiled
    """Signed solid angle of a triangle (Van Oosterom and Strackee 1983)."""
    ax, ay, az = corners[t, 0, 0] - px, corners[t, 0, 1] - py, corners[t, 0, 2] - pz
    bx, by, bz = corners[t, 1, 0] - px, corners[t, 1, 1] - py, corners[t, 1, 2] - pz
    cx, cy, cz = corners[t, 2, 0] - px, corners[t, 2, 1] - py, corners[t, 2, 2] - pz
    a = math.sqrt(ax * ax + ay * ay + az * az)
    b = math.sqrt(bx * bx + by * by + bz * bz)
    c = math.sqrt(cx * cx + cy * cy + cz * cz)
    numerator = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
    denominator = (
        a * b * c
        + (ax * bx + ay * by + az * bz) * c
        + (bx * cx + by * cy + bz * cz) * a
        + (cx * ax + cy * ay + cz * az) * b
    )
    return 2.0 * math.atan2(numerator, denominator)


@numba.njit(cache=True, nogil=True)
def _build(corners, leaf_size):  # pragma: no cover - compiled
    count = corners.shape[0]
    centers = np.empty((count, 3))
    for t in range(count):
        for k in range(3):
            centers[t, k] = (corners[t, 0, k] + corners[t, 1, k] + corners[t, 2, k]) / 3
    order = np.arange(count)
    capacity = max(1, 4 * count // leaf_size + 3)
    span = np.zeros((capacity, 2), np.int64)
    child = np.full(capacity, -1, np.int64)  # the second child follows the first
    span[0, 1] = count
    used = 1
    node = 0
    while node < used:
        start, end = span[node]
        if end - start > leaf_size:
            axis, widest = 0, -1.0
            for k in range(3):
                low, high = 1e300, -1e300
                for i in range(start, end):
                    low, high = min(low, centers[order[i], k]), max(high, centers[order[i], k])
                if high - low > widest:
                    axis, widest = k, high - low
            keys = np.empty(end - start)
            for i in range(start, end):
                keys[i - start] = centers[order[i], axis]
            order[start:end] = order[start:end][np.argsort(keys, kind="mergesort")]
            middle = (start + end) // 2
            child[node] = used
            span[used, 0], span[used, 1] = start, middle
            span[used + 1, 0], span[used + 1, 1] = middle, end
            used += 2
        node += 1
    box = np.empty((used, 6))
    dipole = np.zeros((used, 7))  # area vector, centre, radius
    for n in range(used):
        for k in range(3):
            box[n, k], box[n, 3 + k] = 1e300, -1e300
        total = 0.0
        for i in range(span[n, 0], span[n, 1]):
            t = order[i]
            ux, uy, uz = corners[t, 1] - corners[t, 0]
            vx, vy, vz = corners[t, 2] - corners[t, 0]
            nx, ny, nz = 0.5 * (uy * vz - uz * vy), 0.5 * (uz * vx - ux * vz), 0.5 * (ux * vy - uy * vx)
            area = math.sqrt(nx * nx + ny * ny + nz * nz)
            total += area
            dipole[n, 0] += nx
            dipole[n, 1] += ny
            dipole[n, 2] += nz
            for k in range(3):
                dipole[n, 3 + k] += area * centers[t, k]
                for corner in range(3):
                    box[n, k] = min(box[n, k], corners[t, corner, k])
                    box[n, 3 + k] = max(box[n, 3 + k], corners[t, corner, k])
        squared = 0.0
        for k in range(3):
            dipole[n, 3 + k] = dipole[n, 3 + k] / total if total > 0 else 0.5 * (box[n, k] + box[n, 3 + k])
            reach = max(box[n, 3 + k] - dipole[n, 3 + k], dipole[n, 3 + k] - box[n, k])
            squared += reach * reach
        dipole[n, 6] = math.sqrt(squared)
    return order, span[:used].copy(), child[:used].copy(), box, dipole


@numba.njit(cache=True, fastmath=True, nogil=True)
def _box_distance(px, py, pz, box, node):  # pragma: no cover - compiled
    x = max(max(box[node, 0] - px, px - box[node, 3]), 0.0)
    y = max(max(box[node, 1] - py, py - box[node, 4]), 0.0)
    z = max(max(box[node, 2] - pz, pz - box[node, 5]), 0.0)
    return x * x + y * y + z * z


@numba.njit(cache=True, nogil=True)
def _nearest(points, guess, corners, order, span, child, box, distance, index):  # pragma: no cover - compiled
    stack = np.empty(128, np.int64)
    for i in range(points.shape[0]):
        px, py, pz = points[i, 0], points[i, 1], points[i, 2]
        best_t = guess[i]
        best = _squared_distance(px, py, pz, corners, best_t)
        stack[0], top = 0, 1
        while top:
            top -= 1
            node = stack[top]
            if _box_distance(px, py, pz, box, node) >= best:
                continue
            if child[node] < 0:
                for k in range(span[node, 0], span[node, 1]):
                    squared = _squared_distance(px, py, pz, corners, order[k])
                    if squared < best:
                        best, best_t = squared, order[k]
                continue
            first, second = child[node], child[node] + 1
            if _box_distance(px, py, pz, box, first) < _box_distance(px, py, pz, box, second):
                first, second = second, first
            stack[top], stack[top + 1] = first, second
            top += 2
        distance[i], index[i] = math.sqrt(best), best_t


@numba.njit(cache=True, nogil=True)
def _winding(points, accuracy, corners, order, span, child, dipole, winding):  # pragma: no cover - compiled
    stack = np.empty(128, np.int64)
    for i in range(points.shape[0]):
        px, py, pz = points[i, 0], points[i, 1], points[i, 2]
        total = 0.0
        stack[0], top = 0, 1
        while top:
            top -= 1
            node = stack[top]
            x, y, z = dipole[node, 3] - px, dipole[node, 4] - py, dipole[node, 5] - pz
            distance = math.sqrt(x * x + y * y + z * z)
            if distance > accuracy * dipole[node, 6]:
                flux = dipole[node, 0] * x + dipole[node, 1] * y + dipole[node, 2] * z
                total += flux / (distance * distance * distance)
            elif child[node] < 0:
                for k in range(span[node, 0], span[node, 1]):
                    total += _solid_angle(px, py, pz, corners, order[k])
            else:
                stack[top], stack[top + 1] = child[node], child[node] + 1
                top += 2
        winding[i] = total / (4 * math.pi)


class TriangleTree:
    """A tree over the triangles of vertices (V, 3) and faces (T, 3), T >= 1."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        if not len(faces):
            raise ValueError("a tree of triangles needs at least one triangle, found none")
        self._corners = np.ascontiguousarray(np.asarray(vertices, np.float64)[np.asarray(faces, np.int64)])
        self._order, self._span, self._child, self._box, self._dipole = _build(self._corners, _LEAF_SIZE)
        self._centers = cKDTree(self._corners.mean(1))

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exact distance (N,) float64 from points (N, 3), in the vertices' unit, and the nearest triangle (N,)
        int64."""
        points = np.ascontiguousarray(points, np.float64).reshape(-1, 3)
        distance, index = np.empty(len(points)), np.empty(len(points), np.int64)
        if len(points):
            guess = self._centers.query(points)[1].astype(np.int64)
            _nearest(points, guess, self._corners, self._order, self._span, self._child, self._box, distance, index)
        return distance, index

    def winding_number(self, points: np.ndarray, accuracy: float = 2.0) -> np.ndarray:
        """Generalised winding number (N,) of points (N, 3): about 1 inside, 0 outside, in between near holes.

        accuracy: a group of triangles counts as one dipole beyond this many times its radius; errors shrink with it.
        """
        points = np.ascontiguousarray(points, np.float64).reshape(-1, 3)
        winding = np.empty(len(points))
        _winding(points, accuracy, self._corners, self._order, self._span, self._child, self._dipole, winding)
        return winding
