"""Scores of a parser, and a training that is cut short and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.segmentation.classes import COARSE_PARTS, FINE_CLASSES, VIEW_CLASSES
from datamodules.segmentation.config import SegmentorConfig
from datamodules.segmentation.mini import MiniParser
from datamodules.studio.parser_pictures import held_out_pictures
from modules.parser import ParserOutput, load_parser
from modules.parser_config import ParserConfig
from trainer.parser_card import run_parser_card, score_albums, score_parser
from trainer.parser_training import run_parser_training
from trainer.parser_training_config import ParserTrainingConfig
from trainer.prior_card_config import ParserCardConfig
from trainer.runtime import RuntimeConfig

TINY = ParserConfig(
    channels=(8, 8, 8, 8),
    blocks=(1, 1, 1, 1),
    decoder_channels=(8, 8, 8),
    resolutions=(32,),
    num_images=24,
    batch_size=4,
)
INDEX = {name: index for index, name in enumerate(FINE_CLASSES)}


class Oracle(torch.nn.Module):
    """Reads the classes from the red channel, thinks of a skirt when it sees a dress, and looks from the front."""

    def forward(self, pictures: Tensor) -> ParserOutput:
        classes = (pictures[:, 0] * 255 / 15).round().long().clamp(max=len(FINE_CLASSES) - 1)
        logits = torch.nn.functional.one_hot(classes, len(FINE_CLASSES)).permute(0, 3, 1, 2).float() * 20
        logits[:, INDEX["skirt"]] += 5 * (classes == INDEX["dress"])
        view = torch.zeros(len(pictures), len(VIEW_CLASSES))
        view[:, 0] = 20
        return ParserOutput(logits, view)


def pictures(classes: np.ndarray, views: list[int]) -> dict[str, np.ndarray]:
    painted = np.repeat((classes * 15).astype(np.uint8)[..., None], 3, 3)
    return {"pictures": painted, "classes": classes.astype(np.uint8), "view": np.array(views)}


def test_a_perfect_parser_scores_one_and_a_shifted_truth_less() -> None:
    classes = np.zeros((2, 32, 32), np.uint8)
    for row, name in enumerate(FINE_CLASSES[1:]):
        classes[:, 2 * row : 2 * row + 2, 4:20] = INDEX[name]
    right = score_parser(Oracle(), pictures(classes, [0, 0]))  # type: ignore[arg-type]
    assert right["miou"] == 1
    assert right["garment_accuracy"] == 1
    assert (right["view_accuracy"], right["view_within_45_deg"]) == (1, 1)
    moved = pictures(classes, [1, 4])
    moved["classes"] = np.roll(moved["classes"], 8, 2)
    wrong = score_parser(Oracle(), moved)  # type: ignore[arg-type]
    # Each stripe of 16 columns keeps 8 of them: 8 of 24 in the union.
    assert wrong["iou"]["face"] == round(1 / 3, 4)
    assert (wrong["view_accuracy"], wrong["view_within_45_deg"]) == (0, 0.5)
    mixed = pictures(classes, [0, 0])
    mixed["classes"] = np.where(classes == INDEX["shirt"], INDEX["jumper"], classes)
    named = score_parser(Oracle(), mixed)  # type: ignore[arg-type]
    assert named["miou"] == 1, "both are worn above"
    assert named["garment_accuracy"] < 1


def test_an_album_agrees_on_its_garments() -> None:
    classes = np.zeros((3, 64, 64), np.uint8)
    classes[:, 4:14, 20:40] = INDEX["face"]
    classes[:, 14:40, 10:50] = INDEX["shirt"]
    classes[:, 40:60, 15:45] = INDEX["skirt"]
    truth = pictures(classes, [0, 0, 0])
    # One photo takes the skirt for a dress; the others decide.
    truth["pictures"][0, 40:60, 15:45] = INDEX["dress"] * 15
    parser = MiniParser(Oracle(), "oracle", SegmentorConfig(side_px=64, photo_px=64))  # type: ignore[arg-type]
    scores = score_albums(parser, truth, 3)
    assert scores["iou"]["lower"] == 1
    assert set(scores["iou"]) == set(COARSE_PARTS)


def training(**changes: object) -> ParserTrainingConfig:
    runtime = RuntimeConfig(accelerator="cpu", precision="32-true", num_threads=1, checkpoint_every_steps=2)
    return ParserTrainingConfig(**({"processes": 1, "parser": TINY, "runtime": runtime} | changes))  # type: ignore[arg-type]


def test_a_training_exports_goes_on_and_is_carded(tmp_path: Path) -> None:
    folder = run_parser_training(training(), tmp_path / "run")
    assert json.loads((folder / "config.json").read_text())["images_seen"] == 24
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run_parser_training(training(), tmp_path / "run") == folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == before, "nothing is left to do"
    warm = run_parser_training(training(warm_start=str(folder), seed=3), tmp_path / "warm")
    assert not np.array_equal(*(load_parser(one)[0].stem.weight.detach().numpy() for one in (folder, warm)))
    config = ParserCardConfig(num_people=2, per_person=2, resolution=48, num_shown=3)
    scores = run_parser_card(folder, config, tmp_path / "card")
    assert scores["pictures"] == 4
    assert set(scores) == {"pictures", "albums", "single", "cluttered"}
    assert json.loads((tmp_path / "card" / "parser_card.json").read_text()) == scores
    assert all((tmp_path / "card" / name).stat().st_size > 0 for name in ("parser_card.png", "parser_photograph.png"))


def test_held_out_scores_do_not_depend_on_the_batch() -> None:
    drawn = held_out_pictures(2, 9, 32)
    whole = score_parser(Oracle(), drawn)  # type: ignore[arg-type]
    assert 0 <= whole["miou"] <= 1
    assert whole["view_accuracy"] == round(float((drawn["view"] == 0).mean()), 4)
