from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modules.geometry.regularizers import eikonal, laplacian_smoothness, normal_consistency
from modules.geometry.tet_grid import TetGrid, TetGridConfig
from tests.numerics.shapes import SQUARE, SQUARE_FACES, icosphere


@pytest.fixture(scope="module")
def grid() -> TetGrid:
    return TetGrid.around_mesh(*icosphere(3, 0.2), TetGridConfig(spacing_m=0.04, inner_m=-0.1))


def tetrahedron(height: float) -> tuple[torch.Tensor, torch.Tensor]:
    """An apex at `height` above an equilateral triangle with its centre at the origin and corners at distance 1."""
    angles = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    base = torch.stack([angles.cos(), angles.sin(), torch.zeros(3)], 1)
    vertices = torch.cat([base, torch.tensor([[0.0, 0.0, height]])])
    return vertices.double(), torch.tensor([[0, 1, 3], [1, 2, 3], [2, 0, 3], [0, 2, 1]])


def test_the_laplacian_of_a_tetrahedron():
    vertices, faces = tetrahedron(2.0)
    # Everyone neighbours everyone: the mean of the others less oneself is 4/3 of the centroid less oneself.
    expected = (16 / 9 * (vertices - vertices.mean(0)).square().sum(1)).mean()
    assert laplacian_smoothness(vertices, faces).item() == pytest.approx(expected.item())


def test_the_laplacian_is_zero_in_the_middle_of_a_flat_fan():
    angles = np.linspace(0, 2 * np.pi, 7)[:-1]
    rim = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    vertices = torch.from_numpy(np.concatenate([[[0.0, 0, 0]], rim])).requires_grad_()
    faces = torch.tensor([[0, 1 + i, 1 + (i + 1) % 6] for i in range(6)])
    laplacian_smoothness(vertices, faces).backward()
    assert vertices.grad is not None
    assert vertices.grad[0].norm() < 1e-9


def test_loose_vertices_do_not_count():
    vertices, faces = tetrahedron(1.0)
    more = torch.cat([vertices, torch.full((3, 3), 9.0).double()])
    assert torch.equal(laplacian_smoothness(more, faces), laplacian_smoothness(vertices, faces))


def test_a_plane_is_consistent_and_a_right_angle_is_one():
    faces = torch.from_numpy(SQUARE_FACES).long()
    flat = torch.from_numpy(SQUARE)
    assert normal_consistency(flat, faces).item() == pytest.approx(0, abs=1e-6)
    folded = flat.clone()
    folded[3] = torch.tensor([0.5, 0.5, math.sqrt(0.5)])  # turned about the diagonal by a right angle
    assert normal_consistency(folded, faces).item() == pytest.approx(1, abs=1e-6)


def test_a_fold_counts_two_and_open_edges_nothing():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.0, 1, 0]], requires_grad=True)
    assert normal_consistency(vertices, torch.tensor([[0, 1, 2], [1, 0, 3]])).item() == pytest.approx(2)
    alone = normal_consistency(vertices, torch.tensor([[0, 1, 2]]))
    assert alone.item() == 0
    alone.backward()


def test_a_plane_has_slope_one(grid):
    direction = torch.tensor([1.0, 2.0, 2.0]) / 3
    sdf = grid.vertices @ direction - 0.05
    assert eikonal(grid, sdf).item() == pytest.approx(0, abs=1e-6)
    assert eikonal(grid, 3 * sdf).item() == pytest.approx(4, rel=1e-3)
    assert eikonal(grid, 0 * sdf).item() == pytest.approx(1, rel=1e-3)


def test_true_distances_have_nearly_slope_one(grid):
    assert eikonal(grid, grid.template_sdf).item() < 0.01


def test_regularizers_pass_gradcheck(grid):
    vertices, faces = tetrahedron(1.5)
    vertices.requires_grad_()
    assert torch.autograd.gradcheck(lambda moved: laplacian_smoothness(moved, faces), vertices)
    assert torch.autograd.gradcheck(lambda moved: normal_consistency(moved, faces), vertices)
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    tiny = TetGrid.from_tets(corners, np.array([[0, 1, 2, 3], [4, 2, 1, 3]]), np.zeros(5), np.zeros(5), 1.0)
    sdf = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: eikonal(tiny, values), sdf)
