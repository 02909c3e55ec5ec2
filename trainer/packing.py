"""Packs that fit: all albums go through the trained stages together, or in smaller packs where memory is short.

A pack that runs out of memory is split in two halves, which go on one after the other, each as an ordinary pack, and
so on down to single albums. What a stage has committed is kept; the stage that did not fit begins anew in each half,
because a checkpoint holds the tensors of all albums of its pack.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from modules.memory import is_out_of_memory
from trainer.album_run import AlbumRun
from trainer.artifacts import folder_errors, write_json
from trainer.canonical import hash_json
from trainer.packs import Pack, forget_work

if TYPE_CHECKING:
    from trainer.config import RunConfig

log = logging.getLogger(__name__)

Stage = Literal["booth", "geometry", "texture"]
STAGES: tuple[Stage, ...] = ("booth", "geometry", "texture")
_TITLES: dict[Stage, str] = {"booth": "PuzzleBooth", "geometry": "Geometry", "texture": "Texture"}


def train_stages(runs: Sequence[AlbumRun], config: RunConfig, *, out: Path, stages: Sequence[Stage] = STAGES) -> None:
    """Take prepared albums through the trained stages, in packs that fit into memory.

    An album that cannot go on, be it that it does not fit alone, has the reason in `failed`.

    Raises:
        UserError: the backbone cannot be loaded, the disk is full, or a setting does not fit the albums.
    """
    if config.uses_truth and stages[-1] != "booth":
        for run in runs:
            if run.failed is None and not run.has_truth:
                run.failed = 'guidance.method is "truth", but the album has no ground_truth folder to distil from'
    alive = [run for run in runs if run.failed is None]
    if not alive:
        return
    limit = PackLimit(alive, config, out)
    backbone_hash: str | None = None
    waiting = [alive]
    while waiting:
        albums = waiting.pop(0)
        if len(albums) > limit.num_albums:
            half = (len(albums) + 1) // 2
            waiting[:0] = [albums[:half], albums[half:]]
            continue
        done = _train(albums, limit.fitted(config, len(albums)), out, stages, backbone_hash)
        backbone_hash = done.backbone_hash
        # Only here has nobody a hold on the pack any more, neither the stage's frames nor the error's traceback.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if done.stopped_at is None:
            continue
        stage, left = done.stopped_at, done.albums
        # The last of a pack whose others have failed had their room in the stacked tensors beside its own.
        if len(left) == 1 < len(albums) or limit.tighten(stage, left, config):
            waiting.insert(0, left)
        else:
            forget_work(out, stage, left)
            left[0].fail(stage, shortage(stage, left[0], config), seed=config.seed)
    limit.forget()


@dataclass(frozen=True, kw_only=True)
class _Done:
    """How a pack ended: with its last stage, or out of memory in the stage `stopped_at`, which `albums` had begun."""

    backbone_hash: str
    stopped_at: Stage | None = None
    albums: list[AlbumRun] = dataclasses.field(default_factory=list)


def _train(
    albums: Sequence[AlbumRun], config: RunConfig, out: Path, stages: Sequence[Stage], backbone_hash: str | None
) -> _Done:
    pack = Pack(albums, config, out=out, backbone_hash=backbone_hash)
    train = {"booth": pack.booth, "geometry": pack.geometry, "texture": pack.texture}
    for stage in stages:
        begun = pack.alive
        if not begun:
            break
        try:
            train[stage]()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.info("%s: %s", type(error).__name__, (str(error).splitlines() or ["out of memory"])[0])
            for run in begun:
                # What the big pack found out about an album in this stage goes with its training.
                run.failed = None
            return _Done(backbone_hash=pack.backbone_hash, stopped_at=stage, albums=begun)
    return _Done(backbone_hash=pack.backbone_hash)


class PackLimit:
    """How many albums a pack may have, and in how many parts PuzzleBooth does a step; kept on disk until all is done.

    A run that was killed goes on with packs as they were: larger ones would drop the checkpoints of the smaller ones,
    only to run out of memory again. With other albums, settings or another GPU the limit is forgotten.

    Attributes:
        num_albums: a pack has at most so many: one where adapters are no stacks, or parameters are shared out.
        num_parts: runtime.accumulate_batches of an album that does not fit alone.
    """

    def __init__(self, runs: Sequence[AlbumRun], config: RunConfig, out: Path) -> None:
        self.names, self.out = [run.name for run in runs], out
        alone = config.booth.adapter.kind != "lora" or (
            config.runtime.num_processes > 1 and config.runtime.strategy != "ddp"
        )
        self.num_albums, self.num_parts = 1 if alone else len(runs), config.runtime.accumulate_batches
        gpu = config.runtime.accelerator != "cpu" and torch.cuda.is_available()
        device = [torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory] if gpu else "cpu"
        self.path = out / ".packs" / f"limit-{hash_json([self.names, config, device])[:12]}.json"
        for path in self.path.parent.glob("limit-*.json"):
            try:
                kept = json.loads(path.read_text())
            except FileNotFoundError:
                # Another run in the same folder has just come to its end.
                continue
            if path == self.path:
                self.num_albums, self.num_parts = kept["num_albums"], kept["num_parts"]
            elif set(self.names) & set(kept["albums"]):
                path.unlink(missing_ok=True)

    def fitted(self, config: RunConfig, num_albums: int) -> RunConfig:
        """The configuration for a pack of so many albums: a step has no more parts than rows on each device."""
        num_parts = min(self.num_parts, most_parts(config, num_albums))
        return dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, accumulate_batches=num_parts))

    def tighten(self, stage: Stage, albums: Sequence[AlbumRun], config: RunConfig) -> bool:
        """Ask for less memory than these albums needed in a stage; says so, or returns False where nothing is left."""
        if len(albums) > 1:
            self.num_albums = (len(albums) + 1) // 2
            sizes = dict.fromkeys((self.num_albums, len(albums) - self.num_albums))
            packs = f"packs of {' and '.join(map(str, sizes))}" if self.num_albums > 1 else "one album at a time"
            log.warning(
                "The pack of %d albums does not fit into memory at %s: going on with %s.",
                len(albums),
                _TITLES[stage],
                packs,
            )
        elif stage == "booth" and self.num_parts < most_parts(config, 1):
            self.num_parts = min(2 * self.num_parts, most_parts(config, 1))
            log.warning(
                "Album %s does not fit into memory at PuzzleBooth: going on with its step in %d parts.",
                albums[0].name,
                self.num_parts,
            )
        else:
            return False
        with folder_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"albums": self.names, "num_albums": self.num_albums, "num_parts": self.num_parts}
        write_json(self.path, kept)
        if len(albums) > 1:
            forget_work(self.out, stage, albums)
        return True

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def most_parts(config: RunConfig, num_albums: int) -> int:
    """Parts of PuzzleBooth's step with one row on each device."""
    booth = config.booth
    rows = booth.photos_per_step
    if booth.weight_prior > 0 and booth.num_prior_samples > 0:
        rows += booth.samples_per_step
    if booth.weight_synthetic > 0 and booth.num_synthetic_people > 0:
        rows += booth.synthetic_rgb_per_step + booth.synthetic_normal_per_step
    return max(1, num_albums * rows // config.runtime.num_processes)


def shortage(stage: Stage, run: AlbumRun, config: RunConfig) -> str:
    """Why an album fails that does not fit into memory alone, and what of its settings would help."""
    how = "alone"
    less = []
    if stage == "booth":
        how = "alone, with one image at a time"
        if not config.booth.gradient_checkpointing:
            less.append("booth.gradient_checkpointing=true")
    else:
        cameras = (config.geometry if stage == "geometry" else config.texture).cameras
        if cameras.views_per_step > 1:
            less.append(f"{stage}.cameras.views_per_step below {cameras.views_per_step}")
        if cameras.resolution_factor > 1:
            less.append(f"{stage}.cameras.resolution_factor=1")
        if config.baselines and run.has_truth:
            less.append("baselines=false")
    if config.runtime.precision == "32-true":
        less.append("runtime.precision=bf16-mixed")
    advice = f"{', '.join(less)}, or more memory" if less else "more memory"
    return f"it does not fit into memory at {_TITLES[stage]} {how}: use {advice}"
