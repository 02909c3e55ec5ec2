"""View words, framing words and free words."""

from __future__ import annotations

import pytest

from datamodules.views import EIGHT_VIEWS, mirror_view, parse_framing, parse_free_words, parse_view, view_words
from modules.geometry.camera import FRAMINGS, view_word


def test_eight_words_are_those_of_the_cameras() -> None:
    assert [view_word(azimuth, vocabulary="eight") for azimuth in range(0, 360, 45)] == list(EIGHT_VIEWS)
    assert all(parse_view(word) == word for word in EIGHT_VIEWS)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Front-Left", "front left"),
        ("left_front", "front left"),
        ("  BACK view ", "back"),
        ("rear", "back"),
        ("right side", "right"),
        ("upside down", None),
        ("side", None),
        ("", None),
    ],
)
def test_loose_spelling_of_views(text: str, word: str | None) -> None:
    assert parse_view(text) == word


def test_four_words_of_the_paper() -> None:
    assert view_words("four") == ("front", "side", "back", "overhead")
    assert [parse_view(word, "four") for word in ("front", "front left", "left", "overhead", "nowhere")] == [
        "front",
        "side",
        "side",
        "overhead",
        None,
    ]


@pytest.mark.parametrize("azimuth", range(0, 360, 45))
def test_mirroring_is_the_view_from_the_mirrored_side(azimuth: int) -> None:
    assert mirror_view(view_word(azimuth, vocabulary="eight")) == view_word(-azimuth, vocabulary="eight")


def test_unknown_view_stays_unknown_when_mirrored() -> None:
    assert mirror_view(None) is None


def test_framings() -> None:
    assert all(parse_framing(word) == word for word in FRAMINGS)
    assert parse_framing("Full-Body") == "full body"
    assert parse_framing("close up") == "head"
    assert parse_framing("feet") is None


def test_free_words() -> None:
    assert parse_free_words("  A-Pose ") == "a-pose"
    assert parse_free_words("<asset0>") is None
    assert parse_free_words("x" * 61) is None
    assert parse_free_words("") is None
