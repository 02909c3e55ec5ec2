"""A stock diffusers pipeline with the exported LoRA and embeddings draws what the personalised backbone draws."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from modules.diffusion.config import AdapterConfig
from modules.diffusion.lora_export import embedding_state, lora_state
from modules.diffusion.personalization import Personalization
from tests.tiny_backbone import load_tiny_backbone, write_tiny_backbone

pytest.importorskip("peft")

PROMPT = (
    "a high-resolution DSLR colored image of a woman, <asset0> oval face, wearing <asset1> striped shirt, left view."
)


@pytest.mark.parametrize(("prediction_type", "autoencoder"), [("sample", "codec"), ("epsilon", "kl")])
@pytest.mark.parametrize("text_encoder", [True, False])
def test_stock_pipeline_draws_the_same(
    tmp_path: Path,
    prediction_type: Literal["sample", "epsilon"],
    autoencoder: Literal["codec", "kl"],
    text_encoder: bool,
) -> None:
    folder = write_tiny_backbone(tmp_path / "tiny", prediction_type=prediction_type, autoencoder=autoencoder)
    backbone = load_tiny_backbone(folder)
    config = AdapterConfig(rank=4, alpha=3.0, text_encoder=text_encoder)
    personalization = Personalization(backbone, config, num_albums=2, num_tokens=2)
    generator = torch.Generator().manual_seed(0)
    for album in range(2):
        personalization.reset_album(album, ["face", "shirt"], backbone, seed=album)
    with torch.no_grad():
        for parameter in personalization.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    album = 1
    save_file(lora_state(personalization, album), tmp_path / "lora.safetensors")
    save_file(embedding_state(personalization, album, 2), tmp_path / "learned_embeds.safetensors")

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors", local_files_only=True)
    embeddings = load_file(tmp_path / "learned_embeds.safetensors")
    assert list(embeddings) == ["<asset0>", "<asset1>"]
    pipeline.load_textual_inversion([{token: value} for token, value in embeddings.items()])

    ids = pipeline.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, backbone.tokenize([PROMPT]))
    noisy = torch.randn(
        1, backbone.num_latent_channels, backbone.latent_size, backbone.latent_size, generator=generator
    )
    with torch.no_grad():
        stock_text = pipeline.text_encoder(input_ids=ids).last_hidden_state
        stock = pipeline.unet(noisy, torch.tensor(500), encoder_hidden_states=stock_text).sample
        plain = backbone.unet(noisy, torch.tensor(500), encoder_hidden_states=stock_text).sample
        with personalization.routing.rows(torch.tensor([album])):
            text = backbone.encode_text(backbone.tokenize([PROMPT]))
            own = backbone.unet(noisy, torch.tensor(500), encoder_hidden_states=text).sample
    torch.testing.assert_close(text, stock_text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own, stock, rtol=1e-4, atol=1e-5)
    assert (own - plain).abs().max() > 1e-2, "the adapter matters"
