"""Shapes whose area, volume, distances and coverage are known."""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from torch import Tensor

# Two triangles that fill the square from (0, 0) to (1, 1) in z = 0, seen from +z.
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
SQUARE_FACES = np.array([[0, 1, 2], [0, 2, 3]], np.int32)


def icosphere(subdivisions: int = 3, radius: float = 1.0, center: tuple[float, float, float] = (0, 0, 0)):
    """Vertices (V, 3) float32 and faces (T, 3) int32."""
    sphere = trimesh.creation.icosphere(subdivisions, radius)
    return (np.asarray(sphere.vertices) + center).astype(np.float32), np.asarray(sphere.faces, np.int32)


def capsule(height: float, radius: float, count: int = 16):
    """A capsule along y, standing on y = 0, in the avatar's frame."""
    shape = trimesh.creation.capsule(height=height, radius=radius, count=[count, count])
    vertices = np.asarray(shape.vertices)[:, [1, 2, 0]]
    vertices[:, 1] -= vertices[:, 1].min()
    return vertices.astype(np.float32), np.asarray(shape.faces, np.int32)


def pixels_to_clip(points: Tensor, resolution: int, depth: float = 2.0) -> Tensor:
    """Image positions (V, 2) in pixels (column, row) to clip space (1, V, 4) at one depth in metres."""
    x = points[:, 0] / resolution * 2 - 1
    y = 1 - points[:, 1] / resolution * 2
    w = torch.full_like(x, depth)
    return torch.stack([x * w, y * w, 0 * w, w], 1)[None]


def volume(vertices: Tensor, faces: Tensor) -> Tensor:
    """Signed volume of a closed mesh, by the divergence theorem."""
    first, second, third = (vertices[faces[:, i]] for i in range(3))
    return (first * torch.linalg.cross(second, third)).sum() / 6
