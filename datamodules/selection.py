"""Which photos of a bare folder can be used, and who in them the album is about.

Nothing here knows how people are found; see `datamodules.segmentation.segmentor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import laplace

from datamodules.segmentation.segmentor import PersonFound

# CIELAB distance at which two colours are two thirds different; a change of light moves a colour by a third of it.
_COLOUR_SCALE = 25.0
_ROUNDS = 4
_MOST_COMPARED = 48
_SHARPNESS_PX = 192


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """What makes a photo unusable. Applies to photos whose masks have to be made; who brings masks has chosen already.

    max_hash_distance: bits of 64 by which the perceptual hashes of duplicates differ at most; -1 keeps duplicates.
    min_sharpness: least fine structure of the person (`sharpness`). min_area: least share of the photo that is the
    subject's. min_level, max_level: bounds of the photo's mean brightness in [0, 255]. min_likeness: a photo whose best
    match resembles the subject of the others less than this, in [0, 1], shows somebody else.
    """

    max_hash_distance: int = 4
    min_sharpness: float = 1.2
    min_area: float = 0.01
    min_level: float = 10.0
    max_level: float = 247.0
    min_likeness: float = 0.3

    def __post_init__(self) -> None:
        if not -1 <= self.max_hash_distance <= 32:
            raise ValueError(f"max_hash_distance must lie in [-1, 32], found {self.max_hash_distance}")
        if not 0 <= self.min_level < self.max_level <= 255:
            raise ValueError(f"min_level must lie below max_level, found {self.min_level} and {self.max_level}")
        if not 0 <= self.min_area < 1 or not 0 <= self.min_likeness < 1:
            raise ValueError("min_area and min_likeness must lie in [0, 1)")
        if self.min_sharpness < 0:
            raise ValueError(f"min_sharpness must not be negative, found {self.min_sharpness}")


def sharpness(image: np.ndarray) -> float:
    """How much fine structure an image (H, W, 3) uint8 shows: the root mean square of its Laplacian, in grey levels.

    The image is first brought to 192 pixels, so that the number does not depend on a camera's pixel count.
    """
    if min(image.shape[:2]) < 3:
        return 0.0
    picture = Image.fromarray(image).convert("L")
    scale = _SHARPNESS_PX / max(picture.size)
    if scale < 1:
        picture = picture.resize(
            (max(3, round(picture.width * scale)), max(3, round(picture.height * scale))), Image.Resampling.BOX
        )
    return float(np.sqrt((laplace(np.asarray(picture, np.float32)) ** 2).mean()))


def exposure_problem(image: np.ndarray, config: SelectionConfig) -> str | None:
    """Why a photo (H, W, 3) uint8 is too dark or too bright to be used, None when it is not."""
    level = float(image.mean())
    if level < config.min_level:
        return f"is almost black (mean brightness {level:.0f} of 255)"
    if level > config.max_level:
        return f"is almost white (mean brightness {level:.0f} of 255)"
    return None


def perceptual_hash(image: np.ndarray) -> int:
    """64 bits that are nearly the same for a photo, its copy in another size, and the next shot of a burst."""
    # Loads pywavelets and more: only where photos are compared.
    import imagehash

    bits = imagehash.phash(Image.fromarray(image)).hash.ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def find_duplicates(hashes: Sequence[int], quality: Sequence[float], max_distance: int) -> dict[int, int]:
    """Index of each photo that can be left out to the index of the better one that looks like it.

    quality: of equal photos the greatest is kept, the first of equals. A photo that was left out takes no other along:
    in a slow pan every photo is like the next.
    """
    order = sorted(range(len(hashes)), key=lambda index: (-quality[index], index))
    kept: list[int] = []
    duplicates: dict[int, int] = {}
    for index in order:
        twin = next((one for one in kept if (hashes[index] ^ hashes[one]).bit_count() <= max_distance), None)
        if twin is None:
            kept.append(index)
        else:
            duplicates[index] = twin
    return duplicates


def likeness(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> float | None:
    """How alike two people are dressed, in [0, 1]: the mean over the parts that both show; None without any."""
    common = sorted(set(first) & set(second))
    if not common:
        return None
    distances = [float(np.linalg.norm(np.asarray(first[name]) - np.asarray(second[name]))) for name in common]
    return float(np.mean(np.exp(-np.array(distances) / _COLOUR_SCALE)))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """person: index of the subject among the people of the photo, None where nobody is like them. likeness: of that
    person to the subject in the other photos, None where it cannot be told."""

    person: int | None
    likeness: float | None


def choose_subject(
    people: Sequence[Sequence[PersonFound]], config: SelectionConfig, hint: tuple[int, int] | None = None
) -> list[Choice]:
    """Who of the people in each photo the album is about: large, and dressed alike in all photos.

    people: for each photo those in it. hint: (photo, person) that is the subject for certain. The first guess is the
    person with the greatest sum of sizes of their likes over the album; then the choice of each photo and the mean
    look of the chosen are made to agree.
    """
    if not any(people):
        return [Choice(person=None, likeness=None) for _ in people]
    start = hint if hint is not None else _most_seen(people)
    looks: Mapping[str, np.ndarray] = people[start[0]][start[1]].appearance
    chosen: list[int | None] = []
    for _ in range(_ROUNDS):
        again = [_best(found, looks) for found in people]
        if hint is not None:
            again[hint[0]] = hint[1]
        if again == chosen:
            break
        chosen = again
        looks = _mean_look([people[photo][index].appearance for photo, index in enumerate(chosen) if index is not None])
        if hint is not None:
            looks = {**looks, **people[hint[0]][hint[1]].appearance}
    choices = []
    taken = {photo: people[photo][index].appearance for photo, index in enumerate(chosen) if index is not None}
    for photo, index in enumerate(chosen):
        if index is None:
            choices.append(Choice(person=None, likeness=None))
            continue
        alike = _likeness_to_most(taken[photo], [look for other, look in taken.items() if other != photo])
        stranger = alike is not None and alike < config.min_likeness and (photo, index) != hint
        choices.append(Choice(person=None if stranger else index, likeness=alike))
    return choices


def _likeness_to_most(look: Mapping[str, np.ndarray], others: Sequence[Mapping[str, np.ndarray]]) -> float | None:
    """Mean likeness to the more similar half of the others: strangers among them do not make a stranger of this one."""
    found = sorted((alike for other in others if (alike := likeness(look, other)) is not None), reverse=True)
    return float(np.mean(found[: -(-len(found) // 2)])) if found else None


def _most_seen(people: Sequence[Sequence[PersonFound]]) -> tuple[int, int]:
    best, best_score = (0, 0), -1.0
    # An album of hundreds is compared with an even part of itself.
    compared = [(other, people[other]) for other in range(0, len(people), -(-len(people) // _MOST_COMPARED))]
    for photo, found in enumerate(people):
        for index, person in enumerate(found):
            score = person.area**0.5
            for other, those in compared:
                if other != photo and those:
                    score += max((likeness(person.appearance, one.appearance) or 0.0) * one.area**0.5 for one in those)
            if score > best_score + 1e-12:
                best, best_score = (photo, index), score
    return best


def _best(found: Sequence[PersonFound], looks: Mapping[str, np.ndarray]) -> int | None:
    if not found:
        return None
    scores = []
    for person in found:
        alike = likeness(person.appearance, looks)
        # Somebody of whom too little is seen to compare has only their size to speak for them.
        scores.append((0.5 if alike is None else alike) + 0.3 * person.area**0.5)
    return int(np.argmax(scores))


def _mean_look(looks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = sorted({name for look in looks for name in look})
    return {name: np.median([look[name] for look in looks if name in look], axis=0) for name in names}
