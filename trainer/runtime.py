"""How a training runs on the machine, as opposed to what it learns; light to import, unlike `trainer.fit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LoggerKind = Literal["jsonl", "wandb", "tensorboard"]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, precision, checkpoints and logging of a training.

    Attributes:
        accelerator: "auto" takes a GPU where there is one.
        devices: number of devices.
        precision: Lightning's name; mixed precision keeps the weights in float32.
        num_threads: threads of torch's CPU kernels; 0 leaves torch's choice.
        checkpoint_every_steps: a checkpoint at least every so many steps; 0 switches this rule off.
        checkpoint_every_s: and at least every so many seconds; 0 switches this rule off.
        deterministic: refuse operators without a deterministic kernel; costs a fifth of the speed on a CPU.
        log_every_steps: metrics are written every so many steps.
        log_every_s: seconds between two lines of progress where there is no terminal.
        logger: where metrics go besides metrics.jsonl, which is always written.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    num_threads: int = 0
    deterministic: bool = True
    checkpoint_every_steps: int = 200
    checkpoint_every_s: float = 120.0
    log_every_steps: int = 10
    log_every_s: float = 30.0
    logger: LoggerKind = "jsonl"

    def __post_init__(self) -> None:
        for name, least in (("devices", 1), ("num_threads", 0), ("checkpoint_every_steps", 0), ("log_every_steps", 1)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        for name in ("checkpoint_every_s", "log_every_s"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}, expected a number of seconds of at least 0")
