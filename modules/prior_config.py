"""Settings of the mini prior, apart from the module so that reading them does not import lightning."""

from __future__ import annotations

from dataclasses import dataclass

from modules.diffusion.config import CODEC_DOWNSAMPLING


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Architecture and training of the mini prior.

    resolution: pixels per side. channels: UNet width per level; at the coarsest level, 4 x 4, zero padding tells every
    cell where it is, without which bodies do not stand upright for a long time. text_width, text_layers: text encoder.
    learning_rate: constant after warm-up, until the last `cooldown_images` of `num_images`, over which it falls
    linearly to a tenth; the text encoder's is `text_rate_factor` times it. high_noise_fraction: share of draws that go
    to the noisiest 30 % of timesteps. ema_fraction: the average covers about this fraction of the steps taken so far.
    batch_size: images per process. foreground_weight: an error on the person counts as much as this many elsewhere.
    weight_sketch: of the loss by which the text encoder must draw a coarse picture alone (modules/caption_sketch.py).
    """

    resolution: int = 64
    channels: tuple[int, ...] = (128, 192, 192)
    text_width: int = 192
    text_layers: int = 3
    max_tokens: int = 64
    vocabulary_size: int = 1000
    learning_rate: float = 1e-3
    text_rate_factor: float = 0.3
    warmup_steps: int = 200
    cooldown_images: int = 0
    num_images: int = 4_000_000
    weight_decay: float = 0.01
    ema_fraction: float = 0.1
    batch_size: int = 32
    weight_codec: float = 1.0
    high_noise_fraction: float = 0.5
    foreground_weight: float = 4.0
    weight_sketch: float = 0.1

    def __post_init__(self) -> None:
        coarsest = CODEC_DOWNSAMPLING * 2 ** (len(self.channels) - 1)
        if self.resolution % coarsest:
            raise ValueError(f"resolution must be a multiple of {coarsest}, found {self.resolution}")
        if not 0 < self.ema_fraction < 1:
            raise ValueError(f"ema_fraction must lie in (0, 1), found {self.ema_fraction}")
        if not 0 <= self.high_noise_fraction <= 1:
            raise ValueError(f"high_noise_fraction must lie in [0, 1], found {self.high_noise_fraction}")
        if not 0 < self.text_rate_factor <= 1:
            raise ValueError(f"text_rate_factor must lie in (0, 1], found {self.text_rate_factor}")
        if self.foreground_weight < 1:
            raise ValueError(f"foreground_weight must be at least 1, found {self.foreground_weight}")
        if self.weight_sketch < 0:
            raise ValueError(f"weight_sketch must not be negative, found {self.weight_sketch}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {self.batch_size}")
