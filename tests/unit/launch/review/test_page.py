"""What the review page's changes mean for assets.yaml."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.overrides import APPLIED_FILE, AssetOverride, PhotoOverride, read_overrides
from launch.review.page import HEADER, STAGE, FieldErrors, Review
from modules.errors import UserError
from tests.unit.launch.review.prepared import HOSTILE, write_prepared


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prepared(tmp_path / "anna")
    return tmp_path / "anna"


def test_state_says_what_was_found(folder: Path) -> None:
    state = Review(folder).state()
    assert [asset["name"] for asset in state["assets"]] == ["face", "shirt", "cap"]
    assert [asset["photos"] for asset in state["assets"]] == [3, 3, 2]
    assert [photo["name"] for photo in state["photos"]] == ["IMG_0001", "IMG_0002", HOSTILE]
    assert state["photos"][2]["masks"] == [["face", 0], ["shirt", 1]]
    assert state["set_aside"] == [["IMG_0003.jpg", "is blurred <b>much</b>"]]
    values = state["values"]
    assert (values["gender"], values["a1.name"], values["a1.words"], values["a1.keep"]) == (
        "person",
        "shirt",
        "long",
        True,
    )
    assert (values["p0.view"], values["p1.view"], values["p2.m1"]) == ("front", "", True)
    assert not state["pending"]
    json.dumps(state, allow_nan=False)


def test_changes_are_written_and_shown_again(folder: Path) -> None:
    review = Review(folder)
    state = review.save(
        {
            "gender": "woman",
            "a1.name": "Blouse",
            "a1.words": "Silk",
            "a2.keep": False,
            "p0.view": "",
            "p1.view": "left",
            "p2.keep": False,
            "p0.m1": False,
        }
    )
    found = read_overrides(folder / "assets.yaml")
    assert found.gender == "woman"
    assert found.assets == {"shirt": AssetOverride(name="blouse", words="silk"), "cap": AssetOverride(drop=True)}
    assert found.photos == {
        "IMG_0001": PhotoOverride(view="unknown", drop_masks=("shirt",)),
        "IMG_0002": PhotoOverride(view="left"),
        HOSTILE: PhotoOverride(drop=True),
    }
    values = state["values"]
    assert (values["a1.name"], values["a1.words"], values["a2.keep"], values["p2.keep"]) == (
        "blouse",
        "silk",
        False,
        False,
    )
    assert (values["p0.view"], values["p1.view"], values["p0.m1"], values["p1.m1"]) == ("", "left", False, True)
    assert state["pending"]
    assert Review(folder).state()["values"] == values
    # Taking it back says so, which also stands against an album's own file.
    review.save({"a2.keep": True, "p0.m1": True, "p2.keep": True})
    again = read_overrides(folder / "assets.yaml")
    assert again.assets["cap"] == AssetOverride(drop=False)
    assert again.photos["IMG_0001"].drop_masks == ()
    assert again.photos[HOSTILE] == PhotoOverride(drop=False)


def test_what_the_file_says_besides_stays(folder: Path) -> None:
    hand = (
        "# mine\nsubject: {photo: IMG_0001, at: [0.5, 0.5]}\n"
        "assets: {shoes: drop}\nphotos: {IMG_0001: {pose: sitting}}\n"
    )
    (folder / "assets.yaml").write_text(hand)
    Review(folder).save({"p0.view": "left"})
    found = read_overrides(folder / "assets.yaml")
    assert found.subject_point is not None
    assert found.assets == {"shoes": AssetOverride(drop=True)}
    assert found.photos == {"IMG_0001": PhotoOverride(view="left", pose="sitting")}
    # A hand's comments are not lost; what the page wrote itself is not kept twice.
    assert (folder / "assets.yaml.bak").read_text() == hand
    Review(folder).save({"p0.view": "right"})
    assert (folder / "assets.yaml.bak").read_text() == hand
    assert (folder / "assets.yaml").read_text().startswith(HEADER)


def test_nothing_changed_writes_nothing(folder: Path) -> None:
    assert not Review(folder).save({})["pending"]
    assert not (folder / "assets.yaml").exists()


def test_an_asset_that_was_renamed_before_keeps_its_first_name(tmp_path: Path) -> None:
    folder = tmp_path / "anna"
    write_prepared(folder, assets=("face", "blouse", "cap"))
    for path in (folder / STAGE / APPLIED_FILE, folder / "assets.yaml"):
        path.write_text(
            "assets: {shirt: {name: blouse, words: silk}, haircut: {name: cap}, shoes: drop}\n"
            "photos: {IMG_0001: {drop_masks: [shirt]}, IMG_0009: drop, IMG_0002: {drop_masks: [shoes]}}\n"
        )
    review = Review(folder)
    state = review.state()
    assert not state["pending"]
    assert (state["dropped_assets"], state["dropped_photos"]) == (["shoes"], ["IMG_0009"])
    assert (state["values"]["a1.name"], state["values"]["a1.words"]) == ("blouse", "silk")
    assert (state["values"]["ra0"], state["values"]["rp0"]) == (False, False)
    assert ["shoes", None] in state["photos"][1]["masks"]
    number = state["photos"][0]["masks"].index(["blouse", 1])
    assert state["values"][f"p0.m{number}"] is False

    state = review.save({"a1.name": "top", f"p0.m{number}": True, "ra0": True, "rp0": True})
    found = read_overrides(folder / "assets.yaml")
    assert found.assets["shirt"] == AssetOverride(name="top", words="silk")
    assert found.assets["shoes"] == AssetOverride(drop=False)
    assert found.photos["IMG_0001"].drop_masks == ()
    assert found.photos["IMG_0009"].drop is False
    assert state["values"]["a1.name"] == "top"
    assert (state["values"]["ra0"], state["values"]["rp0"]) == (True, True)
    assert state["pending"]


def test_renaming_does_not_bring_back_what_is_dropped(folder: Path) -> None:
    review = Review(folder)
    review.save({"a2.keep": False, "p1.keep": False})
    review.save({"a2.name": "hat", "p1.view": "left"})
    found = read_overrides(folder / "assets.yaml")
    assert found.assets["cap"] == AssetOverride(name="hat", drop=True)
    assert found.photos["IMG_0002"] == PhotoOverride(view="left", drop=True)


def test_values_that_cannot_be_taken_are_named_and_nothing_is_written(folder: Path) -> None:
    review = Review(folder)
    with pytest.raises(FieldErrors) as caught:
        review.save(
            {
                "a0.name": "no/slash",
                "a1.name": "person",
                "a2.name": "",
                "a1.words": "<new1>",
                "p0.view": "above",
                "gender": "cat",
                "a0.keep": False,
            }
        )
    assert set(caught.value.errors) == {"a0.name", "a1.name", "a2.name", "a1.words", "p0.view", "gender"}
    assert "letters, digits, spaces or hyphens." in caught.value.errors["a0.name"]
    assert "front left" in caught.value.errors["p0.view"]
    assert not (folder / "assets.yaml").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"a0.keep": False, "a1.keep": False, "a2.keep": False},
        {"p0.keep": False, "p1.keep": False, "p2.keep": False},
        # The third photo has no mask of the only asset that is kept.
        {"a0.keep": False, "a1.keep": False, "p0.keep": False, "p1.keep": False},
        {"p1.keep": False, "p2.keep": False, "p0.m0": False, "p0.m1": False, "p0.m2": False},
    ],
)
def test_dropping_everything_is_refused(folder: Path, changes: dict) -> None:
    with pytest.raises(FieldErrors) as caught:
        Review(folder).save(changes)
    assert "keep at least one asset" in caught.value.errors["page"]


@pytest.mark.parametrize(
    "changes", [{"a9.name": "x"}, {"a0.name": 3}, {"a0.keep": 1}, {"__proto__": ""}, {"gender": None}]
)
def test_addresses_and_types_of_no_page_of_ours(folder: Path, changes: dict) -> None:
    with pytest.raises(ValueError, match="there is no value") as caught:
        Review(folder).save(changes)
    assert not isinstance(caught.value, UserError)


def test_damaged_or_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared album"):
        Review(tmp_path)
    review = Review(folder)
    (folder / "assets.yaml").write_text("gendr: man")
    for work in (lambda: Review(folder), lambda: review.save({"gender": "man"})):
        with pytest.raises(UserError, match=r"assets.yaml: the file has the unknown key"):
            work()
    assert (folder / "assets.yaml").read_text() == "gendr: man"


def test_views_are_those_that_the_album_was_prepared_with(folder: Path) -> None:
    (folder / STAGE / "manifest.json").write_text(json.dumps({"config": {"view_vocabulary": "four"}}))
    review = Review(folder)
    assert review.views == ("front", "side", "back", "overhead", "back left")
    review.save({"p0.view": "overhead"})
    assert read_overrides(folder / "assets.yaml", "four").photos["IMG_0001"].view == "overhead"


def test_command_leads_to_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "two words" / "other name"
    write_prepared(folder)
    assert Review(folder).state()["command"].endswith(f"run ALBUM --out '{tmp_path}/two words' --name 'other name'")


def test_pictures(folder: Path) -> None:
    review = Review(folder)
    assert Image.open(io.BytesIO(review.photo_jpeg(0))).size == (32, 32)
    mask = np.asarray(Image.open(io.BytesIO(review.mask_png(0, 1))).convert("RGBA"))
    np.testing.assert_array_equal(mask[..., 3] > 0, review.album.masks[0, 1])
    colour = review.state()["assets"][1]["colour"]
    assert "#" + bytes(mask[review.album.masks[0, 1]][0, :3]).hex() == colour
    for work in (lambda: review.photo_jpeg(3), lambda: review.mask_png(0, 3)):
        with pytest.raises(IndexError):
            work()
