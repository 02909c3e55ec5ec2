"""Where the colour field starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modules.avatar import TextureStage
from modules.avatar_config import TextureConfig
from tests.tiny_backbone import write_tiny_backbone
from tests.unit.modules.test_avatar import TEXTURE, common, surface, train

RED = torch.tensor([0.8, 0.1, 0.2])


def upper(points: torch.Tensor) -> torch.Tensor:
    return points[:, 1] > points[:, 1].median()


def first() -> torch.Tensor:
    """Red in the upper half; unknown below."""
    vertices, _ = surface()
    return torch.where(upper(vertices)[:, None], RED, torch.nan)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


def stage(folder: Path, names: str = "a", firsts: int = 1) -> TextureStage:
    first_colors = [first()] * firsts + [None] * (len(names) - firsts)
    meshes = [surface()] * len(names)
    return TextureStage(**common(folder, names), config=TEXTURE, meshes=meshes, first_colors=first_colors)


def found(module: TextureStage, subject: int = 0) -> torch.Tensor:
    return module.detached_color(subject, surface()[0])


def test_the_field_starts_from_the_albums_colours_and_grey(backbone: Path) -> None:
    module, above = stage(backbone, "aW"), upper(surface()[0])
    assert float((found(module)[above] - RED).abs().mean()) < 0.08
    assert float((found(module)[~above] - 0.5).abs().mean()) < 0.08
    # The words alone know no colours of an album.
    assert float((found(module, 1) - 0.5).abs().max()) < 1e-6


def test_a_result_does_not_depend_on_the_pack(backbone: Path, tmp_path: Path) -> None:
    alone = found(train(stage(backbone, "a"), tmp_path / "alone"))
    packed = found(train(stage(backbone, "ab", 2), tmp_path / "packed"))
    torch.testing.assert_close(alone, packed, atol=1e-4, rtol=1e-3)


def test_a_share_lies_between_nothing_and_all() -> None:
    with pytest.raises(ValueError, match="album_share must lie"):
        TextureConfig(album_share=1.5)
