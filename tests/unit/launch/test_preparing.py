"""What `prepare` prints: a name from somebody's disk breaks no line and gives the terminal no orders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.results import one_line


def test_every_name_becomes_one_printable_line() -> None:
    assert one_line("ünïcode «a» \u6f22") == "ünïcode «a» \u6f22"
    assert one_line("a\nb\tc\x1b[2J\u202e\udcff") == r"a\nb\tc\x1b[2J\u202e\udcff"


@pytest.mark.parametrize("name", ["line\nbreak", "\x1b[31mred", os.fsdecode(b"bytes\xff")])
def test_an_album_that_fails_under_any_name_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.jpg").write_bytes(b"no photo")
    settings = ["album.segmentor.method=given"]
    assert main(["prepare", str(tmp_path / name), "--out", str(tmp_path / "out"), *settings]) == 1
    said = capsys.readouterr().err
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    assert "has no masks" in said


def test_a_name_that_no_folder_can_have_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(tmp_path), "--out", str(tmp_path / "out"), f"--name={'n' * 300}"]) == 2
    assert capsys.readouterr().err.startswith("--name has more than 255 bytes")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(tmp_path / "a\x1b[2Jb"), "--out", str(tmp_path / "out")]) == 2
    assert "a\\x1b[2Jb is not a folder" in capsys.readouterr().err
