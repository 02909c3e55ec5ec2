"""Reading album folders: both layouts, and everything that can be wrong with one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.album import AlbumConfig, resize_mask
from datamodules.album_files import MAX_ASSETS, AlbumFolder, split_mask_name
from datamodules.album_reader import read_album
from datamodules.assets import prepare_assets
from modules.errors import UserError


def reasons(album) -> dict[str, str]:
    return dict(album.set_aside)


def save_mask(path: Path, size: tuple[int, int] = (48, 64), value: int = 255) -> None:
    Image.new("L", size, value).save(path)


def test_own_layout(write_album) -> None:
    folder = write_album(
        ("b_1", "a"),
        ("shirt", "face"),
        {
            "gender": "woman",
            "assets": {"shirt": "long-sleeved", "face": "oval"},
            "photos": {
                "b_1": {"view": "front left", "framing": "full body", "pose": "standing"},
                "a.png": {"view": "back"},
            },
        },
    )
    album = read_album(folder)
    assert (album.name, album.gender) == ("anna", "woman")
    assert [(asset.name, asset.words) for asset in album.assets] == [("face", "oval"), ("shirt", "long-sleeved")]
    assert [photo.stem for photo in album.photos] == ["a", "b_1"]
    first, second = album.photos
    assert (first.view, first.framing, first.pose) == ("back", None, None)
    assert (second.view, second.framing, second.pose, second.background) == (
        "front left",
        "full body",
        "standing",
        None,
    )
    np.testing.assert_array_equal(second.image, np.asarray(Image.open(folder / "image" / "b_1.png")))
    assert list(second.masks) == ["face", "shirt"]
    assert second.masks["face"].shape == (64, 48)
    assert second.masks["face"].sum() == 16 * 28
    assert (album.set_aside, album.notes) == ((), ())


def test_layout_of_the_reference_with_photos_in_the_folder(write_album) -> None:
    folder = write_album()
    for photo in (folder / "image").iterdir():
        photo.rename(folder / photo.name)
    (folder / "image").rmdir()
    (folder / "gpt4v_response.json").write_text(
        '{"gender": "male", "face": "round", "shirt": "tight", "shoes": "flat"}'
    )
    album = read_album(folder)
    assert album.gender == "man"
    assert album.asset_names == ("face", "shirt")
    assert "no usable photo has a mask" in reasons(album)["shoes"]


def test_without_json_everything_is_unknown(write_album) -> None:
    album = read_album(write_album())
    assert album.gender == "person"
    assert all(photo.view is None for photo in album.photos)
    assert "album.json" in album.notes[0]


def test_one_photo_is_an_album(write_album) -> None:
    assert len(read_album(write_album(("only",))).photos) == 1


def test_own_json_is_preferred(write_album) -> None:
    folder = write_album(description={"gender": "woman"})
    (folder / "gpt4v_response.json").write_text("broken")
    album = read_album(folder)
    assert album.gender == "woman"
    assert any("gpt4v_response.json" in note for note in album.notes)


def test_large_photos_are_brought_to_the_working_resolution(write_album) -> None:
    folder = write_album(("a",))
    Image.new("RGB", (1000, 3000)).save(folder / "image" / "a.png")
    save_mask(folder / "mask" / "a_face.png", (500, 1500))
    (folder / "mask" / "a_shirt.png").unlink()
    photo = read_album(folder, AlbumConfig(working_resolution=96)).photos[0]
    assert photo.image.shape == (96, 32, 3)
    assert photo.masks["face"].shape == (96, 32)
    assert photo.masks["face"].all()


def test_more_assets_than_anybody_wears_are_refused(write_album) -> None:
    folder = write_album(("a",), ("face",), None)
    for number in range(MAX_ASSETS + 3):
        save_mask(folder / "mask" / f"a_thing {number:02d}.png")
    album = read_album(folder)
    assert len(album.asset_names) == MAX_ASSETS
    assert sum("one asset more than the 40" in item.reason for item in album.set_aside) == 4


def test_masks_of_one_asset_under_two_names_are_joined(write_album) -> None:
    folder = write_album(("a",), ("hair", "haircut"))
    album = read_album(folder)
    assert album.asset_names == ("haircut",)
    assert album.photos[0].masks["haircut"].sum() == 2 * 16 * 28


def test_mask_follows_the_photos_exif_rotation(write_album) -> None:
    folder = write_album(("a",), ("face",))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(folder / "image" / "a.png", exif=exif.tobytes())
    assert read_album(folder).photos[0].image.shape == (64, 48, 3)
    save_mask(folder / "mask" / "a_face.png", (64, 48))
    with pytest.raises(UserError, match="upright"):
        read_album(folder)


def test_no_metadata_is_kept(write_album) -> None:
    folder = write_album(("a",))
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 0.0, 0.0)}
    exif[0x010E] = "SECRET PLACE"
    Image.new("RGB", (48, 64)).save(folder / "image" / "a.png", exif=exif.tobytes())
    assert "SECRET" not in repr(read_album(folder))


def test_hash_follows_content_and_not_place(write_album, tmp_path: Path) -> None:
    folder = write_album(description={"gender": "man"})
    first = read_album(folder).content_hash
    moved = tmp_path / "elsewhere" / "bob"
    shutil.copytree(folder, moved)
    assert read_album(moved).content_hash == first
    save_mask(moved / "mask" / "a_face.png")
    changed = read_album(moved).content_hash
    (folder / "album.json").write_text('{"gender": "woman"}')
    assert len({first, changed, read_album(folder).content_hash}) == 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"Dear diary", "not a JPEG"),
        (b"\xff\xd8\xff\xe0" + bytes(30), "broken header|damaged|not a JPEG"),
    ],
)
def test_bad_photo_is_set_aside_and_the_others_go_on(write_album, data: bytes, reason: str) -> None:
    folder = write_album()
    (folder / "image" / "a.png").write_bytes(data)
    album = read_album(folder)
    assert [photo.stem for photo in album.photos] == ["b"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(reasons(album)["a.png"])


def test_every_other_reason_to_set_something_aside(write_album) -> None:
    folder = write_album(
        ("a", "b", "c", "d", "e", "f", "g"), description={"photos": {"zoe": {}}, "assets": {"face": ""}}
    )
    image, mask = folder / "image", folder / "mask"
    save_mask(mask / "a_face.png", (64, 64))
    save_mask(mask / "a_shirt.png", value=0)
    (image / "b.jpg").write_bytes((image / "b.png").read_bytes())
    (mask / "c_face.png").unlink()
    (mask / "c_shirt.png").unlink()
    Image.new("RGB", (200, 8)).save(image / "d.png")
    Image.new("RGB", (1100, 1000)).save(image / "e.png")
    (image / "notes.txt").write_text("hello")
    (image / "dir.jpg").mkdir()
    (mask / "dir_face.png").write_bytes((mask / "b_face.png").read_bytes())
    (image / ".hidden").write_text("not looked at")
    (mask / "nobody_face.png").write_bytes((mask / "b_face.png").read_bytes())
    (mask / "readme.md").write_text("hello")
    (mask / "b_<x>.png").write_bytes((mask / "b_face.png").read_bytes())
    (mask / "f_face.png").write_bytes(b"broken")
    tiny = Image.new("L", (480, 640))
    tiny.putpixel((3, 3), 255)
    tiny.save(mask / "g_face.png")
    album = read_album(folder, AlbumConfig(max_pixels=1_000_000))
    found = reasons(album)
    assert [photo.stem for photo in album.photos] == ["b", "f", "g"]
    for name, words in {
        "mask/a_face.png": "64 x 64 pixels, but a.png has 48 x 64",
        "mask/a_shirt.png": "empty",
        "a.png": "none of its masks",
        "b.png": "same name as b.jpg",
        "c.png": "has no mask",
        "d.png": "200 x 8",
        "e.png": "limit of 1000000",
        "notes.txt": "photo types",
        "dir.jpg": "not a regular file",
        "mask/nobody_face.png": "fits no photo",
        "mask/readme.md": "no image",
        "mask/b_<x>.png": "asset name",
        "mask/f_face.png": "not a JPEG",
        "mask/g_face.png": "working resolution",
        "zoe": "no such file",
    }.items():
        assert words in found.pop(name)
    assert found == {}
    assert any('"shirt"' in note for note in album.notes)


def test_photos_beyond_the_maximum_are_set_aside(write_album) -> None:
    album = read_album(write_album(("a", "b", "c")), AlbumConfig(max_photos=2))
    assert len(album.photos) == 2
    assert "album.max_photos" in reasons(album)["c.png"]


@pytest.mark.parametrize("name", [b"an\xffna", b"an\nna"])
def test_a_folder_whose_name_is_not_text_is_prepared_all_the_same(name: bytes, write_album, tmp_path: Path) -> None:
    folder = write_album().rename(tmp_path / os.fsdecode(name))
    prepared = prepare_assets(read_album(folder), tmp_path / "out")
    assert prepared.name == "an?na"


def test_unprintable_names_are_refused(write_album) -> None:
    folder = write_album()
    (folder / "image" / "a.png").rename(folder / "image" / "a\nb.png")
    album = read_album(folder)
    assert "cannot be printed" in reasons(album)[ascii("a\nb.png")]


def test_accented_names_match_in_either_normal_form(write_album) -> None:
    folder = write_album(("zoe\u0301",), description={"photos": {"zo\u00e9": {"view": "left"}}})
    assert read_album(folder).photos[0].view == "left"


def test_links_inside_are_followed_and_links_out_are_refused(write_album, tmp_path: Path) -> None:
    folder = write_album(("a", "b", "c", "d"))
    for stem in ("b", "c", "d"):
        (folder / "image" / f"{stem}.png").unlink()
    outside = tmp_path / "secret.png"
    outside.write_bytes((folder / "image" / "a.png").read_bytes())
    (folder / "image" / "b.png").symlink_to(outside)
    (folder / "image" / "c.png").symlink_to("a.png")
    (folder / "image" / "d.png").symlink_to("d.png")
    album = read_album(folder)
    assert [photo.stem for photo in album.photos] == ["a", "c"]
    assert "leads out" in reasons(album)["b.png"]
    assert "leads to itself" in reasons(album)["d.png"] or "cannot be read" in reasons(album)["d.png"]
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert len(read_album(linked).photos) == 2


@pytest.mark.parametrize("part", ["image", "mask", "album.json"])
def test_folders_and_json_may_not_be_links_out(write_album, tmp_path: Path, part: str) -> None:
    folder = write_album(description={})
    (folder / part).rename(tmp_path / "moved")
    (folder / part).symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match="leads out of the album"):
        read_album(folder)


def test_a_pipe_is_not_opened(write_album) -> None:
    folder = write_album()
    (folder / "image" / "a.png").unlink()
    os.mkfifo(folder / "image" / "a.png")
    assert "not a regular file" in reasons(read_album(folder))["a.png"]


def test_files_above_the_byte_limit_are_not_read(write_album) -> None:
    folder = write_album(("a", "b"))
    with (folder / "image" / "a.png").open("ab") as file:
        file.truncate(1 << 40)  # sparse: takes no room on the disk
    assert "max_file_bytes" in reasons(read_album(folder))["a.png"]


@pytest.mark.parametrize(
    "which", ["missing", "file", "empty", "no_masks", "foreign_masks", "no_mask_folder", "all_bad", "name"]
)
def test_unusable_albums_end_in_one_sentence(write_album, tmp_path: Path, which: str) -> None:
    folder = write_album(("a",))
    match which:
        case "missing":
            folder, words = tmp_path / "nowhere", "does not exist"
        case "file":
            folder, words = folder / "image" / "a.png", "is a file"
        case "empty":
            (folder / "image" / "a.png").unlink()
            words = "holds no photos"
        case "no_masks":
            for path in (folder / "mask").iterdir():
                path.unlink()
            words = "set album.segmentor.method=mini"
        case "no_mask_folder":
            shutil.rmtree(folder / "mask")
            words = r"mask/<photo>_<asset>\.png"
        case "foreign_masks":
            for path in list((folder / "mask").iterdir()):
                path.rename(path.with_name(f"other{path.name}"))
            words = "othera_face.png.*fits no photo"
        case "all_bad":
            (folder / "image" / "a.png").write_bytes(b"x")
            words = "has 0 usable photos.*not a JPEG"
        case "name":
            folder, words = tmp_path / ("x" * 300), "cannot be reached|does not exist"
    with pytest.raises(UserError, match=words) as found:
        read_album(folder)
    assert "\n" not in str(found.value)


def test_min_photos_is_enforced(write_album) -> None:
    with pytest.raises(UserError, match=r"has 2 usable photos, but at least 3 \(album.min_photos\)"):
        read_album(write_album(), AlbumConfig(min_photos=3))


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch):
    """Makes one path unreadable; chmod would not stop the root user of a container."""

    def deny(path: Path) -> None:
        def refuse(*_arguments: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        real_read, real_scan, real_exists = Path.read_bytes, os.scandir, Path.exists
        monkeypatch.setattr(Path, "read_bytes", lambda self: refuse() if self == path else real_read(self))
        monkeypatch.setattr(os, "scandir", lambda where: refuse() if Path(where) == path else real_scan(where))
        monkeypatch.setattr(Path, "exists", lambda self: refuse() if self == path else real_exists(self))

    return deny


def test_no_permission(write_album, denied) -> None:
    folder = write_album(description={})
    denied(folder / "image" / "a.png")
    assert "Permission denied" in reasons(read_album(folder))["a.png"]
    for part, words in (
        ("image", "check its permissions"),
        ("album.json", "Permission denied"),
        ("", "cannot be reached"),
    ):
        denied(folder / part if part else folder)
        with pytest.raises(UserError, match=words):
            read_album(folder)


def test_names_of_masks_are_split_at_the_right_underscore() -> None:
    stems = {"a", "a_b", "img_01"}
    assert split_mask_name("a_face", stems, ()) == ("a", "face")
    assert split_mask_name("img_01_tank_top", stems, ()) == ("img_01", "tank_top")
    assert split_mask_name("a_b_face", stems, ()) == ("a_b", "face")
    assert split_mask_name("a_b_face", {"a"}, ()) == ("a", "b_face")
    assert split_mask_name("a_b_coat", stems, {"b coat"}) == ("a", "b_coat")
    assert split_mask_name("a_b_<", stems, {"b coat"}) == ("a_b", "<")
    assert split_mask_name("c_face", stems, ()) is None
    assert split_mask_name("a_", stems, ()) is None


def test_a_folder_must_be_inside(tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    with pytest.raises(UserError, match="leads out"):
        AlbumFolder(tmp_path / "album", 100).entries(tmp_path)


def test_resize_mask_keeps_area() -> None:
    mask = np.zeros((64, 48), bool)
    mask[16:48, 12:36] = True
    assert resize_mask(mask, 64, 48) is mask
    for height, width in ((32, 24), (128, 96), (640, 480)):
        assert resize_mask(mask, height, width).mean() == pytest.approx(mask.mean(), rel=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_photos": 0}, "min_photos"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"max_file_bytes": 0}, "max_file_bytes"),
        ({"min_side_px": 0}, "min_side_px"),
        ({"min_photos": 3, "max_photos": 2}, "max_photos"),
        ({"working_resolution": 8}, "working_resolution"),
        ({"min_mask_fraction": 1.0}, "min_mask_fraction"),
        ({"max_mask_fraction": 0.0}, "max_mask_fraction"),
        ({"view_vocabulary": "nine"}, "view_vocabulary"),
    ],
)
def test_config_ranges(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"{words} must .*found"):
        AlbumConfig(**change)
