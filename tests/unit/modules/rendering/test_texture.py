from __future__ import annotations

import numpy as np
import pytest
import torch

from modules.geometry.camera import orbit_camera
from modules.rendering.rasterizer import CpuRasterizer
from modules.rendering.shading import render_colors, render_textured
from modules.rendering.texture import (
    bake_textured_mesh,
    fill_gutters,
    rasterize_uv,
    sample_texture,
    sample_texture_numpy,
)
from modules.rendering.unwrap import UnwrapConfig, unwrap
from tests.numerics.shapes import SQUARE, SQUARE_FACES, icosphere

SQUARE_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)


def smooth_color(points: torch.Tensor) -> torch.Tensor:
    return 0.5 + 0.4 * torch.sin(points * torch.tensor([5.0, 7.0, 6.0]) + torch.tensor([0.0, 1.0, 2.0]))


def test_texel_centres_give_texels_back():
    texture = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    rows, columns = np.indices((3, 5))
    uv = np.stack([(columns + 0.5) / 5, (rows + 0.5) / 3], -1).reshape(-1, 2).astype(np.float32)
    np.testing.assert_allclose(sample_texture_numpy(texture, uv), texture.reshape(-1, 3) / 255, atol=1e-5)


def test_lookups_between_texels_are_linear_and_clamped_at_the_border():
    texture = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    uv = np.array([[0.5, 0.5], [0.375, 0.9], [0.0, 0.0], [1.0, 1.0]], np.float32)
    np.testing.assert_allclose(sample_texture_numpy(texture, uv)[:, 0], [0.5, 0.25, 0, 1], atol=1e-6)


def test_torch_and_numpy_lookups_agree():
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (9, 6, 3), dtype=np.uint8)
    uv = rng.uniform(size=(100, 2)).astype(np.float32)
    found = sample_texture(torch.from_numpy(texture).float() / 255, torch.from_numpy(uv))
    np.testing.assert_allclose(found.numpy(), sample_texture_numpy(texture, uv), atol=1e-5)


def test_texture_lookup_passes_gradcheck():
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(4, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    uv = torch.rand(6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sample_texture, (texture, uv))


def test_gutters_take_the_nearest_colour():
    texture = np.zeros((5, 5, 1))
    covered = np.zeros((5, 5), bool)
    texture[2, 0], covered[2, 0] = 1, True
    texture[2, 4], covered[2, 4] = 2, True
    filled = fill_gutters(texture, covered)
    assert (filled[:, :2] == 1).all()
    assert (filled[:, 3:] == 2).all()
    np.testing.assert_array_equal(fill_gutters(texture, np.zeros((5, 5), bool)), texture)


def test_uv_space_has_its_origin_in_the_top_left_corner():
    index, barycentric = rasterize_uv(SQUARE_UV, SQUARE_FACES, 8)
    assert (index >= 0).all()
    assert index[7, 7] == 0
    assert index[0, 0] == 1
    positions = (SQUARE[SQUARE_FACES[index]] * barycentric[..., None]).sum(2)
    np.testing.assert_allclose(positions[0, 0], [1 / 16, 15 / 16, 0], atol=1e-5)


def test_baking_evaluates_the_field_at_texels():
    mesh = bake_textured_mesh(SQUARE, SQUARE_FACES, smooth_color, texture_size=16, uv=SQUARE_UV)
    np.testing.assert_array_equal(mesh.uv, SQUARE_UV)
    rows, columns = np.indices((16, 16))
    points = np.stack([(columns + 0.5) / 16, 1 - (rows + 0.5) / 16, 0 * rows], -1).reshape(-1, 3)
    expected = smooth_color(torch.from_numpy(points).float()).numpy().reshape(16, 16, 3)
    np.testing.assert_allclose(mesh.texture / 255, expected, atol=1.1 / 255)


def test_colours_out_of_range_are_clamped():
    mesh = bake_textured_mesh(SQUARE, SQUARE_FACES, lambda points: points * 0 + 3, texture_size=8, uv=SQUARE_UV)
    assert (mesh.texture == 255).all()


def test_unwrapping_keeps_the_surface_and_its_faces():
    vertices, faces = icosphere(2, 0.5)
    unwrapped = unwrap(vertices, faces)
    assert len(unwrapped.faces) == len(faces)
    np.testing.assert_array_equal(unwrapped.vertex_index[unwrapped.faces], faces)
    assert unwrapped.uv.min() >= 0
    assert unwrapped.uv.max() <= 1
    index, _ = rasterize_uv(unwrapped.uv, unwrapped.faces, 512)
    assert len(np.unique(index)) == len(faces) + 1  # every face has texels of its own, and some belong to none


def test_a_baked_sphere_looks_like_its_field():
    vertices, faces = icosphere(3, 0.5)
    cameras = [orbit_camera(angle, 15, target_m=np.zeros(3), frame_height_m=1.3) for angle in (0, 120, 240)]
    mesh = bake_textured_mesh(vertices, faces, smooth_color, texture_size=512)
    baked, baked_mask = render_textured(mesh, cameras, 96, background=0.5, supersampling=2)
    field, field_mask = render_colors(
        CpuRasterizer(), torch.from_numpy(vertices), torch.from_numpy(faces).long(), smooth_color, cameras, 96, 0.5
    )
    both = (baked_mask == 1) & (field_mask[:, 0].numpy() == 1)
    assert both.mean() > 0.3
    error = (baked - field.permute(0, 2, 3, 1).numpy())[both]
    assert -10 * np.log10((error**2).mean()) >= 35


def test_no_colour_bleeds_across_seams():
    """A field of one colour bakes to that colour everywhere, whatever lies between the charts."""
    vertices, faces = icosphere(2, 0.5)
    mesh = bake_textured_mesh(vertices, faces, lambda points: torch.full_like(points, 0.6), texture_size=128)
    camera = orbit_camera(40, 10, target_m=np.zeros(3), frame_height_m=1.3)
    image, mask = render_textured(mesh, [camera], 96, background=0.0, supersampling=1)
    np.testing.assert_allclose(image[mask == 1], 0.6, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"resolution": 4}, "resolution"),
        ({"padding": -1}, "padding"),
        ({"chart_iterations": 0}, "chart_iterations"),
        ({"max_cost": 0.0}, "max_cost"),
    ],
)
def test_bad_unwrap_settings_are_refused(changes, name):
    with pytest.raises(ValueError, match=name):
        UnwrapConfig(**changes)


def test_a_mesh_without_faces_cannot_be_unwrapped():
    with pytest.raises(ValueError, match="at least one face"):
        unwrap(SQUARE, np.zeros((0, 3), np.int32))
