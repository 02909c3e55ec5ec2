"""What somebody wears, decided over all photos of an album from the boxes that were found in each.

A detector calls the same shirt a shirt here and a jumper there; an album has one outfit. The mini parser settles this
with the probabilities of pixels (`datamodules.segmentation.mini`); here there are boxes, and photos vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from datamodules.asset_names import GLASSES
from datamodules.segmentation.classes import COARSE_PARTS
from datamodules.segmentation.detections import Detection, FloatBox, suppress

# Boxes of one body part that share more than this are one garment under two names.
MAX_OVERLAP = 0.7
# What is worn over other garments, and over a dress as well.
_OUTER = "jacket"
_PART_OF = {name: part for part, names in COARSE_PARTS.items() for name in names}
_HEAD = ("face", "hair", "cap", GLASSES)
# What comes and goes with a few mistaken boxes.
_OPTIONAL = ("cap", GLASSES)

Worn = Mapping[str, tuple[str, ...]]


def part_of(name: str) -> str:
    """The body part of a prompt; one that is not known has a part of its own."""
    return _PART_OF.get(name, name)


def by_part(detections: Sequence[Detection]) -> dict[str, list[Detection]]:
    """The boxes of each body part, best first, none of them twice."""
    parts: dict[str, list[Detection]] = {}
    for detection in detections:
        parts.setdefault(part_of(detection.name), []).append(detection)
    return {part: suppress(those, MAX_OVERLAP) for part, those in parts.items()}


def decide_outfit(photos: Sequence[Sequence[Detection]], least_share: float) -> dict[str, tuple[str, ...]]:
    """Body part to the names that the outfit has there, the most certain first.

    photos: the boxes found in each, whole persons left out. On each part the name that is best in most photos wins; a
    second one stays above the waist only, where it is seen beside the first in most photos. A cap and glasses stay when
    they are seen in `least_share` of the photos that show the head. A dress stands against what is worn in its place.
    """
    seen = [by_part(photo) for photo in photos]
    worn: dict[str, tuple[str, ...]] = {}
    # A list, not a set: the order must not change from run to run.
    for part in dict.fromkeys(part for photo in seen for part in photo):
        wins: Counter[str] = Counter()
        shown: Counter[str] = Counter()
        score: dict[str, float] = {}
        number = 0
        for photo in seen:
            found = photo.get(part, [])
            if not found:
                continue
            number += 1
            wins[found[0].name] += 1
            shown.update({detection.name for detection in found})
            for detection in found:
                score[detection.name] = score.get(detection.name, 0.0) + detection.score
        first, *others = sorted(shown, key=lambda name: (-wins[name], -score[name], name))
        beside = [name for name in others if part == "upper" and shown[name] * 2 > number]
        worn[part] = (first, *beside)
    heads = sum(any(part in photo for part in _HEAD) for photo in seen)
    for part in _OPTIONAL:
        if part in worn and sum(part in photo for photo in seen) < least_share * heads:
            del worn[part]
    return _settle_dress(seen, worn)


def _settle_dress(
    seen: Sequence[Mapping[str, Sequence[Detection]]], worn: dict[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    if "dress" not in worn:
        return worn
    votes = 0
    for photo in seen:
        dress = photo["dress"][0].score if "dress" in photo else 0.0
        # In its place there would be something below; in a portrait, something above that is not worn over it.
        instead = photo.get("lower") or [one for one in photo.get("upper", ()) if one.name != _OUTER]
        if dress or instead:
            votes += 1 if dress > (instead[0].score if instead else 0.0) else -1
    if votes <= 0:
        return {part: names for part, names in worn.items() if part != "dress"}
    outer = tuple(name for name in worn.get("upper", ()) if name == _OUTER)
    kept = {part: names for part, names in worn.items() if part not in ("upper", "lower")}
    return {**kept, "upper": outer} if outer else kept


def assign(detections: Sequence[Detection], worn: Worn) -> dict[str, list[FloatBox]]:
    """The boxes of each asset in one photo, under the names of `decide_outfit`.

    A box with a name that the outfit does not have is taken for what is worn there, unless that was found beside it.
    There is one of everything on the head; of other assets there may be several boxes, as of two shoes.
    """
    parts = by_part(detections)
    boxes: dict[str, list[FloatBox]] = {}
    for part, found in parts.items():
        names = worn.get(part, ())
        stand_in = names[0] if names else None
        if "dress" in worn and part in ("upper", "lower"):
            # Of a dress that is half hidden a detector sees a skirt, or a shirt.
            stand_in = None if "dress" in parts else "dress"
        right = [detection for detection in found if detection.name in names]
        if not right and stand_in is not None:
            name = next((name for name in found[0].scores if name in names), stand_in)
            boxes.setdefault(name, []).append(found[0].box)
        for detection in right[:1] if part in _HEAD else right:
            boxes.setdefault(detection.name, []).append(detection.box)
    return boxes
