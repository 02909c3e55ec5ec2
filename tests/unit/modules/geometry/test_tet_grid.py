from __future__ import annotations

import numpy as np
import pytest
import torch

from modules.geometry.tet_grid import TetGrid, TetGridConfig, smooth_on_grid
from tests.numerics.shapes import capsule, icosphere

RADIUS = 0.25


@pytest.fixture(scope="module")
def grid() -> TetGrid:
    return TetGrid.around_mesh(*icosphere(4, RADIUS, (0.1, 0.9, 0.0)), TetGridConfig(spacing_m=0.04, inner_m=-0.1))


def test_the_templates_distances_are_those_of_a_sphere(grid):
    distance = (grid.vertices - torch.tensor([0.1, 0.9, 0.0])).norm(dim=1) - RADIUS
    assert (grid.template_sdf - distance).abs().max() < 1e-3  # the icosphere lies this far within the sphere


def test_the_band_ends_where_it_should(grid):
    assert grid.template_sdf.min() >= -0.1
    assert grid.template_sdf.max() <= 0.12
    assert (grid.boundary_sign > 0).any()
    assert (grid.boundary_sign < 0).any()
    assert (grid.template_sdf[grid.boundary_sign > 0] > 0).all()
    assert (grid.template_sdf[grid.boundary_sign < 0] < 0).all()


def test_the_borders_vertices_are_exactly_those_of_faces_with_one_tetrahedron(grid):
    corners = np.sort(grid.tets.numpy()[:, [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]].reshape(-1, 3), 1)
    faces, count = np.unique(corners, axis=0, return_counts=True)
    assert count.max() <= 2
    on_border = np.zeros(grid.num_vertices, bool)
    on_border[faces[count == 1]] = True
    assert not (on_border & (grid.boundary_sign.numpy() == 0)).any()


def test_tetrahedra_are_positive_and_of_equal_volume(grid):
    corners = grid.vertices[grid.tets].double()
    volume = torch.linalg.det(corners[:, 1:] - corners[:, :1]) / 6
    assert torch.allclose(volume, torch.full_like(volume, 0.04**3 / 12), rtol=1e-3)


def test_edges_are_unique_and_belong_to_their_tetrahedra(grid):
    assert (grid.edges[:, 0] < grid.edges[:, 1]).all()
    assert len(torch.unique(grid.edges, dim=0)) == len(grid.edges)
    pairs = torch.tensor([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
    expected = grid.tets[:, pairs].sort(2).values
    assert (grid.edges[grid.tet_edges] == expected).all()


def test_deep_points_are_inside_whatever_the_bands_depth():
    grid = TetGrid.around_mesh(*icosphere(3, RADIUS), TetGridConfig(spacing_m=0.05, inner_m=-1.0))
    center = grid.vertices.norm(dim=1).argmin()
    assert grid.template_sdf[center] < -0.2
    assert not (grid.boundary_sign < 0).any()


def test_a_mesh_with_a_hole_has_an_inside_too():
    vertices, faces = capsule(0.6, 0.2)
    centers = vertices[faces].mean(1)
    opened = faces[centers[:, 1] < vertices[:, 1].max() - 0.05]
    assert len(opened) < len(faces)
    grid = TetGrid.around_mesh(vertices, opened, TetGridConfig(spacing_m=0.05, inner_m=-1.0))
    on_axis = (grid.vertices[:, [0, 2]].norm(dim=1) < 0.05) & ((grid.vertices[:, 1] - 0.5).abs() < 0.3)
    assert on_axis.any()
    assert (grid.template_sdf[on_axis] < 0).all()


def test_smoothing_keeps_constants_and_spreads_a_peak(grid):
    constant = torch.full((2, grid.num_vertices), 3.0)
    assert torch.allclose(smooth_on_grid(grid, constant, 5), constant, atol=1e-5)
    peak = torch.zeros(grid.num_vertices)
    peak[100] = 1
    once = smooth_on_grid(grid, peak, 1)
    neighbors = grid.edges[(grid.edges == 100).any(1)].unique()
    assert once[100] == pytest.approx(0.5)
    assert set(torch.nonzero(once).squeeze(1).tolist()) == set(neighbors.tolist())
    assert torch.equal(smooth_on_grid(grid, peak, 0), peak)


def test_smoothing_treats_albums_alike_alone_and_together(grid):
    values = torch.randn(3, grid.num_vertices, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(smooth_on_grid(grid, values)[1], smooth_on_grid(grid, values[1]), atol=1e-6)


def test_moving_to_a_device_keeps_everything(grid):
    moved = grid.to("cpu")
    assert torch.equal(moved.tets, grid.tets)
    assert moved.spacing_m == grid.spacing_m


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"spacing_m": 0.0}, "spacing_m"), ({"inner_m": 0.01}, "inner_m"), ({"outer_m": 0.01}, "outer_m")],
)
def test_bad_settings_are_refused(changes, name):
    with pytest.raises(ValueError, match=name):
        TetGridConfig(**changes)
