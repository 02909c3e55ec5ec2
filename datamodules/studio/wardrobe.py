"""Garments: how a garment's spec becomes layers on the body, and the skirts that hang from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.studio import materials as m
from datamodules.studio.surface import Piece, sleeve
from datamodules.studio.vocabulary import GARMENTS, LABEL_INDEX, PATTERNS

WAIST_Y_M = 1.03
_SKIRT_ROWS, _SKIRT_COLUMNS = 13, 40


@dataclass(frozen=True, kw_only=True)
class GarmentSpec:
    """One garment. Colours are a word and the jittered sRGB value in [0, 1] that is painted.

    name: one of vocabulary.GARMENTS. pattern: one of vocabulary.PATTERNS. length, sleeve, looseness in [0, 1]: from the
    shortest to the longest hem and sleeve of that garment, and from tight to wide. open: whether a jacket is worn open.
    """

    name: str
    color: str
    rgb: tuple[float, float, float]
    pattern: str = "plain"
    second_color: str = "white"
    second_rgb: tuple[float, float, float] = (0.92, 0.92, 0.92)
    length: float = 0.5
    sleeve: float = 0.5
    looseness: float = 0.5
    frequency: float = 1.0
    open: bool = False

    def __post_init__(self) -> None:
        if self.name not in GARMENTS:
            raise ValueError(f"name must be one of {GARMENTS}, found {self.name!r}")
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern must be one of {PATTERNS}, found {self.pattern!r}")
        for field in ("length", "sleeve", "looseness"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} must lie in [0, 1], found {getattr(self, field)}")

    def shape_words(self) -> str:
        """Words for the cut, without any colour."""
        match self.name:
            case "dress" | "skirt":
                return "long" if self.length > 0.5 else "short"
            case "trousers":
                return "loose" if self.looseness > 0.5 else "slim"
            case "jacket":
                return "open" if self.open else "closed"
            case "shirt" | "jumper":
                return "long-sleeved"
        return ""

    def color_words(self) -> str:
        """Words for the colours: "red", or "red striped white"."""
        return self.color if self.pattern == "plain" else f"{self.color} {self.pattern} {self.second_color}"


def garment_layer(spec: GarmentSpec) -> np.ndarray:
    """(NUM_COLUMNS,) the layer row of one garment (see datamodules.studio.materials)."""
    row = np.zeros(m.NUM_COLUMNS)
    row[m.LABEL] = LABEL_INDEX[spec.name]
    row[m.PATTERN] = PATTERNS.index(spec.pattern)
    row[m.FREQUENCY] = spec.frequency
    row[m.KIND] = m.TOP
    row[m.SMOOTHING] = 0.3 + 0.4 * spec.looseness
    row[m.NECK_M], row[m.NECK_FRONT_M] = 0.088, 0.022
    loose = spec.looseness
    match spec.name:
        case "t-shirt":
            row[m.LOW_M], row[m.SLEEVE] = 0.90 - 0.07 * spec.length, 0.26 + 0.2 * spec.sleeve
            row[m.THICKNESS_M] = 0.008 + 0.014 * loose
        case "shirt":
            row[m.LOW_M], row[m.SLEEVE], row[m.NECK_M] = 0.88 - 0.06 * spec.length, 0.96, 0.070
            row[m.THICKNESS_M], row[m.DETAIL] = 0.009 + 0.014 * loose, m.BUTTONS
        case "jumper":
            row[m.LOW_M], row[m.SLEEVE], row[m.NECK_M] = 0.90 - 0.06 * spec.length, 0.97, 0.074
            row[m.THICKNESS_M], row[m.DETAIL] = 0.016 + 0.016 * loose, m.RIBBED
        case "jacket":
            row[m.LOW_M], row[m.SLEEVE], row[m.NECK_M] = 0.89 - 0.09 * spec.length, 0.98, 0.066
            row[m.THICKNESS_M] = 0.024 + 0.014 * loose
            row[m.OPENING_M] = 0.035 + 0.03 * loose if spec.open else 0.0
            row[m.DETAIL] = m.NO_DETAIL if spec.open else m.BUTTONS
        case "tank top":
            row[m.LOW_M], row[m.SLEEVE], row[m.ARMHOLE_M] = 0.90 - 0.06 * spec.length, -1, 0.088
            row[m.NECK_M], row[m.NECK_FRONT_M] = 0.105, 0.035
            row[m.THICKNESS_M] = 0.006 + 0.010 * loose
        case "dress":
            row[m.LOW_M], row[m.THICKNESS_M] = 0.82, 0.007 + 0.006 * loose
            row[m.NECK_M], row[m.NECK_FRONT_M] = 0.10, 0.03
            short_sleeved = spec.sleeve > 0.45
            row[m.SLEEVE] = 0.1 + 0.35 * spec.sleeve if short_sleeved else -1
            row[m.ARMHOLE_M] = 0.0 if short_sleeved else 0.080
        case "skirt" | "shorts" | "trousers":
            row[m.KIND], row[m.HIGH_M], row[m.THICKNESS_M] = m.BOTTOM, 1.01, 0.009 + 0.018 * loose
            hems = {"skirt": 0.82, "shorts": 0.68 - 0.17 * spec.length, "trousers": 0.13 - 0.05 * spec.length}
            row[m.LOW_M] = hems[spec.name]
        case "shoes":
            row[m.KIND], row[m.HIGH_M] = m.SHOES, 0.085 + 0.06 * spec.length**2
            row[m.THICKNESS_M], row[m.SMOOTHING] = 0.012, 0.9
        case "cap":
            row[m.KIND], row[m.THICKNESS_M], row[m.SMOOTHING] = m.CAP, 0.020, 0.7
    return row


# Outermost first.
_ORDER = ("cap", "jacket", "skirt", "dress", "jumper", "shirt", "t-shirt", "tank top", "trousers", "shorts", "shoes")


def worn_order(garments: tuple[GarmentSpec, ...]) -> list[GarmentSpec]:
    """The garments from the outermost to the innermost."""
    return sorted(garments, key=lambda garment: _ORDER.index(garment.name))


def skirt_hem_m(spec: GarmentSpec) -> float:
    """Canonical height of a skirt's or dress's hem."""
    return 0.64 - 0.40 * spec.length


def drape_skirt(
    spec: GarmentSpec, vertices: np.ndarray, canonical: np.ndarray, torso: np.ndarray
) -> tuple[Piece, np.ndarray]:
    """A skirt hung around a person's hips and legs.

    vertices: (V, 3) the dressed body in A-pose, canonical: (V, 3), torso: (V,) bool, the vertices that may hold a
    skirt. Returns the piece in the person's own space, and its canonical coordinates (P, 3).
    The rings are the convex outlines of the body's slices, never narrower than the ring above, plus a flare.
    """
    rows_m = np.linspace(WAIST_Y_M, skirt_hem_m(spec), _SKIRT_ROWS)
    angles = np.linspace(0, 2 * np.pi, _SKIRT_COLUMNS, endpoint=False) - np.pi
    normal = np.stack([np.sin(angles), np.cos(angles)])  # x and z of the outline's normals
    tangent = np.stack([np.cos(angles), -np.sin(angles)])
    points, levels = vertices[torso], canonical[torso, 1]
    hips = points[abs(levels - 0.93) < 0.03]
    center = (hips[:, [0, 2]].max(0) + hips[:, [0, 2]].min(0)) / 2
    support, heights = np.empty((_SKIRT_ROWS, _SKIRT_COLUMNS)), np.empty(_SKIRT_ROWS)
    for row, level in enumerate(rows_m):
        near = abs(levels - level) < 0.022
        support[row] = ((points[near][:, [0, 2]] - center) @ normal).max(0)
        heights[row] = level + (points[near, 1] - levels[near]).mean()
    support = np.maximum.accumulate(support, axis=0)
    down = np.linspace(0, 1, _SKIRT_ROWS)[:, None]
    support += 0.008 + (0.015 + 0.10 * spec.looseness) * down**1.2
    support += 0.012 * spec.looseness * down * np.sin(9 * angles)[None]
    for _ in range(2):
        support = 0.25 * np.roll(support, 1, 1) + 0.5 * support + 0.25 * np.roll(support, -1, 1)
        support[1:-1] = np.maximum(support[1:-1], 0.25 * support[:-2] + 0.5 * support[1:-1] + 0.25 * support[2:])
    slope = (np.roll(support, -1, 1) - np.roll(support, 1, 1)) / (angles[2] - angles[0])
    slope = 0.8 * slope  # a full step would let folds cross
    outline = center[None, None] + support[..., None] * normal.T[None] + slope[..., None] * tangent.T[None]
    rings = np.stack([outline[..., 0], np.broadcast_to(heights[:, None], support.shape), outline[..., 1]], -1)
    flat = np.broadcast_to((normal.T * 0.2)[None], (*support.shape, 2))
    canonical_rings = np.stack([flat[..., 0], np.broadcast_to(rows_m[:, None], support.shape), flat[..., 1]], -1)
    return sleeve(rings), canonical_rings.reshape(-1, 3).astype(np.float32)


def skirt_weights(canonical: np.ndarray, sides: np.ndarray, joint_names: tuple[str, ...]) -> np.ndarray:
    """(P, J) skin weights of a skirt: the waist follows the pelvis, the hem follows the thighs.

    canonical: (P, 3). sides: (P,) signed metres to the person's left.
    """
    weights = np.zeros((len(canonical), len(joint_names)), np.float32)
    depth = np.clip((0.95 - canonical[:, 1]) / 0.30, 0, 1)
    left = np.clip((sides + 0.10) / 0.20, 0, 1)
    weights[:, joint_names.index("hip_left")] = 0.8 * depth * left
    weights[:, joint_names.index("hip_right")] = 0.8 * depth * (1 - left)
    weights[:, joint_names.index("pelvis")] = 1 - 0.8 * depth
    return weights
