"""Score distillation: the gradient with respect to clean latents, as pure functions of the model's noise predictions.

Shapes: every tensor (B, C, h, h); alphas_cumprod (B,) is alphabar_t of each row. The weight w(t) is either
DreamFusion's 1 - alphabar_t or "clean", sqrt((1 - alphabar_t) / alphabar_t), which turns differences of predicted noise
into differences of predicted clean latents and keeps high noise levels in proportion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modules.diffusion.config import Weighting


def distillation_weight(alphas_cumprod: Tensor, weighting: Weighting) -> Tensor:
    """w(t) as (B, 1, 1, 1)."""
    match weighting:
        case "dreamfusion":
            weight = 1 - alphas_cumprod
        case "clean":
            weight = ((1 - alphas_cumprod) / alphas_cumprod.clamp(min=1e-6)).sqrt()
        case _:
            raise ValueError(f"weighting must be dreamfusion or clean, found {weighting!r}")
    return weight.view(-1, 1, 1, 1)


def sds_gradient(
    noise_text: Tensor, noise_null: Tensor, noise: Tensor, *, guidance_scale: float, weight: Tensor
) -> Tensor:
    """Score distillation sampling (Poole et al. 2023, eq. 3): w (eps_cfg - eps).

    eps_cfg = eps_null + s (eps_text - eps_null).
    """
    guided = noise_null + guidance_scale * (noise_text - noise_null)
    return weight * (guided - noise)


def nfsd_gradient(
    noise_text: Tensor,
    noise_null: Tensor,
    noise_negative: Tensor,
    timesteps: Tensor,
    *,
    guidance_scale: float,
    weight: Tensor,
    threshold: int = 200,
) -> Tensor:
    """Noise-free score distillation (Katzir et al. 2024, eq. 8-10): w (s (eps_text - eps_null) + delta_D).

    delta_D is eps_null below `threshold` timesteps and eps_null - eps_negative from there on. timesteps: (B,).
    """
    low = (timesteps < threshold).view(-1, 1, 1, 1)
    delta = torch.where(low, noise_null, noise_null - noise_negative)
    return weight * (guidance_scale * (noise_text - noise_null) + delta)


def csd_gradient(noise_text: Tensor, noise_null: Tensor, *, weight: Tensor) -> Tensor:
    """Classifier score distillation (Yu et al. 2024): only the classifier part, w (eps_text - eps_null)."""
    return weight * (noise_text - noise_null)
