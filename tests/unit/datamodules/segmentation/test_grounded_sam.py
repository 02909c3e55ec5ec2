"""The segmentor of boxes and masks: its decisions with a scripted detector, and all of it with real, tiny models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.segmentation.config import GroundedSamConfig, SegmentorConfig
from datamodules.segmentation.detections import Detection, FloatBox
from datamodules.segmentation.grounded_sam import GroundedSam
from datamodules.segmentation.segmentor import make_segmentor
from modules.errors import UserError
from tests.unit.datamodules.segmentation.tiny_models import save_grounding_dino, save_sam, save_sam2

PERSON = (20.0, 10.0, 60.0, 110.0)
SHIRT, TROUSERS = (20.0, 30.0, 60.0, 70.0), (25.0, 70.0, 55.0, 100.0)
LEFT_SHOE, RIGHT_SHOE, FACE = (20.0, 100.0, 30.0, 110.0), (45.0, 100.0, 60.0, 110.0), (30.0, 10.0, 50.0, 30.0)
STRANGER = (70.0, 20.0, 100.0, 115.0)


def seen(box: FloatBox, **scores: float) -> Detection:
    return Detection(box=box, scores=scores)


WHOLE = [
    seen(PERSON, person=0.9),
    seen(FACE, face=0.7),
    seen(SHIRT, shirt=0.6, jumper=0.3),
    seen(TROUSERS, trousers=0.6),
    seen(LEFT_SHOE, shoes=0.5),
    seen(RIGHT_SHOE, shoes=0.4),
]


class Scripted:
    """Finds what it was told, picture by picture; its masks are whole boxes, one pixel wider on each side."""

    identity = "scripted"

    def __init__(self, *answers: list[Detection]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.working = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self.working = True
        yield
        self.working = False

    def find(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[Detection]]:
        assert self.working
        self.asked.append((len(pictures), tuple(prompts)))
        return [self.answers.pop(0) for _ in pictures]

    def masks(self, picture: np.ndarray, boxes: Sequence[FloatBox]) -> np.ndarray:
        assert self.working
        masks = np.zeros((len(boxes), *picture.shape[:2]), bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            mask[max(0, int(top) - 1) : int(bottom) + 1, max(0, int(left) - 1) : int(right) + 1] = True
        return masks


class PaintedCut:
    def __init__(self, others: FloatBox | None = None) -> None:
        self.other = others
        self.reads = 0

    def pixels(self) -> np.ndarray:
        self.reads += 1
        return np.full((120, 120, 3), 100, np.uint8)

    def others(self) -> np.ndarray:
        mask = np.zeros((120, 120), bool)
        if self.other is not None:
            left, top, right, bottom = (int(edge) for edge in self.other)
            mask[top:bottom, left:right] = True
        return mask


def segmentor(*answers: list[Detection], views: Any = None, **settings: Any) -> GroundedSam:
    config = SegmentorConfig(method="grounded_sam", grounded_sam=GroundedSamConfig(**settings))
    return GroundedSam(Scripted(*answers), Scripted(), config, views)


def test_everybody_is_found_once_and_described():
    photo = np.full((120, 120, 3), 200, np.uint8)
    photo[10:44, 20:60] = (200, 30, 30)
    photo[77:110, 20:60] = (30, 30, 200)
    again = seen((20.0, 10.0, 60.0, 70.0), person=0.5)
    speck = seen((100.0, 5.0, 104.0, 10.0), person=0.8)
    parser = segmentor([seen(STRANGER, person=0.6), seen(PERSON, person=0.9), again, speck])
    subject, stranger = parser.people(photo)
    assert parser.detector.asked == [(1, ("person",))]
    assert subject.box == (20, 10, 60, 110)
    assert stranger.box == (70, 20, 100, 115)
    assert subject.area == pytest.approx(40 * 100 / 120**2)
    assert subject.sharpness > stranger.sharpness
    assert subject.outline.shape == (100, 40)
    assert subject.outline.all()
    assert set(subject.appearance) == {"top", "middle", "bottom"}
    # CIELAB: red against green above, blue against yellow below.
    assert subject.appearance["top"][1] > 40
    assert subject.appearance["bottom"][2] < -40
    assert np.abs(subject.appearance["middle"][1:]).max() < 1


def test_outlines_are_small():
    photo = np.zeros((900, 600, 3), np.uint8)
    (person,) = segmentor([seen((100.0, 50.0, 500.0, 850.0), person=0.9)]).people(photo)
    assert person.outline.shape == (128, 64)


def test_a_photo_without_people():
    assert segmentor([]).people(np.zeros((50, 50, 3), np.uint8)) == []


def test_an_outfit_is_cut_out():
    parser = segmentor(WHOLE, batch_size=2)
    (parts,) = parser.outfit([PaintedCut()])
    assert list(parts.masks) == ["face", "shirt", "trousers", "shoes"]
    assert parser.detector.asked[0][1][:3] == ("person", "face", "hair")
    shoes = parts.masks["shoes"]
    assert shoes[105, 25]
    assert shoes[105, 50]
    assert not shoes[105, 38]
    # Masks end where the person does, whose own reaches one pixel beyond the box.
    assert not any((mask & ~parts.person).any() for mask in parts.masks.values())
    assert parts.person.sum() == 42 * 102
    assert (parts.view, parts.view_confidence) == (None, 0.0)


def test_somebody_else_is_left_out():
    photo = [*WHOLE, seen(STRANGER, person=0.95), seen((72.0, 40.0, 98.0, 80.0), shirt=0.9)]
    (parts,) = segmentor(photo).outfit([PaintedCut(others=STRANGER)])
    assert not parts.person[:, 70:].any()
    assert not parts.masks["shirt"][:, 62:].any()
    # An arm of theirs before the subject is not the subject's.
    (parts,) = segmentor(WHOLE).outfit([PaintedCut(others=(20.0, 40.0, 60.0, 50.0))])
    assert not parts.person[40:50, 20:60].any()
    assert not parts.masks["shirt"][40:50, 20:60].any()
    assert parts.masks["shirt"][55, 40]


def test_a_name_is_the_same_in_all_photos():
    odd = [*WHOLE[:2], seen(SHIRT, jumper=0.7, shirt=0.5)]
    cuts = [PaintedCut() for _ in range(3)]
    parser = segmentor(WHOLE, odd, WHOLE, batch_size=2)
    assert [set(parts.masks) & {"shirt", "jumper"} for parts in parser.outfit(cuts)] == [{"shirt"}] * 3
    assert [number for number, _ in parser.detector.asked] == [2, 1]
    assert [cut.reads for cut in cuts] == [2, 2, 2]


def test_words_of_prompts_become_names_of_assets():
    photo = [seen(PERSON, person=0.9), seen(FACE, sunglasses=0.5, glasses=0.4), seen(SHIRT, hair=0.5)]
    (parts,) = segmentor(photo, prompts=("hair", "glasses", "sunglasses")).outfit([PaintedCut()])
    assert list(parts.masks) == ["haircut", "glasses"]


def test_a_doubtful_face_is_none():
    for score, expected in ((0.34, []), (0.36, ["face"])):
        (parts,) = segmentor([seen(PERSON, person=0.9), seen(FACE, face=score)]).outfit([PaintedCut()])
        assert list(parts.masks) == expected


def test_a_shirt_that_was_taken_for_the_person_does_not_cut_the_rest_away():
    photo = [seen(FACE, person=0.9), *WHOLE[1:]]
    pieces = segmentor(photo).outfit([PaintedCut()])[0]
    assert list(pieces.masks) == ["face"]
    without = segmentor(WHOLE[1:]).outfit([PaintedCut()])[0]
    assert list(without.masks) == ["face", "shirt", "trousers", "shoes"]
    assert (without.person == np.any(list(without.masks.values()), axis=0)).all()


def test_nothing_found_is_nothing_made():
    assert segmentor().outfit([]) == []
    (parts,) = segmentor([]).outfit([PaintedCut()])
    assert parts.masks == {}
    assert parts.person.shape == (120, 120)
    assert not parts.person.any()
    (bare,) = segmentor([seen(PERSON, person=0.9)]).outfit([PaintedCut()])
    assert bare.masks == {}
    assert bare.person.any()


def test_the_direction_of_view_may_come_from_elsewhere():
    parser = segmentor(WHOLE, views=lambda pixels: ("back", 0.7) if pixels.shape == (120, 120, 3) else ("front", 1.0))
    (parts,) = parser.outfit([PaintedCut()])
    assert (parts.view, parts.view_confidence) == ("back", 0.7)


@pytest.mark.parametrize(
    "settings",
    [
        {"box_threshold": 0.3},
        {"text_threshold": 0.3},
        {"face_threshold": 0.5},
        {"prompts": ("face",)},
        {"batch_size": 1},
    ],
)
def test_settings_are_part_of_the_identity(settings):
    assert segmentor().identity == segmentor().identity
    assert segmentor(**settings).identity != segmentor().identity


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ()}, "at least one asset"),
        ({"prompts": ("face", "person")}, "whole persons are looked for anyway"),
        ({"prompts": ("face", "face")}, "twice"),
        ({"prompts": ("a. b",)}, "letters, digits"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, found 'gpu'"),
        ({"precision": "fp16"}, "precision must be"),
        ({"face_threshold": 1.0}, "face_threshold must lie"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        GroundedSamConfig(**settings)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_real_models_from_end_to_end(tmp_path, kind):
    """Random weights find random things; what they find has the right form, and twice the same."""
    save_grounding_dino(tmp_path / "models" / "dino")
    {"sam": save_sam, "sam2": save_sam2}[kind](tmp_path / "models" / kind)
    settings = GroundedSamConfig(detector="models/dino", segmenter=f"models/{kind}", device="cpu", prompts=PROMPTS)
    config = SegmentorConfig(method="grounded_sam", grounded_sam=settings)
    draw = np.random.default_rng(1)

    class Noise(PaintedCut):
        def pixels(self) -> np.ndarray:
            return np.random.default_rng(2).integers(0, 256, (120, 120, 3), np.uint8)

    def run() -> tuple[str, list[Any], list[Any]]:
        parser = make_segmentor(config, tmp_path)
        assert isinstance(parser, GroundedSam)
        return parser.identity, parser.people(photo), list(parser.outfit([Noise(), Noise(others=STRANGER)]))

    photo = draw.integers(0, 256, (100, 140, 3), np.uint8)
    identity, people, outfit = run()
    assert identity.startswith("grounded sam, grounding-dino ")
    for person in people:
        assert 0 <= person.box.left < person.box.right <= 140
        assert 0 <= person.box.top < person.box.bottom <= 100
        assert 0 < person.area <= 1
    assert len(outfit) == 2
    assert any(parts.masks for parts in outfit)
    for parts in outfit:
        assert set(parts.masks) <= {"face", "haircut", "t-shirt", "jacket", "shoes"}
        assert all(mask.shape == (120, 120) and mask.dtype == bool for mask in parts.masks.values())
        assert not any((mask & ~parts.person).any() for mask in parts.masks.values())
    assert not outfit[1].person[20:115, 70:100].any()
    identity_again, people_again, outfit_again = run()
    assert identity_again == identity
    assert [person.box for person in people_again] == [person.box for person in people]
    for first, second in zip(outfit, outfit_again, strict=True):
        assert list(first.masks) == list(second.masks)
        assert all((first.masks[name] == second.masks[name]).all() for name in first.masks)


PROMPTS = ("face", "hair", "t-shirt", "jacket", "shoes")


def test_a_model_that_is_missing_is_named(tmp_path):
    save_sam(tmp_path / "sam")
    settings = GroundedSamConfig(detector="models/dino", segmenter=str(tmp_path / "sam"), device="cpu")
    with pytest.raises(UserError, match=r"grounded_sam\.detector models/dino: .*album\.segmentor\.method=mini"):
        GroundedSam.load(SegmentorConfig(method="grounded_sam", grounded_sam=settings), Path(tmp_path))
