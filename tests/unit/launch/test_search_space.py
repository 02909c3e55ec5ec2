"""Search spaces: what a file may say, what is drawn, and how a point is changed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from launch.search_space import (
    Dimension,
    change_point,
    check_dimensions,
    draw_points,
    parse_dimension,
    point_words,
    word,
)
from modules.errors import UserError
from trainer.config import load_config

RANK = Dimension(key="booth.adapter.rank", kind="values", values=(2, 4, 8))
RATE = Dimension(key="geometry.lr", kind="log_uniform", low=1e-4, high=1e-2)
STEPS = Dimension(key="geometry.steps", kind="int_uniform", low=10, high=12)
SHARE = Dimension(key="booth.compose_fraction", kind="uniform", low=0.25, high=0.75)
PLAIN = Dimension(key="baselines", kind="fixed", values=(False,))
ALL = (RANK, RATE, STEPS, SHARE, PLAIN)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"values": [1, 2]}, ("values", (1, 2), 0, 0)),
        ({"min": 1, "max": 3}, ("uniform", (), 1, 3)),
        ({"min": 1e-4, "max": 1, "distribution": "log_uniform"}, ("log_uniform", (), 1e-4, 1)),
        ({"min": 1, "max": 3, "distribution": "int_uniform"}, ("int_uniform", (), 1, 3)),
        (0.5, ("fixed", (0.5,), 0, 0)),
        ("sds", ("fixed", ("sds",), 0, 0)),
    ],
)
def test_what_a_file_may_say(said: Any, expected: tuple) -> None:
    found = parse_dimension("key", said, "'file'")
    assert (found.kind, found.values, found.low, found.high) == expected


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"values": []}, r"'key' has values \[\], expected a list"),
        ({"values": "ab"}, "has values 'ab', expected a list"),
        ({"min": 1}, "'key' has min, expected `values`, or"),
        ({}, "'key' has nothing, expected"),
        ({"min": 1, "max": 2, "distribution": "normal"}, "has distribution 'normal', expected one of uniform"),
        ({"min": "1e-4", "max": 2}, "goes from '1e-4' to 2, expected numbers"),
        ({"min": 1.5, "max": 2, "distribution": "int_uniform"}, "expected whole numbers"),
        ({"min": True, "max": 2}, "expected numbers"),
        ({"min": 2, "max": 2}, "goes from 2 to 2, expected min below max"),
        ({"min": 0, "max": 2, "distribution": "log_uniform"}, "expected min above 0 and min below max"),
        ({"min": 0, "max": float("inf")}, "expected numbers"),
    ],
)
def test_mistakes_in_a_dimension(said: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"'file': .*{message}"):
        parse_dimension("key", said, "'file'")


def test_points_are_within_their_ranges_and_repeat_with_the_seed() -> None:
    points = draw_points(ALL, 200, seed=1)
    assert points == draw_points(ALL, 200, seed=1) != draw_points(ALL, 200, seed=2)
    assert {point["booth.adapter.rank"] for point in points} == {2, 4, 8}
    assert {point["geometry.steps"] for point in points} == {10, 11, 12}
    assert {point["baselines"] for point in points} == {False}
    assert all(0.25 <= point["booth.compose_fraction"] <= 0.75 for point in points)
    rates = [point["geometry.lr"] for point in points]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    # Uniform in the logarithm: about half of them lie below the geometric mean.
    assert 70 < sum(rate < 1e-3 for rate in rates) < 130


def test_a_small_space_gives_each_point_once() -> None:
    points = draw_points([RANK, PLAIN], 10, seed=0)
    assert sorted(point["booth.adapter.rank"] for point in points) == [2, 4, 8]


def test_changed_points_are_near_and_stay_within_their_ranges() -> None:
    generator = random.Random(0)
    point = {"booth.adapter.rank": 4, "geometry.lr": 1e-2, "geometry.steps": 12, "booth.compose_fraction": 0.5}
    point["baselines"] = False
    changed = [change_point(ALL, point, generator, resample=0) for _ in range(40)]
    assert {found["booth.adapter.rank"] for found in changed} == {2, 8}
    assert {found["geometry.lr"] for found in changed} == {0.8e-2, 1e-2}
    assert {found["geometry.steps"] for found in changed} == {10, 12}
    assert {found["booth.compose_fraction"] for found in changed} == {0.4, 0.6}
    assert not any(found["baselines"] for found in changed)
    drawn = [change_point(ALL, point, generator, resample=1)["geometry.lr"] for _ in range(40)]
    assert len(set(drawn)) > 30


@pytest.mark.parametrize("value", ["sds", "a, b", "true", "12", "", "x: y", None, True, 3, 1e-5, [0.2, 0.8]])
def test_words_are_read_back_as_they_were(value: Any) -> None:
    from omegaconf import OmegaConf

    assert OmegaConf.to_container(OmegaConf.from_dotlist([word("key", value)])) == {"key": value}


def test_a_point_is_what_the_configuration_holds() -> None:
    config = load_config("mini", point_words({"geometry.lr": 2e-4, "texture.guidance.method": "asd"}))
    assert (config.geometry.lr, config.texture.guidance.method) == (2e-4, "asd")


def test_every_value_is_tried_on_the_configuration() -> None:
    # Only with `baselines` fixed can a stage be distilled from the truth.
    method = Dimension(key="geometry.guidance.method", kind="values", values=("sds", "truth"))
    check_dimensions([PLAIN, method], "'file'", config="mini")
    with pytest.raises(
        UserError, match=r"'file': 'geometry.guidance.method' cannot be 'truth': baselines must be false"
    ):
        check_dimensions([method], "'file'", config="mini")
    with pytest.raises(
        UserError, match=r"'file': 'geometry.steps' cannot be -4: In section 'geometry': steps must not"
    ):
        check_dimensions([Dimension(key="geometry.steps", kind="int_uniform", low=-4, high=3)], "'file'")
    with pytest.raises(UserError, match=r"Unknown key 'boot' in the search space. Did you mean 'booth'"):
        check_dimensions([Dimension(key="boot.lr", kind="fixed", values=(1,))], "'file'")
    with pytest.raises(UserError, match="'seed' cannot be searched, since it is mine"):
        check_dimensions([Dimension(key="seed", kind="fixed", values=(1,))], "'file'", reserved={"seed": "it is mine"})
