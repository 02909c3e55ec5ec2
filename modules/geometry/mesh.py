"""Triangle meshes: the textured mesh of an avatar and its file, and what is measured on any triangles.

Shapes: V vertices, T triangles, N points. Faces are counter-clockwise from outside.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pygltflib
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from modules.errors import UserError
from modules.geometry.bvh import TriangleTree

_COMPONENT_TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


@dataclass(frozen=True, kw_only=True)
class TexturedMesh:
    """A textured surface in the avatar's frame: metres, y up, facing +z, in A-pose, feet on y = 0.

    vertices: (V, 3) float32. faces: (T, 3) int32, counter-clockwise from outside. uv: (V, 2) float32 in [0, 1] with the
    origin at the texture's top left corner (glTF); vertices on a seam are doubled. texture: (H, W, 3) uint8, sRGB
    albedo.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    texture: np.ndarray

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3:
            raise ValueError(f"vertices must have the shape (V, 3), found {self.vertices.shape}")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise ValueError(f"faces must have the shape (T, 3), found {self.faces.shape}")
        if self.uv.shape != (len(self.vertices), 2):
            raise ValueError(f"uv must have the shape ({len(self.vertices)}, 2), found {self.uv.shape}")
        if self.texture.ndim != 3 or self.texture.shape[2] != 3 or self.texture.dtype != np.uint8:
            raise ValueError(f"texture must be (H, W, 3) uint8, found {self.texture.shape} {self.texture.dtype}")


def _scaled_face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """(T, 3): the outward normal times twice the area."""
    first, second, third = (vertices.index_select(0, faces[:, i]) for i in range(3))
    return torch.linalg.cross(second - first, third - first)


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit outward normals (T, 3) of vertices (V, 3) and faces (T, 3) int64; zero where a triangle has no area."""
    return F.normalize(_scaled_face_normals(vertices, faces), dim=1, eps=1e-12)


def face_areas(vertices: Tensor, faces: Tensor) -> Tensor:
    """Areas (T,) in square metres of vertices (V, 3) and faces (T, 3) int64, differentiable."""
    return 0.5 * _scaled_face_normals(vertices, faces).norm(dim=1)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Area-weighted unit normals (V, 3) of vertices (V, 3) and faces (T, 3) int64, differentiable; zero where loose."""
    scaled = _scaled_face_normals(vertices, faces)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total = total.index_add(0, faces[:, i], scaled)
    return F.normalize(total, dim=1, eps=1e-12)


def vertex_normals_numpy(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """`vertex_normals` for numpy arrays; returns (V, 3) float32."""
    normals = vertex_normals(torch.as_tensor(vertices, dtype=torch.float64), torch.as_tensor(faces, dtype=torch.int64))
    return normals.numpy().astype(np.float32)


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw points uniformly by area; returns points (num_points, 3) float32 and their face (num_points,) int64."""
    first, second, third = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    areas = np.linalg.norm(np.cross(second - first, third - first), axis=1)
    cumulative = np.cumsum(areas)
    if not len(areas) or not cumulative[-1] > 0:
        raise ValueError("a surface must have an area above zero to be sampled, found a mesh without area")
    drawn = np.searchsorted(cumulative, rng.uniform(0, cumulative[-1], num_points), side="right")
    face = np.minimum(drawn, len(faces) - 1)
    root, fraction = np.sqrt(rng.uniform(size=(num_points, 1))), rng.uniform(size=(num_points, 1))
    points = first[face] * (1 - root) + second[face] * root * (1 - fraction) + third[face] * root * fraction
    return points.astype(np.float32), face


def point_to_triangles_distance(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Exact unsigned distance in metres from points (N, 3) to the nearest triangle; returns (N,) float64."""
    return TriangleTree(vertices, faces).nearest(points)[0]


def save_textured_mesh(path: str | os.PathLike[str], mesh: TexturedMesh) -> None:
    """Write a GLB (see `encode_glb`), whole or not at all."""
    # Not on top: the writer needs this module's TexturedMesh.
    from modules.geometry.gltf import encode_glb

    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(encode_glb(mesh, path.stem))
    os.replace(temporary, path)


def load_textured_mesh(path: str | os.PathLike[str]) -> TexturedMesh:
    """Read a GLB with one mesh and one embedded texture, else raise UserError. Transforms of nodes are ignored."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: found no file there, expected a GLB with a textured mesh; check the path")
    try:
        gltf = pygltflib.GLTF2().load_from_bytes(path.read_bytes())
        blob = gltf.binary_blob()
        primitives = [primitive for mesh in gltf.meshes for primitive in mesh.primitives]
    except Exception as error:  # pygltflib and its JSON layer raise whatever the bytes lead them into
        raise UserError(f"{path}: found no readable GLB, expected glTF 2.0 in binary form; export it again") from error
    if blob is None:
        raise UserError(f"{path}: found no binary part, expected a GLB with its buffers inside; export it as .glb")
    if len(primitives) != 1:
        raise UserError(f"{path}: found {len(primitives)} meshes, expected one with one material; join them into one")
    attributes, indices = primitives[0].attributes, primitives[0].indices
    found = {"positions": attributes.POSITION, "texture coordinates": attributes.TEXCOORD_0, "indices": indices}
    missing = " and ".join(name for name, accessor in found.items() if accessor is None)
    if missing:
        raise UserError(
            f"{path}: found a mesh without {missing}, expected {', '.join(found)}; export it with all of them"
        )
    if not gltf.images or gltf.images[0].bufferView is None:
        raise UserError(f"{path}: found no embedded texture, expected one image inside the file; embed it on export")
    try:
        view = gltf.bufferViews[gltf.images[0].bufferView]
        start = view.byteOffset or 0
        with Image.open(io.BytesIO(blob[start : start + view.byteLength])) as image:
            texture = np.asarray(image.convert("RGB"))
        uv = _read(gltf, blob, attributes.TEXCOORD_0)
        vertices, faces = _read(gltf, blob, attributes.POSITION), _read(gltf, blob, indices).reshape(-1, 3)
    except (OSError, ValueError, TypeError, IndexError, KeyError) as error:
        raise UserError(
            f"{path}: found broken data in the GLB ({error}), expected a whole file; export it again"
        ) from error
    if len(faces) and faces.max() >= len(vertices):
        raise UserError(
            f"{path}: found a face of vertex {faces.max()}, expected less than {len(vertices)}; export it again"
        )
    if uv.dtype != np.float32:
        uv = uv.astype(np.float32) / np.iinfo(uv.dtype).max
    return TexturedMesh(vertices=vertices.astype(np.float32), faces=faces.astype(np.int32), uv=uv, texture=texture)


def _read(gltf: pygltflib.GLTF2, blob: bytes, index: int) -> np.ndarray:
    """The array of an accessor, (count, components)."""
    accessor = gltf.accessors[index]
    view = gltf.bufferViews[accessor.bufferView]
    dtype, components = np.dtype(_COMPONENT_TYPES[accessor.componentType]), _COMPONENTS[accessor.type]
    start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
    row = dtype.itemsize * components
    stride = view.byteStride or row
    return np.ndarray((accessor.count, components), dtype, blob, start, (stride, dtype.itemsize)).copy()
