"""Pictures of a person: colour, normal map and label map, rasterised on the CPU with 2 x 2 samples a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.studio.materials import SUPERSAMPLING, shade_fragments
from datamodules.studio.person import GLASSES_OWNER, Person
from datamodules.studio.surface import vertex_normals
from modules.geometry.camera import Camera
from modules.rendering.zbuffer import clip_to_pixels, visible_triangles

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
    """rgb, normal: (R, R, 3) uint8, row 0 on top. label: (R, R) uint8 index into LABELS, NO_PERSON for the
    background.
    """

    rgb: np.ndarray
    normal: np.ndarray
    label: np.ndarray


def take_picture(
    person: Person,
    posed: np.ndarray,
    camera: Camera,
    *,
    resolution: int,
    light: Light = FLAT_LIGHT,
    background: np.ndarray,
    normals: np.ndarray | None = None,
    glasses_label: int | None = None,
) -> Picture:
    """Render posed vertices (V, 3). background: (R, R, 3) in [0, 1]. normals: (V, 3) if they are known already.

    glasses_label: label of glasses, which belong to the face otherwise; a pixel is theirs when half of it is covered.
    """
    if normals is None:
        normals = vertex_normals(posed, person.faces)
    size = resolution * SUPERSAMPLING
    clip = np.concatenate([posed, np.ones((len(posed), 1), np.float32)], 1) @ camera.clip_matrix().T
    face_index, barycentric, _ = visible_triangles(clip_to_pixels(clip, size, size), person.faces, size, size)
    direction = np.array(light.direction, np.float64)
    rgb = np.empty((resolution, resolution, 3), np.float32)
    normal_map = np.empty((resolution, resolution, 3), np.float32)
    label_map = np.empty((resolution, resolution), np.uint8)
    shade_fragments(
        face_index, barycentric, person.faces, person.owner, person.canonical, person.arm, person.head, normals,
        person.layers, person.colors, person.skin, person.brow, camera.rotation,
        direction / (np.linalg.norm(direction) + 1e-9), light.ambient, np.ascontiguousarray(background, np.float32),
        rgb, normal_map, label_map,
    )  # fmt: skip
    if glasses_label is not None and person.spec.glasses:
        owner = np.where(face_index >= 0, person.owner[face_index], 0) == GLASSES_OWNER
        samples = owner.reshape(resolution, SUPERSAMPLING, resolution, SUPERSAMPLING).sum((1, 3))
        label_map[2 * samples >= SUPERSAMPLING**2] = glasses_label
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
