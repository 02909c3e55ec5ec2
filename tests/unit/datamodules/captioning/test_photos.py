from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from datamodules.captioning.captioner import CaptionFailed, CaptionRequest
from datamodules.captioning.photos import choose_photos, encode_jpeg, person_crop


def masked(*areas: dict[str, int]) -> CaptionRequest:
    """Photos of 10 x 10 pixels; asset name to the number of rows that show it."""
    names = tuple(dict.fromkeys(name for area in areas for name in area)) or ("face",)
    masks = []
    for area in areas:
        masks.append({name: np.broadcast_to((np.arange(10) < rows)[:, None], (10, 10)) for name, rows in area.items()})
    return CaptionRequest(photos=[np.zeros((10, 10, 3), np.uint8)] * len(areas), masks=masks, asset_names=names)


@pytest.mark.parametrize(
    ("areas", "max_photos", "chosen"),
    [
        ([{}, {}], 1, [0]),
        ([{"a": 1}, {"a": 5}, {"a": 3}], 1, [1]),
        # Two assets beat a large one; then what is still missing counts.
        ([{"a": 9}, {"a": 1, "b": 1}, {"c": 1}], 1, [1]),
        ([{"a": 1}, {"a": 1, "b": 1}, {"c": 1}], 2, [1, 2]),
        ([{"a": 5}, {"a": 5}], 3, [0, 1]),
    ],
)
def test_the_photos_that_show_most_are_chosen(areas, max_photos, chosen):
    assert choose_photos(masked(*areas), max_photos) == chosen


def test_the_person_is_cut_out_with_a_margin():
    photo = np.arange(100 * 80 * 3, dtype=np.uint32).reshape(100, 80, 3).astype(np.uint8)
    mask, other = np.zeros((100, 80), bool), np.ones((100, 80), bool)
    mask[20:60, 30:50] = True
    request = CaptionRequest(photos=[photo], masks=[{"upper": mask, "stranger": other}], asset_names=("upper",))
    crop = person_crop(request, 0, 512)
    assert np.array_equal(np.asarray(crop), photo[16:64, 28:52])
    assert person_crop(request, 0, 24).size == (12, 24)


@pytest.mark.parametrize("empty", [{}, {"a": 0}])
def test_without_masks_the_whole_photo_is_shown(empty):
    assert person_crop(masked({"a": 1}, empty), 1, 512).size == (10, 10)


def test_a_file_keeps_within_its_size_and_holds_no_metadata():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (512, 256, 3), dtype=np.uint8))
    noise.info["exif"] = b"Exif\0\0GPS"
    data = encode_jpeg(noise, 10_000)
    assert len(data) <= 10_000
    decoded = Image.open(io.BytesIO(data))
    assert decoded.height / decoded.width == pytest.approx(2, rel=0.05)
    assert decoded.height < 512
    assert b"Exif" not in data
    assert not decoded.getexif()
    assert Image.open(io.BytesIO(encode_jpeg(noise, 10_000_000))).size == (256, 512)


def test_a_size_that_nothing_fits_into_is_an_error():
    with pytest.raises(CaptionFailed, match="max_image_bytes"):
        encode_jpeg(Image.new("RGB", (64, 64)), 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photos": []}, "at least one photo"),
        ({"asset_names": ()}, "at least one photo and one asset"),
        ({"masks": []}, "one table of masks"),
        ({"asset_names": ("<a>",)}, "letters"),
        ({"asset_names": ("a\nb",)}, "in one line"),
        ({"photos": [np.zeros((10, 10), np.uint8)]}, r"\(H, W, 3\) uint8"),
        ({"photos": [np.zeros((0, 10, 3), np.uint8)]}, r"\(H, W, 3\) uint8"),
        ({"photos": [np.zeros((10, 10, 3))]}, "uint8"),
        ({"masks": [{"a": np.zeros((10, 10))}]}, "bool"),
        ({"masks": [{"a": np.zeros((9, 10), bool)}]}, "bool"),
    ],
)
def test_a_request_is_checked(change, message):
    whole = {"photos": [np.zeros((10, 10, 3), np.uint8)], "masks": [{}], "asset_names": ("a",)}
    CaptionRequest(**whole)
    with pytest.raises(ValueError, match=message):
        CaptionRequest(**{**whole, **change})
