"""Does the prior do what its captions say? Held-out loss, colour accuracy, view accuracy, and a sheet of samples.

Colours and views are judged by rules that are first tried on the studio's own renders; the rules' accuracy there is
reported beside the model's, since a model cannot be blamed for what the rule gets wrong.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor

from datamodules.prior_images import CaptionConfig, PriorImages
from datamodules.studio.person import HELD_OUT_SEED, build_person, sample_person
from datamodules.studio.photographer import plain_background, take_picture
from datamodules.studio.vocabulary import COLORS, HAIR_COLORS, SKIN_TONES
from datamodules.studio.wardrobe import GarmentSpec
from modules.diffusion.backbone import Backbone
from modules.diffusion.losses import clean_sample_weight
from modules.diffusion.prompts import AssetPhrase, compose_prompt
from modules.geometry.camera import orbit_camera
from trainer.prior_card_config import CardConfig

VIEWS = {"front": 0.0, "left": 90.0, "back": 180.0, "right": -90.0}
_SKIN, _HAIR = SKIN_TONES["pale"], HAIR_COLORS["black"]


def outfit(color: str) -> list[AssetPhrase]:
    """Black hair on a pale face over a plain t-shirt: easy to tell apart."""
    return [
        AssetPhrase(name="face", words="pale"),
        AssetPhrase(name="haircut", words="black short"),
        AssetPhrase(name="t-shirt", words=color),
        AssetPhrase(name="trousers", words="blue" if color != "blue" else "black"),
    ]


def prompt(color: str, view: str) -> str:
    return compose_prompt("man", outfit(color), view=view, framing="full body", pose="a-pose", background="gray")


def color_of_chest(image: np.ndarray) -> str:
    """The named colour nearest (CIE Lab) to the median of a full-body image's chest. image: (S, S, 3) in [0, 1]."""
    size = len(image)
    chest = image[round(0.28 * size) : round(0.42 * size), round(0.45 * size) : round(0.55 * size)]
    lab = rgb2lab(np.median(chest.reshape(-1, 3), 0)[None, None])[0, 0]
    names = list(COLORS)
    named = rgb2lab(np.array([COLORS[name] for name in names])[None] / 255.0)[0]
    return names[int(np.argmin(np.linalg.norm(named - lab, axis=1)))]


def view_of_head(image: np.ndarray) -> str:
    """front, left, back or right, from where pale skin and black hair lie in the head of a full-body image.

    Hardly any skin is a back view; skin on one side of the hair is a side view, seen from where the nose points.
    """
    size = len(image)
    top, bottom = round(0.05 * size), round(0.14 * size)
    head = image[top:bottom, round(0.38 * size) : round(0.62 * size)]
    distances = [np.abs(head - np.array(color) / 255.0).sum(2) for color in (_SKIN, _HAIR, (128, 128, 128))]
    nearest = np.argmin(distances, 0)
    skin, hair = np.argwhere(nearest == 0), np.argwhere(nearest == 1)
    if len(skin) < 0.3 * max(1, len(skin) + len(hair)):
        return "back"
    if not len(hair):
        return "front"
    offset = (skin[:, 1].mean() - hair[:, 1].mean()) / size
    # Seen from the left, the person looks to the image's left.
    return "front" if abs(offset) < 0.012 else "left" if offset < 0 else "right"


@torch.no_grad()
def draw(backbone: Backbone, prompts: list[str], config: CardConfig, seed: int) -> np.ndarray:
    """Samples (N, S, S, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    null = backbone.encode_text(backbone.tokenize([""]))
    images = []
    for start in range(0, len(prompts), 16):
        text = backbone.encode_text(backbone.tokenize(prompts[start : start + 16]))
        images.append(
            backbone.sample(
                text, null, num_steps=config.num_steps, guidance_scale=config.guidance_scale, generator=generator
            )
        )
    return torch.cat(images).permute(0, 2, 3, 1).numpy()


def rendered_reference(color: str, view: str, seed: int, size: int) -> np.ndarray:
    """What the prompt means, rendered by the studio without light. Returns (S, S, 3) in [0, 1]."""

    def rgb(value: tuple[int, int, int]) -> tuple[float, float, float]:
        return (value[0] / 255, value[1] / 255, value[2] / 255)

    lower = "blue" if color != "blue" else "black"
    spec = dataclasses.replace(
        sample_person(HELD_OUT_SEED + seed),
        gender="man",
        skin_tone="pale",
        skin_rgb=rgb(SKIN_TONES["pale"]),
        hair_style="short",
        hair_color="black",
        hair_rgb=rgb(HAIR_COLORS["black"]),
        garments=(
            GarmentSpec(name="t-shirt", color=color, rgb=rgb(COLORS[color])),
            GarmentSpec(name="trousers", color=lower, rgb=rgb(COLORS[lower])),
        ),
        glasses=False,
    )
    person = build_person(spec)
    vertices = person.posed({})
    landmarks = person.landmarks(vertices)
    camera = orbit_camera(VIEWS[view], 5.0, target_m=landmarks.center_m, frame_height_m=1.14 * landmarks.stature_m)
    picture = take_picture(person, vertices, camera, resolution=size, background=plain_background("gray", size))
    return np.asarray(picture.rgb, np.float32) / 255


@torch.no_grad()
def held_out_loss(backbone: Backbone, images: PriorImages, *, num_draws: int = 256) -> float:
    """Mean weighted squared error of the predicted clean sample over timesteps, on people the model has not seen."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    pixels, captions, _ = images.draw(num_draws, rng)
    total = 0.0
    for start in range(0, num_draws, 32):
        chunk: Tensor = torch.from_numpy(pixels[start : start + 32].copy()).permute(0, 3, 1, 2).float() / 255
        latents = backbone.encode_images(chunk)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, backbone.num_timesteps, (len(chunk),), generator=generator)
        text = backbone.encode_text(backbone.tokenize(captions[start : start + 32], truncate=True))
        clean = backbone.predict(backbone.add_noise(latents, noise, timesteps), timesteps, text).clean
        weight = clean_sample_weight(backbone.alphas_cumprod[timesteps]).view(-1, 1, 1, 1)
        total += float(((clean - latents) ** 2 * weight).mean()) * len(chunk)
    return total / num_draws


def run_card(backbone: Backbone, config: CardConfig, out: Path) -> dict[str, Any]:
    """Measure a backbone; writes samples.png and card.json into `out` and returns the figures."""
    from datamodules.studio.shards import write_held_out_shards

    out.mkdir(parents=True, exist_ok=True)
    shards = out / "held_out"
    write_held_out_shards(shards, num_people=config.num_people, resolution=backbone.image_size)
    images = PriorImages(shards, CaptionConfig(caption_dropout=0, degraded_fraction=0))
    colors = list(COLORS)
    by_color = [(color, seed) for color in colors for seed in range(config.num_seeds)]
    by_view = [(view, seed) for view in VIEWS for seed in range(2 * config.num_seeds)]
    drawn = draw(backbone, [prompt(color, "front") for color, _ in by_color], config, seed=1)
    turned = draw(backbone, [prompt(colors[seed % len(colors)], view) for view, seed in by_view], config, seed=2)
    size = backbone.image_size
    rendered = [rendered_reference(color, "front", seed, size) for color, seed in by_color]
    rendered_views = [rendered_reference(colors[seed % len(colors)], view, seed, size) for view, seed in by_view]
    figures = {
        "held_out_loss": held_out_loss(backbone, images),
        "colour_accuracy": _share(
            color_of_chest(image) == color for image, (color, _) in zip(drawn, by_color, strict=True)
        ),
        "colour_rule_accuracy": _share(
            color_of_chest(image) == color for image, (color, _) in zip(rendered, by_color, strict=True)
        ),
        "view_accuracy": _share(view_of_head(image) == view for image, (view, _) in zip(turned, by_view, strict=True)),
        "view_rule_accuracy": _share(
            view_of_head(image) == view for image, (view, _) in zip(rendered_views, by_view, strict=True)
        ),
    }
    rows = [np.concatenate(list(drawn[:: config.num_seeds]), 1), np.concatenate(list(turned[: len(colors)]), 1)]
    width = min(row.shape[1] for row in rows)
    sheet = np.concatenate([row[:, :width] for row in rows])
    Image.fromarray((sheet * 255).round().astype(np.uint8)).resize(
        (2 * sheet.shape[1], 2 * sheet.shape[0]), Image.Resampling.NEAREST
    ).save(out / "samples.png")
    (out / "card.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _share(outcomes: Any) -> float:
    values = list(outcomes)
    return sum(values) / len(values)
