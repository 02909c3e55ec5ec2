"""One album's personalisation in the formats of others: a diffusers LoRA and textual-inversion embeddings.

A stock pipeline loads them without this package::

    pipeline = StableDiffusionPipeline.from_pretrained("weights/mini")
    pipeline.load_lora_weights("out/demo/booth", weight_name="lora.safetensors")
    embeddings = safetensors.torch.load_file("out/demo/booth/learned_embeds.safetensors")
    pipeline.load_textual_inversion([{token: value} for token, value in embeddings.items()])
    pipeline("a high-resolution DSLR colored image of a woman, <asset0> face, ...")
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from modules.diffusion.adapters import StackedAdapter
from modules.diffusion.personalization import Personalization
from modules.diffusion.tokens import placeholder


def lora_state(personalization: Personalization, album: int) -> dict[str, Tensor]:
    """The adapters of an album under diffusers' names: `unet.<layer>.lora_A.weight` (r, in), `.lora_B.weight` (out, r).

    The text encoder's begin with `text_encoder.`. The rank-stabilised scale alpha / sqrt(r) is multiplied into B, since
    readers that find no alpha take a scale of 1.
    """
    state: dict[str, Tensor] = {}
    parts: list[tuple[str, Mapping[str, StackedAdapter]]] = [
        ("unet", dict(personalization.unet_adapters.items())),  # type: ignore[arg-type]
        ("text_encoder", dict(personalization.text_adapters.items())),  # type: ignore[arg-type]
    ]
    for part, adapters in parts:
        for key, adapter in adapters.items():
            name = f"{part}.{key.replace('/', '.')}"
            state[f"{name}.lora_A.weight"] = adapter.down[album].detach().cpu().contiguous().clone()
            state[f"{name}.lora_B.weight"] = (adapter.up[album].detach() * adapter.scale).cpu().contiguous()
    return state


def embedding_state(personalization: Personalization, album: int, num_tokens: int) -> dict[str, Tensor]:
    """The embeddings (D,) of one album's first `num_tokens` placeholders, by token."""
    tokens = personalization.tokens[album, :num_tokens].detach().cpu()
    return {placeholder(index): tokens[index].clone() for index in range(len(tokens))}
