"""The verb `import`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import pytest

from datamodules.readers.datasets import DATASETS
from launch.farm.manifest import scan
from launch.importing import add_verb, import_albums
from modules.errors import OutputError, UserError
from tests.dataset_lookalikes import write_four_d_dress, write_puzzle_ioi

ALBUMS = (("00145", "outfit5"), ("03632", "outfit1"), ("03632", "outfit13"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_puzzle_ioi(tmp_path_factory.mktemp("ioi"), albums=ALBUMS)


def run(dataset: str, source: Path, out: Path, *overrides: str) -> int:
    return import_albums(argparse.Namespace(dataset=dataset, source=str(source), out=str(out), overrides=[*overrides]))


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_command_line():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()

    def add(verb, module):
        child = verbs.add_parser(verb.__name__)
        child.set_defaults(verb=verb)
        return child

    add_verb(add)
    arguments = parser.parse_args(["import", "4d_dress", "DATA", "--out", "ALBUMS"])
    assert arguments.verb is import_albums
    assert (arguments.dataset, arguments.source, arguments.out) == ("4d_dress", "DATA", "ALBUMS")
    for name in DATASETS:
        assert parser.parse_args(["import", name, "DATA", "--out", "ALBUMS"]).dataset == name
    with pytest.raises(SystemExit):
        parser.parse_args(["import", "something", "DATA", "--out", "ALBUMS"])


def test_albums_are_what_farm_takes(tree, tmp_path, capsys):
    assert run("puzzle_ioi", tree, tmp_path / "out", "photos_per_album=2") == 0
    names = ["00145_outfit5", "03632_outfit1", "03632_outfit13"]
    assert [entry.name for entry in scan([tmp_path / "out"])] == names
    printed = capsys.readouterr().out
    assert "[2/3] 03632_outfit1: 2 photos" in printed
    assert "ground truth" in printed
    assert "3 of 3 albums" in printed


def test_the_same_command_gives_the_same_bytes(tree, tmp_path):
    for name in ("a", "b"):
        run("puzzle_ioi", tree, tmp_path / name, "photos_per_album=3", "subjects=00145")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [
        ("00145", ["00145_outfit5"]),
        ("03632", ["03632_outfit1", "03632_outfit13"]),
        ("03632/outfit13,00145", ["00145_outfit5", "03632_outfit13"]),
        ("*outfit1*", ["03632_outfit1", "03632_outfit13"]),
        ("[03632_outfit1]", ["03632_outfit1"]),
    ],
)
def test_subjects_are_names_and_never_numbers(tree, tmp_path, subjects, expected):
    settings = (f"subjects={subjects}", "photos_per_album=1", "ground_truth=false")
    assert run("puzzle_ioi", tree, tmp_path / "out", *settings) == 0
    assert sorted(os.listdir(tmp_path / "out")) == expected


def test_subject_that_is_not_there_is_said(tree, tmp_path):
    with pytest.raises(UserError, match="'99999' fits no album"):
        run("puzzle_ioi", tree, tmp_path / "out", "subjects=00145,99999")


def test_it_goes_on_where_it_stopped(tree, tmp_path, monkeypatch, capsys):
    from datamodules.readers import album_folder

    out, settings = tmp_path / "out", ("photos_per_album=2", "ground_truth=false")
    decode, calls = album_folder.decode_photo, []

    def interrupted(data, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return decode(data, **options)

    monkeypatch.setattr(album_folder, "decode_photo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("puzzle_ioi", tree, out, *settings)
    # The album that was being written is not there, not even in part.
    assert os.listdir(out) == ["00145_outfit5"]
    # What a killed process leaves behind is in nobody's way.
    (out / ".03632_outfit1.importing/image").mkdir(parents=True)
    first = (out / "00145_outfit5/import.json").stat().st_mtime_ns
    calls[:] = [0] * 100
    capsys.readouterr()
    assert run("puzzle_ioi", tree, out, *settings) == 0
    assert sorted(os.listdir(out)) == ["00145_outfit5", "03632_outfit1", "03632_outfit13"]
    assert (out / "00145_outfit5/import.json").stat().st_mtime_ns == first
    assert "[1/3] 00145_outfit5: 2 photos, " in (printed := capsys.readouterr().out)
    assert printed.count("was there already") == 1
    # In one go it comes out the same.
    run("puzzle_ioi", tree, tmp_path / "whole", *settings)
    assert content(out) == content(tmp_path / "whole")


def test_bad_subject_is_reported_and_the_others_go_on(tmp_path, capsys):
    tree = write_puzzle_ioi(tmp_path / "tree", albums=ALBUMS)
    for path in (tree / "puzzle_capture/03632/outfit1/image").iterdir():
        path.write_bytes(b"broken")
    (tree / "puzzle_capture/03632/bad\nname/image").mkdir(parents=True)
    assert run("puzzle_ioi", tree, tmp_path / "out", "photos_per_album=2", "ground_truth=false") == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["00145_outfit5", "03632_outfit13"]
    captured = capsys.readouterr()
    assert "03632_outfit1: failed, it has no usable photo" in captured.err
    assert "bad\\nname" in captured.err
    assert "2 of 3 albums" in captured.out


def test_nothing_that_is_there_is_overwritten(tree, tmp_path, capsys):
    out = tmp_path / "out"
    settings = ("photos_per_album=1", "ground_truth=false", "subjects=03632")
    (out / "03632_outfit1").mkdir(parents=True)
    (out / "03632_outfit1/mine.txt").write_text("mine")
    assert run("puzzle_ioi", tree, out, *settings) == 1
    assert "is there already, but no import made it" in capsys.readouterr().err
    assert (out / "03632_outfit1/mine.txt").read_text() == "mine"
    assert run("puzzle_ioi", tree, out, *settings, "max_side_px=32", "subjects=03632/outfit13") == 1
    assert "with other settings" in capsys.readouterr().err


def test_dress_and_table_go_through_the_same_verb(tmp_path):
    tree = write_four_d_dress(tmp_path / "tree", outfits=[("00122", "Inner"), ("00122", "Outer")], frames=("00006",))
    assert run("4d_dress", tree, tmp_path / "dress", "four_d_dress.upper=jumper", "subjects=00122/Inner") == 0
    assert os.listdir(tmp_path / "dress") == ["00122_Inner"]
    assert list((tmp_path / "dress/00122_Inner/mask").glob("*_jumper.png"))
    capture = tree / "00122/Inner/Take2/Capture/0004/images"
    (capture / "table.csv").write_text("album,photo,view\nanna,capture-f00006.png,front\n")
    assert run("csv", capture / "table.csv", tmp_path / "table") == 0
    assert json.loads((tmp_path / "table/anna/album.json").read_text())["photos"]["capture-f00006"]["view"] == "front"


def test_mistakes_end_in_a_sentence(tree, tmp_path):
    with pytest.raises(UserError, match="photos_per_alum"):
        run("puzzle_ioi", tree, tmp_path, "photos_per_alum=2")
    with pytest.raises(UserError, match="is not a folder: give the folder"):
        run("puzzle_ioi", tmp_path / "gone", tmp_path / "out")
    with pytest.raises(UserError, match="is not a file: give the table"):
        run("csv", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="is the source itself"):
        run("puzzle_ioi", tree, tree)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file, but a folder"):
        run("puzzle_ioi", tree, tmp_path / "file")
