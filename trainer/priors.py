"""Prior-preservation images, made once per output folder: samples of the frozen model, renders of synthetic people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from datamodules.prior_images import CaptionConfig, PriorImages
from datamodules.puzzlebooth import PriorSample
from modules.diffusion.prompts import AssetPhrase, Scene, compose_prompt
from trainer.artifacts import StageFolder, folder_errors, run_lock
from trainer.canonical import hash_json

if TYPE_CHECKING:
    from modules.diffusion.backbone import Backbone
    from trainer.config import RunConfig

# People of the prior's training set, never of an album: those start at HELD_OUT_SEED.
_SYNTHETIC_SEED = 5_000_000
_SAMPLED_VIEWS = ("front", "side", "back")
_SAMPLED_VIEWS_EIGHT = ("front", "front left", "left", "back", "right", "front right")


def synthetic_images(out: Path, config: RunConfig, image_size: int) -> PriorImages | None:
    """Renders of synthetic people in RGB and normals at the backbone's size, or None when both weights are off."""
    booth = config.booth
    if booth.weight_synthetic == 0 or booth.num_synthetic_people == 0:
        return None
    stage = StageFolder(out / ".cache" / f"synthetic-{image_size}-{booth.num_synthetic_people}", "synthetic")
    key = stage.key({}, {"size": image_size, "people": booth.num_synthetic_people}, _SYNTHETIC_SEED)
    # Runs of other albums with the same output folder want these, too: one makes them, the others wait.
    with run_lock(stage.path, wait=True), folder_errors(stage.path):
        if stage.status(key) != "complete":
            from datamodules.studio.shards import write_prior_shards

            write_prior_shards(
                stage.working(key),
                num_people=booth.num_synthetic_people,
                seed=_SYNTHETIC_SEED,
                resolution=image_size,
                num_workers=1,
            )
            stage.commit(key, inputs={}, config=booth, seed=_SYNTHETIC_SEED)
    # Whole captions without degraded images: this set preserves what the model knows of bodies and clothes.
    captions = CaptionConfig(caption_dropout=0.1, asset_dropout=0.1, words_dropout=0.3, degraded_fraction=0.0)
    return PriorImages(stage.path, captions)


def prior_samples(
    out: Path, config: RunConfig, backbone: Backbone, gender: str, backbone_hash: str
) -> list[PriorSample]:
    """Images that the frozen model draws for prompts without tokens (prior preservation, Ruiz et al. 2023).

    backbone_hash: of the backbone's files; other weights draw other images.
    """
    booth = config.booth
    if booth.weight_prior == 0 or booth.num_prior_samples == 0:
        return []
    inputs = {"backbone": backbone_hash}
    settings = {"count": booth.num_prior_samples, "gender": gender, "backbone": config.backbone}
    identity = hash_json([inputs, settings, config.seed])[:8]
    stage = StageFolder(out / ".cache" / f"samples-{gender}-{identity}", "prior_samples")
    key = stage.key(inputs, settings, config.seed)
    with run_lock(stage.path, wait=True), folder_errors(stage.path):
        if stage.status(key) != "complete":
            prompts = _sample_prompts(gender, booth.num_prior_samples, config)
            images = _draw(prompts, backbone, config.seed)
            np.savez_compressed(stage.working(key) / "samples.npz", images=images, prompts=np.array(prompts))
            stage.commit(key, inputs=inputs, config=settings, seed=config.seed)
    with np.load(stage.output("samples.npz")) as file:
        return [
            PriorSample(image=image, prompt=str(prompt))
            for image, prompt in zip(file["images"], file["prompts"], strict=True)
        ]


def _draw(prompts: list[str], backbone: Backbone, seed: int) -> np.ndarray:
    """(N, S, S, 3) uint8, one image for each prompt."""
    images = []
    generator = torch.Generator().manual_seed(seed)
    null = backbone.encode_text(backbone.tokenize([""]).to(backbone.device))
    for start in range(0, len(prompts), 8):
        text = backbone.encode_text(backbone.tokenize(prompts[start : start + 8]).to(backbone.device))
        drawn = backbone.sample(text, null, num_steps=20, guidance_scale=3.0, generator=generator)
        images.append((drawn.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8))
    return np.concatenate(images)


def _sample_prompts(gender: str, count: int, config: RunConfig) -> list[str]:
    assets = [AssetPhrase(name=name) for name in ("face", "haircut", "shirt", "trousers", "shoes")]
    eight = config.backbone.view_vocabulary == "eight"
    views = _SAMPLED_VIEWS_EIGHT if eight else _SAMPLED_VIEWS
    scene: Scene = (
        {"framing": "full body", "pose": "standing", "background": "gray"} if config.backbone.scene_words else {}
    )
    return [compose_prompt(gender, assets, view=views[index % len(views)], **scene) for index in range(count)]
