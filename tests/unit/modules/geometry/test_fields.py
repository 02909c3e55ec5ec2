from __future__ import annotations

import numpy as np
import pytest
import torch

from modules.geometry.fields import (
    ColorFieldConfig,
    DenseColorField,
    HashGridField,
    SdfField,
    SdfFieldConfig,
    make_color_field,
)
from modules.geometry.marching_tets import extract_mesh
from modules.geometry.tet_grid import TetGrid, TetGridConfig, smooth_on_grid
from tests.numerics.shapes import icosphere

LOWER, UPPER = np.array([-0.5, 0.0, -0.3]), np.array([0.5, 1.7, 0.3])
SMALL = {"num_levels": 4, "log2_table_size": 10, "base_resolution": 4, "max_resolution": 64, "hidden": 16}
KINDS = {
    "dense": ColorFieldConfig(kind="dense", cells_m=(0.4, 0.1)),
    "hash": ColorFieldConfig(kind="hash", **SMALL),
}


@pytest.fixture(params=["dense", "hash"])
def config(request) -> ColorFieldConfig:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def grid() -> TetGrid:
    return TetGrid.around_mesh(*icosphere(3, 0.2), TetGridConfig(spacing_m=0.04, inner_m=-0.1))


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


def test_bad_arguments_are_refused(grid):
    with pytest.raises(ValueError, match="num_albums"):
        DenseColorField(0, LOWER, UPPER)
    with pytest.raises(ValueError, match="lower_m"):
        DenseColorField(1, UPPER, LOWER)
    with pytest.raises(ValueError, match="seeds"):
        HashGridField(2, LOWER, UPPER, KINDS["hash"], seeds=[1])
    with pytest.raises(ValueError, match="num_albums"):
        SdfField(grid, 0)


def test_an_sdf_field_starts_as_the_template(grid):
    field = SdfField(grid, 2)
    assert field.values.shape == (2, grid.num_vertices)
    vertices, _ = extract_mesh(grid, field(1))
    assert (vertices.norm(dim=1) - 0.2).abs().max() < 3e-3


def test_the_surface_may_grow_but_not_erode_by_more_than_the_limit(grid):
    field = SdfField(grid, 2, SdfFieldConfig(max_erosion_m=0.01))
    with torch.no_grad():
        field.values[0] += 1.0  # everything outside: the body would vanish
        field.values[1] -= 0.05
    grown = field.values[1].detach().clone()
    field.project_()
    eroded, _ = extract_mesh(grid, field(0))
    assert (eroded.norm(dim=1) - 0.19).abs().max() < 3e-3
    assert torch.allclose(field.values[1], grown.clamp(-0.15, 0.15))


def test_without_a_limit_only_the_range_holds(grid):
    field = SdfField(grid, 1, SdfFieldConfig(max_erosion_m=None, limit_m=0.1))
    with torch.no_grad():
        field.values += 1.0
    field.project_()
    assert torch.equal(field.values, torch.full_like(field.values, 0.1))


def test_gradients_are_smoothed_per_album(grid):
    field = SdfField(grid, 2, SdfFieldConfig(smoothing_rounds=3))
    field.smooth_gradient_()  # nothing to do yet
    assert field.values.grad is None
    weights = torch.randn(grid.num_vertices, generator=torch.Generator().manual_seed(0))
    (field(1) * weights).sum().backward()
    field.smooth_gradient_()
    assert field.values.grad is not None
    assert torch.allclose(field.values.grad[1], smooth_on_grid(grid, weights, 3), atol=1e-6)
    assert not field.values.grad[0].any()


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"max_erosion_m": -1.0}, "max_erosion_m"), ({"limit_m": 0.0}, "limit_m"), ({"smoothing_rounds": -1}, "smooth")],
)
def test_bad_sdf_settings_are_refused(changes, name):
    with pytest.raises(ValueError, match=name):
        SdfFieldConfig(**changes)
