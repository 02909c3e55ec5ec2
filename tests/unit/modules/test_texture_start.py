"""Where the colour field starts, and what of the album's colours stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from modules.avatar import TextureStage
from modules.avatar_config import TextureConfig
from modules.geometry.fields import FirstColors
from tests.tiny_backbone import write_tiny_backbone
from tests.unit.modules.test_avatar import TEXTURE, common, surface, train

RED = torch.tensor([0.8, 0.1, 0.2])


def upper(points: torch.Tensor) -> torch.Tensor:
    return points[:, 1] > points[:, 1].median()


def first() -> FirstColors:
    """Red in the upper half, which is plain; unknown below."""
    vertices, _ = surface()
    colors = torch.where(upper(vertices)[:, None], RED, torch.nan)
    return FirstColors(colors, upper(vertices))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


def stage(folder: Path, share: float, names: str = "a", firsts: int = 1) -> TextureStage:
    config = dataclasses.replace(TEXTURE, album_share=share)
    first_colors = [first()] * firsts + [None] * (len(names) - firsts)
    meshes = [surface()] * len(names)
    return TextureStage(**common(folder, names), config=config, meshes=meshes, first_colors=first_colors)


def found(module: TextureStage, subject: int = 0) -> torch.Tensor:
    return module.detached_color(subject, surface()[0])


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_the_field_starts_from_the_albums_colours_and_grey(backbone: Path, share: float) -> None:
    colors, above = found(stage(backbone, share)), upper(surface()[0])
    assert float((colors[above] - RED).abs().mean()) < 0.08
    assert float((colors[~above] - 0.5).abs().mean()) < 0.08


def test_a_share_of_the_album_stays_whatever_the_model_says(backbone: Path) -> None:
    above = upper(surface()[0])
    moved = {}
    for share in (0.0, 0.9):
        module = stage(backbone, share)
        before = found(module)
        with torch.no_grad():
            for parameter in module.fields.parameters():
                parameter -= 3.0
        moved[share] = (found(module) - before).abs().mean(1)
    assert float(moved[0.9][above].mean()) < 0.35 * float(moved[0.0][above].mean())
    assert float(moved[0.9][~above].mean()) > 0.7 * float(moved[0.0][~above].mean())


def test_anchors_are_not_trained_and_the_baseline_has_none(backbone: Path, tmp_path: Path) -> None:
    module = stage(backbone, 0.9, "aW")
    assert list(module.anchors) == ["0"]
    anchored = {name: value.clone() for name, value in module.anchors.state_dict().items()}
    before = found(module)
    train(module, tmp_path / "out")
    assert not torch.equal(found(module), before)
    assert all(torch.equal(value, anchored[name]) for name, value in module.anchors.state_dict().items())
    assert float((stage(backbone, 0.9, "aW").detached_color(1, surface()[0]) - 0.5).abs().max()) < 1e-6


def test_a_result_does_not_depend_on_the_pack(backbone: Path, tmp_path: Path) -> None:
    alone = found(train(stage(backbone, 0.9, "a"), tmp_path / "alone"))
    packed = found(train(stage(backbone, 0.9, "ab", 2), tmp_path / "packed"))
    torch.testing.assert_close(alone, packed, atol=1e-4, rtol=1e-3)


def test_a_share_needs_the_albums_colours() -> None:
    with pytest.raises(ValueError, match="album_share needs"):
        TextureConfig(album_share=0.5, start="grey")
    with pytest.raises(ValueError, match="album_share must lie"):
        TextureConfig(album_share=1.5)
