"""Prior-preservation images: made once, found again, left out when their weight is zero."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from datamodules.studio.person import HELD_OUT_SEED
from modules.diffusion.config import BackboneConfig
from modules.puzzlebooth_config import PuzzleBoothConfig
from tests.tiny_backbone import load_tiny_backbone, write_tiny_backbone
from trainer.config import RunConfig
from trainer.priors import _SYNTHETIC_SEED, prior_samples, synthetic_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


def config_for(folder: Path, **booth: float) -> RunConfig:
    small = {"num_prior_samples": 3, "num_synthetic_people": 2} | booth
    return RunConfig(
        backbone=BackboneConfig(path=str(folder)),
        booth=PuzzleBoothConfig(**small),  # type: ignore[arg-type]
    )


def stamps(out: Path) -> dict[str, int]:
    """When each file was written, locks left out."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_samples_are_drawn_once_and_found_again(folder: Path, tmp_path: Path) -> None:
    config, backbone = config_for(folder), load_tiny_backbone(folder)
    first = prior_samples(tmp_path, config, backbone, "woman", "weights")
    before = stamps(tmp_path)
    again = prior_samples(tmp_path, config, backbone, "woman", "weights")
    assert stamps(tmp_path) == before
    assert len(first) == 3
    for sample, other in zip(first, again, strict=True):
        assert sample.image.shape == (32, 32, 3)
        assert sample.image.dtype == np.uint8
        np.testing.assert_array_equal(sample.image, other.image)
        assert sample.prompt == other.prompt
    assert not np.array_equal(first[0].image, first[1].image)
    words = [sample.prompt for sample in first]
    assert words[0] == (
        "a high-resolution DSLR colored image of a woman, face, haircut, wearing shirt, trousers, and shoes, "
        "full body, standing, front view, gray background."
    )
    assert ["front left view" in words[1], "left view" in words[2]] == [True, True]
    assert not [text for text in words if "<asset" in text], "prior preservation speaks without tokens"


def test_samples_follow_gender_seed_and_vocabulary(folder: Path, tmp_path: Path) -> None:
    config, backbone = config_for(folder), load_tiny_backbone(folder)
    woman = prior_samples(tmp_path, config, backbone, "woman", "weights")
    man = prior_samples(tmp_path, config, backbone, "man", "weights")
    assert "of a man," in man[0].prompt
    reseeded = prior_samples(tmp_path, dataclasses.replace(config, seed=1), backbone, "woman", "weights")
    assert not np.array_equal(reseeded[0].image, woman[0].image)
    plain = BackboneConfig(path=str(folder), view_vocabulary="four", scene_words=False)
    four = prior_samples(tmp_path, dataclasses.replace(config, backbone=plain), backbone, "woman", "weights")
    assert [sample.prompt.rsplit(", ", 1)[1] for sample in four] == ["front view.", "side view.", "back view."]
    assert "gray" not in four[0].prompt


def test_synthetic_people_are_rendered_once_at_the_backbones_size(folder: Path, tmp_path: Path) -> None:
    config = config_for(folder)
    images = synthetic_images(tmp_path, config, 32)
    before = stamps(tmp_path)
    again = synthetic_images(tmp_path, config, 32)
    assert stamps(tmp_path) == before
    assert images is not None
    assert again is not None
    assert images.resolution == 32
    assert len(images) == len(again) == 2 * 8
    np.testing.assert_array_equal(images.rgb, again.rgb)
    pixels, captions, _ = images.draw(40, np.random.default_rng(0), kind="normal")
    assert pixels.shape == (40, 32, 32, 3)
    assert all(caption == "" or caption.startswith("a detailed sculpture") for caption in captions)
    assert captions.count("") < 20


def test_nothing_is_made_when_nothing_is_asked_for(folder: Path, tmp_path: Path) -> None:
    backbone = load_tiny_backbone(folder)
    for change in ({"weight_synthetic": 0.0}, {"num_synthetic_people": 0}):
        assert synthetic_images(tmp_path, config_for(folder, **change), 32) is None
    for change in ({"weight_prior": 0.0}, {"num_prior_samples": 0}):
        assert prior_samples(tmp_path, config_for(folder, **change), backbone, "man", "weights") == []
    assert not list(tmp_path.iterdir())


def test_no_person_of_a_test_album_is_among_the_synthetic_ones() -> None:
    assert 0 <= _SYNTHETIC_SEED < HELD_OUT_SEED - 100_000
