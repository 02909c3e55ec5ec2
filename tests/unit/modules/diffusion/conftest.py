from __future__ import annotations

from pathlib import Path

import pytest

from modules.diffusion.backbone import Backbone
from tests.tiny_backbone import load_tiny_backbone, write_tiny_backbone


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture
def backbone(tiny_folder: Path) -> Backbone:
    return load_tiny_backbone(tiny_folder)
