"""Photos without masks: who in them the album is about, which of them can be used, and the masks of the subject.

A photo is decoded twice, once to find people and once to cut the subject out, so that memory does not grow with an
album's size before the working resolution is reached.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datamodules.album import AlbumConfig, Photo, SetAside
from datamodules.asset_names import GLASSES, order_assets
from datamodules.overrides import AlbumOverrides, photo_key
from datamodules.segmentation.classes import HEAD_CLASSES
from datamodules.segmentation.segmentor import Box, Parts, PersonFound, Segmentor
from datamodules.selection import choose_subject, exposure_problem, find_duplicates, perceptual_hash
from datamodules.views import parse_view
from modules.errors import UserError
from modules.geometry.camera import Framing

# Below this fraction of the photo's longer side the subject is cut out, or it would be a few pixels of a square.
_SMALL = 0.7
# Height of the head as a fraction of what is seen of the person.
_WHOLE_BODY_HEAD, _HEAD_ALONE = 0.24, 0.52


@dataclass(frozen=True, kw_only=True)
class BarePhoto:
    """stem, file_name: of the photo. decode: gives its pixels (H, W, 3) uint8 with the given longer side at most."""

    stem: str
    file_name: str
    decode: Callable[[int], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """photos: those that can be used, in their order. set_aside: the others. notes: what was assumed."""

    photos: Sequence[Photo]
    set_aside: Sequence[SetAside]
    notes: Sequence[str] = ()


@dataclass(kw_only=True)
class _Look:
    photo: BarePhoto
    size: tuple[int, int]
    people: list[PersonFound]
    hash: int
    problem: str | None


def segment_photos(
    bare: Sequence[BarePhoto], segmentor: Segmentor, config: AlbumConfig, overrides: AlbumOverrides
) -> Segmented:
    """Find the subject in every photo, leave out what cannot be used with its reason, and make masks for the rest."""
    set_aside: list[SetAside] = []
    looks: list[_Look] = []
    for photo in bare:
        try:
            looks.append(_look(photo, segmentor, config))
        except UserError as error:
            set_aside.append(SetAside(photo.file_name, str(error)))
    hint, notes = _hint(looks, overrides)
    choices = choose_subject([look.people for look in looks], config.selection, hint)
    wanted: list[tuple[_Look, int]] = []
    for look, choice in zip(looks, choices, strict=True):
        kept = overrides.keeps_photo(look.photo.stem)
        reason = None if kept else look.problem
        if not look.people:
            reason = "shows no person that could be found"
        elif choice.person is None:
            reason = f"shows nobody who is dressed like the person of the other photos; {_keep(look.photo)}"
        elif reason is None and not kept:
            reason = _quality_problem(look.people[choice.person], config)
        if reason is not None or choice.person is None:
            set_aside.append(SetAside(look.photo.file_name, reason or "shows no person that could be found"))
        else:
            wanted.append((look, choice.person))
    wanted, duplicates = _without_duplicates(wanted, config, overrides)
    cuts = [_Cut(look, index, config) for look, index in wanted]
    photos = []
    for cut, parts in zip(cuts, segmentor.outfit(cuts) if cuts else [], strict=True):
        if parts.masks:
            photos.append(_as_photo(cut, parts, config))
        else:
            set_aside.append(SetAside(cut.look.photo.file_name, "no clothes, hair or face could be told apart in it"))
    return Segmented(photos=photos, set_aside=[*set_aside, *duplicates], notes=notes)


def _look(photo: BarePhoto, segmentor: Segmentor, config: AlbumConfig) -> _Look:
    pixels = photo.decode(config.segmentor.photo_px)
    return _Look(
        photo=photo,
        size=(pixels.shape[1], pixels.shape[0]),
        people=segmentor.people(pixels),
        hash=perceptual_hash(pixels),
        problem=exposure_problem(pixels, config.selection),
    )


def _hint(looks: Sequence[_Look], overrides: AlbumOverrides) -> tuple[tuple[int, int] | None, list[str]]:
    point = overrides.subject_point
    if point is None:
        return None, []
    for number, look in enumerate(looks):
        if photo_key(look.photo.stem) == point.photo:
            x, y = point.x * look.size[0], point.y * look.size[1]
            inside = [index for index, person in enumerate(look.people) if person.box.holds(x, y)]
            if inside:
                smallest = min(inside, key=lambda index: look.people[index].box.width * look.people[index].box.height)
                return (number, smallest), []
            return None, [f"nobody was found at the point of {look.photo.file_name} where assets.yaml sees the subject"]
    return None, [f"assets.yaml points at the subject in {point.photo}, but no such photo can be used"]


def _quality_problem(person: PersonFound, config: AlbumConfig) -> str | None:
    selection = config.selection
    if person.area < selection.min_area:
        return f"shows the person on {person.area:.1%} of its area, less than {selection.min_area:.1%}"
    if person.sharpness < selection.min_sharpness:
        return f"is blurred (sharpness {person.sharpness:.1f}, {selection.min_sharpness:.1f} is needed)"
    return None


def _keep(photo: BarePhoto) -> str:
    return f'write "{photo.stem}: keep" under photos in assets.yaml to use it all the same'


def _without_duplicates(
    wanted: Sequence[tuple[_Look, int]], config: AlbumConfig, overrides: AlbumOverrides
) -> tuple[list[tuple[_Look, int]], list[SetAside]]:
    if config.selection.max_hash_distance < 0:
        return list(wanted), []
    quality = [
        np.inf if overrides.keeps_photo(look.photo.stem) else look.people[index].sharpness for look, index in wanted
    ]
    twins = find_duplicates([look.hash for look, _ in wanted], quality, config.selection.max_hash_distance)
    twins = {index: twin for index, twin in twins.items() if np.isfinite(quality[index])}
    aside = [
        SetAside(wanted[index][0].photo.file_name, f"is nearly the same photo as {wanted[twin][0].photo.file_name}")
        for index, twin in sorted(twins.items())
    ]
    return [pair for index, pair in enumerate(wanted) if index not in twins], aside


class _Cut:
    """A photo cut to the subject, at the working resolution; a `datamodules.segmentation.segmentor.Cut`."""

    def __init__(self, look: _Look, index: int, config: AlbumConfig) -> None:
        self.look = look
        self.index = index
        self.config = config
        self.box = self._box()

    def _box(self) -> Box:
        width, height = self.look.size
        box = self.look.people[self.index].box
        longest = max(box.width, box.height)
        if not self.config.segmentor.crop or longest >= _SMALL * max(width, height):
            return Box(0, 0, width, height)
        # Square where the photo is large enough, since training sees squares.
        side = round(longest * (1 + 2 * self.config.segmentor.margin))
        left = int(np.clip((box.left + box.right - side) // 2, 0, max(0, width - side)))
        top = int(np.clip((box.top + box.bottom - side) // 2, 0, max(0, height - side)))
        return Box(left, top, min(width, left + side), min(height, top + side))

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        scale = min(1.0, self.config.working_resolution / max(self.box.width, self.box.height))
        return max(1, round(self.box.height * scale)), max(1, round(self.box.width * scale))

    def pixels(self) -> np.ndarray:
        return self._pixels

    @functools.cached_property
    def _pixels(self) -> np.ndarray:
        # Kept: it is asked for several times, and becomes the album's image in the end.
        photo = self.look.photo.decode(self.config.segmentor.photo_px)
        box, (height, width) = self.box, self.size
        cut = np.ascontiguousarray(photo[box.top : box.bottom, box.left : box.right])
        if cut.shape[:2] == (height, width):
            return cut
        return np.array(Image.fromarray(cut).resize((width, height), Image.Resampling.LANCZOS))

    def others(self) -> np.ndarray:
        height, width = self.look.size[1], self.look.size[0]
        canvas = np.zeros((height, width), bool)
        for number, person in enumerate(self.look.people):
            if number != self.index:
                _paint(canvas, person, True)
        _paint(canvas, self.look.people[self.index], False)
        box = self.box
        cut = Image.fromarray(canvas[box.top : box.bottom, box.left : box.right])
        return np.array(cut.resize(self.size[::-1], Image.Resampling.NEAREST))


def _paint(canvas: np.ndarray, person: PersonFound, value: bool) -> None:
    box = person.box
    outline = Image.fromarray(person.outline).resize((box.width, box.height), Image.Resampling.NEAREST)
    canvas[box.top : box.bottom, box.left : box.right][np.asarray(outline)] = value


def _as_photo(cut: _Cut, parts: Parts, config: AlbumConfig) -> Photo:
    view = None
    if parts.view is not None and parts.view_confidence >= config.min_view_confidence:
        # None where the vocabulary has no word for it: eight directions know no "overhead".
        view = parse_view(parts.view, config.view_vocabulary)
    return Photo(
        stem=cut.look.photo.stem,
        image=cut.pixels(),
        masks={name: parts.masks[name] for name in order_assets(parts.masks)},
        person=parts.person,
        view=view,
        framing=framing_of(parts.masks, parts.person),
    )


def framing_of(masks: Mapping[str, np.ndarray], person: np.ndarray) -> Framing | None:
    """How much of the person a photo shows, by the height of the head in what is seen; None without a head.

    masks: asset name to (H, W) bool; person: (H, W) bool. Upright people only.
    """
    rows = np.flatnonzero(person.any(1))
    # Long hair reaches down the back: where there is a face or a cap, its lower end is the head's.
    firm = [masks[name] for name in ("face", "cap", GLASSES) if name in masks]
    head = [masks[name] for name in HEAD_CLASSES if name in masks]
    if not len(rows) or not head:
        return None
    top = min(int(np.flatnonzero(mask.any(1))[0]) for mask in head)
    bottom = max(int(np.flatnonzero(mask.any(1))[-1]) for mask in (firm or head))
    share = (bottom + 1 - top) / (rows[-1] + 1 - rows[0])
    if share > _HEAD_ALONE:
        return "head"
    return "full body" if share < _WHOLE_BODY_HEAD else "upper body"
