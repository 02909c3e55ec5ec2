"""Scans of people: read from OBJ and PLY, and brought to the avatar's frame as a textured mesh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modules.errors import UserError

if TYPE_CHECKING:
    from modules.geometry.mesh import TexturedMesh

_MAX_LINES = 5_000_000
_PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """vertices: (V, 3) float64, y up. faces: (T, 3) int32. uv: (V, 2) float32 with v = 0 at the texture's top row, seam
    vertices doubled. texture: (H, W, 3) uint8. labels: (V,) small non-negative integers, or None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_triangles(self.vertices, self.faces)
        if self.uv.shape != (len(self.vertices), 2) or not np.isfinite(self.uv).all():
            raise UserError(f"has texture coordinates of shape {self.uv.shape} for {len(self.vertices)} vertices")
        if self.texture.ndim != 3 or self.texture.shape[2] != 3 or self.texture.dtype != np.uint8:
            raise UserError(f"has a texture of shape {self.texture.shape} and type {self.texture.dtype}")
        if self.labels is not None and self.labels.shape != (len(self.vertices),):
            raise UserError(f"has {self.labels.size} labels for {len(self.vertices)} vertices")


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjMesh:
    """vertices: (V, 3) float64. faces: (T, 3) int64. uv: (U, 2) float64, v up. uv_faces: (T, 3) int64 into uv, -1 where
    a corner has none. materials: the names of its material files.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    materials: tuple[str, ...]


def check_triangles(vertices: np.ndarray, faces: np.ndarray) -> None:
    """UserError unless vertices (V, 3) are finite, faces (T, 3) not empty, and every face's corners there."""
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not np.isfinite(vertices).all():
        raise UserError("has vertices that are no finite points in space")
    if faces.ndim != 2 or faces.shape[1] != 3 or not len(faces):
        raise UserError("has no triangles")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UserError(f"has faces of vertices that are not there (it has {len(vertices)})")


def read_obj(data: bytes) -> ObjMesh:
    """A Wavefront OBJ; polygons are cut into fans. UserError, completing "scan.obj ...", when it is broken."""
    vertices: list[list[float]] = []
    uv: list[list[float]] = []
    corners: list[tuple[int, int]] = []
    materials: list[str] = []
    try:
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines()):
            if number > _MAX_LINES:
                raise UserError(f"has more than {_MAX_LINES} lines")
            word, _, rest = line.strip().partition(" ")
            if word == "v":
                vertices.append([float(value) for value in rest.split()[:3]])
            elif word == "vt":
                uv.append([float(value) for value in rest.split()[:2]])
            elif word == "f":
                polygon = [_corner(text, len(vertices), len(uv)) for text in rest.split()]
                for index in range(1, len(polygon) - 1):
                    corners += (polygon[0], polygon[index], polygon[index + 1])
            elif word == "mtllib":
                materials.append(rest.strip())
        points = np.array(vertices, np.float64).reshape(-1, 3)
        coordinates = np.array(uv, np.float64).reshape(-1, 2)
    except (ValueError, IndexError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("is no readable OBJ: a line is cut off or holds something other than numbers") from None
    both = np.array(corners, np.int64).reshape(-1, 3, 2)
    check_triangles(points, both[..., 0])
    if both[..., 1].max() >= len(coordinates):
        raise UserError("has faces of texture coordinates that are not there")
    return ObjMesh(
        vertices=points, faces=both[..., 0], uv=coordinates, uv_faces=both[..., 1], materials=tuple(materials)
    )


def _corner(text: str, num_vertices: int, num_uv: int) -> tuple[int, int]:
    """ "7/3/1", "7//1" or "-1/-1" to indices from 0 of vertex and texture coordinate (-1 without one)."""
    vertex, _, rest = text.partition("/")
    coordinate = rest.partition("/")[0]
    at = int(vertex)
    where = int(coordinate) if coordinate else 0
    if at == 0 or at < -num_vertices or where < -num_uv:
        raise ValueError
    return (at - 1 if at > 0 else num_vertices + at), (where - 1 if where >= 0 else num_uv + where)


def join_seams(mesh: ObjMesh, texture: np.ndarray) -> Scan:
    """One vertex for each pair of a point and a texture coordinate; corners without one get the texture's corner."""
    uv = np.concatenate([mesh.uv, np.zeros((1, 2))])
    pairs = np.stack([mesh.faces.ravel(), np.where(mesh.uv_faces < 0, len(mesh.uv), mesh.uv_faces).ravel()], 1)
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    coordinates = uv[unique[:, 1]]
    return Scan(
        vertices=mesh.vertices[unique[:, 0]],
        faces=inverse.reshape(-1, 3).astype(np.int32),
        uv=np.stack([coordinates[:, 0], 1 - coordinates[:, 1]], 1).astype(np.float32),
        texture=texture,
    )


def cut_below(scan: Scan, height: float) -> Scan:
    """The triangles that lie above a height as a whole, and their vertices."""
    above = scan.vertices[:, 1] > height
    faces = scan.faces[above[scan.faces].all(1)]
    if not len(faces):
        raise UserError(f"has nothing above the height {height:g}, below which the floor is cut away")
    used, inverse = np.unique(faces, return_inverse=True)
    return Scan(
        vertices=scan.vertices[used],
        faces=inverse.reshape(-1, 3).astype(np.int32),
        uv=scan.uv[used],
        texture=scan.texture,
        labels=None if scan.labels is None else scan.labels[used],
    )


def ply_vertices(data: bytes) -> np.ndarray:
    """(V, 3) float64 vertices of a PLY file (ASCII or little-endian). UserError, completing "mesh.ply ..."."""
    head, mark, body = data.partition(b"end_header\n")
    if not mark:
        head, mark, body = data.partition(b"end_header\r\n")
    lines = head.decode("ascii", "replace").split("\n")
    if not mark or lines[0].strip() != "ply":
        raise UserError("is no PLY file")
    words = [line.split() for line in lines[1:] if line.strip()]
    kind = next((word[1] for word in words if word[0] == "format" and len(word) > 1), "")
    first = next((index for index, word in enumerate(words) if word[0] == "element"), None)
    try:
        if first is None or words[first][1] != "vertex":
            raise UserError("is a PLY file that does not begin with its vertices")
        count = int(words[first][2])
        properties: list[tuple[str, str]] = []
        for word in words[first + 1 :]:
            if word[0] == "element":
                break
            if word[0] == "property":
                properties.append((word[2], "<" + _PLY_TYPES[word[1]]))
        dtype = np.dtype(properties)
        if not {"x", "y", "z"} <= set(dtype.names or ()) or count < 1 or count * len(properties) > len(body):
            raise UserError("is a PLY file whose vertices are not as many as it says")
        if kind == "binary_little_endian":
            table = np.frombuffer(body, dtype, count)
            points = np.stack([table[name].astype(np.float64) for name in "xyz"], 1)
        elif kind == "ascii":
            rows = np.array([line.split()[: len(properties)] for line in body.splitlines()[:count]], np.float64)
            points = rows[:, [(dtype.names or ()).index(name) for name in "xyz"]]
        else:
            raise UserError("is a PLY file that is neither ASCII nor little-endian")
    except (ValueError, IndexError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("is a broken PLY file") from None
    if len(points) != count or not np.isfinite(points).all():
        raise UserError("is a broken PLY file")
    return points


def facing_frame(facing: np.ndarray) -> np.ndarray:
    """(3, 3) rotation about y whose rows are a person's left, up and forward; `facing` (3,) is where they look."""
    forward = np.array([facing[0], 0.0, facing[2]], np.float64)
    length = float(np.linalg.norm(forward))
    if not math.isfinite(length) or length < 1e-6:
        raise UserError("has a person who faces straight up or down, so that it has no front")
    forward /= length
    return np.stack([[forward[2], 0.0, -forward[0]], [0.0, 1.0, 0.0], forward])


def azimuth_deg(facing: np.ndarray, direction: np.ndarray) -> tuple[float, float]:
    """Azimuth and elevation in degrees of a `direction` (3,) from the person, as `modules.geometry.camera` has them."""
    left, up, forward = facing_frame(facing) @ direction
    return math.degrees(math.atan2(left, forward)), math.degrees(math.atan2(up, math.hypot(left, forward)))


def stand(scan: Scan, *, facing: np.ndarray, unit_m: float, body_height_m: float | None) -> tuple[TexturedMesh, float]:
    """A scan in the avatar's frame: metres, y up, facing +z, its middle over the origin, its lowest point on y = 0.

    It is scaled so that the bare body is 1.70 m tall, as avatars are; `body_height_m` is that body's real height (of
    the body model fitted to it), or None to take the scan's own, with hair and shoes. Returns the mesh and the scale,
    by which distances are to be divided to become real ones.
    """
    from modules.geometry.body import STATURE_M
    from modules.geometry.mesh import TexturedMesh

    vertices = scan.vertices @ facing_frame(facing).T * unit_m
    height = body_height_m if body_height_m is not None else float(np.ptp(vertices[:, 1]))
    if not 0.3 < height < 3:
        raise UserError(f"shows a person {height:.3g} m tall; check the unit of the scan")
    scale = STATURE_M / height
    vertices *= scale
    low, high = vertices.min(0), vertices.max(0)
    vertices -= np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    mesh = TexturedMesh(
        vertices=vertices.astype(np.float32),
        faces=scan.faces.astype(np.int32),
        uv=np.clip(scan.uv, 0, 1).astype(np.float32),
        texture=scan.texture,
    )
    return mesh, scale


def texel_labels(scan: Scan, *, max_grow_texels: int = 8) -> np.ndarray:
    """Vertex labels in the texture: (H, W) uint8, each texel has that of its nearest corner. Charts grow a little."""
    from scipy.ndimage import distance_transform_edt

    from modules.rendering.texture import rasterize_uv

    assert scan.labels is not None
    height, width = scan.texture.shape[:2]
    size = max(height, width)
    index, barycentric = rasterize_uv(np.clip(scan.uv, 0, 1), scan.faces, size)
    corner = barycentric.argmax(2)
    texels = np.zeros((size, size), np.uint8)
    seen = index >= 0
    texels[seen] = scan.labels[scan.faces[index[seen], corner[seen]]]
    distance, (row, column) = distance_transform_edt(~seen, return_indices=True)
    texels = np.where(distance <= max_grow_texels, texels[row, column], 0).astype(np.uint8)
    if (height, width) == (size, size):
        return texels
    rows, columns = np.arange(height) * size // height, np.arange(width) * size // width
    return np.ascontiguousarray(texels[np.ix_(rows, columns)])


def shrink_texture(texture: np.ndarray, side_px: int) -> np.ndarray:
    """A texture (H, W, 3) uint8 brought down to `side_px` on its longer side."""
    from PIL import Image

    from datamodules.images import fit

    return np.array(fit(Image.fromarray(texture), side_px), np.uint8)


def as_array(value: Any, name: str, *shape: int | None, kinds: str = "fiu") -> np.ndarray:
    """A value out of a file as an array of that shape (None is any length). UserError otherwise."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or value.ndim != len(shape):
        raise UserError(f"has no usable {name!r}")
    if any(want is not None and want != have for want, have in zip(shape, value.shape, strict=True)):
        raise UserError(f"has {name!r} of shape {value.shape}")
    return value
