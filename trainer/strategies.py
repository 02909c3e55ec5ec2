"""How several processes share one training: Lightning's strategies, set up for PuzzleBooth, on GPUs and on CPUs."""

from __future__ import annotations

import argparse
import importlib.util
import os
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, Strategy

from modules.errors import UserError
from trainer.runtime import RuntimeConfig


def build_strategy(runtime: RuntimeConfig, max_grad_norm: float) -> Strategy:
    """The strategy of a process that belongs to a group of `runtime.num_processes`.

    max_grad_norm: DeepSpeed clips by itself, since it keeps the gradients in pieces.

    Raises:
        UserError: its package is not installed.
    """
    on_cpu = runtime.accelerator == "cpu" or not torch.cuda.is_available()
    backend = "gloo" if on_cpu else "nccl"
    match runtime.strategy:
        case "ddp":
            # Every trained parameter takes part in every step, and the frozen model has no buffers that change.
            return DDPStrategy(process_group_backend=backend, forward_sync_buffers=False, gradient_as_bucket_view=True)
        case "fsdp":
            return ModelParallelStrategy(
                data_parallel_size=runtime.num_processes,
                tensor_parallel_size=1,
                save_distributed_checkpoint=False,
                process_group_backend=backend,
            )
        case "deepspeed_stage_2" | "deepspeed_stage_3":
            if importlib.util.find_spec("deepspeed") is None:
                raise UserError(
                    f"runtime.strategy is {runtime.strategy}, but its package is not installed: pip install deepspeed, "
                    "or use runtime.strategy=ddp."
                )
            if on_cpu:
                os.environ.setdefault("DS_ACCELERATOR", "cpu")
            strategy = AnyDeviceDeepSpeedStrategy(
                stage=int(runtime.strategy[-1]),
                process_group_backend=backend,
                exclude_frozen_parameters=True,
                # Only for a throughput that it logs: batches are made by a function, which has no batch size.
                logging_batch_size_per_gpu=1,
            )
            assert isinstance(strategy.config, dict)
            strategy.config["gradient_clipping"] = max_grad_norm
            return strategy


class AnyDeviceDeepSpeedStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy, which insists on CUDA, made to run on a CPU too: gloo, and no device index."""

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    def setup_environment(self) -> None:
        if not self._on_cpu:
            super().setup_environment()
            return
        import deepspeed

        # Without shared-memory collectives, which would be compiled for two minutes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        if not self._on_cpu:
            return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        import deepspeed

        engine, wrapped, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank),
            config=self.config,
            model=model,
            model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, wrapped
