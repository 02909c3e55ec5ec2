"""Who the album is about, and which photos can be left out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from datamodules.segmentation.segmentor import Box, PersonFound
from datamodules.selection import (
    SelectionConfig,
    choose_subject,
    exposure_problem,
    find_duplicates,
    likeness,
    perceptual_hash,
    sharpness,
)

RED, BLUE, GREEN = (np.array(colour, float) for colour in ((53, 80, 67), (32, 79, -108), (46, -52, 50)))


def person(colour: np.ndarray, area: float = 0.2, **parts: np.ndarray) -> PersonFound:
    return PersonFound(
        box=Box(0, 0, 10, 10),
        area=area,
        sharpness=5.0,
        appearance={"upper": colour, **parts} if parts else {"upper": colour},
    )


def test_the_subject_is_who_is_dressed_alike_in_all_photos_and_not_who_is_largest_in_one() -> None:
    people = [
        [person(BLUE, 0.5), person(RED, 0.2)],
        [person(GREEN, 0.3), person(RED + 4, 0.25)],
        [person(RED - 3, 0.3)],
        [],
    ]
    chosen = choose_subject(people, SelectionConfig())
    assert [choice.person for choice in chosen] == [1, 1, 0, None]


def test_a_hint_decides_even_against_the_majority() -> None:
    people = [[person(RED, 0.4), person(BLUE, 0.1)], [person(RED, 0.4), person(BLUE + 5, 0.1)], [person(RED, 0.3)]]
    assert [choice.person for choice in choose_subject(people, SelectionConfig())] == [0, 0, 0]
    assert [choice.person for choice in choose_subject(people, SelectionConfig(), (0, 1))] == [1, 1, None]


def test_a_photo_of_somebody_else_is_left_out_but_not_one_that_cannot_be_compared() -> None:
    shoes_only = PersonFound(box=Box(0, 0, 4, 4), area=0.05, sharpness=5.0, appearance={"shoes": GREEN})
    people = [[person(RED)], [person(RED + 2)], [person(BLUE)], [shoes_only]]
    chosen = choose_subject(people, SelectionConfig())
    assert [choice.person for choice in chosen] == [0, 0, None, 0]
    assert chosen[3].likeness is None


def test_one_photo_of_one_person_is_enough() -> None:
    assert choose_subject([[person(RED)]], SelectionConfig())[0].person == 0
    assert choose_subject([[], []], SelectionConfig())[0].person is None


def test_likeness_is_one_for_equal_looks_and_falls_with_their_distance() -> None:
    assert likeness({"upper": RED}, {"upper": RED}) == pytest.approx(1)
    near, far = likeness({"upper": RED}, {"upper": RED + 10}), likeness({"upper": RED}, {"upper": BLUE})
    assert near is not None
    assert far is not None
    assert 1 > near > 0.4 > far > 0
    assert likeness({"upper": RED}, {"hair": RED}) is None


def test_the_better_of_two_equal_photos_stays_and_a_chain_is_not_dropped_whole() -> None:
    assert find_duplicates([0b0, 0b1, 0b1111_0000], [1.0, 2.0, 0.0], 2) == {0: 1}
    # Each differs from the next by two bits: the ends are different photos.
    assert find_duplicates([0b0, 0b11, 0b1111], [3.0, 2.0, 1.0], 2) == {1: 0}
    assert find_duplicates([5, 5, 5], [1.0, 1.0, 1.0], 0) == {1: 0, 2: 0}


def photo(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(20, 220, (6, 6, 3))
    return gaussian_filter(np.kron(coarse, np.ones((20, 20, 1))), (4, 4, 0)).astype(np.uint8)


def test_copies_in_another_size_have_nearly_the_same_hash_and_other_photos_do_not() -> None:
    first, other = photo(0), photo(1)
    brighter = np.clip(first[::2, ::2].astype(float) * 1.05 + 3, 0, 255).astype(np.uint8)
    assert (perceptual_hash(first) ^ perceptual_hash(brighter)).bit_count() <= 4
    assert (perceptual_hash(first) ^ perceptual_hash(other)).bit_count() > 12


def test_sharpness_does_not_depend_on_the_pixel_count_and_falls_with_blur() -> None:
    sharp = np.kron(np.random.default_rng(2).uniform(0, 255, (24, 24, 1)), np.ones((20, 20, 3))).astype(np.uint8)
    half = sharp[::2, ::2]
    assert sharpness(sharp) == pytest.approx(sharpness(half), rel=0.2)
    blurred = gaussian_filter(sharp.astype(float), (30, 30, 0)).astype(np.uint8)
    assert sharpness(blurred) < 0.2 * sharpness(sharp)
    assert sharpness(np.zeros((2, 50, 3), np.uint8)) == 0


def test_black_and_white_photos_are_named() -> None:
    config = SelectionConfig()
    assert "almost black" in str(exposure_problem(np.zeros((8, 8, 3), np.uint8), config))
    assert "almost white" in str(exposure_problem(np.full((8, 8, 3), 255, np.uint8), config))
    assert exposure_problem(np.full((8, 8, 3), 120, np.uint8), config) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_hash_distance": 40}, "max_hash_distance"),
        ({"min_level": 200.0, "max_level": 100.0}, "min_level"),
        ({"min_area": 1.0}, "min_area"),
        ({"min_sharpness": -1.0}, "min_sharpness"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SelectionConfig(**wrong)
