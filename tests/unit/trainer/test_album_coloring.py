"""The album's colours on a surface, before and after the texture stage."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from modules.avatar_config import TextureConfig
from modules.geometry.body import load_body
from tests.unit.datamodules.test_album_colours import BLUE, FACE, HAIR, RED, album
from trainer.album_coloring import ColorFn, finish_colors, start_colors

ALBUM = album(face=FACE, haircut=HAIR, shirt=RED, trousers=BLUE, shoes=HAIR)
VERTICES = torch.from_numpy(load_body("person").vertices.astype(np.float32))
PURPLE = torch.tensor([0.45, 0.1, 0.45])


def painted(points: torch.Tensor) -> torch.Tensor:
    """One colour between shirt and trousers, a little more of each on its side."""
    side = 0.1 * torch.sign(points[:, 1:2] - 0.9)
    return PURPLE + side * torch.tensor([1.0, 0.0, -1.0])


def at(color: ColorFn, *point: float) -> np.ndarray:
    return color(torch.tensor([point]))[0].numpy()


def test_the_start_is_the_albums_or_grey() -> None:
    colors = start_colors(ALBUM, VERTICES, TextureConfig())
    assert colors is not None
    height = VERTICES[:, 1]
    for low_m, high_m, expected in ((1.1, 1.3, RED), (0.6, 0.7, BLUE)):
        found = colors[(height > low_m) & (height < high_m)].median(0).values
        np.testing.assert_allclose(found, np.array(expected) / 255, atol=0.02)
    assert start_colors(ALBUM, VERTICES, TextureConfig(start="grey")) is None


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_result_takes_its_share_of_the_albums_colours(share: float) -> None:
    color = finish_colors(ALBUM, VERTICES, painted, TextureConfig(album_share=share, start="grey"))
    for point, expected in (((0.0, 1.2, 0.12), RED), ((0.12, 0.6, 0.06), BLUE), ((0.0, 1.6, 0.15), FACE)):
        before = at(painted, *point)
        np.testing.assert_allclose(
            at(color, *point), share * np.array(expected) / 255 + (1 - share) * before, atol=0.02
        )


def test_no_share_and_perfect_guidance_are_left_alone() -> None:
    assert finish_colors(ALBUM, VERTICES, painted, TextureConfig()) is painted
    config = TextureConfig(album_share=0.9)
    perfect = dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, method="truth"))
    assert finish_colors(ALBUM, VERTICES, painted, perfect) is painted
