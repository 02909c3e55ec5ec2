"""GroundingDINO with SAM as a segmentor: boxes for words, then masks for boxes.

H, W are the size of a photo or a cut. Open vocabulary and made for real photographs; it wants a GPU. What it was not
asked for it does not tell: bare skin is what is left of the person, and the direction of view comes from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from skimage.color import rgb2lab

from datamodules.asset_names import PERSON, canonical_asset, order_assets
from datamodules.segmentation.config import SegmentorConfig
from datamodules.segmentation.detections import (
    Detection,
    FloatBox,
    area,
    common_area,
    share_inside,
    suppress,
)
from datamodules.segmentation.outfit_vote import MAX_OVERLAP, Worn, assign, decide_outfit
from datamodules.segmentation.segmentor import Box, Cut, Parts, PersonFound
from datamodules.selection import sharpness

Views = Callable[[np.ndarray], tuple[str, float]]

# Of the photo: what is smaller is a bystander far away, or a mistake.
_MIN_AREA = 0.004
# Masks that share more than this of the smaller one show the same person.
_SAME_PERSON = 0.7
_OUTLINE_PX = 128
_BANDS = ("top", "middle", "bottom")
_MIN_BAND_PIXELS = 12
# A box belongs to the subject when this share of it lies in theirs, and to somebody else in the same way.
_BELONGS = 0.5


class _Finder(Protocol):
    @property
    def identity(self) -> str: ...
    def at_work(self) -> AbstractContextManager[None]: ...
    def find(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[Detection]]: ...


class _Masker(Protocol):
    @property
    def identity(self) -> str: ...
    def at_work(self) -> AbstractContextManager[None]: ...
    def masks(self, picture: np.ndarray, boxes: Sequence[FloatBox]) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the detector saw in a cut. subject: the box of the person, None when none was found."""

    subject: FloatBox | None
    pieces: list[Detection]


class GroundedSam:
    """A `datamodules.segmentation.segmentor.Segmentor`. identity: holds fingerprints of both models.

    views: tells the direction of view and its confidence in [0, 1] from the pixels of a cut; None leaves it unknown.
    """

    def __init__(
        self, detector: _Finder, segmenter: _Masker, config: SegmentorConfig, views: Views | None = None
    ) -> None:
        self.detector = detector
        self.segmenter = segmenter
        self.config = config
        self.views = views
        settings = config.grounded_sam
        asked = {
            "prompts": settings.prompts,
            "thresholds": (settings.box_threshold, settings.text_threshold, settings.face_threshold),
            "batch_size": settings.batch_size,
            "least_share": config.least_share,
            "views": views is not None,
        }
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        self.identity = f"grounded sam, {detector.identity}, {segmenter.identity}, settings {digest}"

    @classmethod
    def load(cls, config: SegmentorConfig, root: Path, views: Views | None = None) -> GroundedSam:
        """The models of the settings, whose weights load at first use. root: what relative folders start from.

        Raises UserError when a model is missing or of another kind; a damaged one raises it at first use.
        """
        from datamodules.segmentation.grounded_models import SETTING, Detector, Segmenter
        from datamodules.segmentation.model_files import find_model

        settings = config.grounded_sam
        detector = Detector(find_model(settings.detector, root, f"{SETTING}.detector"), settings)
        segmenter = Segmenter(find_model(settings.segmenter, root, f"{SETTING}.segmenter"), settings)
        return cls(detector, segmenter, config, views)

    def people(self, photo: np.ndarray) -> list[PersonFound]:
        with self.detector.at_work():
            found = self.detector.find([photo], (PERSON,))[0]
        height, width = photo.shape[:2]
        found = [one for one in suppress(found, MAX_OVERLAP) if area(one.box) >= _MIN_AREA * height * width]
        if not found:
            return []
        with self.segmenter.at_work():
            masks = self.segmenter.masks(photo, [one.box for one in found])
        people: list[PersonFound] = []
        kept: list[np.ndarray] = []
        for detection, mask in zip(found, masks, strict=True):
            theirs = mask & _filled(detection.box, (height, width))
            shared = [(theirs & other).sum() / max(1, min(theirs.sum(), other.sum())) for other in kept]
            if theirs.mean() >= _MIN_AREA and not any(share > _SAME_PERSON for share in shared):
                kept.append(theirs)
                people.append(_person(photo, theirs))
        return sorted(people, key=lambda person: -person.area)

    def outfit(self, cuts: Sequence[Cut]) -> list[Parts]:
        seen: list[_Seen] = []
        batch_size = self.config.grounded_sam.batch_size
        # Pixels are in memory for one batch at a time; of what was seen there, boxes remain.
        with self.detector.at_work():
            for start in range(0, len(cuts), batch_size):
                batch = cuts[start : start + batch_size]
                prompts = (PERSON, *self.config.grounded_sam.prompts)
                found = self.detector.find([cut.pixels() for cut in batch], prompts)
                seen += [self._sort_out(those, cut.others()) for those, cut in zip(found, batch, strict=True)]
        worn = decide_outfit([look.pieces for look in seen], self.config.least_share)
        with self.segmenter.at_work():
            return [self._parts(cut, look, worn) for cut, look in zip(cuts, seen, strict=True)]

    def _sort_out(self, found: Sequence[Detection], others: np.ndarray) -> _Seen:
        """The subject's box and what they wear, without what belongs to the other people (H, W) bool in the cut."""
        named = [_with_asset_names(detection) for detection in found]
        own = [one for one in named if share_inside(one.box, others) <= _BELONGS]
        people = [one for one in own if one.name == PERSON]
        subject = max(
            (one.box for one in people), key=lambda box: area(box) * (1 - 2 * share_inside(box, others)), default=None
        )
        pieces = [
            one
            for one in own
            if one.name != PERSON
            and (one.name != "face" or one.score >= self.config.grounded_sam.face_threshold)
            and (subject is None or common_area(one.box, subject) >= _BELONGS * area(one.box))
        ]
        return _Seen(subject=subject, pieces=pieces)

    def _parts(self, cut: Cut, look: _Seen, worn: Worn) -> Parts:
        pixels, others = cut.pixels(), cut.others()
        boxes = assign(look.pieces, worn)
        names = [name for name, those in boxes.items() for _ in those]
        wanted = [box for those in boxes.values() for box in those]
        subject = [] if look.subject is None else [look.subject]
        found = self.segmenter.masks(pixels, [*subject, *wanted])
        nobody = np.zeros(pixels.shape[:2], bool)
        person = found[0].copy() if subject else nobody.copy()
        masks: dict[str, np.ndarray] = {}
        for name, mask in zip(names, found[len(subject) :], strict=True):
            masks[name] = masks.get(name, nobody) | mask
        union = np.any(list(masks.values()), axis=0) if masks else nobody
        if 2 * (person & union).sum() < union.sum():
            # No person was found, or their shirt was taken for all of them.
            person |= union
        person &= ~others
        clipped = {name: masks[name] & person for name in order_assets(masks)}
        view, confidence = self.views(pixels) if self.views is not None else (None, 0.0)
        return Parts(
            masks={name: mask for name, mask in clipped.items() if mask.any()},
            person=person,
            view=view,
            view_confidence=confidence,
        )


def _with_asset_names(detection: Detection) -> Detection:
    """With scores by asset, for words by which it was looked for."""
    scores: dict[str, float] = {}
    for prompt, score in detection.scores.items():
        # Best first: of two words for one asset the better one counts.
        scores.setdefault(canonical_asset(prompt), score)
    return Detection(box=detection.box, scores=scores)


def _filled(box: FloatBox, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, True in a box, pixels at its rim included."""
    inside = np.zeros(size, bool)
    left, top, right, bottom = box
    inside[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    return inside


def _person(photo: np.ndarray, mask: np.ndarray) -> PersonFound:
    """What is remembered of somebody whose pixels are `mask` (H, W) bool, not empty."""
    ys, xs = np.nonzero(mask)
    box = Box(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    pixels = np.ascontiguousarray(photo[box.top : box.bottom, box.left : box.right])
    theirs = Image.fromarray(mask[box.top : box.bottom, box.left : box.right].astype(np.uint8) * 255)
    scale = min(1.0, _OUTLINE_PX / max(box.width, box.height))
    small = (max(1, round(box.width * scale)), max(1, round(box.height * scale)))
    outline = np.array(theirs.resize(small, Image.Resampling.BOX)) >= 128
    lab = rgb2lab(np.asarray(Image.fromarray(pixels).resize(small, Image.Resampling.BOX)))
    appearance = {}
    for name, rows, inside in zip(_BANDS, np.array_split(lab, 3), np.array_split(outline, 3), strict=True):
        if inside.sum() >= _MIN_BAND_PIXELS:
            appearance[name] = np.median(rows[inside], 0)
    return PersonFound(
        box=box, area=float(mask.mean()), sharpness=sharpness(pixels), appearance=appearance, outline=outline
    )
