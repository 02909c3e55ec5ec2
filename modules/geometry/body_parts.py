"""Which part of the body a point of a surface belongs to, by the nearest point of the A-posed template."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from scipy.spatial import cKDTree

from modules.geometry.body import BodyTemplate

BodyPart = Literal["face", "scalp", "neck", "torso", "upper arms", "forearms", "hands", "thighs", "shins", "feet"]
BODY_PARTS: tuple[BodyPart, ...] = get_args(BodyPart)

_OF_JOINT: dict[str, BodyPart] = {
    "pelvis": "thighs",
    "spine_lower": "torso",
    "spine_middle": "torso",
    "spine_upper": "torso",
    "neck": "neck",
    "head": "neck",
    "collar": "torso",
    "shoulder": "upper arms",
    "elbow": "forearms",
    "wrist": "hands",
    "hip": "thighs",
    "knee": "shins",
    "ankle": "feet",
    "toes": "feet",
}
# The face as a part of the head's box: before the ears and below the hairline, and the cheeks and jaw beside it.
_FACE_FRONT, _HAIRLINE = 0.46, 0.78
_JAW_FRONT, _JAW_TOP = 0.25, 0.35
# Below it the back of the head is the nape, and what lies inside is the throat.
_NAPE = 0.2


def parts_of_body(body: BodyTemplate) -> np.ndarray:
    """(V,) int index into BODY_PARTS of each of the template's vertices, by the joint that moves it most."""
    joints = list(body.joints)
    strongest = body.skin_indices[np.arange(len(body.vertices)), body.skin_weights.argmax(1)]
    part_of_joint = [BODY_PARTS.index(_OF_JOINT[name.removesuffix("_left").removesuffix("_right")]) for name in joints]
    parts = np.asarray(part_of_joint)[strongest]
    head = body.vertices[body.regions["head"]]
    low, high = head.min(0), head.max(0)
    place = (body.vertices - low) / (high - low)
    front = (place[:, 2] > _FACE_FRONT) & (place[:, 1] < _HAIRLINE)
    jaw = (place[:, 2] > _JAW_FRONT) & (place[:, 1] < _JAW_TOP)
    parts[body.regions["head"]] = BODY_PARTS.index("scalp")
    parts[body.regions["head"] & (place[:, 1] < _NAPE)] = BODY_PARTS.index("neck")
    parts[body.regions["head"] & (front | jaw)] = BODY_PARTS.index("face")
    return parts


def parts_of_points(points: np.ndarray, body: BodyTemplate) -> np.ndarray:
    """(P,) int index into BODY_PARTS of points (P, 3) in metres."""
    nearest = cKDTree(body.vertices).query(np.asarray(points, np.float64))[1]
    return parts_of_body(body)[nearest]
