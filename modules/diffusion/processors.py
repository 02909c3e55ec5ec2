"""Choice of attention kernels for a UNet."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0


def use_plain_attention(unet: UNet2DConditionModel) -> None:
    """Plain matrix products: on a CPU, at a few hundred tokens, they beat the fused kernel (measured)."""
    unet.set_attn_processor(AttnProcessor())


def use_fused_attention(unet: UNet2DConditionModel) -> None:
    """torch's scaled_dot_product_attention, the default on a GPU."""
    unet.set_attn_processor(AttnProcessor2_0())
