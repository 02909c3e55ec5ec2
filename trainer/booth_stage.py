"""Stage 1 of a pack: who can be trained, the training itself in this process or in several, and what it leaves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
from lightning.pytorch.strategies import Strategy
from safetensors.torch import save

from datamodules.atomic import write_bytes
from datamodules.puzzlebooth import PuzzleBoothBatches, UnionSampler, subject_of
from modules.diffusion.lora_export import export_personalization
from modules.errors import AlbumFailed, UserError
from modules.puzzlebooth import PuzzleBooth
from trainer.album_run import AlbumRun
from trainer.artifacts import folder_errors
from trainer.booth_training import train_booth
from trainer.packing import most_parts
from trainer.priors import prior_samples, synthetic_images
from trainer.runtime import RuntimeConfig
from trainer.samples import check_prompts, write_samples
from trainer.tracking import Tracked
from trainer.visuals import VISUALS_NAME, BoothVisuals
from trainer.workers import train_in_workers

if TYPE_CHECKING:
    from trainer.packs import Pack


@dataclass(frozen=True)
class BoothTraining:
    """A module, what it is trained with, and where."""

    module: PuzzleBooth
    batches: PuzzleBoothBatches
    callbacks: list[lightning.Callback]
    folder: Path
    seed: int
    trackers: Tracked

    def run(self, runtime: RuntimeConfig, strategy: Callable[[], Strategy] | None = None) -> None:
        """Train to the end, see `train_booth`."""
        train_booth(
            self.module,
            self.batches,
            folder=self.folder,
            runtime=runtime,
            seed=self.seed,
            callbacks=self.callbacks,
            strategy=strategy,
            trackers=self.trackers,
        )


def run_booth(pack: Pack) -> None:
    """Train tokens and adapters of the albums that lack them; commits tensors, samples, and exports."""
    runs = pack.pending("booth", ("assets",), (pack.config.booth, pack.config.backbone))
    if not runs:
        return
    started = time.monotonic()
    runs, samplers = _admit(pack, runs)
    if not runs:
        return
    work = pack.work_folder("booth", runs)
    training = build_training(pack, runs, samplers, work)
    # Of a pack's albums only some may be left to train: a step has no more parts than they have rows.
    parts = min(pack.config.runtime.accumulate_batches, most_parts(pack.config, len(runs)))
    runtime = dataclasses.replace(pack.config.runtime, accumulate_batches=parts)
    if runtime.num_processes > 1:
        train_in_workers(pack, runs, work, runtime)
        # What the workers have trained is read from their last checkpoint.
        runtime = runtime.alone
    training.run(runtime)
    pack.settle()
    # All is written before anything is committed: a kill in between would leave the others without their training.
    for index, run in enumerate(runs):
        if index in training.module.failed:
            run.failed = training.module.failed[index]
        else:
            write_booth(pack, run, index)
    pack.finish("booth", runs, work, pack.config.booth, started)


def _admit(pack: Pack, runs: Sequence[AlbumRun]) -> tuple[list[AlbumRun], list[UnionSampler]]:
    """The albums that can be trained, and their samplers; the others leave with their reason."""
    admitted, samplers = [], []
    # Before the prompts are measured: with the shape comes the personalisation, whose tokens the tokenizer must know.
    shape = pack.shape
    for run in runs:
        try:
            subject = subject_of(run.album, 0, pack.config.seed)
            check_prompts(pack.backbone, subject, run.album, pack.config)
            samplers.append(UnionSampler(run.album, pack.config.booth, shape))
            admitted.append(run)
        except (AlbumFailed, UserError) as error:
            run.fail("booth", str(error).rstrip("."), seed=pack.config.seed)
    return admitted, samplers


def build_training(pack: Pack, runs: Sequence[AlbumRun], samplers: Sequence[UnionSampler], work: Path) -> BoothTraining:
    """Module, batches and callbacks of admitted albums, the same in every process that takes part."""
    config, seed = pack.config, pack.config.seed
    backbone, personalization = pack.backbone, pack.personalization
    synthetic = synthetic_images(pack.out, config, backbone.image_size)
    samples = {
        gender: prior_samples(pack.out, config, backbone, gender, pack.backbone_hash)
        for gender in dict.fromkeys(run.album.gender for run in runs)
    }
    subjects = [subject_of(run.album, index, seed) for index, run in enumerate(runs)]
    for subject, run in zip(subjects, runs, strict=True):
        personalization.reset_album(subject.album, run.album.asset_names, backbone, seed=subject.seed)
    batches = PuzzleBoothBatches(
        samplers,
        config.booth,
        pack.shape,
        synthetic=synthetic,
        samples=[samples[run.album.gender] for run in runs],
        seed=seed,
    )
    module = PuzzleBooth(backbone, personalization, config.booth, [run.name for run in runs])
    if config.runtime.compile:
        backbone.unet.compile()
    visuals = BoothVisuals(
        backbone=backbone,
        personalization=personalization,
        capture=module.capture,
        subjects=subjects,
        albums=[run.album for run in runs],
        names=[run.name for run in runs],
        config=config,
        folder=work / VISUALS_NAME,
    )
    trackers = pack.trackers("booth", runs, work)
    return BoothTraining(module, batches, [visuals], folder=work, seed=seed, trackers=trackers)


def write_booth(pack: Pack, run: AlbumRun, index: int) -> None:
    """Write what the pack holds at an album's index into the stage's working folder: tensors, exports, samples."""
    folder = run.stage("booth").working(run.keys["booth"])
    personalization, num_tokens = pack.personalization, len(run.album.asset_names)
    state = personalization.album_state(index)
    # The pack's other albums may have more assets; they are not this album's business.
    state["tokens"] = state["tokens"][:num_tokens]
    # Not by safetensors' own writer: it makes files private and hides what the disk says.
    data = save({key: value.contiguous() for key, value in state.items()})
    write_bytes(folder / "personalization.safetensors", data)
    subject = subject_of(run.album, index, pack.config.seed)
    with folder_errors(folder):
        export_personalization(personalization, index, folder, num_tokens, pack.backbone)
        write_samples(folder, pack.backbone, personalization, subject, pack.config)
