"""Shards of the prior's training images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from datamodules.studio.person import HELD_OUT_SEED
from datamodules.studio.shards import photograph_for_prior, write_prior_shards
from datamodules.studio.vocabulary import BACKGROUNDS, LABELS, POSES
from modules.geometry.camera import FRAMINGS, view_word

SETTINGS = {"num_people": 4, "seed": 100, "resolution": 24, "images_per_person": 5, "people_per_shard": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_prior_shards(tmp_path_factory.mktemp("shards"), num_workers=1, **SETTINGS)


def test_contents(shards) -> None:
    assert [path.name for path in shards] == ["people_100.npz", "people_102.npz"]
    with np.load(shards[0], allow_pickle=False) as file:
        assert file["rgb"].shape == file["normal"].shape == (10, 24, 24, 3)
        assert file["rgb"].dtype == file["normal"].dtype == np.uint8
        entries = [json.loads(text) for text in file["meta"]]
        assert file["rgb"].std() > 10
    assert len(entries) == 10
    eight = {view_word(angle, 0, "eight") for angle in range(-180, 180, 15)}
    for entry in entries:
        assert entry["gender"] in ("woman", "man")
        assert entry["framing"] in FRAMINGS
        assert entry["view"] in eight
        assert entry["pose"] in POSES
        assert entry["background"] in BACKGROUNDS
        assert entry["assets"]
        assert {asset["name"] for asset in entry["assets"]} <= set(LABELS)
    assert [entry["pose"] == "a-pose" for entry in entries[:5]] == [True] * 3 + [False] * 2


def test_bytes_do_not_depend_on_the_number_of_workers(shards, tmp_path) -> None:
    again = write_prior_shards(tmp_path, num_workers=2, **SETTINGS)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in shards]


def test_existing_shards_are_kept(shards) -> None:
    before = [path.stat().st_mtime_ns for path in shards]
    write_prior_shards(shards[0].parent, num_workers=1, **SETTINGS)
    assert [path.stat().st_mtime_ns for path in shards] == before
    assert not list(shards[0].parent.glob("*.tmp*"))


def test_only_what_is_in_the_frame_is_said() -> None:
    seen_head = False
    for seed in range(12):
        for _, _, meta in photograph_for_prior(seed, resolution=32, num_images=8):
            names = {asset["name"] for asset in meta["assets"]}
            if meta["framing"] == "full body":
                assert "face" in names
                assert "haircut" in names
            if meta["framing"] == "head":
                seen_head = True
                assert not names & {"shoes", "trousers", "shorts", "skirt"}
            assert all(0 <= asset["visible"] <= 1 for asset in meta["assets"])
    assert seen_head


def test_held_out_people_never_train(tmp_path) -> None:
    with pytest.raises(ValueError, match="seeds of the prior's people must lie in"):
        write_prior_shards(tmp_path, num_people=2, seed=HELD_OUT_SEED - 1)
    with pytest.raises(ValueError, match="seeds of the prior's people must lie in"):
        write_prior_shards(tmp_path, num_people=2, seed=-1)
