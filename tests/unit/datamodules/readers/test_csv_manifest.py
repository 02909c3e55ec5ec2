"""Albums by a table, and tables that lie."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datamodules.readers.album_folder import Imported, import_album
from datamodules.readers.config import ImportConfig
from datamodules.readers.csv_manifest import list_albums
from datamodules.readers.source import Listing, SourceFolder
from modules.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Photos a.jpg, b.png and sub/a.jpg of 48 x 64 pixels, with masks a_face.png and b_face.png."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "sub/a.jpg"):
        Image.fromarray(rng.integers(0, 255, (64, 48, 3), dtype=np.uint8)).save(source / name)
    mask = np.zeros((64, 48), np.uint8)
    mask[8:24, 10:38] = 255
    for name in ("a_face.png", "b_face.png"):
        Image.fromarray(mask).save(source / name)
    return source


def listed(folder: Path, text: str | bytes, **settings) -> tuple[Listing, SourceFolder, ImportConfig]:
    table = folder / "albums.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = ImportConfig(**settings)
    files = SourceFolder(folder, max_file_bytes=config.max_file_bytes, allow_outside=config.allow_outside)
    return list_albums(files, files.root / "albums.csv", config), files, config


def imported(folder: Path, text: str | bytes, **settings) -> list[Imported]:
    listing, files, config = listed(folder, text, **settings)
    out = folder.parent / "out"
    out.mkdir(exist_ok=True)
    return [import_album(album, out, files, config, reader="csv") for album in listing.albums]


def words(album: Imported) -> dict:
    return json.loads((album.folder / "album.json").read_text())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_usual_table_is_read(folder, delimiter, encoding, end):
    rows = [
        ["Album", " photo", "mask_face", "view", "gender", "framing", "pose", "background"],
        ["zoë", "a.jpg", "a_face.png", "Front-Left view", "female", "full", "arms raised", ""],
        ["zoë", "b.png", "", "side", "", "", "", "white"],
        ["bob", "sub/a.jpg", "", "", "", "", "", ""],
    ]
    text = end.join(["", *map(delimiter.join, rows), ""])
    bob, zoe = imported(folder, text.encode(encoding))
    assert (bob.folder.name, zoe.folder.name) == ("bob", "zoë")
    assert bob.refused == zoe.refused == ()
    assert words(zoe) == {
        "gender": "woman",
        "assets": {},
        "photos": {
            "a": {"view": "front left", "framing": "full body", "pose": "arms raised"},
            "b": {"view": "side", "background": "white"},
        },
    }
    assert words(bob)["gender"] == "person"
    mask = np.asarray(Image.open(zoe.folder / "mask/a_face.png"))
    np.testing.assert_array_equal(mask, np.asarray(Image.open(folder / "a_face.png")))


def test_subject_is_a_point_in_fractions(folder):
    text = "album,photo,subject_x,subject_y\nx,a.jpg,24,16\nx,b.png,0.25,0.5\nx,sub/a.jpg,90,1\n"
    (album,) = imported(folder, text)
    assert words(album)["photos"] == {"a": {"subject": [0.5, 0.25]}, "b": {"subject": [0.25, 0.5]}}
    assert album.refused == (("line 4", "has a subject_x, subject_y that lie outside of the photo; it is left out"),)


def test_bad_rows_are_named_by_line_and_the_others_go_on(folder, tmp_path):
    (tmp_path / "private.jpg").write_bytes((folder / "a.jpg").read_bytes())
    (folder / "link.jpg").symlink_to(tmp_path / "private.jpg")
    (folder / "text.txt").write_text("x")
    text = (
        "album,photo,view,gender,mask_face\n"
        "x,a.jpg,sideways,alien,\n"  # 2
        "x,../private.jpg,,,\n"  # 3
        f"x,{tmp_path / 'private.jpg'},,,\n"  # 4
        "x,link.jpg,,,\n"  # 5: found out when it is read
        "x,nowhere.jpg,,,\n"  # 6
        "x,text.txt,,,\n"  # 7
        "x,,,,\n"  # 8
        "x,a.jpg,,,\n"  # 9
        "../evil,a.jpg,,,\n"  # 10
        ",a.jpg,,,\n"  # 11
        '"two\nlines",a.jpg,,,\n'  # 12 and 13
        ".hidden,a.jpg,,,\n"  # 14
        "x,b.png,,,gone.png\n"  # 15
        "x,b.png,,,,extra\n"  # 16
        "X,a.jpg,,,\n"  # 17
        "\n"
        f"{'n' * 300},a.jpg,,,\n"  # 19
    )
    listing, files, config = listed(folder, text)
    assert [(refused.name, refused.reason.split(":")[0][:27]) for refused in listing.refused] == [
        ("line 10", "names no album"),
        ("line 11", "names no album"),
        ("line 13", "names no album"),
        ("line 14", "names no album"),
        ("line 16", "has more fields than the fi"),
        ("line 17", "names the album X, which is"),
        ("line 19", "names no album"),
    ]
    (album,) = listing.albums
    (tmp_path / "out").mkdir()
    done = import_album(album, tmp_path / "out", files, config, reader="csv")
    reasons: dict[str, str] = {}
    for name, reason in done.refused:
        reasons[name] = reasons.get(name, "") + reason
    assert "'sideways', which is not known" in reasons["line 2"]
    assert "gender 'alien'" in reasons["line 2"]
    assert "outside of the table's folder" in reasons["line 3"]
    assert "outside of the table's folder" in reasons["line 4"]
    assert "leads out of the source" in reasons["link.jpg"]
    assert "is not there" in reasons["line 6"]
    assert "none of .jpg" in reasons["line 7"]
    assert "names no photo" in reasons["line 8"]
    assert "a second time" in reasons["line 9"]
    assert "gone.png" in reasons["line 15"]
    assert sorted(path.name for path in (done.folder / "image").iterdir()) == ["a.jpg", "b.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x"]


def test_outside_may_be_allowed(folder, tmp_path):
    (tmp_path / "far.jpg").write_bytes((folder / "a.jpg").read_bytes())
    (album,) = imported(folder, f"album,photo\nx,../far.jpg\nx,{tmp_path / 'far.jpg'}\n", allow_outside=True)
    assert album.num_photos == 2


def test_photos_of_one_name_keep_apart(folder):
    (album,) = imported(folder, "album,photo,mask_face\nx,a.jpg,a_face.png\nx,sub/a.jpg,b_face.png\n")
    assert sorted(path.name for path in (album.folder / "image").iterdir()) == ["a-2.jpg", "a.jpg"]
    assert sorted(path.name for path in (album.folder / "mask").iterdir()) == ["a-2_face.png", "a_face.png"]


def test_album_without_a_usable_photo_is_an_error_and_leaves_nothing(folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no")
    listing, files, config = listed(folder, "album,photo\nx,broken.jpg\ny,gone.jpg\n")
    for album, reason in zip(listing.albums, ("broken.jpg", "line 3"), strict=True):
        with pytest.raises(UserError, match=rf"has no usable photo \({reason}"):
            import_album(album, folder.parent, files, config, reader="csv")
    assert sorted(os.listdir(folder.parent)) == ["source"]


def test_genders_that_differ_count_as_unknown(folder):
    (album,) = imported(folder, "album,photo,gender\nx,a.jpg,man\nx,b.png,woman\n")
    assert words(album)["gender"] == "person"
    assert any("not the same in all rows" in reason for _, reason in album.refused)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no columns album and photo"),
        ("album;picture\n", "has no columns photo"),
        ("album,photo,colour\nx,a.jpg,red\n", "the unknown column 'colour'"),
        ("album,photo,photo\nx,a.jpg,b.png\n", "the column 'photo' twice"),
        ("album,photo,mask_<b>\nx,a.jpg,\n", "the column 'mask_<b>'"),
        ("album,photo\n", "names no album"),
        ("album,photo\n/,a.jpg\n", "names no album"),
        ("album,photo\nx,a.jpg\n".encode("utf-16"), "is not UTF-8"),
        (b"album,photo\nx,\xff.jpg\n", "is not UTF-8"),
        ('album,photo\nx,"' + "a" * 200_000 + "\n", "field larger"),
    ],
)
def test_tables_that_cannot_be_read_are_said_so(folder, text, expected):
    with pytest.raises(UserError, match=expected) as error:
        listed(folder, text)
    assert "\n" not in str(error.value)


_CELLS = st.text(max_size=30) | st.sampled_from(
    ["a.jpg", "../a.jpg", "/etc/passwd", "x", "a\nb", "\0", "..", ".", "a" * 400]
)


@given(st.lists(st.lists(_CELLS, min_size=1, max_size=6), max_size=6))
def test_any_cells_end_in_albums_or_a_sentence(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("any")
    source = root / "source"
    source.mkdir()
    Image.new("RGB", (20, 20)).save(source / "a.jpg")
    lines = ["album,photo,mask_face,view,subject_x"]
    lines += [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    try:
        albums = imported(source, "\n".join(lines).encode("utf-8", "replace"))
    except UserError as error:
        albums = []
        text = str(error)
        assert "\0" not in text
    assert set(os.listdir(root)) <= {"source", "out"}
    for album in albums:
        assert album.folder.parent == root / "out"
