"""Which albums there are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch.farm.manifest import AlbumEntry, scan, source_hash
from modules.errors import UserError


def test_a_folder_holds_albums_and_hidden_things_are_none(tmp_path: Path) -> None:
    for name in ("b", "a", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("no album")
    assert scan([tmp_path]) == [AlbumEntry("a", str(tmp_path / "a")), AlbumEntry("b", str(tmp_path / "b"))]


def test_lists_start_from_their_own_folder(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("# a remark\n\nphotos/anna\n/abs/ben\n")
    rows = [{"album": "photos/anna", "name": "one"}, {"path": "/abs/ben"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"source": ["photos/anna", "/abs/ben"], "name": ["two", None]}), tmp_path / "t.parquet")
    assert scan([tmp_path / "text.txt"]) == [
        AlbumEntry("anna", str(tmp_path / "photos/anna")),
        AlbumEntry("ben", "/abs/ben"),
    ]
    assert [entry.name for entry in scan([tmp_path / "rows.jsonl"])] == ["ben", "one"]
    assert [entry.name for entry in scan([tmp_path / "t.parquet"])] == ["ben", "two"]
    # The same album twice is one album.
    assert len(scan([tmp_path / "text.txt", tmp_path / "rows.jsonl"])) == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"album": "x/a"}\n{"album": "y/a"}\n', "Two albums have the name 'a'"),
        ("a.jsonl", '{"album": "x/a"}\n{"album"\n', "row 2 is not valid JSON"),
        ("a.jsonl", '{"name": "a"}\n', "row 1 names no folder"),
        ("a.jsonl", '{"album": 3}\n', "row 1 names no folder"),
        ("a.jsonl", '["x"]\n', "expected an object"),
        ("a.jsonl", '{"album": "x", "name": "../../etc"}\n', "cannot be an album's name"),
        ("a.jsonl", '{"album": "x", "name": ".."}\n', "cannot be an album's name"),
        ("a.jsonl", '{"album": "x", "name": "a\\nb"}\n', "cannot be an album's name"),
        ("a.jsonl", '{"album": "x", "name": "\\ud800"}\n', "not valid Unicode"),
        ("a.jsonl", json.dumps({"album": "x", "name": "n" * 201}) + "\n", "has 201 bytes"),
        ("a.txt", "# nothing\n", "names no album"),
        ("a.csv", "album\nx\n", "is no list of albums"),
        ("a.parquet", "PAR?", "is not a Parquet file"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        scan([tmp_path / name])


def test_a_list_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        scan([tmp_path / "nothing"])
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        scan([tmp_path / "a.txt"])
    pq.write_table(pa.table({"folder": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="no column called one of album, path, source"):
        scan([tmp_path / "t.parquet"])


def test_a_changed_album_has_another_hash(tmp_path: Path) -> None:
    album = tmp_path / "album"
    (album / "image").mkdir(parents=True)
    (album / "image" / "0.png").write_bytes(b"0")
    first = source_hash(str(album))
    (album / ".DS_Store").write_bytes(b"hidden")
    assert source_hash(str(album)) == first
    os.utime(album / "image" / "0.png", ns=(0, 10**9))
    second = source_hash(str(album))
    (album / "image" / "1.png").write_bytes(b"1")
    assert len({first, second, source_hash(str(album))}) == 3
    assert source_hash(str(tmp_path / "gone")) == ""
