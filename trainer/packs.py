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
from safetensors.torch import load_file, save

from datamodules.atomic import write_bytes
from datamodules.puzzlebooth import BackboneShape, PuzzleBoothBatches, subject_of
from modules.contracts import Subject
from modules.diffusion.attention import capture_side
from modules.diffusion.backbone import Backbone
from modules.diffusion.lora_export import embedding_state, lora_state
from modules.diffusion.personalization import Personalization
from modules.diffusion.routing import NO_ALBUM
from modules.errors import AlbumFailed, UserError
from modules.geometry.body import BodyTemplate, load_body
from modules.geometry.tet_grid import TetGrid
from trainer.album_run import BASELINE, SUBJECT, AlbumRun
from trainer.artifacts import folder_errors, write_json
from trainer.canonical import hash_json, hash_tree
from trainer.config import PROJECT_ROOT
from trainer.fit import fit
from trainer.priors import prior_samples, synthetic_images
from trainer.samples import check_prompts, write_samples

if TYPE_CHECKING:
    from modules.avatar_config import GeometryConfig, TextureConfig
    from trainer.config import RunConfig


class Pack:
    """Albums, the backbone they share, and the trained stages. Nothing heavy is loaded before a stage needs it."""

    def __init__(self, runs: Sequence[AlbumRun], config: RunConfig, *, out: Path) -> None:
        self.runs, self.config, self.out = list(runs), config, out
        self._personalization: Personalization | None = None
        self._grids: dict[str, tuple[BodyTemplate, TetGrid]] = {}

    @property
    def alive(self) -> list[AlbumRun]:
        return [run for run in self.runs if run.failed is None]

    @cached_property
    def backbone(self) -> Backbone:
        backbone = Backbone.load(self.config.backbone, root=PROJECT_ROOT)
        if self.config.runtime.accelerator != "cpu" and torch.cuda.is_available():
            backbone.to("cuda")
        return backbone

    @cached_property
    def backbone_hash(self) -> str:
        path = Path(self.config.backbone.path)
        folder = path if path.is_absolute() else PROJECT_ROOT / path
        return hash_tree(folder, ("*.json", "*.safetensors", "*.txt"))

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
        )

    @property
    def personalization(self) -> Personalization:
        """Tokens and adapters for all albums of the pack, attached to the backbone at first use."""
        if self._personalization is None:
            num_tokens = max(len(run.album.asset_names) for run in self.runs if run.prepared)
            self._personalization = Personalization(
                self.backbone, self.config.booth.adapter, num_albums=len(self.runs), num_tokens=num_tokens
            ).to(self.backbone.device)
        return self._personalization

    def has_baseline(self, run: AlbumRun) -> bool:
        """Whether the words alone are distilled as well: they are only of use where there is something to measure."""
        return run.has_truth and self.config.baselines

    def pending(
        self, stage: str, inputs: dict[str, dict[str, str]], config: object, *, baselines: bool = False
    ) -> list[AlbumRun]:
        """The albums that still lack this stage's artifact; those that failed in it before are tried again.

        baselines: the stage makes the baseline too, so that the artifact of an album with one is another.
        """
        left = []
        for run in self.alive:
            folder = run.stage(stage)
            settings = (config, self.has_baseline(run)) if baselines else config
            key = run.keys[stage] = folder.key(inputs[run.name], settings, self.config.seed)
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
        for other in self.out.glob(f".packs/{stage}-*/albums.json"):
            # Nobody else works on these albums: this process holds their locks.
            if other.parent != folder and set(names) & set(json.loads(other.read_text())):
                shutil.rmtree(other.parent, ignore_errors=True)
        with folder_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "albums.json", names)
        return folder

    # -- PuzzleBooth --------------------------------------------------------------------------------------------------

    def booth(self) -> None:
        """Stage 1: train tokens and adapters; commits tensors, samples, and a LoRA for other programs."""
        from modules.puzzlebooth import PuzzleBooth

        config = self.config.booth
        inputs = {
            run.name: {"assets": run.stage("assets").outputs_hash, "backbone": self.backbone_hash} for run in self.alive
        }
        runs = self.pending("booth", inputs, (config, self.config.backbone))
        if not runs:
            return
        started = time.monotonic()
        backbone, personalization = self.backbone, self.personalization
        for run in list(runs):
            try:
                check_prompts(backbone, subject_of(run.album, 0, self.config.seed), run.album, self.config)
            except UserError as error:
                self._fail(run, "booth", str(error).rstrip("."), inputs[run.name])
                runs.remove(run)
        if not runs:
            return
        synthetic = synthetic_images(self.out, self.config, backbone.image_size)
        samples = [prior_samples(self.out, self.config, backbone, run.album.gender, self.backbone_hash) for run in runs]
        for index, run in enumerate(runs):
            subject = subject_of(run.album, index, self.config.seed)
            personalization.reset_album(index, run.album.asset_names, backbone, seed=subject.seed)
        batches = PuzzleBoothBatches(
            [run.album for run in runs],
            config,
            self.shape,
            synthetic=synthetic,
            samples=samples,
            seed=self.config.seed,
        )
        module = PuzzleBooth(backbone, personalization, config, [run.name for run in runs])
        work = self.work_folder("booth", runs)
        fit(
            module,
            batches,
            max_steps=config.num_steps,
            folder=work,
            runtime=self.config.runtime,
            seed=self.config.seed,
            stage="PuzzleBooth",
        )
        backbone.to(self.backbone.device).eval()
        # All is written before anything is committed: a kill in between would leave the others without their training.
        for index, run in enumerate(runs):
            if index in module.failed:
                run.failed = module.failed[index]
                continue
            folder = run.stage("booth").working(run.keys["booth"])
            state = personalization.album_state(index)
            # The pack's other albums may have more assets; they are not this album's business.
            state["tokens"] = state["tokens"][: len(run.album.asset_names)]
            files = {
                "personalization": state,
                "lora": lora_state(personalization, index),
                "learned_embeds": embedding_state(personalization, index, len(run.album.asset_names)),
            }
            for name, tensors in files.items():
                # Not by safetensors' own writer: it makes files private and hides what the disk says.
                data = save({key: value.contiguous() for key, value in tensors.items()})
                write_bytes(folder / f"{name}.safetensors", data)
            subject = subject_of(run.album, index, self.config.seed)
            with folder_errors(folder):
                write_samples(folder, backbone, personalization, subject, self.config)
        self._finish("booth", runs, work, inputs, config, started)

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

    def template(self, gender: str) -> tuple[BodyTemplate, TetGrid]:
        """The body of a gender word and the tetrahedral grid around it, made once."""
        if gender not in self._grids:
            body = load_body(gender)  # type: ignore[arg-type]
            self._grids[gender] = (body, TetGrid.around_mesh(body.vertices, body.faces, self.config.geometry.grid))
        return self._grids[gender]

    def _distillation_arguments(self, chosen: Sequence[tuple[AlbumRun, str, Subject]]) -> dict[str, Any]:
        from modules.rendering.rasterizer import make_rasterizer

        return {
            "backbone": self.backbone,
            "personalization": self.personalization,
            "subjects": [subject for _, _, subject in chosen],
            "landmarks": [self.template(run.album.gender)[0].landmarks for run, _, _ in chosen],
            "rasterizer": make_rasterizer("auto", str(self.backbone.device)),
            "scene_words": self.config.backbone.scene_words,
            "view_vocabulary": self.config.backbone.view_vocabulary,
            "reduced_precision": self.config.runtime.precision == "bf16-mixed",
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
        inputs = {
            run.name: {name: run.stage(name).outputs_hash for name in after} | {"backbone": self.backbone_hash}
            for run in self.alive
        }
        runs = self.pending(stage, inputs, config, baselines=True)
        if not runs:
            return
        started = time.monotonic()
        self.load_personalization()
        chosen = self.subjects(runs)
        module = build(chosen)
        work = self.work_folder(stage, runs)
        fit(
            module,
            lambda step: step,
            max_steps=config.steps,
            folder=work,
            # Rendering wants float32, so mixed precision is left to the module's UNet calls.
            runtime=dataclasses.replace(self.config.runtime, precision="32-true"),
            seed=self.config.seed,
            stage=stage.capitalize(),
        )
        self.backbone.eval()
        for index, (run, name, _) in enumerate(chosen):
            folder = run.stage(stage).working(run.keys[stage])
            try:
                if index in module.failed:
                    raise AlbumFailed(module.failed[index])
                with folder_errors(folder):
                    write(module, index, folder / f"{name}.npz")
            except AlbumFailed as failure:
                run.failed = run.failed or f"{name}: {failure}"
        self._finish(stage, runs, work, inputs, config, started)

    def geometry(self) -> None:
        """Stage 2: the surface. Commits avatar.npz (vertices, faces), and words_only.npz where there is a baseline."""
        from modules.avatar import GeometryStage

        config = self.config.geometry

        def build(chosen: Sequence[tuple[AlbumRun, str, Subject]]) -> GeometryStage:
            grids = [self.template(run.album.gender)[1] for run, _, _ in chosen]
            return GeometryStage(**self._distillation_arguments(chosen), config=config, grids=grids)

        def write(module: GeometryStage, index: int, path: Path) -> None:
            with torch.no_grad():
                vertices, faces = module.mesh(index)
            np.savez(
                path, vertices=vertices.cpu().numpy().astype(np.float32), faces=faces.cpu().numpy().astype(np.int32)
            )

        self._distill("geometry", ("booth",), config, build, write)

    def texture(self) -> None:
        """Stage 3: the colours, baked. Commits avatar.npz (vertices, faces, uv, texture), and the baseline's."""
        from modules.avatar import TextureStage
        from modules.rendering.texture import bake_textured_mesh

        config = self.config.texture
        meshes: list[tuple[torch.Tensor, torch.Tensor]] = []

        def build(chosen: Sequence[tuple[AlbumRun, str, Subject]]) -> TextureStage:
            for run, name, _ in chosen:
                with np.load(run.stage("geometry").output(f"{name}.npz")) as file:
                    meshes.append((torch.from_numpy(file["vertices"]), torch.from_numpy(file["faces"]).long()))
            return TextureStage(**self._distillation_arguments(chosen), config=config, meshes=meshes)

        def write(module: TextureStage, index: int, path: Path) -> None:
            vertices, faces = (values.numpy() for values in meshes[index])
            color = partial(module.detached_color, index)
            baked = bake_textured_mesh(vertices, faces, color, texture_size=config.texture_size)
            np.savez_compressed(path, vertices=baked.vertices, faces=baked.faces, uv=baked.uv, texture=baked.texture)

        self._distill("texture", ("booth", "geometry"), config, build, write)

    # -- committing ---------------------------------------------------------------------------------------------------

    def _finish(
        self,
        stage: str,
        runs: Sequence[AlbumRun],
        work: Path,
        inputs: dict[str, dict[str, str]],
        config: object,
        started: float,
    ) -> None:
        for run in runs:
            if run.failed is not None:
                self._fail(run, stage, run.failed, inputs[run.name])
            else:
                self._commit(run, stage, work, inputs[run.name], config, started, len(runs))
        shutil.rmtree(work, ignore_errors=True)

    def _commit(
        self,
        run: AlbumRun,
        stage: str,
        work: Path,
        inputs: dict[str, str],
        config: object,
        started: float,
        num_albums: int,
    ) -> None:
        folder = run.stage(stage)
        working = folder.working(run.keys[stage])
        if (work / "metrics.jsonl").exists():
            with folder_errors(working):
                shutil.copyfile(work / "metrics.jsonl", working / "metrics.jsonl")
        seconds = time.monotonic() - started
        folder.commit(
            run.keys[stage],
            inputs=inputs,
            config=config,
            seed=self.config.seed,
            timings={"pack_s": seconds, "album_s": seconds / num_albums},
            extra={"num_albums": num_albums},
        )

    def _fail(self, run: AlbumRun, stage: str, reason: str, inputs: dict[str, str]) -> None:
        run.failed = reason
        run.stage(stage).fail(run.keys[stage], reason, inputs=inputs, seed=self.config.seed)
