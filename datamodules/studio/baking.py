"""The ground truth of a person: its A-posed mesh with the albedo and the assets baked into textures."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from datamodules.studio.materials import bake_texels
from datamodules.studio.person import Person
from modules.geometry.mesh import TexturedMesh

TEXTURE_RESOLUTION = 1024


def bake_textures(person: Person, resolution: int = TEXTURE_RESOLUTION) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (R, R, 3) uint8 and labels (R, R) uint8 (index into vocabulary.LABELS) of a person's atlas.

    Charts are grown into the unused texels beside them, so that interpolation at seams stays clean; texels farther than
    eight from any chart are black skin.
    """
    albedo = np.zeros((resolution, resolution, 3), np.float32)
    labels = np.zeros((resolution, resolution), np.uint8)
    known = np.zeros((resolution, resolution), bool)
    bake_texels(
        person.uv, person.uv_faces, person.faces, person.owner, person.canonical, person.arm, person.head,
        person.layers, person.colors, person.skin, person.brow, albedo, labels, known,
    )  # fmt: skip
    distance, (row, column) = distance_transform_edt(~known, return_indices=True)
    near = distance <= 8
    albedo = np.where(near[..., None], albedo[row, column], 0)
    labels = np.where(near, labels[row, column], 0).astype(np.uint8)
    return (np.clip(albedo, 0, 1) * 255 + 0.5).astype(np.uint8), labels


def ground_truth_mesh(person: Person, albedo: np.ndarray) -> TexturedMesh:
    """The A-posed surface with its baked albedo (R, R, 3) uint8; seam vertices are doubled. Skirts are open below."""
    return TexturedMesh(vertices=person.vertices[person.uv_vertex], faces=person.uv_faces, uv=person.uv, texture=albedo)
