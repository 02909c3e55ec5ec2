from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from modules.errors import UserError
from modules.geometry.mesh import save_textured_mesh
from tests.unit.trainer.report_content import sphere
from trainer.ground_truth import GroundTruth, load_ground_truth


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "ground_truth"
    folder.mkdir()
    save_textured_mesh(folder / "avatar.glb", sphere(rings=6))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3).save(folder / "labels.png")
    (folder / "labels.json").write_text(json.dumps({"assets": ["skin", "face", "haircut"]}), encoding="utf-8")
    return tmp_path


def test_album_without_the_folder_has_no_truth(tmp_path):
    assert load_ground_truth(tmp_path) is None


def test_truth_comes_back_as_written(album):
    truth = load_ground_truth(album)
    mesh = sphere(rings=6)
    assert truth.asset_names == ("skin", "face", "haircut")
    assert truth.labels.max() == 2
    np.testing.assert_allclose(truth.mesh.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_allclose(truth.mesh.uv, mesh.uv, atol=1e-6)
    np.testing.assert_array_equal(truth.mesh.faces, mesh.faces)
    np.testing.assert_array_equal(truth.mesh.texture, mesh.texture)


def test_scan_without_labels_is_a_truth_without_assets(album):
    labelled = load_ground_truth(album)
    np.testing.assert_array_equal(labelled.clothed, labelled.labels > 0)
    for name in ("labels.png", "labels.json"):
        (album / "ground_truth" / name).unlink()
    truth = load_ground_truth(album)
    assert truth.asset_names == ("skin",)
    assert truth.labels.shape == truth.mesh.texture.shape[:2]
    assert not truth.labels.any()
    assert truth.clothed.all()


@pytest.mark.parametrize("name", ["avatar.glb", "labels.png", "labels.json"])
def test_missing_file_is_named(album, name):
    (album / "ground_truth" / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: the file is missing"):
        load_ground_truth(album)


@pytest.mark.parametrize("name", ["avatar.glb", "labels.png", "labels.json"])
def test_unreadable_file_is_named(album, name):
    (album / "ground_truth" / name).write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(UserError, match=name):
        load_ground_truth(album)


@pytest.mark.parametrize("content", ["[]", "{}", '{"assets": []}', '{"assets": [1]}', '{"assets": "skin"}'])
def test_names_must_be_a_list(album, content):
    (album / "ground_truth" / "labels.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match='"assets" must be a list of names'):
        load_ground_truth(album)


def test_colour_label_image_is_refused(album):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(album / "ground_truth" / "labels.png")
    with pytest.raises(UserError, match="expected one 8-bit channel"):
        load_ground_truth(album)


def test_label_without_a_name_is_refused(album):
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(album / "ground_truth" / "labels.png")
    with pytest.raises(UserError, match=r"found the asset index 7, but labels\.json names only 3"):
        load_ground_truth(album)


def test_contract_is_checked():
    mesh = sphere(rings=4)
    with pytest.raises(ValueError, match=r"labels must be \(H, W\) uint8"):
        GroundTruth(mesh=mesh, labels=np.zeros((4, 4)), asset_names=("skin",))
    with pytest.raises(ValueError, match="index 1, but asset_names has only 1"):
        GroundTruth(mesh=mesh, labels=np.ones((4, 4), np.uint8), asset_names=("skin",))
