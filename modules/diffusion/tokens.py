"""Placeholder tokens `<asset0>`, `<asset1>`, ... whose embeddings belong to albums.

Shapes: K albums, P placeholders, D text features, B rows of L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.diffusion.routing import AlbumRouting


def placeholder(index: int) -> str:
    """The token that stands for an album's asset."""
    return f"<asset{index}>"


def add_placeholders(tokenizer: object, count: int) -> int:
    """Teach the tokenizer `<asset0>` .. `<asset{count-1}>`, as far as it lacks them; returns the id of the first."""
    names = [placeholder(index) for index in range(count)]
    tokenizer.add_tokens(names)  # type: ignore[attr-defined]
    ids: list[int] = tokenizer.convert_tokens_to_ids(names)  # type: ignore[attr-defined]
    if ids != list(range(ids[0], ids[0] + count)):
        raise ValueError(f"placeholder tokens must have consecutive ids, found {ids}")
    return ids[0]


class PlaceholderEmbedding(nn.Module):
    """The text encoder's embedding: known ids from the frozen table, placeholders from the row's album."""

    def __init__(self, table: nn.Embedding, first_id: int, embeddings: nn.Parameter, routing: AlbumRouting) -> None:
        super().__init__()
        self.table = table
        self.first_id = first_id
        # Not registered here: the albums' embeddings (K, P, D) belong to the personalisation.
        self.__dict__["embeddings"] = embeddings
        self.routing = routing

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        known = self.table(input_ids.clamp(max=self.first_id - 1))
        albums = self.routing.albums
        if albums is None:
            return known
        is_placeholder = (input_ids >= self.first_id) & (albums >= 0).unsqueeze(1)
        own = self.__dict__["embeddings"][albums.clamp(min=0).unsqueeze(1), (input_ids - self.first_id).clamp(min=0)]
        return torch.where(is_placeholder.unsqueeze(-1), own.to(known.dtype), known)


def class_embedding(tokenizer: object, table: nn.Embedding, words: str) -> Tensor:
    """The mean token embedding (D,) of a class word such as "shirt": where a placeholder starts."""
    ids = tokenizer(words, add_special_tokens=False).input_ids  # type: ignore[operator]
    if not ids:
        raise ValueError(f"the class word {words!r} has no tokens")
    return table.weight[torch.tensor(ids, device=table.weight.device)].mean(0).detach().clone()
