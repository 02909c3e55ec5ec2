"""Colours of assets and of body parts out of an album's masks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from datamodules.album_colours import SKIN, UNTOLD, album_colors, first_colors
from datamodules.assets import PreparedAlbum
from modules.geometry.asset_regions import AssetColors
from modules.geometry.body_parts import BODY_PARTS

FACE, HAIR, RED, BLUE = ((200, 150, 120), (40, 30, 20), (210, 20, 30), (20, 30, 200))


def album(**colours: tuple[int, int, int]) -> PreparedAlbum:
    """Two photos; each asset is a stripe ten pixels high of one colour."""
    names = tuple(colours)
    side = 10 * len(names)
    images = np.full((2, side, side, 3), 128, np.uint8)
    masks = np.zeros((2, len(names), side, side), bool)
    for index, colour in enumerate(colours.values()):
        images[:, 10 * index : 10 * index + 10] = colour
        masks[:, index, 10 * index : 10 * index + 10] = True
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


def found(prepared: PreparedAlbum) -> dict[str, AssetColors]:
    return {asset.name: asset for asset in album_colors(prepared)}


def worn(prepared: PreparedAlbum) -> dict[str, np.ndarray]:
    """Colours of the body's parts of which something is known."""
    colors = first_colors(album_colors(prepared), np.arange(len(BODY_PARTS)))
    return {part: color for part, color in zip(BODY_PARTS, colors, strict=True) if np.isfinite(color).all()}


def close(color: np.ndarray | None, expected: tuple[int, int, int]) -> None:
    assert color is not None
    np.testing.assert_allclose(color, np.array(expected) / 255, atol=0.01)


def test_a_rim_of_the_mask_does_not_count_where_there_is_more() -> None:
    prepared = album(face=FACE, shirt=RED)
    prepared.images[:, 10:12] = 255
    close(found(prepared)["shirt"].albedo, RED)
    prepared.masks[:] = False
    assert [asset.name for asset in album_colors(prepared)] == [UNTOLD]


@pytest.mark.parametrize("ambient", [0.3, 0.6])
def test_shading_is_taken_off(ambient: float) -> None:
    # Cylinders under a light from the viewer: brightness = ambient + (1 - ambient) * cos.
    prepared = album(face=FACE, haircut=(90, 60, 30), shirt=RED, trousers=BLUE)
    side = prepared.resolution
    across = (np.arange(side) + 0.5) / side * 2 - 1
    brightness = ambient + (1 - ambient) * np.sqrt(1 - across**2)
    prepared.images[:] = np.rint(prepared.images * brightness[None, None, :, None])
    for name, expected in (("shirt", RED), ("trousers", BLUE)):
        albedo = found(prepared)[name].albedo
        close(albedo, expected)
        plain = prepared.images[0][prepared.masks[0, prepared.asset_names.index(name)]].mean(0) / 255
        error = np.abs(plain - np.array(expected) / 255).max()
        assert error > 5 * np.abs(albedo - np.array(expected) / 255).max(), "what it would be otherwise"


def test_a_pattern_gives_its_mean_and_its_colours() -> None:
    prepared = album(face=FACE, shirt=RED, trousers=BLUE)
    prepared.images[:, 10:20, ::2] = (20, 200, 40)
    shirt = found(prepared)["shirt"]
    assert shirt.albedo is not None
    np.testing.assert_allclose(shirt.albedo, np.array([115, 110, 35]) / 255, atol=0.03)
    for color in (RED, (20, 200, 40)):
        assert np.abs(shirt.palette - np.array(color) / 255).max(1).min() < 0.05


def test_garments_cover_what_they_cover_and_skin_the_rest() -> None:
    prepared = album(face=FACE, haircut=HAIR, **{"t-shirt": RED}, shorts=BLUE)
    expected = {
        "face": FACE,
        "neck": FACE,
        "hands": FACE,
        "scalp": HAIR,
        "torso": RED,
        "upper arms": RED,
        "forearms": FACE,
        "thighs": BLUE,
        "shins": FACE,
    }
    colours = worn(prepared)
    assert set(colours) == set(expected)
    for part, colour in expected.items():
        close(colours[part], colour)
    assets = found(prepared)
    assert assets[SKIN].sure == ("face", "neck", "hands", "forearms", "shins")
    assert assets[SKIN].anywhere
    assert assets["haircut"].sure == ("scalp",)
    assert assets["t-shirt"].sure == ()
    assert (assets[UNTOLD].parts, assets[UNTOLD].sure, assets[UNTOLD].albedo) == (("feet",), ("feet",), None)


def test_a_jacket_is_worn_over_a_shirt() -> None:
    close(worn(album(face=FACE, shirt=RED, jacket=BLUE))["torso"], BLUE)


def test_what_is_seen_less_of_is_rarer_where_both_may_be() -> None:
    prepared = album(face=FACE, shirt=RED, jacket=BLUE, trousers=BLUE)
    prepared.masks[:, 1, 10:20, 10:] = False
    assets = found(prepared)
    # Erosion takes two pixels on every side: 36 of 6 x 36 + 6 x 6.
    assert assets["shirt"].rarity == pytest.approx(-np.log(36 / (36 + 216)), abs=0.01)
    assert assets["jacket"].rarity == pytest.approx(-np.log(216 / (36 + 216)), abs=0.01)
    assert assets["trousers"].rarity == 0


def test_nobody_knows_how_long_the_sleeves_of_a_dress_are() -> None:
    prepared = album(face=FACE, haircut=HAIR, dress=RED, shoes=BLUE)
    close(worn(prepared)["upper arms"], FACE)
    assert found(prepared)[SKIN].sure == ("face", "neck", "hands", "shins")
    assert UNTOLD not in found(prepared)


def test_unknown_names_leave_their_limbs_unknown() -> None:
    prepared = album(face=FACE, kimono=RED)
    assert set(worn(prepared)) == {"face", "neck", "hands", "scalp"}
    assert found(prepared)["kimono"].parts == ()
    close(found(prepared)["kimono"].albedo, RED)


def test_what_is_said_in_words_is_not_taken_from_the_photos() -> None:
    prepared = dataclasses.replace(album(face=FACE, shirt=RED, trousers=BLUE), in_words=("shirt",))
    colours, assets = worn(prepared), found(prepared)
    assert "torso" not in colours
    assert "forearms" not in colours
    assert "thighs" in colours
    assert "shirt" not in assets
    assert {"torso", "upper arms", "forearms"} <= set(assets[UNTOLD].parts)
    everything = album(face=FACE, haircut=HAIR, shirt=RED, trousers=BLUE, shoes=BLUE, scarf=RED)
    assert UNTOLD not in found(everything)
    # A scarf may be anywhere: some place must be left to it.
    assert found(dataclasses.replace(everything, in_words=("scarf",)))[UNTOLD].parts == ()
    assert SKIN not in found(dataclasses.replace(everything, in_words=("face",)))


@pytest.mark.parametrize("name", ["haircut", "cap"])
def test_a_head_is_bare_only_without_hair_and_cap(name: str) -> None:
    close(worn(album(face=FACE))["scalp"], FACE)
    close(worn(album(face=FACE, **{name: HAIR}))["scalp"], HAIR)
