"""Train the mini parser on studio pictures that are drawn as they are needed; resumes, and exports averaged weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.parser_training_config import ParserTrainingConfig


def run_parser_training(config: ParserTrainingConfig, out: Path) -> Path:
    """Train (or go on training) the mini parser in `out`; returns the folder with the exported weights.

    out/checkpoints holds the state, out/weights the averaged weights.
    """
    from lightning.pytorch.strategies import DDPStrategy

    from datamodules.segmentation.classes import FINE_CLASSES, coarse_table
    from datamodules.studio.parser_pictures import class_frequencies, draw_batch
    from modules.parser import ParserModule
    from trainer.exporting import ExportRegularly
    from trainer.fit import fit

    out.mkdir(parents=True, exist_ok=True)
    parser = config.parser
    torch.manual_seed(config.seed)
    module = ParserModule(parser, FINE_CLASSES, coarse_table(), class_frequencies().tolist())
    if config.warm_start:
        module.load_exported(Path(config.warm_start))

    def batch(step: int, part: int = 0, num_parts: int = 1) -> dict[str, torch.Tensor]:
        # Each process, and each of a step's parts, has a whole batch of its own; the side is the same for all of them.
        side = int(np.random.default_rng((config.seed, step, 61)).choice(parser.resolutions))
        number = (config.seed * 1_000_003 + step) * 1_009 + part
        drawn = draw_batch(number, parser.batch_size, side)
        return {
            "pictures": torch.from_numpy(drawn["pictures"]).permute(0, 3, 1, 2).float() / 255,
            "classes": torch.from_numpy(drawn["classes"]).long(),
            "view": torch.from_numpy(drawn["view"]),
        }

    strategy: Any = "auto"
    runtime = config.runtime
    if config.processes > 1:
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=False)
        runtime = dataclasses.replace(runtime, devices=config.processes)
    fit(
        module,
        batch,
        max_steps=-(-parser.num_images // (parser.batch_size * config.processes)),
        folder=out,
        runtime=runtime,
        seed=config.seed,
        stage="parser",
        callbacks=[ExportRegularly(lambda: module.export(out / "weights"), config.export_every_s, config.max_minutes)],
        strategy=strategy,
    )
    if module.global_rank == 0:
        module.export(out / "weights")
    return out / "weights"
