"""Scores of a detector to named boxes."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.segmentation.detections import (
    Detection,
    common_area,
    prompt_positions,
    prompt_text,
    read_detections,
    share_inside,
    suppress,
)

CLS, SEP, PAD, STOP = 101, 102, 0, 1012
# "[CLS] t - shirt . shirt . tank top . [SEP] [PAD]"
PROMPTS = ("t-shirt", "shirt", "tank top")
TOKENS = [CLS, 10, 11, 12, STOP, 12, STOP, 20, 21, STOP, SEP, PAD]
POSITIONS = [[1, 2, 3], [5], [7, 8]]
MIDDLE = (0.5, 0.5, 0.5, 0.5)


def read(rows: list[dict[int, float]], boxes: list[tuple[float, ...]]) -> list[Detection]:
    """Rows of {position: probability} in a picture of 100 x 200 pixels."""
    probabilities = np.zeros((len(rows), 256), np.float32)
    for row, values in zip(probabilities, rows, strict=True):
        for position, value in values.items():
            row[position] = value
    return read_detections(
        probabilities,
        np.array(boxes, np.float32),
        POSITIONS,
        PROMPTS,
        box_threshold=0.20,
        text_threshold=0.25,
        size=(100, 200),
    )


def box(left: float, top: float, right: float, bottom: float, score: float = 0.5, name: str = "cap") -> Detection:
    return Detection(box=(left, top, right, bottom), scores={name: score})


def test_prompts_become_phrases_and_are_found_again():
    assert prompt_text(("Face", "tank top")) == "face. tank top."
    assert prompt_positions(TOKENS, STOP, {CLS, SEP, PAD}) == POSITIONS
    assert prompt_positions([CLS, STOP, SEP], STOP, {CLS, SEP}) == [[]]


def test_a_word_of_two_prompts_counts_where_it_stands():
    only_shirt, all_of_t_shirt, top = read(
        [{3: 0.6, 5: 0.5}, {1: 0.5, 2: 0.4, 3: 0.6, 5: 0.45}, {8: 0.9, 5: 0.5}], [MIDDLE] * 3
    )
    # Sorted by score: .5, .5, .5 keep their order.
    assert only_shirt.name == "shirt"
    assert dict(only_shirt.scores) == {"shirt": pytest.approx(0.5), "t-shirt": pytest.approx(0.2)}
    assert all_of_t_shirt.name == "t-shirt"
    assert top.scores == {"shirt": pytest.approx(0.5), "tank top": pytest.approx(0.45)}


def test_boxes_are_in_pixels_best_first_and_inside_the_picture():
    weak, strong = {5: 0.3}, {5: 0.8}
    found = read([weak, strong], [(0.25, 0.5, 0.1, 0.2), (0.9, 0.1, 0.4, 0.4)])
    np.testing.assert_allclose(found[0].box, (140, 0, 200, 30), atol=1e-4)
    np.testing.assert_allclose(found[1].box, (40, 40, 60, 60), atol=1e-4)
    assert [one.score for one in found] == pytest.approx([0.8, 0.3])


def test_what_no_prompt_fits_is_left_out():
    # Under the box's threshold; under the text's; a period; out of the picture.
    rows = [{5: 0.19}, {5: 0.22}, {4: 0.9}, {5: 0.9}]
    assert read(rows, [MIDDLE, MIDDLE, MIDDLE, (1.5, 0.5, 0.2, 0.2)]) == []


def test_of_boxes_that_share_most_of_their_area_the_best_stays():
    best, same, beside, apart = box(0, 0, 10, 10, 0.9), box(0, 0, 10, 8, 0.8), box(0, 0, 10, 5, 0.7), box(20, 0, 30, 10)
    assert suppress([same, apart, best, beside], 0.7) == [best, beside, apart]
    assert suppress([same, best, beside], 0.4) == [best]
    assert suppress([], 0.7) == []


def test_areas_of_boxes():
    assert common_area((0, 0, 10, 10), (5, 8, 20, 20)) == 10
    assert common_area((0, 0, 10, 10), (12, 12, 20, 20)) == 0
    mask = np.zeros((10, 10), bool)
    mask[:, :5] = True
    assert share_inside((0, 0, 10, 10), mask) == 0.5
    assert share_inside((5, 0, 9.9, 10), mask) == 0
    assert share_inside((4.2, 4.2, 4.4, 4.4), mask) == 1
