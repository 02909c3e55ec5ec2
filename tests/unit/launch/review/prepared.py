"""A prepared album of a few pixels, as a finished stage leaves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datamodules.album import SetAside
from datamodules.assets import PreparedAlbum, save_assets
from launch.review.page import STAGE

HOSTILE = "<img src=x onerror=document.title=1>"


def write_prepared(
    folder: Path, *, assets: tuple[str, ...] = ("face", "shirt", "cap"), side: int = 32
) -> PreparedAlbum:
    """Three photos; the third has no mask of the last asset. Masks are stripes from the top."""
    stems = ("IMG_0001", "IMG_0002", HOSTILE)
    rng = np.random.default_rng(0)
    masks = np.zeros((len(stems), len(assets), side, side), bool)
    height = side // len(assets)
    for index in range(len(assets)):
        masks[:, index, index * height : (index + 1) * height, side // 4 : -side // 4] = True
    masks[-1, -1] = False
    album = PreparedAlbum(
        name="anna",
        gender="person",
        content_hash="0" * 64,
        asset_names=assets,
        asset_words=("", "long", "")[: len(assets)],
        stems=stems,
        views=("front", None, "back left"),
        framings=("head", None, "full body"),
        poses=(None, None, "standing"),
        backgrounds=(None,) * 3,
        images=rng.integers(60, 200, (len(stems), side, side, 3), dtype=np.uint8),
        valid=np.ones((len(stems), side, side), bool),
        masks=masks,
        person=masks.any(1),
        set_aside=(SetAside("IMG_0003.jpg", "is blurred <b>much</b>"),),
        notes=("a note",),
    )
    save_assets(album, folder / STAGE)
    return album
