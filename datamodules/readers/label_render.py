"""Masks drawn from a scan whose vertices are labelled, through the calibrated camera of each photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modules.errors import UserError

_FACE_BELOW_TOP_M = 0.25


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoCamera:
    """A calibrated camera. intrinsics: (3, 3) in pixels of the photo as it was taken. extrinsics: (3, 4) from world to
    camera; camera space is x right, y down, z away from the camera.
    """

    intrinsics: np.ndarray
    extrinsics: np.ndarray

    def __post_init__(self) -> None:
        if not (np.isfinite(self.intrinsics).all() and np.isfinite(self.extrinsics).all()):
            raise UserError("has a camera with numbers that are not finite")
        if abs(float(np.linalg.det(self.extrinsics[:, :3])) - 1) > 1e-2:
            raise UserError("has a camera whose axes are no rotation")

    @property
    def eye(self) -> np.ndarray:
        """(3,) where it stands in the world."""
        return -self.extrinsics[:, :3].T @ self.extrinsics[:, 3]

    def pixels(self, vertices: np.ndarray) -> np.ndarray:
        """World points (V, 3) to (V, 3) float32: column, row, and distance in front of the camera."""
        points = vertices @ self.extrinsics[:, :3].T + self.extrinsics[:, 3]
        depth = points[:, 2:3]
        safe = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
        flat = points[:, :2] / safe * np.diag(self.intrinsics)[:2] + self.intrinsics[:2, 2]
        return np.concatenate([np.clip(flat, -1e6, 1e6), depth], 1).astype(np.float32)


def draw_labels(
    vertices: np.ndarray, faces: np.ndarray, labels: np.ndarray, camera: PhotoCamera, height: int, width: int
) -> np.ndarray:
    """(H, W) int16: the label that each pixel sees, -1 for none.

    Each corner of the visible triangle votes for its label with its barycentric weight. labels: (V,) from 0 on.
    """
    from modules.rendering.zbuffer import visible_triangles

    index, partial, _ = visible_triangles(camera.pixels(vertices), faces, height, width)
    seen = index >= 0
    corners = labels[faces[index[seen]]]
    weights = np.concatenate([partial[seen], 1 - partial[seen].sum(1, keepdims=True)], 1)
    votes = np.zeros((len(corners), int(labels.max()) + 1), np.float32)
    for corner in range(3):
        votes[np.arange(len(corners)), corners[:, corner]] += weights[:, corner]
    drawn = np.full((height, width), -1, np.int16)
    drawn[seen] = votes.argmax(1)
    return drawn


def find_face(
    vertices: np.ndarray, faces: np.ndarray, labels: np.ndarray, *, skin: int, hair: int, unit_m: float = 1.0
) -> np.ndarray:
    """(V,) bool: the skin of the head, which such labels do not tell from other skin.

    Of the patches of skin it is the one that borders most on hair, as far as 25 cm below the top of the hair (a head is
    20 to 24 cm tall). All False without hair. Vertices doubled at seams are joined first. y is up.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    found = np.zeros(len(vertices), bool)
    is_hair = labels == hair
    if not is_hair.any():
        return found
    _, point = np.unique(np.round(vertices / (1e-5 / unit_m)), axis=0, return_inverse=True)
    point = point.reshape(-1)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    is_skin = labels == skin
    inner = edges[is_skin[edges].all(1)]
    count = int(point.max()) + 1
    graph = coo_matrix((np.ones(len(inner)), (point[inner[:, 0]], point[inner[:, 1]])), (count, count))
    patch = connected_components(graph, directed=False)[1][point]
    ends = np.concatenate([edges, edges[:, ::-1]])
    touching = patch[ends[is_skin[ends[:, 0]] & is_hair[ends[:, 1]], 0]]
    # A point doubled at a seam may carry both labels.
    doubled = np.isin(point, point[is_hair]) & is_skin
    touching = np.concatenate([touching, patch[doubled]])
    if not len(touching):
        return found
    head = np.bincount(touching).argmax()
    top = float(vertices[is_hair, 1].max())
    return is_skin & (patch == head) & (vertices[:, 1] > top - _FACE_BELOW_TOP_M / unit_m)
