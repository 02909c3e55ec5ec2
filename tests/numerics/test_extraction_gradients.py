"""Gradients of extracted surfaces and rendered images against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modules.geometry.camera import orbit_camera
from modules.geometry.marching_tets import extract_mesh
from modules.geometry.tet_grid import TetGrid, TetGridConfig
from modules.rendering.rasterizer import CpuRasterizer, barycentrics_at, project
from modules.rendering.shading import render_normals
from tests.numerics.shapes import icosphere, volume

RADIUS = 0.15


@pytest.fixture(scope="module")
def grid() -> TetGrid:
    return TetGrid.around_mesh(*icosphere(3, RADIUS), TetGridConfig(spacing_m=0.03, inner_m=-0.07, outer_m=0.08))


def sphere_sdf(grid: TetGrid, radius: float = RADIUS) -> torch.Tensor:
    return grid.vertices.double().norm(dim=1) - radius


def test_growing_every_distance_grows_the_volume_by_the_area(grid):
    level = torch.zeros((), dtype=torch.float64, requires_grad=True)
    vertices, faces = extract_mesh(grid, sphere_sdf(grid) - level)
    volume(vertices, faces).backward()
    assert level.grad is not None
    assert level.grad.item() == pytest.approx(4 * math.pi * RADIUS**2, rel=0.03)


def test_the_volumes_gradient_agrees_with_finite_differences(grid):
    generator = torch.Generator().manual_seed(1)
    # Away from the border and from zero, a small step changes no sign, so that the volume is smooth in it.
    sdf = sphere_sdf(grid)
    direction = torch.randn(len(sdf), generator=generator, dtype=torch.float64) * (sdf.abs() > 1e-3)
    step = 1e-6
    sdf.requires_grad_()
    vertices, faces = extract_mesh(grid, sdf)
    volume(vertices, faces).backward()
    assert sdf.grad is not None
    values = []
    for sign in (-1, 1):
        moved_vertices, moved_faces = extract_mesh(grid, sdf.detach() + sign * step * direction)
        values.append(volume(moved_vertices, moved_faces).item())
    assert (sdf.grad * direction).sum().item() == pytest.approx((values[1] - values[0]) / (2 * step), rel=1e-4)


def test_extraction_passes_gradcheck_for_distances_and_offsets(grid):
    sdf = sphere_sdf(grid).requires_grad_()
    offsets = torch.zeros(grid.num_vertices, 3, dtype=torch.float64, requires_grad=True)
    vertices, _ = extract_mesh(grid, sdf, offsets)
    weights = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (vertices * weights).sum().backward()
    assert sdf.grad is not None
    assert offsets.grad is not None
    touched = torch.nonzero(sdf.grad.abs() > 0).squeeze(1)[::97]
    for index in touched.tolist():
        for tensor, grad, place in ((sdf, sdf.grad, index), (offsets, offsets.grad, (index, 1))):
            values = []
            for step in (-1e-7, 1e-7):
                moved_sdf, moved_offsets = sdf.detach().clone(), offsets.detach().clone()
                (moved_sdf if tensor is sdf else moved_offsets)[place] += step
                values.append((extract_mesh(grid, moved_sdf, moved_offsets)[0] * weights).sum().item())
            assert grad[place].item() == pytest.approx((values[1] - values[0]) / 2e-7, rel=1e-3, abs=1e-5)


def test_barycentrics_pass_gradcheck():
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 3, 4, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0, 0, 2])
    clip.requires_grad_()
    index = torch.zeros(4, dtype=torch.int64)
    ndc = torch.rand(4, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda moved: barycentrics_at(moved, torch.tensor([[0, 1, 2]]), index, index, ndc)[0], clip
    )


def test_a_silhouette_target_pulls_the_sphere_to_the_right_size(grid):
    """The whole path from signed distances to an image: a few gradient steps shrink a sphere to its target."""
    rasterizer = CpuRasterizer()
    cameras = [orbit_camera(angle, 0, target_m=np.zeros(3), frame_height_m=0.5) for angle in (0, 90)]

    def coverage(radius_or_sdf: torch.Tensor) -> torch.Tensor:
        vertices, faces = extract_mesh(grid, radius_or_sdf)
        clip = project(vertices, cameras)
        fragments = rasterizer.rasterize(clip, faces, 48)
        return rasterizer.antialias(fragments.mask[..., None].float(), fragments, clip, faces)

    target = coverage(sphere_sdf(grid, 0.13).float())
    level = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([level], lr=2e-3)
    for _ in range(25):
        optimizer.zero_grad()
        (coverage(sphere_sdf(grid).float() + level) - target).square().mean().backward()
        optimizer.step()
    assert level.item() == pytest.approx(0.02, abs=2e-3)


def test_normals_have_gradients_everywhere_finite(grid):
    sdf = grid.template_sdf.clone().requires_grad_()
    vertices, faces = extract_mesh(grid, sdf)
    cameras = [orbit_camera(30, 10, target_m=np.zeros(3), frame_height_m=0.5)]
    render_normals(CpuRasterizer(), vertices, faces, cameras, 48).square().sum().backward()
    assert sdf.grad is not None
    assert torch.isfinite(sdf.grad).all()
    assert sdf.grad.abs().sum() > 0
