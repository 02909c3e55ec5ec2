"""PuzzleIOI's layout, on a look-alike made of a synthetic person."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.album import AlbumConfig
from datamodules.album_reader import read_album
from datamodules.readers.album_folder import import_album
from datamodules.readers.config import ImportConfig, PuzzleIOIConfig
from datamodules.readers.puzzle_ioi import VIEWS, list_albums
from datamodules.readers.source import SourceFolder
from datamodules.studio.vocabulary import LABEL_INDEX
from modules.errors import UserError
from tests.dataset_lookalikes import IOI_VIEWS, photograph, truth, write_puzzle_ioi
from trainer.evaluation import evaluate_avatar
from trainer.evaluation_config import EvaluationConfig
from trainer.ground_truth import GroundTruth, load_ground_truth


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_puzzle_ioi(tmp_path_factory.mktemp("ioi"))


def imported(tree: Path, out: Path, **settings):
    config = ImportConfig(**settings)
    files = SourceFolder(tree, max_file_bytes=config.max_file_bytes, allow_outside=config.allow_outside)
    (album,) = list_albums(files, config).albums
    return import_album(album, out, files, config, reader="puzzle_ioi")


@pytest.fixture(scope="module")
def album(tree, tmp_path_factory):
    return imported(tree, tmp_path_factory.mktemp("albums"), texture_px=256)


def test_it_is_an_album_like_any_other(album):
    assert album.folder.name == "03632_outfit13"
    assert album.refused == ()
    found = read_album(album.folder, AlbumConfig(view_vocabulary="four"))
    assert found.gender == "woman"
    assert found.asset_names == ("face", "haircut", "shirt", "trousers")
    assert {asset.name: asset.words for asset in found.assets}["trousers"] == "loose"
    assert len(found.photos) == len(IOI_VIEWS) == album.num_photos
    assert found.set_aside == ()
    assert found.notes == ()


def test_views_come_from_the_table_of_cameras(album):
    found = read_album(album.folder, AlbumConfig(view_vocabulary="four"))
    views = {photo.stem.split("-")[1]: photo.view for photo in found.photos}
    expected = {"05": "front", "06": "front", "07": "front", "01": "side", "09": "side", "13": "side", "17": "back"}
    assert views == expected
    assert len(VIEWS) == 22


def test_masks_and_colours_are_those_of_the_photo(album):
    found = read_album(album.folder)
    photo = next(photo for photo in found.photos if photo.stem == "000-06-C")
    rgb, label, _ = photograph(IOI_VIEWS["06"])
    for name in ("face", "haircut", "shirt", "trousers"):
        np.testing.assert_array_equal(photo.masks[name], label == LABEL_INDEX[name])
    assert np.abs(photo.image.astype(int) - rgb).mean() < 4


def test_no_metadata_comes_along(album, tree):
    assert any(b"SECRETMAKER" in path.read_bytes() for path in tree.rglob("*.jpg"))
    for path in album.folder.rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes()
            if path.suffix in (".jpg", ".png"):
                with Image.open(path) as image:
                    assert not image.getexif()
                    assert not {"exif", "comment", "xmp"} & set(image.info)


def test_scan_stands_in_the_avatars_frame_and_measures_as_itself(album):
    found = load_ground_truth(album.folder)
    mesh, labels = truth()
    # Metres, feet on the ground, as tall as the person of 1.70 m that was scaled by 1.1 and shifted.
    assert found.mesh.vertices[:, 1].min() == pytest.approx(0, abs=1e-6)
    assert np.ptp(found.mesh.vertices[:, 1]) == pytest.approx(np.ptp(mesh.vertices[:, 1]), rel=1e-3)
    assert not found.labels.any()
    config = EvaluationConfig(num_samples=2000, resolution=96, protocol="corrected")
    studio = GroundTruth(mesh=mesh, labels=labels, asset_names=tuple(LABEL_INDEX))
    row = evaluate_avatar(found.mesh, studio, config)["corrected"]
    assert row["chamfer_cm"] < 0.05
    assert row["silhouette_iou"] > 0.98
    assert row["psnr_fg"] > 25
    itself = evaluate_avatar(found.mesh, found, config)["corrected"]
    assert itself["chamfer_cm"] < 1e-3
    assert itself["colour_error"] is None
    info = json.loads((album.folder / "ground_truth" / "scan.json").read_text())
    assert info["scale"] == pytest.approx(1 / 1.1, rel=1e-3)
    assert info["height_from"] == "body model"


def test_calibration_tells_left_from_right(tmp_path):
    tree = write_puzzle_ioi(tmp_path / "tree", calibrated=True)
    done = imported(tree, tmp_path / "out", ground_truth=False)
    views = {photo.stem.split("-")[1]: photo.view for photo in read_album(done.folder).photos}
    assert views["06"] == "front"
    assert (views["01"], views["09"]) == ("front left", "front right")
    assert views["13"] == "back left"
    assert views["17"] == "back"
    assert not (done.folder / "ground_truth").exists()


def test_scan_is_turned_to_the_front_by_hand(tree, tmp_path):
    turned = imported(tree, tmp_path / "out", puzzle_ioi=PuzzleIOIConfig(turn_deg=90.0), texture_px=256)
    mesh, _ = truth()
    # Counter-clockwise from above, what was ahead (+z) comes to lie on the left (+x).
    span = np.ptp(load_ground_truth(turned.folder).mesh.vertices, axis=0)
    np.testing.assert_allclose(span, np.ptp(mesh.vertices, axis=0)[[2, 1, 0]], rtol=1e-3)


def test_what_is_broken_is_said_and_the_rest_goes_on(tmp_path):
    tree = write_puzzle_ioi(tmp_path / "tree")
    capture = tree / "puzzle_capture/03632/outfit13"
    photo = capture / "image/000_06_C.jpg"
    photo.write_bytes(photo.read_bytes()[:400])
    (capture / "image/strange.jpg").write_bytes((capture / "image/000_05_C.jpg").read_bytes())
    (capture / "mask/000_05_C_shirt.png").write_bytes(b"no picture")
    (capture / "gpt4v_response.json").write_text("{")
    (capture / "smplx_male.npy").write_bytes(b"")
    scan = tree / "fitting/03632/outfit13/scan.obj"
    scan.write_text(scan.read_text()[:5000] + "\nv 1 2")
    done = imported(tree, tmp_path / "out")
    reasons = {name.rsplit("/")[-1]: reason for name, reason in done.refused}
    assert "Truncated" in reasons["000_06_C.jpg"]
    assert "no camera in its name" in reasons["strange.jpg"]
    assert "is not a JPEG" in reasons["000_05_C_shirt.png"]
    assert "not valid JSON" in reasons["gpt4v_response.json"]
    assert "scan.obj" in reasons["the ground truth"]
    assert not done.has_truth
    found = read_album(done.folder, AlbumConfig(view_vocabulary="four"))
    assert found.gender == "man"
    assert len(json.loads((done.folder / "import.json").read_text())["not_taken"]) == len(done.refused)


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="give the folder that PuzzleIOI was unpacked to"):
        list_albums(SourceFolder(tmp_path, max_file_bytes=1000), ImportConfig())


def test_links_out_of_the_source_are_not_followed(tree, tmp_path):
    copy = write_puzzle_ioi(tmp_path / "tree")
    outside = tmp_path / "private.jpg"
    outside.write_bytes((copy / "puzzle_capture/03632/outfit13/image/000_06_C.jpg").read_bytes())
    (copy / "puzzle_capture/03632/outfit13/image/001_06_C.jpg").symlink_to(outside)
    done = imported(copy, tmp_path / "out", ground_truth=False)
    assert [reason for name, reason in done.refused] == [
        "leads out of the source; copy it in, or say allow_outside=true"
    ]
    allowed = imported(copy, tmp_path / "other", ground_truth=False, allow_outside=True)
    assert allowed.num_photos == done.num_photos + 1


def test_one_subject_that_cannot_be_listed_does_not_stop_the_others(tmp_path):
    tree = write_puzzle_ioi(tmp_path / "tree")
    capture = tree / "puzzle_capture"
    (capture / "03632_outfit13" / "x" / "image").mkdir(parents=True)
    (capture / "linked").symlink_to(tmp_path)
    (capture / "03632" / "outfit13_x" / "image").mkdir(parents=True)
    listing = list_albums(SourceFolder(tree, max_file_bytes=1 << 20), ImportConfig())
    assert [album.name for album in listing.albums] == ["03632_outfit13", "03632_outfit13_x"]
    reasons = {name.rsplit("/")[-1]: reason for name, reason in listing.refused}
    assert "leads out of the source" in reasons["linked"]
    assert "same album name" in reasons["x"]
