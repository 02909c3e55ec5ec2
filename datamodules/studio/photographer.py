"""Pictures of a person: colour, normal map and label map, rasterised on the CPU with 2 x 2 samples a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np

from datamodules.studio.materials import corner_arm, surface_point
from datamodules.studio.person import Person
from datamodules.studio.surface import vertex_normals
from datamodules.studio.vocabulary import NO_PERSON
from modules.geometry.camera import Camera
from modules.rendering.zbuffer import clip_to_pixels, visible_triangles

SUPERSAMPLING = 2
PLAIN_LEVELS = {"white": 0.93, "gray": 0.5, "black": 0.07}


@dataclass(frozen=True, kw_only=True)
class Light:
    """A distant light in camera space (x right, y up, z towards the viewer), and the light that comes from everywhere.

    ambient in [0, 1]; 1 gives the flat albedo. Brightness = ambient + (1 - ambient) * max(0, normal . direction).
    """

    direction: tuple[float, float, float] = (0.0, 0.0, 1.0)
    ambient: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.ambient <= 1:
            raise ValueError(f"ambient must lie in [0, 1], found {self.ambient}")


FLAT_LIGHT = Light()


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """rgb, normal: (R, R, 3) uint8, row 0 on top. label: (R, R) uint8 index into LABELS, NO_PERSON for the background."""

    rgb: np.ndarray
    normal: np.ndarray
    label: np.ndarray


@numba.njit(cache=True, fastmath=True, nogil=True)
def _shade(
    face_index, barycentric, faces, owner, canonical, arm, head, normals, layers, colors, skin, brow,
    rotation, light, ambient, background, rgb, normal_map, label_map,
):  # fmt: skip  # pragma: no cover - compiled
    size = face_index.shape[0]
    rgb[:] = 0
    normal_map[:] = 0
    share = 1.0 / (SUPERSAMPLING * SUPERSAMPLING)
    for row in range(size):
        i = row // SUPERSAMPLING
        for column in range(size):
            j = column // SUPERSAMPLING
            takes_label = row % SUPERSAMPLING == 1 and column % SUPERSAMPLING == 1
            face = face_index[row, column]
            if face < 0:
                for k in range(3):
                    rgb[i, j, k] += background[i, j, k] * share
                    normal_map[i, j, k] += 0.5 * share
                if takes_label:
                    label_map[i, j] = NO_PERSON
                continue
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            w0, w1 = barycentric[row, column, 0], barycentric[row, column, 1]
            w2 = 1.0 - w0 - w1
            x = canonical[a, 0] * w0 + canonical[b, 0] * w1 + canonical[c, 0] * w2
            y = canonical[a, 1] * w0 + canonical[b, 1] * w1 + canonical[c, 1] * w2
            z = canonical[a, 2] * w0 + canonical[b, 2] * w1 + canonical[c, 2] * w2
            along = corner_arm(arm[a], arm[b], arm[c], w0, w1, w2)
            top = head[a] * w0 + head[b] * w1 + head[c] * w2
            label, red, green, blue = surface_point(owner[face], x, y, z, along, top, layers, colors, skin, brow)
            nx = normals[a, 0] * w0 + normals[b, 0] * w1 + normals[c, 0] * w2
            ny = normals[a, 1] * w0 + normals[b, 1] * w1 + normals[c, 1] * w2
            nz = normals[a, 2] * w0 + normals[b, 2] * w1 + normals[c, 2] * w2
            vx = rotation[0, 0] * nx + rotation[0, 1] * ny + rotation[0, 2] * nz
            vy = rotation[1, 0] * nx + rotation[1, 1] * ny + rotation[1, 2] * nz
            vz = rotation[2, 0] * nx + rotation[2, 1] * ny + rotation[2, 2] * nz
            inverse = 1.0 / (math.sqrt(vx * vx + vy * vy + vz * vz) + 1e-9)
            # Open cloth is seen from both sides.
            if vz < 0 and owner[face] >= 0:
                inverse = -inverse
            vx, vy, vz = vx * inverse, vy * inverse, vz * inverse
            lit = ambient + (1 - ambient) * max(0.0, vx * light[0] + vy * light[1] + vz * light[2])
            rgb[i, j, 0] += min(red * lit, 1.0) * share
            rgb[i, j, 1] += min(green * lit, 1.0) * share
            rgb[i, j, 2] += min(blue * lit, 1.0) * share
            normal_map[i, j, 0] += (vx * 0.5 + 0.5) * share
            normal_map[i, j, 1] += (vy * 0.5 + 0.5) * share
            normal_map[i, j, 2] += (vz * 0.5 + 0.5) * share
            if takes_label:
                label_map[i, j] = label


def take_picture(
    person: Person,
    posed: np.ndarray,
    camera: Camera,
    *,
    resolution: int,
    light: Light = FLAT_LIGHT,
    background: np.ndarray,
    normals: np.ndarray | None = None,
) -> Picture:
    """Render posed vertices (V, 3). background: (R, R, 3) in [0, 1]. normals: (V, 3) if they are known already."""
    if normals is None:
        normals = vertex_normals(posed, person.faces)
    size = resolution * SUPERSAMPLING
    clip = np.concatenate([posed, np.ones((len(posed), 1), np.float32)], 1) @ camera.clip_matrix().T
    face_index, barycentric, _ = visible_triangles(clip_to_pixels(clip, size, size), person.faces, size, size)
    direction = np.array(light.direction, np.float64)
    rgb = np.empty((resolution, resolution, 3), np.float32)
    normal_map = np.empty((resolution, resolution, 3), np.float32)
    label_map = np.empty((resolution, resolution), np.uint8)
    _shade(
        face_index, barycentric, person.faces, person.owner, person.canonical, person.arm, person.head, normals,
        person.layers, person.colors, person.skin, person.brow, camera.rotation,
        direction / (np.linalg.norm(direction) + 1e-9), light.ambient, np.ascontiguousarray(background, np.float32),
        rgb, normal_map, label_map,
    )  # fmt: skip
    return Picture(
        rgb=(rgb * 255 + 0.5).astype(np.uint8), normal=(normal_map * 255 + 0.5).astype(np.uint8), label=label_map
    )


def plain_background(word: str, resolution: int, level_shift: float = 0.0) -> np.ndarray:
    """(R, R, 3) float32 of one of PLAIN_LEVELS."""
    if word not in PLAIN_LEVELS:
        raise ValueError(f"word must be one of {list(PLAIN_LEVELS)}, found {word!r}")
    return np.full((resolution, resolution, 3), np.clip(PLAIN_LEVELS[word] + level_shift, 0, 1), np.float32)


def _upsample(grid: np.ndarray, resolution: int) -> np.ndarray:
    """Bilinear enlargement of (n, n, 3) to (R, R, 3)."""
    n = len(grid)
    position = np.linspace(0, n - 1, resolution)
    first = np.minimum(position.astype(int), n - 2)
    weight = position - first
    mix = np.zeros((resolution, n))
    mix[np.arange(resolution), first] = 1 - weight
    mix[np.arange(resolution), first + 1] = weight
    return np.einsum("ri,ijc,sj->rsc", mix, grid, mix, optimize=True)


def random_background(rng: np.random.Generator, resolution: int) -> np.ndarray:
    """(R, R, 3) float32: gradients and soft blobs of colour, sometimes with bars or a floor."""
    grid = rng.uniform(0, 1, (int(rng.integers(2, 7)),) * 2 + (3,))
    image = _upsample(grid, resolution) * rng.uniform(0.3, 0.9) + rng.uniform(0, 0.3)
    axis = np.linspace(0, 1, resolution)
    if rng.random() < 0.4:
        floor = rng.uniform(0.6, 0.9)
        image[axis > floor] = 0.3 * image[axis > floor] + 0.7 * rng.uniform(0.1, 0.8, 3)
    if rng.random() < 0.35:
        bars = np.sin(axis * rng.uniform(10, 60) + rng.uniform(0, 6)) > rng.uniform(-0.5, 0.8)
        bars &= axis < 1.0
        image[:, bars] = 0.55 * image[:, bars] + 0.45 * rng.uniform(0, 1, 3)
    return np.clip(image, 0, 1).astype(np.float32)


def sample_background(rng: np.random.Generator, resolution: int, *, plain: bool) -> tuple[np.ndarray, str]:
    """A background and its word."""
    if not plain:
        return random_background(rng, resolution), "random"
    word = str(rng.choice(list(PLAIN_LEVELS)))
    return plain_background(word, resolution, float(rng.normal(0, 0.012))), word
