"""The mini parser as a segmentor, with a network that reads classes from colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.segmentation.classes import FINE_CLASSES, VIEW_CLASSES, coarse_table
from datamodules.segmentation.config import SegmentorConfig
from datamodules.segmentation.mini import MiniParser
from modules.errors import UserError
from modules.parser import ParserModule, ParserOutput
from modules.parser_config import ParserConfig

INDEX = {name: index for index, name in enumerate(FINE_CLASSES)}
CONFIG = SegmentorConfig(side_px=64, photo_px=128)


def grey(name: str) -> int:
    """The grey level that stands for a class."""
    return INDEX[name] * 15


class Painted(torch.nn.Module):
    """Reads the class from the red channel; looks left when the picture's left half is the brighter one in green."""

    def forward(self, pictures: Tensor) -> ParserOutput:
        classes = (pictures[:, 0] * 255 / 15).round().long().clamp(0, len(FINE_CLASSES) - 1)
        logits = torch.nn.functional.one_hot(classes, len(FINE_CLASSES)).permute(0, 3, 1, 2).float() * 8
        middle = pictures.shape[-1] // 2
        left = pictures[:, 1, :, :middle].mean((1, 2)) > pictures[:, 1, :, middle:].mean((1, 2))
        view = torch.zeros(len(pictures), len(VIEW_CLASSES))
        view[
            torch.arange(len(pictures)), torch.where(left, VIEW_CLASSES.index("left"), VIEW_CLASSES.index("right"))
        ] = 9
        return ParserOutput(logits, view)


def parser(**changes: object) -> MiniParser:
    return MiniParser(Painted(), "painted", SegmentorConfig(**({"side_px": 64, "photo_px": 128} | changes)))  # type: ignore[arg-type]


def paint(*parts: tuple[str, int, int, int, int], size: int = 64) -> np.ndarray:
    """Black with rectangles (class, left, top, right, bottom) of the class's grey level."""
    image = np.zeros((size, size, 3), np.uint8)
    for name, left, top, right, bottom in parts:
        image[top:bottom, left:right] = grey(name)
    return image


def body(left: int, top: int, upper: str = "shirt", lower: str = "trousers") -> list[tuple[str, int, int, int, int]]:
    """Somebody 12 pixels wide and 40 high."""
    return [
        ("haircut", left + 3, top, left + 9, top + 3),
        ("face", left + 3, top + 3, left + 9, top + 10),
        (upper, left, top + 10, left + 12, top + 25),
        (lower, left + 2, top + 25, left + 10, top + 37),
        ("shoes", left + 2, top + 37, left + 10, top + 40),
    ]


class Cut:
    def __init__(self, pixels: np.ndarray, others: np.ndarray | None = None) -> None:
        self._pixels = pixels
        self._others = np.zeros(pixels.shape[:2], bool) if others is None else others

    def pixels(self) -> np.ndarray:
        return self._pixels

    def others(self) -> np.ndarray:
        return self._others


def test_people_are_told_apart_largest_first() -> None:
    small = [("face", 50, 4, 56, 10), ("shirt", 48, 10, 58, 22)]
    found = parser().people(paint(*body(6, 8), *small))
    assert [tuple(person.box) for person in found] == [(6, 8, 18, 48), (48, 4, 58, 22)]
    assert found[0].area > found[1].area
    assert set(found[0].appearance) == {"hair", "face", "upper", "lower", "shoes"}
    assert found[0].outline.shape == (40, 12)


def test_loose_parts_go_to_the_nearest_head() -> None:
    hand = ("skin", 20, 30, 24, 34)
    far = ("skin", 56, 58, 62, 63)
    found = parser().people(paint(*body(6, 8), hand, far))
    assert len(found) == 1
    assert tuple(found[0].box) == (6, 8, 24, 48)


def test_legs_without_a_head_are_one_person() -> None:
    found = parser().people(paint(("trousers", 10, 5, 20, 50), ("trousers", 30, 5, 40, 50)))
    assert len(found) == 1
    assert tuple(found[0].box) == (10, 5, 40, 50)
    assert parser().people(paint(("face", 2, 2, 4, 4))) == []


def test_boxes_are_pixels_of_the_photo_whatever_its_size() -> None:
    photo = np.kron(paint(*body(6, 8)), np.ones((2, 2, 1), np.uint8))[:, :100]
    box = parser().people(photo)[0].box
    assert np.abs(np.array(box) - (12, 16, 36, 96)).max() <= 2


def test_a_garment_has_one_name_in_the_whole_album() -> None:
    cuts = [Cut(paint(*body(20, 10))) for _ in range(3)] + [Cut(paint(*body(20, 10, upper="jumper", lower="shorts")))]
    for parts in parser().outfit(cuts):
        assert set(parts.masks) == {"face", "haircut", "shirt", "trousers", "shoes"}
        assert parts.masks["shirt"].sum() == 12 * 15


def test_a_jacket_over_a_shirt_is_two_garments() -> None:
    layered = [*body(20, 10), ("jacket", 20, 20, 24, 35), ("jacket", 28, 20, 32, 35)]
    parts = parser().outfit([Cut(paint(*layered))])[0]
    assert {"shirt", "jacket"} <= set(parts.masks)


def test_a_dress_ends_the_search_for_trousers_and_the_other_way_round() -> None:
    dress = body(20, 10, upper="dress", lower="dress")
    cuts = [Cut(paint(*dress)), Cut(paint(*body(20, 10, upper="dress", lower="skirt")))]
    for parts in parser().outfit(cuts):
        assert "dress" in parts.masks
        assert not {"skirt", "shirt"} & set(parts.masks)
    cuts = [Cut(paint(*body(20, 10))) for _ in range(4)] + [Cut(paint(*dress))]
    assert all("dress" not in parts.masks for parts in parser().outfit(cuts))


def test_a_few_mistaken_pixels_make_no_cap() -> None:
    parts = parser().outfit([Cut(paint(*body(20, 10), ("cap", 23, 10, 24, 12)))])[0]
    assert "cap" not in parts.masks
    capped = parser().outfit([Cut(paint(*body(20, 10), ("cap", 23, 10, 29, 13)))])[0]
    assert "cap" in capped.masks


def test_a_hand_that_was_taken_for_a_face_is_skin() -> None:
    parts = parser().outfit([Cut(paint(*body(20, 10), ("face", 32, 30, 36, 34)))])[0]
    assert not parts.masks["face"][28:].any()
    assert parts.person[30:34, 32:36].all()


def test_other_people_are_in_no_mask() -> None:
    others = np.zeros((64, 64), bool)
    others[:, 40:] = True
    parts = parser().outfit([Cut(paint(*body(20, 10), *body(45, 10)), others)])[0]
    assert not parts.person[:, 40:].any()
    assert not parts.masks["shirt"][:, 40:].any()


def test_masks_have_the_size_of_the_cut_and_specks_are_gone() -> None:
    photo = np.kron(paint(*body(20, 10), ("trousers", 2, 2, 3, 3)), np.ones((2, 2, 1), np.uint8))
    parts = parser().outfit([Cut(photo)])[0]
    assert parts.masks["trousers"].shape == (128, 128)
    assert not parts.masks["trousers"][:10].any()


def test_the_view_agrees_with_the_mirror_image() -> None:
    photo = paint(*body(20, 10))
    photo[:, :32, 1] = 200
    parts = parser().outfit([Cut(photo)])[0]
    # The mirror image looks right, which is left again after mirroring.
    assert parts.view == "left"
    assert parts.view_confidence > 0.9
    assert parser().view(photo) == (parts.view, parts.view_confidence)


def test_weights_are_loaded_and_named(tmp_path: Path) -> None:
    tiny = ParserConfig(channels=(8, 8, 8, 8), blocks=(1, 1, 1, 1), decoder_channels=(8, 8, 8))
    frequency = [1 / len(FINE_CLASSES)] * len(FINE_CLASSES)
    ParserModule(tiny, FINE_CLASSES, coarse_table(), frequency).export(tmp_path / "a")
    loaded = MiniParser.load(tmp_path / "a", CONFIG)
    assert "mini parser" in loaded.identity
    assert isinstance(loaded.people(paint(*body(6, 8))), list)
    ParserModule(tiny, ("background", "x"), (0, 1), (0.5, 0.5)).export(tmp_path / "b")
    with pytest.raises(UserError, match="parser of the classes background, x"):
        MiniParser.load(tmp_path / "b", CONFIG)
    with pytest.raises(UserError, match="is missing"):
        MiniParser.load(tmp_path / "c", CONFIG)
