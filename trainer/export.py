"""Stage "export": the avatar as files that other programs open: GLBs with a skeleton, OBJ, USD, and a turntable."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.atomic import write_bytes
from modules.errors import AlbumFailed, UserError
from modules.geometry.animation import idle_animation, walk_animation
from modules.geometry.body import BodyTemplate
from modules.geometry.camera import Camera, orbit_camera
from modules.geometry.gltf import encode_glb
from modules.geometry.mesh import TexturedMesh
from modules.geometry.obj import encode_obj
from modules.geometry.rigging import rig_avatar
from modules.geometry.usd import encode_usdz, why_no_usd
from modules.rendering.shading import render_textured
from trainer.export_config import ExportConfig

AVATAR_FILE, FILM_FILE, STRIP_FILE = "avatar.glb", "turntable.mp4", "turntable.png"
ANIMATED_FILE, USD_FILE = "avatar_animated.glb", "avatar.usdz"
# What the settings may add to the three files above.
OPTIONAL_FILES = (ANIMATED_FILE, "avatar.obj", "avatar.mtl", "avatar.png", USD_FILE)
# And a folder of pictures all round, with what is needed to learn from them.
ORBIT_FOLDER, CAMERAS_FILE = "orbit", "cameras.json"
_CONVENTION = (
    "camera_to_world takes column vectors (x, y, z, 1) of the camera to the world, in metres. World: right-handed, "
    "y up, the person stands on y = 0 and faces +z. Camera: OpenGL's, x right, y up, looking along -z. Pinhole with "
    "square pixels and the principal point in the middle of the image. Colours are sRGB, unlit, with straight alpha."
)
_log = logging.getLogger(__name__)
# The body fills this part of the frame's height (or width, where it is wider than tall).
_FILLED = 1 / 1.14


def write_glb(mesh: TexturedMesh, path: Path) -> None:
    """Write a mesh as GLB, atomically; the same mesh gives the same bytes. ValueError when the mesh is not sound."""
    write_bytes(path, encode_glb(mesh))


def export_avatar(
    mesh: TexturedMesh, folder: Path, config: ExportConfig | None = None, body: BodyTemplate | None = None
) -> dict[str, Path]:
    """Write avatar.glb, turntable.mp4, turntable.png and what the settings add; returns their paths by file name.

    With config.orbit_frames there are also orbit/000.png and so on (RGBA, 8 bit, straight alpha) and their cameras in
    orbit/cameras.json.
    body: the template in whose pose and frame the avatar stands, and whose skeleton it gets; without one, or with
    config.rig false, the files have no skeleton and no animation. Raises AlbumFailed when the mesh is empty or broken,
    UserError when the disk or the video encoder refuses.
    """
    config = config or ExportConfig()
    mesh = _limit_texture(mesh, config.max_texture_px)
    try:
        files = _encoded(mesh, config, body)
    except ValueError as error:
        raise AlbumFailed(f"the avatar's mesh cannot be exported: {error}") from error
    for name, data in files.items():
        write_bytes(folder / name, data)
    _write_film(folder / FILM_FILE, render_turntable(mesh, config.turntable_frames, config), config)
    views = list(render_turntable(mesh, config.strip_views, config))
    strip = io.BytesIO()
    Image.fromarray(np.concatenate(views, 1)).save(strip, "PNG")
    write_bytes(folder / STRIP_FILE, strip.getvalue())
    orbit = _write_orbit(mesh, folder, config)
    return {name: folder / name for name in (*files, FILM_FILE, STRIP_FILE, *orbit)}


def orbit_files(folder: Path) -> list[str]:
    """Names, relative to an album's or export's folder, of the orbit's files that lie there."""
    orbit = folder / ORBIT_FOLDER
    return [f"{ORBIT_FOLDER}/{path.name}" for path in (*orbit.glob("[0-9][0-9][0-9].png"), *orbit.glob(CAMERAS_FILE))]


def left_out(config: ExportConfig) -> dict[str, str]:
    """Formats that are asked for and cannot be written here, with the reason."""
    reason = why_no_usd() if "usd" in config.formats else None
    return {} if reason is None else {"usd": reason}


def _encoded(mesh: TexturedMesh, config: ExportConfig, body: BodyTemplate | None) -> dict[str, bytes]:
    """File name -> bytes of all 3D files. Raises ValueError when the mesh is not sound."""
    # The plain file first: its writer says what is wrong with a mesh before the rig would stumble over it.
    files = {AVATAR_FILE: encode_glb(mesh)}
    rig = rig_avatar(mesh.vertices, mesh.faces, body) if config.rig and body is not None else None
    if rig is not None and body is not None:
        files[AVATAR_FILE] = encode_glb(mesh, rig=rig)
        if config.animation:
            moves = [make(body.joints, body.joint_parents) for make in (idle_animation, walk_animation)]
            files[ANIMATED_FILE] = encode_glb(mesh, rig=rig, animations=moves)
    if "obj" in config.formats:
        files |= encode_obj(mesh)
    missing = left_out(config)
    if "usd" in config.formats and not missing:
        files[USD_FILE] = encode_usdz(mesh, rig=rig)
    for name, reason in missing.items():
        _log.info("No %s file is written: %s.", name.upper(), reason)
    return files


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


def render_orbit(mesh: TexturedMesh, config: ExportConfig) -> Iterator[tuple[Camera, np.ndarray]]:
    """The orbit's cameras and views, (R, R, 4) uint8 with straight alpha: silhouettes are not darkened."""
    for camera in turntable_cameras(mesh, config.orbit_frames, config.elevation_deg):
        colors, coverage = render_textured(
            mesh, [camera], config.orbit_resolution, background=0.0, supersampling=config.supersampling
        )
        alpha = coverage[0, ..., None]
        image = np.concatenate([colors[0] / np.where(alpha > 0, alpha, 1), alpha], 2)
        yield camera, np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


def _write_orbit(mesh: TexturedMesh, folder: Path, config: ExportConfig) -> list[str]:
    """Write the orbit's pictures, one at a time, and their cameras; returns the files' names relative to the folder."""
    frames = []
    for index, (camera, image) in enumerate(render_orbit(mesh, config) if config.orbit_frames else ()):
        picture = io.BytesIO()
        Image.fromarray(image).save(picture, "PNG")
        name = f"{index:03d}.png"
        write_bytes(folder / ORBIT_FOLDER / name, picture.getvalue())
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = camera.rotation.T, camera.eye_m
        frames.append(
            {
                "file": name,
                "camera_to_world": pose.tolist(),
                "fov_y_deg": camera.fov_y_deg,
                "width": config.orbit_resolution,
                "height": config.orbit_resolution,
            }
        )
    if not frames:
        return []
    cameras = json.dumps({"convention": _CONVENTION, "frames": frames}, indent=1)
    write_bytes(folder / ORBIT_FOLDER / CAMERAS_FILE, cameras.encode() + b"\n")
    return [f"{ORBIT_FOLDER}/{name}" for name in (*(frame["file"] for frame in frames), CAMERAS_FILE)]


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
