"""The mini prior at tiny size: what is trained, averaged, counted, exported, and taken up again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from modules.diffusion.backbone import Backbone, BackboneConfig
from modules.diffusion.tokenizer import train_tokenizer
from modules.prior import PriorConfig, PriorModule, draw_timesteps
from trainer.fit import fit
from trainer.runtime import RuntimeConfig

TINY = PriorConfig(
    resolution=32,
    channels=(16, 32),
    text_width=32,
    text_layers=1,
    max_tokens=12,
    vocabulary_size=560,
    warmup_steps=2,
    num_images=24,
    cooldown_images=12,
    batch_size=4,
)
RUNTIME = RuntimeConfig(accelerator="cpu", log_every_steps=1, checkpoint_every_steps=1)
CAPTIONS = ["a woman, front view.", "a man, back view.", "", "a person, left view."]


def build(config: PriorConfig = TINY) -> PriorModule:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS * 4, vocabulary_size=config.vocabulary_size, max_tokens=config.max_tokens)
    return PriorModule(config, tokenizer)


def batch_of(module: PriorModule, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = module.tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    foreground = torch.zeros(4, 1, 32, 32)
    foreground[:, :, 8:24, 12:20] = 1
    return {"images": torch.rand(4, 3, 32, 32, generator=generator), "input_ids": ids, "foreground": foreground}


def train(out: Path, steps: int) -> PriorModule:
    module = build()
    fit(module, lambda step: batch_of(module, step), max_steps=steps, folder=out, runtime=RUNTIME)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> PriorModule:
    return train(tmp_path_factory.mktemp("prior"), 4)


def test_training_moves_the_model_and_counts_its_images(trained: PriorModule) -> None:
    fresh = build()
    assert int(trained.images_seen) == 16
    for part in ("unet", "text_encoder"):
        before, after = fresh.get_submodule(part).state_dict(), trained.get_submodule(part).state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in before)
    # The encoder is space-to-depth by construction and must stay so.
    for name, value in fresh.codec.encoder.state_dict().items():
        assert torch.equal(value, trained.codec.encoder.state_dict()[name])


def test_the_average_lies_between_start_and_end(trained: PriorModule) -> None:
    fresh = build()
    name = "conv_in.weight"
    start, end = fresh.unet.state_dict()[name], trained.unet.state_dict()[name]
    average = trained.averaged["unet"].state_dict()[name]
    assert (average - start).norm() > 0
    assert 0 < (average - end).norm() < (start - end).norm()
    assert not any(parameter.requires_grad for parameter in trained.averaged.parameters())


def test_stopping_and_going_on_equals_never_having_stopped(trained: PriorModule, tmp_path: Path) -> None:
    for steps in (2, 4):
        module = train(tmp_path, steps)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_rate_warms_up_and_cools_down() -> None:
    module = build()
    assert module._rate_factor(0) == pytest.approx(0.5)
    assert module._rate_factor(5) == pytest.approx(1.0)
    for seen, factor in ((12, 1.0), (18, 0.5), (24, 0.1), (30, 0.1)):
        module.images_seen.fill_(seen)
        assert module._rate_factor(5) == pytest.approx(factor)


def test_losses_depend_on_the_caption_and_on_the_noise_level() -> None:
    module = build()
    # A new UNet's last layer is random, so that already an untrained one feels its inputs.
    batch, noise = batch_of(module, 0), torch.randn(4, 48, 8, 8, generator=torch.Generator().manual_seed(1))
    low, high = torch.full((4,), 50), torch.full((4,), 900)
    losses = module.losses(batch, low, noise)
    assert set(losses) == {"denoising", "codec", "sketch"}
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    other = batch | {"input_ids": batch["input_ids"].flip(0)}
    assert module.losses(other, low, noise)["denoising"] != losses["denoising"]
    assert module.losses(batch, high, noise)["denoising"] != losses["denoising"]


def test_errors_on_the_person_count_more() -> None:
    module = build()
    batch, noise = batch_of(module, 0), torch.zeros(4, 48, 8, 8)
    weight = TINY.foreground_weight
    mean = 1 + (weight - 1) / 8  # the person fills an eighth of the picture

    def gradient_share(rows: slice, columns: slice) -> float:
        """Slope of the loss by the prediction's error there, relative to that of an unweighted mean."""
        prediction = torch.zeros(4, 48, 8, 8, requires_grad=True)
        module.unet.forward = lambda *_, **__: SimpleNamespace(sample=prediction)  # type: ignore[method-assign]
        module.losses(batch, torch.full((4,), 900), noise)["denoising"].backward()
        assert prediction.grad is not None
        latents = module.codec.encode(batch["images"] * 2 - 1).latents
        alpha = module.alphas_cumprod[900]
        plain = -2 * latents / latents.numel() * (alpha / (1 - alpha)).sqrt().clamp(0.5, 3)
        return (prediction.grad / plain)[:, :, rows, columns].mean().item()

    assert gradient_share(slice(2, 6), slice(3, 5)) == pytest.approx(weight / mean, rel=1e-4)
    assert gradient_share(slice(0, 2), slice(0, 8)) == pytest.approx(1 / mean, rel=1e-4)


def test_export_is_a_stock_pipeline_and_a_backbone(trained: PriorModule, tmp_path: Path) -> None:
    trained.export(tmp_path / "weights")
    # The weights are stored in half precision, which a CPU cannot run.
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        tmp_path / "weights", dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        "a woman", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    assert images.shape == (1, 32, 32, 3)
    backbone = Backbone.load(BackboneConfig(path=str(tmp_path / "weights")), root=Path("/"))
    assert (backbone.image_size, backbone.latent_size, backbone.prediction_type) == (32, 8, "sample")
    assert backbone.max_tokens == 12
    for name, value in trained.averaged["unet"].state_dict().items():
        torch.testing.assert_close(backbone.unet.state_dict()[name], value, rtol=2e-3, atol=1e-4)
    assert not list((tmp_path / "weights").rglob("*.bin")), "weights are safetensors"
    # The module itself stays in float32.
    assert next(trained.averaged.parameters()).dtype == torch.float32


def test_exported_weights_are_a_start(trained: PriorModule, tmp_path: Path) -> None:
    trained.export(tmp_path / "weights")
    warm = build()
    warm.load_exported(tmp_path / "weights")
    for live, average in ((warm.unet, warm.averaged["unet"]), (warm.text_encoder, warm.averaged["text_encoder"])):
        for name, value in live.state_dict().items():
            assert torch.equal(value, average.state_dict()[name])
    name = "conv_in.weight"
    torch.testing.assert_close(
        warm.unet.state_dict()[name], trained.averaged["unet"].state_dict()[name], rtol=2e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resolution": 36}, "resolution must be a multiple of 16, found 36"),
        ({"ema_fraction": 0.0}, r"ema_fraction must lie in \(0, 1\), found 0.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
    ],
)
def test_ranges(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PriorConfig(**change)


def test_half_of_the_timesteps_are_noisy_ones() -> None:
    timesteps = draw_timesteps(4000, 0.5, torch.Generator().manual_seed(0))
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    noisy = (timesteps >= 700).float().mean().item()
    assert noisy == pytest.approx(0.5 + 0.5 * 0.3, abs=0.03)
    uniform = draw_timesteps(4000, 0.0, torch.Generator().manual_seed(0))
    assert (uniform >= 700).float().mean().item() == pytest.approx(0.3, abs=0.03)
    with pytest.raises(ValueError, match="high_noise_fraction must lie in"):
        PriorConfig(high_noise_fraction=1.5)
    with pytest.raises(ValueError, match="text_rate_factor must lie in"):
        PriorConfig(text_rate_factor=0)


def test_words_in_the_middle_of_a_prompt_change_the_features_after_training(trained: PriorModule) -> None:
    """A text encoder whose layers outgrow its embeddings hears the first and the last words only."""
    prompts = ["a red man in front", "a blue man in front"]
    ids = trained.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    position = int((ids[0] != ids[1]).nonzero()[0])
    with torch.no_grad():
        features = trained.text_encoder(input_ids=ids).last_hidden_state
    assert (features[0, position] - features[1, position]).abs().mean() > 0.2
