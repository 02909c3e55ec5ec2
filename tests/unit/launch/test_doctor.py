"""Verdicts and advice of the album doctor, on albums made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from datamodules.album import SetAside
from datamodules.assets import PreparedAlbum
from datamodules.selection import SelectionConfig
from launch.doctor import Examination, advise, describe, examine, grouped

SIDE, CELLS = 64, 16  # four pixels a cell
ROWS = {"face": (2, 14), "shirt": (16, 36), "trousers": (38, 54), "shoes": (56, 62)}
VIEWS = ("front", "left", "back", "front right", "back", "front", "right", "back left")


def album(num_photos: int = 8, views: Sequence[str | None] = VIEWS, **changes: Any) -> PreparedAlbum:
    """Photos of noise, no two alike, with a face of 3 cells, shirt, trousers and shoes, seen from all sides."""
    rng = np.random.default_rng(0)
    masks = np.zeros((num_photos, len(ROWS), SIDE, SIDE), bool)
    for place, (top, bottom) in enumerate(ROWS.values()):
        masks[:, place, top:bottom, 16:48] = True
    fields: dict[str, Any] = {
        "name": "anna",
        "gender": "woman",
        "content_hash": "0",
        "asset_names": tuple(ROWS),
        "asset_words": ("oval", "", "", ""),
        "stems": tuple(f"IMG_{index}" for index in range(num_photos)),
        "views": tuple(views[:num_photos]),
        "framings": ("full body",) * num_photos,
        "poses": (None,) * num_photos,
        "backgrounds": (None,) * num_photos,
        "images": rng.integers(0, 256, (num_photos, SIDE, SIDE, 3), dtype=np.uint8),
        "valid": np.ones((num_photos, SIDE, SIDE), bool),
        "masks": masks,
        "person": masks.any(1),
    }
    return PreparedAlbum(**{**fields, **changes})


def look(prepared: PreparedAlbum) -> Examination:
    return examine(prepared, CELLS, SelectionConfig())


def without(asset: str, photos: slice) -> np.ndarray:
    masks = album().masks.copy()
    masks[photos, list(ROWS).index(asset)] = False
    return masks


def test_a_good_album_will_do() -> None:
    found = look(album())
    assert found.will_do
    assert advise(found) == ["This album will do."]
    text = "\n".join(describe(found))
    assert text.startswith("anna: 8 photos can be used, 0 cannot\n")
    assert "face (oval): 8 photos, good" in text
    assert "up to 12 of 64 pixels high, 3.0 of the model's 16 cells" in text
    assert "front 3, side 2, back 3" in text
    assert "full body 8" in text
    assert "10 to 50 photos" in text


def test_two_photos_are_too_few() -> None:
    found = look(album(2))
    assert not found.will_do
    assert found.verdict == "It will not do: only 2 photos can be used."
    assert found.findings[0].advice.startswith("Add photos, ten or more in all")


def test_few_photos_limit() -> None:
    found = look(album(5))
    assert found.will_do
    assert found.verdict.startswith("It will do, but: 5 photos are few")
    assert "1. Add 3 photos or more" in "\n".join(advise(found))


def test_no_photo_from_behind() -> None:
    found = look(album(views=("front", "left") * 4))
    assert found.verdict == "It will do, but: no photo is known to be from behind."
    assert found.findings[0].advice == "Add two photos from behind."


def test_unknown_views() -> None:
    one = look(album(views=("front", "left", None, "front", "left", "front", "right", "front")))
    advice = "Add two photos from behind, or say which side is shown by 1 photo whose view is unknown."
    assert one.findings[0].advice == advice
    assert one.views == {"front": 4, "side": 3, "unknown": 1}
    most = look(album(views=("front", *[None] * 7)))
    assert most.verdict == "It will do, but: which side they show is unknown of 7 of 8 photos."
    assert most.findings[0].advice.startswith("Say which side each photo shows")


def test_a_face_below_two_cells_teaches_nothing() -> None:
    masks = album().masks.copy()
    masks[:, 0, 9:] = False  # 7 rows are left, 1.75 cells
    found = look(album(masks=masks))
    assert (found.face_px, found.least_face_px, found.face_photos) == (7, 8, 0)
    assert found.verdict == "It will do, but: the face is too small in every photo."
    assert found.findings[0].advice.startswith("Add two photos of the head from nearby")
    masks[0, 0, 9] = True  # 8 rows in one photo
    assert look(album(masks=masks)).verdict == "It will do, but: the face is large enough in one photo only."


def test_no_face_at_all() -> None:
    found = look(album(masks=without("face", slice(None))))
    assert "no photo shows the face" in found.verdict
    assert "face: found in no photo" in "\n".join(describe(found))


@pytest.mark.parametrize(
    ("seen", "enough", "words", "advice"),
    [
        (1, "too few", "in one photo only", "Add 3 photos in which the shoes can be seen."),
        (2, "thin", "in few photos", "Add 2 photos in which the shoes can be seen."),
        (3, "thin", "in few photos", "Add 1 photo in which the shoes can be seen."),
    ],
)
def test_an_asset_that_is_seldom_seen(seen: int, enough: str, words: str, advice: str) -> None:
    found = look(album(masks=without("shoes", slice(seen, None))))
    shoes = found.assets[-1]
    assert (shoes.name, shoes.photos, shoes.enough) == ("shoes", seen, enough)
    assert found.verdict == f"It will do, but: the shoes can be seen {words}."
    assert advice in [finding.advice for finding in found.findings]


def test_four_photos_of_an_asset_are_good() -> None:
    found = look(album(masks=without("shoes", slice(4, None))))
    assert found.assets[-1].enough == "good"
    assert found.verdict == "This album will do."


def test_small_parts() -> None:
    masks = album().masks.copy()
    masks[:, 3] = False
    masks[:, 3, 56:58, 16:20] = True  # 8 pixels, .7 cells
    found = look(album(masks=masks))
    assert found.verdict == "It will do, but: too small in every photo: shoes."
    assert found.findings[0].advice == "Photograph the shoes closer."
    masks[:, 3, 56:60, 16:22] = True  # 24 pixels, 1.2 cells: good for a colour
    found = look(album(masks=masks))
    assert found.verdict == "This album will do."
    assert [finding.advice for finding in found.findings] == ["Photograph the shoes closer."]


def test_nobody_is_dressed() -> None:
    only_face = album().masks[:, :1]
    found = look(album(masks=only_face, asset_names=("face",), asset_words=("",), person=only_face[:, 0]))
    assert not found.will_do
    assert "no photo shows any clothes" in found.verdict


def test_nobody_is_seen_whole() -> None:
    found = look(album(framings=("head",) * 7 + ("full body",)))
    assert found.verdict == "It will do, but: one photo only shows the whole person."
    assert found.framings == {"full body": 1, "head": 7}


def test_unknown_framings_are_told_from_the_masks() -> None:
    # The head has 12 of the person's 60 rows: a whole body.
    assert look(album(framings=(None,) * 8)).framings == {"full body": 8}


def test_duplicates_count_once() -> None:
    images = album().images.copy()
    images[4] = images[3]
    found = look(album(images=images))
    assert found.duplicates == (("IMG_4", "IMG_3"),)
    assert found.verdict == "It will do, but: 7 different photos are few."
    assert "IMG_3 and IMG_4 are nearly the same: leave one of them out." in "\n".join(advise(found))
    assert "nearly the same photos: IMG_3 and IMG_4" in "\n".join(describe(found))


def test_blurred_photos() -> None:
    images = album().images.copy()
    images[2] = 90
    found = look(album(images=images))
    assert found.blurred == ("IMG_2",)
    assert found.verdict == "This album will do."
    assert "Take again, or leave out, what is blurred: IMG_2." in "\n".join(advise(found))


def test_remarks_limit_nothing() -> None:
    found = look(album(gender="person"))
    assert found.verdict == "This album will do."
    assert "the model hears the word person" in "\n".join(describe(found))
    assert '"gender": "man" or "woman"' in found.findings[0].advice


def test_what_stops_comes_first() -> None:
    found = look(album(2, views=(None, None), gender="person"))
    weights = [finding.weight for finding in found.findings]
    assert weights == sorted(weights, key=("stops", "limits", "remark").index)
    assert set(weights) == {"stops", "limits", "remark"}
    assert found.verdict == "It will not do: only 2 photos can be used."


def test_photos_and_masks_that_are_left_out_are_told_apart() -> None:
    aside = (
        SetAside("IMG_9.jpg", "is blurred (sharpness 0.5, 1.2 is needed)"),
        SetAside("mask/IMG_1_cap.png", "is empty: no pixel is white"),
        SetAside("IMG_1_cap", "this mask covers 0.010% of the photo, less than 0.100%"),
        SetAside("cap", "album.json names this asset, but no usable photo has a mask of it"),
    )
    found = look(album(set_aside=aside))
    assert [item.name for item in found.lost_photos] == ["IMG_9.jpg"]
    assert [item.name for item in found.lost_parts] == ["mask/IMG_1_cap.png", "IMG_1_cap", "cap"]
    text = "\n".join(describe(found))
    assert "8 photos can be used, 1 cannot" in text
    assert all(item.reason in text for item in aside)


def test_most_photos_are_lost() -> None:
    found = look(album(set_aside=tuple(SetAside(f"{index}.jpg", "is almost black") for index in range(9))))
    assert "9 of 17 photos cannot be used" in found.verdict


def test_many_reasons_are_grouped_and_every_name_is_said() -> None:
    few = [SetAside("a.jpg", "is blurred (sharpness 0.5, 1.2 is needed)")]
    assert grouped(few) == ["a.jpg: is blurred (sharpness 0.5, 1.2 is needed)"]
    many = [SetAside(f"{n}.jpg", f"is blurred (sharpness 0.{n}, 1.2 is needed)") for n in range(6)]
    many += [SetAside(f"{n}.png", f"is nearly the same photo as {n}.jpg") for n in range(3)]
    many += [SetAside("b.jpg", "has only 9 x 9 pixels; the short side needs 16")]
    assert grouped(many) == [
        "0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg: is blurred",
        "0.png, 1.png, 2.png: is nearly the same photo as another",
        "b.jpg: has only 9 x 9 pixels; the short side needs 16",
    ]
