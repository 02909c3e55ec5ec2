"""Antialiased coverage and its gradient against exact areas and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from modules.geometry.camera import orbit_camera
from modules.rendering.rasterizer import CpuRasterizer, project
from tests.numerics.shapes import SQUARE_FACES, icosphere, pixels_to_clip

RESOLUTION = 24
RASTERIZER = CpuRasterizer()


def coverage_image(points: Tensor, faces: Tensor) -> Tensor:
    """(H, W) coverage of triangles given by image positions (V, 2) in pixels."""
    clip = pixels_to_clip(points, RESOLUTION)
    fragments = RASTERIZER.rasterize(clip, faces, RESOLUTION)
    image = fragments.mask[..., None].to(points.dtype)
    return RASTERIZER.antialias(image, fragments, clip, faces)[0, :, :, 0]


def box(left: float, top: float, right: float, bottom: float) -> Tensor:
    return torch.tensor([[left, bottom], [right, bottom], [right, top], [left, top]], dtype=torch.float32)


def rotated_square(angle_deg: float, half_m: float = 7.0) -> Tensor:
    angles = torch.deg2rad(torch.tensor([45.0, 135.0, 225.0, 315.0]) + angle_deg)
    directions = torch.stack([angles.cos(), -angles.sin()], 1)
    return torch.tensor([12.13, 11.88]) + half_m * math.sqrt(2) * directions


FACES = torch.from_numpy(SQUARE_FACES.astype(np.int64))


@pytest.mark.parametrize("right", [16.0, 16.1, 16.35, 16.5, 16.72, 16.99])
def test_coverage_of_a_box_is_its_area(right):
    image = coverage_image(box(5.25, 6.5, right, 15.75), FACES)
    # The corners' own pixels are shared by two edges and are only nearly right; everything else is exact.
    area = (right - 5.25) * (15.75 - 6.5)
    assert image.sum().item() == pytest.approx(area, abs=0.5)
    assert image[10].sum().item() == pytest.approx(right - 5.25, abs=1e-3)
    assert image[:, 10].sum().item() == pytest.approx(15.75 - 6.5, abs=1e-3)


def test_the_gradient_of_a_boxs_side_is_its_length():
    points = box(5.25, 6.25, 16.3, 15.75).requires_grad_()
    coverage_image(points, FACES).sum().backward()
    assert points.grad is not None
    right_side = points.grad[1, 0] + points.grad[2, 0]
    left_side = points.grad[0, 0] + points.grad[3, 0]
    bottom_side = points.grad[0, 1] + points.grad[1, 1]
    assert right_side.item() == pytest.approx(9.5, rel=0.08)
    assert left_side.item() == pytest.approx(-9.5, rel=0.08)
    assert bottom_side.item() == pytest.approx(11.05, rel=0.08)


def test_a_boxs_gradient_agrees_with_finite_differences():
    def total(right: float) -> float:
        return coverage_image(box(5.25, 6.25, right, 15.75), FACES).sum().item()

    points = box(5.25, 6.25, 16.3, 15.75).requires_grad_()
    coverage_image(points, FACES).sum().backward()
    assert points.grad is not None
    analytic = (points.grad[1, 0] + points.grad[2, 0]).item()
    assert analytic == pytest.approx((total(16.4) - total(16.2)) / 0.2, rel=0.05)


@pytest.mark.parametrize("angle_deg", [7.0, 20.0, 33.0, 60.0])
def test_a_rotated_square_has_its_area_and_the_gradient_of_its_growth(angle_deg):
    points = rotated_square(angle_deg).requires_grad_()
    image = coverage_image(points, FACES)
    assert image.sum().item() == pytest.approx(14.0**2, rel=0.01)
    image.sum().backward()
    assert points.grad is not None
    center = points.detach().mean(0)
    growth = (points.grad * (points.detach() - center)).sum().item() / 7.0
    assert growth == pytest.approx(8 * 7.0, rel=0.1)  # d (2h)^2 / dh


@pytest.mark.parametrize("angle_deg", [7.0, 20.0, 60.0])
def test_moving_a_square_moves_the_images_centroid(angle_deg):
    columns = torch.arange(RESOLUTION) + 0.5
    points = rotated_square(angle_deg).requires_grad_()
    (coverage_image(points, FACES) * columns).sum().backward()
    assert points.grad is not None
    assert points.grad[:, 0].sum().item() == pytest.approx(14.0**2, rel=0.1)
    assert abs(points.grad[:, 1].sum().item()) < 0.1 * 14.0**2


@pytest.mark.parametrize("resolution", [24, 64])
def test_triangles_smaller_than_pixels_still_have_their_silhouette(resolution):
    vertices, faces = icosphere(5, 0.5)  # 20 480 triangles on about 250 pixels at the lower resolution
    camera = orbit_camera(20, 10, target_m=np.zeros(3), frame_height_m=1.4)
    face_tensor = torch.from_numpy(faces.astype(np.int64))
    scale = torch.ones((), requires_grad=True)
    clip = project(torch.from_numpy(vertices) * scale, [camera])
    fragments = RASTERIZER.rasterize(clip, face_tensor, resolution)
    image = RASTERIZER.antialias(fragments.mask[..., None].float(), fragments, clip, face_tensor)
    image.sum().backward()
    # The silhouette of a sphere in perspective is a circle of radius r / sqrt(d^2 - r^2), in units of the focal length.
    distance, radius = 0.7 / math.tan(math.radians(15)), 0.5
    focal = resolution / 2 / math.tan(math.radians(15))

    def disc(r: float) -> float:
        return math.pi * focal**2 * r**2 / (distance**2 - r**2)

    assert scale.grad is not None
    assert image.sum().item() == pytest.approx(disc(radius), rel=0.01)
    expected = (disc(radius * 1.001) - disc(radius * 0.999)) / 0.002
    assert scale.grad.item() == pytest.approx(expected, rel=0.1)


def test_the_gradient_to_colours_is_exact():
    generator = torch.Generator().manual_seed(0)
    points = rotated_square(20.0).double()
    clip = pixels_to_clip(points, RESOLUTION)
    fragments = RASTERIZER.rasterize(clip, FACES, RESOLUTION)
    image = torch.rand(1, RESOLUTION, RESOLUTION, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: RASTERIZER.antialias(x, fragments, clip, FACES).sum((1, 2)), image)


def test_the_gradient_to_vertices_is_that_of_the_blend():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, RESOLUTION, RESOLUTION, 2, generator=generator, dtype=torch.float64)
    points = rotated_square(20.0).double().requires_grad_()
    fragments = RASTERIZER.rasterize(pixels_to_clip(points, RESOLUTION), FACES, RESOLUTION)

    def blended(moved: Tensor) -> Tensor:
        return RASTERIZER.antialias(image, fragments, pixels_to_clip(moved, RESOLUTION), FACES).sum((1, 2))

    assert torch.autograd.gradcheck(blended, points, eps=1e-7, atol=1e-4)
