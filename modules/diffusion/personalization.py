"""What a pack of K albums adds to the frozen backbone: placeholder embeddings and stacked low-rank adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from modules.diffusion.adapters import TEXT_TARGETS, UNET_TARGETS, StackedAdapter, attach_adapters
from modules.diffusion.backbone import Backbone
from modules.diffusion.config import AdapterConfig
from modules.diffusion.routing import AlbumRouting
from modules.diffusion.tokens import PlaceholderEmbedding, add_placeholders, class_embedding


class Personalization(nn.Module):
    """Tokens (K, P, D) and adapters of K albums, attached to a backbone.

    Run the backbone inside `personalization.routing.rows(albums)` to personalise its rows.
    """

    def __init__(self, backbone: Backbone, config: AdapterConfig, *, num_albums: int, num_tokens: int) -> None:
        super().__init__()
        self.num_albums = num_albums
        self.num_tokens = num_tokens
        self.routing = AlbumRouting()
        self.first_id = add_placeholders(backbone.tokenizer, num_tokens)
        table = backbone.text_encoder.get_input_embeddings()
        self.tokens = nn.Parameter(torch.zeros(num_albums, num_tokens, table.weight.shape[1]))
        self._table = [table]
        backbone.text_encoder.set_input_embeddings(
            PlaceholderEmbedding(table, self.first_id, self.tokens, self.routing)
        )
        adapters = attach_adapters(
            backbone.unet, UNET_TARGETS, self.routing, num_albums=num_albums, rank=config.rank, alpha=config.alpha
        )
        self.unet_adapters = nn.ModuleDict({_key(name): adapter for name, adapter in adapters.items()})
        self.text_adapters = nn.ModuleDict()
        if config.text_encoder:
            adapters = attach_adapters(
                backbone.text_encoder,
                TEXT_TARGETS,
                self.routing,
                num_albums=num_albums,
                rank=config.rank,
                alpha=config.alpha,
            )
            self.text_adapters.update({_key(name): adapter for name, adapter in adapters.items()})

    def reset_album(self, album: int, class_words: Sequence[str], backbone: Backbone, seed: int) -> None:
        """Start one album: each token from its class word's embedding, adapters at no effect.

        class_words: one per asset, at most `num_tokens`. seed: the album's own, whatever pack it is in.
        """
        if len(class_words) > self.num_tokens:
            raise ValueError(f"album {album} has {len(class_words)} assets; this pack has {self.num_tokens} tokens")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.tokens[album].zero_()
            for index, words in enumerate(class_words):
                self.tokens[album, index] = class_embedding(backbone.tokenizer, self._table[0], words)
        for adapter in self.adapters():
            adapter.reset(album, generator)

    def adapters(self) -> list[StackedAdapter]:
        return cast("list[StackedAdapter]", [*self.unet_adapters.values(), *self.text_adapters.values()])

    def adapter_parameters(self) -> list[nn.Parameter]:
        return [parameter for adapter in self.adapters() for parameter in adapter.parameters()]

    def album_state(self, album: int) -> dict[str, Tensor]:
        """The tensors of one album without the K axis: what is stored as its personalisation."""
        return {name: value[album].detach().cpu().clone() for name, value in self.state_dict().items()}

    def load_album_state(self, album: int, state: dict[str, Tensor]) -> None:
        """Put one album's tensors in place. Raises ValueError when names or shapes differ."""
        own = self.state_dict()
        if set(own) != set(state):
            raise ValueError(f"the personalisation's tensors differ: {sorted(set(own) ^ set(state))[:3]}")
        with torch.no_grad():
            for name, value in state.items():
                if name == "tokens":
                    own[name][album, : len(value)].copy_(value)
                else:
                    own[name][album].copy_(value)


def _key(name: str) -> str:
    # ModuleDict keys must not contain dots.
    return name.replace(".", "/")
