"""What counts as running out of memory, and what a run remembers of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from modules.errors import UserError
from modules.memory import is_out_of_memory
from trainer.album_run import AlbumRun
from trainer.config import RunConfig, load_config
from trainer.packing import PackLimit, most_parts, shortage


@pytest.mark.parametrize(
    "ask",
    [lambda: torch.empty(2**45), lambda: np.empty(2**50), lambda: bytearray(2**50)],
    ids=["torch", "numpy", "python"],
)
def test_memory_that_no_machine_has(ask: Callable[[], object]):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
        torch.OutOfMemoryError(""),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("Cuda error: 2[cudaMalloc(&m_gpuPtr, bytes);]"),
    ],
    ids=str,
)
def test_out_of_memory_in_other_words(error: Exception):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("Cuda error: 209[cudaMalloc(&m_gpuPtr, bytes);]"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0"),
        UserError("The disk of 'out' is full, as if it were out of memory: free some space."),
        OSError(28, "No space left on device"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_errors_are_no_lack_of_memory(error: BaseException):
    assert not is_out_of_memory(error)


def runs_of(names: str, out: Path) -> list[AlbumRun]:
    return [AlbumRun(name=name, source=out / name, folder=out / name) for name in names]


@pytest.mark.parametrize(
    ("num_albums", "packs", "largest"),
    [(8, "packs of 4", 4), (7, "packs of 4 and 3", 4), (3, "packs of 2 and 1", 2), (2, "one album at a time", 1)],
)
def test_a_pack_is_halved_with_one_line(
    num_albums: int, packs: str, largest: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    runs = runs_of("abcdefgh"[:num_albums], tmp_path)
    limit = PackLimit(runs, RunConfig(), tmp_path)
    assert limit.tighten("booth", runs, RunConfig())
    assert limit.num_albums == largest
    assert caplog.messages == [
        f"The pack of {num_albums} albums does not fit into memory at PuzzleBooth: going on with {packs}."
    ]


def test_one_album_gets_its_step_in_ever_more_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Ten rows by default; the distillation has no parts."""
    runs, config = runs_of("a", tmp_path), RunConfig()
    limit = PackLimit(runs, config, tmp_path)
    assert not limit.tighten("geometry", runs, config)
    assert not limit.tighten("texture", runs, config)
    parts = []
    while limit.tighten("booth", runs, config):
        parts.append(limit.fitted(config, 1).runtime.accumulate_batches)
    assert parts == [2, 4, 8, 10]
    assert caplog.messages[0] == ("Album a does not fit into memory at PuzzleBooth: going on with its step in 2 parts.")
    assert len(caplog.messages) == 4


def test_a_small_pack_has_no_more_parts_than_rows(tmp_path: Path):
    config = load_config(None, ["runtime.accumulate_batches=16"])
    limit = PackLimit(runs_of("abcd", tmp_path), config, tmp_path)
    assert [limit.fitted(config, count).runtime.accumulate_batches for count in (4, 2, 1)] == [16, 16, 10]
    assert dataclasses.replace(limit.fitted(config, 1), runtime=config.runtime) == config


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], 10),
        (["booth.weight_prior=0"], 9),
        (["booth.num_prior_samples=0"], 9),
        (["booth.weight_synthetic=0"], 7),
        (["booth.num_synthetic_people=0", "booth.weight_prior=0", "booth.photos_per_step=3"], 3),
        (["runtime.devices=4"], 2),
        (["runtime.devices=16"], 1),
        (["runtime.devices=2", "runtime.node_launcher=each", "runtime.num_nodes=2"], 2),
    ],
)
def test_parts_with_one_row_each(words: list[str], parts: int):
    assert most_parts(load_config(None, words), 1) == parts


def test_limit_is_kept_until_the_run_is_done(tmp_path: Path):
    runs, config = runs_of("abcd", tmp_path), RunConfig()
    limit = PackLimit(runs, config, tmp_path)
    limit.tighten("booth", runs, config)
    assert PackLimit(runs, config, tmp_path).num_albums == 2
    limit.tighten("geometry", runs[:2], config)
    limit.tighten("booth", runs[:1], config)
    again = PackLimit(runs, config, tmp_path)
    assert (again.num_albums, again.num_parts) == (1, 2)
    again.forget()
    assert list((tmp_path / ".packs").iterdir()) == []
    assert PackLimit(runs, config, tmp_path).num_albums == 4
    # Nothing was ever written: nothing to delete.
    PackLimit(runs, config, tmp_path).forget()


@pytest.mark.parametrize("words", [["seed=1"], ["booth.photos_per_step=1"], []], ids=["seed", "rows", "albums"])
def test_limit_of_other_settings_or_albums_is_forgotten(words: list[str], tmp_path: Path):
    runs, config = runs_of("abcd", tmp_path), RunConfig()
    PackLimit(runs, config, tmp_path).tighten("booth", runs, config)
    others = runs_of("xy", tmp_path)
    PackLimit(others, config, tmp_path).tighten("booth", others, config)
    changed = PackLimit(runs if words else runs_of("abc", tmp_path), load_config(None, words), tmp_path)
    assert changed.num_albums == (4 if words else 3)
    # Another run's albums in the same folder are none of its business.
    (left,) = (tmp_path / ".packs").iterdir()
    assert json.loads(left.read_text())["albums"] == ["x", "y"]


def test_what_a_halved_pack_had_trained_is_deleted(tmp_path: Path):
    runs, config = runs_of("abcd", tmp_path), RunConfig()
    folders = {name: tmp_path / ".packs" / name for name in ("booth-1", "booth-2", "geometry-1")}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / "albums.json").write_text(json.dumps(["x"] if name == "booth-2" else ["a", "b", "c", "d"]))
    PackLimit(runs, config, tmp_path).tighten("booth", runs, config)
    assert {name: folder.exists() for name, folder in folders.items()} == {
        "booth-1": False,
        "booth-2": True,
        "geometry-1": True,
    }
    # With its step in parts an album goes on from its checkpoint.
    PackLimit(runs_of("x", tmp_path), config, tmp_path).tighten("booth", runs_of("x", tmp_path), config)
    assert folders["booth-2"].exists()


@pytest.mark.parametrize(
    ("stage", "words", "truth", "reason"),
    [
        (
            "booth",
            [],
            True,
            "it does not fit into memory at PuzzleBooth alone, with one image at a time: use "
            "booth.gradient_checkpointing=true, runtime.precision=bf16-mixed, or more memory",
        ),
        (
            "booth",
            ["booth.gradient_checkpointing=true", "runtime.precision=bf16-mixed"],
            True,
            "it does not fit into memory at PuzzleBooth alone, with one image at a time: use more memory",
        ),
        (
            "geometry",
            ["runtime.precision=bf16-mixed"],
            True,
            "it does not fit into memory at Geometry alone: use geometry.cameras.views_per_step below 4, "
            "geometry.cameras.resolution_factor=1, baselines=false, or more memory",
        ),
        (
            "texture",
            ["texture.cameras.views_per_step=1", "texture.cameras.resolution_factor=1"],
            False,
            "it does not fit into memory at Texture alone: use runtime.precision=bf16-mixed, or more memory",
        ),
    ],
)
def test_the_reason_names_what_would_help(stage, words: list[str], truth: bool, reason: str, tmp_path: Path):
    run = AlbumRun(name="a", source=tmp_path, folder=tmp_path, has_truth=truth)
    assert shortage(stage, run, load_config(None, words)) == reason
