"""Colours of body parts out of an album's masks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from datamodules.album_colours import asset_colour, body_colours
from datamodules.assets import PreparedAlbum
from modules.geometry.body_parts import BODY_PARTS

SKIN, HAIR, RED, BLUE = ((200, 150, 120), (40, 30, 20), (210, 20, 30), (20, 30, 200))


def album(**colours: tuple[int, int, int]) -> PreparedAlbum:
    """Two photos; each asset is a stripe ten pixels high of one colour, darker in the second."""
    names = tuple(colours)
    side = 10 * len(names)
    images = np.full((2, side, side, 3), 128, np.uint8)
    masks = np.zeros((2, len(names), side, side), bool)
    for index, colour in enumerate(colours.values()):
        images[:, 10 * index : 10 * index + 10] = colour
        masks[:, index, 10 * index : 10 * index + 10] = True
    images[1] = images[1] // 2
    return PreparedAlbum(
        name="x",
        gender="person",
        content_hash="",
        asset_names=names,
        asset_words=("",) * len(names),
        stems=("a", "b"),
        views=(None, None),
        framings=(None, None),
        poses=(None, None),
        backgrounds=(None, None),
        images=images,
        valid=np.ones((2, side, side), bool),
        masks=masks,
        person=masks.any(1),
    )


def seen(colour: tuple[int, int, int]) -> np.ndarray:
    """The median of a colour and of its half."""
    return (np.array(colour) + np.array(colour) // 2) / 2 / 255


def test_an_assets_colour_is_the_median_over_photos_without_the_rim() -> None:
    prepared = album(face=SKIN, shirt=RED)
    np.testing.assert_allclose(asset_colour(prepared, "shirt"), seen(RED), atol=0.01)  # type: ignore[arg-type]
    # A rim in the background's colour changes nothing.
    prepared.images[:, 10] = 255
    np.testing.assert_allclose(asset_colour(prepared, "shirt"), seen(RED), atol=0.01)  # type: ignore[arg-type]
    assert asset_colour(prepared, "cap") is None
    prepared.masks[:] = False
    assert asset_colour(prepared, "shirt") is None


def test_the_lit_side_is_the_brighter_half() -> None:
    prepared = album(face=SKIN)
    prepared.images[:, :4] = prepared.images[:, :4] // 2
    lit, whole = asset_colour(prepared, "face", lit=True), asset_colour(prepared, "face")
    np.testing.assert_allclose(lit, seen(SKIN), atol=0.01)  # type: ignore[arg-type]
    prepared.images[:, :7] = prepared.images[:, :7] // 2
    assert (asset_colour(prepared, "face") < whole).all()  # type: ignore[operator]


def test_garments_cover_what_they_cover_and_skin_the_rest() -> None:
    found = body_colours(album(face=SKIN, haircut=HAIR, **{"t-shirt": RED}, shorts=BLUE))
    colours = found.of_part
    expected = {
        "face": SKIN,
        "neck": SKIN,
        "hands": SKIN,
        "scalp": HAIR,
        "torso": RED,
        "upper arms": RED,
        "forearms": SKIN,
        "thighs": BLUE,
        "shins": SKIN,
    }
    assert set(colours) == set(expected)
    for part, colour in expected.items():
        np.testing.assert_allclose(colours[part], seen(colour), atol=0.01, err_msg=part)  # type: ignore[index]
    assert found.plain == {"face", "neck", "hands", "scalp", "forearms", "shins"}
    parts = np.array([BODY_PARTS.index("feet"), BODY_PARTS.index("torso"), BODY_PARTS.index("hands")])
    assert np.isnan(found.at(parts)[0]).all()
    np.testing.assert_allclose(found.at(parts)[1], seen(RED), atol=0.01)
    assert found.is_plain(parts).tolist() == [False, False, True]


def test_a_jacket_is_worn_over_a_shirt() -> None:
    colours = body_colours(album(face=SKIN, shirt=RED, jacket=BLUE)).of_part
    np.testing.assert_allclose(colours["torso"], seen(BLUE), atol=0.01)


def test_unknown_names_leave_their_limbs_unknown() -> None:
    colours = body_colours(album(face=SKIN, kimono=RED)).of_part
    assert set(colours) == {"face", "neck", "hands", "scalp"}


def test_what_is_said_in_words_is_not_taken_from_the_photos() -> None:
    prepared = dataclasses.replace(album(face=SKIN, shirt=RED, trousers=BLUE), in_words=("shirt",))
    colours = body_colours(prepared).of_part
    assert "torso" not in colours
    assert "forearms" not in colours
    assert "thighs" in colours


@pytest.mark.parametrize("name", ["haircut", "cap"])
def test_a_head_is_bare_only_without_hair_and_cap(name: str) -> None:
    np.testing.assert_allclose(body_colours(album(face=SKIN)).of_part["scalp"], seen(SKIN), atol=0.01)
    np.testing.assert_allclose(body_colours(album(face=SKIN, **{name: HAIR})).of_part["scalp"], seen(HAIR), atol=0.01)
