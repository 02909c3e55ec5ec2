"""4D-DRESS's layout, on a look-alike made of a synthetic person."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.album_reader import read_album
from datamodules.readers.album_folder import import_album
from datamodules.readers.config import FourDDressConfig, ImportConfig
from datamodules.readers.four_d_dress import DEFAULT_PHOTOS, LABEL_COLORS, list_albums
from datamodules.readers.source import SourceFolder
from datamodules.studio.vocabulary import LABEL_INDEX, NO_PERSON
from modules.errors import UserError
from tests.dataset_lookalikes import DRESS_VIEWS, photograph, truth, write_four_d_dress, write_pickle
from trainer.evaluation import evaluate_avatar
from trainer.evaluation_config import EvaluationConfig
from trainer.ground_truth import load_ground_truth

MEASURE = EvaluationConfig(num_samples=2000, resolution=96, protocol="corrected")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_four_d_dress(tmp_path_factory.mktemp("dress"))


def imported(tree: Path, out: Path, **settings):
    config = ImportConfig(**settings)
    files = SourceFolder(tree, max_file_bytes=config.max_file_bytes)
    (album,) = list_albums(files, config).albums
    return import_album(album, out, files, config, reader="4d_dress", default_photos=DEFAULT_PHOTOS)


@pytest.fixture(scope="module")
def album(tree, tmp_path_factory):
    return imported(tree, tmp_path_factory.mktemp("albums"))


@pytest.fixture
def own(tmp_path):
    """A tree that a test may spoil."""
    return write_four_d_dress(tmp_path / "tree", frames=("00006",))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_it_is_an_album_like_any_other(album):
    assert album.refused == ()
    found = read_album(album.folder)
    assert found.name == "00122_Inner"
    assert found.gender == "woman"
    assert found.asset_names == ("face", "haircut", "shirt", "trousers", "shoes")
    assert len(found.photos) == 4
    assert found.set_aside == found.notes == ()


def test_views_come_from_cameras_and_from_where_the_body_faces(album):
    views = {photo.stem.split("-")[1]: photo.view for photo in read_album(album.folder).photos}
    # The cameras look at a person who is turned by 40 degrees and stands beside the origin.
    assert views == {"0004": "front", "0052": "back left"}


def test_masks_drawn_from_the_labelled_scan_fit_the_photo(album):
    for photo in read_album(album.folder).photos:
        _, label, _ = photograph(DRESS_VIEWS[photo.stem.split("-")[1]])
        np.testing.assert_array_equal(photo.person, label != NO_PERSON)
        # Labels of vertices are coarser than the photo, which shows most where an asset is small.
        for name, least in (("haircut", 0.75), ("shirt", 0.85), ("trousers", 0.85)):
            assert iou(photo.masks[name], label == LABEL_INDEX[name]) > least, (photo.stem, name)


def test_face_is_the_skin_of_the_head_only(album, tree, tmp_path):
    photo = next(photo for photo in read_album(album.folder).photos if "-0004-" in photo.stem)
    _, label, _ = photograph(DRESS_VIEWS["0004"])
    shown = label == LABEL_INDEX["face"]
    face = photo.masks["face"]
    assert (face & shown).sum() / shown.sum() > 0.9
    rows = np.flatnonzero(face.any(1))
    assert rows[-1] < np.flatnonzero((label == LABEL_INDEX["shirt"]).any(1))[0] + 12
    without = imported(tree, tmp_path, four_d_dress=FourDDressConfig(face=False), ground_truth=False)
    assert "face" not in read_album(without.folder).asset_names


def test_scan_and_its_labels_measure_as_what_they_were_made_of(album):
    found = load_ground_truth(album.folder)
    mesh, labels = truth()
    assert found.asset_names == ("skin", "haircut", "shoes", "shirt", "trousers", "jacket", "face")
    assert np.ptp(found.mesh.vertices[:, 1]) == pytest.approx(np.ptp(mesh.vertices[:, 1]), rel=1e-3)
    row = evaluate_avatar(mesh, found, MEASURE)["corrected"]
    assert row["chamfer_cm"] < 0.05
    assert row["psnr_fg"] > 25
    assert set(row["colour_error_assets"]) == {"haircut", "shoes", "shirt", "trousers", "face"}
    itself = evaluate_avatar(found.mesh, found, MEASURE)["corrected"]
    assert itself["chamfer_cm"] < 1e-3
    assert itself["colour_error"] == pytest.approx(0, abs=1e-6)
    for name in ("shirt", "trousers"):
        ours, theirs = found.labels == found.asset_names.index(name), labels == LABEL_INDEX[name]
        assert iou(ours, theirs) > 0.8
    info = json.loads((album.folder / "ground_truth/scan.json").read_text())
    assert info["pose"].startswith("0.0 degrees from an A-pose")
    assert info["scale"] == pytest.approx(1 / 1.1, rel=1e-3)


def test_truth_is_the_take_nearest_to_an_a_pose_unless_said(tmp_path):
    tree = write_four_d_dress(tmp_path / "tree", takes={"Take1": 60.0, "Take2": 3.0, "Take5": 30.0}, frames=("00006",))
    done = imported(tree, tmp_path / "a", photos_per_album=1)
    info = json.loads((done.folder / "ground_truth/scan.json").read_text())
    assert "Take2" in info["source"]
    said = imported(tree, tmp_path / "b", photos_per_album=1, four_d_dress=FourDDressConfig(truth_frame="Take5/00006"))
    assert "Take5" in json.loads((said.folder / "ground_truth/scan.json").read_text())["source"]
    wrong = imported(tree, tmp_path / "c", photos_per_album=1, four_d_dress=FourDDressConfig(truth_frame="Take9/1"))
    assert not wrong.has_truth
    assert any("no scan Take9/1" in reason for _, reason in wrong.refused)


def test_draw_depends_on_the_seed_and_nests(tmp_path):
    tree = write_four_d_dress(tmp_path / "tree", frames=[f"{index:05d}" for index in range(6)])

    def stems(out: str, number: int, seed: int) -> set[str]:
        done = imported(tree, tmp_path / out, photos_per_album=number, seed=seed, ground_truth=False)
        return {path.stem for path in (done.folder / "image").iterdir()}

    assert len(stems("a", 5, 0)) == 5
    assert stems("b", 3, 0) < stems("a", 5, 0)
    assert stems("c", 5, 1) != stems("a", 5, 0)


def test_known_dresses_are_called_so(tmp_path):
    tree = write_four_d_dress(tmp_path / "tree", outfits=[("00148", "Inner")], frames=("00006",))
    done = imported(tree, tmp_path / "out", ground_truth=False)
    assert "dress" in read_album(done.folder).asset_names


def test_label_pictures_stand_in_for_missing_labels(own, tmp_path):
    take = own / "00122/Inner/Take2"
    _, label, _ = photograph(DRESS_VIEWS["0004"])
    picture = np.full((*label.shape, 3), 255, np.uint8)
    picture[label == LABEL_INDEX["shirt"]] = LABEL_COLORS[3]
    capture = take / "Capture/0004"
    (capture / "labels").mkdir()
    Image.fromarray(picture).save(capture / "labels/label-f00006.png")
    for path in (take / "Semantic/labels").iterdir():
        path.unlink()
    done = imported(own, tmp_path / "out")
    found = read_album(done.folder)
    (photo,) = (photo for photo in found.photos if photo.masks)
    np.testing.assert_array_equal(photo.masks["shirt"], label == LABEL_INDEX["shirt"])
    # The scan is still there, but nobody labelled it.
    assert load_ground_truth(done.folder).asset_names == ("skin",)


def test_without_a_fitted_body_views_stay_unknown(own, tmp_path):
    for path in (own / "00122/Inner/Take2/SMPLX").iterdir():
        path.unlink()
    done = imported(own, tmp_path / "out")
    assert {photo.view for photo in read_album(done.folder).photos} == {None}
    # The scan is turned by the take's own rotation instead, and scaled by its own height.
    mesh, _ = truth()
    found = load_ground_truth(done.folder).mesh
    span = np.ptp(mesh.vertices, axis=0)
    np.testing.assert_allclose(np.ptp(found.vertices, axis=0), span * 1.7 / span[1], rtol=2e-3)


class _Evil:
    def __reduce__(self):
        return os.system, ("touch HACKED",)


@pytest.mark.parametrize(
    "where",
    ["basic_info.pkl", "Capture/cameras.pkl", "Meshes_pkl/mesh-f00006.pkl", "SMPLX/mesh-f00006_smplx.pkl"],
)
def test_harmful_pickles_are_named_and_never_run(own, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    write_pickle(own / "00122/Inner/Take2" / where, {"vertices": _Evil(), "gender": "male"})
    done = imported(own, tmp_path / "out")
    assert not (tmp_path / "HACKED").exists()
    said = " ".join(f"{name} {reason}" for name, reason in done.refused)
    assert where in said
    assert "asks for posix.system" in said
    assert done.num_photos == 2


def test_lying_meshes_are_refused_and_photos_stay(own, tmp_path):
    meshes = own / "00122/Inner/Take2/Meshes_pkl/mesh-f00006.pkl"
    for index, content in enumerate(
        (
            {"vertices": np.zeros((3, 3)), "faces": np.array([[0, 1, 9]]), "uvs": np.zeros((3, 2))},
            {"vertices": np.full((3, 3), np.nan), "faces": np.array([[0, 1, 2]]), "uvs": np.zeros((3, 2))},
            {"vertices": np.zeros((3, 2)), "faces": np.array([[0, 1, 2]]), "uvs": np.zeros((3, 2))},
            {"faces": "none"},
            [1, 2, 3],
        )
    ):
        write_pickle(meshes, content)
        done = imported(own, tmp_path / f"out{index}")
        assert done.num_photos == 2
        assert not done.has_truth
        assert any(name.startswith("the masks of") for name, _ in done.refused), content


def test_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"give the folder that 4D-DRESS was unpacked to"):
        list_albums(SourceFolder(tmp_path, max_file_bytes=1000), ImportConfig())
