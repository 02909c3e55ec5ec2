"""PuzzleBooth: personalise the backbone on K albums at once. Stage 1 of PuzzleAvatar (Xiu et al. 2024, section 3.1).

Phase 1 trains the placeholder embeddings at a high rate, phase 2 embeddings and adapters at a low one. Albums never
mix: losses are means within an album, gradients are clipped per album, the optimiser works element by element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from modules.contracts import BoothBatch, RowKind
from modules.diffusion.attention import ColumnCapture
from modules.diffusion.backbone import Backbone
from modules.diffusion.losses import (
    attention_loss,
    clean_sample_weight,
    masked_diffusion_loss,
    min_snr_weight,
    per_album_mean,
)
from modules.diffusion.personalization import Personalization
from modules.puzzlebooth_config import PuzzleBoothConfig


class PuzzleBooth(lightning.LightningModule):
    """Trains a `Personalization` of K albums on `BoothBatch`es. `album_names` appear in logs and failure reasons."""

    def __init__(
        self,
        backbone: Backbone,
        personalization: Personalization,
        config: PuzzleBoothConfig,
        album_names: Sequence[str],
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.personalization = personalization
        self.album_names = list(album_names)
        self.capture = ColumnCapture(backbone.unet)
        self.failed: dict[int, str] = {}
        self.strict_loading = False

    @property
    def num_albums(self) -> int:
        return len(self.album_names)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Without the frozen backbone: it is loaded from its own folder."""
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith("backbone.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["failed_albums"] = {str(album): reason for album, reason in self.failed.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.failed = {int(album): reason for album, reason in checkpoint["failed_albums"].items()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": [self.personalization.tokens], "lr": self.config.token_phase.lr},
            {"params": self.personalization.adapter_parameters(), "lr": self.config.joint_phase.lr},
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=self.config.weight_decay)

    def on_train_batch_start(self, batch: BoothBatch, batch_index: int) -> None:
        step, tokens, joint = self.global_step, self.config.token_phase, self.config.joint_phase
        in_joint = step >= tokens.steps
        for parameter in self.personalization.adapter_parameters():
            parameter.requires_grad_(in_joint)
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "param_groups")
        rate = joint.rate(step - tokens.steps) if in_joint else tokens.rate(step)
        optimizer.param_groups[0]["lr"] = rate * (self.config.token_lr_in_joint if in_joint else 1.0)
        optimizer.param_groups[1]["lr"] = rate

    def losses(self, batch: BoothBatch) -> dict[str, Tensor]:
        """The weighted losses by name, each (K,): reconstruction, attention, prior, synthetic_rgb, synthetic_normal."""
        config, backbone, albums = self.config, self.backbone, batch["albums"]
        with torch.no_grad():
            latents = backbone.encode_images(batch["images"])
        noisy = backbone.add_noise(latents, batch["noise"], batch["timesteps"])
        self.capture.start(batch["columns"] if config.weight_attention > 0 else None)
        with self.personalization.routing.rows(albums):
            text = backbone.encode_text(batch["input_ids"])
            output = backbone.unet(noisy, batch["timesteps"], encoder_hidden_states=text).sample.float()
        target, weight = self._target(latents, batch["noise"], batch["timesteps"])
        error = masked_diffusion_loss(output, target, batch["masks"], weight)

        def mean_of(kind: RowKind, values: Tensor) -> Tensor:
            rows = (batch["kinds"] == kind).nonzero().squeeze(1)
            return per_album_mean(values[rows], albums[rows], self.num_albums)

        terms = {"reconstruction": config.weight_reconstruction * mean_of(RowKind.PHOTO, error)}
        if config.weight_attention > 0:
            present = batch["columns"] >= 0
            attention = attention_loss(self.capture.maps(), batch["asset_masks"], present)
            terms["attention"] = config.weight_attention * mean_of(RowKind.PHOTO, attention)
            self.capture.start(None)
        terms["prior"] = config.weight_prior * mean_of(RowKind.PRIOR_SAMPLE, error)
        terms["synthetic_rgb"] = config.weight_synthetic * mean_of(RowKind.SYNTHETIC_RGB, error)
        terms["synthetic_normal"] = config.weight_synthetic * mean_of(RowKind.SYNTHETIC_NORMAL, error)
        return terms

    def _target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """What the UNet's output is compared with (B, C, h, h), and the weight of each row's error (B,)."""
        alphas = self.backbone.alphas_cumprod[timesteps]
        prediction_type = self.backbone.prediction_type
        if self.config.min_snr_gamma > 0:
            weight = min_snr_weight(alphas, self.config.min_snr_gamma, prediction_type)
        else:
            weight = clean_sample_weight(alphas) if prediction_type == "sample" else torch.ones_like(alphas)
        match prediction_type:
            case "epsilon":
                return noise, weight
            case "sample":
                return latents, weight
            case _:
                signal, sigma = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
                return signal * noise - sigma * latents, weight

    def training_step(self, batch: BoothBatch, batch_index: int) -> Tensor:
        terms = self.losses(batch)
        per_album = torch.stack(list(terms.values())).sum(0)
        for album in range(self.num_albums):
            if album not in self.failed and not math.isfinite(per_album[album].item()):
                self.failed[album] = f"the training loss became {per_album[album].item()} at step {self.global_step}"
        alive = [album for album in range(self.num_albums) if album not in self.failed]
        logged = {name: value[alive].mean().detach() for name, value in terms.items()} if alive else {}
        if self.num_albums > 1:
            logged |= {f"album/{self.album_names[album]}": per_album[album].detach() for album in alive}
        total = per_album[alive].sum()
        self.log_dict({"loss": total.detach() / max(1, len(alive)), **logged})
        return total

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip to `max_grad_norm` within each album, and silence failed albums."""
        clip_per_album(
            [p for group in optimizer.param_groups for p in group["params"]], self.config.max_grad_norm, self.failed
        )


def clip_per_album(
    parameters: Sequence[nn.Parameter], max_norm: float, failed: Sequence[int] | dict[int, str]
) -> Tensor:
    """Scale the gradients of stacked parameters (K, ...) so that each album's total norm is at most `max_norm`.

    Gradients of `failed` albums become zero, whatever they were. Returns the norms before clipping (K,).
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient in gradients:
        for album in failed:
            gradient[album] = 0
    squares = torch.stack([gradient.flatten(1).float().square().sum(1) for gradient in gradients]).sum(0)
    norms = squares.sqrt()
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)).to(gradient.dtype))
    return norms
