"""The benchmark of PuzzleBooth: its arithmetic on known costs, what it measures, and the whole of it at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.album_reader import read_album
from modules.contracts import RowKind
from modules.diffusion.config import AdapterConfig
from modules.puzzlebooth_config import PuzzleBoothConfig
from tests.benchmarks import bench_booth, booth_worker
from tests.benchmarks.bench_booth import bench, pack_ratios, run_in_process, write_albums
from tests.benchmarks.booth_settings import BenchSettings, Cost
from tests.benchmarks.booth_worker import TASKS, peak_bytes, reset_peak
from tests.benchmarks.random_booth import TINY, build_booth, random_backbone, random_batch
from tests.benchmarks.reference_pattern import EveryAttention, reference_loss
from tests.tiny_backbone import write_tiny_backbone

FIGURES = {
    "booth_step_time_ratio",
    "booth_step_memory_ratio",
    "booth_step_time_ratio_capture_all",
    "booth_step_memory_ratio_capture_all",
    "booth_pack8_throughput_ratio",
    "booth_pack8_throughput_ratio_full",
    "booth_pack8_memory_ratio",
}


def test_all_figures_at_tiny_size(tmp_path: Path) -> None:
    backbone = write_tiny_backbone(tmp_path / "backbone", autoencoder="kl")
    settings = BenchSettings(
        size=TINY,
        precision="32-true",
        rank=2,
        repetitions=(1, 1, 1),
        photos=2,
        num_albums=2,
        steps=(2, 2),
        single_runs=1,
        overrides=(
            f"backbone.path={backbone}",
            "backbone.scene_words=false",
            "album.working_resolution=32",
            "booth.adapter.rank=2",
            "booth.weight_synthetic=0",
            "booth.num_prior_samples=1",
            "booth.photos_per_step=1",
            "runtime.precision=32-true",
            "runtime.num_threads=0",
            "runtime.visuals_every_steps=0",
        ),
    )
    tasks = []

    def here(task: str, arguments: dict[str, Any], environment: dict[str, str]) -> tuple[Any, Cost]:
        tasks.append(task)
        return TASKS[task](**json.loads(json.dumps(arguments))), Cost(1.0, 2.0)

    figures = bench(settings, here)
    assert set(figures) >= FIGURES
    assert all(isinstance(value, float) for value in figures.values())
    # Both albums for the cost of one.
    assert figures["booth_pack8_throughput_ratio"] == figures["booth_pack8_throughput_ratio_clock"] == 2
    assert tasks.count("train") == 2
    assert tasks.count("step_memory") == 3


def test_throughput_of_known_costs() -> None:
    # A single run: 10 s of start, 1 s a step. The pack: 20 s of start, 4 s a step.
    def known(task: str, arguments: dict[str, Any], environment: dict[str, str]) -> tuple[Any, Cost]:
        if task == "make_prior_images":
            return None, Cost(99, 99)
        assert task == "train"
        single = len(arguments["albums"]) == 1
        step_s, start_s = (1.0, 10.0) if single else (4.0, 20.0)
        steps = {phase: [[step_s, 2 * step_s]] * 3 for phase in ("tokens", "joint")}
        slower = 3 if arguments["names"][0].startswith("before") else 0
        return steps, Cost(start_s + 8 * step_s + slower, 2 * (start_s + 8 * step_s))

    figures = pack_ratios(BenchSettings(steps=(3, 5), single_runs=2), known)
    assert figures["booth_pack8_throughput_ratio"] == pytest.approx(8 * 18 / 52), "the better of the single runs"
    # The preset: 100 and 300 steps.
    assert figures["booth_pack8_throughput_ratio_full"] == pytest.approx(8 * 410 / 1620)
    assert figures["booth_pack8_throughput_ratio_full_clock"] == pytest.approx(8 * 410 / 1620)
    assert figures["booth_single_start_processor_s"] == pytest.approx(10)
    assert figures["booth_pack_start_processor_s"] == pytest.approx(20)
    assert figures["booth_pack_step_processor_s"] == pytest.approx(4)


def test_albums_of_the_benchmark_differ_and_are_whole(tmp_path: Path) -> None:
    folders = list(write_albums(BenchSettings(num_albums=3, photos=2), tmp_path))
    albums = [read_album(Path(folder)) for folder in folders]
    assert all(len(album.photos) == 2 and not album.set_aside for album in albums)
    assert len({tuple(photo.stem for photo in album.photos) for album in albums}) == 3
    assert not list(tmp_path.rglob("ground_truth"))


def test_a_process_of_its_own_says_what_it_costs_and_why_it_failed() -> None:
    arguments = {"size": vars(TINY), "precision": "32-true", "rank": 2, "variant": "booth"}
    held, cost = run_in_process("step_memory", arguments, bench_booth.KEEPS_NOTHING)
    # At least a resnet's activations of the finest level: two rows of 32 channels at 16 x 16.
    assert held > 2 * 32 * 16 * 16 * 4
    assert 0.5 < cost.processor_s < 300
    assert cost.clock_s > 0.5
    with pytest.raises(RuntimeError, match=r"(?s)step_memory ended with 1: .*KeyError: 'nothing'"):
        run_in_process("step_memory", {**arguments, "variant": "nothing"}, {})


@pytest.mark.skipif(not booth_worker.STATUS.exists(), reason="the peak cannot be reset where there is no /proc")
def test_peak_memory_begins_anew() -> None:
    size = 200_000_000
    before = reset_peak()
    block = bytearray(size)
    assert peak_bytes() - before > 0.9 * size
    del block
    before = reset_peak()
    assert peak_bytes() - before < 0.5 * size


def test_all_layers_give_the_columns_that_one_level_gives() -> None:
    backbone = random_backbone(TINY)
    backbone.choose_attention("fused")
    booth = build_booth(backbone, PuzzleBoothConfig(adapter=AdapterConfig(rank=2)), 1)
    batch = random_batch(booth, list(RowKind))
    fast = booth.losses(batch)
    booth.capture = EveryAttention(backbone.unet)  # type: ignore[assignment]
    slow = booth.losses(batch)
    assert fast["attention"].item() > 0
    for name, value in fast.items():
        torch.testing.assert_close(slow[name], value, rtol=1e-4, atol=1e-6)


def test_the_release_s_loop_sums_the_same_terms() -> None:
    """With masks of ones and all weights but one at zero, its terms are those of the vectorised losses."""
    config = PuzzleBoothConfig(adapter=AdapterConfig(rank=2), weight_prior=0, weight_synthetic=0, weight_attention=0)
    backbone = random_backbone(TINY)
    backbone.choose_attention("fused")
    booth = build_booth(backbone, config, 1)
    batch = random_batch(booth, list(RowKind))
    batch["masks"] = torch.ones_like(batch["masks"])
    images = torch.rand(4, 3, backbone.image_size, backbone.image_size)
    torch.manual_seed(0)
    mean, std = backbone.posterior(images)
    batch["latents"] = mean + std * torch.randn_like(mean)
    expected = booth.losses(batch)["reconstruction"].sum()
    booth.capture = EveryAttention(backbone.unet)  # type: ignore[assignment]
    torch.manual_seed(0)
    found = reference_loss(booth, batch, images, list(RowKind))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
