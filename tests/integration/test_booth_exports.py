"""Stage 1 leaves what other programs can load beside its own tensors."""

from __future__ import annotations

import math

import numpy as np
from safetensors.numpy import load_file

from tests.integration.smoke import personalization
from trainer.config import load_config
from trainer.pipeline import AlbumResult


def test_lora_and_embeddings_are_those_of_the_personalization(smoke_run: list[AlbumResult]) -> None:
    for result in smoke_run:
        booth = result.folder / "booth"
        own = personalization(result.folder)
        embeddings = load_file(booth / "learned_embeds.safetensors")
        assert list(embeddings) == [f"<asset{index}>" for index in range(len(own["tokens"]))]
        np.testing.assert_array_equal(np.stack(list(embeddings.values())), own["tokens"])
        lora = load_file(booth / "lora.safetensors")
        assert len(lora) == len(own) - 1
        adapter = load_config(None, ["booth.adapter.rank=2"]).booth.adapter
        scale = adapter.alpha / math.sqrt(adapter.rank)
        for name in (name for name in own if name.endswith(".up")):
            part, key, _ = name.split(".")
            layer = f"{part.removesuffix('_adapters').replace('text', 'text_encoder')}.{key.replace('/', '.')}"
            np.testing.assert_allclose(lora[f"{layer}.lora_B.weight"], own[name] * scale, rtol=1e-6)
            np.testing.assert_array_equal(lora[f"{layer}.lora_A.weight"], own[f"{part}.{key}.down"])
