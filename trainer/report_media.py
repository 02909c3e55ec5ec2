"""Pictures and meshes as text that fits into a web page."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image
from scipy import ndimage

from modules.geometry.mesh import TexturedMesh, vertex_normals_numpy

ASSET_COLOURS = (
    "#d1495b", "#2e86ab", "#edae49", "#3b9c6e", "#8c5fbf", "#e07a3f", "#1fa3a3", "#b0538c", "#7a8b2e", "#5873c9",
)  # fmt: skip


def data_uri(content: bytes, mime: str) -> str:
    """`data:` address of some bytes."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def to_uint8(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 from the same, or from floats in [0, 1] (clipped; NaN becomes black)."""
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image must have the shape (H, W, 3), found {image.shape}")
    if image.dtype == np.uint8:
        return image
    return (np.clip(np.nan_to_num(image.astype(np.float32)), 0, 1) * 255 + 0.5).astype(np.uint8)


def jpeg_uri(image: np.ndarray, *, longest_px: int, quality: int = 85) -> str:
    """JPEG of an image (H, W, 3), shrunk so that its longer side has at most `longest_px`; never enlarged."""
    picture = Image.fromarray(to_uint8(image))
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def overlay_masks(image: np.ndarray, masks: Mapping[str, np.ndarray], colours: Mapping[str, str]) -> np.ndarray:
    """Tint each mask (H, W) bool in its asset's colour and draw its rim; pixels of no mask turn pale. Returns uint8."""
    picture = to_uint8(image).astype(np.float32)
    covered = np.zeros(picture.shape[:2], bool)
    rims = []
    rim_px = max(1, round(max(picture.shape[:2]) / 200))
    for name, mask in masks.items():
        colour = np.array([int(colours[name][i : i + 2], 16) for i in (1, 3, 5)], np.float32)
        picture[mask] = 0.6 * picture[mask] + 0.4 * colour
        covered |= mask
        rims.append((mask & ~ndimage.binary_erosion(mask, iterations=rim_px), colour))
    picture[~covered] = 0.45 * picture[~covered] + 0.55 * 235
    for rim, colour in rims:
        picture[rim] = colour
    return picture.astype(np.uint8)


def smooth_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit vertex normals (V, 3) float32, weighted by area; vertices doubled along a UV seam share one normal."""
    positions, place = np.unique(vertices, axis=0, return_inverse=True)
    place = place.reshape(-1)
    return vertex_normals_numpy(positions, place[faces])[place]


def pack_mesh(mesh: TexturedMesh) -> dict:
    """The mesh in the layout that report_viewer.js reads.

    Keys: `vertices`, `triangles` (counts), `low`, `size` (bounding box in metres, 3 floats each) and `data`, the base64
    of a zlib stream of: positions uint16 (V, 4; the fourth is padding) in units of the box, uv uint16 (V, 2) in
    1/65535, normals int8 (V, 4) in 1/127, and triangle corners int32 (3 T), each minus the one before. 16 bits resolve
    a person to 0.03 mm; differences of indices compress three times better than indices.
    """
    low = mesh.vertices.min(0).astype(np.float64)
    size = np.maximum(mesh.vertices.max(0) - low, 1e-6)
    num_vertices = len(mesh.vertices)
    positions = np.zeros((num_vertices, 4), "<u2")
    positions[:, :3] = np.rint((mesh.vertices - low) / size * 65535)
    uv = np.rint(np.clip(mesh.uv, 0, 1) * 65535).astype("<u2")
    normals = np.zeros((num_vertices, 4), np.int8)
    normals[:, :3] = np.rint(smooth_normals(mesh.vertices, mesh.faces) * 127)
    corners = np.diff(mesh.faces.astype("<i4").reshape(-1), prepend=np.zeros(1, "<i4")).astype("<i4")
    stream = zlib.compress(b"".join(part.tobytes() for part in (positions, uv, normals, corners)), 9)
    return {
        "vertices": num_vertices,
        "triangles": len(mesh.faces),
        "low": [float(value) for value in low],
        "size": [float(value) for value in size],
        "data": base64.b64encode(stream).decode("ascii"),
    }
