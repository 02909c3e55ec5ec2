"""The stage that prepares an album: what makes it run again, and that equal albums give equal bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datamodules.assistants
from datamodules.segmentation.config import SegmentorConfig
from modules.errors import UserError
from tests.unit.datamodules.test_bare_photos import Squares, album_of_three, config
from trainer.album_run import AlbumRun
from trainer.config import RunConfig, load_config
from trainer.prepare_stage import prepare


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Squares:
    """Takes the mini parser's place; its weights are a file of a few bytes."""
    segmentor = Squares()
    monkeypatch.setattr(datamodules.assistants, "_segmentor", lambda settings, root: segmentor)
    weights = tmp_path / "weights" / "parser.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    return segmentor


def run_config(weights: Path) -> RunConfig:
    segmentor = SegmentorConfig(photo_px=256, side_px=64, weights=str(weights))
    return dataclasses.replace(load_config("mini", []), album=config(segmentor=segmentor))


def run(source: Path, folder: Path) -> AlbumRun:
    album = AlbumRun(name=folder.name, source=source, folder=folder)
    root = next(parent for parent in folder.parents if (parent / "weights").is_dir())
    prepare(album, run_config(root / "weights"))
    return album


def test_a_second_call_does_nothing_and_a_changed_photo_does_it_again(squares: Squares, tmp_path: Path) -> None:
    source = album_of_three(tmp_path / "anna")
    run(source, tmp_path / "out" / "anna")
    asked = squares.asked
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "anna" / "assets").iterdir()}
    again = run(source, tmp_path / "out" / "anna")
    assert squares.asked == asked
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.album.asset_names == ("face", "shirt")
    pixels = np.asarray(Image.open(source / "a.png")).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(source / "a.png")
    run(source, tmp_path / "out" / "anna")
    assert squares.asked > asked


def test_two_runs_write_equal_bytes_manifest_included(squares: Squares, tmp_path: Path) -> None:
    source = album_of_three(tmp_path / "anna")
    for name in ("first", "second"):
        run(source, tmp_path / name / "anna")
    first, second = (tmp_path / name / "anna" / "assets" for name in ("first", "second"))
    names = sorted(path.name for path in first.iterdir())
    assert "manifest.json" in names
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_decisions_beside_the_photos_and_beside_the_result_are_followed(squares: Squares, tmp_path: Path) -> None:
    source = album_of_three(tmp_path / "anna")
    folder = tmp_path / "out" / "anna"
    (source / "assets.yaml").write_text("gender: woman\nassets: {shirt: {name: jumper}}\nphotos: {c: drop}\n")
    assert run(source, folder).album.asset_names == ("face", "jumper")
    (folder / "assets.yaml").write_text("assets: {shirt: {name: blouse, words: silk}}\n")
    album = run(source, folder).album
    assert (album.gender, album.asset_names, album.asset_words) == ("woman", ("face", "blouse"), ("", "silk"))
    assert album.stems == ("a", "b")
    assert "blouse" in (folder / "assets" / "overrides.yaml").read_text()


def test_other_weights_make_other_masks(squares: Squares, tmp_path: Path) -> None:
    source = album_of_three(tmp_path / "anna")
    run(source, tmp_path / "out")
    asked = squares.asked
    (tmp_path / "weights" / "parser.safetensors").write_bytes(b"others")
    run(source, tmp_path / "out")
    assert squares.asked > asked


def test_missing_weights_are_named_before_any_photo_is_read(squares: Squares, tmp_path: Path) -> None:
    source = album_of_three(tmp_path / "anna")
    (tmp_path / "weights" / "parser.safetensors").unlink()
    with pytest.raises(UserError, match=r"parser.safetensors is missing, but the album .* has no masks"):
        run(source, tmp_path / "out")
    assert squares.asked == 0


def test_an_album_with_masks_needs_no_parser(squares: Squares, tmp_path: Path) -> None:
    (tmp_path / "weights" / "parser.safetensors").unlink()
    source = tmp_path / "anna"
    album_of_three(source / "image")
    (source / "mask").mkdir()
    for stem in "abc":
        Image.fromarray(np.full((128, 128), 255, np.uint8)).save(source / "mask" / f"{stem}_shirt.png")
    assert run(source, tmp_path / "out").album.asset_names == ("shirt",)
    assert squares.asked == 0
