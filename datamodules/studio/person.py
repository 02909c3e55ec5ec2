"""The posable, painted surface of a synthetic person, built from its spec."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from datamodules.studio import hair as hair_pieces
from datamodules.studio import materials as m
from datamodules.studio.spec import PersonSpec, phrases, sample_person
from datamodules.studio.surface import Piece, canonical_body, smooth, vertex_normals
from datamodules.studio.vocabulary import HELD_OUT_SEED, LABEL_INDEX, LABELS
from datamodules.studio.wardrobe import GarmentSpec, drape_skirt, garment_layer, skirt_weights, worn_order
from modules.geometry.body import STATURE_M, body_data, body_landmarks
from modules.geometry.camera import BodyLandmarks
from modules.geometry.skinning import blend_vertices, joint_transforms, top_skin_weights

__all__ = ["HELD_OUT_SEED", "Person", "PersonSpec", "build_person", "phrases", "sample_person"]

GLASSES_OWNER = -2
BODY_OWNER = -1
# Where each kind of piece lies in the texture: left, top, width, height. The body's own chart takes [0, 0.8]^2.
BODY_CHART = 0.8
_CHARTS = {
    "skirt": (0.02, 0.83, 0.76, 0.15),
    "hanging": (0.82, 0.02, 0.16, 0.40),
    "tied": (0.82, 0.45, 0.16, 0.15),
    "visor": (0.82, 0.63, 0.16, 0.10),
    "glasses": (0.82, 0.76, 0.16, 0.22),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """A dressed person in A-pose: V vertices (the first `num_body` are the body's), T faces, J joints, L layers.

    vertices: (V, 3) float32 metres; the bare body has stature 1.70 m, its soles are on y = 0. faces: (T, 3) int32.
    owner: (T,) int32 layer that a face belongs to, -1 for the body, -2 for glasses. canonical: (V, 3), arm, head:
    (V,), the coordinates that paint the surface. layers, colors, skin, brow: see datamodules.studio.materials.
    uv: (U, 2), uv_vertex: (U,), uv_faces: (T, 3): the texture atlas. vertex_label: (V,) index into LABELS.
    """

    spec: PersonSpec
    vertices: np.ndarray
    faces: np.ndarray
    num_body: int
    bare_body: np.ndarray
    owner: np.ndarray
    canonical: np.ndarray
    arm: np.ndarray
    head: np.ndarray
    layers: np.ndarray
    colors: np.ndarray
    skin: np.ndarray
    brow: np.ndarray
    joints: np.ndarray
    skin_indices: np.ndarray
    skin_weights: np.ndarray
    uv: np.ndarray
    uv_vertex: np.ndarray
    uv_faces: np.ndarray
    vertex_label: np.ndarray

    @property
    def has_skirt(self) -> bool:
        return any(garment.name in ("skirt", "dress") for garment in self.spec.garments)

    def label_names(self) -> list[str]:
        """Names of the assets on this person, in label order; glasses count as face."""
        return [LABELS[index] for index in sorted({1, *np.unique(self.vertex_label)} - {0})]

    def posed(self, rotations: Mapping[str, np.ndarray]) -> np.ndarray:
        """(V, 3) float32 vertices after turning joints (see modules.geometry.skinning); the lowest point is on the
        floor.
        """
        if not rotations:
            return self.vertices
        data = body_data()
        transforms = joint_transforms(data.joint_names, data.joint_parents, self.joints, rotations)
        posed = blend_vertices(self.vertices, self.skin_indices, self.skin_weights, transforms)
        posed[:, 1] += self.vertices[: self.num_body, 1].min() - posed[: self.num_body, 1].min()
        return posed

    def landmarks(self, posed: np.ndarray | None = None) -> BodyLandmarks:
        """For cameras: of the bare body in A-pose, or of posed vertices (V, 3)."""
        head = canonical_body().head > 0.5
        if posed is None or posed is self.vertices:
            return body_landmarks(self.bare_body, head)
        found = body_landmarks(posed[: self.num_body], head)
        extent = np.ptp(posed[: self.num_body], axis=0)
        stature = max(STATURE_M * 0.97, float(extent[1]), float(extent[0]) * 0.98)
        return dataclasses.replace(found, stature_m=stature)


@functools.cache
def _canonical_tree() -> cKDTree:
    return cKDTree(canonical_body().vertices)


def _fit(piece: Piece, bare_body: np.ndarray) -> np.ndarray:
    """Canonical vertices of a piece moved as the nearest part of this person's body is moved."""
    _, nearest = _canonical_tree().query(piece.vertices, k=8)
    shift = (bare_body - canonical_body().vertices)[nearest].mean(1)
    return piece.vertices + shift


def _hair_layer(spec: PersonSpec) -> np.ndarray:
    row = np.zeros(m.NUM_COLUMNS)
    row[m.LABEL], row[m.KIND] = LABEL_INDEX["haircut"], m.HAIR
    row[m.SMOOTHING] = 0.6
    row[m.THICKNESS_M] = 0.010 + 0.010 * spec.hair_length
    if spec.hair_style == "curly":
        row[m.THICKNESS_M], row[m.DETAIL], row[m.SMOOTHING] = 0.026 + 0.028 * spec.hair_length, m.CURLS, 0.25
    elif spec.hair_style in ("bob", "long"):
        row[m.THICKNESS_M], row[m.DETAIL] = 0.016, m.COVERS_EARS
    elif spec.hair_style in ("ponytail", "bun"):
        row[m.THICKNESS_M] = 0.010
    return row


def _hair_piece(spec: PersonSpec) -> tuple[str, Piece] | None:
    match spec.hair_style:
        case "bob":
            return "hanging", hair_pieces.hanging_hair(1.52 - 0.05 * spec.hair_length)
        case "long":
            return "hanging", hair_pieces.hanging_hair(1.40 - 0.18 * spec.hair_length)
        case "ponytail":
            return "tied", hair_pieces.ponytail()
        case "bun":
            return "tied", hair_pieces.bun()
    return None


def _head_weights(canonical: np.ndarray, joint_names: tuple[str, ...]) -> np.ndarray:
    """(P, J): pieces on the head follow it; what hangs below the neck follows the upper back."""
    weights = np.zeros((len(canonical), len(joint_names)), np.float32)
    low = np.clip((1.47 - canonical[:, 1]) / 0.16, 0, 1) * 0.8
    weights[:, joint_names.index("head")] = 1 - low
    weights[:, joint_names.index("spine_upper")] = low
    return weights


def build_person(spec: PersonSpec) -> Person:
    """The surface of a spec. Takes some 15 ms; deterministic."""
    data, body = body_data(), canonical_body()
    bare = sum(np.float32(weight) * data.vertices[index] for index, weight in spec.shape)
    joints = sum(np.float32(weight) * data.joints[index] for index, weight in spec.shape)
    low = bare[:, 1].min()
    scale = np.float32(STATURE_M / (bare[:, 1].max() - low))
    bare, joints = (bare - [0, low, 0]) * scale, (joints - [0, low, 0]) * scale
    bare = np.ascontiguousarray(bare, np.float32)

    worn: list[GarmentSpec | None] = [*worn_order(spec.garments)]
    rows = [garment_layer(garment) for garment in worn if garment]
    palette = [[garment.rgb, garment.second_rgb] for garment in worn if garment]
    hair_index = None
    if spec.hair_style != "bald":
        hair_index = 1 if worn and worn[0] and worn[0].name == "cap" else 0
        rows.insert(hair_index, _hair_layer(spec))
        palette.insert(hair_index, [spec.hair_rgb, spec.hair_rgb])
        worn.insert(hair_index, None)
    layers = np.array(rows).reshape(-1, m.NUM_COLUMNS)
    colors = np.array(palette, np.float64).reshape(-1, 2, 3)

    offset, smoothing = m.layer_offsets(body.vertices, body.arm, body.head, layers)
    if any(garment is not None and garment.name == "cap" for garment in worn) and hair_index is not None:
        # A cap presses the hair down.
        offset = np.where(body.head > 0.5, np.minimum(offset, 0.026), offset)
    shod = smoothing >= 0.9
    even = smooth(bare, body.neighbor_start, body.neighbor, smoothing, 7)
    even = smooth(even, body.neighbor_start, body.neighbor, np.where(shod, smoothing, 0), 10)
    # Cloth spans hollows but does not slide, or patterns would tear; only shoes take a form of their own.
    bare_normals = vertex_normals(bare, data.faces)
    lift = np.maximum(((even - bare) * bare_normals).sum(1), -0.004)
    even = np.where(shod[:, None], even, bare + bare_normals * lift[:, None])
    dressed = even + vertex_normals(even, data.faces) * offset[:, None]
    dressed = smooth(dressed, body.neighbor_start, body.neighbor, np.minimum(smoothing, 0.5), 2)
    dressed[:, 1] = np.maximum(dressed[:, 1], -0.012)  # soles are flat

    dense = data.dense_weights()
    names = data.joint_names
    parts: list[tuple[str, int, Piece, np.ndarray, np.ndarray, np.ndarray]] = []
    for index, garment in enumerate(worn):
        if garment is not None and garment.name in ("skirt", "dress"):
            torso = (body.arm < 0) & (body.head < 0.1)
            piece, canonical = drape_skirt(garment, dressed, body.vertices, torso)
            weights = skirt_weights(canonical, piece.vertices[:, 0], names)
            parts.append(("skirt", index, piece, piece.vertices, canonical, weights))
        if garment is not None and garment.name == "cap":
            piece = hair_pieces.visor()
            weights = _head_weights(piece.vertices, names)
            parts.append(("visor", index, piece, _fit(piece, bare), piece.vertices, weights))
    found = _hair_piece(spec)
    if found is not None and hair_index is not None:
        kind, piece = found
        weights = _head_weights(piece.vertices, names)
        parts.append((kind, hair_index, piece, _fit(piece, bare), piece.vertices, weights))
    if spec.glasses:
        piece = hair_pieces.glasses()
        weights = _head_weights(piece.vertices, names)
        parts.append(("glasses", GLASSES_OWNER, piece, _fit(piece, bare), piece.vertices, weights))

    vertices, coordinates, all_weights = [dressed], [body.vertices], [dense]
    faces, owner = [data.faces], [np.full(len(data.faces), BODY_OWNER, np.int32)]
    vertex_owner = [np.full(len(dressed), BODY_OWNER, np.int32)]
    uv, uv_vertex, uv_faces = [data.uv * BODY_CHART], [data.uv_vertex], [data.uv_faces]
    num_vertices, num_uv = len(dressed), len(data.uv)
    for kind, layer, piece, placed, piece_canonical, weights in parts:
        left, top, width, height = _CHARTS[kind]
        vertices.append(placed)
        coordinates.append(piece_canonical)
        all_weights.append(weights)
        faces.append(piece.faces + num_vertices)
        owner.append(np.full(len(piece.faces), layer, np.int32))
        vertex_owner.append(np.full(len(placed), layer, np.int32))
        uv.append(piece.chart * [width, height] + [left, top])
        uv_vertex.append(piece.chart_vertex + num_vertices)
        uv_faces.append(piece.chart_faces + num_uv)
        num_vertices, num_uv = num_vertices + len(placed), num_uv + len(piece.chart)
    skin_indices, skin_weights = top_skin_weights(np.concatenate(all_weights))
    extra = num_vertices - len(dressed)
    canonical = np.ascontiguousarray(np.concatenate(coordinates), np.float32)
    arm = np.concatenate([body.arm, np.full(extra, -1, np.float32)])
    head = np.concatenate([body.head, np.zeros(extra, np.float32)])
    skin = np.array(spec.skin_rgb)
    brow = np.array(spec.hair_rgb if spec.hair_style != "bald" else spec.skin_rgb) * 0.55
    labels = m.label_vertices(canonical, arm, head, np.concatenate(vertex_owner), layers, colors, skin, brow)
    return Person(
        spec=spec,
        vertices=np.ascontiguousarray(np.concatenate(vertices), np.float32),
        faces=np.ascontiguousarray(np.concatenate(faces), np.int32),
        num_body=len(dressed),
        bare_body=bare,
        owner=np.concatenate(owner),
        canonical=canonical,
        arm=arm,
        head=head,
        layers=layers,
        colors=colors,
        skin=skin,
        brow=brow,
        joints=joints,
        skin_indices=skin_indices,
        skin_weights=skin_weights,
        uv=np.concatenate(uv).astype(np.float32),
        uv_vertex=np.concatenate(uv_vertex).astype(np.int32),
        uv_faces=np.concatenate(uv_faces).astype(np.int32),
        vertex_label=labels,
    )
