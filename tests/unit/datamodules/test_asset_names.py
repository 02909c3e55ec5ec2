"""Names of assets and their words."""

from __future__ import annotations

import pytest

from datamodules.asset_names import CANONICAL_ASSETS, canonical_asset, clean_words, order_assets


def test_known_names_stay() -> None:
    assert [canonical_asset(name) for name in CANONICAL_ASSETS] == list(CANONICAL_ASSETS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Hair", "haircut"),
        ("tank_top", "tank top"),
        ("T-Shirt", "t-shirt"),
        ("t_shirt", "t-shirt"),
        ("kimono", "kimono"),
    ],
)
def test_spellings_are_joined(text: str, name: str) -> None:
    assert canonical_asset(text) == name


@pytest.mark.parametrize("text", ["", "../x", "a/b", "<asset0>", "x" * 41, "a\nb\0", "_", "-x", "\udcff"])
def test_unsafe_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="asset name"):
        canonical_asset(text)


def test_words_are_cleaned() -> None:
    assert clean_words("  Short   Curly, (dense) ") == "short curly, (dense)"
    assert clean_words("") == ""


@pytest.mark.parametrize("text", ["<asset1> red", "x" * 121, "a\0"])
def test_words_that_could_pass_for_tokens_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the words"):
        clean_words(text)


def test_face_comes_first_and_unknown_names_last() -> None:
    assert order_assets(["zebra", "shoes", "apron", "face", "shoes"]) == ["face", "shoes", "apron", "zebra"]
