"""Captioned images of the prior: what is left out, what is mirrored, what is spoiled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.prior_images import CaptionConfig, PriorImages, degrade, describe, mirror_normals
from datamodules.views import mirror_view
from modules.diffusion.prompts import NEGATIVE_PROMPT
from modules.errors import UserError

META = {
    "gender": "woman",
    "assets": [{"name": "face", "words": "oval"}, {"name": "shirt", "words": "red striped"}],
    "view": "front left",
    "framing": "full body",
    "pose": "a-pose",
    "background": "gray",
}
WHOLE = CaptionConfig(caption_dropout=0, asset_dropout=0, words_dropout=0, scene_dropout=0, degraded_fraction=0)
CAPTION = (
    "a high-resolution DSLR colored image of a woman, oval face, wearing red striped shirt, full body, a-pose, "
    "front left view, gray background."
)


def caption(config: CaptionConfig, seed: int = 0, kind="rgb", *, mirrored: bool = False) -> str:
    return describe(META, np.random.default_rng(seed), config, kind, mirrored=mirrored)


def with_dropout(**odds: float) -> CaptionConfig:
    return CaptionConfig(**({"caption_dropout": 0, "asset_dropout": 0, "words_dropout": 0, "scene_dropout": 0} | odds))


def write_shard(folder: Path, name: str, poses: list[str], size: int = 16) -> None:
    """Images whose left half is bright; normals that look to the right."""
    rgb = np.full((len(poses), size, size, 3), 20, np.uint8)
    rgb[:, :, : size // 2] = 220
    normal = np.full((len(poses), size, size, 3), 128, np.uint8)
    normal[:, :, : size // 2, 0] = 250
    meta = np.array([json.dumps(META | {"pose": pose}) for pose in poses])
    np.savez(folder / f"people_{name}.npz", rgb=rgb, normal=normal, meta=meta)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(tmp_path, "0", ["a-pose"] * 2)
    write_shard(tmp_path, "2", ["walking"] * 2)
    return tmp_path


def test_nothing_left_out() -> None:
    assert caption(WHOLE) == CAPTION
    assert caption(WHOLE, kind="normal") == (
        "a detailed sculpture of a woman, oval face, wearing red striped shirt, full body, a-pose, front left view."
    )


def test_parts_are_left_out_as_often_as_asked() -> None:
    assert caption(with_dropout(caption_dropout=1)) == ""
    assert "face" not in caption(with_dropout(asset_dropout=1))
    assert "wearing" not in caption(with_dropout(asset_dropout=1))
    bare = caption(with_dropout(words_dropout=1))
    assert "face, wearing shirt" in bare
    assert "oval" not in bare
    assert caption(with_dropout(scene_dropout=1)).endswith("red striped shirt.")
    drawn = [caption(with_dropout(caption_dropout=0.3, words_dropout=0.5), seed) for seed in range(400)]
    assert drawn.count("") / 400 == pytest.approx(0.3, abs=0.07)
    said = [text for text in drawn if text]
    assert sum("oval" in text for text in said) / len(said) == pytest.approx(0.5, abs=0.09)


def test_mirrored_views_swap_left_and_right() -> None:
    assert "front right view" in caption(WHOLE, mirrored=True)
    assert mirror_view("left") == "right"
    assert mirror_view("back right") == "back left"
    assert mirror_view("front") == "front"
    assert mirror_view(None) is None


def test_mirrored_normals_look_the_other_way() -> None:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(6, 8, 3))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    encoded = np.round((normals * 0.5 + 0.5) * 255).astype(np.uint8)
    expected = normals[:, ::-1] * (-1, 1, 1)
    decoded = mirror_normals(encoded).astype(float) / 255 * 2 - 1
    np.testing.assert_allclose(decoded, expected, atol=0.01)
    np.testing.assert_array_equal(mirror_normals(mirror_normals(encoded)), encoded)


def test_degraded_images_keep_their_shape_and_lose_their_content() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    kinds = set()
    for seed in range(24):
        spoiled = degrade(image, np.random.default_rng(seed))
        assert spoiled.shape == image.shape
        assert spoiled.dtype == np.uint8
        assert (spoiled != image).mean() > 0.1
        kinds.add(int(np.random.default_rng(seed).integers(4)))
    assert kinds == {0, 1, 2, 3}


def test_shuffled_blocks_are_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    seed = next(seed for seed in range(50) if int(np.random.default_rng(seed).integers(4)) == 1)
    spoiled = degrade(image, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(spoiled.reshape(-1)), np.sort(image.reshape(-1)))


def test_draws_hold_both_kinds_and_mirror_half(shards: Path) -> None:
    images = PriorImages(shards, WHOLE)
    assert len(images) == 4
    assert images.resolution == 16
    pixels, captions, foreground = images.draw(200, np.random.default_rng(0))
    assert pixels.shape == (200, 16, 16, 3)
    for picture, text, silhouette in zip(pixels, captions, foreground, strict=True):
        left = picture[0, 0]
        mirrored = "front right view" in text
        assert silhouette[:, 8:].all() == mirrored
        assert silhouette.sum() == 16 * 8
        if text.startswith("a detailed sculpture"):
            # The mirrored map has its marked half on the right, and its normals look to the left.
            assert picture[0, 15 if mirrored else 0, 0] == (5 if mirrored else 250)
        else:
            assert left[0] == (20 if mirrored else 220)
    sculptures = sum(text.startswith("a detailed sculpture") for text in captions)
    assert sculptures / 200 == pytest.approx(0.4, abs=0.1)
    assert sum("right view" in text for text in captions) / 200 == pytest.approx(0.5, abs=0.1)
    assert all("sculpture" in text for text in images.draw(5, np.random.default_rng(0), kind="normal")[1])


def test_posed_people_are_drawn_less_often(shards: Path) -> None:
    captions = PriorImages(shards, WHOLE).draw(400, np.random.default_rng(0)).captions
    walking = sum("walking" in text for text in captions) / 400
    assert walking == pytest.approx(0.4 / 1.4, abs=0.07)


def test_degraded_images_bear_the_negative_prompt(shards: Path) -> None:
    config = CaptionConfig(degraded_fraction=1.0)
    _, captions, foreground = PriorImages(shards, config).draw(4, np.random.default_rng(0))
    assert foreground.all()
    assert captions == [NEGATIVE_PROMPT] * 4
    assert PriorImages(shards).captions(3, seed=0).count(NEGATIVE_PROMPT) == 8


def test_draws_depend_on_the_generator_alone(shards: Path) -> None:
    first, second = (PriorImages(shards).draw(8, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


def test_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No image shards \(people_\*\.npz\)"):
        PriorImages(tmp_path)


@pytest.mark.parametrize("name", ["caption_dropout", "normal_fraction", "posed_weight"])
def test_ranges(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], found 1.5"):
        CaptionConfig(**{name: 1.5})
