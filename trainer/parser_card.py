"""What a parser can do, measured on people it has never seen: overlap of each part, and how often a view is right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data

from datamodules.contact_sheet import asset_colours, overlay
from datamodules.segmentation.classes import COARSE_PARTS, FINE_CLASSES, VIEW_CLASSES, coarse_table
from datamodules.segmentation.config import SegmentorConfig
from datamodules.segmentation.mini import MiniParser
from datamodules.studio.parser_pictures import held_out_pictures
from modules.parser import IGNORED, ParserNetwork, load_parser
from trainer.prior_card_config import ParserCardConfig

_BATCH = 16
_PARTS = len(COARSE_PARTS) + 1


def run_parser_card(folder: Path, config: ParserCardConfig, out: Path) -> dict[str, Any]:
    """Score the parser in `folder`; writes parser_card.json, parser_card.png (photos, truth, what was found) and
    parser_photograph.png, what it makes of a photograph of a real person (Eileen Collins, NASA, public domain).

    Returns {"pictures": their number, "albums": `score_albums`, "single" and "cluttered": `score_parser` of each photo
    for itself, as the studio takes them and among clutter, bad light and noise}.
    """
    network, _ = load_parser(folder)
    parser = MiniParser.load(folder, SegmentorConfig())
    pictures = held_out_pictures(config.num_people, config.per_person, config.resolution)
    wild = held_out_pictures(config.num_people, config.per_person, config.resolution, wild=True)
    scores = {
        "pictures": len(pictures["pictures"]),
        "albums": score_albums(parser, pictures, config.per_person),
        "single": score_parser(network, pictures, confident=config.min_confidence),
        "cluttered": score_parser(network, wild, confident=config.min_confidence),
    }
    out.mkdir(parents=True, exist_ok=True)
    step = max(1, len(pictures["pictures"]) // config.num_shown)
    shown = {name: values[::step][: config.num_shown] for name, values in pictures.items()}
    Image.fromarray(_sheet(network, shown)).save(out / "parser_card.png")
    Image.fromarray(_photograph(parser)).save(out / "parser_photograph.png")
    (out / "parser_card.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def _photograph(parser: MiniParser) -> np.ndarray:
    photo = data.astronaut()
    parts = parser.outfit([_Cut(photo)])[0]
    painted = overlay(photo, np.stack(list(parts.masks.values()))) if parts.masks else photo
    person = np.repeat(parts.person[..., None], 3, 2).astype(np.uint8) * 255
    return np.concatenate([photo, painted, person], 1)


def _sheet(network: ParserNetwork, pictures: Mapping[str, np.ndarray], columns: int = 12) -> np.ndarray:
    with torch.inference_mode():
        batch = torch.from_numpy(pictures["pictures"]).permute(0, 3, 1, 2).float() / 255
        found = network(batch).logits.argmax(1).numpy()
    colours = np.concatenate([np.zeros((1, 3), np.uint8), asset_colours(len(FINE_CLASSES) - 1)])
    rows = []
    for start in range(0, len(found), columns):
        chosen = slice(start, start + columns)
        for images in (pictures["pictures"][chosen], colours[pictures["classes"][chosen]], colours[found[chosen]]):
            row = np.concatenate(list(images), 1)
            missing = columns * images.shape[2] - row.shape[1]
            rows.append(np.pad(row, ((0, 4), (0, missing), (0, 0)), constant_values=255))
    return np.concatenate(rows)


def score_albums(parser: MiniParser, pictures: Mapping[str, np.ndarray], per_person: int) -> dict[str, Any]:
    """Overlap as albums have it: the photos of a person are parsed together, and agree on what that person wears.

    pictures: as `held_out_pictures` draws them, `per_person` of each. Returns {"iou": {part: ...}, "miou"}.
    """
    confusion = np.zeros((_PARTS, _PARTS), np.int64)
    table = np.asarray(coarse_table())
    for start in range(0, len(pictures["pictures"]), per_person):
        chosen = slice(start, start + per_person)
        cuts = [_Cut(pixels) for pixels in pictures["pictures"][chosen]]
        for parts, truth in zip(parser.outfit(cuts), pictures["classes"][chosen], strict=True):
            found = np.where(parts.person, FINE_CLASSES.index("skin"), 0)
            for name, mask in parts.masks.items():
                found[mask] = FINE_CLASSES.index(name)
            confusion += _confusion(table[truth], table[found])
    return _overlaps(confusion)


class _Cut:
    """A photo of one person alone; a `datamodules.segmentation.segmentor.Cut`."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels

    def pixels(self) -> np.ndarray:
        return self._pixels

    def others(self) -> np.ndarray:
        return np.zeros(self._pixels.shape[:2], bool)


def _confusion(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.bincount((truth * _PARTS + found).ravel(), minlength=_PARTS**2).reshape(_PARTS, _PARTS)


def _overlaps(confusion: np.ndarray) -> dict[str, Any]:
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    iou = {name: float(confusion[i + 1, i + 1] / max(union[i + 1], 1)) for i, name in enumerate(COARSE_PARTS)}
    return {
        "iou": {name: round(value, 4) for name, value in iou.items()},
        "miou": round(float(np.mean(list(iou.values()))), 4),
    }


def score_parser(
    network: ParserNetwork, pictures: Mapping[str, np.ndarray], *, confident: float = 0.7
) -> dict[str, Any]:
    """Scores on pictures as `held_out_pictures` draws them.

    Returns {"iou": {part: intersection over union, of all pixels together}, "miou", "garment_accuracy" (share of the
    garments' pixels that have the right name), "view_accuracy", "view_confident" (share of the photos whose view is
    said with at least `confident`), "view_accuracy_confident", "view_within_45_deg"}.
    """
    table = np.asarray(coarse_table())
    confusion = np.zeros((_PARTS, _PARTS), np.int64)
    views, confidence, fine_right, fine_all = [], [], 0, 0
    garments = np.isin(
        np.arange(len(FINE_CLASSES)),
        [FINE_CLASSES.index(name) for part in ("upper", "lower", "dress") for name in COARSE_PARTS[part]],
    )
    for start in range(0, len(pictures["pictures"]), _BATCH):
        chosen = slice(start, start + _BATCH)
        batch = torch.from_numpy(pictures["pictures"][chosen]).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            output = network(batch.contiguous(memory_format=torch.channels_last))
        found, truth = output.logits.argmax(1).numpy(), pictures["classes"][chosen]
        known = truth != IGNORED
        confusion += _confusion(table[truth[known]], table[found[known]])
        worn = known & garments[np.where(known, truth, 0)]
        fine_right += int((found == truth)[worn].sum())
        fine_all += int(worn.sum())
        view = output.view.softmax(1)
        views.append(view.argmax(1).numpy())
        confidence.append(view.amax(1).numpy())
    said, truth_view, sure = np.concatenate(views), pictures["view"], np.concatenate(confidence) >= confident
    seen = truth_view >= 0
    overhead = len(VIEW_CLASSES) - 1
    level = seen & (truth_view != overhead) & (said != overhead)
    step = np.abs((said - truth_view + 4) % 8 - 4)
    right = (said == truth_view) & seen
    return {
        **_overlaps(confusion),
        "garment_accuracy": round(fine_right / max(fine_all, 1), 4),
        "view_accuracy": round(float(right.sum() / max(seen.sum(), 1)), 4),
        "view_confident": round(float((seen & sure).sum() / max(seen.sum(), 1)), 4),
        "view_accuracy_confident": round(float((right & sure).sum() / max((seen & sure).sum(), 1)), 4),
        "view_within_45_deg": round(float((step[level] <= 1).mean()) if level.any() else 0.0, 4),
    }
