"""The verb `check` with albums: text, JSON, exit codes, and that nothing is written."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch import step_costs
from launch.checking import add_arguments, check
from launch.estimate import StepCosts
from modules.errors import UserError
from trainer.config import load_config

VIEWS = ("front", "left", "back", "front right", "back", "front", "right", "back left")
COSTS = StepCosts(
    device="CPU with 2 cores",
    start_s=10.0,
    token_step_s=0.0,
    joint_step_s=1.0,
    geometry_step_s={1: 1.0},
    texture_step_s={1: 1.0},
    drawn_row_s=0.0,
    memory_gib=1.5,
    free_gib=1.0,
    crowding=2.0,
)


def write_album(folder: Path, num_photos: int = 8) -> Path:
    """Photos of 64 x 96 pixels with a face, a shirt, trousers and shoes."""
    (folder / "image").mkdir(parents=True)
    (folder / "mask").mkdir()
    rng = np.random.default_rng(0)
    rows = {"face": (4, 24), "shirt": (26, 56), "trousers": (58, 82), "shoes": (84, 92)}
    for index in range(num_photos):
        Image.fromarray(rng.integers(0, 256, (96, 64, 3), dtype=np.uint8)).save(folder / "image" / f"{index}.png")
        for name, (top, bottom) in rows.items():
            mask = np.zeros((96, 64), np.uint8)
            mask[top:bottom, 16:48] = 255
            Image.fromarray(mask).save(folder / "mask" / f"{index}_{name}.png")
    words = {str(index): {"view": VIEWS[index], "framing": "full body"} for index in range(num_photos)}
    (folder / "album.json").write_text(json.dumps({"gender": "woman", "photos": words}))
    return folder


def run(*words: str, overrides: tuple[str, ...] = ()) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(words)
    arguments.overrides = ["album.working_resolution=96", *overrides] if arguments.album else []
    return check(arguments)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def test_a_whole_album_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    album = write_album(tmp_path / "anna")
    (album / "image" / "broken.jpg").write_bytes(b"no photo")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(str(album), "--no-timing") == 0
    assert tree(tmp_path) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "anna: 8 photos can be used, 1 cannot"
    assert lines[1].startswith("    broken.jpg: ")
    assert "    shoes: 8 photos, good" in lines
    assert "  time and memory of a run: not measured" in lines
    assert lines[-1] == "This album will do."


def test_an_album_that_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, poor = write_album(tmp_path / "anna"), write_album(tmp_path / "bert", 2)
    assert run(str(good), str(poor), "--no-timing") == 1
    lines = capsys.readouterr().out.splitlines()
    assert "This album will do." in lines
    assert lines[-1] == "It will not do: only 2 photos can be used."


def test_a_bad_album_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, empty = write_album(tmp_path / "anna"), tmp_path / "empty"
    empty.mkdir()
    assert run(str(empty), "--no-timing") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "holds no photos" in printed.err
    # The others are looked at all the same.
    assert run(str(empty), str(good), "--json", "--no-timing") == 2
    albums = json.loads(capsys.readouterr().out)["albums"]
    assert "holds no photos" in albums[0]["error"]
    assert albums[1]["verdict"] == "This album will do."


def test_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        run(str(tmp_path / "nobody"))


def test_options_without_an_album() -> None:
    for word in ("--json", "--no-timing"):
        with pytest.raises(UserError, match=f"{word} goes with albums"):
            run(word)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measured(config: Any, album: Any, subjects: set[int]) -> StepCosts:
        asked.append((album.name, subjects))
        return COSTS

    monkeypatch.setattr(step_costs, "measure", measured)
    album = write_album(tmp_path / "anna")
    assert run(str(album), "--json", "--out", str(tmp_path / "out")) == 0
    assert asked == [("anna", {1})]
    document = json.loads(capsys.readouterr().out)
    (found,) = document["albums"]
    assert set(found) == {
        *("album", "name", "gender", "photos", "lost_photos", "lost_parts", "assets", "resolution", "model_cells"),
        *("face_px", "least_face_px", "face_photos", "views", "framings", "duplicates", "blurred", "notes"),
        *("findings", "will_do", "verdict", "estimate", "no_estimate_because"),
    }
    assert found["will_do"] is True
    assert found["assets"][0] == {
        "name": "face",
        "words": "",
        "photos": 8,
        "enough": "good",
        "cells": pytest.approx(4.2, abs=0.1),
    }
    assert found["estimate"]["parts"]["geometry"] == load_config().geometry.steps
    assert found["no_estimate_because"] is None
    assert not (tmp_path / "out").exists()


def test_time_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_costs, "measure", lambda *_: COSTS)
    album = write_album(tmp_path / "anna")
    assert run(str(album), "--out", str(tmp_path / "out"), overrides=("geometry.steps=7200",)) == 0
    text = capsys.readouterr().out
    assert (
        "time of a run on this machine (CPU with 2 cores): about 2.2 h; about 4.3 h with what else runs here now"
        in text
    )
    assert "geometry 2.0 h" in text
    assert "memory: about 1.5 GiB, of 1.0 GiB that are free" in text
    assert "that is more than is free" in text
    assert "within a factor of two" in text


def test_a_model_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    album = write_album(tmp_path / "anna")
    assert run(str(album), overrides=("backbone.path=nobody/such-a-model",)) == 0
    assert "nobody/such-a-model (backbone.path) is not on this machine yet" in capsys.readouterr().out


def test_decisions_of_a_review_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    album = write_album(tmp_path / "anna")
    (tmp_path / "out" / "anna").mkdir(parents=True)
    (tmp_path / "out" / "anna" / "assets.yaml").write_text("photos:\n  '3': drop\n")
    run(str(album), "--out", str(tmp_path / "out"), "--no-timing")
    assert "7 photos can be used, 1 cannot" in capsys.readouterr().out


def test_no_vision_language_model_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    album = write_album(tmp_path / "anna")
    words = ("album.captioner.method=local", "album.captioner.model=no_such_model")
    assert run(str(album), "--no-timing", overrides=words) == 0
    assert "note: the captioner was not asked" in capsys.readouterr().out
