"""Real diffusers classes at tiny size, random weights from a fixed seed: the backbones that tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from datamodules.asset_names import CANONICAL_ASSETS
from modules.diffusion.backbone import Backbone, BackboneConfig
from modules.diffusion.pixel_codec import build_pixel_codec
from modules.diffusion.prompts import NEGATIVE_PROMPT, AssetPhrase, compose_prompt
from modules.diffusion.tokenizer import train_tokenizer

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def write_tiny_backbone(
    folder: Path, *, prediction_type: PredictionType = "sample", autoencoder: Literal["codec", "kl"] = "codec"
) -> Path:
    """Write a tiny Stable-Diffusion-like model in diffusers layout: 32^2 images, latents 8^2 (codec) or 16^2 (KL)."""
    torch.manual_seed(0)
    words = "long-sleeved striped oval round short loose fitted ponytail"
    assets = [AssetPhrase(name=name, words=words) for name in CANONICAL_ASSETS]
    captions = [
        compose_prompt(gender, assets, kind=kind, view=view, framing=framing, pose="a-pose", background="gray")
        for gender in ("woman", "man", "person")
        for kind in ("rgb", "normal")
        for view, framing in (("front left", "full body"), ("back right", "upper body"), ("left", "head"))
    ]
    tokenizer = train_tokenizer([*captions, NEGATIVE_PROMPT] * 4, vocabulary_size=1000, max_tokens=77)
    if autoencoder == "codec":
        vae, channels, side = build_pixel_codec(decoder_channels=8, decoder_blocks=(0, 0, 0)), 48, 8
    else:
        vae, channels, side = (
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(8, 8),
                latent_channels=4,
                norm_num_groups=4,
                sample_size=32,
            ),
            4,
            16,
        )
    unet = UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2" if prediction_type == "sample" else "scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def load_tiny_backbone(folder: Path) -> Backbone:
    return Backbone.load(BackboneConfig(path=str(folder)), root=Path("/"))
