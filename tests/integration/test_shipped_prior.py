"""The prior in weights/mini: stock diffusers loads it, and the prompts of every studio person fit its text encoder."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from datamodules.studio.person import HELD_OUT_SEED, phrases, sample_person
from modules.contracts import Subject
from modules.diffusion.backbone import Backbone
from modules.diffusion.distillation import Distiller, View
from modules.diffusion.prompts import AssetPhrase
from modules.diffusion.routing import NO_ALBUM
from modules.diffusion.tokens import add_placeholders, placeholder
from trainer.config import PROJECT_ROOT, load_config

WEIGHTS = PROJECT_ROOT / "weights" / "mini"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load(load_config("mini").backbone, root=PROJECT_ROOT)


def test_a_stock_pipeline_loads_and_samples_it() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(
        WEIGHTS, dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline("a man, red t-shirt, front view.", num_inference_steps=2, generator=generator, output_type="pt")
    assert images.images.shape == (1, 3, 64, 64)
    assert images.images.isfinite().all()
    assert images.images.std() > 0.02


def test_every_word_of_the_studio_is_one_token(backbone: Backbone) -> None:
    for word in ("haircut", "jacket", "trousers", "striped", "purple", "sculpture", "front", "background"):
        assert len(backbone.tokenizer(word, add_special_tokens=False).input_ids) == 1, word


@pytest.mark.parametrize("offset", range(0, 40, 5))
def test_prompts_of_whole_outfits_fit(backbone: Backbone, offset: int) -> None:
    spec = sample_person(HELD_OUT_SEED + offset)
    words = phrases(spec, colors=False)
    add_placeholders(backbone.tokenizer, len(words))
    assets = tuple(
        AssetPhrase(name=phrase.name, words=phrase.words, token=placeholder(index))
        for index, phrase in enumerate(words)
    )
    subject = Subject(name="a", gender=spec.gender, assets=assets, album=NO_ALBUM, seed=0)
    distiller = Distiller(backbone, None, [subject], kind="rgb", scene_words=True)
    view = View(subject=0, view="front right", framing="upper body", background="white")
    assert backbone.tokenize([distiller.prompt(view)]).shape == (1, backbone.max_tokens)


def test_the_training_record_is_there() -> None:
    assert json.loads((WEIGHTS / "training.json").read_text())["images_seen"] > 100_000
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert size < 60e6, "weights must stay small"
