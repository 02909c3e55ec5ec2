"""A pack: K albums that share one frozen backbone, and the three trained stages they go through together.

A stage trains the albums that still lack its artifact, in one module, from one checkpoint folder, and then commits one
artifact per album. An album that fails leaves with its reason; the others go on.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

from datamodules.puzzlebooth import BackboneShape, subject_of
from modules.contracts import Subject
from modules.diffusion.attention import capture_side
from modules.diffusion.backbone import Backbone
from modules.diffusion.personalization import Personalization
from modules.diffusion.routing import NO_ALBUM
from modules.errors import AlbumFailed
from modules.geometry.template import SurfaceTemplate, load_template, template_files
from modules.geometry.tet_grid import TetGrid
from trainer.album_coloring import ColorFn, finish_colors, start_colors
from trainer.album_run import BASELINE, SUBJECT, AlbumRun, content_key
from trainer.artifacts import folder_errors, write_json
from trainer.backbone_hash import hash_backbone
from trainer.canonical import hash_file, hash_json
from trainer.config import PROJECT_ROOT
from trainer.ground_truth import FOLDER as GROUND_TRUTH
from trainer.ground_truth import load_ground_truth
from trainer.guided_training import train_guided
from trainer.tracking import Tracked, tracked_albums
from trainer.visuals import VISUALS_NAME

if TYPE_CHECKING:
    from datamodules.assets import PreparedAlbum
    from modules.avatar_config import GeometryConfig, TextureConfig
    from trainer.config import RunConfig


class Pack:
    """Albums, the backbone they share, and the trained stages. Nothing heavy is loaded before a stage needs it."""

    def __init__(
        self,
        runs: Sequence[AlbumRun],
        config: RunConfig,
        *,
        out: Path,
        backbone_hash: str | None = None,
        slots: tuple[int, int] | None = None,
    ) -> None:
        """backbone_hash: as another pack of this run has found it; reading gigabytes again takes a while.

        slots: numbers of albums and of tokens that the stacked tensors have room for; as many as needed when None.
        """
        self.runs, self.config, self.out, self._slots = list(runs), config, out, slots
        if backbone_hash is not None:
            self.backbone_hash = backbone_hash
        self._personalization: Personalization | None = None
        self._metrics: dict[Path, dict[str, float]] = {}  # by the working folder of the artifact that shows them
        self._grids: dict[str, tuple[SurfaceTemplate, TetGrid]] = {}

    @property
    def alive(self) -> list[AlbumRun]:
        return [run for run in self.runs if run.failed is None]

    @cached_property
    def device(self) -> torch.device:
        on_gpu = self.config.runtime.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if on_gpu else "cpu")

    @cached_property
    def backbone(self) -> Backbone:
        return Backbone.load(self.config.backbone, root=PROJECT_ROOT).to(self.device)

    def settle(self) -> None:
        """Back to the device, and to inference: Lightning leaves a module that it has trained on the CPU."""
        self.backbone.to(self.device).eval()
        self.personalization.to(self.device)

    @cached_property
    def backbone_hash(self) -> str:
        return hash_backbone(self.config.backbone.path, PROJECT_ROOT)

    @cached_property
    def shape(self) -> BackboneShape:
        backbone, config = self.backbone, self.config.backbone
        return BackboneShape(
            image_size=backbone.image_size,
            latent_size=backbone.latent_size,
            num_latent_channels=backbone.num_latent_channels,
            num_timesteps=backbone.num_timesteps,
            capture_side=capture_side(backbone.unet),
            first_placeholder_id=self.personalization.first_id,
            view_vocabulary=config.view_vocabulary,
            scene_words=config.scene_words,
            tokenize=partial(backbone.tokenize, truncate=True),
            encode=self._encode,
        )

    @torch.no_grad()
    def _encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = self.backbone.posterior(images.to(self.backbone.device))
        return mean.float().cpu(), std.float().cpu()

    @property
    def personalization(self) -> Personalization:
        """Tokens and adapters for all albums of the pack, attached to the backbone at first use."""
        if self._personalization is None:
            needed = len(self.runs), max(len(run.album.asset_names) for run in self.runs if run.prepared)
            num_albums, num_tokens = self._slots or needed
            self._personalization = Personalization(
                self.backbone, self.config.booth.adapter, num_albums=num_albums, num_tokens=num_tokens
            ).to(self.device)
        return self._personalization

    def has_baseline(self, run: AlbumRun) -> bool:
        """Whether the words alone are distilled as well: they are only of use where there is something to measure."""
        return run.has_truth and self.config.baselines

    def pending(self, stage: str, after: Sequence[str], config: object, *, baselines: bool = False) -> list[AlbumRun]:
        """The albums that still lack this stage's artifact; those that failed in it before are tried again.

        after: stages whose artifacts this one reads, besides the backbone. baselines: the stage makes the baseline too,
        so that the artifact of an album with one is another.
        """
        left = []
        for run in self.alive:
            folder = run.stage(stage)
            settings = (config, self.has_baseline(run)) if baselines else config
            inputs = {name: run.stage(name).outputs_hash for name in after} | {"backbone": self.backbone_hash}
            if baselines and config.guidance.method == "truth":  # type: ignore[attr-defined]
                inputs["truth"] = content_key(run.source / GROUND_TRUTH)
            if stage == "geometry":
                source, models = self.config.geometry.template, self.config.geometry.smplx_models
                files = template_files(source, run.album.gender, models)  # type: ignore[arg-type]
                inputs |= {f"template{index}": hash_file(file) for index, file in enumerate(files)}
            key = run.keys[stage] = folder.key(inputs, settings, self.config.seed)
            run.inputs[stage] = inputs
            match folder.status(key):
                case "complete":
                    continue
                case "failed":
                    folder.forget()
            left.append(run)
        return left

    def work_folder(self, stage: str, runs: Sequence[AlbumRun]) -> Path:
        """Where this pack keeps its checkpoints; other albums, or another configuration, have another folder.

        What an interrupted run of these albums left under another configuration is deleted.
        """
        # The tensors of all albums are stacked, so a checkpoint fits only a pack of the same shape.
        shape = list(self.personalization.tokens.shape) if stage == "booth" else None
        identity = hash_json([[run.name, run.keys[stage]] for run in runs] + [shape])
        names = [run.name for run in runs]
        folder = self.out / ".packs" / f"{stage}-{identity[:12]}"
        forget_work(self.out, stage, runs, but=folder)
        with folder_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "albums.json", names)
        return folder

    def trackers(self, stage: str, runs: Sequence[AlbumRun], work: Path) -> Tracked:
        """Where TensorBoard's or W&B's files of a training go, which outlive its work folder, and whom they show."""
        albums = {run.name: run.folder for run in runs}
        return tracked_albums(self.config, self.out, albums, stage=stage, training=work.name)

    # -- PuzzleBooth --------------------------------------------------------------------------------------------------

    def booth(self) -> None:
        """Stage 1: train tokens and adapters; commits tensors, samples, and a LoRA for other programs."""
        from trainer.booth_stage import run_booth

        run_booth(self)

    def load_personalization(self) -> None:
        """Put every living album's trained tensors into the pack's stacked ones, at the album's index in `runs`."""
        for index, run in enumerate(self.runs):
            if run.failed is None:
                state = load_file(run.stage("booth").output("personalization.safetensors"))
                self.personalization.load_album_state(index, state)

    # -- distillation -------------------------------------------------------------------------------------------------

    def subjects(self, runs: Sequence[AlbumRun]) -> list[tuple[AlbumRun, str, Subject]]:
        """Who is distilled: every album, and with ground truth its words alone as a baseline to beat."""
        chosen = []
        for run in runs:
            index = self.runs.index(run)
            chosen.append((run, SUBJECT, subject_of(run.album, index, self.config.seed)))
            if self.has_baseline(run):
                chosen.append((run, BASELINE, subject_of(run.album, NO_ALBUM, self.config.seed, personalized=False)))
        return chosen

    def template(self, gender: str) -> tuple[SurfaceTemplate, TetGrid]:
        """The template of a gender word and the tetrahedral grid around it, made once."""
        if gender not in self._grids:
            config = self.config.geometry
            found = load_template(config.template, gender, smplx_models=config.smplx_models)  # type: ignore[arg-type]
            grid = TetGrid.around_mesh(found.vertices, found.faces, config.grid, regions=found.regions)
            self._grids[gender] = (found, grid)
        return self._grids[gender]

    def _distillation_arguments(
        self, chosen: Sequence[tuple[AlbumRun, str, Subject]], config: GeometryConfig | TextureConfig
    ) -> dict[str, Any]:
        from modules.rendering.rasterizer import make_rasterizer

        truths = None
        if config.guidance.method == "truth":
            found = [load_ground_truth(run.source) for run, _, _ in chosen]
            truths = [truth.mesh for truth in found if truth is not None]

        return {
            "backbone": self.backbone,
            "personalization": self.personalization,
            "subjects": [subject for _, _, subject in chosen],
            "landmarks": [self.template(run.album.gender)[0].landmarks for run, _, _ in chosen],
            "rasterizer": make_rasterizer("auto", str(self.backbone.device)),
            "scene_words": self.config.backbone.scene_words,
            "view_vocabulary": self.config.backbone.view_vocabulary,
            "view_words": self.config.booth.view_words,
            "reduced_precision": self.config.runtime.precision == "bf16-mixed",
            "truths": truths,
        }

    def _distill(
        self,
        stage: str,
        after: Sequence[str],
        config: GeometryConfig | TextureConfig,
        build: Callable[[Sequence[tuple[AlbumRun, str, Subject]]], Any],
        write: Callable[[Any, int, Path], None],
    ) -> None:
        """Distil the albums that lack this stage's artifact, in one module.

        after: stages whose artifacts this one reads. build: makes the module for (album, name, subject) triples.
        write: puts the subject at an index of the module into a file; it may raise AlbumFailed.
        """
        runs = self.pending(stage, after, config, baselines=True)
        if not runs:
            return
        started = time.monotonic()
        self.load_personalization()
        chosen = self.subjects(runs)
        module = build(chosen)
        work = self.work_folder(stage, runs)
        train_guided(
            module,
            folder=work,
            # Rendering wants float32, so mixed precision is left to the module's UNet calls. A step is never in parts,
            # nor shared out.
            runtime=dataclasses.replace(self.config.runtime.alone, precision="32-true", accumulate_batches=1),
            seed=self.config.seed,
            stage=stage.capitalize(),
            trackers=self.trackers(stage, runs, work),
        )
        self.settle()
        for index, (run, name, _) in enumerate(chosen):
            folder = run.stage(stage).working(run.keys[stage])
            try:
                if index in module.failed:
                    raise AlbumFailed(module.failed[index])
                with folder_errors(folder):
                    write(module, index, folder / f"{name}.npz")
            except AlbumFailed as failure:
                run.failed = run.failed or f"{name}: {failure}"
        self.finish(stage, runs, work, config, started)

    def geometry(self) -> None:
        """Stage 2: the surface. Commits avatar.npz (vertices, faces), and words_only.npz where there is a baseline."""
        from modules.avatar import GeometryStage

        config = self.config.geometry

        def build(chosen: Sequence[tuple[AlbumRun, str, Subject]]) -> GeometryStage:
            grids = [self.template(run.album.gender)[1] for run, _, _ in chosen]
            return GeometryStage(**self._distillation_arguments(chosen, config), config=config, grids=grids)

        def write(module: GeometryStage, index: int, path: Path) -> None:
            vertices, faces = module.finished_mesh(index)
            np.savez(path, vertices=vertices, faces=faces)

        self._distill("geometry", ("booth",), config, build, write)

    def texture(self) -> None:
        """Stage 3: the colours, baked. Commits avatar.npz (vertices, faces, uv, texture), and the baseline's."""
        from modules.avatar import TextureStage
        from modules.geometry.decimate import decimate
        from modules.rendering.refine import bake_refined

        config = self.config.texture
        meshes: list[tuple[torch.Tensor, torch.Tensor]] = []
        albums: list[PreparedAlbum | None] = []

        def build(chosen: Sequence[tuple[AlbumRun, str, Subject]]) -> TextureStage:
            for run, name, _ in chosen:
                with np.load(run.stage("geometry").output(f"{name}.npz")) as file:
                    meshes.append((torch.from_numpy(file["vertices"]), torch.from_numpy(file["faces"]).long()))
            # The baseline knows words alone.
            albums.extend(run.album if name == SUBJECT else None for run, name, _ in chosen)
            first = [
                start_colors(album, mesh[0], config) if album is not None else None
                for album, mesh in zip(albums, meshes, strict=True)
            ]
            arguments = self._distillation_arguments(chosen, config)
            return TextureStage(**arguments, config=config, meshes=meshes, first_colors=first)

        def write(module: TextureStage, index: int, path: Path) -> None:
            vertices, faces = (values.numpy() for values in meshes[index])
            vertices, faces = decimate(vertices, faces, config.max_faces)
            color: ColorFn = partial(module.detached_color, index)
            if (album := albums[index]) is not None:
                color = finish_colors(album, meshes[index][0], color, config)
            baked = bake_refined(vertices, faces, color, config.texture_size, refinement_steps=config.refinement_steps)
            mesh, prefix = baked.mesh, "" if path.stem == SUBJECT else f"{path.stem}_"
            self._metrics.setdefault(path.parent, {}).update(
                {f"{prefix}bake_psnr_db": baked.psnr_db, f"{prefix}bake_seam_difference": baked.seam_difference}
            )
            np.savez_compressed(path, vertices=mesh.vertices, faces=mesh.faces, uv=mesh.uv, texture=mesh.texture)

        self._distill("texture", ("booth", "geometry"), config, build, write)

    # -- committing ---------------------------------------------------------------------------------------------------

    def finish(self, stage: str, runs: Sequence[AlbumRun], work: Path, config: object, started: float) -> None:
        for run in runs:
            if run.failed is not None:
                run.fail(stage, run.failed, seed=self.config.seed)
            else:
                self._commit(run, stage, work, config, started, len(runs))
        shutil.rmtree(work, ignore_errors=True)

    def _commit(self, run: AlbumRun, stage: str, work: Path, config: object, started: float, num_albums: int) -> None:
        folder = run.stage(stage)
        working = folder.working(run.keys[stage])
        if (work / "metrics.jsonl").exists():
            with folder_errors(working):
                shutil.copyfile(work / "metrics.jsonl", working / "metrics.jsonl")
        if (work / VISUALS_NAME / run.name).is_dir():
            with folder_errors(working):
                (working / VISUALS_NAME).mkdir(exist_ok=True)
                # One by one: shutil.copytree gathers its errors into one that does not tell a full disk from others.
                for file in (work / VISUALS_NAME / run.name).iterdir():
                    shutil.copyfile(file, working / VISUALS_NAME / file.name)
        seconds = time.monotonic() - started
        folder.commit(
            run.keys[stage],
            inputs=run.inputs[stage],
            config=config,
            seed=self.config.seed,
            timings={"pack_s": seconds, "album_s": seconds / num_albums},
            metrics=self._metrics.pop(working, None),
            extra={"num_albums": num_albums, "backbone": self.config.backbone},
        )


def forget_work(out: Path, stage: str, runs: Sequence[AlbumRun], *, but: Path | None = None) -> None:
    """Delete what interrupted packs with any of these albums have left of a stage, apart from the folder `but`."""
    for albums in out.glob(f".packs/{stage}-*/albums.json"):
        try:
            names = set(json.loads(albums.read_text()))
        except FileNotFoundError:
            continue  # of a pack of other albums, which another process has just finished
        # Nobody else works on these albums: this process holds their locks.
        if albums.parent != but and {run.name for run in runs} & names:
            shutil.rmtree(albums.parent, ignore_errors=True)
