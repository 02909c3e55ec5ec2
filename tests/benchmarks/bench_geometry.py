"""Times of extraction and rendering on this machine, in milliseconds: `python -m tests.benchmarks.bench_geometry`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import torch

from modules.geometry.camera import orbit_camera
from modules.geometry.marching_tets import extract_mesh
from modules.geometry.tet_grid import TetGrid
from modules.rendering.rasterizer import make_rasterizer
from modules.rendering.shading import render_normals
from tests.numerics.shapes import capsule, icosphere


def _median_ms(step: Callable[[], None], repetitions: int = 7) -> float:
    step()  # compiles and warms up
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def bench() -> dict[str, float]:
    """Forward and backward: normals of 20 480 triangles at 256 x 256, and extraction around a large capsule."""
    rasterizer = make_rasterizer("cpu")
    vertices, faces = icosphere(5, 0.5)
    moving, face_tensor = torch.from_numpy(vertices).requires_grad_(), torch.from_numpy(faces).long()
    camera = orbit_camera(30, 10, target_m=np.zeros(3), frame_height_m=1.6)
    grid = TetGrid.around_mesh(*capsule(1.2, 0.25, 32))
    sdf = grid.template_sdf.clone().requires_grad_()

    def render() -> None:
        render_normals(rasterizer, moving, face_tensor, [camera], 256).square().sum().backward()

    def extract() -> None:
        extract_mesh(grid, sdf)[0].square().sum().backward()

    return {"render_256_ms": _median_ms(render), "extraction_ms": _median_ms(extract)}


if __name__ == "__main__":
    print(json.dumps(bench(), indent=2))
