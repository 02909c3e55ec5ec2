"""The rules that judge a prior, tried on what they must recognise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodules.studio.vocabulary import COLORS
from trainer.prior_card import VIEWS, color_of_chest, prompt, rendered_reference, run_card, view_of_head
from trainer.prior_card_config import CardConfig


@pytest.mark.parametrize("color", list(COLORS))
def test_the_colour_rule_recognises_the_studios_shirts(color: str) -> None:
    assert color_of_chest(rendered_reference(color, "front", 3, 64)) == color


@pytest.mark.parametrize("view", list(VIEWS))
def test_the_view_rule_recognises_the_studios_people(view: str) -> None:
    assert view_of_head(rendered_reference("red", view, 5, 64)) == view


def test_the_rules_do_not_see_people_in_noise() -> None:
    noise = np.random.default_rng(0).random((64, 64, 3))
    hits = sum(color_of_chest(np.roll(noise, shift, 0)) == "red" for shift in range(0, 64, 4))
    assert hits < 4


def test_the_prompt_names_colour_and_view() -> None:
    words = prompt("red", "back")
    assert "red t-shirt" in words
    assert "back view" in words


def test_a_card_of_an_untrained_model_is_bad_and_complete(tmp_path: Path) -> None:
    from tests.tiny_backbone import load_tiny_backbone, write_tiny_backbone

    backbone = load_tiny_backbone(write_tiny_backbone(tmp_path / "tiny"))
    figures = run_card(backbone, CardConfig(num_seeds=1, num_people=2, num_steps=2), tmp_path / "card")
    assert set(figures) == {
        "held_out_loss",
        "colour_accuracy",
        "colour_rule_accuracy",
        "view_accuracy",
        "view_rule_accuracy",
    }
    assert figures["colour_accuracy"] < 0.5
    assert (tmp_path / "card" / "samples.png").stat().st_size > 0


def test_configuration_ranges() -> None:
    with pytest.raises(ValueError, match="num_seeds must be at least 1, found 0"):
        CardConfig(num_seeds=0)
