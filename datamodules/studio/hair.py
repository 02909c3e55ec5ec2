"""Hair, caps' visors and glasses: closed pieces around the canonical head. The scalp itself is a layer on the body."""

from __future__ import annotations

from functools import cache

import numpy as np

from datamodules.studio.surface import Piece, canonical_body, merge, slab, tube

_HEAD_CENTER_Z_M = 0.035
_SCALP_Y_M = 1.66


@cache
def _hanging_radius(y_end_m: float, num_rows: int, num_columns: int, spread_deg: float) -> np.ndarray:
    """(R, C) metres from the head's axis at which hair hangs clear of skull, neck and back."""
    body = canonical_body()
    rows_m = np.linspace(_SCALP_Y_M, y_end_m, num_rows)
    angles = np.radians(np.linspace(-spread_deg, spread_deg, num_columns))
    directions = np.stack([np.sin(angles), -np.cos(angles)])
    usable = (body.arm < 0) & (abs(body.vertices[:, 0]) < 0.12) & (body.vertices[:, 1] > 1.15)
    points = body.vertices[usable]
    radius = np.empty((num_rows, num_columns))
    for row, y in enumerate(rows_m):
        near = points[abs(points[:, 1] - y) < 0.02]
        flat = np.stack([near[:, 0], near[:, 2] - _HEAD_CENTER_Z_M], 1)
        # Below the neck only what lies behind pushes the hair out.
        if y < 1.46:
            flat = flat[flat[:, 1] < 0]
        radius[row] = (flat @ directions).max(0) + (0.016 if y > 1.46 else 0.040)
    radius = np.maximum.accumulate(radius, axis=0)
    for _ in range(2):
        radius[1:-1] = 0.25 * radius[:-2] + 0.5 * radius[1:-1] + 0.25 * radius[2:]
    return radius


def hanging_hair(y_end_m: float) -> Piece:
    """Hair from the crown down to `y_end_m`, around the sides and the back of the head, as a closed volume."""
    num_rows, num_columns, spread_deg = 13, 21, 112.0
    y_end_m = round(y_end_m, 2)
    radius = _hanging_radius(y_end_m, num_rows, num_columns, spread_deg)
    rows_m = np.linspace(_SCALP_Y_M, y_end_m, num_rows)
    # Long hair gathers behind the shoulders.
    narrow = np.interp(rows_m, [1.34, 1.46], [0.62, 1.0])[:, None]
    angles = np.radians(np.linspace(-spread_deg, spread_deg, num_columns))[None] * narrow

    def sheet(distance: np.ndarray) -> np.ndarray:
        y = np.broadcast_to(rows_m[:, None], angles.shape)
        return np.stack([-distance * np.sin(angles), y, _HEAD_CENTER_Z_M - distance * np.cos(angles)], -1)

    # A wavy surface reads as hair even from far.
    waves = 0.0035 * np.sin(9 * np.linspace(-spread_deg, spread_deg, num_columns) / 10)[None]
    outer = radius + waves
    outer[0] -= 0.012
    inner = np.maximum(radius - 0.028, 0.02)
    return slab(sheet(outer), sheet(inner))


@cache
def ponytail() -> Piece:
    """A tail from the back of the head to the upper back."""
    t = np.linspace(0, 1, 12)[:, None]
    a, b, c, d = np.array([(0, 1.635, -0.04), (0, 1.67, -0.15), (0, 1.55, -0.145), (0, 1.39, -0.115)])
    path = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
    return tube(path, np.interp(t[:, 0], [0, 0.1, 0.4, 0.85, 1], [0.018, 0.022, 0.034, 0.022, 0.002]))


@cache
def bun() -> Piece:
    """A ball of hair on the back of the crown."""
    angle = np.linspace(0, np.pi, 10)
    start, direction = np.array([0, 1.683, -0.030]), np.array([0, 0.62, -0.78])
    path = start + direction * (0.042 * (1 - np.cos(angle)) - 0.042)[:, None]
    return tube(path, 0.044 * np.sin(angle) + 0.001, num_sides=14)


@cache
def visor() -> Piece:
    """The peak of a cap."""
    angles = np.radians(np.linspace(-62, 62, 15))[None]
    reach = np.linspace(0, 1, 5)[:, None]
    radius = 0.088 + 0.080 * reach * np.cos(angles * 0.8)
    x, z = -radius * np.sin(angles) * 0.93, 0.045 + radius * np.cos(angles)
    y = 1.652 - 0.030 * reach**1.5 - x**2
    top = np.stack([-x, y, z], -1)
    half_thickness = np.array([0, 0.004, 0])
    return slab(top + half_thickness, top - half_thickness)


@cache
def glasses() -> Piece:
    """Two rims, a bridge and two temples."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    thin = 0.0026
    pieces = []
    for side in (-1, 1):
        rim = np.stack([side * 0.032 + 0.0225 * np.cos(angle), 1.588 + 0.0185 * np.sin(angle), np.full(16, 0.150)], 1)
        rim[:, 2] -= 9.8 * rim[:, 0] ** 2  # they follow the face
        pieces.append(tube(rim, np.full(16, thin), num_sides=5, closed=True))
        temple = np.array([[side * 0.054, 1.594, 0.122], [side * 0.074, 1.598, 0.08], [side * 0.0785, 1.600, 0.03]])
        path = np.stack([np.interp(np.linspace(0, 2, 7), range(3), temple[:, axis]) for axis in range(3)], 1)
        pieces.append(tube(path, np.full(7, thin), num_sides=5))
    bridge = np.stack([np.linspace(-0.010, 0.010, 5), np.full(5, 1.592), np.full(5, 0.151)], 1)
    pieces.append(tube(bridge, np.full(5, thin), num_sides=5))
    return merge(pieces)
