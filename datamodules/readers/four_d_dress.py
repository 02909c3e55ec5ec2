"""4D-DRESS (Wang et al. 2024): 32 subjects in 64 outfits, four calibrated cameras, scans with labelled vertices.

Expected, as its own description has it:
    ROOT/<subject>/<Inner|Outer>/<Take*>/
        basic_info.pkl                             {'scan_frames', 'rotation', 'offset', 'gender', ...}
        Meshes_pkl/mesh-f<frame>.pkl               {'vertices', 'faces', 'uvs', ...}, metres, y up
        Meshes_pkl/atlas-f<frame>.pkl              the texture, (1024, 1024, 3) uint8
        Semantic/labels/label-f<frame>.pkl         {'scan_labels': (V,)}, see LABELS
        SMPLX/mesh-f<frame>_smplx.pkl and .ply     the fitted body (or SMPL/mesh-f<frame>_smpl.*)
        Capture/cameras.pkl                        {camera: {'intrinsics', 'extrinsics'}}
        Capture/<camera>/images/capture-f<frame>.png, masks/mask-f<frame>.png, labels/label-f<frame>.png
An outfit becomes one album, its photos drawn from all of its takes and cameras. Masks of assets are drawn from the
labelled scan of the photo's moment; where that is missing, from the label picture. A photo's view comes from the camera
and from where the fitted body faces; without such a body it stays unknown.

Where these facts come from (facts only):
    github.com/eth-ait/4d-dress/blob/5603b7488c6b99a5e1a9ad910568dea38a0ca0c1/dataset/
        README.md (folders, dresses), utility.py (labels), postprocess.py (cameras), visualize.py (rotation, atlas)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.album_description import Gender
from datamodules.asset_names import PERSON, canonical_asset
from datamodules.images import decode_photo
from datamodules.readers.config import ImportConfig
from datamodules.readers.label_render import PhotoCamera, draw_labels, find_face
from datamodules.readers.restricted_pickle import load_plain_pickle
from datamodules.readers.scan import (
    Scan,
    as_array,
    azimuth_deg,
    ply_vertices,
    shrink_texture,
    stand,
    texel_labels,
)
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

DEFAULT_PHOTOS = 40
LABELS = ("skin", "hair", "shoe", "upper", "lower", "outer")
LABEL_COLORS = ((128, 128, 128), (255, 128, 0), (128, 0, 255), (180, 50, 50), (50, 180, 50), (0, 128, 255))
_FACE = len(LABELS)
_OUTFITS = ("Inner", "Outer")
# Outfits whose upper label is a dress, from the table of the dataset's benchmark.
_DRESSES = frozenset({("00148", "Inner"), ("00170", "Inner"), ("00185", "Inner"), ("00187", "Inner")})
_CAPTURE = re.compile(r"capture-f(\w{1,12})")
_FITS = (("SMPLX", "smplx"), ("SMPL", "smpl"))
# The arms hang at about this angle in an A-pose; entries of the body's pose, after its root.
_LEFT_SHOULDER, _RIGHT_SHOULDER, _A_POSE_RAD = 15, 16, math.radians(45)
_COLOR_TOLERANCE = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """The body fitted to a frame. facing: (3,) in the world. pose: (J, 3) axis-angles. path: of its pickle."""

    facing: np.ndarray
    pose: np.ndarray
    path: Path

    @property
    def distance_from_a_pose_deg(self) -> float:
        """Root mean square over the joints of the angle that each is away from an A-pose."""
        target = np.zeros_like(self.pose)
        if len(target) > _RIGHT_SHOULDER:
            target[_LEFT_SHOULDER, 2], target[_RIGHT_SHOULDER, 2] = -_A_POSE_RAD, _A_POSE_RAD
        return math.degrees(float(np.sqrt(((self.pose - target) ** 2).sum(1).mean())))


def list_albums(files: SourceFolder, config: ImportConfig) -> Listing:
    """The outfits, named <subject>_<outfit>. UserError when the folder has none."""
    listing = list_outfits(
        files,
        files.root,
        lambda folder: folder.name in _OUTFITS,
        lambda folder: _Outfit(files, folder, config).read,
    )
    if not listing.albums and not listing.refused:
        raise UserError(
            f"{files.root} has no folders <subject>/Inner or <subject>/Outer: give the folder that 4D-DRESS was "
            "unpacked to."
        )
    return listing


class _Outfit:
    """One outfit's takes."""

    def __init__(self, files: SourceFolder, folder: Path, config: ImportConfig) -> None:
        self.files = files
        self.folder = folder
        self.config = config
        settings = config.four_d_dress
        dress = (folder.parent.name, folder.name) in _DRESSES
        try:
            self.assets = {
                1: "haircut",
                2: "shoes",
                3: "dress" if dress else canonical_asset(settings.upper),
                4: canonical_asset(settings.lower),
                5: canonical_asset(settings.outer),
                _FACE: "face",
            }
        except ValueError as error:
            raise UserError(f"four_d_dress: {error}") from None

    def read(self) -> AlbumContent:
        refused: list[Refused] = []
        photos: list[PhotoSource] = []
        taken: set[str] = set()
        genders: set[Gender] = set()
        takes = [take for take in self.files.folders(self.folder) if (take / "Capture").is_dir()]
        for take in takes:
            genders |= self._gender(take, refused)
            cameras = self._cameras(take, refused)
            for camera in self.files.folders(take / "Capture"):
                for path in self.files.files(camera / "images", ".png", ".jpg"):
                    match = _CAPTURE.fullmatch(path.stem)
                    if match is None:
                        refused.append(Refused(self.files.relative(path), "is not named capture-f<frame>"))
                        continue
                    photos.append(self._photo(take, camera.name, match[1], path, cameras.get(camera.name), taken))
        meshes = [path for take in takes for path in self.files.files(take / "Meshes_pkl", ".pkl")[:1]]
        if self.config.ground_truth and not meshes:
            refused.append(Refused("the ground truth", "is not there (no take has Meshes_pkl/mesh-f*.pkl)"))
        return AlbumContent(
            photos=tuple(photos),
            gender=next(iter(genders)) if len(genders) == 1 else "person",
            truth=partial(self._truth, takes) if meshes else None,
            refused=tuple(refused),
        )

    def _photo(
        self, take: Path, camera: str, frame: str, path: Path, calibrated: PhotoCamera | None, taken: set[str]
    ) -> PhotoSource:
        person = take / "Capture" / camera / "masks" / f"mask-f{frame}.png"
        return PhotoSource(
            stem=unique_name(f"{take.name}-{camera}-{frame}", taken),
            path=path,
            masks={PERSON: person} if self.files.has(person) else {},
            labels=partial(self._masks, take, camera, frame, calibrated),
            view=None if calibrated is None else partial(self._view, take, frame, calibrated),
        )

    # -- what a take says -----------------------------------------------------------------------------------------

    def _pickle(self, path: Path) -> Any:
        try:
            return load_plain_pickle(self.files.read(path))
        except UserError as error:
            raise UserError(f"({self.files.relative(path)} {error})") from None

    def _gender(self, take: Path, refused: list[Refused]) -> set[Gender]:
        path = take / "basic_info.pkl"
        if not self.files.has(path):
            return set()
        try:
            info = self._pickle(path)
        except UserError as error:
            refused.append(Refused(self.files.relative(path), f"is not used {error}"))
            return set()
        word = str(info.get("gender")).lower() if isinstance(info, dict) else ""
        genders: dict[str, Gender] = {"male": "man", "female": "woman"}
        return {genders[word]} if word in genders else set()

    def _cameras(self, take: Path, refused: list[Refused]) -> dict[str, PhotoCamera]:
        path = take / "Capture" / "cameras.pkl"
        cameras: dict[str, PhotoCamera] = {}
        try:
            table = self._pickle(path)
            if not isinstance(table, dict):
                raise UserError("(it is no table of cameras)")
            for name, camera in table.items():
                if not isinstance(camera, dict):
                    raise UserError(f"(the camera {name!a} has no numbers)")
                extrinsics = camera.get("extrinsics")
                if isinstance(extrinsics, np.ndarray) and extrinsics.shape == (4, 4):
                    extrinsics = extrinsics[:3]
                cameras[str(name)] = PhotoCamera(
                    intrinsics=as_array(camera.get("intrinsics"), "intrinsics", 3, 3).astype(np.float64),
                    extrinsics=as_array(extrinsics, "extrinsics", 3, 4).astype(np.float64),
                )
        except UserError as error:
            reason = f"cannot be used {error}; its photos come without masks of assets and views"
            refused.append(Refused(self.files.relative(path), reason))
        return cameras

    def _fit(self, take: Path, frame: str) -> _Fit | None:
        from scipy.spatial.transform import Rotation

        for folder, suffix in _FITS:
            path = take / folder / f"mesh-f{frame}_{suffix}.pkl"
            if self.files.has(path):
                table = self._pickle(path)
                if not isinstance(table, dict):
                    raise UserError(f"({self.files.relative(path)} is no body)")
                turn = as_array(np.ravel(table.get("global_orient", ())), "global_orient", 3, kinds="f")
                pose = as_array(np.ravel(table.get("body_pose", ())), "body_pose", None, kinds="f").astype(np.float64)
                if not np.isfinite(turn).all() or not np.isfinite(pose).all() or len(pose) % 3:
                    raise UserError(f"({self.files.relative(path)} is no body)")
                facing = Rotation.from_rotvec(turn.astype(np.float64)).as_matrix()[:, 2]
                return _Fit(facing=facing, pose=pose.reshape(-1, 3), path=path)
        return None

    def _view(self, take: Path, frame: str, camera: PhotoCamera) -> str | None:
        fit = self._fit(take, frame)
        if fit is None:
            return None
        azimuth, elevation = azimuth_deg(fit.facing, camera.eye - self._middle(take, frame, fit))
        return view_word(azimuth, elevation, vocabulary="eight")

    def _middle(self, take: Path, frame: str, fit: _Fit) -> np.ndarray:
        """Where the person stands: the fitted body's place, else the middle of the scene."""
        moved = self._pickle(fit.path).get("transl")
        return np.zeros(3) if moved is None else as_array(np.ravel(moved), "transl", 3, kinds="f").astype(np.float64)

    # -- the scan ----------------------------------------------------------------------------------------------------

    def _scan(self, take: Path, frame: str, *, texture: bool) -> Scan:
        """A frame's scan with its labels (None without); the texture is a single black texel unless it is wanted."""
        mesh = self._pickle(take / "Meshes_pkl" / f"mesh-f{frame}.pkl")
        if not isinstance(mesh, dict):
            raise UserError("has a scan that is no mesh")
        vertices = as_array(mesh.get("vertices"), "vertices", None, 3).astype(np.float64)
        faces = as_array(mesh.get("faces"), "faces", None, 3, kinds="iu")
        if len(faces) and (int(faces.max()) >= len(vertices) or int(faces.min()) < 0):
            raise UserError(f"has faces of vertices that are not there (it has {len(vertices)})")
        uv = np.zeros((len(vertices), 2), np.float32)
        atlas = np.zeros((1, 1, 3), np.uint8)
        if texture:
            uv = as_array(mesh.get("uvs"), "uvs", len(vertices), 2, kinds="f").astype(np.float32)
            atlas = as_array(
                self._pickle(take / "Meshes_pkl" / f"atlas-f{frame}.pkl"), "atlas", None, None, 3, kinds="u"
            )
            if atlas.dtype != np.uint8 or min(atlas.shape) < 1:
                raise UserError("has an atlas that is no 8-bit picture")
        return Scan(
            vertices=vertices,
            faces=faces.astype(np.int32),
            uv=uv,
            # Their v runs along the rows of the stored atlas, which is what glTF wants.
            texture=shrink_texture(np.ascontiguousarray(atlas), self.config.texture_px),
            labels=self._vertex_labels(take, frame, vertices, faces),
        )

    def _vertex_labels(self, take: Path, frame: str, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray | None:
        path = take / "Semantic" / "labels" / f"label-f{frame}.pkl"
        if not self.files.has(path):
            return None
        table = self._pickle(path)
        found = table.get("scan_labels") if isinstance(table, dict) else None
        labels = as_array(found, "scan_labels", len(vertices)).astype(np.int64)
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(LABELS):
            raise UserError(f"has labels outside of 0 to {len(LABELS) - 1}")
        if self.config.four_d_dress.face:
            labels[find_face(vertices, faces, labels, skin=0, hair=1)] = _FACE
        return labels

    def _masks(
        self, take: Path, camera: str, frame: str, calibrated: PhotoCamera | None, height: int, width: int
    ) -> Mapping[str, np.ndarray]:
        """Masks of a photo: drawn from the scan, else from the label picture, else none. Labels of one name join."""
        drawn = None
        if calibrated is not None and self.files.has(take / "Meshes_pkl" / f"mesh-f{frame}.pkl"):
            scan = self._scan(take, frame, texture=False)
            if scan.labels is not None:
                drawn = draw_labels(scan.vertices, scan.faces, scan.labels, calibrated, height, width)
        picture = take / "Capture" / camera / "labels" / f"label-f{frame}.png"
        if drawn is None and self.files.has(picture):
            drawn = self._label_picture(picture, height, width)
        masks: dict[str, np.ndarray] = {}
        if drawn is not None:
            for label, asset in self.assets.items():
                mask = drawn == label
                if mask.any():
                    masks[asset] = masks[asset] | mask if asset in masks else mask
        return masks

    def _label_picture(self, path: Path, height: int, width: int) -> np.ndarray:
        """A picture of label colours as (H, W) labels, -1 where a pixel is near none of them (the ground is white)."""
        try:
            pixels = decode_photo(self.files.read(path), max_pixels=self.config.max_pixels).pixels
        except UserError as error:
            raise UserError(f"({self.files.relative(path)} {error})") from None
        if pixels.shape[:2] != (height, width):
            raise UserError(f"({self.files.relative(path)} has another size than the photo)")
        far = np.abs(pixels[:, :, None].astype(np.int16) - np.array(LABEL_COLORS, np.int16)).max(3)
        return np.where(far.min(2) <= _COLOR_TOLERANCE, far.argmin(2), -1).astype(np.int16)

    # -- ground truth -------------------------------------------------------------------------------------------------

    def _truth(self, takes: list[Path]) -> Truth:
        take, frame, fit = self._truth_frame(takes)
        try:
            scan = self._scan(take, frame, texture=True)
            mesh, scale = stand(
                scan,
                facing=self._front(take) if fit is None else fit.facing,
                unit_m=1.0,
                body_height_m=None if fit is None else self._body_height_m(fit),
            )
        except UserError as error:
            raise UserError(f"cannot be made of {take.name}/{frame}: the scan {error}") from None
        info: dict[str, Any] = {
            "source": self.files.relative(take / "Meshes_pkl" / f"mesh-f{frame}.pkl"),
            "scale": round(scale, 6),
            "height_from": "scan" if fit is None or self._body_height_m(fit) is None else "body model",
            "pose": "unknown" if fit is None else f"{fit.distance_from_a_pose_deg:.1f} degrees from an A-pose",
        }
        if scan.labels is None:
            return Truth(mesh=mesh, info=info)
        names = list(dict.fromkeys(["skin", *self.assets.values()]))
        indices = np.array([0, *(names.index(self.assets[label]) for label in range(1, _FACE + 1))])
        texels = indices[texel_labels(scan)].astype(np.uint8)
        return Truth(mesh=mesh, labels=texels, asset_names=tuple(names), info=info)

    def _truth_frame(self, takes: list[Path]) -> tuple[Path, str, _Fit | None]:
        wanted = self.config.four_d_dress.truth_frame
        if wanted:
            name, _, frame = wanted.partition("/")
            take = next((take for take in takes if take.name == name), None)
            if take is None or not self.files.has(take / "Meshes_pkl" / f"mesh-f{frame}.pkl"):
                raise UserError(f"has no scan {wanted} (four_d_dress.truth_frame)")
            return take, frame, self._fit(take, frame)
        candidates: list[tuple[float, int, tuple[Path, str, _Fit | None]]] = []
        for take in takes:
            frames = [
                path.stem.removeprefix("mesh-f")
                for path in self.files.files(take / "Meshes_pkl", ".pkl")
                if path.stem.startswith("mesh-f")
            ]
            if frames:
                fit = self._fit(take, frames[0])
                distance = math.inf if fit is None else fit.distance_from_a_pose_deg
                candidates.append((distance, len(candidates), (take, frames[0], fit)))
        if not candidates:
            raise UserError("is not there (no take has Meshes_pkl/mesh-f*.pkl)")
        return min(candidates, key=lambda candidate: candidate[:2])[2]

    def _front(self, take: Path) -> np.ndarray:
        """Where the person faces by the take's own rotation, which turns a scan to its front."""
        info = self._pickle(take / "basic_info.pkl")
        rotation = info.get("rotation") if isinstance(info, dict) else None
        if rotation is None:
            return np.array([0.0, 0.0, 1.0])
        return as_array(rotation, "rotation", 3, 3).astype(np.float64)[2]

    def _body_height_m(self, fit: _Fit) -> float | None:
        path = fit.path.with_suffix(".ply")
        return float(np.ptp(ply_vertices(self.files.read(path))[:, 1])) if self.files.has(path) else None
