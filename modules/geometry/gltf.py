"""glTF 2.0 in its binary form (GLB): one textured mesh, everything inside one file.

Written by hand after the Khronos specification (registry.khronos.org/glTF/specs/2.0), chunk by chunk, because the same
mesh must give the same bytes.
"""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
from PIL import Image

from modules.geometry.mesh import TexturedMesh, vertex_normals_numpy

_FLOAT, _UNSIGNED_SHORT, _UNSIGNED_INT = 5126, 5123, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071
_GLB_MAGIC, _JSON_CHUNK, _BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942


def encode_glb(mesh: TexturedMesh, name: str = "avatar") -> bytes:
    """The bytes of a GLB with positions (metres, y up), unit normals, texture coordinates and the texture as PNG.

    The material is a rough dielectric: viewers show the albedo under their own light, without gloss. Vertices without a
    normal (loose, or on triangles of no area) get one that points up. Raises ValueError when the mesh is empty, holds
    numbers that are not finite, or has faces that point past its vertices.
    """
    vertices = np.ascontiguousarray(mesh.vertices, np.float32)
    uv = np.ascontiguousarray(mesh.uv, np.float32)
    if not len(vertices) or not len(mesh.faces):
        raise ValueError(f"a mesh needs vertices and faces, found {len(vertices)} vertices and {len(mesh.faces)} faces")
    if not np.isfinite(vertices).all() or not np.isfinite(uv).all():
        raise ValueError("vertices and uv must be finite, found NaN or infinity")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(vertices):
        raise ValueError(f"faces must lie in [0, {len(vertices) - 1}], found {mesh.faces.min()} to {mesh.faces.max()}")
    normals = vertex_normals_numpy(vertices, mesh.faces)
    normals[np.linalg.norm(normals, axis=1) < 0.5] = (0.0, 1.0, 0.0)
    # The largest 16-bit index is reserved (primitive restart).
    index_type = np.uint16 if len(vertices) < 65535 else np.uint32
    indices = np.ascontiguousarray(mesh.faces.reshape(-1), index_type)
    image = io.BytesIO()
    Image.fromarray(mesh.texture).save(image, "PNG")

    binary = bytearray()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def add_view(data: bytes, target: int | None = None) -> int:
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(binary), "byteLength": len(data)}
        views.append(view | ({"target": target} if target else {}))
        binary.extend(data + bytes(-len(data) % 4))
        return len(views) - 1

    def add_accessor(array: np.ndarray, kind: str, component: int, target: int, *, bounds: bool = False) -> int:
        accessor = {
            "bufferView": add_view(array.tobytes(), target),
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        accessors.append(accessor)
        return len(accessors) - 1

    primitive = {
        "attributes": {
            "POSITION": add_accessor(vertices, "VEC3", _FLOAT, _ARRAY_BUFFER, bounds=True),
            "NORMAL": add_accessor(normals, "VEC3", _FLOAT, _ARRAY_BUFFER),
            "TEXCOORD_0": add_accessor(uv, "VEC2", _FLOAT, _ARRAY_BUFFER),
        },
        "indices": add_accessor(
            indices,
            "SCALAR",
            _UNSIGNED_SHORT if index_type is np.uint16 else _UNSIGNED_INT,
            _ELEMENT_ARRAY_BUFFER,
        ),
        "material": 0,
    }
    image_view = add_view(image.getvalue())
    material = {
        "name": name,
        "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": 1.0},
    }
    sampler = {
        "magFilter": _LINEAR,
        "minFilter": _LINEAR_MIPMAP_LINEAR,
        "wrapS": _CLAMP_TO_EDGE,
        "wrapT": _CLAMP_TO_EDGE,
    }
    document = {
        "asset": {"version": "2.0", "generator": "PuzzleBooth"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"name": name, "primitives": [primitive]}],
        "materials": [material],
        "textures": [{"sampler": 0, "source": 0}],
        "samplers": [sampler],
        "images": [{"bufferView": image_view, "mimeType": "image/png"}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        (
            struct.pack("<III", _GLB_MAGIC, 2, length),
            struct.pack("<II", len(text), _JSON_CHUNK),
            text,
            struct.pack("<II", len(binary), _BINARY_CHUNK),
            bytes(binary),
        )
    )
