"""A backbone of random weights, albums of two synthetic people, and one run that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.studio.album_writer import write_album
from datamodules.studio.person import HELD_OUT_SEED
from tests.integration.smoke import smoke_overrides
from tests.tiny_backbone import write_tiny_backbone
from trainer.config import load_config
from trainer.pipeline import AlbumResult, run_pack


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def albums(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """With ground truth: a woman of five assets in five photos, and a man of four assets in four."""
    folder = tmp_path_factory.mktemp("albums")
    return [
        write_album(folder / "woman", seed=HELD_OUT_SEED + 3, num_photos=5, resolution=96),
        write_album(folder / "man", seed=HELD_OUT_SEED + 10, num_photos=4, resolution=96),
    ]


@pytest.fixture(scope="session")
def smoke_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoke") / "out"


@pytest.fixture(scope="session")
def smoke_run(albums: list[Path], backbone: Path, smoke_out: Path) -> list[AlbumResult]:
    """Both albums as one pack, all stages. Look at `smoke_out`, but change only copies of it."""
    return run_pack(albums, load_config(None, smoke_overrides(smoke_out, backbone)))
