"""From the scores of an open-vocabulary detector to named boxes; numbers only, no network.

Q boxes, T tokens of the text. Boxes are (left, top, right, bottom) in pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FloatBox = tuple[float, float, float, float]
STOP = "."


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A box and what may be in it. scores: prompt to score in [0, 1], greatest first, never empty."""

    box: FloatBox
    scores: Mapping[str, float]

    @property
    def name(self) -> str:
        """The prompt that fits best."""
        return next(iter(self.scores))

    @property
    def score(self) -> float:
        """How well it fits."""
        return self.scores[self.name]


def prompt_text(prompts: Iterable[str]) -> str:
    """What GroundingDINO is asked: phrases in lower case, a period after each."""
    return " ".join(f"{prompt.lower()}{STOP}" for prompt in prompts)


def prompt_positions(tokens: Sequence[int], stop: int, special: Collection[int]) -> list[list[int]]:
    """Where in the tokens of `prompt_text` each prompt stands.

    tokens: ids. stop: id of the period. special: ids of what a tokenizer puts before, behind and for padding. Positions
    are exact where spelling is not: a tokenizer makes "t - shirt" of "t-shirt", and "shirt" is a word of both.
    """
    positions: list[list[int]] = []
    current: list[int] = []
    for position, token in enumerate(tokens):
        if token == stop:
            positions.append(current)
            current = []
        elif token not in special:
            current.append(position)
    return positions


def read_detections(
    probabilities: np.ndarray,
    boxes: np.ndarray,
    positions: Sequence[Sequence[int]],
    prompts: Sequence[str],
    *,
    box_threshold: float,
    text_threshold: float,
    size: tuple[int, int],
) -> list[Detection]:
    """The boxes that some prompt fits, best first.

    probabilities: (Q, T) in [0, 1], of each box to be what a token says. boxes: (Q, 4) centre x, centre y, width and
    height as fractions of the picture. positions: of each prompt's tokens. size: (height, width) in pixels.
    As in GroundingDINO's release, a box counts when a token exceeds `box_threshold`, and a prompt is meant when one of
    its tokens exceeds `text_threshold`. Which of those fits best is decided by the mean over all its tokens, as in its
    evaluation: "shirt" alone does not make a t-shirt, nor "top" a tank top.
    """
    height, width = size
    found = []
    for row, (x, y, w, h) in zip(probabilities, boxes.astype(float) * (width, height, width, height), strict=True):
        if not row.max() > box_threshold:
            continue
        scores = {
            prompt: float(np.mean(row[list(where)]))
            for prompt, where in zip(prompts, positions, strict=True)
            if row[list(where)].max() > text_threshold
        }
        left, right = np.clip((x - w / 2, x + w / 2), 0, width)
        top, bottom = np.clip((y - h / 2, y + h / 2), 0, height)
        if scores and right - left >= 1 and bottom - top >= 1:
            ranked = dict(sorted(scores.items(), key=lambda item: -item[1]))
            found.append(Detection(box=(float(left), float(top), float(right), float(bottom)), scores=ranked))
    return sorted(found, key=lambda detection: -detection.score)


def area(box: FloatBox) -> float:
    """In square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def common_area(first: FloatBox, second: FloatBox) -> float:
    """Area of the intersection in square pixels."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def suppress(detections: Iterable[Detection], max_overlap: float) -> list[Detection]:
    """Best first, without those whose intersection with a better one exceeds `max_overlap` of the union of the two."""
    kept: list[Detection] = []
    for detection in sorted(detections, key=lambda one: -one.score):
        shared = [(common_area(detection.box, other.box), area(other.box)) for other in kept]
        if all(both <= max_overlap * (area(detection.box) + size - both) for both, size in shared):
            kept.append(detection)
    return kept


def share_inside(box: FloatBox, mask: np.ndarray) -> float:
    """Share of a box's pixels that a mask (H, W) bool holds."""
    left, top = int(box[0]), int(box[1])
    inside = mask[top : max(top + 1, round(box[3])), left : max(left + 1, round(box[2]))]
    return float(inside.mean()) if inside.size else 0.0
