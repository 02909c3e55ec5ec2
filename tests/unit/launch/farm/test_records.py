"""The dataset's rows, as files and as a table."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from launch.farm.records import AlbumRecord, read_index, read_record, write_index, write_record

DONE = AlbumRecord(
    name="anna",
    source="/photos/anna",
    state="done",
    attempts=2,
    metrics={"avatar": {"chamfer_cm": 1.5, "psnr_fg": 15.0}, "words_only": {"psnr_fg": 11.0}},
    files=[{"path": "avatar.glb", "size": 3, "sha256": "00"}],
    settings="s",
    source_hash="h",
    versions={"torch": "2"},
    git_revision="abc+",
    timings={"booth": 10.0, "geometry": 2.5},
    pack="p000001",
    num_albums=4,
    host="na",
    finished_at="2026-11-23T00:00:00+00:00",
)
FAILED = AlbumRecord(name="ben", source="/photos/ben", state="failed", reason="no <b>photo</b>", attempts=1)


def test_a_record_is_read_back(tmp_path: Path) -> None:
    write_record(tmp_path, DONE)
    assert read_record(tmp_path, "anna") == DONE
    assert read_record(tmp_path, "ben") is None
    (tmp_path / "albums" / "anna" / "result.json").write_text('{"schema": 1, "name": ')
    assert read_record(tmp_path, "anna") is None
    (tmp_path / "albums" / "anna" / "result.json").write_text('{"schema": 99}')
    assert read_record(tmp_path, "anna") is None


def test_the_index_holds_every_record_with_its_figures_in_columns(tmp_path: Path) -> None:
    path = write_index(tmp_path, [DONE, FAILED])
    table = pq.read_table(path)
    assert table.column("avatar_chamfer_cm").to_pylist() == [1.5, None]
    assert table.column("seconds").to_pylist() == [12.5, 0.0]
    assert read_index(tmp_path) == [DONE, FAILED]
    assert [found.name for found in tmp_path.iterdir()] == ["index.parquet"]


def test_an_index_that_is_not_there_or_damaged_is_empty(tmp_path: Path) -> None:
    assert read_index(tmp_path) == []
    (tmp_path / "index.parquet").write_text("no table")
    assert read_index(tmp_path) == []
