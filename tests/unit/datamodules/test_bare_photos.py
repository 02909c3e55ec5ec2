"""Albums without masks: what happens to each photo, with a segmentor that sees coloured squares."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label
from skimage.color import rgb2lab

from datamodules.album import AlbumConfig
from datamodules.album_reader import read_album
from datamodules.assets import prepare_assets
from datamodules.assistants import Assistants
from datamodules.bare_photos import framing_of
from datamodules.overrides import AlbumOverrides, PhotoOverride, SubjectPoint
from datamodules.segmentation.config import SegmentorConfig
from datamodules.segmentation.segmentor import Box, Cut, Parts, PersonFound
from datamodules.selection import SelectionConfig, sharpness
from modules.errors import UserError

RED, BLUE = (220, 30, 30), (30, 30, 220)


class Squares:
    """Finds squares that are not grey; the upper fifth of one is its face, the rest its shirt."""

    identity = "squares 1"

    def __init__(self) -> None:
        self.asked = 0

    def people(self, photo: np.ndarray) -> list[PersonFound]:
        self.asked += 1
        coloured = np.ptp(photo.astype(int), axis=2) > 60
        pieces, number = label(coloured)
        found = []
        for index in range(1, number + 1):
            ys, xs = np.nonzero(pieces == index)
            if len(ys) < 40:
                continue
            box = Box(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
            lab = np.median(rgb2lab(photo)[pieces == index], 0)
            cut = photo[box.top : box.bottom, box.left : box.right]
            found.append(
                PersonFound(
                    box=box,
                    area=len(ys) / coloured.size,
                    sharpness=sharpness(cut),
                    appearance={"upper": lab},
                    outline=(pieces == index)[box.top : box.bottom, box.left : box.right],
                )
            )
        return sorted(found, key=lambda person: -person.area)

    def outfit(self, cuts: Sequence[Cut]) -> list[Parts]:
        found = []
        for cut in cuts:
            pixels = cut.pixels()
            person = (np.ptp(pixels.astype(int), axis=2) > 60) & ~cut.others()
            rows = np.flatnonzero(person.any(1))
            line = rows[0] + max(1, len(rows) // 5)
            above = np.arange(len(person))[:, None] < line
            masks = {"face": person & above, "shirt": person & ~above}
            found.append(Parts(masks=masks, person=person, view="back left", view_confidence=0.9))
        return found


def square_photo(*squares: tuple[tuple[int, int, int], int, int, int], size: int = 128, noise: int = 12) -> np.ndarray:
    """Grey noise with squares (colour, left, top, side)."""
    rng = np.random.default_rng(sum(left + 7 * top for _, left, top, _ in squares) + size)
    image = np.full((size, size, 3), 128) + rng.integers(-noise, noise + 1, (size, size, 1))
    for colour, left, top, side in squares:
        texture = rng.integers(-noise, noise + 1, (side, side, 1))
        image[top : top + side, left : left + side] = np.array(colour) + texture
    return np.clip(image, 0, 255).astype(np.uint8)


def write(folder: Path, **photos: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in photos.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def config(**changes: object) -> AlbumConfig:
    settings: dict = {
        "working_resolution": 64,
        "segmentor": SegmentorConfig(photo_px=256, side_px=64),
        "selection": SelectionConfig(max_hash_distance=3, min_sharpness=1.0),
    }
    return AlbumConfig(**(settings | changes))


def read(folder: Path, segmentor: Squares | None = None, overrides: AlbumOverrides | None = None, **changes: object):  # type: ignore[no-untyped-def]
    used = segmentor or Squares()
    assistants = Assistants(segmentor=lambda: used, overrides=overrides or AlbumOverrides())
    return read_album(folder, config(**changes), assistants)


def album_of_three(folder: Path) -> Path:
    return write(
        folder,
        a=square_photo((RED, 20, 20, 80)),
        b=square_photo((RED, 30, 10, 90), (BLUE, 2, 100, 20)),
        c=square_photo((RED, 70, 60, 24)),
    )


def test_a_bare_folder_gets_masks_names_and_views(tmp_path: Path) -> None:
    album = read(album_of_three(tmp_path / "anna"))
    assert album.asset_names == ("face", "shirt")
    assert [photo.stem for photo in album.photos] == ["a", "b", "c"]
    assert {photo.view for photo in album.photos} == {"back left"}
    assert all(photo.person is not None and photo.masks["shirt"].any() for photo in album.photos)
    assert any("squares 1" in note for note in album.notes)


def test_someone_else_is_in_no_mask(tmp_path: Path) -> None:
    photo = read(album_of_three(tmp_path / "anna")).photos[1]
    colours = photo.image[photo.masks["shirt"] | photo.masks["face"]]
    assert (colours[:, 0] > colours[:, 2]).all()


def test_a_small_subject_is_cut_out(tmp_path: Path) -> None:
    folder = album_of_three(tmp_path / "anna")
    shares = []
    for crop in (True, False):
        assistants = Assistants(segmentor=Squares)
        album = read_album(folder, config(segmentor=SegmentorConfig(photo_px=256, side_px=64, crop=crop)), assistants)
        person = album.photos[2].person
        assert person is not None
        shares.append(person.mean())
    assert shares[0] > 0.4 > 0.1 > shares[1]


def test_every_photo_that_is_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    folder = album_of_three(tmp_path / "anna")
    write(
        folder,
        again=square_photo((RED, 20, 20, 80)),
        blue=square_photo((BLUE, 20, 20, 70)),
        dark=np.zeros((64, 64, 3), np.uint8),
        empty=square_photo(),
        flat=square_photo((RED, 24, 20, 84), noise=0),
        tiny=square_photo((RED, 50, 50, 9)),
    )
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photo")
    reasons = dict(read(folder).set_aside)
    for name, words in {
        "again.png": "nearly the same photo as a.png",
        "blue.png": "nobody who is dressed like",
        "dark.png": "no person",
        "empty.png": "no person",
        "flat.png": "blurred",
        "tiny.png": "of its area",
        "broken.jpg": "broken header|not a JPEG",
    }.items():
        reason = reasons.pop(name)
        assert any(word in reason for word in words.split("|")), (name, reason)
    assert reasons == {}


def test_a_person_can_overrule(tmp_path: Path) -> None:
    folder = album_of_three(tmp_path / "anna")
    write(folder, again=square_photo((RED, 20, 20, 80)), flat=square_photo((RED, 24, 20, 84), noise=0))
    keep = AlbumOverrides(
        photos={"again": PhotoOverride(drop=False), "flat": PhotoOverride(drop=False), "c": PhotoOverride(drop=True)}
    )
    album = read(folder, overrides=keep)
    assert {"again", "flat"} <= {photo.stem for photo in album.photos}
    assert dict(album.set_aside)["c.png"] == "assets.yaml drops it"


def test_a_point_says_who_is_meant(tmp_path: Path) -> None:
    both = [square_photo((RED, 4 + shift, 20, 60), (BLUE, 80, 60 + shift, 30)) for shift in (0, 3, 6)]
    folder = write(tmp_path / "two", a=both[0], b=both[1], c=both[2])

    def mean_colour(overrides: AlbumOverrides) -> np.ndarray:
        photo = read(folder, overrides=overrides, selection=SelectionConfig(max_hash_distance=-1)).photos[1]
        return photo.image[photo.masks["shirt"]].mean(0)

    assert mean_colour(AlbumOverrides()).argmax() == 0
    assert mean_colour(AlbumOverrides(subject_point=SubjectPoint(photo="a", x=0.72, y=0.6))).argmax() == 2
    nobody = read(folder, overrides=AlbumOverrides(subject_point=SubjectPoint(photo="a", x=0.99, y=0.01)))
    assert any("nobody was found at the point" in note for note in nobody.notes)


def test_words_of_the_album_stand_above_what_was_estimated(tmp_path: Path) -> None:
    folder = album_of_three(tmp_path / "anna")
    (folder / "album.json").write_text(
        '{"gender": "woman", "assets": {"shirt": "sleeveless"}, "photos": {"a": {"view": "front"}}}'
    )
    album = read(folder)
    assert (album.gender, album.photos[0].view, album.photos[1].view) == ("woman", "front", "back left")
    assert [(asset.name, asset.words) for asset in album.assets] == [("face", ""), ("shirt", "sleeveless")]


def test_an_unsure_view_stays_unknown(tmp_path: Path) -> None:
    album = read(album_of_three(tmp_path / "anna"), min_view_confidence=0.95)
    assert {photo.view for photo in album.photos} == {None}


def test_masks_that_came_along_are_taken_and_nobody_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "anna"
    write(folder / "image", a=square_photo((RED, 20, 20, 80)), b=square_photo((RED, 10, 20, 80)))
    (folder / "mask").mkdir()
    Image.fromarray(np.full((128, 128), 255, np.uint8)).save(folder / "mask" / "a_shirt.png")
    segmentor = Squares()
    album = read(folder, segmentor)
    assert segmentor.asked == 0
    assert [photo.stem for photo in album.photos] == ["a"]
    assert "has no mask" in dict(album.set_aside)["b.png"]
    assistants = Assistants(segmentor=lambda: segmentor)
    settings = config(segmentor=SegmentorConfig(method="mini", photo_px=256, side_px=64))
    assert [photo.stem for photo in read_album(folder, settings, assistants).photos] == ["a", "b"]


def test_equal_albums_give_equal_bytes_and_another_segmentor_another_hash(tmp_path: Path) -> None:
    folder = album_of_three(tmp_path / "anna")
    for name in ("first", "second"):
        prepare_assets(read(folder), tmp_path / name)
    for file in ("assets.npz", "assets.json", "assets.png"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    other = Squares()
    other.identity = "squares 2"
    assert read(folder).content_hash != read(folder, other).content_hash


def test_an_album_of_nobody_is_one_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "nobody", a=square_photo(), b=square_photo(size=100))
    with pytest.raises(UserError, match=r"0 usable photos.*a.png: shows no person"):
        read(folder)


def test_heic_photos_are_read_upright_and_without_their_metadata(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    folder = tmp_path / "phone"
    folder.mkdir()
    upright = square_photo((RED, 20, 4, 60), size=96)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "SECRETMAKER"
    buffer = io.BytesIO()
    # Orientation 6: the camera was turned, the stored rows are the picture's columns.
    Image.fromarray(np.rot90(upright)).save(buffer, "HEIF", quality=95, exif=exif.tobytes())
    (folder / "IMG_0001.HEIC").write_bytes(buffer.getvalue())
    prepared = prepare_assets(read(folder), tmp_path / "out")
    assert prepared.stems == ("IMG_0001",)
    rows = np.flatnonzero(prepared.person[0].any(1))
    assert rows[0] < 10, "the square stands at the upper edge of the upright photo"
    for path in (tmp_path / "out").iterdir():
        assert b"SECRETMAKER" not in path.read_bytes()


def test_framing_follows_from_the_height_of_the_head() -> None:
    def framing(head: int, body: int) -> str | None:
        person = np.zeros((200, 40), bool)
        person[10 : 10 + body] = True
        face = np.zeros_like(person)
        face[10 : 10 + head] = True
        return framing_of({"face": face, "shirt": person & ~face}, person)

    assert framing(24, 180) == "full body"
    assert framing(60, 170) == "upper body"
    assert framing(150, 180) == "head"
    assert framing_of({"shirt": np.ones((8, 8), bool)}, np.ones((8, 8), bool)) is None
