"""The mini parser: a small network that tells a person's parts apart in a photo, and from where the photo was taken.

A U-Net (Ronneberger et al. 2015) of plain 3 x 3 convolutions, which a CPU does best, with residual blocks (He et al.
2016), group normalisation and the picture's mean features added at the coarsest level. Shapes: B pictures of H x W
pixels, C classes, P coarse parts (part 0 is the background).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modules.errors import UserError
from modules.parser_config import ParserConfig

IGNORED = 255
_NUM_GAZES = 4
_WEIGHTS_FILE, _CONFIG_FILE = "parser.safetensors", "config.json"


class ParserOutput(NamedTuple):
    """logits: (B, C, H, W) float of the classes. view: (B, V) float logits of the directions."""

    logits: Tensor
    view: Tensor


def _normal(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class _Residual(nn.Module):
    def __init__(self, incoming: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(incoming, channels, 3, stride, 1, bias=False)
        self.first_norm = _normal(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.second_norm = _normal(channels)
        self.skip = nn.Conv2d(incoming, channels, 1, stride, bias=False) if stride > 1 or incoming != channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return F.relu(y + (x if self.skip is None else self.skip(x)))


class _Up(nn.Module):
    """Twice the size, joined with the encoder's features of that size."""

    def __init__(self, coarse: int, fine: int, channels: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(coarse, channels, 1, bias=False)
        self.fine = nn.Conv2d(fine, channels, 1, bias=False)
        self.norm = _normal(channels)
        self.mix = _Residual(channels, channels)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        larger = F.interpolate(self.coarse(coarse), size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.mix(F.relu(self.norm(larger + self.fine(fine))))


class ParserNetwork(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1], sides multiples of 16, to `ParserOutput`."""

    def __init__(self, config: ParserConfig, num_classes: int) -> None:
        super().__init__()
        channels, up = config.channels, config.decoder_channels
        self.stem = nn.Conv2d(3, channels[0], 3, 2, 1)
        self.stages = nn.ModuleList()
        incoming = channels[0]
        for level, (width, blocks) in enumerate(zip(channels, config.blocks, strict=True)):
            first = _Residual(incoming, width, stride=1 if level == 0 else 2)
            self.stages.append(nn.Sequential(first, *(_Residual(width, width) for _ in range(blocks - 1))))
            incoming = width
        self.context = nn.Linear(incoming, incoming)
        self.ups = nn.ModuleList(
            [
                _Up(channels[3], channels[2], up[0]),
                _Up(up[0], channels[1], up[1]),
                _Up(up[1], channels[0], up[2]),
            ]
        )
        self.classes = nn.Conv2d(up[2], num_classes, 1)
        # Where to look for the direction: a person fills a small part of the picture, their head a smaller one.
        self.gaze = nn.Conv2d(incoming, _NUM_GAZES, 1)
        self.view = nn.Sequential(nn.Linear(incoming * _NUM_GAZES, 96), nn.ReLU(), nn.Linear(96, config.num_views))

    def forward(self, pictures: Tensor) -> ParserOutput:
        if pictures.shape[-1] % 16 or pictures.shape[-2] % 16:
            raise ValueError(f"the sides of pictures must be multiples of 16, found {tuple(pictures.shape[-2:])}")
        x = F.relu(self.stem((pictures - 0.45) * 4))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        pooled = x.mean((2, 3))
        gaze = self.gaze(x).flatten(2).softmax(2)
        view = self.view(torch.einsum("bgn,bcn->bgc", gaze, x.flatten(2)).flatten(1))
        x = x + self.context(pooled)[..., None, None]
        for up, fine in zip(self.ups, reversed(features[:-1]), strict=True):
            x = up(x, fine)
        logits = F.interpolate(self.classes(x), size=pictures.shape[-2:], mode="bilinear", align_corners=False)
        return ParserOutput(logits.float(), view.float())


def part_probabilities(logits: Tensor, part_of_class: Tensor, num_parts: int) -> Tensor:
    """Softmax over classes (B, C, H, W), summed within the parts: (B, P, H, W)."""
    probability = logits.softmax(1)
    parts = probability.new_zeros(len(logits), num_parts, *logits.shape[2:])
    return parts.index_add(1, part_of_class, probability)


def overlap_loss(parts: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice, mean over the parts that the batch shows (Milletari et al. 2016). A part is judged over the whole
    batch: in a single picture a thin one has too few pixels.

    parts: (B, P, H, W) probabilities. target: (B, H, W) int64 part indices, IGNORED where unknown.
    """
    num_parts = parts.shape[1]
    known = target != IGNORED
    truth = F.one_hot(torch.where(known, target, 0), num_parts).permute(0, 3, 1, 2) * known[:, None]
    dims = (0, 2, 3)
    shown = truth.sum(dims)
    both = (parts * truth).sum(dims)
    dice = (2 * both + 1) / ((parts * known[:, None]).sum(dims) + shown + 1)
    present = shown > 0
    return (1 - dice)[present].mean() if bool(present.any()) else parts.sum() * 0


class ParserModule(lightning.LightningModule):
    """Trains a `ParserNetwork`; `averaged` holds the running average of its weights, which is what is exported.

    class_names: C names, the background first. part_of_class: (C,) index of each class's coarse part.
    class_frequency: (C,) share of the pixels, which decides how much a class weighs.
    """

    images_seen: Tensor
    part_of_class: Tensor
    class_weight: Tensor

    def __init__(
        self,
        config: ParserConfig,
        class_names: Sequence[str],
        part_of_class: Sequence[int],
        class_frequency: Sequence[float],
    ) -> None:
        super().__init__()
        self.config = config
        self.class_names = tuple(class_names)
        self.network = ParserNetwork(config, len(class_names))
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("part_of_class", torch.tensor(part_of_class), persistent=False)
        weight = torch.tensor(class_frequency, dtype=torch.float32).clamp_min(1e-4) ** -config.rare_class_power
        self.register_buffer("class_weight", weight / weight.mean(), persistent=False)
        self._num_images = 0

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay, fused=True
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor),
                "interval": "step",
            },
        }

    def _rate_factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        done = min(1.0, int(self.images_seen) / self.config.num_images)
        return warmup * max(0.02, 0.5 + 0.5 * math.cos(math.pi * done))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: pictures (B, 3, H, W) in [0, 1]; classes (B, H, W) int64, IGNORED where unknown; view (B,) int64, -1
        where unknown."""
        output = self.network(batch["pictures"].contiguous(memory_format=torch.channels_last))
        classes = batch["classes"]
        entropy = F.cross_entropy(output.logits, classes, self.class_weight, ignore_index=IGNORED)
        parts = part_probabilities(output.logits, self.part_of_class, int(self.part_of_class.max()) + 1)
        known = classes != IGNORED
        target = torch.where(known, self.part_of_class[torch.where(known, classes, 0)], IGNORED)
        seen = batch["view"] >= 0
        view = F.cross_entropy(output.view[seen], batch["view"][seen]) if bool(seen.any()) else output.view.sum() * 0
        return {"classes": entropy, "overlap": overlap_loss(parts, target), "view": view}

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        self._num_images = len(batch["pictures"])
        losses = self.losses(batch)
        self.log_dict({f"loss/{name}": value.detach() for name, value in losses.items()}, prog_bar=True)
        config = self.config
        return losses["classes"] + config.weight_overlap * losses["overlap"] + config.weight_view * losses["view"]

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Here and not at the batch's end: checkpoints are written before the module hears of that.
        self.images_seen += self._num_images * self.trainer.world_size
        decay = max(0.0, 1 - 1 / (self.config.ema_fraction * (self.global_step + 1) + 5))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)

    def export(self, folder: Path) -> None:
        """Write the averaged weights as fp16 safetensors and the configuration as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        half = {name: tensor.half().contiguous() for name, tensor in self.averaged.state_dict().items()}
        save_file(half, folder / _WEIGHTS_FILE)
        content = {
            "classes": list(self.class_names),
            "architecture": asdict(self.config),
            "images_seen": int(self.images_seen),
        }
        (folder / _CONFIG_FILE).write_text(json.dumps(content, indent=1) + "\n")

    def load_exported(self, folder: Path) -> None:
        """Start from weights that `export` wrote; the optimiser starts anew."""
        state = {name: tensor.float() for name, tensor in load_file(folder / _WEIGHTS_FILE).items()}
        self.network.load_state_dict(state)
        self.averaged.load_state_dict(state)


def load_parser(folder: Path) -> tuple[ParserNetwork, tuple[str, ...]]:
    """The network (float32, in evaluation mode) and the names of its classes from a folder that `export` wrote.

    Raises UserError when the folder is missing or damaged.
    """
    again = "name the folder of an exported parser, for example weights/mini_parser"
    try:
        content = json.loads((folder / _CONFIG_FILE).read_text())
        names = tuple(content["classes"])
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content["architecture"].items()
        }
        network = ParserNetwork(ParserConfig(**settings), len(names))
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / _WEIGHTS_FILE).items()})
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing, but a parser was expected; {again}") from None
    except Exception as error:  # damaged JSON or safetensors raise many kinds
        raise UserError(f"{folder} holds no intact parser ({type(error).__name__}: {error}); {again}") from None
    return network.eval(), names
