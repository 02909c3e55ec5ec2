"""Packs that run out of memory go on in halves; an album that cannot be trained leaves before the training."""

from __future__ import annotations

import dataclasses
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer.prepare_stage as prepare_stage
from datamodules.assets import PreparedAlbum, load_assets
from modules.avatar import TextureStage
from modules.diffusion.backbone import Backbone
from modules.diffusion.distillation import Distiller
from modules.puzzlebooth import PuzzleBooth
from tests.integration.smoke import assert_same_album, config_of, copy_until, leftovers, personalization, times
from trainer.pipeline import AlbumResult, run_pack

ALONE = "does not fit into memory at PuzzleBooth: going on with one album at a time."


@pytest.fixture
def out(smoke_run: list[AlbumResult], smoke_out: Path, tmp_path: Path) -> Path:
    """An empty output folder, but for the prior images that all runs share."""
    shutil.copytree(smoke_out / ".cache", tmp_path / "out" / ".cache")
    return tmp_path / "out"


def booths_of_more_than(largest: int, monkeypatch: pytest.MonkeyPatch, step: int = 0) -> list[int]:
    """From here on PuzzleBooth needs too much memory for larger packs; returns the size of each pack at each step."""
    train, seen, dropped = PuzzleBooth.training_step, [], []

    def short(module: PuzzleBooth, batch, index):
        seen.append(module.num_albums)
        assert all(reference() is None for reference in dropped), "the pack that did not fit still takes memory"
        if module.num_albums > largest and module.step >= step:
            dropped.extend(map(weakref.ref, (module, module.personalization, module.backbone, module.backbone.unet)))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return train(module, batch, index)

    monkeypatch.setattr(PuzzleBooth, "training_step", short)
    return seen


def distillations_of_more_than(
    largest: int, monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[Distiller], bool] = lambda _: True
) -> None:
    guide = Distiller.guide

    def short(distiller: Distiller, *arguments):
        if len(distiller.subjects) > largest and spoiled(distiller):
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
            )
        return guide(distiller, *arguments)

    monkeypatch.setattr(Distiller, "guide", short)


def state_of(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["state"]


def without_masks(folder: Path) -> PreparedAlbum:
    album = load_assets(folder)
    return dataclasses.replace(album, masks=np.zeros_like(album.masks))


def test_a_pack_is_halved_until_it_fits(
    albums: list[Path], backbone: Path, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Three albums become two and one, the two become one and one; each ends as it would have in a pack of its own."""
    config = config_of(out, backbone)
    with monkeypatch.context() as patch:
        seen = booths_of_more_than(1, patch, step=2)
        names = ["first", "second", "third"]
        results = run_pack([albums[1], albums[0], albums[1]], config, names, until="booth")
    assert [(result.name, result.failed) for result in results] == [(name, None) for name in names]
    steps = config.booth.num_steps
    assert seen == [3] * 3 + [2] * 3 + [1] * 3 * steps
    assert caplog.messages == [
        "The pack of 3 albums does not fit into memory at PuzzleBooth: going on with packs of 2 and 1.",
        f"The pack of 2 albums {ALONE}",
    ]
    assert leftovers(out) == []

    run_pack([albums[0]], config, ["alone"], until="booth")
    for name in ("personalization.safetensors", "samples.png", "metrics.jsonl"):
        ours, theirs = ((out / album / "booth" / name).read_bytes() for album in ("second", "alone"))
        assert ours == theirs, name
    first, third = (personalization(out / name) for name in ("first", "third"))
    for name, value in first.items():
        np.testing.assert_array_equal(value, third[name], err_msg=name)


def test_halves_stay_halves_in_later_stages(
    smoke_run: list[AlbumResult],
    albums: list[Path],
    smoke_out: Path,
    backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Of two people and their two baselines, two fit. What came before the stage is not done again."""
    out = tmp_path / "out"
    copy_until("geometry", smoke_out, out)
    before = times(out)
    distillations_of_more_than(2, monkeypatch, lambda distiller: distiller.kind == "normal")
    step, textured = TextureStage.training_step, []

    def watched(module: TextureStage, *arguments):
        textured.append([subject.name for subject in module.subjects])
        return step(module, *arguments)

    monkeypatch.setattr(TextureStage, "training_step", watched)
    results = run_pack(albums, config_of(out, backbone))
    assert [(result.name, result.failed) for result in results] == [("woman", None), ("man", None)]
    assert caplog.messages == [
        "The pack of 2 albums does not fit into memory at Geometry: going on with one album at a time."
    ]
    assert textured == [["woman"] * 2] * 8 + [["man"] * 2] * 8
    after = times(out)
    assert {name: after[name] for name in before} == before
    for name in ("woman", "man"):
        assert_same_album(out / name, smoke_out / name)
    assert leftovers(out) == []


def test_an_album_that_does_not_fit_alone_fails_and_the_others_go_on(
    albums: list[Path], backbone: Path, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A step of six rows is tried in 2, 4 and 6 parts before the album is given up."""
    train, rows = PuzzleBooth.training_step, []

    def short(module: PuzzleBooth, batch, index):
        if "woman" in module.album_names:
            rows.append(len(batch["albums"]))
            raise MemoryError
        return train(module, batch, index)

    monkeypatch.setattr(PuzzleBooth, "training_step", short)
    woman, man = run_pack(albums, config_of(out, backbone), until="booth")
    assert rows == [12, 6, 3, 2, 1]
    assert woman.failed == (
        "it does not fit into memory at PuzzleBooth alone, with one image at a time: use "
        "booth.gradient_checkpointing=true, runtime.precision=bf16-mixed, or more memory"
    )
    assert man.failed is None
    assert [state_of(out / name / "booth") for name in ("woman", "man")] == ["failed", "complete"]
    assert caplog.messages == [
        f"The pack of 2 albums {ALONE}",
        *(
            f"Album woman does not fit into memory at PuzzleBooth: going on with its step in {parts} parts."
            for parts in (2, 4, 6)
        ),
    ]
    assert leftovers(out) == []


def test_a_step_in_parts_goes_on_from_the_checkpoint_with_the_same_result(
    albums: list[Path],
    smoke_out: Path,
    backbone: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    train, steps = PuzzleBooth.training_step, []

    def short(module: PuzzleBooth, batch, index):
        steps.append(module.step)
        if module.step == 5 and len(batch["albums"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train(module, batch, index)

    monkeypatch.setattr(PuzzleBooth, "training_step", short)
    (man,) = run_pack([albums[1]], config_of(out, backbone), until="booth")
    assert man.failed is None
    assert steps == [0, 1, 2, 3, 4, 5, 5, 5, 6, 6, 7, 7]
    assert caplog.messages == ["Album man does not fit into memory at PuzzleBooth: going on with its step in 2 parts."]
    ours, theirs = (personalization(folder / "man") for folder in (out, smoke_out))
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert leftovers(out) == []


@pytest.mark.parametrize("stage", ["geometry", "texture"])
def test_an_album_too_large_to_distil_fails_in_its_stage(
    stage: str,
    smoke_run: list[AlbumResult],
    albums: list[Path],
    smoke_out: Path,
    backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    out = tmp_path / "out"
    copy_until(stage, smoke_out, out)
    distillations_of_more_than(
        0, monkeypatch, lambda distiller: any(subject.name == "woman" for subject in distiller.subjects)
    )
    woman, man = run_pack(albums, config_of(out, backbone))
    assert woman.failed == (
        f"it does not fit into memory at {stage.capitalize()} alone: use {stage}.cameras.views_per_step below 2, "
        f"{stage}.cameras.resolution_factor=1, baselines=false, runtime.precision=bf16-mixed, or more memory"
    )
    assert state_of(out / "woman" / stage) == "failed"
    assert man.failed is None
    assert_same_album(out / "man", smoke_out / "man")
    assert leftovers(out) == []


def test_the_last_of_a_pack_is_tried_without_the_room_of_the_others(
    albums: list[Path], smoke_out: Path, backbone: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    def poisoned(folder: Path) -> PreparedAlbum:
        return without_masks(folder) if folder.parent.name == "woman" else load_assets(folder)

    monkeypatch.setattr(prepare_stage, "load_assets", poisoned)
    rooms = []

    def short(distiller: Distiller) -> bool:
        rooms.append(distiller.personalization.num_albums)
        return rooms[-1] > 1

    distillations_of_more_than(0, monkeypatch, short)
    woman, man = run_pack(albums, config_of(out, backbone))
    assert "no photo shows any asset" in woman.failed
    assert man.failed is None
    assert rooms == [2] + [1] * 16
    assert_same_album(out / "man", smoke_out / "man")
    assert leftovers(out) == []


def test_a_half_that_was_interrupted_goes_on_as_a_half(
    albums: list[Path], backbone: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    """Were the whole pack tried again, it would drop the half's checkpoint, and a run that is often cut short hang."""
    config = config_of(out, backbone)
    with monkeypatch.context() as patch:
        seen = booths_of_more_than(1, patch)
        short = PuzzleBooth.training_step

        def interrupted(module: PuzzleBooth, batch, index):
            if module.album_names == ["woman"] and module.step == 4:
                raise KeyboardInterrupt
            return short(module, batch, index)

        patch.setattr(PuzzleBooth, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_pack(albums, config, until="booth")
    assert seen == [2] + [1] * 4

    with monkeypatch.context() as patch:
        seen = booths_of_more_than(1, patch)
        results = run_pack(albums, config, until="booth")
    assert seen == [1] * (4 + config.booth.num_steps)
    assert [result.failed for result in results] == [None, None]
    assert leftovers(out) == []


def test_other_errors_are_not_taken_for_lack_of_memory(
    albums: list[Path], backbone: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(module: PuzzleBooth, batch, index):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(PuzzleBooth, "training_step", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_pack(albums, config_of(out, backbone), until="booth")


# -- albums that cannot be trained ------------------------------------------------------------------------------------


def test_albums_without_masks_or_with_latents_that_are_no_numbers_leave(
    smoke_run: list[AlbumResult],
    albums: list[Path],
    smoke_out: Path,
    backbone: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Their prepared files are bad, not their photos: no mask at all; a photo at which the autoencoder overflows."""
    blank, broken = (Path(shutil.copytree(albums[0], tmp_path / name)) for name in ("blank", "broken"))

    def poisoned(folder: Path) -> PreparedAlbum:
        if folder.parent.name == "blank":
            return without_masks(folder)
        album = load_assets(folder)
        if folder.parent.name == "broken":
            album.images[1] = 255
        return album

    def overflowing(backbone: Backbone, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = posterior(backbone, images)
        flat = (images.flatten(1) == 1).all(1)
        return torch.where(flat.view(-1, 1, 1, 1), torch.nan, mean), std

    posterior = Backbone.posterior
    with monkeypatch.context() as patch:
        patch.setattr(prepare_stage, "load_assets", poisoned)
        patch.setattr(Backbone, "posterior", overflowing)
        results = run_pack([blank, broken, albums[1]], config_of(out, backbone))
    reasons = {result.name: result.failed for result in results}
    assert list(reasons) == ["blank", "broken", "man"]
    assert "no photo shows any asset" in reasons["blank"]
    assert "latents of photo photo_01 are not finite" in reasons["broken"]
    assert reasons["man"] is None
    assert_same_album(out / "man", smoke_out / "man")
    for name in ("blank", "broken"):
        manifest = json.loads((out / name / "booth" / "manifest.json").read_text())
        assert (manifest["state"], manifest["reason"]) == ("failed", reasons[name])
        assert set(manifest["inputs"]) == {"assets", "backbone"}
        assert not (out / name / "geometry").exists()
    assert leftovers(out) == []


def test_a_pack_of_bad_albums_ends_without_training(
    albums: list[Path], backbone: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prepare_stage, "load_assets", without_masks)
    results = run_pack(albums, config_of(out, backbone))
    assert ["no photo shows any asset" in str(result.failed) for result in results] == [True, True]
    assert leftovers(out) == []
