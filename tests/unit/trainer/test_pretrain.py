"""`pretrain` at tiny size: shards, tokenizer, training that resumes, warm starts, the folder that it writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from modules.errors import UserError
from trainer.pretrain import ensure_shards, run_pretrain
from trainer.pretrain_config import PretrainConfig
from trainer.runtime import RuntimeConfig

TINY = PretrainConfig(
    num_people=3,
    images_per_person=2,
    processes=1,
    resolution=32,
    num_images=8,
    num_sketch_images=12,
    batch_size=4,
    channels=(16, 32),
    text_width=32,
    text_layers=1,
    runtime=RuntimeConfig(accelerator="cpu", log_every_steps=1, checkpoint_every_steps=1),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished training of two steps."""
    out = tmp_path_factory.mktemp("prior") / "out"
    assert run_pretrain(TINY, out) == out / "weights"
    return out


def images_seen(weights: Path) -> int:
    return json.loads((weights / "training.json").read_text())["images_seen"]


def unet_of(weights: Path) -> dict[str, torch.Tensor]:
    return load_file(weights / "unet" / "diffusion_pytorch_model.safetensors")


def test_what_is_written(trained: Path) -> None:
    assert images_seen(trained / "weights") == 8
    assert json.loads((trained / "shards" / "complete.json").read_text())["num_people"] == 3
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss/denoising" in row]
    assert not list(trained.glob("*.tmp"))
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "weights", dtype=torch.float32, local_files_only=True)
    assert pipeline.unet.config.sample_size == 8
    assert len(pipeline.tokenizer.tokenize("wearing")) == 1, "the tokenizer has learned from the captions"


def test_the_text_encoder_sketches_first(trained: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (trained / "sketch" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert images_seen(trained / "weights") == 8, "captions that were sketched do not count"
    run_pretrain(dataclasses.replace(TINY, num_sketch_images=0), tmp_path)
    assert not (tmp_path / "sketch").exists()
    with_sketches, without = (
        load_file(out / "weights" / "text_encoder" / "model.safetensors") for out in (trained, tmp_path)
    )
    assert any(not torch.equal(with_sketches[name], without[name]) for name in without)


def test_a_finished_training_is_not_repeated(trained: Path) -> None:
    before = unet_of(trained / "weights")
    shards = {path: path.stat().st_mtime_ns for path in (trained / "shards").iterdir()}
    run_pretrain(TINY, trained)
    after = unet_of(trained / "weights")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {path: path.stat().st_mtime_ns for path in (trained / "shards").iterdir()} == shards
    assert images_seen(trained / "weights") == 8


def test_the_same_command_goes_on(trained: Path, tmp_path: Path) -> None:
    """Two steps and then four are the four of an uninterrupted training."""
    more = dataclasses.replace(TINY, num_images=16)
    run_pretrain(more, tmp_path / "straight")
    run_pretrain(TINY, tmp_path / "stopped")
    run_pretrain(more, tmp_path / "stopped")
    straight, stopped = unet_of(tmp_path / "straight" / "weights"), unet_of(tmp_path / "stopped" / "weights")
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)
    assert images_seen(tmp_path / "stopped" / "weights") == 16


def test_time_limit_saves_what_was_trained(tmp_path: Path) -> None:
    """The limit is looked at every 20 steps; the step it ends at is saved, exported, and where the next run starts."""
    runtime = RuntimeConfig(accelerator="cpu", log_every_steps=1, checkpoint_every_steps=0, checkpoint_every_s=0)
    limited = dataclasses.replace(TINY, num_images=10_000, batch_size=1, max_minutes=1e-6, runtime=runtime)
    run_pretrain(limited, tmp_path)
    assert images_seen(tmp_path / "weights") == 20
    run_pretrain(limited, tmp_path)
    assert images_seen(tmp_path / "weights") == 40


def test_warm_start_goes_on_counting(trained: Path, tmp_path: Path) -> None:
    warm = dataclasses.replace(TINY, warm_start=str(trained / "weights"), num_images=16, seed=1)
    run_pretrain(warm, tmp_path)
    assert images_seen(tmp_path / "weights") == 16
    assert not (tmp_path / "tokenizer").exists(), "a warm start speaks the words of the model that it starts from"
    first, last = unet_of(trained / "weights"), unet_of(tmp_path / "weights")
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"warm_start": "nowhere"}, "warm_start nowhere holds no exported prior"),
        ({"num_images": 8}, "has seen 8 images and num_images is 8: ask for more"),
        ({"num_images": 16, "channels": (16, 48)}, "a model of another size"),
    ],
)
def test_warm_starts_that_cannot_be(trained: Path, tmp_path: Path, change: dict, words: str) -> None:
    config = dataclasses.replace(TINY, **({"warm_start": str(trained / "weights")} | change))
    with pytest.raises(UserError, match=words):
        run_pretrain(config, tmp_path)


def test_other_people_are_rendered_anew(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    ensure_shards(folder, TINY)
    first = (folder / "people_0.npz").stat().st_mtime_ns
    ensure_shards(folder, TINY)
    assert (folder / "people_0.npz").stat().st_mtime_ns == first
    ensure_shards(folder, dataclasses.replace(TINY, seed=7))
    assert [path.name for path in folder.glob("*.npz")] == ["people_7.npz"]


@pytest.mark.parametrize("name", ["num_people", "images_per_person", "processes", "batch_size", "num_images"])
def test_ranges(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
        PretrainConfig(**{name: 0})
