"""The text encoder's auxiliary task: what it is asked for, and that it teaches to hear a colour before its noun."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modules.caption_sketch import SKETCH_SIDE, CaptionSketch, SketchModule, padding_of, sketch_loss
from modules.diffusion.tokenizer import train_tokenizer
from modules.prior import build_text_encoder
from modules.prior_config import PriorConfig
from trainer.fit import fit
from trainer.runtime import RuntimeConfig

CONFIG = PriorConfig(
    resolution=32,
    channels=(16, 32),
    text_width=48,
    text_layers=2,
    max_tokens=12,
    vocabulary_size=560,
    learning_rate=3e-3,
)
COLORS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0), "green": (0.0, 1.0, 0.0)}
TOPS = [(above, below) for above in COLORS for below in COLORS]


def caption(above: str, below: str) -> str:
    return f"{above} shirt and {below} skirt"


def picture(above: str, below: str) -> torch.Tensor:
    image = torch.zeros(3, 32, 32)
    image[:, :16] = torch.tensor(COLORS[above])[:, None, None]
    image[:, 16:] = torch.tensor(COLORS[below])[:, None, None]
    return image


def test_padding_begins_after_the_first_end() -> None:
    ids = torch.tensor([[7, 1, 2, 9, 9, 9], [7, 9, 9, 9, 9, 9], [7, 1, 2, 3, 4, 9]])
    expected = [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
    assert padding_of(ids, 9).int().tolist() == expected


def test_loss_is_the_weighted_squared_error_of_the_shrunken_picture() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    target = images.reshape(2, 3, 8, 2, 8, 2).mean((3, 5)) * 2 - 1
    foreground = torch.zeros(2, 1, 16, 16)
    assert sketch_loss(target, images, foreground, 4.0) == pytest.approx(0, abs=1e-10)
    assert sketch_loss(target + 0.5, images, foreground, 4.0) == pytest.approx(0.25)
    # One cell of 64 is the person: its error counts four times.
    foreground[:, :, :2, :2] = 1
    wrong = target.clone()
    wrong[:, :, 0, 0] += 1
    assert sketch_loss(wrong, images, foreground, 4.0) == pytest.approx(4 / (63 + 4))


def test_padding_is_not_looked_at() -> None:
    torch.manual_seed(0)
    sketch = CaptionSketch(48)
    features, padding = torch.randn(2, 6, 48), torch.tensor([[False] * 4 + [True] * 2] * 2)
    drawn = sketch(features, padding)
    assert drawn.shape == (2, 3, SKETCH_SIDE, SKETCH_SIDE)
    features[:, 4:] = 100.0
    torch.testing.assert_close(sketch(features, padding), drawn)


def test_which_colour_belongs_to_which_garment_is_learned(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([caption(*top) for top in TOPS] * 4, vocabulary_size=560, max_tokens=12)
    torch.manual_seed(0)
    module = SketchModule(CONFIG, tokenizer, build_text_encoder(CONFIG, tokenizer), max_steps=250)
    ids = tokenizer([caption(*top) for top in TOPS], padding="max_length", return_tensors="pt").input_ids
    images = torch.stack([picture(*top) for top in TOPS])
    batch = {"images": images, "input_ids": ids, "foreground": torch.zeros(9, 1, 32, 32)}
    runtime = RuntimeConfig(accelerator="cpu", checkpoint_every_steps=0, checkpoint_every_s=0)
    fit(module, lambda step: batch, max_steps=250, folder=tmp_path, runtime=runtime)
    with torch.no_grad():
        features = module.text_encoder(input_ids=ids).last_hidden_state
        drawn = module.sketch(features, padding_of(ids, tokenizer.eos_token_id)) / 2 + 0.5
    for sketch, (above, below) in zip(drawn, TOPS, strict=True):
        for rows, color in ((slice(0, 4), above), (slice(4, 8), below)):
            mean = sketch[:, rows].mean((1, 2))
            nearest = min(COLORS, key=lambda name: float((mean - torch.tensor(COLORS[name])).norm()))
            assert nearest == color, f"{caption(above, below)}: {mean}"
