"""Which asset a point of the surface shows: on the body template itself, painted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from modules.geometry.asset_regions import AssetColors, RegionColors, region_colors
from modules.geometry.body import load_body
from modules.geometry.body_parts import BODY_PARTS, BodyPart, parts_of_body

BODY = load_body("person")
PARTS = parts_of_body(BODY)
RED, BLUE, SKIN, WHITE, GREY = np.array(
    [[0.8, 0.1, 0.1], [0.1, 0.15, 0.6], [0.8, 0.6, 0.5], [0.95, 0.95, 0.95], [0.5, 0.5, 0.5]]
)
HEM_M = 0.85


def asset(
    name: str, color: np.ndarray | None, *parts: BodyPart, sure: Sequence[BodyPart] = (), **more: Any
) -> AssetColors:
    palette = np.zeros((0, 3)) if color is None else color[None]
    return AssetColors(name=name, parts=parts, albedo=color, palette=palette, sure=tuple(sure), **more)


SHIRT = asset("shirt", RED, "torso", "upper arms", "forearms")
TROUSERS = asset("trousers", BLUE, "thighs", "shins")
SHOES = asset("shoes", WHITE, "feet", sure=["feet"])
BARE = asset("skin", SKIN, "face", "scalp", "neck", "hands", sure=["face", "scalp", "neck", "hands"], anywhere=True)
ASSETS = [SHIRT, TROUSERS, SHOES, BARE]


def of(*parts: BodyPart) -> np.ndarray:
    return np.isin(PARTS, [BODY_PARTS.index(part) for part in parts])


def painted(blur_m: float = 0.08, hem_m: float = HEM_M) -> np.ndarray:
    """(V, 3): shirt above the hem and trousers below with a soft border; head, hands and feet are grey."""
    upper = 1 / (1 + np.exp((hem_m - BODY.vertices[:, 1:2]) * 4 / blur_m))
    colors = upper * RED + (1 - upper) * BLUE
    colors[of("upper arms", "forearms")] = RED
    colors[of("face", "scalp", "neck", "hands", "feet")] = GREY
    return colors


def finished(colors: np.ndarray, assets: Sequence[AssetColors] = ASSETS, share: float = 1.0) -> np.ndarray:
    regions = region_colors(BODY.vertices.astype(float), colors, BODY, assets, share)
    assert regions is not None
    points = torch.from_numpy(BODY.vertices.astype(np.float32))
    return regions(points, torch.from_numpy(colors.astype(np.float32))).numpy()


def near(colors: np.ndarray, color: np.ndarray) -> np.ndarray:
    return np.abs(colors - color).max(1) < 0.02


@pytest.mark.parametrize("hem_m", [0.80, HEM_M, 0.95])
def test_a_soft_border_becomes_a_sharp_one(hem_m: float) -> None:
    # The torso ends at 0.95 m. A hem far below it is taken to be a little higher than it was painted.
    colors, height = finished(painted(hem_m=hem_m)), BODY.vertices[:, 1]
    trunk = of("torso", "thighs")
    assert near(colors, RED)[trunk & (height > hem_m + 0.06)].mean() > 0.98
    assert near(colors, BLUE)[trunk & (height < hem_m - 0.03)].mean() > 0.98
    soft = trunk & ~near(colors, RED) & ~near(colors, BLUE)
    before = trunk & ~near(painted(hem_m=hem_m), RED) & ~near(painted(hem_m=hem_m), BLUE)
    assert soft.sum() < 0.25 * before.sum()


def test_small_parts_have_their_colours_whatever_was_painted() -> None:
    colors, height = finished(painted()), BODY.vertices[:, 1]
    assert near(colors, WHITE)[of("feet") & (height < 0.06)].all()
    assert near(colors, SKIN)[of("face", "scalp")].all()
    # The wrist is a border.
    assert near(colors, SKIN)[of("hands") & (np.abs(BODY.vertices[:, 0]) > 0.52)].all()


def test_a_limb_that_was_painted_grey_is_its_garments() -> None:
    colors = painted()
    ankles = of("shins") & (BODY.vertices[:, 1] < 0.2)
    # Even when it looks like the shoes that begin there.
    for wrong in (GREY, WHITE):
        colors[ankles] = wrong
        assert near(finished(colors), BLUE)[ankles & (BODY.vertices[:, 1] > 0.15)].all()


def test_a_garment_of_unknown_place_is_where_its_colour_is() -> None:
    colors, height = painted(), BODY.vertices[:, 1]
    green = np.array([0.1, 0.7, 0.2])
    scarf = of("torso") & (height > 1.25)
    colors[scarf] = green
    found = finished(colors, [*ASSETS, asset("scarf", green)])
    # Its rim blends into the neck and the arms.
    worn = of("torso") & (height > 1.29) & (height < 1.37) & (np.abs(BODY.vertices[:, 0]) < 0.1)
    assert near(found, green)[worn].mean() > 0.97
    assert near(found, RED)[of("torso") & (height < 1.2) & (height > HEM_M + 0.04)].mean() > 0.97
    # Without it there is no better name for those points.
    assert near(finished(colors), RED)[worn].mean() > 0.97


def test_what_is_hardly_ever_seen_needs_more_than_a_likeness() -> None:
    colors = painted()
    dusky = 0.55 * RED + 0.45 * GREY
    faded = of("torso") & (np.abs(BODY.vertices[:, 1] - 1.2) < 0.08)
    colors[faded] = 0.75 * RED + 0.25 * GREY
    share = {}
    for rarity in (0.0, 3.0):
        below = asset("t-shirt", dusky, "torso", "upper arms", rarity=rarity)
        share[rarity] = near(finished(colors, [*ASSETS, below]), RED)[faded].mean()
    assert share[3.0] > 0.98
    assert share[0.0] < 0.9


def test_a_region_of_unknown_colour_keeps_what_was_painted() -> None:
    colors = painted()
    unknown = [asset("", None, "torso", "upper arms", "forearms"), TROUSERS, SHOES, BARE]
    kept = of("torso") & (BODY.vertices[:, 1] > 1.05)
    kept &= np.abs(BODY.vertices[:, 1] - 1.25) < 0.15
    np.testing.assert_allclose(finished(colors, unknown)[kept], colors[kept], atol=2e-3)


def test_bare_skin_may_show_where_no_skin_is_expected() -> None:
    colors = painted()
    from_middle = np.abs(BODY.vertices[:, 0])
    colors[of("forearms")] = SKIN
    found = finished(colors)
    assert near(found, SKIN)[of("forearms") & (from_middle > 0.39)].mean() > 0.95
    assert near(found, RED)[of("upper arms") & (from_middle < 0.31)].mean() > 0.95


def test_a_share_is_mixed_with_what_was_painted() -> None:
    colors = painted()
    whole, half, none = (finished(colors, share=share) for share in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(none, colors, atol=1e-5)
    np.testing.assert_allclose(half, (whole + colors) / 2, atol=1e-5)


def test_the_result_does_not_depend_on_how_finely_a_place_is_meshed() -> None:
    colors = painted()
    back = of("torso", "thighs") & (BODY.vertices[:, 2] < 0)
    many = np.concatenate([BODY.vertices, *[BODY.vertices[back] + 1e-5 * turn for turn in range(8)]])
    regions = region_colors(many.astype(float), np.concatenate([colors, *[colors[back]] * 8]), BODY, ASSETS, 1.0)
    assert regions is not None
    twice = regions(torch.from_numpy(BODY.vertices.astype(np.float32)), torch.from_numpy(colors.astype(np.float32)))
    assert np.abs(twice.numpy() - finished(colors)).mean() < 2e-3


def test_nothing_to_do_is_no_error() -> None:
    assert region_colors(np.zeros((0, 3)), np.zeros((0, 3)), BODY, ASSETS, 1.0) is None
    assert region_colors(BODY.vertices.astype(float), painted(), BODY, [], 1.0) is None
    one = region_colors(np.array([[0.0, 1.2, 0.1]]), RED[None], BODY, ASSETS, 1.0)
    assert one is not None
    assert near(one(torch.tensor([[0.0, 1.2, 0.1]]), torch.zeros(1, 3)).numpy(), RED).all()
    assert one(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)


def test_bad_arguments_are_refused() -> None:
    points, memberships = np.zeros((2, 3)), np.full((2, 1), 1.0)
    with pytest.raises(ValueError, match="share must lie"):
        RegionColors(points, memberships, [SHIRT], 1.5)
    with pytest.raises(ValueError, match="memberships must be"):
        RegionColors(points, memberships, [SHIRT, SHOES], 0.5)
