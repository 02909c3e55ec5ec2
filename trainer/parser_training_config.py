"""Settings of the mini parser's training; light to import, unlike `trainer.parser_training`."""

from __future__ import annotations

from dataclasses import dataclass, field

from modules.parser_config import ParserConfig
from trainer.runtime import RuntimeConfig


@dataclass(frozen=True, kw_only=True)
class ParserTrainingConfig:
    """What `pretrain --part parser` does: how large a network, and how long it learns.

    processes: gloo processes on a CPU, each with batches of its own. max_minutes: stop (and export) after this long, 0
    for never; the same command goes on from there. warm_start: an exported parser to start from.
    """

    seed: int = 0
    processes: int = 2
    max_minutes: float = 0.0
    export_every_s: float = 600.0
    warm_start: str = ""
    parser: ParserConfig = field(default_factory=ParserConfig)
    runtime: RuntimeConfig = field(
        default_factory=lambda: RuntimeConfig(
            precision="32-true",
            num_threads=1,
            deterministic=False,
            checkpoint_every_s=300.0,
            checkpoint_every_steps=10_000,
        )
    )

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, found {self.processes}")
        if self.max_minutes < 0 or self.export_every_s < 0:
            raise ValueError("max_minutes and export_every_s must not be negative")
