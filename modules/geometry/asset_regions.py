"""Which asset each point of a distilled surface shows, and the album's colours laid over it.

A weak model paints garments where they belong, but with soft borders and in colours that are dragged towards what
surrounds them. The album knows the colours, the body says roughly where an asset is worn, and the painted colours say
where one ends and the next begins. Each point is given to the asset for which

    |painted colour - nearest colour of the asset| + distance from the parts of the body that it covers

is least, and which its surroundings agree on: a Potts model on a thinned cloud of points, solved by mean field
(Krähenbühl and Koltun 2011, with a Gaussian neighbourhood in space only).

Shapes: P points, A assets, C colours of a palette. Colours are sRGB in [0, 1], lengths metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.special import softmax
from skimage.color import rgb2lab
from torch import Tensor

from modules.geometry.body import BodyTemplate
from modules.geometry.body_parts import BODY_PARTS, BodyPart, parts_of_body

# Light on a photo changes lightness more than hue.
_LAB_WEIGHTS = (0.6, 1.0, 1.0)
# A difference of colour (weighted Lab) and a distance that count as one, and the most that a colour counts for: a weak
# model paints some places in no colour of the person's.
_LAB_UNIT, _REACH_M, _MOST_WRONG = 15.0, 0.1, 3.0
# What it costs to be an asset whose colour, or whose place, nobody knows.
_UNKNOWN_COST = 1.0
# How much more the body says where it decides alone.
_CERTAINTY = 4.0
_SPACING_M, _NEIGHBOURHOOD_M = 0.008, 0.02
_AGREEMENT, _ROUNDS, _SMOOTHINGS = 3.0, 15, 2
# How sharp the border between two regions is: memberships are raised to this power.
_SHARPNESS = 8.0
_NEAREST = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class AssetColors:
    """What is known of one asset.

    parts: of the body that it covers; none when nobody knows, and it may be anywhere at a fixed cost. anywhere: the
    same cost is the most that a distance from its parts can add. sure: those of its parts that are too small for a
    model to paint, or known to be covered by nothing else: there the body decides, and painted colours do not count.
    albedo: (3,) its mean colour without shading; None when it is unknown, and its region keeps what was painted.
    palette: (C, 3) colours that it shows in photos. rarity: what it costs a point to belong to it, at least 0, because
    another asset that covers the same parts is seen more: a shirt below a jacket.
    """

    name: str
    parts: tuple[BodyPart, ...]
    albedo: np.ndarray | None
    palette: np.ndarray
    sure: tuple[BodyPart, ...] = ()
    anywhere: bool = False
    rarity: float = 0.0


class RegionColors:
    """The album's colours over painted ones: `share` of an asset's albedo in its region, and the rest as painted."""

    def __init__(
        self, points: np.ndarray, memberships: np.ndarray, assets: Sequence[AssetColors], share: float
    ) -> None:
        """points: (P, 3) metres. memberships: (P, A) of the assets, rows sum to 1."""
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie in [0, 1], found {share}")
        if memberships.shape != (len(points), len(assets)):
            raise ValueError(f"memberships must be ({len(points)}, {len(assets)}), found {memberships.shape}")
        self._tree, self._memberships = cKDTree(points), memberships
        self._known = np.array([asset.albedo is not None for asset in assets])
        self._albedo = np.array([np.zeros(3) if asset.albedo is None else asset.albedo for asset in assets])
        self.share = share

    def memberships(self, points: np.ndarray) -> np.ndarray:
        """(N, A) for points (N, 3) in metres: those of the nearest points of the cloud, weighted and sharpened."""
        distance, nearest = self._tree.query(points, k=min(_NEAREST, self._tree.n))
        shape = (len(points), -1)
        weight = (distance.reshape(shape) + 1e-4) ** -2
        found = (self._memberships[nearest.reshape(shape)] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
        sharp = (found / found.max(1, keepdims=True)) ** _SHARPNESS
        return sharp / sharp.sum(1, keepdims=True)

    def __call__(self, points: Tensor, colors: Tensor) -> Tensor:
        """Points (N, 3) and their painted colours (N, 3) to colours (N, 3); without a gradient by the points."""
        if not len(points):
            return colors
        kept = self.share * self.memberships(points.detach().cpu().numpy()) * self._known
        own = torch.from_numpy((kept @ self._albedo).astype(np.float32)).to(colors)
        return own + colors * torch.from_numpy(1 - kept.sum(1, keepdims=True)).to(colors)


def region_colors(
    points: np.ndarray, colors: np.ndarray, body: BodyTemplate, assets: Sequence[AssetColors], share: float
) -> RegionColors | None:
    """Lay an album's colours over a painted surface.

    points: (P, 3) on the surface, at least as dense as a centimetre. colors: (P, 3) painted there. body: the template
    that the surface grew from, in the same frame. None when there is no asset, or no point.
    """
    if not assets or not len(points):
        return None
    points, colors = _thinned(points, colors)
    cost = _costs(points, colors, body, assets)
    return RegionColors(points, _agreed(points, cost), assets, share)


def _thinned(points: np.ndarray, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One point for each cube of `_SPACING_M`: how fine a mesh is must not decide how much a place counts."""
    cells = np.floor(points / _SPACING_M).astype(np.int64)
    _, cell, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), 6))
    np.add.at(total, cell.reshape(-1), np.concatenate([points, colors], 1))
    mean = total / count[:, None]
    return mean[:, :3], mean[:, 3:]


def _costs(points: np.ndarray, colors: np.ndarray, body: BodyTemplate, assets: Sequence[AssetColors]) -> np.ndarray:
    """(P, A) what it costs a point to belong to each asset, before it looks around."""
    parts = parts_of_body(body)
    from_body, nearest = cKDTree(body.vertices).query(points)
    painted = _lab(colors)
    place, colour = [], []
    sure = {part for asset in assets for part in asset.sure}
    for asset in assets:
        covered = np.isin(parts, [BODY_PARTS.index(part) for part in asset.parts])
        cost = np.full(len(points), _UNKNOWN_COST)
        if covered.any():
            # A skirt stands off the body: what counts is how much farther its own parts are than any.
            along = cKDTree(body.vertices[covered]).query(points)[0] - from_body
            away = (along / _REACH_M) ** 2 + asset.rarity
            cost = np.minimum(away, cost) if asset.anywhere else away
        place.append(cost)
        if asset.albedo is None:
            colour.append(np.full(len(points), _UNKNOWN_COST))
        elif asset.parts and sure.issuperset(asset.parts) and not asset.anywhere:
            # What a model cannot paint where it is, it does not paint beside it either: light ankles are no shoes.
            colour.append(np.full(len(points), _MOST_WRONG))
        else:
            apart = np.linalg.norm(painted[:, None] - _lab(asset.palette)[None], axis=2).min(1)
            # Grey is as near to skin as to anything: who claims a place without a reason must look like it.
            strictness = 2 if asset.anywhere or not asset.parts else 1
            colour.append(np.minimum(strictness * apart / _LAB_UNIT, _MOST_WRONG))
    places, colours = np.array(place).T, np.array(colour).T
    decided = np.isin(parts[nearest], [BODY_PARTS.index(part) for part in sure])
    places[decided] *= _CERTAINTY
    colours[decided] = 0
    return places + colours


def _agreed(points: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Memberships (P, A) whose rows sum to 1, soft within `_NEIGHBOURHOOD_M` of a border."""
    around = _neighbourhood(points)
    belief = softmax(-cost, axis=1)
    for turn in range(_ROUNDS):
        belief = softmax((_AGREEMENT * (around @ belief) - cost) * (1 + turn / 5), axis=1)
    for _ in range(_SMOOTHINGS):
        belief = np.eye(cost.shape[1])[(around @ belief).argmax(1)]
    return around @ belief


def _neighbourhood(points: np.ndarray) -> sparse.csr_matrix:
    """(P, P) rows of weights that sum to 1: a Gaussian of the distance, cut at two standard deviations."""
    pairs = cKDTree(points).query_pairs(2 * _NEIGHBOURHOOD_M, output_type="ndarray")
    squared = ((points[pairs[:, 0]] - points[pairs[:, 1]]) ** 2).sum(1)
    weight = np.exp(-0.5 * squared / _NEIGHBOURHOOD_M**2)
    own = np.arange(len(points))
    rows, columns = np.concatenate([pairs[:, 0], pairs[:, 1], own]), np.concatenate([pairs[:, 1], pairs[:, 0], own])
    values = np.concatenate([weight, weight, np.ones(len(points))])
    matrix = sparse.csr_matrix((values, (rows, columns)), shape=(len(points), len(points)))
    return sparse.diags(1 / np.asarray(matrix.sum(1)).ravel()) @ matrix


def _lab(colors: np.ndarray) -> np.ndarray:
    return rgb2lab(np.clip(colors, 0, 1).reshape(-1, 1, 3)).reshape(-1, 3) * _LAB_WEIGHTS
