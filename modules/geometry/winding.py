"""Signs for distances to any triangle mesh, closed or not, by the generalised winding number (Jacobson et al. 2013)."""

from __future__ import annotations

import numpy as np

from modules.geometry.bvh import TriangleTree


def winding_number(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray, accuracy: float = 2.0) -> np.ndarray:
    """How often the surface goes round each point.

    points: (N, 3). vertices: (V, 3). faces: (T, 3), counter-clockwise from outside; holes and several parts are fine.
    accuracy: larger is slower and nearer to the exact sum (2 errs by a few hundredths, which the threshold of one half
    forgives). Returns (N,) float64: about 1 inside, 0 outside, in between near holes.
    """
    return TriangleTree(vertices, faces).winding_number(points, accuracy)


def signed_distance(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Distance in metres from points (N, 3) to a triangle mesh, negative inside: (N,) float64.

    The distance is exact; a point is inside where the winding number is above one half, so that meshes with holes have
    an inside too.
    """
    tree = TriangleTree(vertices, faces)
    distance, _ = tree.nearest(points)
    return np.where(tree.winding_number(points) > 0.5, -distance, distance)
