"""The mini parser's network, losses, training steps and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from modules.errors import UserError
from modules.parser import (
    IGNORED,
    ParserModule,
    ParserNetwork,
    load_parser,
    overlap_loss,
    part_probabilities,
)
from modules.parser_config import ParserConfig

TINY = ParserConfig(
    channels=(8, 8, 16, 16),
    blocks=(1, 1, 1, 1),
    decoder_channels=(8, 8, 8),
    resolutions=(32,),
    num_images=100_000,
    warmup_steps=1,
    learning_rate=1e-2,
    batch_size=4,
)
NAMES, PARTS = ("background", "a", "b", "c"), (0, 1, 1, 2)


def tiny_module() -> ParserModule:
    torch.manual_seed(0)
    return ParserModule(TINY, NAMES, PARTS, (0.7, 0.1, 0.1, 0.1))


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Left half of one colour for each class, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(1, 4, (4, 1, 1)).repeat(32, 1).repeat(32, 2)
    classes[:, :, 16:] = 0
    pictures = np.eye(4)[classes].transpose(0, 3, 1, 2)[:, :3] + rng.normal(0, 0.05, (4, 3, 32, 32))
    return {
        "pictures": torch.from_numpy(pictures).float().clamp(0, 1),
        "classes": torch.from_numpy(classes),
        "view": torch.tensor([0, 3, -1, 8]),
    }


@pytest.mark.parametrize(("height", "width"), [(32, 48), (64, 16)])
def test_every_pixel_gets_a_logit_of_every_class(height: int, width: int) -> None:
    output = ParserNetwork(TINY, 4)(torch.rand(2, 3, height, width))
    assert output.logits.shape == (2, 4, height, width)
    assert output.view.shape == (2, 9)


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        ParserNetwork(TINY, 4)(torch.rand(1, 3, 40, 32))


def test_parts_are_the_sums_of_their_classes() -> None:
    logits = torch.randn(2, 4, 3, 3)
    parts = part_probabilities(logits, torch.tensor(PARTS), 3)
    probability = logits.softmax(1)
    torch.testing.assert_close(parts[:, 1], probability[:, 1] + probability[:, 2])
    torch.testing.assert_close(parts.sum(1), torch.ones(2, 3, 3))


def test_overlap_is_the_soft_dice_of_the_parts_that_are_shown() -> None:
    target = torch.tensor([[[1, 1], [0, IGNORED]]])
    parts = torch.zeros(1, 3, 2, 2)
    parts[0, 1] = torch.tensor([[0.8, 0.4], [0.3, 0.9]])
    parts[0, 0] = 1 - parts[0, 1]
    # By hand: ignored pixels count nowhere, part 2 is not shown.
    background = (2 * 0.7 + 1) / (0.2 + 0.6 + 0.7 + 1 + 1)
    first = (2 * (0.8 + 0.4) + 1) / (0.8 + 0.4 + 0.3 + 2 + 1)
    assert float(overlap_loss(parts, target)) == pytest.approx(1 - (background + first) / 2)
    assert float(overlap_loss(parts, torch.full_like(target, IGNORED))) == 0


def test_an_unknown_view_has_no_gradient() -> None:
    module = tiny_module()
    unknown = batch() | {"view": torch.full((4,), -1)}
    losses = module.losses(unknown)
    losses["view"].backward()
    assert losses["view"].item() == 0
    assert all(float(p.grad.abs().max()) == 0 for p in module.network.view.parameters() if p.grad is not None)


def test_a_few_steps_learn_it_and_the_export_reads_back(tmp_path: Path) -> None:
    from trainer.fit import fit
    from trainer.runtime import RuntimeConfig

    module = tiny_module()
    before = {name: value.item() for name, value in module.losses(batch()).items()}
    runtime = RuntimeConfig(accelerator="cpu", precision="32-true", num_threads=1)
    fit(module, lambda step: batch(step % 3), max_steps=40, folder=tmp_path, runtime=runtime)
    after = {name: value.item() for name, value in module.losses(batch()).items()}
    assert after["classes"] < 0.7 * before["classes"]
    assert after["overlap"] < before["overlap"]
    assert int(module.images_seen) == 160
    module.export(tmp_path / "weights")
    network, names = load_parser(tmp_path / "weights")
    assert names == NAMES
    pictures = batch()["pictures"]
    expected = module.averaged.eval()(pictures).logits
    torch.testing.assert_close(network(pictures).logits, expected, atol=0.05, rtol=0.05)
    assert not network.training
    fresh = tiny_module()
    fresh.load_exported(tmp_path / "weights")
    torch.testing.assert_close(fresh.network(pictures).logits, network(pictures).logits)


def test_rare_classes_weigh_more() -> None:
    module = ParserModule(TINY, NAMES, PARTS, (0.7, 0.2, 0.099, 0.001))
    weight = module.class_weight
    assert float(weight[3]) > float(weight[2]) > float(weight[1]) > float(weight[0])
    assert float(weight.mean()) == pytest.approx(1)


@pytest.mark.parametrize("damage", ["missing", "json", "weights", "other"])
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, damage: str) -> None:
    tiny_module().export(tmp_path)
    match damage:
        case "missing":
            (tmp_path / "parser.safetensors").unlink()
        case "json":
            (tmp_path / "config.json").write_text("{")
        case "weights":
            (tmp_path / "parser.safetensors").write_bytes(b"\xff" * 100)
        case "other":
            content = json.loads((tmp_path / "config.json").read_text())
            content["architecture"]["channels"] = [16, 16, 16, 16]
            (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="parser"):
        load_parser(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"channels": (8, 8, 8)}, "4 numbers"),
        ({"channels": (8, 8, 8, 12)}, "multiples of 8"),
        ({"resolutions": (100,)}, "multiples of 16"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"ema_fraction": 1.0}, "ema_fraction"),
        ({"num_images": 0}, "num_images"),
        ({"weight_view": -1.0}, "weight_view"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ParserConfig(**wrong)
