"""One test set for both rasterisers; nvdiffrast's run needs a CUDA device."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from modules.errors import UserError
from modules.geometry.camera import orbit_camera, orthographic_views
from modules.rendering.rasterizer import CpuRasterizer, NvdiffrastRasterizer, make_rasterizer, project
from tests.numerics.shapes import SQUARE, SQUARE_FACES, icosphere, pixels_to_clip

HAS_NVDIFFRAST = torch.cuda.is_available() and importlib.util.find_spec("nvdiffrast") is not None
RESOLUTION = 32


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "nvdiffrast",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not HAS_NVDIFFRAST, reason="needs a CUDA device and the package nvdiffrast"),
            ],
        ),
    ]
)
def rasterizer(request):
    return make_rasterizer(request.param, "cuda" if request.param == "nvdiffrast" else "cpu")


@pytest.fixture
def device(rasterizer) -> str:
    return "cpu" if isinstance(rasterizer, CpuRasterizer) else "cuda"


def tensors(vertices: np.ndarray, faces: np.ndarray, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(vertices).to(device), torch.from_numpy(faces.astype(np.int64)).to(device)


def front(height_m: float = 2.0, target=(0.5, 0.5, 0.0)):
    return orbit_camera(0, 0, target_m=np.array(target), frame_height_m=height_m)


def test_a_square_covers_its_pixels(rasterizer, device):
    vertices, faces = tensors(SQUARE, SQUARE_FACES, device)
    fragments = rasterizer.rasterize(project(vertices, [front()]), faces, RESOLUTION)
    expected = torch.zeros(RESOLUTION, RESOLUTION, dtype=torch.bool)
    expected[8:24, 8:24] = True
    assert torch.equal(fragments.mask[0].cpu(), expected)
    assert fragments.pixel_front.all()
    assert torch.equal(fragments.pixel_batch, torch.zeros_like(fragments.pixel_index))


def test_image_axes_are_right_and_down(rasterizer, device):
    vertices, faces = tensors(SQUARE, SQUARE_FACES, device)
    fragments = rasterizer.rasterize(project(vertices, [front()]), faces, RESOLUTION)
    image = rasterizer.interpolate(vertices, fragments, faces)[0].cpu()
    columns = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 0.5
    expected_x, expected_y = columns.expand(RESOLUTION, -1), 1 - columns[:, None].expand(-1, RESOLUTION)
    mask = fragments.mask[0].cpu()
    assert torch.allclose(image[mask][:, 0], expected_x[mask], atol=1e-4)
    assert torch.allclose(image[mask][:, 1], expected_y[mask], atol=1e-4)
    assert not image[~mask].any()


def test_barycentrics_are_perspective_correct(rasterizer, device):
    """Interpolated positions project back to the pixels' centres, also on a square that leans away."""
    leaning = SQUARE.copy()
    leaning[2:, 2] -= 1.5
    vertices, faces = tensors(leaning, SQUARE_FACES, device)
    camera = front()
    fragments = rasterizer.rasterize(project(vertices, [camera]), faces, RESOLUTION)
    assert torch.allclose(fragments.pixel_barycentric.sum(1).cpu(), torch.ones(len(fragments.pixel_index)), atol=1e-5)
    clip = project(rasterizer.interpolate_pixels(vertices, fragments, faces), [camera])[0].cpu()
    column = (clip[:, 0] / clip[:, 3] * 0.5 + 0.5) * RESOLUTION
    row = (0.5 - clip[:, 1] / clip[:, 3] * 0.5) * RESOLUTION
    index = fragments.pixel_index.cpu()
    assert torch.allclose(column, index % RESOLUTION + 0.5, atol=1e-3)
    assert torch.allclose(row, index // RESOLUTION + 0.5, atol=1e-3)
    depth = fragments.depth.view(-1)[fragments.pixel_index].cpu()
    assert torch.allclose(depth, clip[:, 3], atol=1e-3)
    assert torch.isinf(fragments.depth[~fragments.mask]).all()


def test_dense_and_covered_barycentrics_agree(rasterizer, device):
    vertices, faces = tensors(*icosphere(2, 0.5), device)
    fragments = rasterizer.rasterize(project(vertices, [front(target=(0, 0, 0))]), faces, RESOLUTION)
    dense = fragments.barycentric
    assert dense.shape == (1, RESOLUTION, RESOLUTION, 3)
    assert torch.equal(dense.view(-1, 3)[fragments.pixel_index], fragments.pixel_barycentric)
    assert torch.equal(dense.sum(3) > 0.5, fragments.mask)


def test_the_nearer_surface_hides_the_farther_one(rasterizer, device):
    behind = SQUARE - np.array([0, 0, 0.5], np.float32)
    for order in ([SQUARE, behind], [behind, SQUARE]):
        vertices, faces = tensors(np.concatenate(order), np.concatenate([SQUARE_FACES, SQUARE_FACES + 4]), device)
        for camera in (front(), orthographic_views(np.array([0.5, 0.5, 0]), 2.0, (0.0,))[0]):
            fragments = rasterizer.rasterize(project(vertices, [camera]), faces, RESOLUTION)
            z = rasterizer.interpolate(vertices[:, 2:], fragments, faces)
            assert z.abs().max() < 1e-5


def test_both_sides_are_drawn_and_told_apart(rasterizer, device):
    vertices, faces = tensors(SQUARE, SQUARE_FACES, device)
    seen_from_behind = orbit_camera(180, 0, target_m=np.array([0.5, 0.5, 0]), frame_height_m=2.0)
    fragments = rasterizer.rasterize(project(vertices, [seen_from_behind]), faces, RESOLUTION)
    assert fragments.mask.sum() == 256
    assert not fragments.pixel_front.any()


def test_nothing_behind_the_camera_is_drawn(rasterizer, device):
    camera = front()
    behind = SQUARE + camera.eye_m + np.array([0, 0, 1.0], np.float32)
    vertices, faces = tensors(behind, SQUARE_FACES, device)
    fragments = rasterizer.rasterize(project(vertices, [camera]), faces, RESOLUTION)
    assert not fragments.mask.any()


def test_an_empty_view_goes_through_every_operation(rasterizer, device):
    vertices, faces = tensors(SQUARE + np.array([50.0, 0, 0], np.float32), SQUARE_FACES, device)
    vertices.requires_grad_()
    clip = project(vertices, [front()])
    fragments = rasterizer.rasterize(clip, faces, RESOLUTION)
    image = rasterizer.antialias(rasterizer.interpolate(vertices, fragments, faces), fragments, clip, faces)
    assert image.shape == (1, RESOLUTION, RESOLUTION, 3)
    image.sum().backward()
    assert not image.any()


def test_triangles_without_area_are_not_drawn(rasterizer, device):
    vertices, faces = tensors(SQUARE, np.array([[0, 1, 1], [0, 0, 0]]), device)
    assert not rasterizer.rasterize(project(vertices, [front()]), faces, RESOLUTION).mask.any()


def test_a_batch_is_its_views(rasterizer, device):
    vertices, faces = tensors(*icosphere(3, 0.5), device)
    cameras = [orbit_camera(angle, 10, target_m=np.zeros(3), frame_height_m=1.5) for angle in (0, 100, 200)]
    together = rasterizer.rasterize(project(vertices, cameras), faces, RESOLUTION)
    image = rasterizer.interpolate(vertices, together, faces)
    for index, camera in enumerate(cameras):
        alone = rasterizer.rasterize(project(vertices, [camera]), faces, RESOLUTION)
        assert torch.equal(alone.face_index[0], together.face_index[index])
        assert torch.allclose(rasterizer.interpolate(vertices, alone, faces)[0], image[index], atol=1e-6)


def test_attributes_may_differ_between_views(rasterizer, device):
    vertices, faces = tensors(SQUARE, SQUARE_FACES, device)
    fragments = rasterizer.rasterize(project(vertices, [front(), front()]), faces, RESOLUTION)
    attributes = torch.tensor([1.0, 2.0], device=device)[:, None, None].expand(2, 4, 1)
    image = rasterizer.interpolate(attributes, fragments, faces)
    assert torch.allclose(image[0][fragments.mask[0]], torch.ones(256, 1, device=device), atol=1e-6)
    assert torch.allclose(image[1][fragments.mask[1]], torch.full((256, 1), 2.0, device=device), atol=1e-6)


def test_images_need_not_be_square(rasterizer, device):
    vertices, faces = tensors(SQUARE, SQUARE_FACES, device)
    fragments = rasterizer.rasterize(project(vertices, [front()]), faces, (16, 32))
    assert fragments.face_index.shape == (1, 16, 32)
    assert fragments.mask.sum() == 128


def test_gradients_of_interpolation_reach_vertices_and_attributes(rasterizer, device):
    vertices, faces = tensors(*icosphere(2, 0.5), device)
    vertices.requires_grad_()
    attributes = torch.rand(len(vertices), 3, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    clip = project(vertices, [front(target=(0, 0, 0))])
    fragments = rasterizer.rasterize(clip, faces, RESOLUTION)
    rasterizer.interpolate(attributes, fragments, faces).square().sum().backward()
    for tensor in (vertices, attributes):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


def test_a_shared_edge_through_pixel_centres_leaves_no_hole():
    """The diagonal of a square on whole pixels runs exactly through pixel centres."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, top = rng.integers(1, 8, 2)
        size = int(rng.integers(6, 20))
        corners = torch.tensor(
            [[left, top + size], [left + size, top + size], [left + size, top], [left, top]], dtype=torch.float32
        )
        clip = pixels_to_clip(corners, RESOLUTION, depth=float(rng.uniform(0.5, 5)))
        mask = CpuRasterizer().rasterize(clip, torch.from_numpy(SQUARE_FACES).long(), RESOLUTION).mask[0]
        assert mask[top + 1 : top + size - 1, left + 1 : left + size - 1].all()


def test_a_closed_surface_has_no_holes():
    vertices, faces = icosphere(5, 0.5)
    camera = orbit_camera(13, 7, target_m=np.zeros(3), frame_height_m=1.1)
    clip = project(torch.from_numpy(vertices), [camera])
    fragments = CpuRasterizer().rasterize(clip, torch.from_numpy(faces).long(), 200)
    rows, columns = np.indices((200, 200)) + 0.5
    inner = torch.from_numpy(np.hypot(rows - 100, columns - 100) < 88)
    assert fragments.mask[0][inner].all()
    assert fragments.pixel_front.float().mean() > 0.999


def test_the_factory_chooses_by_device():
    assert isinstance(make_rasterizer("cpu"), CpuRasterizer)
    assert isinstance(make_rasterizer("auto", "cpu"), CpuRasterizer)
    with pytest.raises(ValueError, match="rasterizer must be one of"):
        make_rasterizer("opengl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resolution must be at least one pixel"):
        CpuRasterizer().rasterize(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), 0)


def test_nvdiffrast_without_cuda_is_explained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA device and found none"):
        make_rasterizer("nvdiffrast", "cuda")
    assert isinstance(make_rasterizer("auto", "cuda"), CpuRasterizer)


def test_a_missing_nvdiffrast_is_explained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "nvdiffrast", None)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", None)
    with pytest.raises(UserError, match="not installed"):
        NvdiffrastRasterizer("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_NVDIFFRAST, reason="needs a CUDA device and the package nvdiffrast")
def test_both_rasterizers_agree():
    vertices, faces = icosphere(4, 0.5)
    cameras = [orbit_camera(30, 10, target_m=np.zeros(3), frame_height_m=1.4)]
    images, gradients = [], []
    for kind, device in (("cpu", "cpu"), ("nvdiffrast", "cuda")):
        rasterizer = make_rasterizer(kind, device)  # type: ignore[arg-type]
        moving, face_tensor = tensors(vertices, faces, device)
        moving.requires_grad_()
        clip = project(moving, cameras)
        fragments = rasterizer.rasterize(clip, face_tensor, 128)
        image = rasterizer.interpolate(moving, fragments, face_tensor)
        (image**2).sum().backward()
        assert moving.grad is not None
        images.append(image.detach().cpu())
        gradients.append(moving.grad.cpu())
    assert (images[0] - images[1]).abs().mean() < 1e-3
    assert torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), 0) > 0.98
