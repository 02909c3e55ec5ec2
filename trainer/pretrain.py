"""Train the mini prior on studio people: shards, tokenizer, training that resumes, and weights in diffusers layout."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modules.errors import UserError
from trainer.pretrain_config import PretrainConfig


def ensure_shards(folder: Path, config: PretrainConfig) -> None:
    """Render the training people once; a second call finds them there."""
    marker = folder / "complete.json"
    wanted = {
        "num_people": config.num_people,
        "images_per_person": config.images_per_person,
        "seed": config.seed,
        "resolution": config.resolution,
    }
    if marker.exists() and json.loads(marker.read_text()) == wanted:
        return
    from datamodules.studio.shards import write_prior_shards

    shutil.rmtree(folder, ignore_errors=True)
    write_prior_shards(
        folder,
        num_people=config.num_people,
        seed=config.seed,
        resolution=config.resolution,
        images_per_person=config.images_per_person,
        num_workers=config.processes,
    )
    marker.write_text(json.dumps(wanted))


def run_pretrain(config: PretrainConfig, out: Path) -> Path:
    """Train (or go on training) the mini prior in `out`; returns the folder with the exported weights.

    out/shards holds the images, out/checkpoints the state, out/weights the averaged weights.
    """
    from lightning.pytorch.strategies import DDPStrategy

    from datamodules.prior_images import PriorImages
    from modules.diffusion.tokenizer import load_tokenizer, train_tokenizer
    from modules.prior import PriorConfig, PriorModule
    from trainer.exporting import ExportRegularly
    from trainer.fit import fit

    out.mkdir(parents=True, exist_ok=True)
    ensure_shards(out / "shards", config)
    images = PriorImages(out / "shards")
    prior = PriorConfig(
        resolution=config.resolution,
        num_images=config.num_images,
        cooldown_images=config.cooldown_images,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        channels=config.channels,
        text_width=config.text_width,
        text_layers=config.text_layers,
    )
    if config.warm_start:
        if not (Path(config.warm_start) / "tokenizer").is_dir():
            raise UserError(
                f"warm_start {config.warm_start} holds no exported prior: name a folder that pretrain wrote."
            )
        tokenizer = load_tokenizer(Path(config.warm_start) / "tokenizer")
    else:
        tokenizer_folder = out / "tokenizer"
        if not (tokenizer_folder / "tokenizer_config.json").exists():
            captions = images.captions(20_000, seed=0)
            train_tokenizer(
                captions, vocabulary_size=prior.vocabulary_size, max_tokens=prior.max_tokens
            ).save_pretrained(tokenizer_folder)
        tokenizer = load_tokenizer(tokenizer_folder)
    torch.manual_seed(config.seed)
    module = PriorModule(prior, tokenizer)
    if config.warm_start:
        try:
            module.load_exported(Path(config.warm_start))
        except RuntimeError as error:
            raise UserError(
                f"warm_start {config.warm_start} holds a model of another size: give its channels, text_width, "
                "text_layers and resolution."
            ) from error
        seen = Path(config.warm_start) / "training.json"
        if seen.exists():
            module.images_seen.fill_(json.loads(seen.read_text())["images_seen"])
    left = config.num_images - int(module.images_seen)
    if left <= 0:
        raise UserError(
            f"warm_start {config.warm_start} has seen {int(module.images_seen)} images and num_images is "
            f"{config.num_images}: ask for more."
        )

    def batch(step: int, part: int = 0, num_parts: int = 1) -> dict[str, torch.Tensor]:
        # Each process, and each of a step's parts, has a whole batch of its own.
        rng = np.random.default_rng((config.seed, step, part))
        pixels, captions, foreground = images.draw(config.batch_size, rng)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255
        return {"images": tensor, "input_ids": ids, "foreground": torch.from_numpy(foreground[:, None]).float()}

    if config.num_sketch_images:
        sketch_text(module, batch, config, out / "sketch")

    strategy: Any = "auto"
    runtime = config.runtime
    if config.processes > 1:
        # Two one-thread processes are faster than one with two threads at these sizes (measured).
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=False)
        runtime = dataclasses.replace(runtime, devices=config.processes)
    max_steps = -(-left // (config.batch_size * config.processes))
    fit(
        module,
        batch,
        max_steps=max_steps,
        folder=out,
        runtime=runtime,
        seed=config.seed,
        stage="pretrain",
        callbacks=[ExportRegularly(lambda: export(module, out / "weights"), config.export_every_s, config.max_minutes)],
        strategy=strategy,
    )
    if module.global_rank == 0:
        export(module, out / "weights")
    return out / "weights"


def sketch_text(module: Any, batch: Any, config: PretrainConfig, folder: Path) -> None:
    """Let the text encoder of a `PriorModule` learn by sketches alone, in one process.

    A second process, started for the main training, finds it done and loads what came of it.
    """
    from modules.caption_sketch import SketchModule
    from trainer.fit import fit

    max_steps = -(-config.num_sketch_images // config.batch_size)
    sketching = SketchModule(module.config, module.tokenizer, module.text_encoder, max_steps)
    fit(
        sketching,
        batch,
        max_steps=max_steps,
        folder=folder,
        runtime=dataclasses.replace(config.runtime, num_threads=config.processes * config.runtime.num_threads),
        seed=config.seed,
        stage="sketch",
    )
    module.sketch.load_state_dict(sketching.sketch.state_dict())
    module.averaged["text_encoder"].load_state_dict(module.text_encoder.state_dict())


def export(module: Any, folder: Path) -> None:
    """Write the averaged weights and how many images they have seen; the old folder is replaced as a whole."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    module.export(temporary)
    (temporary / "training.json").write_text(json.dumps({"images_seen": int(module.images_seen)}) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
