"""Does a few steps of each training for real, at the size that the settings ask for, and looks at the clock.

Nothing is written. What the figures are for is in `launch.estimate`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.estimate import StepCosts, backbone_folder
from modules.errors import UserError

if TYPE_CHECKING:
    import torch

    from datamodules.assets import PreparedAlbum
    from modules.contracts import BoothBatch
    from modules.puzzlebooth import PuzzleBooth
    from trainer.config import RunConfig

# Forward and backward against forward alone, where only the latter is measured.
_BACKWARD = 3.3
_BUDGET_S = 60.0
_DRAWN_ROWS, _SHORT_S = 16, 0.2
_TIMED_S, _LEAST_STEPS, _MOST_STEPS = 1.0, 2, 12
_GIB = 2**30


def measure(config: RunConfig, album: PreparedAlbum, subjects: set[int], *, budget_s: float = _BUDGET_S) -> StepCosts:
    """Load what a run loads, and do a few steps of each training. Raises UserError where the model is not there.

    album: its names and gender only. subjects: numbers of subjects to distil. budget_s: where whole steps would take
    longer, single images are measured.
    """
    if config.uses_truth:
        raise UserError("the time is not estimated where guidance.method is truth: no model is asked there")
    import torch

    from modules.memory import is_out_of_memory

    folder = backbone_folder(config.backbone.path)
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, path=str(folder)))
    runtime = config.runtime
    on_gpu = runtime.accelerator != "cpu" and torch.cuda.is_available()
    former = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        if runtime.num_threads:
            torch.set_num_threads(runtime.num_threads)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        torch.use_deterministic_algorithms(runtime.deterministic, warn_only=on_gpu)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning warns of modules that log without a trainer
            return _Measurement(config, album, torch.device("cuda" if on_gpu else "cpu")).costs(subjects, budget_s)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("a step of training does not fit into this machine's memory: choose a smaller model") from error
    finally:
        torch.set_num_threads(former[0])
        torch.use_deterministic_algorithms(former[1])


class _Measurement:
    """The parts of a run, loaded, and the clock."""

    def __init__(self, config: RunConfig, album: PreparedAlbum, device: torch.device) -> None:
        from modules.diffusion.backbone import Backbone
        from modules.diffusion.personalization import Personalization
        from modules.geometry.template import load_template
        from modules.geometry.tet_grid import TetGrid
        from modules.puzzlebooth import PuzzleBooth
        from trainer.config import PROJECT_ROOT

        started = time.perf_counter()
        # Before anything is loaded, as at the beginning of a run.
        self.free_gib = _free_gib(device)
        self._clock_s = self._quiet_s = 0.0
        self.config, self.album, self.device = config, album, device
        self.backbone = Backbone.load(config.backbone, root=PROJECT_ROOT).to(device)
        names, geometry = album.asset_names, config.geometry
        self.personalization = Personalization(self.backbone, config.booth.adapter, num_albums=1, num_tokens=len(names))
        self.personalization.reset_album(0, names, self.backbone, seed=0)
        self.personalization.to(device)
        self.booth = PuzzleBooth(self.backbone, self.personalization, config.booth, ["album"])
        self.template = load_template(geometry.template, album.gender, smplx_models=geometry.smplx_models)  # type: ignore[arg-type]
        self.grid = TetGrid.around_mesh(
            self.template.vertices, self.template.faces, geometry.grid, regions=self.template.regions
        )
        self.start_s = time.perf_counter() - started

    def costs(self, subjects: set[int], budget_s: float) -> StepCosts:
        drawn_row_s = self._drawn_row_s()
        booth = self.config.booth
        rows = booth.photos_per_step + _prior_rows(self.config)
        guided_rows = {stage: _guided_rows(getattr(self.config, stage)) for stage in ("geometry", "texture")}
        expected_s = drawn_row_s * (4 * _BACKWARD * rows + 3 * sum(guided_rows.values()) * sum(subjects))
        if expected_s > budget_s:
            encode_s = self._encode_s()

            def guided(stage: str) -> dict[int, float]:
                views = getattr(self.config, stage).cameras.views_per_step
                return {
                    number: number * (guided_rows[stage] * drawn_row_s + views * _BACKWARD * encode_s)
                    for number in subjects
                }

            from launch.planner import first_cost, weights_gib

            # The frozen model's other parts weigh less than its UNet.
            unet_gib = weights_gib(Path(self.config.backbone.path) / "unet")
            memory_gib = max(first_cost(unet_gib, rows).memory_gib(1), self._used_gib())
            step_s, whole = rows * _BACKWARD * drawn_row_s, False
            token_s, joint_s, geometry_s, texture_s = step_s, step_s, guided("geometry"), guided("texture")
        else:
            batch = random_batch(self.booth, self.album, self.config)
            # The joint phase first: what it allocates stays for the other.
            joint_s, token_s = (self._booth_step_s(batch, phase) for phase in ("joint", "tokens"))
            # One mesh after the other: the greatest number last, as in a pack.
            geometry_s = {number: self._guided_step_s("geometry", number) for number in sorted(subjects)}
            texture_s = {number: self._guided_step_s("texture", number) for number in sorted(subjects)}
            memory_gib, whole = self._used_gib(), True
        return StepCosts(
            device=_device_words(self.device),
            start_s=self.start_s,
            token_step_s=token_s,
            joint_step_s=joint_s,
            geometry_step_s=geometry_s,
            texture_step_s=texture_s,
            drawn_row_s=drawn_row_s,
            memory_gib=memory_gib,
            free_gib=self.free_gib,
            crowding=self._clock_s / self._quiet_s,
            whole_steps=whole,
        )

    def _timed(self, step: Callable[[], object]) -> float:
        """Mean seconds of a step with nothing else running, after one try that compiles and allocates.

        On a processor these are the processor's seconds where they are fewer than the clock's: threads that wait for a
        core use none. A busy machine is slow by fits and starts, so that the clock alone would say little.
        """
        step()
        self._wait()
        started, used, number = time.perf_counter(), time.process_time(), 0
        while number < _LEAST_STEPS or (number < _MOST_STEPS and time.perf_counter() - started < _TIMED_S):
            step()
            self._wait()
            number += 1
        seconds = time.perf_counter() - started
        # A GPU's steps are not the processor's work.
        used_s = time.process_time() - used if self.device.type == "cpu" else seconds
        quiet_s = min(seconds, used_s)
        self._clock_s += seconds
        self._quiet_s += quiet_s
        return quiet_s / number

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _drawn_row_s(self) -> float:
        seconds = self._forward_s(2) / 2
        # Pictures are drawn many at a time, which a small model does sooner than one by one.
        return self._forward_s(_DRAWN_ROWS) / _DRAWN_ROWS if seconds < _SHORT_S else seconds

    def _forward_s(self, rows: int) -> float:
        import torch

        backbone, side = self.backbone, self.backbone.latent_size
        noisy = torch.zeros(rows, backbone.num_latent_channels, side, side, device=self.device)
        times = torch.zeros(rows, dtype=torch.int64, device=self.device)
        with torch.no_grad(), self.personalization.routing.rows(torch.zeros_like(times)):
            text = backbone.encode_text(backbone.tokenize(["a person"] * rows).to(self.device))
            return self._timed(lambda: backbone.unet(noisy, times, encoder_hidden_states=text))

    def _encode_s(self) -> float:
        import torch

        size = self.backbone.image_size
        image = torch.zeros(1, 3, size, size, device=self.device)
        with torch.no_grad():
            return self._timed(lambda: self.backbone.encode_images(image))

    def _booth_step_s(self, batch: BoothBatch, phase: Any) -> float:
        import torch

        self.booth.enter(phase)
        optimizer, precision = self.booth.configure_optimizers(), self.config.runtime.precision
        dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16

        def step() -> None:
            with torch.autocast(self.device.type, dtype=dtype, enabled=precision != "32-true"):
                # Gradient checkpointing runs layers again in the backward pass, which must find the album, too.
                self.personalization.routing.albums = batch["albums"]
                terms = self.booth.losses(batch)
            torch.stack(list(terms.values())).sum().backward()
            self.booth.on_after_backward()
            optimizer.step()
            optimizer.zero_grad()

        try:
            return self._timed(step)
        finally:
            for parameter in self.personalization.parameters():
                parameter.requires_grad_(False)

    def _guided_step_s(self, stage: str, number: int) -> float:
        """Seconds of a step of the geometry or the texture stage with so many subjects: the album's, then words."""
        from datamodules.puzzlebooth import subject_of
        from modules.avatar import GeometryStage, TextureStage
        from modules.diffusion.routing import NO_ALBUM
        from modules.geometry.marching_tets import extract_mesh
        from modules.rendering.rasterizer import make_rasterizer

        config = self.config
        indices = [0, *[NO_ALBUM] * (number - 1)]
        arguments: dict[str, Any] = {
            "backbone": self.backbone,
            "personalization": self.personalization,
            "subjects": [subject_of(self.album, index, 0, personalized=index == 0) for index in indices],
            "landmarks": [self.template.landmarks] * number,
            "rasterizer": make_rasterizer("auto", str(self.device)),
            "scene_words": config.backbone.scene_words,
            "view_vocabulary": config.backbone.view_vocabulary,
            "view_words": config.booth.view_words,
            "reduced_precision": config.runtime.precision == "bf16-mixed",
        }
        module: GeometryStage | TextureStage
        if stage == "geometry":
            module = GeometryStage(**arguments, config=config.geometry, grids=[self.grid] * number)
        else:
            mesh = extract_mesh(self.grid, self.grid.template_sdf)
            module = TextureStage(**arguments, config=config.texture, meshes=[mesh] * number)
        module.to(self.device)
        optimizer = module.configure_optimizers()

        def step() -> None:
            module.training_step(None, 0).backward()
            module.configure_gradient_clipping(optimizer)
            optimizer.step()
            optimizer.zero_grad()

        return self._timed(step)

    def _used_gib(self) -> float:
        """The most that was used so far: of the GPU's memory, or of this process's."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / _GIB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / _GIB


def random_batch(booth: PuzzleBooth, album: PreparedAlbum, config: RunConfig) -> BoothBatch:
    """A step's rows for one album at their real sizes: noise for pictures, the album's names for words."""
    import torch

    from datamodules.puzzlebooth import subject_of
    from modules.contracts import RowKind
    from modules.diffusion.attention import capture_side
    from modules.diffusion.prompts import compose_prompt

    backbone, settings, names = booth.backbone, config.booth, album.asset_names
    photos, others = settings.photos_per_step, _prior_rows(config)
    rows, side, attention_side = photos + others, backbone.latent_size, capture_side(backbone.unet)
    spoken, plain = (
        compose_prompt(album.gender, subject_of(album, 0, 0, personalized=own).assets, view="front")
        for own in (True, False)
    )
    input_ids = backbone.tokenize([spoken] * photos + [plain] * others, truncate=True)
    columns = torch.full((rows, len(names)), -1, dtype=torch.int64)
    for row, ids in enumerate(input_ids):
        for asset in range(len(names)):
            if len(found := (ids == booth.personalization.first_id + asset).nonzero()):
                columns[row, asset] = found[0, 0]
    composed = round(photos * settings.compose_fraction)
    latents = (backbone.num_latent_channels, side, side)
    kinds = [RowKind.PHOTO] * photos + [RowKind.PRIOR_SAMPLE] * others
    batch: dict[str, torch.Tensor] = {
        "latents": torch.randn(rows, *latents),
        "images": torch.rand(composed, 3, backbone.image_size, backbone.image_size),
        "composed": torch.arange(composed),
        "posterior_noise": torch.randn(composed, *latents),
        "input_ids": input_ids,
        "albums": torch.zeros(rows, dtype=torch.int64),
        "kinds": torch.tensor([int(kind) for kind in kinds]),
        "shares": torch.full((rows,), 1 / rows),
        "masks": torch.ones(rows, 1, side, side),
        "columns": columns,
        "asset_masks": (torch.rand(rows, len(names), attention_side, attention_side) > 0.5).float(),
        "timesteps": torch.randint(backbone.num_timesteps, (rows,)),
        "noise": torch.randn(rows, *latents),
    }
    return {name: value.to(backbone.device) for name, value in batch.items()}  # type: ignore[return-value]


def _prior_rows(config: RunConfig) -> int:
    """Rows of a step of PuzzleBooth that show no photo of the album."""
    booth = config.booth
    samples = booth.samples_per_step if booth.weight_prior > 0 and booth.num_prior_samples else 0
    synthetic = booth.synthetic_rgb_per_step + booth.synthetic_normal_per_step
    return samples + (synthetic if booth.weight_synthetic > 0 and booth.num_synthetic_people else 0)


def _guided_rows(config: Any) -> int:
    """Images that a subject sends through the UNet in one step of a guided stage."""
    guidance = config.guidance
    match guidance.method:
        case "nfsd":
            calls = 3 if guidance.negative_prompt else 2
        case "asd":
            calls = 3
        case "sdi":
            calls = 2 + (guidance.inversion_steps - 1) * (1 if guidance.inversion_scale == 1 else 2)
        case _:
            calls = 2
    return calls * int(config.cameras.views_per_step)


def _device_words(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {len(os.sched_getaffinity(0))} cores"


def _free_gib(device: torch.device) -> float | None:
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0] / _GIB
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 / _GIB for line in lines if line.startswith("MemAvailable:"))
    return None
