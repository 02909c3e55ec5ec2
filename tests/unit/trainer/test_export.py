"""The exported files, read back by other programs: trimesh, ffmpeg and Khronos' validator."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import trimesh
from PIL import Image

from modules.errors import AlbumFailed, UserError
from modules.geometry.body import BodyTemplate, load_body
from modules.geometry.gltf import encode_glb
from modules.geometry.mesh import TexturedMesh, load_textured_mesh
from tests.gltf_validator import has_validator, validator_issues
from tests.rigged_person import textured_body
from trainer.canonical import hash_json
from trainer.export import (
    OPTIONAL_FILES,
    ExportConfig,
    export_avatar,
    left_out,
    orbit_files,
    render_turntable,
    turntable_cameras,
    write_glb,
)

SMALL = ExportConfig(
    formats=(), turntable_frames=6, turntable_resolution=48, turntable_fps=6, strip_views=4, supersampling=1
)


@pytest.fixture
def mesh() -> TexturedMesh:
    """A capsule of a person's height; its front (+z) is red and its back is blue, by texture."""
    shape = trimesh.creation.capsule(height=1.3, radius=0.2, count=(12, 12))
    vertices = np.asarray(shape.vertices, np.float32)[:, [1, 2, 0]]
    vertices[:, 1] -= vertices[:, 1].min()
    uv = np.stack([0.5 + vertices[:, 2] * 2.4, vertices[:, 1] / vertices[:, 1].max()], 1).astype(np.float32)
    texture = np.zeros((32, 32, 3), np.uint8)
    texture[:, 16:, 0] = 200
    texture[:, :16, 2] = 200
    return TexturedMesh(vertices=vertices, faces=np.asarray(shape.faces, np.int32), uv=uv.clip(0, 1), texture=texture)


def glb_parts(data: bytes) -> tuple[dict, bytes]:
    magic, version, length, json_length, json_kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, json_kind) == (b"glTF", 2, len(data), b"JSON")
    binary_length, binary_kind = struct.unpack_from("<I4s", data, 20 + json_length)
    assert binary_kind == b"BIN\0"
    assert 28 + json_length + binary_length == len(data)
    return json.loads(data[20 : 20 + json_length]), data[28 + json_length :]


def test_glb_follows_the_rules_of_khronos(mesh: TexturedMesh) -> None:
    document, binary = glb_parts(encode_glb(mesh))
    assert document["asset"] == {"version": "2.0", "generator": "PuzzleBooth"}
    assert document["buffers"] == [{"byteLength": len(binary)}]
    for view in document["bufferViews"]:
        assert view["byteOffset"] % 4 == 0
        assert view["byteOffset"] + view["byteLength"] <= len(binary)
    position = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    np.testing.assert_array_equal(np.float32(position["min"]), mesh.vertices.min(0))
    np.testing.assert_array_equal(np.float32(position["max"]), mesh.vertices.max(0))
    surface = document["materials"][0]["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0, 1)


def test_glb_is_read_back_by_trimesh_and_by_our_own_reader(mesh: TexturedMesh, tmp_path: Path) -> None:
    write_glb(mesh, tmp_path / "a.glb")
    loaded = trimesh.load(tmp_path / "a.glb", force="mesh", process=False)
    np.testing.assert_array_equal(loaded.vertices.astype(np.float32), mesh.vertices)
    np.testing.assert_array_equal(loaded.faces, mesh.faces)
    # trimesh turns v over on loading, since its textures start at the bottom.
    np.testing.assert_allclose(loaded.visual.uv * [1, -1] + [0, 1], mesh.uv, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(loaded.visual.material.baseColorTexture.convert("RGB")), mesh.texture)
    outward = mesh.vertices - np.clip(mesh.vertices, [0, 0.2, 0], [0, 1.5, 0])
    assert (np.sum(loaded.vertex_normals * outward, 1) > 0).all()
    ours = load_textured_mesh(tmp_path / "a.glb")
    for field in dataclasses.fields(TexturedMesh):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(mesh, field.name))


@pytest.mark.parametrize(("num_vertices", "component"), [(65534, 5123), (65535, 5125)])
def test_index_width_follows_the_number_of_vertices(num_vertices: int, component: int) -> None:
    rng = np.random.default_rng(0)
    mesh = TexturedMesh(
        vertices=rng.normal(size=(num_vertices, 3)).astype(np.float32),
        faces=np.array([[0, 1, num_vertices - 1]], np.int32),
        uv=np.zeros((num_vertices, 2), np.float32),
        texture=np.zeros((4, 4, 3), np.uint8),
    )
    document, binary = glb_parts(encode_glb(mesh))
    assert document["accessors"][3]["componentType"] == component
    view = document["bufferViews"][3]
    data = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    assert np.frombuffer(data, np.uint16 if component == 5123 else np.uint32).tolist() == [0, 1, num_vertices - 1]


def test_normals_are_unit_vectors_even_for_loose_vertices(mesh: TexturedMesh) -> None:
    loose = dataclasses.replace(
        mesh,
        vertices=np.concatenate([mesh.vertices, [[0, 0, 0]]]).astype(np.float32),
        uv=np.pad(mesh.uv, ((0, 1), (0, 0))),
    )
    document, binary = glb_parts(encode_glb(loose))
    view = document["bufferViews"][document["accessors"][1]["bufferView"]]
    normals = np.frombuffer(binary, np.float32, len(loose.vertices) * 3, view["byteOffset"]).reshape(-1, 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)


@pytest.mark.skipif(not has_validator(), reason="needs node and npm's gltf-validator (in NODE_PATH or .tools)")
def test_khronos_validator_finds_nothing(mesh: TexturedMesh, tmp_path: Path) -> None:
    write_glb(mesh, tmp_path / "a.glb")
    issues = validator_issues(tmp_path / "a.glb")
    assert issues["messages"] == []
    assert issues["numErrors"] == issues["numWarnings"] == 0


@pytest.fixture(scope="module")
def body() -> BodyTemplate:
    return load_body("woman")


def test_settings_add_files(body: BodyTemplate, tmp_path: Path) -> None:
    mesh = textured_body(body)
    config = dataclasses.replace(SMALL, formats=("obj", "usd"))
    paths = export_avatar(mesh, tmp_path / "all", config, body)
    usd = ["avatar.usdz"] if not left_out(config) else []
    more = ["avatar_animated.glb", "avatar.obj", "avatar.mtl", "avatar.png", *usd]
    assert sorted(paths) == sorted(["avatar.glb", "turntable.mp4", "turntable.png", *more])
    assert set(more) <= set(OPTIONAL_FILES)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(paths)
    rigged, _ = glb_parts(paths["avatar.glb"].read_bytes())
    moving, _ = glb_parts(paths["avatar_animated.glb"].read_bytes())
    assert len(rigged["skins"][0]["joints"]) == 22
    assert "animations" not in rigged
    assert [clip["name"] for clip in moving["animations"]] == ["idle", "walk"]
    ours = load_textured_mesh(paths["avatar_animated.glb"])
    np.testing.assert_array_equal(ours.vertices, mesh.vertices)

    still = export_avatar(mesh, tmp_path / "still", dataclasses.replace(SMALL, animation=False), body)
    assert sorted(still) == ["avatar.glb", "turntable.mp4", "turntable.png"]
    assert still["avatar.glb"].read_bytes() == paths["avatar.glb"].read_bytes()
    plain = export_avatar(mesh, tmp_path / "plain", dataclasses.replace(SMALL, rig=False, animation=False), body)
    assert "skins" not in glb_parts(plain["avatar.glb"].read_bytes())[0]


def test_usd_is_left_out_with_its_reason_where_the_package_is_missing(
    body: BodyTemplate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainer.export.why_no_usd", lambda: "the package usd-core is not installed")
    config = dataclasses.replace(SMALL, formats=("usd",))
    with caplog.at_level("INFO"):
        paths = export_avatar(textured_body(body), tmp_path, config, body)
    assert "avatar.usdz" not in paths
    assert left_out(config) == {"usd": "the package usd-core is not installed"}
    assert left_out(SMALL) == {}
    assert "No USD file is written: the package usd-core is not installed." in caplog.text


def test_export_writes_three_files_and_nothing_else(mesh: TexturedMesh, tmp_path: Path) -> None:
    paths = export_avatar(mesh, tmp_path / "new" / "export", SMALL)
    assert sorted(paths) == ["avatar.glb", "turntable.mp4", "turntable.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "export").iterdir()) == sorted(paths)
    reader = imageio_ffmpeg.read_frames(str(paths["turntable.mp4"]))
    about = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(48, 48, 3) for frame in reader]
    assert about["codec"] == "h264"
    assert about["pix_fmt"].startswith("yuv420p")
    assert (about["size"], about["fps"], len(frames)) == ((48, 48), 6.0, 6)
    front, back = frames[0][24, 24].astype(int), frames[3][24, 24].astype(int)
    assert front[0] > 120 > 90 > front[2]
    assert back[2] > 120 > 90 > back[0]
    strip = np.asarray(Image.open(paths["turntable.png"]))
    assert strip.shape == (48, 4 * 48, 3)
    np.testing.assert_array_equal(strip[24, 24], (200, 0, 0))
    np.testing.assert_array_equal(strip[24, 24 + 96], (0, 0, 200))
    np.testing.assert_array_equal(strip[0, 0], (255, 255, 255))


def test_glb_and_strip_have_the_same_bytes_each_time(mesh: TexturedMesh, tmp_path: Path) -> None:
    first, second = (export_avatar(mesh, tmp_path / name, SMALL) for name in ("one", "two"))
    for name in ("avatar.glb", "turntable.png"):
        assert first[name].read_bytes() == second[name].read_bytes()


def test_orbit_has_transparent_pictures_and_the_cameras_that_took_them(mesh: TexturedMesh, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, orbit_frames=4, orbit_resolution=60, supersampling=2, elevation_deg=20.0)
    paths = export_avatar(mesh, tmp_path, config)
    names = [f"orbit/{index:03d}.png" for index in range(4)]
    assert set(paths) == {"avatar.glb", "turntable.mp4", "turntable.png", "orbit/cameras.json", *names}
    assert sorted(orbit_files(tmp_path)) == [*names, "orbit/cameras.json"]
    assert all((tmp_path / name).is_file() for name in paths)
    about = json.loads(paths["orbit/cameras.json"].read_text())
    assert "OpenGL" in about["convention"]
    assert [frame["file"] for frame in about["frames"]] == [Path(name).name for name in names]
    for name, frame, red in zip(names, about["frames"], (True, None, False, None), strict=True):
        image = Image.open(tmp_path / name)
        assert (image.mode, image.size) == ("RGBA", (60, 60))
        pixels = np.asarray(image).astype(int)
        assert (pixels[[0, -1]] == 0).all()  # whole, with nothing behind it
        if red is not None:
            np.testing.assert_array_equal(pixels[30, 30], (200, 0, 0, 255) if red else (0, 0, 200, 255))
        # Half covered pixels have the full colour: red and blue may mix along the seam, nothing with the background.
        rim = pixels[(pixels[..., 3] > 0) & (pixels[..., 3] < 255)]
        assert len(rim) > 20
        np.testing.assert_allclose(rim[:, 0] + rim[:, 2], 200, atol=1)
        # The mesh's points, taken through the camera of the file by a plain pinhole model, fill the silhouette's box.
        pose, size = np.array(frame["camera_to_world"]), (frame["width"], frame["height"])
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
        assert np.linalg.det(pose[:3, :3]) > 0
        local = (mesh.vertices - pose[:3, 3]) @ pose[:3, :3]
        scale = 0.5 / np.tan(np.radians(frame["fov_y_deg"]) / 2)
        column = (0.5 + scale * local[:, 0] / -local[:, 2]) * size[0]
        row = (0.5 - scale * local[:, 1] / -local[:, 2]) * size[1]
        rows, columns = np.nonzero(pixels[..., 3])
        found = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
        np.testing.assert_allclose(found, [row.min(), row.max(), column.min(), column.max()], atol=1)


def test_exports_from_before_there_were_orbits_stay_valid() -> None:
    before = {
        **{"rig": True, "animation": True, "formats": ["obj", "usd"], "max_texture_px": 2048, "turntable_frames": 36},
        **{"turntable_resolution": 256, "turntable_fps": 18, "elevation_deg": 5.0, "strip_views": 8},
        **{"supersampling": 2, "background": 1.0},
    }
    assert hash_json(ExportConfig().key_settings()) == hash_json(before)
    assert hash_json(ExportConfig(orbit_resolution=64).key_settings()) == hash_json(before)
    some = ExportConfig(orbit_frames=2)
    assert len({hash_json(config.key_settings()) for config in (
        ExportConfig(), some, dataclasses.replace(some, orbit_frames=3), dataclasses.replace(some, orbit_resolution=64)
    )}) == 4  # fmt: skip


def test_textures_above_the_limit_are_scaled_down(mesh: TexturedMesh, tmp_path: Path) -> None:
    wide = dataclasses.replace(mesh, texture=np.full((32, 64, 3), 77, np.uint8))
    paths = export_avatar(wide, tmp_path, dataclasses.replace(SMALL, max_texture_px=16))
    texture = load_textured_mesh(paths["avatar.glb"]).texture
    assert texture.shape == (8, 16, 3)
    assert (texture == 77).all()


@pytest.mark.parametrize("scale", [(1, 1, 1), (8, 1, 1), (1, 1, 8), (0.6, 1.5, 0.6)])
def test_the_whole_body_is_in_every_frame(mesh: TexturedMesh, scale: tuple[float, float, float]) -> None:
    scaled = dataclasses.replace(mesh, vertices=(mesh.vertices * scale).astype(np.float32))
    config = dataclasses.replace(SMALL, background=0.0)
    for frame in render_turntable(scaled, 5, config):
        assert frame.any()
        rim = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
        assert not rim.any()


def test_the_turn_starts_in_front_and_goes_to_the_left_hand(mesh: TexturedMesh) -> None:
    cameras = turntable_cameras(mesh, 4)
    assert [camera.azimuth_deg for camera in cameras] == [0, 90, 180, 270]
    assert cameras[0].eye_m[2] > 1
    assert cameras[1].eye_m[0] > 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"faces": np.zeros((0, 3), np.int32)}, "0 faces"),
        ({"vertices": np.zeros((0, 3), np.float32), "uv": np.zeros((0, 2), np.float32)}, "0 vertices"),
        ({"faces": np.array([[0, 1, 99_999]], np.int32)}, "99999"),
        ({"faces": np.array([[0, 1, -1]], np.int32)}, "-1"),
    ],
)
def test_a_broken_mesh_fails_its_album(mesh: TexturedMesh, tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(AlbumFailed, match=words):
        export_avatar(dataclasses.replace(mesh, **change), tmp_path / "export", SMALL)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("field", ["vertices", "uv"])
def test_numbers_that_are_not_finite_fail_the_album(mesh: TexturedMesh, tmp_path: Path, field: str) -> None:
    values = getattr(mesh, field).copy()
    values[3, 1] = np.nan
    with pytest.raises(AlbumFailed, match="NaN"):
        export_avatar(dataclasses.replace(mesh, **{field: values}), tmp_path, SMALL)


def test_a_folder_that_cannot_be_made_is_a_users_error(mesh: TexturedMesh, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        export_avatar(mesh, tmp_path / "file" / "export", SMALL)


def test_an_encoder_that_fails_is_a_users_error_and_leaves_nothing(
    mesh: TexturedMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(broken))
    with pytest.raises(UserError, match="ffmpeg"):
        export_avatar(mesh, tmp_path / "export", SMALL)
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["avatar.glb"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_texture_px": 8}, "max_texture_px"),
        ({"turntable_frames": 0}, "turntable_frames"),
        ({"turntable_resolution": 8}, "turntable_resolution"),
        ({"turntable_resolution": 65}, "even"),
        ({"turntable_fps": 0}, "turntable_fps"),
        ({"elevation_deg": 90.0}, "elevation_deg"),
        ({"strip_views": 0}, "strip_views"),
        ({"supersampling": 0}, "supersampling"),
        ({"background": float("nan")}, "background"),
        ({"orbit_frames": -1}, "orbit_frames"),
        ({"orbit_frames": 1001}, "orbit_frames"),
        ({"orbit_resolution": 8}, "orbit_resolution"),
        ({"formats": ("glb",)}, "formats"),
        ({"formats": ("obj", "obj")}, "formats"),
        ({"rig": False}, "animation"),
    ],
)
def test_config_ranges(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=rf"{words}.*found"):
        ExportConfig(**change)
