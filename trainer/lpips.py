"""LPIPS with a VGG-16 backbone (Zhang et al., CVPR 2018), from weights in a local file and without torchvision."""

from __future__ import annotations

from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from modules.errors import UserError

# Output channels of VGG-16's convolutions, block by block; features are tapped at the end of each block.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Perceptual distance of image pairs; lower is closer, 0 for identical images.

    forward(first, second): two (B, 3, H, W) float32 tensors in [-1, 1] (H, W >= 16) to (B,) distances.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(width for block in _BLOCKS for width in block)]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(block[-1])) for block in _BLOCKS)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = (images - self.shift) / self.scale
        convolutions = iter(self.convolutions)
        features = []
        for index, block in enumerate(_BLOCKS):
            if index:
                x = functional.max_pool2d(x, 2)
            for _ in block:
                x = functional.relu(next(convolutions)(x))
            features.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return features

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        distance = torch.zeros(len(first), device=first.device)
        for a, b, head in zip(self._features(first), self._features(second), self.heads, strict=True):
            distance = distance + ((a - b).square() * head[:, None, None]).sum(1).mean((1, 2))
        return distance


def load_lpips(backbone: Path) -> Lpips:
    """Read VGG-16's ImageNet weights (.safetensors or a .pth state dict, keys `features.N.weight`).

    The five small linear heads come with torchmetrics. Raises UserError when the file is missing or not such a state
    dict.
    """
    if not backbone.is_file():
        raise UserError(
            f"evaluation.lpips_backbone: found no file at {backbone}, expected VGG-16 weights (.safetensors or .pth); "
            "give a path that exists or leave the key empty"
        )
    try:
        if backbone.suffix == ".safetensors":
            state = load_file(backbone)
        else:
            state = torch.load(backbone, map_location="cpu", weights_only=True)
        weights = _convolution_weights(state)
    except Exception as error:  # each reader has its own idea of a broken file
        raise UserError(
            f"evaluation.lpips_backbone: {backbone} holds no VGG-16 weights ({type(error).__name__}: {error}), "
            "expected a state dict with keys features.0.weight to features.28.bias; download the file again"
        ) from error
    model = Lpips()
    model.convolutions.load_state_dict(weights)
    with (resources.files("torchmetrics") / "functional/image/lpips_models/vgg.pth").open("rb") as file:
        heads = torch.load(file, map_location="cpu", weights_only=True)
    for index, head in enumerate(model.heads):
        head.data.copy_(heads[f"lin{index}.model.1.weight"].flatten())
    return model.eval().requires_grad_(False)


def _convolution_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renumber `features.N`, whose N also counts activations and pooling, to the convolutions alone."""
    weights, layer, index = {}, 0, 0
    for block in _BLOCKS:
        for width in block:
            for kind in ("weight", "bias"):
                tensor = state[f"features.{layer}.{kind}"]
                if len(tensor) != width:
                    raise ValueError(f"features.{layer}.{kind} has {len(tensor)} channels, not {width}")
                weights[f"{index}.{kind}"] = tensor.float()
            layer, index = layer + 2, index + 1
        layer += 1
    return weights


@torch.inference_mode()
def mean_lpips(model: Lpips, images: list[np.ndarray], targets: list[np.ndarray]) -> float:
    """Mean distance of pairs of (H, W, 3) images, given to the network as they are: the caller chooses the range."""

    def batch(pictures: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(pictures)).float().permute(0, 3, 1, 2)

    # One pair at a time: VGG at 512 x 512 needs hundreds of megabytes for each image.
    values = [model(batch([image]), batch([target])) for image, target in zip(images, targets, strict=True)]
    return float(torch.cat(values).mean())
