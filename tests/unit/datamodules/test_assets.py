"""Cleaning of masks, squares, and the prepared album on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.album import AlbumConfig
from datamodules.album_reader import read_album
from datamodules.assets import PreparedAlbum, clean_masks, load_assets, prepare_assets, square
from datamodules.atomic import write_bytes
from datamodules.contact_sheet import asset_colours, contact_sheet, overlay
from modules.errors import UserError

CONFIG = AlbumConfig(working_resolution=64)


def box(top: int, bottom: int, left: int = 0, right: int = 100) -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_glasses_become_part_of_the_face() -> None:
    masks, dropped = clean_masks({"face": box(0, 30), "glasses": box(28, 34)}, CONFIG)
    assert list(masks) == ["face"]
    np.testing.assert_array_equal(masks["face"], box(0, 34))
    assert dropped == []


def test_glasses_without_a_face_are_dropped() -> None:
    masks, dropped = clean_masks({"shirt": box(40, 80), "glasses": box(28, 34)}, CONFIG)
    assert list(masks) == ["shirt"]
    assert dropped[0][0] == "glasses"


@pytest.mark.parametrize(("pixels", "kept"), [(9, False), (10, True)])
def test_masks_below_a_thousandth_of_the_photo_are_dropped(pixels: int, kept: bool) -> None:
    masks, dropped = clean_masks({"shirt": box(40, 80), "cap": box(0, 1, 0, pixels)}, CONFIG)
    assert ("cap" in masks) is kept
    assert (dropped == []) is kept


def test_a_mask_of_the_whole_person_is_dropped() -> None:
    masks, dropped = clean_masks({"face": box(0, 20), "shirt": box(30, 60), "jacket": box(0, 100)}, CONFIG)
    assert list(masks) == ["face", "shirt"]
    assert "100% of the person" in dropped[0][1]


def test_a_large_garment_beside_small_things_is_kept() -> None:
    masks, dropped = clean_masks({"haircut": box(0, 5), "dress": box(5, 100)}, CONFIG)
    assert list(masks) == ["haircut", "dress"]
    assert dropped == []


def test_the_only_asset_may_cover_the_person() -> None:
    assert list(clean_masks({"dress": box(0, 100)}, CONFIG)[0]) == ["dress"]


def test_overlaps_go_to_the_smaller_mask() -> None:
    masks, _ = clean_masks({"shirt": box(20, 70), "jacket": box(60, 100)}, CONFIG)
    np.testing.assert_array_equal(masks["jacket"], box(60, 100))
    np.testing.assert_array_equal(masks["shirt"], box(20, 60))


def test_of_two_equal_masks_the_first_stays() -> None:
    masks, dropped = clean_masks({"face": box(0, 9), "shirt": box(20, 70), "jumper": box(20, 70)}, CONFIG)
    assert list(masks) == ["face", "shirt"]
    assert dropped[0][0] == "jumper"


def test_nothing_left() -> None:
    assert clean_masks({"glasses": box(0, 4)}, CONFIG)[0] == {}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 100)] * 4), min_size=1, max_size=5))
def test_cleaned_masks_are_disjoint_large_enough_and_invent_nothing(boxes: list[tuple[int, int, int, int]]) -> None:
    names = ("face", "haircut", "shirt", "trousers", "shoes")
    given_masks = {name: box(*edges) for name, edges in zip(names, boxes, strict=False)}
    masks, dropped = clean_masks(given_masks, CONFIG)
    assert masks or dropped
    assert np.sum(list(masks.values()), axis=0).max(initial=0) <= 1
    for name, mask in masks.items():
        assert mask.mean() >= CONFIG.min_mask_fraction
        assert not (mask & ~given_masks[name]).any()
    assert set(masks) | {name for name, _ in dropped} == set(given_masks)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([16, 33, 64]))
def test_squares_of_any_photo(height: int, width: int, side: int) -> None:
    image = np.full((height, width, 3), (10, 20, 60), np.uint8)
    canvas, valid, masks = square(image, [np.ones((height, width), bool)], side)
    assert canvas.shape == (side, side, 3)
    np.testing.assert_array_equal(masks[0], valid)
    rows, columns = np.asarray(valid.any(1)), np.asarray(valid.any(0))
    assert max(rows.sum(), columns.sum()) == side
    assert valid.sum() == rows.sum() * columns.sum()
    np.testing.assert_array_equal(np.unique(canvas[valid], axis=0), [(10, 20, 60)])
    assert (canvas[~valid] == 30).all()
    assert abs(rows.argmax() - rows[::-1].argmax()) <= 1
    assert abs(columns.argmax() - columns[::-1].argmax()) <= 1


@pytest.fixture
def album_folder(write_album) -> Path:
    return write_album(
        ("a", "b"),
        ("face", "shirt"),
        {"gender": "woman", "assets": {"face": "oval"}, "photos": {"a": {"view": "back", "background": "gray"}}},
    )


def equal(first: PreparedAlbum, second: PreparedAlbum) -> bool:
    return all(
        np.array_equal(getattr(first, field.name), getattr(second, field.name))
        if isinstance(getattr(first, field.name), np.ndarray)
        else getattr(first, field.name) == getattr(second, field.name)
        for field in dataclasses.fields(PreparedAlbum)
    )


def test_prepared_album(album_folder: Path, tmp_path: Path) -> None:
    prepared = prepare_assets(read_album(album_folder, CONFIG), tmp_path / "out" / "assets")
    assert prepared.resolution == 64
    assert prepared.images.shape == (2, 64, 64, 3)
    assert prepared.asset_names == ("face", "shirt")
    assert prepared.asset_words == ("oval", "")
    assert (prepared.gender, prepared.stems) == ("woman", ("a", "b"))
    assert (prepared.views, prepared.backgrounds) == (("back", None), ("gray", None))
    np.testing.assert_array_equal(prepared.present, [[True, True], [True, True]])
    np.testing.assert_array_equal(
        prepared.valid[0], np.broadcast_to((np.arange(64) >= 8) & (np.arange(64) < 56), (64, 64))
    )
    np.testing.assert_array_equal(prepared.images[0, :, 8:56], np.asarray(Image.open(album_folder / "image" / "a.png")))
    assert prepared.masks[0, 0, 4:20, 18:46].all()
    assert prepared.masks[0, 0].sum() == 16 * 28
    assert sorted(path.name for path in (tmp_path / "out" / "assets").iterdir()) == [
        "assets.json",
        "assets.npz",
        "assets.png",
    ]
    assert equal(load_assets(tmp_path / "out" / "assets"), prepared)


def test_mask_of_the_whole_person_is_no_asset(album_folder: Path, tmp_path: Path) -> None:
    whole = np.zeros((64, 48), np.uint8)
    whole[2:60, 14:34] = 255  # narrower than the assets' boxes, and longer
    Image.fromarray(whole).save(album_folder / "mask" / "a_person.png")
    album = read_album(album_folder, CONFIG)
    assert album.asset_names == ("face", "shirt")
    assert album.photos[0].person is not None
    np.testing.assert_array_equal(album.photos[0].person, whole > 0)
    assert album.photos[1].person is None
    prepared = prepare_assets(album, tmp_path / "out")
    union = prepared.masks.any(1)
    # With the mask: bare skin counts, and what an asset's mask says of the person is never lost.
    np.testing.assert_array_equal(prepared.person[0][:, 8:56], (whole > 0) | union[0][:, 8:56])
    assert prepared.person[0].sum() > union[0].sum()
    np.testing.assert_array_equal(prepared.person[1], union[1])
    assert not (prepared.person & ~prepared.valid).any()
    assert equal(load_assets(tmp_path / "out"), prepared)


def test_mask_of_the_person_alone_is_not_enough(album_folder: Path) -> None:
    for name in ("face", "shirt"):
        (album_folder / "mask" / f"b_{name}.png").unlink()
    Image.new("L", (48, 64), 255).save(album_folder / "mask" / "b_person.png")
    album = read_album(album_folder, CONFIG)
    assert [photo.stem for photo in album.photos] == ["a"]
    assert dict(album.set_aside)["b.png"] == "none of its masks can be used"


def test_person_of_a_wrong_shape_is_refused(album_folder: Path, tmp_path: Path) -> None:
    prepared = prepare_assets(read_album(album_folder, CONFIG), tmp_path / "out")
    with pytest.raises(ValueError, match="person must be"):
        dataclasses.replace(prepared, person=prepared.person[:1])


def test_same_album_gives_the_same_bytes(album_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare_assets(read_album(album_folder, CONFIG), tmp_path / name)
    for file in ("assets.json", "assets.npz", "assets.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_assets_and_photos_that_cleaning_empties_are_set_aside(write_album, tmp_path: Path) -> None:
    folder = write_album(("a", "b"), ("face", "shirt", "glasses"))
    speck = Image.new("L", (48, 64))
    speck.putpixel((5, 5), 255)
    for name in ("a_shirt", "b_shirt", "b_face"):
        speck.save(folder / "mask" / f"{name}.png")
    (folder / "mask" / "b_glasses.png").unlink()
    prepared = prepare_assets(
        read_album(folder, AlbumConfig(working_resolution=64, min_mask_fraction=0.01)), tmp_path / "out"
    )
    assert (prepared.stems, prepared.asset_names) == (("a",), ("face",))
    found = dict(prepared.set_aside)
    assert "less than 1.000%" in found["a_shirt"]
    assert "after cleaning" in found["b"]
    assert found["shirt"] == "this asset has no usable mask left"
    assert found["glasses"] == "this asset is part of the face"


def test_album_that_cleaning_empties_is_an_error(album_folder: Path, tmp_path: Path) -> None:
    album = read_album(album_folder, AlbumConfig(min_mask_fraction=0.9))
    with pytest.raises(UserError, match="0 photos left after its masks were cleaned"):
        prepare_assets(album, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def stage(album_folder: Path, tmp_path: Path) -> Path:
    prepare_assets(read_album(album_folder, CONFIG), tmp_path / "stage")
    return tmp_path / "stage"


@pytest.mark.parametrize("name", ["assets.json", "assets.npz"])
def test_missing_file(stage: Path, name: str) -> None:
    (stage / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_assets(stage)


@pytest.mark.parametrize("name", ["assets.json", "assets.npz"])
def test_cut_file(stage: Path, name: str) -> None:
    data = (stage / name).read_bytes()
    (stage / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="no intact prepared album"):
        load_assets(stage)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"format": 99}, "format 99"), ({"stems": ["a"]}, "images must be"), ({"views": []}, "words must be given")],
)
def test_files_that_do_not_fit(stage: Path, change: dict, words: str) -> None:
    content = json.loads((stage / "assets.json").read_text())
    (stage / "assets.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=words):
        load_assets(stage)


def test_arrays_of_a_wrong_type_are_refused(stage: Path) -> None:
    prepared = load_assets(stage)
    with pytest.raises(ValueError, match="valid must be"):
        dataclasses.replace(prepared, valid=prepared.valid.astype(np.uint8))


def test_sheet_shows_every_photo_with_its_masks(stage: Path) -> None:
    prepared = load_assets(stage)
    sheet = np.asarray(contact_sheet(prepared))
    first, second = asset_colours(2)
    # The legend holds each colour unmixed.
    assert (sheet == first).all(-1).any()
    assert (sheet == second).all(-1).any()
    nothing = (None,) * 100
    many = dataclasses.replace(
        prepared,
        name="x" * 500,
        images=np.zeros((100, 8, 8, 3), np.uint8),
        valid=np.ones((100, 8, 8), bool),
        masks=np.zeros((100, 2, 8, 8), bool),
        person=np.zeros((100, 8, 8), bool),
        views=nothing,
        framings=nothing,
        poses=nothing,
        backgrounds=nothing,
        stems=tuple(map(str, range(100))),
    )
    assert contact_sheet(many).width < 3000


def test_overlay_mixes_half_of_the_colour() -> None:
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 0] = True
    painted = overlay(np.zeros((4, 4, 3), np.uint8), mask)
    np.testing.assert_allclose(painted[0, 0], asset_colours(1)[0] / 2, atol=1)
    assert painted[1:].max() == 0


def test_colours_of_assets_differ() -> None:
    colours = asset_colours(14).astype(int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(14, dtype=int)
    assert distances.min() > 40


def test_writing_is_atomic_and_says_why_it_cannot(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep" / "file.bin", b"one")
    write_bytes(tmp_path / "deep" / "file.bin", b"two")
    assert (tmp_path / "deep" / "file.bin").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.bin"]
    with pytest.raises(UserError, match="cannot be written"):
        write_bytes(tmp_path / "deep" / "file.bin" / "below", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_bytes(tmp_path / "folder", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "folder"]
