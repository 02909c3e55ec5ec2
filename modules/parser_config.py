"""Settings of the mini parser, apart from the module so that reading them does not import lightning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ParserConfig:
    """Architecture and training of the mini parser.

    channels: width of the encoder at 1/2, 1/4, 1/8 and 1/16 of the picture's side; blocks: residual blocks at each.
    decoder_channels: width at 1/8, 1/4 and 1/2. num_views: classes of the view head, eight directions and overhead.
    learning_rate: AdamW's peak; it rises over warmup_steps and falls along a cosine until num_images have been seen.
    weight_overlap: of the soft Dice loss of the parts beside the cross-entropy of the classes; weight_view: of the
    cross-entropy of the view. rare_class_power: classes weigh 1 / frequency ** power in the cross-entropy.
    resolutions: sides in pixels, one drawn for each batch; multiples of 16. ema_fraction: the average of the weights
    covers about this fraction of the steps taken so far.
    """

    channels: tuple[int, ...] = (24, 48, 96, 160)
    blocks: tuple[int, ...] = (1, 2, 3, 3)
    decoder_channels: tuple[int, ...] = (96, 48, 32)
    num_views: int = 9
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    weight_overlap: float = 0.5
    weight_view: float = 0.3
    rare_class_power: float = 0.4
    resolutions: tuple[int, ...] = (128, 160, 192)
    num_images: int = 120_000
    batch_size: int = 16
    ema_fraction: float = 0.05

    def __post_init__(self) -> None:
        if len(self.channels) != 4 or len(self.blocks) != 4 or len(self.decoder_channels) != 3:
            raise ValueError("channels and blocks must hold 4 numbers and decoder_channels 3")
        if min(*self.channels, *self.decoder_channels, *self.blocks) < 1:
            raise ValueError("channels, blocks and decoder_channels must be at least 1")
        if any(width % 8 for width in (*self.channels, *self.decoder_channels)):
            raise ValueError(f"channels must be multiples of 8, found {self.channels} and {self.decoder_channels}")
        if not self.resolutions or any(side < 32 or side % 16 for side in self.resolutions):
            raise ValueError(f"resolutions must be multiples of 16 from 32 on, found {self.resolutions}")
        for name in ("num_views", "num_images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, found {self.learning_rate}")
        if not 0 < self.ema_fraction < 1:
            raise ValueError(f"ema_fraction must lie in (0, 1), found {self.ema_fraction}")
        for name in ("weight_overlap", "weight_view", "rare_class_power", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
