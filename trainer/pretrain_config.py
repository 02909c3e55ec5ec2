"""Settings of the prior's training; light to import, unlike `trainer.pretrain`."""

from __future__ import annotations

from dataclasses import dataclass, field

from modules.prior_config import PriorConfig
from trainer.runtime import RuntimeConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What `pretrain` does: how many people to render, and how long to train.

    num_people: people in the training set, with images_per_person each in RGB and normals. processes: gloo processes on
    a CPU. max_minutes: stop (and export) after this long, 0 for never; the same command goes on from there.
    warm_start: exported weights to start from. num_images: images seen in all, those of the warm start included.
    num_sketch_images: captions from which the text encoder learns to sketch pictures before the UNet's training
    begins, 0 for none; they do not count as images seen.
    channels, text_width, text_layers: size of the model (see PriorConfig).
    """

    num_people: int = 6000
    images_per_person: int = 8
    seed: int = 0
    processes: int = 2
    num_sketch_images: int = 200_000
    max_minutes: float = 0.0
    export_every_s: float = 600.0
    warm_start: str = ""
    resolution: int = PriorConfig.resolution
    num_images: int = PriorConfig.num_images
    cooldown_images: int = PriorConfig.cooldown_images
    batch_size: int = PriorConfig.batch_size
    learning_rate: float = PriorConfig.learning_rate
    channels: tuple[int, ...] = PriorConfig.channels
    text_width: int = PriorConfig.text_width
    text_layers: int = PriorConfig.text_layers
    runtime: RuntimeConfig = field(
        default_factory=lambda: RuntimeConfig(
            precision="bf16-mixed",
            num_threads=1,
            deterministic=False,
            checkpoint_every_s=300.0,
            checkpoint_every_steps=10_000,
        )
    )

    def __post_init__(self) -> None:
        for name in ("num_people", "images_per_person", "processes", "batch_size", "num_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.num_sketch_images < 0:
            raise ValueError(f"num_sketch_images must not be negative, found {self.num_sketch_images}")
