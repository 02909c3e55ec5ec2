"""Linear blend skinning and its kinematics."""

from __future__ import annotations

import numpy as np
import pytest

from modules.geometry.skinning import axis_rotation, blend_vertices, joint_transforms, top_skin_weights

NAMES = ("root", "middle", "tip")
PARENTS = (-1, 0, 1)
POSITIONS = np.array([[0.0, 0, 0], [0, 1, 0], [0, 2, 0]])


def test_axis_rotation_turns_counter_clockwise() -> None:
    np.testing.assert_allclose(axis_rotation(2, 90) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(axis_rotation(0, 90) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(axis_rotation(1, 90) @ [0, 0, 1], [1, 0, 0], atol=1e-12)


def test_axis_rotation_rejects_other_axes() -> None:
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2, found 3"):
        axis_rotation(3, 10)


def test_no_rotation_is_the_identity() -> None:
    transforms = joint_transforms(NAMES, PARENTS, POSITIONS, {})
    np.testing.assert_array_equal(transforms, np.broadcast_to(np.eye(4), (3, 4, 4)))


def test_a_joint_moves_its_subtree_about_itself() -> None:
    transforms = joint_transforms(NAMES, PARENTS, POSITIONS, {"middle": axis_rotation(2, 90)})
    points = np.array([[0.0, 0.5, 0], [0, 2, 0], [0, 3, 0]])
    posed = blend_vertices(points, np.array([[0], [1], [2]]), np.ones((3, 1)), transforms)
    np.testing.assert_allclose(posed, [[0, 0.5, 0], [-1, 1, 0], [-2, 1, 0]], atol=1e-6)


def test_weights_blend_linearly_against_the_dense_formula() -> None:
    rng = np.random.default_rng(0)
    transforms = joint_transforms(
        NAMES, PARENTS, POSITIONS, {name: axis_rotation(int(axis), 30) for axis, name in enumerate(NAMES)}
    )
    points = rng.normal(size=(20, 3)).astype(np.float32)
    dense = rng.random((20, 3)).astype(np.float32)
    indices, weights = top_skin_weights(dense, num_slots=3)
    blended = np.einsum("vj,jkl->vkl", dense / dense.sum(1, keepdims=True), transforms)
    expected = np.einsum("vkl,vl->vk", blended[:, :3, :3], points) + blended[:, :3, 3]
    np.testing.assert_allclose(blend_vertices(points, indices, weights, transforms), expected, atol=1e-5)


def test_translation_of_the_root_moves_everything() -> None:
    transforms = joint_transforms(NAMES, PARENTS, POSITIONS, {}, root_translation_m=np.array([1.0, 2, 3]))
    np.testing.assert_allclose(transforms[:, :3, 3], [[1, 2, 3]] * 3)


def test_unknown_joint_is_named() -> None:
    with pytest.raises(ValueError, match="unknown joints \\['tail'\\]"):
        joint_transforms(NAMES, PARENTS, POSITIONS, {"tail": np.eye(3)})


def test_vertices_need_a_weight() -> None:
    with pytest.raises(ValueError, match="at least one positive skin weight"):
        top_skin_weights(np.zeros((2, 3)))


def test_no_vertices() -> None:
    empty = blend_vertices(np.zeros((0, 3)), np.zeros((0, 4)), np.zeros((0, 4)), np.eye(4)[None])
    assert empty.shape == (0, 3)
