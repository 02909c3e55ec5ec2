"""PuzzleIOI (Xiu et al. 2024): 41 subjects in about 933 outfits, 22 calibrated cameras, A-posed scans.

Expected, as the release's download script unpacks it:
    ROOT/puzzle_capture/<subject>/<outfit>/image/<shot>_<camera>_C.jpg     (<...>_raw.jpg: unpadded twins, left out)
    ROOT/puzzle_capture/<subject>/<outfit>/mask/<stem>_<asset>.png         (written by the reference's segmentation)
    ROOT/puzzle_capture/<subject>/<outfit>/gpt4v_response.json             (or gpt4v_simple.json: gender, shape words)
    ROOT/puzzle_capture/<subject>/<outfit>/smplx_<gender>.npy|obj
    ROOT/fitting/<subject>/<outfit>/scan.obj, its .mtl and picture         (millimetres, y up, floor below y = -570)
    ROOT/fitting/<subject>/<outfit>/smplx/smplx.obj                        (the body fitted to it, metres)
    ROOT/fitting/<subject>/<outfit>/camera.csd                             (where present: id, rotation vector, mm, ...)
ROOT may also be the folder puzzle_capture itself, which leaves the scans out.

Where these facts come from (facts only; the release's code is under a non-commercial licence):
    github.com/YuliangXiu/PuzzleAvatar/blob/05217b967654e27177a3d1c9468ec712cb5479c5/
        multi_concepts/dataset.py (names of photos, views of the cameras), multi_concepts/puzzle_utils.py (units, floor,
        camera.csd), scripts/fetch_data.sh and README.md (folders)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from datamodules.album_description import Gender, parse_description
from datamodules.album_files import split_mask_name
from datamodules.asset_names import canonical_asset
from datamodules.images import decode_photo
from datamodules.readers.config import ImportConfig
from datamodules.readers.scan import azimuth_deg, cut_below, join_seams, read_obj, shrink_texture, stand
from datamodules.readers.source import (
    AlbumContent,
    Listing,
    PhotoSource,
    Refused,
    SourceFolder,
    Truth,
    list_outfits,
    unique_name,
)
from modules.errors import UserError
from modules.geometry.camera import view_word

_CAPTURE, _FITTING = "puzzle_capture", "fitting"
_PHOTO = re.compile(r"(?P<shot>.+)_(?P<camera>\d\d)_C(?P<rest>.*)", re.DOTALL)
_WORD_FILES = ("gpt4v_response.json", "gpt4v_simple.json")
_FRONT_CAMERAS = ("05", "06", "07")
_SIDE_FRONT, _SIDE_BACK = ("01", "02", "03", "09", "10", "11"), ("13", "14", "15", "19", "20", "21")
# The reference says up to two words of a camera; an album has room for one, which is the first.
VIEWS = (
    dict.fromkeys(_FRONT_CAMERAS, "front")
    | dict.fromkeys((*_SIDE_FRONT, *_SIDE_BACK), "side")
    | {"17": "back"}
    | dict.fromkeys(("04", "08", "12", "16", "18", "22"), "overhead")
)


def list_albums(files: SourceFolder, config: ImportConfig) -> Listing:
    """The outfits, named <subject>_<outfit>. UserError when the folder has none."""
    capture = files.root / _CAPTURE
    if not capture.is_dir():
        capture = files.root

    def make(folder: Path) -> Callable[[], AlbumContent]:
        fitting = files.root / _FITTING / folder.parent.name / folder.name
        return partial(_read, files, folder, fitting, config)

    listing = list_outfits(files, capture, lambda folder: (folder / "image").is_dir(), make)
    if not listing.albums and not listing.refused:
        raise UserError(
            f"{files.root} has no folders {_CAPTURE}/<subject>/<outfit>/image: give the folder that PuzzleIOI was "
            "unpacked to."
        )
    return listing


def _read(files: SourceFolder, folder: Path, fitting: Path, config: ImportConfig) -> AlbumContent:
    refused: list[Refused] = []
    gender, words = _words(files, folder, refused)
    eyes = _camera_eyes(files, fitting, refused)
    front = _front(eyes)
    found: dict[str, tuple[Path, str | None]] = {}
    for path in files.files(folder / "image", ".jpg", ".jpeg", ".png"):
        match = _PHOTO.fullmatch(path.stem)
        if path.stem.endswith("_raw"):
            continue
        camera = match["camera"] if match else None
        if camera is None:
            refused.append(Refused(files.relative(path), "has no camera in its name; its view is unknown"))
        found[path.stem] = (path, camera)
    masks: dict[str, dict[str, Path]] = {}
    for path in files.files(folder / "mask", ".png"):
        split = split_mask_name(path.stem, found, words)
        try:
            if split is None:
                raise ValueError("its name fits no photo")
            masks.setdefault(split[0], {})[canonical_asset(split[1])] = path
        except ValueError as error:
            refused.append(Refused(files.relative(path), f"is not taken: {error}"))
    taken: set[str] = set()
    photos = tuple(
        PhotoSource(
            stem=unique_name(stem, taken), path=path, masks=masks.get(stem, {}), view=_view(camera, eyes, front)
        )
        for stem, (path, camera) in found.items()
    )
    has_scan = files.has(fitting / "scan.obj")
    if config.ground_truth and not has_scan:
        refused.append(Refused("the ground truth", f"is not there ({files.relative(fitting / 'scan.obj')})"))
    return AlbumContent(
        photos=photos,
        gender=gender,
        asset_words=words,
        truth=partial(_truth, files, fitting, front, config) if has_scan else None,
        refused=tuple(refused),
    )


def _words(files: SourceFolder, folder: Path, refused: list[Refused]) -> tuple[Gender, dict[str, str]]:
    """Gender and shape words; a file that is not valid is refused, and the body's file still says the gender."""
    for name in _WORD_FILES:
        if files.has(folder / name):
            try:
                # Both files have the same layout; the parser tells layouts apart by the name.
                found = parse_description(Path(_WORD_FILES[0]), files.read(folder / name))
                return found.gender, found.asset_words
            except UserError as error:
                refused.append(Refused(files.relative(folder / name), f"is not used: {error}"))
    bodies = {path.stem.partition("_")[2] for path in files.files(folder, ".npy", ".obj") if path.stem[:6] == "smplx_"}
    genders: dict[str, Gender] = {"male": "man", "female": "woman"}
    known = [genders[body] for body in bodies if body in genders]
    return (known[0] if len(known) == 1 else "person"), {}


def _camera_eyes(files: SourceFolder, fitting: Path, refused: list[Refused]) -> dict[str, np.ndarray]:
    """Camera number to its place (3,) in metres, from camera.csd; empty where there is no such file."""
    path = fitting / "camera.csd"
    if not files.has(path):
        return {}
    from scipy.spatial.transform import Rotation

    eyes = {}
    try:
        for line in files.read(path).decode("utf-8", "replace").splitlines():
            words = line.split()
            if words and re.fullmatch(r"\d\d_C", words[0]):
                numbers = np.array([float(word) for word in words[1:7]])
                if numbers.shape != (6,) or not np.isfinite(numbers).all():
                    raise ValueError
                eyes[words[0][:2]] = -Rotation.from_rotvec(numbers[:3]).as_matrix().T @ numbers[3:] / 1000
    except ValueError as error:
        reason = str(error) if isinstance(error, UserError) else "has lines that are no cameras"
        refused.append(Refused(files.relative(path), f"{reason}; views come from the table of cameras"))
        return {}
    return eyes


def _front(eyes: dict[str, np.ndarray]) -> np.ndarray | None:
    """The direction (3,) that the subject faces: towards the cameras that the table calls front."""
    if not all(camera in eyes for camera in _FRONT_CAMERAS):
        return None
    front = np.mean([eyes[camera] for camera in _FRONT_CAMERAS], 0)
    return front if math.hypot(front[0], front[2]) > 0.1 else None


def _view(camera: str | None, eyes: dict[str, np.ndarray], front: np.ndarray | None) -> str | None:
    """One of the eight words where the cameras' places are known, else the reference's word for the camera."""
    word = VIEWS.get(camera or "")
    if word is None or front is None or camera not in eyes or word == "overhead":
        return word
    return view_word(azimuth_deg(front, eyes[camera])[0], vocabulary="eight")


def _truth(files: SourceFolder, fitting: Path, front: np.ndarray | None, config: ImportConfig) -> Truth:
    settings = config.puzzle_ioi
    path = fitting / "scan.obj"
    try:
        mesh = read_obj(files.read(path))
    except UserError as error:
        raise UserError(f"cannot be read: {files.relative(path)} {error}") from None
    texture = _texture(files, fitting, mesh.materials, config)
    if front is None:
        turn = math.radians(settings.turn_deg)
        front = np.array([-math.sin(turn), 0.0, math.cos(turn)])
    body = fitting / "smplx" / "smplx.obj"
    body_height_m = None
    try:
        if files.has(body):
            body_height_m = float(np.ptp(read_obj(files.read(body)).vertices[:, 1]))
        scan = cut_below(join_seams(mesh, texture), settings.floor)
        standing, scale = stand(scan, facing=front, unit_m=settings.scan_unit_m, body_height_m=body_height_m)
    except UserError as error:
        raise UserError(f"cannot be used: {files.relative(path)} {error}") from None
    info = {
        "source": files.relative(path),
        "scale": round(scale, 6),
        "height_from": "body model" if body_height_m is not None else "scan",
        "pose": "A",
    }
    return Truth(mesh=standing, info=info)


def _texture(files: SourceFolder, fitting: Path, materials: tuple[str, ...], config: ImportConfig) -> np.ndarray:
    """The picture that the scan's material names, else the only picture beside it."""
    named = []
    for material in materials:
        path = fitting / Path(material).name
        if files.has(path):
            lines = files.read(path).decode("utf-8", "replace").splitlines()
            named += [line.split(None, 1)[1].strip() for line in lines if line.strip().startswith("map_Kd ")]
    pictures = files.files(fitting, ".jpg", ".jpeg", ".png")
    chosen = [path for name in named for path in pictures if path.name == name.replace("\\", "/").split("/")[-1]]
    if not chosen and len(pictures) != 1:
        raise UserError(
            f"has no texture: {files.relative(fitting)} holds {len(pictures)} pictures and no material names one"
        )
    path = (chosen or pictures)[0]
    try:
        decoded = decode_photo(files.read(path), max_pixels=config.max_pixels)
    except UserError as error:
        raise UserError(f"has no texture: {files.relative(path)} {error}") from None
    return shrink_texture(decoded.pixels, config.texture_px)
