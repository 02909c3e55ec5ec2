"""The album's colours on a surface: where the texture stage starts, and what its result takes of them in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from datamodules.album_colours import album_colors, first_colors
from modules.geometry.asset_regions import region_colors
from modules.geometry.body import Gender, load_body
from modules.geometry.body_parts import parts_of_points
from modules.rendering.texture import field_colors

if TYPE_CHECKING:
    from datamodules.assets import PreparedAlbum
    from modules.avatar_config import TextureConfig

ColorFn = Callable[[Tensor], Tensor]


def start_colors(album: PreparedAlbum, vertices: Tensor, config: TextureConfig) -> Tensor | None:
    """(V, 3) of the album for a surface's vertices (V, 3), NaN where it tells none; None where grey is to be started
    from."""
    if config.start == "grey":
        return None
    parts = parts_of_points(vertices.numpy(), load_body(cast("Gender", album.gender)))
    return torch.from_numpy(first_colors(album_colors(album), parts)).float()


def finish_colors(album: PreparedAlbum, vertices: Tensor, color: ColorFn, config: TextureConfig) -> ColorFn:
    """The trained colours of a surface with vertices (V, 3), with the album's own laid over them.

    Perfect guidance needs no help, and a share of 0 wants none.
    """
    if not config.album_share or config.guidance.method == "truth":
        return color
    points = vertices.numpy().astype(np.float64)
    body = load_body(cast("Gender", album.gender))
    regions = region_colors(points, field_colors(color, points), body, album_colors(album), config.album_share)
    return color if regions is None else lambda places: regions(places, color(places))
