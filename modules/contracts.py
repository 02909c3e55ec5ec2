"""What modules consume: the batches that datamodules must deliver. The consumer owns the contract.

Shapes: B rows (album-major), C latent channels, h latent side, S image side, L tokens, A assets, s attention side.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypedDict

from torch import Tensor

from modules.diffusion.prompts import AssetPhrase


class RowKind(IntEnum):
    """What a row of a PuzzleBooth batch shows."""

    PHOTO = 0
    PRIOR_SAMPLE = 1
    SYNTHETIC_RGB = 2
    SYNTHETIC_NORMAL = 3


class BoothBatch(TypedDict):
    """One PuzzleBooth step for a pack.

    images: (B, 3, S, S) float32 in [0, 1]. input_ids: (B, L) int64. albums: (B,) int64 in [0, K).
    kinds: (B,) int64 RowKind. masks: (B, 1, h, h) float32, where the diffusion loss looks.
    columns: (B, A) int64, position of each sampled asset's token in the prompt, -1 for none.
    asset_masks: (B, A, s, s) float32. timesteps: (B,) int64. noise: (B, C, h, h) float32.
    """

    images: Tensor
    input_ids: Tensor
    albums: Tensor
    kinds: Tensor
    masks: Tensor
    columns: Tensor
    asset_masks: Tensor
    timesteps: Tensor
    noise: Tensor


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One person to distil: who speaks for them in prompts.

    album: index into the pack's personalisation, or NO_ALBUM to use the frozen model with words alone. seed: of the
    subject's own random draws, so that its result does not depend on its pack.
    """

    name: str
    gender: str
    assets: tuple[AssetPhrase, ...]
    album: int
    seed: int
