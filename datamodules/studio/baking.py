"""The ground truth of a person: its A-posed mesh with the albedo and the assets baked into textures."""

from __future__ import annotations

import math

import numba
import numpy as np
from scipy.ndimage import distance_transform_edt

from datamodules.studio.materials import corner_arm, surface_point
from datamodules.studio.person import Person
from modules.geometry.mesh import TexturedMesh

TEXTURE_RESOLUTION = 1024


@numba.njit(cache=True, nogil=True)
def _bake(
    uv, uv_faces, faces, owner, canonical, arm, head, layers, colors, skin, brow, albedo, labels, known
):  # pragma: no cover - compiled
    size = albedo.shape[0]
    for face in range(faces.shape[0]):
        x0, y0 = uv[uv_faces[face, 0], 0] * size, uv[uv_faces[face, 0], 1] * size
        x1, y1 = uv[uv_faces[face, 1], 0] * size, uv[uv_faces[face, 1], 1] * size
        x2, y2 = uv[uv_faces[face, 2], 0] * size, uv[uv_faces[face, 2], 1] * size
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-9:
            continue
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        for row in range(
            max(0, int(math.floor(min(y0, min(y1, y2)) - 0.5))), min(size, int(math.ceil(max(y0, max(y1, y2)) + 0.5)))
        ):
            for column in range(
                max(0, int(math.floor(min(x0, min(x1, x2)) - 0.5))),
                min(size, int(math.ceil(max(x0, max(x1, x2)) + 0.5))),
            ):
                px, py = column + 0.5, row + 0.5
                w0 = ((x1 - px) * (y2 - py) - (x2 - px) * (y1 - py)) / area
                w1 = ((x2 - px) * (y0 - py) - (x0 - px) * (y2 - py)) / area
                w2 = 1.0 - w0 - w1
                if w0 < -1e-6 or w1 < -1e-6 or w2 < -1e-6:
                    continue
                x = canonical[a, 0] * w0 + canonical[b, 0] * w1 + canonical[c, 0] * w2
                y = canonical[a, 1] * w0 + canonical[b, 1] * w1 + canonical[c, 1] * w2
                z = canonical[a, 2] * w0 + canonical[b, 2] * w1 + canonical[c, 2] * w2
                along = corner_arm(arm[a], arm[b], arm[c], w0, w1, w2)
                top = head[a] * w0 + head[b] * w1 + head[c] * w2
                label, red, green, blue = surface_point(owner[face], x, y, z, along, top, layers, colors, skin, brow)
                albedo[row, column, 0], albedo[row, column, 1], albedo[row, column, 2] = red, green, blue
                labels[row, column] = label
                known[row, column] = True


def bake_textures(person: Person, resolution: int = TEXTURE_RESOLUTION) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (R, R, 3) uint8 and labels (R, R) uint8 (index into vocabulary.LABELS) of a person's atlas.

    Charts are grown into the unused texels beside them, so that interpolation at seams stays clean; texels farther than
    eight from any chart are black skin.
    """
    albedo = np.zeros((resolution, resolution, 3), np.float32)
    labels = np.zeros((resolution, resolution), np.uint8)
    known = np.zeros((resolution, resolution), bool)
    _bake(
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
    return TexturedMesh(
        vertices=person.vertices[person.uv_vertex], faces=person.uv_faces, uv=person.uv, texture=albedo
    )
