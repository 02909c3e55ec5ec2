"""Synthetic people: a spec that fits in JSON, and the posable, painted surface that it builds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from scipy.spatial import cKDTree

from datamodules.studio import hair as hair_pieces
from datamodules.studio import materials as m
from datamodules.studio.surface import Piece, canonical_body, smooth, vertex_normals
from datamodules.studio.vocabulary import (
    COLORS,
    HAIR_COLORS,
    HAIR_STYLES,
    LABEL_INDEX,
    LABELS,
    PATTERNS,
    SKIN_TONES,
)
from datamodules.studio.wardrobe import GarmentSpec, drape_skirt, garment_layer, skirt_weights, worn_order
from modules.diffusion.prompts import AssetPhrase
from modules.geometry.body import STATURE_M, body_data, body_landmarks
from modules.geometry.camera import BodyLandmarks
from modules.geometry.skinning import blend_vertices, joint_transforms, top_skin_weights

# People that train the prior have smaller seeds; held-out albums, which the prior never saw, start here.
HELD_OUT_SEED = 10_000_000
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


@dataclass(frozen=True, kw_only=True)
class PersonSpec:
    """Everything that decides how a person looks; `to_json` and `from_json` round-trip it.

    shape: pairs of (index of a sampled body, weight), weights sum to 1. gender: "woman" or "man". skin_tone, hair_color,
    hair_style: words of the vocabulary. *_rgb: jittered sRGB in [0, 1]. hair_length: 0 to 1 within the style.
    """

    seed: int
    gender: str
    shape: tuple[tuple[int, float], ...]
    skin_tone: str
    skin_rgb: tuple[float, float, float]
    hair_style: str
    hair_color: str
    hair_rgb: tuple[float, float, float]
    hair_length: float
    garments: tuple[GarmentSpec, ...]
    glasses: bool = False
    face_word: str = "oval"

    def __post_init__(self) -> None:
        if self.hair_style not in HAIR_STYLES:
            raise ValueError(f"hair_style must be one of {HAIR_STYLES}, found {self.hair_style!r}")
        total = sum(weight for _, weight in self.shape)
        if abs(total - 1) > 1e-3:
            raise ValueError(f"the weights of shape must sum to 1, found {total}")

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PersonSpec:
        """The inverse of `to_json`, after any passage through JSON."""
        fields = dict(data)
        fields["shape"] = tuple((int(index), float(weight)) for index, weight in fields["shape"])
        fields["skin_rgb"], fields["hair_rgb"] = tuple(fields["skin_rgb"]), tuple(fields["hair_rgb"])
        fields["garments"] = tuple(
            GarmentSpec(**{**g, "rgb": tuple(g["rgb"]), "second_rgb": tuple(g["second_rgb"])}) for g in fields["garments"]
        )
        return PersonSpec(**fields)


def _jittered(rng: np.random.Generator, rgb: tuple[int, int, int], spread: float = 7.0) -> tuple[float, float, float]:
    # Greys stay grey: their channels move together.
    hue_spread = spread * (0.25 + 0.75 * min((max(rgb) - min(rgb)) / 60, 1.0))
    moved = np.array(rgb) + rng.normal(0, spread) + rng.normal(0, hue_spread, 3)
    r, g, b = (np.clip(moved, 4, 251) / 255).round(4).tolist()
    return r, g, b


def sample_garment(rng: np.random.Generator, name: str, *, plain: bool = False) -> GarmentSpec:
    """A garment of random colours and cut."""
    first, second = (str(word) for word in rng.choice(list(COLORS), 2, replace=False))
    top = name not in ("skirt", "shorts", "trousers", "shoes", "cap")
    odds = [0.46, 0.20, 0.13, 0.12, 0.09] if top else [0.74, 0.11, 0.09, 0.06, 0.0]
    pattern = "plain" if plain or name in ("shoes", "cap", "jacket") else str(rng.choice(PATTERNS, p=odds))
    if name == "dress" and pattern == "logo":
        pattern = "dotted"
    return GarmentSpec(
        name=name,
        color=first,
        rgb=_jittered(rng, COLORS[first]),
        pattern=pattern,
        second_color=second,
        second_rgb=_jittered(rng, COLORS[second]),
        length=round(float(rng.random()), 3),
        sleeve=round(float(rng.random()), 3),
        looseness=round(float(rng.random()), 3),
        frequency=round(float(rng.uniform(0.7, 1.25)), 3),
        open=bool(name == "jacket" and rng.random() < 0.65),
    )


def _sample_outfit(rng: np.random.Generator, woman: bool) -> list[GarmentSpec]:
    if woman and rng.random() < 0.22:
        garments = [sample_garment(rng, "dress")]
    else:
        top = str(rng.choice(["t-shirt", "shirt", "jumper", "tank top", "jacket"], p=[0.30, 0.19, 0.18, 0.12, 0.21]))
        garments = [sample_garment(rng, top)]
        if top == "jacket" and garments[0].open:
            garments.append(sample_garment(rng, "t-shirt"))
        odds = [0.46, 0.20, 0.34] if woman else [0.70, 0.30, 0.0]
        garments.append(sample_garment(rng, str(rng.choice(["trousers", "shorts", "skirt"], p=odds))))
    if rng.random() < 0.9:
        garments.append(sample_garment(rng, "shoes"))
    if rng.random() < 0.14:
        garments.append(sample_garment(rng, "cap"))
    return garments


def sample_person(seed: int) -> PersonSpec:
    """The person of this seed. Seeds from HELD_OUT_SEED on are never used to train the prior."""
    rng = np.random.default_rng([seed, 17])
    data = body_data()
    woman = bool(rng.random() < 0.5)
    bodies = np.nonzero(data.is_woman == woman)[0]
    bodies = bodies[bodies >= 2]
    first, second = (int(index) for index in rng.choice(bodies, 2, replace=False))
    weight = round(float(rng.uniform(0.3, 0.95)), 3)
    skin = str(rng.choice(list(SKIN_TONES)))
    hair_odds = {"pale": [0.3, 0.1, 0.3, 0.15, 0.15], "tan": [0.12, 0.32, 0.36, 0.08, 0.12]}
    color = str(rng.choice(list(HAIR_COLORS), p=hair_odds.get(skin, [0.05, 0.55, 0.22, 0.04, 0.14])))
    style_odds = [0.03, 0.17, 0.09, 0.19, 0.30, 0.13, 0.09] if woman else [0.16, 0.56, 0.13, 0.05, 0.07, 0.02, 0.01]
    return PersonSpec(
        seed=seed,
        gender="woman" if woman else "man",
        shape=((first, weight), (second, round(1 - weight, 3))),
        skin_tone=skin,
        skin_rgb=_jittered(rng, SKIN_TONES[skin], 3.5),
        hair_style=str(rng.choice(HAIR_STYLES, p=style_odds)),
        hair_color=color,
        hair_rgb=_jittered(rng, HAIR_COLORS[color], 5.0),
        hair_length=round(float(rng.random()), 3),
        garments=tuple(_sample_outfit(rng, woman)),
        glasses=bool(rng.random() < 0.18),
        face_word=str(rng.choice(["oval", "round", "long", "square"])),
    )


def phrases(spec: PersonSpec, *, colors: bool = True) -> list[AssetPhrase]:
    """What the person consists of, as said in prompts: face, haircut, then garments from outside inwards.

    colors: captions of the prior say them ("red striped white t-shirt"); an album's shape words never do.
    """
    bald = spec.hair_style == "bald"
    hair = spec.hair_style if bald or not colors else f"{spec.hair_color} {spec.hair_style}"
    # The sampled faces do not differ in the shape that the word claims, so the prior is not taught it.
    listed = [
        AssetPhrase(name="face", words=spec.skin_tone if colors else spec.face_word),
        AssetPhrase(name="haircut", words=hair),
    ]
    for garment in worn_order(spec.garments):
        words = [garment.shape_words(), garment.color_words() if colors else ""]
        listed.append(AssetPhrase(name=garment.name, words=" ".join(word for word in words if word)))
    return listed


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """A dressed person in A-pose: V vertices (the first `num_body` are the body's), T faces, J joints, L layers.

    vertices: (V, 3) float32 metres; the bare body has stature 1.70 m, its soles are on y = 0. faces: (T, 3) int32.
    owner: (T,) int32 layer that a face belongs to, -1 for the body, -2 for glasses. canonical: (V, 3), arm, head: (V,), the
    coordinates that paint the surface. layers, colors, skin, brow: see datamodules.studio.materials.
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
        """(V, 3) float32 vertices after turning joints (see modules.geometry.skinning); the lowest point is on the floor."""
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


@numba.njit(cache=True)
def _vertex_labels(canonical, arm, head, owner, layers, colors, skin, brow):  # pragma: no cover - compiled
    labels = np.zeros(canonical.shape[0], np.uint8)
    for vertex in range(canonical.shape[0]):
        x, y, z = canonical[vertex, 0], canonical[vertex, 1], canonical[vertex, 2]
        label, _, _, _ = m.surface_point(
            owner[vertex], x, y, z, arm[vertex], head[vertex], layers, colors, skin, brow
        )
        labels[vertex] = label
    return labels


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

    worn = worn_order(spec.garments)
    rows = [garment_layer(garment) for garment in worn]
    palette = [[garment.rgb, garment.second_rgb] for garment in worn]
    hair_index = None
    if spec.hair_style != "bald":
        hair_index = 1 if worn and worn[0].name == "cap" else 0
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

    vertices, canonical, all_weights = [dressed], [body.vertices], [dense]
    faces, owner = [data.faces], [np.full(len(data.faces), BODY_OWNER, np.int32)]
    vertex_owner = [np.full(len(dressed), BODY_OWNER, np.int32)]
    uv, uv_vertex, uv_faces = [data.uv * BODY_CHART], [data.uv_vertex], [data.uv_faces]
    num_vertices, num_uv = len(dressed), len(data.uv)
    for kind, layer, piece, placed, coordinates, weights in parts:
        left, top, width, height = _CHARTS[kind]
        vertices.append(placed)
        canonical.append(coordinates)
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
    coordinates = np.ascontiguousarray(np.concatenate(canonical), np.float32)
    arm = np.concatenate([body.arm, np.full(extra, -1, np.float32)])
    head = np.concatenate([body.head, np.zeros(extra, np.float32)])
    skin = np.array(spec.skin_rgb)
    brow = np.array(spec.hair_rgb if spec.hair_style != "bald" else spec.skin_rgb) * 0.55
    labels = _vertex_labels(coordinates, arm, head, np.concatenate(vertex_owner), layers, colors, skin, brow)
    return Person(
        spec=spec,
        vertices=np.ascontiguousarray(np.concatenate(vertices), np.float32),
        faces=np.ascontiguousarray(np.concatenate(faces), np.int32),
        num_body=len(dressed),
        bare_body=bare,
        owner=np.concatenate(owner),
        canonical=coordinates,
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
