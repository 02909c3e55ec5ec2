"""Small trees laid out like PuzzleIOI and 4D-DRESS, made of one synthetic person whose truth is known."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.studio.baking import bake_textures, ground_truth_mesh
from datamodules.studio.person import Person, PersonSpec, build_person, sample_person
from datamodules.studio.photographer import plain_background, take_picture
from datamodules.studio.vocabulary import LABEL_INDEX, LABELS, NO_PERSON
from datamodules.studio.wardrobe import GarmentSpec
from modules.geometry.camera import Camera, orbit_camera
from modules.geometry.mesh import TexturedMesh

RESOLUTION = 96
# Real people are not 1.70 m tall: this one is 1.87 m.
SIZE = 1.1
YAW_DEG = 40.0
PLACE_M = np.array([0.3, 0.07, -0.2])
IOI_VIEWS = {"05": -20.0, "06": 0.0, "07": 20.0, "01": 60.0, "13": 125.0, "17": 178.0, "09": -60.0}
IOI_SHIFT = np.array([12.0, -565.0, 31.0])
DRESS_VIEWS = {"0004": 5.0, "0052": 130.0}
_DRESS_LABELS = {"haircut": 1, "shoes": 2, "shirt": 3, "trousers": 4, "jacket": 5}


@functools.cache
def person() -> Person:
    """In a shirt, trousers and shoes, with short hair."""
    garments = [
        ("shirt", "red", (0.8, 0.1, 0.1)),
        ("trousers", "blue", (0.1, 0.1, 0.7)),
        ("shoes", "black", (0.1,) * 3),
    ]
    worn = tuple(GarmentSpec(name=name, color=color, rgb=rgb) for name, color, rgb in garments)
    spec: PersonSpec = dataclasses.replace(sample_person(5), garments=worn, hair_style="bob", glasses=False)
    return build_person(spec)


@functools.cache
def truth() -> tuple[TexturedMesh, np.ndarray]:
    """The person as the avatar's frame has it, and the labels of the texels."""
    albedo, labels = bake_textures(person(), 256)
    return ground_truth_mesh(person(), albedo), labels


def photograph(azimuth: float) -> tuple[np.ndarray, np.ndarray, Camera]:
    """rgb (R, R, 3) uint8 and label (R, R) uint8 of the whole person, A-posed, and the camera of it."""
    marks = person().landmarks()
    camera = orbit_camera(azimuth, 5.0, target_m=marks.center_m, frame_height_m=1.2 * marks.stature_m)
    picture = take_picture(
        person(), person().vertices, camera, resolution=RESOLUTION, background=plain_background("gray", RESOLUTION)
    )
    return picture.rgb, picture.label, camera


def jpeg_with_gps(rgb: np.ndarray) -> bytes:
    """A photo as phones write it, with a place and a maker in its metadata."""
    exif = Image.Exif()
    exif[0x010F] = "SECRETMAKER"
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=95, exif=exif, comment=b"SECRETCOMMENT")
    return buffer.getvalue()


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_pickle(path: Path, content: Any, protocol: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def _world_camera(camera: Camera, rotation: np.ndarray, shift_m: np.ndarray) -> np.ndarray:
    """(3, 4) extrinsics, x right and y down, of a camera after the world is scaled by SIZE, turned and shifted."""
    axes = np.diag([1.0, -1.0, -1.0]) @ camera.rotation.astype(np.float64) @ rotation.T
    eye = rotation @ (SIZE * camera.eye_m.astype(np.float64)) + shift_m
    return np.concatenate([axes, (-axes @ eye)[:, None]], 1)


def _obj(vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray | None = None, head: str = "") -> str:
    lines = [head, *(f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices)]
    if uv is None:
        lines += [f"f {a} {b} {c}" for a, b, c in faces + 1]
    else:
        lines += [f"vt {u:.6f} {1 - v:.6f}" for u, v in uv]
        lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in faces + 1]
    return "\n".join(lines) + "\n"


def write_puzzle_ioi(
    root: Path, *, albums: Sequence[tuple[str, str]] = (("03632", "outfit13"),), calibrated: bool = False
) -> Path:
    """A tree of PuzzleIOI; with `calibrated`, the scans come with their cameras' places."""
    mesh, _ = truth()
    for subject, outfit in albums:
        capture, fitting = (root / name / subject / outfit for name in ("puzzle_capture", "fitting"))
        (capture / "image").mkdir(parents=True)
        fitting.mkdir(parents=True)
        lines = []
        for camera_name, azimuth in IOI_VIEWS.items():
            rgb, label, camera = photograph(azimuth)
            (capture / "image" / f"000_{camera_name}_C.jpg").write_bytes(jpeg_with_gps(rgb))
            (capture / "image" / f"000_{camera_name}_C_raw.jpg").write_bytes(jpeg_with_gps(rgb))
            for asset, name in (("face", "face"), ("haircut", "haircut"), ("shirt", "shirt"), ("trousers", "pants")):
                mask = label == LABEL_INDEX[asset]
                if mask.any():
                    write_png(capture / "mask" / f"000_{camera_name}_C_{name}.png", mask.astype(np.uint8) * 255)
            lines.append(_csd_line(camera_name, camera))
        (capture / "gpt4v_response.json").write_text(
            '{"gender": "female", "face": "oval", "haircut": "bob", "shirt": "long-sleeved", "pants": "loose"}'
        )
        scale = SIZE * 1000
        scan = mesh.vertices.astype(np.float64) * scale + IOI_SHIFT
        low = len(scan)
        floor = np.array([[-900.0, -580, -900], [900, -580, -900], [0, -580, 900]])
        (fitting / "scan.obj").write_text(
            _obj(
                np.concatenate([scan, floor]),
                np.concatenate([mesh.faces, [[low, low + 1, low + 2]]]),
                np.concatenate([mesh.uv, np.zeros((3, 2), np.float32)]),
                head="mtllib scan.mtl",
            )
        )
        (fitting / "scan.mtl").write_text("newmtl material0\nmap_Kd outfit.000001.png\n")
        write_png(fitting / "outfit.000001.png", mesh.texture)
        write_png(fitting / "other.png", np.zeros((4, 4, 3), np.uint8))
        (fitting / "smplx").mkdir()
        body = person().bare_body.astype(np.float64) * SIZE
        (fitting / "smplx" / "smplx.obj").write_text(_obj(body, np.array([[0, 1, 2]])))
        if calibrated:
            (fitting / "camera.csd").write_text("$Camera\n" + "\n".join(lines) + "\n")
    return root


def _csd_line(name: str, camera: Camera) -> str:
    from scipy.spatial.transform import Rotation

    extrinsics = _world_camera(camera, np.eye(3), np.zeros(3))
    turn = Rotation.from_matrix(extrinsics[:, :3]).as_rotvec()
    numbers = [*turn, *(extrinsics[:, 3] * 1000), 1.0, 1.0, 0.0, 0.0]
    return " ".join([f"{name}_C", *(f"{number:.6f}" for number in numbers)])


def dress_labels() -> np.ndarray:
    """(U,) the person's vertex labels as 4D-DRESS has them: what is no garment, no hair and no shoe is skin."""
    by_index = np.array([_DRESS_LABELS.get(name, 0) for name in LABELS])
    return by_index[person().vertex_label[person().uv_vertex]]


def write_four_d_dress(
    root: Path,
    *,
    outfits: Sequence[tuple[str, str]] = (("00122", "Inner"),),
    takes: Mapping[str, float] | None = None,
    frames: Sequence[str] = ("00006", "00011"),
) -> Path:
    """A tree of 4D-DRESS. takes: how far the fitted arms are from an A-pose, in degrees (the scans stay A-posed)."""
    mesh, _ = truth()
    yaw = math.radians(YAW_DEG)
    rotation = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    vertices = (mesh.vertices.astype(np.float64) * SIZE) @ rotation.T + PLACE_M
    body = person().bare_body.astype(np.float64) * SIZE + PLACE_M
    ply = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    pose = np.zeros((21, 3))
    pose[15, 2], pose[16, 2] = -math.radians(45), math.radians(45)
    for subject, outfit in outfits:
        for take_name, away_deg in (takes or {"Take2": 0.0}).items():
            take = root / subject / outfit / take_name
            write_pickle(
                take / "basic_info.pkl",
                {"scan_frames": list(frames), "rotation": rotation.T, "offset": None, "gender": "female"},
            )
            cameras: dict[str, dict[str, np.ndarray]] = {}
            for name, azimuth in DRESS_VIEWS.items():
                rgb, label, camera = photograph(azimuth)
                focal = RESOLUTION / (2 * math.tan(math.radians(camera.fov_y_deg) / 2))
                cameras[name] = {
                    "intrinsics": np.array([[focal, 0, RESOLUTION / 2], [0, focal, RESOLUTION / 2], [0, 0, 1]]),
                    "extrinsics": _world_camera(camera, rotation, PLACE_M),
                }
                for frame in frames:
                    write_png(take / "Capture" / name / "images" / f"capture-f{frame}.png", rgb)
                    whole = (label != NO_PERSON).astype(np.uint8) * 255
                    write_png(take / "Capture" / name / "masks" / f"mask-f{frame}.png", whole)
            write_pickle(take / "Capture" / "cameras.pkl", cameras)
            for frame in frames:
                fit = take / "SMPLX" / f"mesh-f{frame}_smplx.pkl"
                turned = pose + np.radians([0.0, 0.0, away_deg]) * (np.arange(21) == 15)[:, None]
                write_pickle(
                    fit, {"global_orient": np.array([0, yaw, 0]), "body_pose": turned.ravel(), "transl": PLACE_M}
                )
                rows = "\n".join(f"{x:.5f} {y:.5f} {z:.5f}" for x, y, z in body)
                fit.with_suffix(".ply").write_text(ply.format(len(body)) + rows + "\n")
                meshes = take / "Meshes_pkl"
                write_pickle(
                    meshes / f"mesh-f{frame}.pkl",
                    {"vertices": vertices, "faces": mesh.faces.astype(np.int64), "uvs": mesh.uv.astype(np.float64)},
                )
                write_pickle(meshes / f"atlas-f{frame}.pkl", mesh.texture)
                labels = take / "Semantic" / "labels" / f"label-f{frame}.pkl"
                write_pickle(labels, {"scan_labels": dress_labels()})
    return root
