"""Small albums on disk, real files all through."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

AlbumWriter = Callable[..., Path]


@pytest.fixture
def write_album(tmp_path: Path) -> AlbumWriter:
    """Writes photos of 48 x 64 pixels with disjoint masks: a face above, a shirt below."""

    def write(
        stems: Sequence[str] = ("a", "b"),
        assets: Sequence[str] = ("face", "shirt"),
        description: Mapping[str, Any] | None = None,
        name: str = "anna",
    ) -> Path:
        folder = tmp_path / name
        (folder / "image").mkdir(parents=True)
        (folder / "mask").mkdir()
        rng = np.random.default_rng(0)
        for stem in stems:
            pixels = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "image" / f"{stem}.png")
            for index, asset in enumerate(assets):
                mask = np.zeros((64, 48), np.uint8)
                mask[4 + 20 * index : 20 + 20 * index, 10:38] = 255
                Image.fromarray(mask).save(folder / "mask" / f"{stem}_{asset}.png")
        if description is not None:
            (folder / "album.json").write_text(json.dumps(description))
        return folder

    return write
