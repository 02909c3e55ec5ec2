"""One measurement of `bench_booth` in a process of its own: `python -m tests.benchmarks.booth_worker TASK JSON`.

The result is the last line of the standard output, as JSON. Times are processor seconds, of all threads, and seconds on
the clock. Memory is what the process holds more, at most, than after its frozen model was loaded: what is trained, its
gradients and optimiser, and a step's activations.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from torch import nn

from modules.contracts import BoothBatch, RowKind
from modules.diffusion.backbone import Backbone, BackboneConfig
from modules.diffusion.config import AdapterConfig
from modules.puzzlebooth import PuzzleBooth, clip_per_album
from modules.puzzlebooth_config import PuzzleBoothConfig
from tests.benchmarks.booth_settings import PROJECT_ROOT
from tests.benchmarks.random_booth import ModelSize, build_booth, random_backbone, random_batch
from tests.benchmarks.reference_pattern import EveryAttention

Variant = Literal["bare", "booth", "capture_all"]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# A photo and a prior image: all losses but that on synthetic people, which is computed as that on a prior image.
STEP_KINDS = (RowKind.PHOTO, RowKind.PRIOR_SAMPLE)


class Steps:
    """Training steps of the joint phase on one batch, in three ways, with the same model and the same parameters."""

    def __init__(self, booth: PuzzleBooth, batch: BoothBatch, precision: str, kernels: dict[str, Any]) -> None:
        """kernels: the UNet's attention processors without any capture."""
        self.booth, self.batch, self.precision = booth, batch, precision
        self.optimizer = booth.configure_optimizers()
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-6
        unet = booth.backbone.unet
        self.captures = {"booth": booth.capture}
        self.processors = {"bare": kernels, "booth": dict(unet.attn_processors)}
        self.captures["capture_all"] = EveryAttention(unet)  # type: ignore[assignment]
        self.processors["capture_all"] = dict(unet.attn_processors)

    def fill_moments(self) -> None:
        """Make the optimiser hold what it holds from its second step on."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self, variant: Variant) -> None:
        """One step: forward, losses, backward, clipping, optimiser."""
        booth = self.booth
        booth.backbone.unet.set_attn_processor(dict(self.processors[variant]))
        device_type = booth.backbone.device.type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            if variant == "bare":
                loss = self._bare_loss()
            else:
                booth.capture = self.captures[variant]
                per_album = torch.stack(list(booth.losses(self.batch).values())).sum(0)
                booth._mark_failed(per_album.detach())
                loss = per_album.sum()
        loss.backward()
        booth.capture.stop()
        if variant == "bare":
            nn.utils.clip_grad_norm_(self.parameters, booth.config.max_grad_norm)
        else:
            clip_per_album(self.parameters, booth.config.max_grad_norm, booth.failed)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _bare_loss(self) -> torch.Tensor:
        backbone, batch = self.booth.backbone, self.batch
        noisy = backbone.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
        with self.booth.personalization.routing.rows(batch["albums"]):
            text = backbone.encode_text(batch["input_ids"])
            output = backbone.unet(noisy, batch["timesteps"], encoder_hidden_states=text).sample.float()
        return nn.functional.mse_loss(output, batch["noise"])


def half_width_steps(size: ModelSize, precision: str, rank: int) -> tuple[Steps, int]:
    """Steps of one album with random weights, and the bytes that were held before anything was attached."""
    backbone = random_backbone(size)
    backbone.choose_attention("fused")
    kernels = dict(backbone.unet.attn_processors)
    before = reset_peak()
    config = PuzzleBoothConfig(adapter=AdapterConfig(rank=rank, alpha=rank))
    booth = build_booth(backbone, config, 1)
    return Steps(booth, random_batch(booth, STEP_KINDS), precision, kernels), before


def step_times(
    *, size: dict[str, Any], precision: str, rank: int, repetitions: dict[Variant, int]
) -> dict[str, list[list[float]]]:
    """[processor seconds, seconds] of each repetition by variant; the variants take turns."""
    steps, _ = half_width_steps(ModelSize(**size), precision, rank)
    times: dict[str, list[list[float]]] = {variant: [] for variant in repetitions}
    for repetition in range(max(repetitions.values())):
        for variant, wanted in repetitions.items():
            if repetition < wanted:
                processor, clock = time.process_time(), time.perf_counter()
                steps.run(variant)
                times[variant].append([time.process_time() - processor, time.perf_counter() - clock])
    return times


def step_memory(*, size: dict[str, Any], precision: str, rank: int, variant: Variant) -> int:
    """Bytes of a step of a variant."""
    steps, before = half_width_steps(ModelSize(**size), precision, rank)
    steps.fill_moments()
    steps.run(variant)
    return max(1, peak_bytes() - before)


def pack_memory(*, backbone: str, num_albums: int, rows: dict[str, int], precision: str, rank: int) -> int:
    """Bytes of a joint step of a pack; rows: of each album, by the kind's name."""
    frozen = Backbone.load(BackboneConfig(path=backbone), root=PROJECT_ROOT)
    kernels = dict(frozen.unet.attn_processors)
    before = reset_peak()
    booth = build_booth(frozen, PuzzleBoothConfig(adapter=AdapterConfig(rank=rank)), num_albums)
    kinds = [RowKind[name] for name, count in rows.items() for _ in range(count)]
    steps = Steps(booth, random_batch(booth, kinds), precision, kernels)
    steps.fill_moments()
    steps.run("booth")
    return max(1, peak_bytes() - before)


def make_prior_images(*, gender: str, overrides: list[str]) -> None:
    """What all runs into one output folder share, in that folder."""
    from trainer.config import load_config
    from trainer.packs import Pack
    from trainer.priors import prior_samples, synthetic_images

    config = load_config("mini", overrides)
    pack = Pack([], config, out=Path(config.out))
    synthetic_images(pack.out, config, pack.backbone.image_size)
    prior_samples(pack.out, config, pack.backbone, gender, pack.backbone_hash)


def train(*, albums: list[str], names: list[str], overrides: list[str]) -> dict[str, list[list[float]]]:
    """Personalise albums as one pack; [processor seconds, seconds] of every step but a phase's first, by phase."""
    from trainer import booth_stage
    from trainer.config import load_config
    from trainer.pipeline import run_pack

    clock, plain = _StepClock(), booth_stage.train_booth

    def with_clock(*arguments: Any, **keywords: Any) -> None:
        plain(*arguments, **keywords | {"callbacks": [*keywords["callbacks"], clock]})

    booth_stage.train_booth = with_clock
    try:
        config = load_config("mini", overrides)
        results = run_pack([Path(album) for album in albums], config, names, until="booth")
    finally:
        booth_stage.train_booth = plain
    failed = [f"{result.name}: {result.failed}" for result in results if result.failed]
    if failed:
        raise RuntimeError("; ".join(failed))
    return clock.phases


class _StepClock(lightning.Callback):
    """From the end of a step to the end of the next one: what makes its batch counts, too."""

    def __init__(self) -> None:
        self.phases: dict[str, list[list[float]]] = {}
        self._last: tuple[str, float, float] | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, PuzzleBooth)
        phase, processor, clock = pl_module.phase, time.process_time(), time.perf_counter()
        if self._last is not None and self._last[0] == phase:
            self.phases.setdefault(phase, []).append([processor - self._last[1], clock - self._last[2]])
        self._last = (phase, processor, clock)


def reset_peak() -> int:
    """Bytes of memory that the process holds now; its peak begins anew here where the system is Linux."""
    if not STATUS.exists():
        return peak_bytes()
    CLEAR.write_text("5")
    found = re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def peak_bytes() -> int:
    """The most bytes that the process has held since its start, or since `reset_peak`."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task for task in (step_times, step_memory, pack_memory, make_prior_images, train)
}

if __name__ == "__main__":
    found = TASKS[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps(found))
