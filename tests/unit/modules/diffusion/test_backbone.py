"""The backbone: what it reads from a diffusers folder, and its conversions between parameterisations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from modules.diffusion.backbone import Backbone, BackboneConfig
from modules.diffusion.pixel_codec import build_pixel_codec
from modules.errors import UserError
from tests.tiny_backbone import PredictionType, load_tiny_backbone, write_tiny_backbone


def test_sizes_come_from_the_configuration(backbone: Backbone) -> None:
    assert (backbone.image_size, backbone.latent_size, backbone.num_latent_channels) == (32, 8, 48)
    assert backbone.prediction_type == "sample"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_and_clean_prediction_describe_the_same_noisy_latents(
    tmp_path: Path, prediction_type: PredictionType
) -> None:
    backbone = load_tiny_backbone(
        write_tiny_backbone(tmp_path / "model", prediction_type=prediction_type, autoencoder="kl")
    )
    latents, noise = torch.randn(3, 4, 16, 16), torch.randn(3, 4, 16, 16)
    timesteps = torch.tensor([10, 500, 900])
    noisy = backbone.add_noise(latents, noise, timesteps)
    text = backbone.encode_text(backbone.tokenize(["a woman"] * 3))
    with torch.no_grad():
        prediction = backbone.predict(noisy, timesteps, text)
    torch.testing.assert_close(
        backbone.add_noise(prediction.clean, prediction.noise, timesteps), noisy, atol=1e-4, rtol=1e-4
    )


def test_sampling_agrees_with_a_stock_pipeline(tiny_folder: Path, backbone: Backbone) -> None:
    prompt, steps, scale = "a woman, red t-shirt, front view.", 4, 3.0
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        prompt,
        num_inference_steps=steps,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    text = backbone.encode_text(backbone.tokenize([prompt]))
    null = backbone.encode_text(backbone.tokenize([""]))
    ours = backbone.sample(
        text, null, num_steps=steps, guidance_scale=scale, generator=torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(ours, stock, atol=2e-3, rtol=1e-3)


def test_the_codecs_encoder_is_space_to_depth() -> None:
    codec = build_pixel_codec(decoder_channels=8, decoder_blocks=(0, 0, 0))
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = codec.encode(image).latents
    assert latents.shape == (2, 48, 4, 4)
    cells = latents.view(2, 2, 2, 2, 2, 3, 4, 4)
    for inner_row in range(2):
        for inner_column in range(2):
            for row in range(2):
                for column in range(2):
                    expected = image[:, :, 2 * inner_row + row :: 4, 2 * inner_column + column :: 4]
                    torch.testing.assert_close(cells[:, inner_row, inner_column, row, column], expected)


def test_a_prompt_that_is_too_long_is_named(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"has \d+ tokens and the model reads 77"):
        backbone.tokenize(["a woman " * 60])


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no unet, vae, text_encoder, tokenizer, scheduler: a Stable Diffusion"):
        Backbone.load(BackboneConfig(path=str(tmp_path)), root=Path("/"))


def test_an_unknown_autoencoder_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "vae" / "config.json").read_text()) | {"_class_name": "VQModel"}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="names the class 'VQModel'; AutoencoderKL or AutoencoderTiny"):
        load_tiny_backbone(folder)


def test_an_unknown_prediction_type_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "flow"}))
    with pytest.raises(UserError, match="prediction_type is 'flow'; epsilon, v_prediction or sample"):
        load_tiny_backbone(folder)
