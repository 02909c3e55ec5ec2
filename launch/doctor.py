"""The album doctor: whether an album will do, what is missing, and what to photograph next, in plain words.

What "enough" means rests on three figures. The method was published for albums of 10 to 50 photos, of which a tenth was
found to be enough (PuzzleAvatar, Xiu et al. 2024); here, 8 photos of 16 cost a tenth of the surface's accuracy
(docs/experiments.md). A part that is seen once cannot be told from its light, its pose and what is behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from datamodules.album import MASK_FOLDER, SetAside
from datamodules.assets import PreparedAlbum
from datamodules.bare_photos import framing_of
from datamodules.selection import SelectionConfig, find_duplicates, perceptual_hash, sharpness

LEAST_PHOTOS, MANY_PHOTOS = 3, 8
LEAST_SEEN, OFTEN_SEEN = 2, 4
# A face of fewer cells is a few numbers to the model: nothing of it can be learned.
LEAST_CELLS = 2.0
# Of anything else at least a colour can be learned from one cell.
LEAST_PART_CELLS = 1.0
_SIDES = ("front", "side", "back")
_HEAD_ONLY = {"face", "haircut", "cap"}
_LISTED = 8
_BASIS = (
    f"at least {OFTEN_SEEN} photos of each part and {MANY_PHOTOS} photos in all are good: the method was published for "
    "10 to 50 photos, and half of 16 cost a tenth of the accuracy in our trials"
)
Enough = Literal["too few", "thin", "good"]
Weight = Literal["stops", "limits", "remark"]


@dataclass(frozen=True, kw_only=True)
class AssetSeen:
    """photos: in how many it is seen. cells: the side of its largest view, in cells of the model's picture."""

    name: str
    words: str
    photos: int
    enough: Enough
    cells: float


@dataclass(frozen=True, kw_only=True)
class Finding:
    """reason: part of the verdict, without a full stop. advice: what to do, a sentence. A remark limits nothing."""

    weight: Weight
    reason: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found. face_px: height of the largest face of an album of `resolution` pixels, 0 without one;
    face_photos: in how many photos it has at least `least_face_px`. views, framings: how many photos of each.
    duplicates: (photo, the one it is like) of the used photos; blurred: of them. findings: most useful advice first.
    """

    name: str
    gender: str
    photos: tuple[str, ...]
    lost_photos: tuple[SetAside, ...]
    lost_parts: tuple[SetAside, ...]
    assets: tuple[AssetSeen, ...]
    resolution: int
    model_cells: int
    face_px: int
    least_face_px: int
    face_photos: int
    views: Mapping[str, int]
    framings: Mapping[str, int]
    duplicates: tuple[tuple[str, str], ...]
    blurred: tuple[str, ...]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def will_do(self) -> bool:
        return all(finding.weight != "stops" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One line."""
        for weight, beginning in (("stops", "It will not do"), ("limits", "It will do, but")):
            if reasons := [finding.reason for finding in self.findings if finding.weight == weight]:
                return f"{beginning}: {'; '.join(reasons)}."
        return "This album will do."


def examine(album: PreparedAlbum, model_cells: int, selection: SelectionConfig) -> Examination:
    """Look at a prepared album.

    model_cells: cells along a side of the model's picture (its latents). selection: what counts as a duplicate and as
    blurred, also where masks that came with the album kept the photos in.
    """
    cell_px = album.resolution / model_cells
    present = album.present
    lost_parts = tuple(item for item in album.set_aside if _is_part(item))
    people = [_crop(album, index) for index in range(len(album.stems))]
    crispness = [sharpness(crop) for crop in people]
    twins: dict[int, int] = {}
    if selection.max_hash_distance >= 0:
        hashes = [perceptual_hash(image) for image in album.images]
        twins = find_duplicates(hashes, crispness, selection.max_hash_distance)
    heights = [0] * len(album.stems)
    if "face" in album.asset_names:
        faces = album.masks[:, album.asset_names.index("face")]
        heights = [_height(mask) for mask in faces]
    least_face_px = int(np.ceil(LEAST_CELLS * cell_px))
    framings = [album.framings[index] or _framing(album, index) for index in range(len(album.stems))]
    facts = Examination(
        name=album.name,
        gender=album.gender,
        photos=album.stems,
        lost_photos=tuple(item for item in album.set_aside if not _is_part(item)),
        lost_parts=lost_parts,
        assets=tuple(
            AssetSeen(
                name=name,
                words=words,
                photos=int(present[:, index].sum()),
                enough=_enough(int(present[:, index].sum())),
                cells=float(np.sqrt(album.masks[:, index].sum((1, 2)).max(initial=0)) / cell_px),
            )
            for index, (name, words) in enumerate(zip(album.asset_names, album.asset_words, strict=True))
        ),
        resolution=album.resolution,
        model_cells=model_cells,
        face_px=max(heights, default=0),
        least_face_px=least_face_px,
        face_photos=sum(height >= least_face_px for height in heights),
        views=_count((_side(view) for view in album.views), (*_SIDES, "overhead", "unknown")),
        framings=_count((framing or "unknown" for framing in framings), ("full body", "upper body", "head", "unknown")),
        duplicates=tuple((album.stems[index], album.stems[twin]) for index, twin in sorted(twins.items())),
        blurred=tuple(
            stem for stem, crisp in zip(album.stems, crispness, strict=True) if crisp < selection.min_sharpness
        ),
        notes=album.notes,
        findings=(),
    )
    return _with_findings(facts)


def _with_findings(facts: Examination) -> Examination:
    found = [*_of_number(facts), *_of_face(facts), *_of_views(facts), *_of_assets(facts), *_of_quality(facts)]
    rank = ("stops", "limits", "remark")
    ordered = sorted(found, key=lambda finding: rank.index(finding.weight))
    return Examination(**{**vars(facts), "findings": tuple(ordered)})


def _of_number(facts: Examination) -> list[Finding]:
    found = []
    distinct = len(facts.photos) - len(facts.duplicates)
    counted = f"{distinct} {'different ' if facts.duplicates else ''}photo{'' if distinct == 1 else 's'}"
    if distinct < LEAST_PHOTOS:
        advice = (
            f"Add photos, ten or more in all, from the front, from the side and from behind; {LEAST_PHOTOS} at least."
        )
        found.append(Finding(weight="stops", reason=f"only {counted} can be used", advice=advice))
    elif distinct < MANY_PHOTOS:
        advice = f"Add {MANY_PHOTOS - distinct} photos or more, in other poses and places."
        found.append(Finding(weight="limits", reason=f"{counted} are few", advice=advice))
    if len(facts.lost_photos) > len(facts.photos):
        reason = f"{len(facts.lost_photos)} of {len(facts.lost_photos) + len(facts.photos)} photos cannot be used"
        found.append(
            Finding(
                weight="limits", reason=reason, advice="See above why most photos cannot be used, and replace them."
            )
        )
    return found


def _of_face(facts: Examination) -> list[Finding]:
    close = "Add two photos of the head from nearby, one from the front and one from the side."
    if not facts.face_px:
        return [Finding(weight="limits", reason="no photo shows the face", advice=close)]
    if not facts.face_photos:
        return [Finding(weight="limits", reason="the face is too small in every photo", advice=close)]
    if facts.face_photos < LEAST_SEEN:
        return [Finding(weight="limits", reason="the face is large enough in one photo only", advice=close)]
    return []


def _of_views(facts: Examination) -> list[Finding]:
    unknown = facts.views.get("unknown", 0)
    if 2 * unknown > len(facts.photos):
        reason = f"which side they show is unknown of {unknown} of {_photos(len(facts.photos))}"
        advice = (
            'Say which side each photo shows, as "view" in album.json or assets.yaml, and see that two are from behind.'
        )
        return [Finding(weight="limits", reason=reason, advice=advice)]
    words = {"front": "from the front", "side": "from the side", "back": "from behind"}
    hint = f", or say which side is shown by {_photos(unknown)} whose view is unknown" if unknown else ""
    found = []
    for side in ("back", "front", "side"):
        if not facts.views.get(side):
            advice = f"Add two photos {words[side]}{hint}."
            found.append(Finding(weight="limits", reason=f"no photo is known to be {words[side]}", advice=advice))
    return found


def _of_assets(facts: Examination) -> list[Finding]:
    found = []
    if {asset.name for asset in facts.assets} <= _HEAD_ONLY:
        advice = "Add photos that show the whole person, with all clothes and shoes."
        found.append(Finding(weight="stops", reason="no photo shows any clothes", advice=advice))
    elif all(asset.enough == "too few" for asset in facts.assets):
        advice = "Add photos of the person in the same clothes; each part should be seen in four of them."
        found.append(Finding(weight="stops", reason="nothing is seen in more than one photo", advice=advice))
    else:
        for enough, weight, times in (("too few", "limits", "in one photo only"), ("thin", "limits", "in few photos")):
            names = [asset.name for asset in facts.assets if asset.enough == enough]
            if names:
                more = OFTEN_SEEN - min(asset.photos for asset in facts.assets if asset.name in names)
                advice = f"Add {more} photo{'s' if more > 1 else ''} in which the {_listed(names)} can be seen."
                found.append(
                    Finding(weight=weight, reason=f"the {_listed(names)} can be seen {times}", advice=advice)  # type: ignore[arg-type]
                )
        if facts.framings.get("full body", 0) < LEAST_SEEN:
            number = "no photo shows" if not facts.framings.get("full body") else "one photo only shows"
            advice = "Add two photos of the whole person, from the hair to the shoes."
            found.append(Finding(weight="limits", reason=f"{number} the whole person", advice=advice))
    others = [asset for asset in facts.assets if asset.name != "face" and asset.cells < LEAST_CELLS]
    if others:
        advice = f"Photograph the {_listed([asset.name for asset in others])} closer."
        tiny = [asset.name for asset in others if asset.cells < LEAST_PART_CELLS]
        reason = f"too small in every photo: {_listed(tiny)}" if tiny else "some parts are small in every photo"
        found.append(Finding(weight="limits" if tiny else "remark", reason=reason, advice=advice))
    return found


def _of_quality(facts: Examination) -> list[Finding]:
    found = []
    for stem, twin in facts.duplicates:
        first, second = sorted((stem, twin))
        reason = f"{first} and {second} are nearly the same"
        found.append(Finding(weight="remark", reason=reason, advice=f"{reason}: leave one of them out."))
    if facts.blurred:
        weight: Weight = "limits" if 2 * len(facts.blurred) > len(facts.photos) else "remark"
        advice = f"Take again, or leave out, what is blurred: {', '.join(facts.blurred)}."
        reason = f"{len(facts.blurred)} photo{' is' if len(facts.blurred) == 1 else 's are'} blurred"
        found.append(Finding(weight=weight, reason=reason, advice=advice))
    if facts.gender == "person":
        advice = (
            'If you like, say "gender": "man" or "woman" in album.json or assets.yaml; now the model hears "person".'
        )
        found.append(Finding(weight="remark", reason="the gender is unknown", advice=advice))
    if "shoes" not in {asset.name for asset in facts.assets}:
        advice = "If the person wears shoes, add photos that show them: none were found."
        found.append(Finding(weight="remark", reason="there are no shoes", advice=advice))
    return found


def describe(found: Examination) -> list[str]:
    """What was found, in lines, without advice and verdict."""
    lines = [f"{found.name}: {_photos(len(found.photos))} can be used, {len(found.lost_photos)} cannot"]
    lines += [f"    {line}" for line in grouped(found.lost_photos)]
    if found.lost_parts:
        lines += ["  masks and names that are left out:", *(f"    {line}" for line in grouped(found.lost_parts))]
    who = "unknown, so the model hears the word person" if found.gender == "person" else found.gender
    lines.append(f"  person: {who}")
    lines.append("  parts, and how many photos show each (1 is too few, 2 or 3 are thin, 4 or more are good):")
    for asset in found.assets:
        words = f" ({asset.words})" if asset.words else ""
        lines.append(f"    {asset.name}{words}: {_photos(asset.photos)}, {asset.enough}")
    lines.append(f"  face: {_face_words(found)}")
    lines.append(f"  sides seen: {_counts_words(found.views)}")
    lines.append(f"  how much is seen: {_counts_words(found.framings)}")
    pairs = [" and ".join(sorted(pair)) for pair in found.duplicates]
    lines.append(f"  nearly the same photos: {', '.join(pairs) or 'none'}")
    lines.append(f"  blurred photos: {', '.join(found.blurred) or 'none'}")
    lines += [f"  note: {note}" for note in found.notes]
    lines.append(f"  rests on: {_BASIS}")
    return lines


def advise(found: Examination) -> list[str]:
    """What to do, most useful first, and the verdict as the last line."""
    lines = []
    if found.findings:
        lines.append("  what to do, most useful first:")
        lines += [f"    {number}. {finding.advice}" for number, finding in enumerate(found.findings, 1)]
    return [*lines, found.verdict]


def grouped(items: Sequence[SetAside]) -> list[str]:
    """Every name with its reason, a line each; where there are many, a line for each kind of reason."""
    if len(items) <= _LISTED:
        return [f"{item.name}: {item.reason}" for item in items]
    groups: dict[str, list[SetAside]] = {}
    for item in items:
        groups.setdefault(_kind(item.reason), []).append(item)
    lines = []
    for kind, members in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        reason = members[0].reason if len({item.reason for item in members}) == 1 else kind
        lines.append(f"{', '.join(item.name for item in members)}: {reason}")
    return lines


def _kind(reason: str) -> str:
    """A reason without what is true of one photo only."""
    if reason.startswith("is nearly the same photo as"):
        return "is nearly the same photo as another"
    return re.sub(r"\d+(?:[.,]\d+)*", "...", re.sub(r"\s*\([^)]*\)", "", reason))


def _is_part(item: SetAside) -> bool:
    """Whether a mask or a name was left out, and not a photo."""
    return item.name.startswith(f"{MASK_FOLDER}/") or bool(
        re.match(r"this (mask|asset) ", item.reason) or re.search(r" names this (asset|photo), but ", item.reason)
    )


def _enough(photos: int) -> Enough:
    return "too few" if photos < LEAST_SEEN else "thin" if photos < OFTEN_SEEN else "good"


def _height(mask: np.ndarray) -> int:
    rows = np.flatnonzero(mask.any(1))
    return int(rows[-1] + 1 - rows[0]) if len(rows) else 0


def _crop(album: PreparedAlbum, index: int) -> np.ndarray:
    """The pixels around the person of one photo."""
    rows, columns = (np.flatnonzero(album.person[index].any(axis)) for axis in (1, 0))
    if not len(rows):
        return album.images[index]
    return np.ascontiguousarray(album.images[index][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _framing(album: PreparedAlbum, index: int) -> str | None:
    masks = {name: album.masks[index, place] for place, name in enumerate(album.asset_names)}
    return framing_of({name: mask for name, mask in masks.items() if mask.any()}, album.person[index])


def _side(view: str | None) -> str:
    if view is None:
        return "unknown"
    return next((side for side in ("front", "back", "overhead") if side in view.split()), "side")


def _count(words: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    found = list(words)
    return {word: found.count(word) for word in order if word in found}


def _counts_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {count}" for word, count in counts.items())


def _face_words(found: Examination) -> str:
    if not found.face_px:
        return "found in no photo"
    cells = found.face_px * found.model_cells / found.resolution
    return (
        f"up to {found.face_px} of {found.resolution} pixels high, "
        f"{cells:.1f} of the model's {found.model_cells} cells; "
        f"large enough ({LEAST_CELLS:.0f} cells, {found.least_face_px} pixels) in {_photos(found.face_photos)}"
    )


def _photos(number: int) -> str:
    return f"{number} photo{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
