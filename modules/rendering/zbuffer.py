"""Which triangle each pixel sees: a perspective-correct z-buffer on the CPU, compiled by numba.

Shapes: T triangles, V vertices, an H x W image whose row 0 is the top one. Visibility has no useful gradient, so this
part stays outside autograd; barycentrics are computed again in torch where gradients matter.
"""

from __future__ import annotations

import math

import numba
import numpy as np


@numba.njit(cache=True, fastmath=True, nogil=True)
def _fill(points, faces, face_index, barycentric, depth):  # pragma: no cover - compiled
    height, width = face_index.shape
    face_index[:] = -1
    depth[:] = np.inf
    barycentric[:] = 0
    for face in range(faces.shape[0]):
        i0, i1, i2 = faces[face, 0], faces[face, 1], faces[face, 2]
        w0, w1, w2 = points[i0, 2], points[i1, 2], points[i2, 2]
        if w0 <= 1e-3 or w1 <= 1e-3 or w2 <= 1e-3:
            continue
        x0, y0 = points[i0, 0], points[i0, 1]
        x1, y1 = points[i1, 0], points[i1, 1]
        x2, y2 = points[i2, 0], points[i2, 1]
        row_first = max(0, math.ceil(min(y0, min(y1, y2)) - 0.5))
        row_last = min(height - 1, math.floor(max(y0, max(y1, y2)) - 0.5))
        col_first = max(0, math.ceil(min(x0, min(x1, x2)) - 0.5))
        col_last = min(width - 1, math.floor(max(x0, max(x1, x2)) - 0.5))
        if row_first > row_last or col_first > col_last:
            continue
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-12:
            continue
        inverse = 1.0 / area
        for row in range(row_first, row_last + 1):
            y = row + 0.5
            for col in range(col_first, col_last + 1):
                x = col + 0.5
                b0 = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) * inverse
                b1 = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) * inverse
                b2 = 1.0 - b0 - b1
                if b0 < 0 or b1 < 0 or b2 < 0:
                    continue
                q0, q1, q2 = b0 / w0, b1 / w1, b2 / w2
                z = 1.0 / (q0 + q1 + q2)
                if z < depth[row, col]:
                    depth[row, col] = z
                    face_index[row, col] = face
                    barycentric[row, col, 0] = q0 * z
                    barycentric[row, col, 1] = q1 * z


def clip_to_pixels(clip: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clip-space points (V, 4) to (V, 3) float32: pixel column, pixel row, and metres in front of the camera."""
    w = clip[:, 3:4]
    safe = np.where(np.abs(w) < 1e-6, 1e-6, w)
    x = (clip[:, 0:1] / safe * 0.5 + 0.5) * width
    y = (0.5 - clip[:, 1:2] / safe * 0.5) * height
    return np.concatenate([x, y, w], 1).astype(np.float32)


def visible_triangles(
    points: np.ndarray, faces: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rasterise triangles and keep the nearest one per pixel.

    points: (V, 3) float32 from `clip_to_pixels`. faces: (T, 3) int32; both windings are drawn.
    Returns face index (H, W) int32 with -1 for none, the first two perspective-correct barycentrics (H, W, 2) float32,
    and depth (H, W) float32 in metres (inf for none). Triangles that cross the camera plane are left out.
    """
    face_index = np.empty((height, width), np.int32)
    barycentric = np.empty((height, width, 2), np.float32)
    depth = np.empty((height, width), np.float32)
    _fill(
        np.ascontiguousarray(points, np.float32), np.ascontiguousarray(faces, np.int32), face_index, barycentric, depth
    )
    return face_index, barycentric, depth
