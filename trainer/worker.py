"""One process of several that train PuzzleBooth together: `torchrun --module trainer.worker WORK_FOLDER`."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from pathlib import Path

from modules.errors import UserError
from modules.memory import is_out_of_memory
from trainer.artifacts import write_json
from trainer.workers import ERROR_NAME, check_devices, load_job


def main(work: Path) -> None:
    """Train the job in `work` with the strategy of its configuration. Rank 0 writes checkpoints and what went wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        _train(work)
    except Exception as error:
        # Whoever is the first to fail says so: the others are ended before they can.
        if is_out_of_memory(error):
            write_json(work / ERROR_NAME, {"kind": "memory", "message": str(error)})
        elif isinstance(error, UserError):
            write_json(work / ERROR_NAME, {"kind": "user", "message": str(error)})
        else:
            raise
        sys.exit(2)


def _train(work: Path) -> None:
    import torch

    from datamodules.puzzlebooth import UnionSampler
    from trainer.booth_stage import build_training
    from trainer.strategies import build_strategy

    pack, runs = load_job(work)
    runtime = pack.config.runtime
    check_devices(runtime)
    if runtime.accelerator != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    samplers = [UnionSampler(run.album, pack.config.booth, pack.shape) for run in runs]
    training = build_training(pack, runs, samplers, work)
    if runtime.strategy == "deepspeed_stage_3":
        training.batches.encode_all()
    training.run(runtime, partial(build_strategy, runtime, pack.config.booth.max_grad_norm))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
