"""Geometry and texture stages: distil the personalised backbone into K avatars.

PuzzleAvatar (Xiu et al. 2024), section 3.2. Geometry is a signed distance field on a tetrahedral grid around the
A-posed body, guided through rendered normals. Texture is a colour field on the finished surface, guided through its
albedo. Subjects share UNet calls and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from modules.avatar_config import GeometryConfig, TextureConfig
from modules.geometry.fields import ColorField, fit_colors, make_color_field
from modules.geometry.marching_tets import crossed_tets, extract_mesh
from modules.geometry.regularizers import eikonal, laplacian_smoothness, normal_consistency
from modules.geometry.sdf_field import SdfField
from modules.geometry.surface_checks import check_surface, remove_floaters, template_area
from modules.geometry.tet_grid import TetGrid
from modules.guided_stage import GuidedStage, Shot
from modules.rendering.lights import draw_lights
from modules.rendering.shading import render_colors, render_normals


class GeometryStage(GuidedStage):
    """One signed distance field per subject, on the grid around its body template, guided through normals."""

    config: GeometryConfig

    def __init__(self, *args: Any, grids: Sequence[TetGrid], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.grids = list(grids)
        seeds = [subject.seed for subject in self.subjects]
        self.sdf = nn.ModuleList(
            SdfField(grid, 1, self.config.sdf, [seed]) for grid, seed in zip(grids, seeds, strict=True)
        )
        self.subdivisions = 0
        self._template_areas = [template_area(grid) for grid in grids]
        self._meshes: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def phases(self) -> list[tuple[int, int]]:
        bounds = [0, *(round(fraction * self.config.steps) for fraction in self.config.subdivide_at), self.config.steps]
        return list(pairwise(bounds))

    def enter(self, phase: int) -> None:
        super().enter(phase)
        while self.subdivisions < phase:
            for subject, field_ in enumerate(self.sdf_fields):
                sdf = field_(0).detach()
                grid, ends = self.grids[subject].to(sdf.device).subdivided(crossed_tets(self.grids[subject], sdf))
                self._replace(subject, grid, field_.subdivided(grid, ends))
            self.subdivisions += 1

    def _replace(self, subject: int, grid: TetGrid, field: SdfField) -> None:
        self.grids[subject], self.sdf[subject] = grid, field

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["subdivisions"] = self.subdivisions
        if self.subdivisions:
            # Where the surface was when they were made cannot be told from the weights.
            checkpoint["grids"] = [grid.state() for grid in self.grids]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.subdivisions = checkpoint["subdivisions"]
        # Before the weights are read, which have as many numbers as these lattices have vertices.
        for subject, state in enumerate(checkpoint.get("grids", ())):
            grid = TetGrid.from_state(state)
            self._replace(subject, grid, SdfField(grid, 1, self.config.sdf, [self.subjects[subject].seed]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [group for field_ in self.sdf_fields for group in field_.parameter_groups()]
        return torch.optim.Adam(groups, self.config.lr, betas=(0.9, 0.99))

    @property
    def sdf_fields(self) -> list[SdfField]:
        """The subjects' signed distance fields."""
        return cast("list[SdfField]", list(self.sdf))

    def mesh(self, subject: int) -> tuple[Tensor, Tensor]:
        """Vertices (V, 3) in metres, differentiable, and faces (T, 3) of one subject.

        Raises AlbumFailed where the surface is empty or can be no person's any more.
        """
        return self._surface(subject)[1:]

    def _surface(self, subject: int) -> tuple[Tensor, Tensor, Tensor]:
        field_ = self.sdf_fields[subject]
        field_.to_device_of_parameters()
        sdf = field_(0)
        grid = self.grids[subject] = self.grids[subject].to(sdf.device)
        vertices, faces = extract_mesh(grid, sdf, field_.offsets_of(0))
        check_surface(grid, sdf, vertices, faces, self._template_areas[subject])
        return sdf, vertices, faces

    def finished_mesh(self, subject: int) -> tuple[np.ndarray, np.ndarray]:
        """`mesh` without small loose parts, vertices (V, 3) float32 and faces (T, 3) int32. Raises AlbumFailed."""
        with torch.no_grad():
            vertices, faces = (part.cpu().numpy() for part in self.mesh(subject))
        return remove_floaters(vertices.astype(np.float32), faces.astype(np.int32), self.config.least_part)

    def render(self, subject: int, shots: Sequence[Shot], resolution: int) -> Tensor:
        _, vertices, faces = self._meshes[subject] = self._surface(subject)
        return render_normals(self.rasterizer, vertices, faces, [shot.camera for shot in shots], resolution)

    def regularization(self, subject: int) -> Tensor:
        sdf, vertices, faces = self._meshes.pop(subject)
        config, total = self.config, torch.zeros((), device=sdf.device)
        if config.weight_laplacian > 0:
            total = total + config.weight_laplacian * laplacian_smoothness(vertices, faces)
        if config.weight_normal_consistency > 0:
            total = total + config.weight_normal_consistency * normal_consistency(vertices, faces)
        if config.weight_eikonal > 0:
            total = total + config.weight_eikonal * eikonal(self.grids[subject], sdf)
        return total

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(optimizer)
        # Silhouettes move a few lattice points; their neighbours must follow, or the surface becomes spiky.
        for field_ in self.sdf_fields:
            field_.smooth_gradient_()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Here and not at the batch's end: checkpoints are written before the module hears of that.
        for field_ in self.sdf_fields:
            field_.project_()


class TextureStage(GuidedStage):
    """K colour fields on finished surfaces, guided through albedo on plain backgrounds, unlit or under random light."""

    config: TextureConfig

    def __init__(
        self,
        *args: Any,
        meshes: Sequence[tuple[Tensor, Tensor]],
        first_colors: Sequence[Tensor | None] | None = None,
        **kwargs: Any,
    ) -> None:
        """first_colors: (V, 3) of each subject, for its mesh's vertices, NaN where unknown; None starts grey."""
        super().__init__(*args, **kwargs)
        self.meshes = list(meshes)
        # One box for the whole pack would make a field depend on its neighbours' sizes, so each subject has its own.
        self.fields = nn.ModuleList(self._new_field(subject) for subject in range(len(self.meshes)))
        for subject, colors in enumerate(first_colors or ()):
            if colors is not None:
                fit_colors(cast("ColorField", self.fields[subject]), self.meshes[subject][0], colors)

    def _new_field(self, subject: int) -> ColorField:
        vertices = self.meshes[subject][0]
        lower, upper = vertices.min(0).values - 0.05, vertices.max(0).values + 0.05
        seeds = [self.subjects[subject].seed]
        return make_color_field(self.config.color, 1, lower.numpy(), upper.numpy(), seeds=seeds)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [*self.fields.parameters(), *self.backgrounds.parameters()], self.config.lr, betas=(0.9, 0.99)
        )

    def color(self, subject: int, points: Tensor) -> Tensor:
        """Albedo (P, 3) in [0, 1] at points (P, 3) in metres."""
        return self.fields[subject](points, 0)

    def detached_color(self, subject: int, points: Tensor) -> Tensor:
        """`color` without a gradient, for baking."""
        return self.color(subject, points).detach()

    def render(self, subject: int, shots: Sequence[Shot], resolution: int) -> Tensor:
        vertices, faces = (part.to(self.device) for part in self.meshes[subject])
        cameras = [shot.camera for shot in shots]
        lights = None
        if self.config.shading == "random":
            lights = draw_lights(np.random.default_rng((self.subjects[subject].seed, self.step, 2)), cameras)
        background = self.background(subject, shots, resolution)
        rgb, _ = render_colors(
            self.rasterizer,
            vertices,
            faces,
            lambda points: self.color(subject, points),
            cameras,
            resolution,
            background=background,
            lights=lights,
        )
        return rgb
