"""How a training runs on the machine, as opposed to what it learns; light to import, unlike `trainer.fit`."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Literal

LoggerKind = Literal["jsonl", "wandb", "tensorboard"]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, precision, checkpoints and logging of a training.

    Attributes:
        accelerator: "auto" takes a GPU where there is one.
        devices: number of devices, on each node where there are several.
        num_nodes: machines that train PuzzleBooth together; the other stages go on in the process that was started.
        node_launcher: the beginning of a command, in the shell's words, that starts what follows once on each of the
            nodes, in this folder and environment, and ends with an error, and all of them, as soon as one of them does.
        strategy: how several devices share one training: "ddp" copies everything, "deepspeed_stage_2" and
            "deepspeed_stage_3" shard optimiser and gradients, or the parameters too, "fsdp" the parameters of a full
            fine-tuning. The last three take one album at a time.
        accumulate_batches: parts that a step's rows are split into, one after the other; the result is the same up to
            rounding, in less memory.
        compile: compile the UNet (torch.compile); minutes at the start, faster steps on a GPU.
        precision: Lightning's name; mixed precision keeps the weights in float32.
        num_threads: threads of torch's CPU kernels; 0 leaves torch's choice.
        checkpoint_every_steps: a checkpoint at least every so many steps; 0 switches this rule off.
        checkpoint_every_s: and at least every so many seconds; 0 switches this rule off.
        deterministic: refuse operators without a deterministic kernel; costs a fifth of the speed on a CPU.
        log_every_steps: metrics are written every so many steps.
        log_every_s: seconds between two lines of progress where there is no terminal.
        logger: where metrics go besides metrics.jsonl, which is always written.
        wandb_group: under which W&B shows the albums' runs together; the output folder's name when empty.
        visuals_every_steps: PuzzleBooth draws samples and attention maps every so many steps, besides before the first
            and after the last; 0 for never.
        visuals_albums: of a pack, so many albums at most are drawn.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    node_launcher: str = ""
    strategy: Literal["ddp", "fsdp", "deepspeed_stage_2", "deepspeed_stage_3"] = "ddp"
    accumulate_batches: int = 1
    compile: bool = False
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    num_threads: int = 0
    deterministic: bool = True
    checkpoint_every_steps: int = 200
    checkpoint_every_s: float = 120.0
    log_every_steps: int = 10
    log_every_s: float = 30.0
    logger: LoggerKind = "jsonl"
    wandb_group: str = ""
    visuals_every_steps: int = 100
    visuals_albums: int = 8

    def __post_init__(self) -> None:
        least_values = {
            "devices": 1,
            "num_nodes": 1,
            "accumulate_batches": 1,
            "num_threads": 0,
            "checkpoint_every_steps": 0,
            "log_every_steps": 1,
            "visuals_every_steps": 0,
            "visuals_albums": 1,
        }
        for name, least in least_values.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        for name in ("checkpoint_every_s", "log_every_s"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}, expected a number of seconds of at least 0")
        try:
            words = shlex.split(self.node_launcher)
        except ValueError as error:
            raise ValueError(f"node_launcher is {self.node_launcher}, expected words of a shell: {error}") from error
        if self.num_nodes > 1 and not words:
            raise ValueError(
                f"node_launcher is empty where num_nodes is {self.num_nodes}, expected the beginning of a command that "
                "starts what follows on each node"
            )

    @property
    def num_processes(self) -> int:
        """Processes that train PuzzleBooth together, one for each device of each node."""
        return self.devices * self.num_nodes

    @property
    def alone(self) -> RuntimeConfig:
        """The same for a training in one process."""
        return dataclasses.replace(self, devices=1, num_nodes=1)
