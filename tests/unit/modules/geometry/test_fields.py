from __future__ import annotations

import numpy as np
import pytest
import torch

from modules.geometry.fields import (
    ColorFieldConfig,
    DenseColorField,
    HashGridField,
    fit_colors,
    make_color_field,
)

LOWER, UPPER = np.array([-0.5, 0.0, -0.3]), np.array([0.5, 1.7, 0.3])
SMALL = {"num_levels": 4, "log2_table_size": 10, "base_resolution": 4, "max_resolution": 64, "hidden": 16}
KINDS = {
    "dense": ColorFieldConfig(kind="dense", cells_m=(0.4, 0.1)),
    "hash": ColorFieldConfig(kind="hash", **SMALL),
}


@pytest.fixture(params=["dense", "hash"])
def config(request) -> ColorFieldConfig:
    return KINDS[request.param]


def some_points(count: int = 200) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(LOWER, UPPER, (count, 3)).astype(np.float32))


def fit(field, points, target, album, steps=150):
    optimizer = torch.optim.Adam(field.parameters(), 0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (field(points, album) - target).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_the_factory_makes_the_configured_kind():
    assert isinstance(make_color_field(KINDS["dense"], 1, LOWER, UPPER), DenseColorField)
    assert isinstance(make_color_field(KINDS["hash"], 1, LOWER, UPPER), HashGridField)


def test_parameters_are_stacked_and_colours_lie_in_range(config):
    field = make_color_field(config, 3, LOWER, UPPER)
    assert all(parameter.shape[0] == 3 for parameter in field.parameters())
    colors = field(some_points(), 2)
    assert colors.shape == (200, 3)
    assert (colors > 0).all()
    assert (colors < 1).all()
    assert torch.allclose(colors, torch.full_like(colors, 0.5), atol=0.01)


def test_a_smooth_colour_can_be_learned(config):
    points = some_points(400)
    target = 0.5 + 0.4 * torch.sin(points * 4)
    assert fit(make_color_field(config, 1, LOWER, UPPER), points, target, 0) < 2e-3


def test_albums_do_not_touch_each_other(config):
    field = make_color_field(config, 3, LOWER, UPPER)
    field(some_points(), 1).square().sum().backward()
    for parameter in field.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].abs().sum() > 0
        assert not parameter.grad[[0, 2]].any()


def test_an_album_learns_the_same_alone_and_in_a_pack(config):
    points = some_points()
    target = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    alone = make_color_field(config, 1, LOWER, UPPER, seeds=[7])
    pack = make_color_field(config, 3, LOWER, UPPER, seeds=[3, 7, 5])
    fit(alone, points, target, 0, steps=20)
    fit(pack, points, target, 1, steps=20)
    assert torch.allclose(alone(points, 0), pack(points, 1), atol=1e-5)


def test_points_outside_the_box_see_its_border(config):
    field = make_color_field(config, 1, LOWER, UPPER)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    outside, border = torch.tensor([[0.1, 5.0, 0.2]]), torch.tensor([[0.1, 1.7, 0.2]])
    assert torch.allclose(field(outside, 0), field(border, 0), atol=1e-5)


def test_no_points_give_no_colours(config):
    assert make_color_field(config, 1, LOWER, UPPER)(torch.zeros(0, 3), 0).shape == (0, 3)


def test_the_dense_grid_is_trilinear():
    field = DenseColorField(1, np.zeros(3), np.ones(3), ColorFieldConfig(cells_m=(1.0,)))
    (grid,) = field.grids
    with torch.no_grad():
        grid[0, 0] = torch.arange(8.0).view(2, 2, 2)  # z, y, x
    points = torch.tensor([[0.25, 0.5, 0.75], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    expected = points @ torch.tensor([1.0, 2.0, 4.0])
    assert torch.allclose(torch.logit(field(points, 0)[:, 0]), expected, atol=1e-4)


def test_the_hash_grid_is_continuous_across_cells():
    field = HashGridField(1, np.zeros(3), np.ones(3), ColorFieldConfig(kind="hash", **SMALL))
    with torch.no_grad():
        field.tables.normal_(generator=torch.Generator().manual_seed(0))
    edge = torch.tensor([[0.5, 0.25, 0.75]])
    assert torch.allclose(field(edge - 1e-6, 0), field(edge + 1e-6, 0), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"kind": "mlp"}, "kind"),
        ({"cells_m": ()}, "cells_m"),
        ({"cells_m": (0.1, 0.0)}, "cells_m"),
        ({"num_levels": 0}, "num_levels"),
        ({"hidden": 0}, "hidden"),
        ({"max_resolution": 8}, "max_resolution"),
        ({"log2_table_size": 30}, "log2_table_size"),
    ],
)
def test_bad_colour_settings_are_refused(changes, name):
    with pytest.raises(ValueError, match=name):
        ColorFieldConfig(**changes)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_albums"):
        DenseColorField(0, LOWER, UPPER)
    with pytest.raises(ValueError, match="lower_m"):
        DenseColorField(1, UPPER, LOWER)
    with pytest.raises(ValueError, match="seeds"):
        HashGridField(2, LOWER, UPPER, KINDS["hash"], seeds=[1])


@pytest.mark.parametrize("kind", ["dense", "hash"])
def test_a_field_is_brought_to_colours_before_it_is_trained(kind: str) -> None:
    config = ColorFieldConfig(kind=kind, log2_table_size=12, num_levels=6, max_resolution=64)  # type: ignore[arg-type]
    field = make_color_field(config, 1, np.zeros(3), np.ones(3), seeds=[3])
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0))
    colors = torch.where(points[:, :1] > 0.5, torch.tensor([[0.8, 0.1, 0.2]]), torch.tensor([[0.1, 0.3, 0.9]]))
    colors[points[:, 1] > 0.8] = torch.nan
    fit_colors(field, points, colors)
    with torch.no_grad():
        found = field(points, 0)
    inner = (points[:, 0] - 0.5).abs() > 0.1
    known = inner & (points[:, 1] < 0.7)
    unknown = inner & (points[:, 1] > 0.9)
    assert float((found - colors)[known].abs().mean()) < 0.05
    assert float((found[unknown] - 0.5).abs().mean()) < 0.05
    assert all(parameter.grad is None for parameter in field.parameters())
    again = make_color_field(config, 1, np.zeros(3), np.ones(3), seeds=[3])
    fit_colors(again, points, colors)
    with torch.no_grad():
        torch.testing.assert_close(again(points, 0), found, rtol=0, atol=0)
