"""Small prepared albums with known content."""

from __future__ import annotations

import numpy as np

from datamodules.assets import PreparedAlbum

ASSETS = ("face", "t-shirt", "trousers")


def tiny_album(name: str = "a", *, seed: int = 0, num_photos: int = 3, size: int = 32) -> PreparedAlbum:
    """A figure of three stacked colour blocks (face, t-shirt, trousers) on noise; the right fifth is padding."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (num_photos, size, size, 3)).astype(np.uint8)
    masks = np.zeros((num_photos, 3, size, size), bool)
    third = size // 4
    for asset in range(3):
        rows = slice(third // 2 + asset * third, third // 2 + (asset + 1) * third)
        masks[:, asset, rows, size // 4 : size // 2] = True
        images[:, rows, size // 4 : size // 2] = rng.integers(0, 255, 3).astype(np.uint8)
    valid = np.ones((num_photos, size, size), bool)
    valid[:, :, -size // 5 :] = False
    person = masks.any(1)
    person[:, size // 2, size // 2 : size // 2 + 2] = True
    return PreparedAlbum(
        name=name,
        gender="woman",
        content_hash=f"{name}-{seed}",
        asset_names=ASSETS,
        asset_words=("oval", "", "long"),
        stems=tuple(f"{index:02d}" for index in range(num_photos)),
        views=tuple(("front left", "back", None)[index % 3] for index in range(num_photos)),
        framings=("full body",) * num_photos,
        poses=("standing",) * num_photos,
        backgrounds=("random",) * num_photos,
        images=images,
        valid=valid,
        masks=masks,
        person=person,
    )
