from __future__ import annotations

import io

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from PIL import Image

from modules.errors import UserError
from modules.geometry.connectivity import face_neighbors, keep_faces, largest_component
from modules.geometry.mesh import (
    TexturedMesh,
    face_areas,
    face_normals,
    load_textured_mesh,
    sample_surface,
    save_textured_mesh,
    vertex_normals,
    vertex_normals_numpy,
)
from tests.numerics.shapes import SQUARE, SQUARE_FACES, icosphere


def textured_square() -> TexturedMesh:
    rng = np.random.default_rng(0)
    return TexturedMesh(
        vertices=SQUARE + np.float32(0.1),
        faces=SQUARE_FACES,
        uv=rng.uniform(size=(4, 2)).astype(np.float32),
        texture=rng.integers(0, 256, (7, 5, 3), dtype=np.uint8),
    )


def test_normals_of_a_sphere_point_outwards():
    vertices, faces = icosphere(3)
    normals = vertex_normals(torch.from_numpy(vertices), torch.from_numpy(faces).long())
    assert torch.allclose(normals, torch.from_numpy(vertices), atol=0.02)
    np.testing.assert_allclose(vertex_normals_numpy(vertices, faces), normals, atol=1e-5)


def test_normals_and_areas_of_a_square():
    vertices, faces = torch.from_numpy(SQUARE), torch.from_numpy(SQUARE_FACES).long()
    assert torch.equal(face_normals(vertices, faces), torch.tensor([[0.0, 0, 1], [0, 0, 1]]))
    assert torch.equal(face_areas(vertices, faces), torch.tensor([0.5, 0.5]))


def test_normals_pass_gradcheck():
    vertices = torch.from_numpy(icosphere(0)[0]).double().requires_grad_()
    faces = torch.from_numpy(icosphere(0)[1]).long()
    assert torch.autograd.gradcheck(lambda moved: vertex_normals(moved, faces), vertices)
    assert torch.autograd.gradcheck(lambda moved: face_areas(moved, faces), vertices)


def test_triangles_without_area_and_loose_vertices_have_no_normal_but_gradients():
    vertices = torch.zeros(4, 3, requires_grad=True)
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2]]))
    assert torch.equal(normals, torch.zeros(4, 3))
    normals.sum().backward()
    assert vertices.grad is not None
    assert torch.isfinite(vertices.grad).all()


def test_samples_lie_on_the_surface_and_follow_its_area():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 1, 5]], np.float32)
    faces = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    points, face = sample_surface(vertices, faces, 8000, np.random.default_rng(0))
    assert points.dtype == np.float32
    assert (face == 1).mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(points[:, 2], np.where(face == 1, 5, 0))
    np.testing.assert_allclose(points[face == 0].mean(0), [1 / 3, 1 / 3, 0], atol=0.02)


def test_a_mesh_without_area_cannot_be_sampled():
    with pytest.raises(ValueError, match="area above zero"):
        sample_surface(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]), 5, np.random.default_rng(0))


def test_neighbors_are_mutual_and_share_their_edge():
    _, faces = icosphere(2)
    neighbors = face_neighbors(faces)
    assert (neighbors >= 0).all()
    for face in range(0, len(faces), 17):
        for side in range(3):
            edge = {faces[face, side], faces[face, (side + 1) % 3]}
            assert edge <= set(faces[neighbors[face, side]])
            assert face in neighbors[neighbors[face, side]]


def test_borders_have_no_neighbor_and_winding_does_not_matter():
    assert face_neighbors(SQUARE_FACES).tolist() == [[-1, -1, 1], [0, -1, -1]]
    assert face_neighbors(np.array([[0, 1, 2], [2, 3, 0][::-1]])).max() == 1
    assert face_neighbors(np.zeros((0, 3), np.int32)).shape == (0, 3)


def test_the_largest_part_is_kept():
    large, small = icosphere(2), icosphere(1, center=(5, 0, 0))
    vertices = np.concatenate([small[0], large[0]])
    faces = np.concatenate([small[1], large[1] + len(small[0])])
    keep = largest_component(faces, len(vertices))
    kept_vertices, kept_faces, index = keep_faces(vertices, faces, keep)
    np.testing.assert_array_equal(kept_vertices, large[0])
    np.testing.assert_array_equal(kept_faces, large[1])
    np.testing.assert_array_equal(index, len(small[0]) + np.arange(len(large[0])))


def test_parts_agree_with_a_reference_on_random_faces():
    rng = np.random.default_rng(0)
    for _ in range(20):
        faces = rng.integers(0, 80, (30, 3))
        found = largest_component(faces, 80)
        edges = np.concatenate([faces[:, :2], faces[:, 1:]])
        labels = trimesh.graph.connected_component_labels(edges, 80)[faces[:, 0]]
        assert found.sum() == np.bincount(labels).max()
        assert len(np.unique(labels[found])) == 1


def test_no_faces_have_no_largest_part():
    assert largest_component(np.zeros((0, 3), np.int32), 4).shape == (0,)


def test_a_glb_comes_back_exactly(tmp_path):
    mesh = textured_square()
    save_textured_mesh(tmp_path / "avatar.glb", mesh)
    loaded = load_textured_mesh(tmp_path / "avatar.glb")
    for name in ("vertices", "faces", "uv", "texture"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(mesh, name))
        assert getattr(loaded, name).dtype == getattr(mesh, name).dtype
    assert [path.name for path in tmp_path.iterdir()] == ["avatar.glb"]


def test_other_programs_read_the_glb(tmp_path):
    mesh = textured_square()
    save_textured_mesh(tmp_path / "avatar.glb", mesh)
    loaded = trimesh.load(tmp_path / "avatar.glb", process=False, force="mesh")
    np.testing.assert_array_equal(loaded.vertices.astype(np.float32), mesh.vertices)
    np.testing.assert_allclose(loaded.visual.uv[:, 1], 1 - mesh.uv[:, 1], atol=1e-6)  # trimesh counts v from below
    np.testing.assert_array_equal(np.asarray(loaded.visual.material.baseColorTexture.convert("RGB")), mesh.texture)


def test_glbs_of_other_programs_are_read(tmp_path):
    vertices, faces = icosphere(1)
    uv = np.random.default_rng(0).uniform(size=(len(vertices), 2))
    image = Image.fromarray(textured_square().texture)
    visual = trimesh.visual.TextureVisuals(uv=uv, image=image)
    trimesh.Trimesh(vertices, faces, visual=visual, process=False).export(tmp_path / "other.glb")
    loaded = load_textured_mesh(tmp_path / "other.glb")
    np.testing.assert_array_equal(loaded.vertices, vertices)
    np.testing.assert_array_equal(loaded.faces, faces)
    np.testing.assert_allclose(loaded.uv, np.stack([uv[:, 0], 1 - uv[:, 1]], 1), atol=1e-6)
    np.testing.assert_array_equal(loaded.texture, np.asarray(image))


def _without_texture(gltf: pygltflib.GLTF2) -> None:
    gltf.images = []


def _without_uv(gltf: pygltflib.GLTF2) -> None:
    gltf.meshes[0].primitives[0].attributes.TEXCOORD_0 = None


def _without_indices(gltf: pygltflib.GLTF2) -> None:
    gltf.meshes[0].primitives[0].indices = None


def _two_meshes(gltf: pygltflib.GLTF2) -> None:
    gltf.meshes.append(gltf.meshes[0])


def _too_few_vertices(gltf: pygltflib.GLTF2) -> None:
    for accessor in gltf.accessors[:3]:
        accessor.count = 3


def _wrong_image(gltf: pygltflib.GLTF2) -> None:
    gltf.images[0].bufferView = 0


def _too_many_vertices(gltf: pygltflib.GLTF2) -> None:
    gltf.accessors[0].count = 10**6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_texture, "no embedded texture"),
        (_without_uv, "without texture coordinates"),
        (_without_indices, "without indices"),
        (_two_meshes, "found 2 meshes"),
        (_too_few_vertices, "a face of vertex 3"),
        (_wrong_image, "broken data"),
        (_too_many_vertices, "broken data"),
    ],
)
def test_a_glb_that_cannot_be_used_is_explained(tmp_path, damage, message):
    path = tmp_path / "avatar.glb"
    save_textured_mesh(path, textured_square())
    gltf = pygltflib.GLTF2().load(str(path))
    damage(gltf)
    path.write_bytes(b"".join(gltf.save_to_bytes()))
    with pytest.raises(UserError, match=message) as error:
        load_textured_mesh(path)
    assert "avatar.glb" in str(error.value)


def test_a_missing_file_and_a_file_of_another_kind_are_explained(tmp_path):
    with pytest.raises(UserError, match="found no file"):
        load_textured_mesh(tmp_path / "nothing.glb")
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, format="PNG")
    (tmp_path / "picture.glb").write_bytes(picture.getvalue())
    with pytest.raises(UserError, match="no readable GLB"):
        load_textured_mesh(tmp_path / "picture.glb")
    (tmp_path / "text.glb").write_text('{"asset": {"version": "2.0"}, "meshes": [{"primitives": []}]}')
    with pytest.raises(UserError, match=r"no binary part|no readable GLB"):
        load_textured_mesh(tmp_path / "text.glb")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vertices", np.zeros((4, 2), np.float32)),
        ("faces", np.zeros((2, 4), np.int32)),
        ("uv", np.zeros((3, 2), np.float32)),
        ("texture", np.zeros((4, 4, 3), np.float32)),
    ],
)
def test_a_textured_mesh_checks_its_shapes(name, value):
    parts = {**vars(textured_square()), name: value}
    with pytest.raises(ValueError, match=f"{name} must"):
        TexturedMesh(**parts)
