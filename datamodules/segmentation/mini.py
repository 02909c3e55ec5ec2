"""The mini parser as a segmentor: trained in the studio, shipped with the project, fast on a CPU.

N photos, C classes (`FINE_CLASSES`). It tells people apart by where their pixels hang together, so that two who touch
count as one; GroundingDINO with SAM does better there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import binary_dilation, label
from skimage.color import rgb2lab

from datamodules.segmentation.classes import COARSE_PARTS, FINE_CLASSES, HEAD_CLASSES, VIEW_CLASSES, coarse_table
from datamodules.segmentation.config import SegmentorConfig
from datamodules.segmentation.segmentor import Box, Cut, Parts, PersonFound
from datamodules.selection import sharpness
from modules.errors import UserError
from modules.parser import ParserNetwork, load_parser

_STRIDE = 16
# Of the photo: what is smaller is a bystander far away, or a mistake.
_MIN_AREA = 0.004
# A loose part further than this fraction of a person's height from them is not theirs.
_REACH = 0.25
# Shares of the head by which hair and a cap count as there at all, and not as a few mistaken pixels.
_MIN_HAIR, _MIN_CAP = 0.05, 0.1
_SPECK = 0.03

_INDEX = {name: index for index, name in enumerate(FINE_CLASSES)}
_GARMENT_PARTS = ("upper", "lower", "dress")
_HEAD = [_INDEX[name] for name in HEAD_CLASSES]
_MIRRORED_VIEWS = [0, 7, 6, 5, 4, 3, 2, 1, 8]


class MiniParser:
    """A `datamodules.segmentation.segmentor.Segmentor`. identity: holds the hash of the weights."""

    def __init__(self, network: ParserNetwork, identity: str, config: SegmentorConfig) -> None:
        self.network = network
        self.config = config
        self.identity = identity

    @classmethod
    def load(cls, folder: Path, config: SegmentorConfig) -> MiniParser:
        """Raises UserError when the folder holds no intact parser, or one of other classes."""
        network, names = load_parser(folder)
        if names != FINE_CLASSES:
            raise UserError(
                f"{folder} holds a parser of the classes {', '.join(names)}, but {', '.join(FINE_CLASSES)} were "
                f"expected; train it again with this version"
            )
        digest = hashlib.sha256((folder / "parser.safetensors").read_bytes()).hexdigest()
        return cls(network, f"mini parser {digest[:16]}, {config.side_px} px, {config.least_share:g}", config)

    def people(self, photo: np.ndarray) -> list[PersonFound]:
        probability, _ = self._look(photo, mirrored=False)
        classes = probability.argmax(0)
        height, width = photo.shape[:2]
        rows, columns = classes.shape
        small = np.asarray(Image.fromarray(photo).resize((columns, rows), Image.Resampling.BOX))
        lab = rgb2lab(small)
        found = []
        for mask in _people_masks(classes):
            ys, xs = np.nonzero(mask)
            top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
            box = Box(
                int(left * width / columns),
                int(top * height / rows),
                max(1, round(right * width / columns)),
                max(1, round(bottom * height / rows)),
            )
            part = np.asarray(coarse_table())[classes]
            appearance = {}
            for index, name in enumerate(COARSE_PARTS):
                inside = mask & (part == index + 1)
                if inside.sum() >= 12:
                    appearance[name] = np.median(lab[inside], 0)
            found.append(
                PersonFound(
                    box=box,
                    area=float(mask.mean()),
                    sharpness=sharpness(photo[box.top : box.bottom, box.left : box.right]),
                    appearance=appearance,
                    outline=mask[top:bottom, left:right].copy(),
                )
            )
        return sorted(found, key=lambda person: -person.area)

    def view(self, photo: np.ndarray) -> tuple[str, float]:
        """The direction from which a person was photographed, one of VIEW_CLASSES, and its probability."""
        _, view = self._look(photo)
        best = int(view.argmax())
        return VIEW_CLASSES[best], float(view[best])

    def outfit(self, cuts: Sequence[Cut]) -> list[Parts]:
        evidence, seen = [], []
        for cut in cuts:
            probability, _ = self._look(cut.pixels())
            classes = probability.argmax(0)
            theirs = classes > 0
            if theirs.any():
                # Photos count alike, however large the person is in them.
                evidence.append((probability * theirs).sum((1, 2)) / theirs.sum())
                seen.append(np.bincount(classes[theirs], minlength=len(FINE_CLASSES)) / theirs.sum())
        nothing = np.zeros((1, len(FINE_CLASSES)))
        reassigned = outfit_table(np.array(evidence or nothing), np.array(seen or nothing), self.config.least_share)
        return [self._parts(cut, reassigned) for cut in cuts]

    def _parts(self, cut: Cut, reassigned: np.ndarray) -> Parts:
        pixels, others = cut.pixels(), cut.others()
        probability, view = self._look(pixels)
        theirs = probability.argmax(0) > 0
        allowed = np.einsum("cd,chw->dhw", reassigned, probability)
        # What was taken for a garment that the outfit does not have is another one, and not the background.
        allowed[0] = np.where(theirs, np.minimum(allowed[0], 1e-6), allowed[0])
        full = F.interpolate(
            torch.from_numpy(allowed)[None].float(), size=pixels.shape[:2], mode="bilinear", align_corners=False
        )[0]
        classes = full.argmax(0).numpy()
        classes[others] = 0
        classes = _one_head(classes)
        masks = {}
        for name, index in _INDEX.items():
            if name not in ("background", "skin"):
                mask = _without_specks(classes == index)
                if mask.any():
                    masks[name] = mask
        best = int(view.argmax())
        return Parts(
            masks=masks, person=_without_specks(classes > 0), view=VIEW_CLASSES[best], view_confidence=float(view[best])
        )

    def _look(self, photo: np.ndarray, *, mirrored: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities (C, h, w) float32 with the longer side at `side_px`, and view probabilities (V,).

        mirrored: look at the mirror image as well, and take the mean.
        """
        side = self.config.side_px
        scale = side / max(photo.shape[:2])
        height, width = (max(1, round(length * scale)) for length in photo.shape[:2])
        small = np.array(
            Image.fromarray(photo).resize(
                (width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
            )
        )
        picture = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
        padding = (0, -width % _STRIDE, 0, -height % _STRIDE)
        picture = F.pad(picture, padding, mode="replicate")
        if mirrored:
            picture = torch.cat([picture, picture.flip(-1)])
        with torch.inference_mode():
            output = self.network(picture.contiguous(memory_format=torch.channels_last))
            probability, view = output.logits.softmax(1), output.view.softmax(1)
        if mirrored:
            probability = (probability[:1] + probability[1:].flip(-1)) / 2
            view = (view[:1] + view[1:, _MIRRORED_VIEWS]) / 2
        return probability[0, :, :height, :width].numpy(), view[0].numpy()


def _people_masks(classes: np.ndarray) -> list[np.ndarray]:
    """Class indices (h, w) to a mask (h, w) bool of each person.

    Pixels that hang together are one person's. Loose parts without a head (behind a post, cut by the frame) go to the
    nearest one with a head; where no head is to be seen, all of them are one person's.
    """
    pieces, number = label(binary_dilation(classes > 0))
    masks = [(pieces == index) & (classes > 0) for index in range(1, number + 1)]
    masks = [mask for mask in masks if mask.mean() >= _MIN_AREA / 4]
    heads = [mask for mask in masks if np.isin(classes[mask], _HEAD).mean() > 0.02]
    if not heads:
        whole = np.any(masks, 0) if masks else np.zeros(classes.shape, bool)
        return [whole] if whole.mean() >= _MIN_AREA else []
    people = [mask.copy() for mask in heads]
    boxes = [_bounds(mask) for mask in heads]
    for mask in masks:
        if not any(mask is head for head in heads):
            gaps = [_gap(_bounds(mask), box) / max(box.height, 1) for box in boxes]
            nearest = int(np.argmin(gaps))
            if gaps[nearest] <= _REACH:
                people[nearest] |= mask
    return [mask for mask in people if mask.mean() >= _MIN_AREA]


def _bounds(mask: np.ndarray) -> Box:
    ys, xs = np.nonzero(mask)
    return Box(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)


def _gap(first: Box, second: Box) -> float:
    """Distance in pixels between two boxes, 0 where they touch."""
    x = max(first.left - second.right, second.left - first.right, 0)
    y = max(first.top - second.bottom, second.top - first.bottom, 0)
    return float(np.hypot(x, y))


def outfit_table(evidence: np.ndarray, seen: np.ndarray, least_share: float) -> np.ndarray:
    """(C, C) float32 matrix that moves the probability of classes which the outfit does not have to those it has.

    evidence: (N, C) how much of each class was found in each photo, as shares of the person; seen: (N, C) the shares of
    the pixels at which each class is the likeliest. A shirt stays a shirt in every photo that way.
    """
    total = evidence.sum(0)
    of_part = {part: float(sum(total[_INDEX[name]] for name in names)) for part, names in COARSE_PARTS.items()}
    # What is worn below is a dress, or else a skirt, shorts or trousers.
    dressed = of_part["dress"] > of_part["lower"]
    worn = of_part["upper"] + of_part["lower"] + of_part["dress"] + 1e-9
    kept: dict[str, list[str]] = {
        "lower": [] if dressed else [_likeliest("lower", total)],
        "dress": ["dress"] if dressed else [],
        "upper": _layers(total, seen, least_share),
    }
    if dressed and of_part["upper"] / worn < least_share / 2:
        kept["upper"] = []
    table = np.eye(len(FINE_CLASSES), dtype=np.float32)

    def move(name: str, to: str) -> None:
        table[_INDEX[name]] = 0
        table[_INDEX[name], _INDEX[to]] = 1

    for part in _GARMENT_PARTS:
        for name in COARSE_PARTS[part]:
            if name in kept[part]:
                continue
            if kept[part]:
                move(name, kept[part][0])
            elif part != "dress":
                move(name, "dress")
            else:
                # Neither above nor below: each pixel's next likeliest class decides.
                table[_INDEX[name]] = 0
    head = float(total[_HEAD].sum()) + 1e-9
    capped = total[_INDEX["cap"]] / head >= _MIN_CAP
    if not capped:
        move("cap", "haircut")
    if (total[_INDEX["haircut"]] + (0 if capped else total[_INDEX["cap"]])) / head < _MIN_HAIR:
        move("haircut", "face")
        if not capped:
            move("cap", "face")
    return table


def _likeliest(part: str, total: np.ndarray) -> str:
    return max(COARSE_PARTS[part], key=lambda name: total[_INDEX[name]])


def _layers(total: np.ndarray, seen: np.ndarray, least_share: float) -> list[str]:
    """The likeliest garment of the upper body, and those that are seen beside it in the same photos: a jacket over a
    shirt. One that takes its place in other photos is the same garment, mistaken.
    """
    first = _likeliest("upper", total)
    names = COARSE_PARTS["upper"]
    above = seen[:, [_INDEX[name] for name in names]]
    above = above[above.sum(1) > 0]
    if not len(above):
        return [first]
    share = above / above.sum(1, keepdims=True)
    layers = [first]
    for number, name in enumerate(names):
        together = np.minimum(share[:, number], share[:, names.index(first)]).mean()
        if name != first and together >= least_share:
            layers.append(name)
    return layers


def _one_head(classes: np.ndarray) -> np.ndarray:
    """Class indices (H, W) in which only the largest piece of face, hair, cap and glasses together is the head; hands
    that were taken for a face are skin.
    """
    head = np.isin(classes, _HEAD)
    pieces, number = label(binary_dilation(head))
    if number < 2:
        return classes
    size = np.bincount(pieces.ravel())
    size[0] = 0
    return np.where(head & (pieces != size.argmax()), _INDEX["skin"], classes)


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool without loose parts of less than `_SPECK` of its area."""
    pieces, number = label(mask)
    if number < 2:
        return mask
    size = np.bincount(pieces.ravel())
    keep = size >= _SPECK * mask.sum()
    keep[0] = False
    return keep[pieces]
