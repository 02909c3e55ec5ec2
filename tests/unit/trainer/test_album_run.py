"""The key of an album: what it depends on, and what of a folder is never read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.album_run import album_key, content_key

MAX_BYTES = 1000


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    (folder / "image").mkdir(parents=True)
    (folder / "image" / "a.jpg").write_bytes(b"photo")
    (folder / "album.json").write_text("{}")
    return folder


def test_files_that_an_album_is_made_of_decide(album: Path) -> None:
    keys = [album_key(album, MAX_BYTES)]
    for change in (
        lambda: (album / "image" / "a.jpg").write_bytes(b"other"),
        lambda: (album / "image" / "a.jpg").rename(album / "image" / "b.jpg"),
        lambda: (album / "album.json").write_text("{ }"),
        lambda: (album / "assets.yaml").write_text("gender: man"),
        lambda: (album / "image" / "note.txt").write_text("set aside by its name"),
        lambda: (album / "image" / "folder.jpg").mkdir(),
    ):
        change()
        keys.append(album_key(album, MAX_BYTES))
    assert len(set(keys)) == len(keys)


def test_what_is_never_read_does_not(album: Path) -> None:
    (album / "film.mov").write_bytes(b"1")
    before = album_key(album, MAX_BYTES)
    (album / "film.mov").write_bytes(b"2")
    (album / ".DS_Store").write_bytes(b"2")
    (album / "ground_truth").mkdir()
    assert album_key(album, MAX_BYTES) == before


def test_links_out_pipes_and_huge_files_are_not_opened(album: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(b"secret")
    (album / "image" / "link.jpg").symlink_to(outside)
    (album / "image" / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(album / "image" / "pipe.jpg")
    with (album / "image" / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)
    before = album_key(album, MAX_BYTES)
    outside.write_bytes(b"SECRET")
    assert album_key(album, MAX_BYTES) == before
    (album / "mask").symlink_to(tmp_path)
    assert album_key(album, MAX_BYTES) == before


def test_names_need_not_be_text(album: Path) -> None:
    before = album_key(album, MAX_BYTES)
    (album / "image" / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(b"photo")
    assert album_key(album, MAX_BYTES) != before


def test_the_key_of_ground_truth_holds_all_its_files(tmp_path: Path) -> None:
    assert content_key(tmp_path / "missing") == content_key(tmp_path)
    (tmp_path / "avatar.glb").write_bytes(b"a")
    before = content_key(tmp_path)
    (tmp_path / "avatar.glb").write_bytes(b"b")
    assert content_key(tmp_path) != before
