from __future__ import annotations

import numpy as np
import pytest
import torch

from modules.geometry.camera import OrthographicCamera, orbit_camera, orthographic_views
from modules.geometry.mesh import TexturedMesh
from modules.rendering.rasterizer import CpuRasterizer, project
from modules.rendering.shading import render_colors, render_labels, render_normals, render_textured
from tests.numerics.shapes import SQUARE, SQUARE_FACES, icosphere

RASTERIZER = CpuRasterizer()
CENTER = np.array([0.5, 0.5, 0.0])


def front(azimuth_deg: float = 0.0, elevation_deg: float = 0.0):
    return orbit_camera(azimuth_deg, elevation_deg, target_m=CENTER, frame_height_m=2.0)


def square() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(SQUARE), torch.from_numpy(SQUARE_FACES.astype(np.int64))


def textured_square(texture: np.ndarray) -> TexturedMesh:
    """A square whose texture appears upright from the front."""
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    return TexturedMesh(vertices=SQUARE, faces=SQUARE_FACES, uv=uv, texture=texture)


def test_a_wall_that_faces_the_viewer_has_the_normal_of_the_viewing_axis():
    image = render_normals(RASTERIZER, *square(), [front()], 32)
    assert image.shape == (1, 3, 32, 32)
    assert torch.allclose(image[0, :, 16, 16], torch.tensor([0.5, 0.5, 1.0]), atol=1e-5)
    assert torch.equal(image[0, :, 0, 0], torch.full((3,), 0.5))


def test_the_visible_side_always_faces_the_viewer():
    image = render_normals(RASTERIZER, *square(), [front(180)], 32)
    assert torch.allclose(image[0, :, 16, 16], torch.tensor([0.5, 0.5, 1.0]), atol=1e-5)


def test_normals_are_in_camera_space():
    # From the person's left (+x), a wall that faces +z turns its normal to the image's left.
    image = render_normals(RASTERIZER, *square(), [front(45), front(0, 45)], 32) * 2 - 1
    half = 0.5**0.5
    assert torch.allclose(image[0, :, 16, 16], torch.tensor([-half, 0, half]), atol=1e-4)
    assert torch.allclose(image[1, :, 16, 16], torch.tensor([0, -half, half]), atol=1e-4)


def test_a_spheres_normals_lean_outwards_in_the_image():
    vertices, faces = icosphere(4, 0.4, (0.5, 0.5, 0))
    camera = orthographic_views(CENTER, 1.0, (30.0,))
    image = (
        render_normals(RASTERIZER, torch.from_numpy(vertices), torch.from_numpy(faces).long(), camera, 64)[0] * 2 - 1
    )
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    x, y = (columns - 32) / (0.4 * 64), (32 - rows) / (0.4 * 64)
    inner = x**2 + y**2 < 0.8
    assert torch.allclose(image[0][inner], x[inner], atol=0.03)
    assert torch.allclose(image[1][inner], y[inner], atol=0.03)


def test_a_colour_field_is_asked_at_the_points_that_are_seen():
    asked = []

    def color_fn(points: torch.Tensor) -> torch.Tensor:
        asked.append(points)
        return points.clamp(0, 1)

    image, mask = render_colors(RASTERIZER, *square(), color_fn, [front(), front()], 32, background=0.25)
    assert len(asked) == 1
    assert asked[0].shape == (2 * 256, 3)
    assert image.shape == (2, 3, 32, 32)
    assert mask.shape == (2, 1, 32, 32)
    assert mask.sum().item() == pytest.approx(512, abs=1)
    assert torch.allclose(image[1, :, 8, 8], torch.tensor([1 / 32, 31 / 32, 0]), atol=1e-3)
    assert torch.equal(image[0, :, 0, 0], torch.full((3,), 0.25))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 32, 32)])
def test_backgrounds_of_every_shape(shape):
    background = torch.rand(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    image, mask = render_colors(RASTERIZER, *square(), torch.zeros_like, [front(), front()], 32, background)
    expected = background.detach()
    expected = expected[:, :, None, None] if expected.dim() == 2 else expected.reshape(-1, *expected.shape[-3:])
    if background.dim() == 1:
        expected = background.detach().view(1, 3, 1, 1)
    empty = (mask == 0).expand_as(image)
    assert torch.equal(image[empty], expected.expand_as(image)[empty])
    image.sum().backward()
    assert background.grad is not None
    assert (background.grad > 0).any()


def test_coverage_is_hard_without_and_soft_with_antialiasing():
    vertices, faces = icosphere(3, 0.4, (0.5, 0.5, 0))
    arguments = (RASTERIZER, torch.from_numpy(vertices), torch.from_numpy(faces).long(), torch.ones_like, [front()], 32)
    _, hard = render_colors(*arguments, antialias=False)
    _, soft = render_colors(*arguments)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert ((soft > 0.05) & (soft < 0.95)).sum() > 10


def test_gradients_reach_the_colour_field_and_the_vertices():
    vertices, faces = square()
    vertices.requires_grad_()
    color = torch.full((3,), 0.5, requires_grad=True)
    image, mask = render_colors(RASTERIZER, vertices, faces, lambda points: color.expand(len(points), 3), [front()], 32)
    (image.sum() + mask.sum()).backward()
    assert color.grad is not None
    assert color.grad.tolist() == pytest.approx([256] * 3, abs=1)
    assert vertices.grad is not None
    assert vertices.grad.abs().sum() > 0


def test_a_view_of_nothing_is_background():
    vertices, faces = square()
    vertices = vertices + 50
    image, mask = render_colors(RASTERIZER, vertices, faces, torch.zeros_like, [front()], 32, 0.75)
    assert torch.equal(image, torch.full_like(image, 0.75))
    assert not mask.any()
    assert torch.equal(render_normals(RASTERIZER, vertices, faces, [front()], 32), torch.full((1, 3, 32, 32), 0.5))


def test_a_texture_appears_upright():
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[0, 0], texture[0, 1], texture[1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image, mask = render_textured(textured_square(texture), [front()], 32, background=0.5, supersampling=2)
    assert image.shape == (1, 32, 32, 3)
    assert image.dtype == mask.dtype == np.float32
    np.testing.assert_allclose(image[0, 9, 9], [1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(image[0, 9, 22], [0, 1, 0], atol=1e-5)
    np.testing.assert_allclose(image[0, 22, 9], [0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(image[0, 2, 2], [0.5] * 3)
    assert mask[0].sum() == 256


def test_supersampling_gives_partial_coverage():
    mesh = textured_square(np.zeros((2, 2, 3), np.uint8))
    turned = orbit_camera(30, 20, target_m=CENTER, frame_height_m=2.0)
    _, hard = render_textured(mesh, [turned], 32, supersampling=1)
    image, soft = render_textured(mesh, [turned], 32, background=(1.0, 0.0, 0.0), supersampling=4)
    assert set(np.unique(hard)) == {0.0, 1.0}
    assert ((soft > 0) & (soft < 1)).sum() > 20
    np.testing.assert_allclose(image[0, :, :, 0], 1 - soft[0], atol=1e-6)
    with pytest.raises(ValueError, match="supersampling"):
        render_textured(mesh, [turned], 32, supersampling=0)


def test_labels_are_looked_up_by_nearest_texel():
    mesh = textured_square(np.zeros((4, 4, 3), np.uint8))
    labels = np.arange(4, dtype=np.uint8).reshape(2, 2)
    image = render_labels(mesh, labels, [front()], 32)
    assert image.dtype == np.uint8
    assert set(np.unique(image)) == {0, 1, 2, 3, 255}
    assert (image[0, 8:16, 8:16] == 0).all()
    assert (image[0, 8:16, 16:24] == 1).all()
    assert (image[0, 16:24, 8:16] == 2).all()
    assert render_labels(mesh, labels, [front()], 32, outside=9)[0, 0, 0] == 9
    with pytest.raises(ValueError, match="labels must be"):
        render_labels(mesh, labels.astype(int), [front()], 32)


def test_orthographic_views_keep_size_at_any_distance():
    camera = orthographic_views(CENTER, 2.0)[0]
    for z in (-1.0, 0.0, 1.0):
        clip = project(torch.from_numpy(SQUARE) + torch.tensor([0, 0, z]), [camera])[0]
        assert torch.equal(clip[:, 3], torch.ones(4))
        assert torch.allclose(clip[:, :2], (torch.from_numpy(SQUARE) - 0.5)[:, :2], atol=1e-6)
        assert (clip[:, 2].abs() < 1).all()


def test_the_four_views_look_from_front_left_back_and_right():
    cameras = orthographic_views(CENTER, 2.0)
    backward = np.stack([camera.rotation[2] for camera in cameras])
    np.testing.assert_allclose(backward, [[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0]], atol=1e-6)
    point = project(torch.tensor([[0.5, 0.5, 1.0]]), cameras)[:, 0]
    assert point[0, 2] < 0 < point[2, 2]  # in front of the centre, seen from the front; behind it from the back


def test_an_orthographic_camera_checks_its_size():
    with pytest.raises(ValueError, match="must be positive"):
        OrthographicCamera(rotation=np.eye(3), center_m=np.zeros(3), height_m=0.0, azimuth_deg=0.0)
