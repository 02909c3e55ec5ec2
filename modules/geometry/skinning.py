"""Linear blend skinning of one person in numpy.

Joint rotations are given in the world's axes at rest (x to the person's left, y up, z forward), relative to the
A-pose: the identity leaves the body as it was built. A rotation moves the joint's whole subtree about the joint's
rest position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numba
import numpy as np


def axis_rotation(axis: int, angle_deg: float) -> np.ndarray:
    """(3, 3) float64 rotation about world axis 0 (x), 1 (y) or 2 (z), counter-clockwise seen from the axis' tip."""
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, found {axis}")
    cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    rotation = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotation[first, first] = rotation[second, second] = cosine
    rotation[first, second], rotation[second, first] = -sine, sine
    return rotation


def joint_transforms(
    joint_names: Sequence[str],
    parents: Sequence[int],
    joint_positions: np.ndarray,
    rotations: Mapping[str, np.ndarray],
    root_translation_m: np.ndarray | None = None,
) -> np.ndarray:
    """Forward kinematics: (J, 4, 4) float32 matrices that take rest points to posed points.

    parents: index of each joint's parent, -1 for the root; parents come before their children.
    joint_positions: (J, 3) metres at rest. rotations: joint name -> (3, 3), absent joints do not turn.
    """
    unknown = set(rotations) - set(joint_names)
    if unknown:
        raise ValueError(f"rotations name the unknown joints {sorted(unknown)}, expected some of {list(joint_names)}")
    transforms = np.empty((len(joint_names), 4, 4), np.float64)
    for index, (name, parent) in enumerate(zip(joint_names, parents, strict=True)):
        local = np.eye(4)
        if name in rotations:
            local[:3, :3] = rotations[name]
            local[:3, 3] = joint_positions[index] - rotations[name] @ joint_positions[index]
        transforms[index] = local if parent < 0 else transforms[parent] @ local
    if root_translation_m is not None:
        transforms[:, :3, 3] += root_translation_m
    return transforms.astype(np.float32)


@numba.njit(cache=True, fastmath=True, nogil=True)
def _blend(vertices, indices, weights, transforms, posed):  # pragma: no cover - compiled
    for vertex in range(vertices.shape[0]):
        x, y, z = vertices[vertex, 0], vertices[vertex, 1], vertices[vertex, 2]
        px, py, pz = 0.0, 0.0, 0.0
        for slot in range(indices.shape[1]):
            weight = weights[vertex, slot]
            if weight == 0.0:
                continue
            m = transforms[indices[vertex, slot]]
            px += weight * (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3])
            py += weight * (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3])
            pz += weight * (m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3])
        posed[vertex, 0], posed[vertex, 1], posed[vertex, 2] = px, py, pz


def blend_vertices(
    vertices: np.ndarray, skin_indices: np.ndarray, skin_weights: np.ndarray, transforms: np.ndarray
) -> np.ndarray:
    """Linear blend skinning.

    vertices: (V, 3) metres at rest. skin_indices: (V, S) joint indices. skin_weights: (V, S), each row sums to 1.
    transforms: (J, 4, 4) from `joint_transforms`. Returns (V, 3) float32.
    """
    posed = np.empty((len(vertices), 3), np.float32)
    _blend(
        np.ascontiguousarray(vertices, np.float32),
        np.ascontiguousarray(skin_indices, np.int32),
        np.ascontiguousarray(skin_weights, np.float32),
        np.ascontiguousarray(transforms, np.float32),
        posed,
    )
    return posed


def top_skin_weights(dense: np.ndarray, num_slots: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The largest `num_slots` weights of each row of dense (V, J), normalised: indices (V, S) uint8 and weights (V,
    S) float32.
    """
    order = np.argsort(-dense, axis=1, kind="stable")[:, :num_slots]
    weights = np.take_along_axis(dense, order, axis=1)
    total = weights.sum(1, keepdims=True)
    if (total <= 0).any():
        raise ValueError("every vertex needs at least one positive skin weight")
    return order.astype(np.uint8), (weights / total).astype(np.float32)
