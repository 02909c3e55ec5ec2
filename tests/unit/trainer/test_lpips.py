from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modules.errors import UserError
from tests.unit.trainer.report_content import sphere
from trainer.evaluation import EvaluationConfig, GroundTruth, evaluate_avatar
from trainer.lpips import load_lpips, mean_lpips

_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """VGG-16's tensors with random values, of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.0.weight": torch.zeros(1)}
    for layer, (inputs, outputs) in zip(_LAYERS, pairwise(_WIDTHS), strict=True):
        state[f"features.{layer}.weight"] = (
            torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / inputs / 9) ** 0.5
        )
        state[f"features.{layer}.bias"] = 0.01 * torch.randn(outputs, generator=generator)
    return state


@pytest.fixture(scope="module")
def backbone(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(state, path)
    return path


def _images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((32, 32, 3)).astype(np.float32)


def test_distance_is_zero_for_identical_images_and_symmetric(backbone):
    model = load_lpips(backbone)
    first, second = _images(0), _images(1)
    assert mean_lpips(model, [first], [first]) == 0
    distance = mean_lpips(model, [first], [second])
    assert distance > 0.001
    assert mean_lpips(model, [second], [first]) == pytest.approx(distance, rel=1e-5)


def test_distance_grows_with_noise(backbone):
    model, image = load_lpips(backbone), _images(0)
    noise = _images(1) - 0.5
    values = [mean_lpips(model, [image], [image + scale * noise]) for scale in (0.1, 0.4, 1.6)]
    assert values == sorted(values)
    assert values[0] < 0.5 * values[-1]


def test_network_is_that_of_the_plain_stack(state, backbone):
    """The same distance from torch's own layers, in the order in which VGG-16 numbers them."""
    modules, channels = [], 3
    for item in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if item == "M":
            modules.append(torch.nn.MaxPool2d(2, 2))
        else:
            modules += [torch.nn.Conv2d(channels, item, 3, padding=1), torch.nn.ReLU()]
            channels = item
    features = torch.nn.Sequential(*modules)
    features.load_state_dict(
        {key.removeprefix("features."): v for key, v in state.items() if key.startswith("features")}
    )
    model = load_lpips(backbone)
    pair = [torch.from_numpy(_images(seed)).permute(2, 0, 1)[None] for seed in (2, 3)]
    expected, (x, y) = 0.0, [(image - model.shift) / model.scale for image in pair]
    with torch.no_grad():
        for index, layer in enumerate(features):
            x, y = layer(x), layer(y)
            if index in (3, 8, 15, 22, 29):
                a, b = (f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in (x, y))
                head = model.heads[(3, 8, 15, 22, 29).index(index)]
                expected += float(torch.einsum("bchw,c->bhw", (a - b) ** 2, head).mean())
        assert float(model(*pair)) == pytest.approx(expected, rel=1e-5)


def test_heads_are_the_published_ones(backbone):
    heads = load_lpips(backbone).heads
    assert [len(head) for head in heads] == [64, 128, 256, 512, 512]
    assert all((head >= 0).all() and head.sum() > 0 for head in heads)


def test_pickled_state_dict_is_read_too(state, backbone, tmp_path):
    torch.save(state, tmp_path / "vgg16.pth")
    first, second = [_images(0)], [_images(1)]
    assert mean_lpips(load_lpips(tmp_path / "vgg16.pth"), first, second) == mean_lpips(
        load_lpips(backbone), first, second
    )


def test_evaluation_feeds_each_protocol_its_range(backbone):
    mesh = sphere(rings=8)
    truth = GroundTruth(mesh=mesh, labels=np.zeros((4, 4), np.uint8), asset_names=("skin",))
    avatar = replace(mesh, texture=255 - mesh.texture)
    config = EvaluationConfig(num_samples=100, resolution=32, lpips_backbone=str(backbone))
    result = evaluate_avatar(avatar, truth, config)
    values = [result[protocol]["lpips"] for protocol in ("reference", "corrected")]
    assert all(isinstance(value, float) and value > 0 for value in values)
    assert values[0] != pytest.approx(values[1], rel=0.01)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"found no file at .*none\.pth"):
        load_lpips(tmp_path / "none.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_broken_file_is_named(tmp_path, suffix):
    (tmp_path / f"vgg.{suffix}").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=rf"vgg\.{suffix} holds no VGG-16 weights"):
        load_lpips(tmp_path / f"vgg.{suffix}")


def test_another_network_is_refused(tmp_path):
    save_file({"features.0.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "mobile.safetensors")
    with pytest.raises(UserError, match="has 32 channels, not 64"):
        load_lpips(tmp_path / "mobile.safetensors")
