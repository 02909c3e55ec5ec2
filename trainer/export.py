"""Stage "export": the avatar as files that other programs open: a GLB, a turntable film, and a strip of views."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.atomic import write_bytes
from modules.errors import AlbumFailed, UserError
from modules.geometry.camera import Camera, orbit_camera
from modules.geometry.gltf import encode_glb
from modules.geometry.mesh import TexturedMesh
from modules.rendering.shading import render_textured
from trainer.export_config import ExportConfig

AVATAR_FILE, FILM_FILE, STRIP_FILE = "avatar.glb", "turntable.mp4", "turntable.png"
# The body fills this part of the frame's height (or width, where it is wider than tall).
_FILLED = 1 / 1.14


def write_glb(mesh: TexturedMesh, path: Path) -> None:
    """Write a mesh as GLB, atomically; the same mesh gives the same bytes. ValueError when the mesh is not sound."""
    write_bytes(path, encode_glb(mesh))


def export_avatar(mesh: TexturedMesh, folder: Path, config: ExportConfig | None = None) -> dict[str, Path]:
    """Write avatar.glb, turntable.mp4 and turntable.png into `folder`; returns their paths by file name.

    Raises AlbumFailed when the mesh is empty or broken, UserError when the disk or the video encoder refuses.
    """
    config = config or ExportConfig()
    mesh = _limit_texture(mesh, config.max_texture_px)
    paths = {name: folder / name for name in (AVATAR_FILE, FILM_FILE, STRIP_FILE)}
    try:
        data = encode_glb(mesh)
    except ValueError as error:
        raise AlbumFailed(f"the avatar's mesh cannot be exported: {error}") from error
    write_bytes(paths[AVATAR_FILE], data)
    _write_film(paths[FILM_FILE], render_turntable(mesh, config.turntable_frames, config), config)
    views = list(render_turntable(mesh, config.strip_views, config))
    strip = io.BytesIO()
    Image.fromarray(np.concatenate(views, 1)).save(strip, "PNG")
    write_bytes(paths[STRIP_FILE], strip.getvalue())
    return paths


def turntable_cameras(mesh: TexturedMesh, num_views: int, elevation_deg: float = 5.0) -> list[Camera]:
    """Cameras evenly all round the mesh, the first one in front, the next towards the person's left hand."""
    low, high = mesh.vertices.min(0).astype(np.float64), mesh.vertices.max(0).astype(np.float64)
    size = high - low
    frame_height_m = max(size[1], float(np.hypot(size[0], size[2])), 1e-3) / _FILLED
    return [
        orbit_camera(360.0 * index / num_views, elevation_deg, target_m=(low + high) / 2, frame_height_m=frame_height_m)
        for index in range(num_views)
    ]


def render_turntable(mesh: TexturedMesh, num_views: int, config: ExportConfig) -> Iterator[np.ndarray]:
    """Views all round as (R, R, 3) uint8, rendered one at a time so that long films need no memory."""
    for camera in turntable_cameras(mesh, num_views, config.elevation_deg):
        image, _ = render_textured(
            mesh,
            [camera],
            config.turntable_resolution,
            background=config.background,
            supersampling=config.supersampling,
        )
        yield np.clip(np.round(image[0] * 255), 0, 255).astype(np.uint8)


def _limit_texture(mesh: TexturedMesh, max_px: int) -> TexturedMesh:
    height, width = mesh.texture.shape[:2]
    if max(height, width) <= max_px:
        return mesh
    scale = max_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller = Image.fromarray(mesh.texture).resize(size, Image.Resampling.LANCZOS)
    return replace(mesh, texture=np.array(smaller, np.uint8))


@contextmanager
def _encoder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or "it gave no reason"
        raise UserError(
            f"{path} cannot be written by ffmpeg ({reason}); check that the folder is writable and has room, and that "
            f"imageio-ffmpeg is installed with its program"
        ) from error


def _write_film(path: Path, frames: Iterable[np.ndarray], config: ExportConfig) -> None:
    """H.264 in yuv420p, which every player and browser shows; the index stands in front, so it plays while loading."""
    import imageio_ffmpeg

    side = config.turntable_resolution
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _encoder_errors(path):
            writer = imageio_ffmpeg.write_frames(
                str(temporary),
                (side, side),
                fps=config.turntable_fps,
                codec="libx264",
                pix_fmt_in="rgb24",
                pix_fmt_out="yuv420p",
                quality=None,
                macro_block_size=2,
                ffmpeg_log_level="error",
                output_params=["-crf", "18", "-movflags", "+faststart", "-f", "mp4"],
            )
            writer.send(None)
        try:
            for frame in frames:  # outside of the encoder's errors: what rendering raises is passed on as it is
                with _encoder_errors(path):
                    writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()
        with _encoder_errors(path):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
