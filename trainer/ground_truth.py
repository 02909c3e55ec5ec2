"""The true avatar of a synthetic album: a textured mesh whose texels know their asset."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from modules.errors import UserError
from modules.geometry.mesh import TexturedMesh, load_textured_mesh

FOLDER = "ground_truth"


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """What an album's avatar should have been.

    mesh: in the avatar's frame (metres, y up, facing +z, feet on y = 0, A-pose, 1.70 m).
    labels: (H, W) uint8, the asset's index of each texel in the texture's UV; 0 is skin or nothing. A scan without
    labels has 0 everywhere, and figures by asset are left out.
    asset_names: name of each index.
    """

    mesh: TexturedMesh
    labels: np.ndarray
    asset_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype != np.uint8:
            raise ValueError(f"labels must be (H, W) uint8, found {self.labels.shape} {self.labels.dtype}")
        highest = int(self.labels.max(initial=0))
        if highest >= len(self.asset_names):
            raise ValueError(
                f"labels hold the index {highest}, but asset_names has only {len(self.asset_names)} entries"
            )

    @property
    def clothed(self) -> np.ndarray:
        """(H, W) bool: the texels that show an asset; all of them where there are no labels."""
        return self.labels > 0 if self.labels.any() else np.ones_like(self.labels, bool)


def load_ground_truth(album_folder: Path) -> GroundTruth | None:
    """Read ALBUM/ground_truth/{avatar.glb, labels.png, labels.json}; None when the album has no such folder.

    Without both of the label files the truth is a scan that nobody has labelled. Raises UserError when the folder is
    there but otherwise incomplete or inconsistent.
    """
    folder = Path(album_folder) / FOLDER
    if not folder.is_dir():
        return None
    paths = [folder / name for name in ("avatar.glb", "labels.png", "labels.json")]
    if paths[0].is_file() and not paths[1].exists() and not paths[2].exists():
        mesh = load_textured_mesh(paths[0])
        return GroundTruth(mesh=mesh, labels=np.zeros(mesh.texture.shape[:2], np.uint8), asset_names=("skin",))
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path}: the file is missing, but ground truth needs avatar.glb, labels.png and labels.json; "
                f"add it or remove the folder {folder}"
            )
    asset_names = _read_names(paths[2])
    labels = _read_labels(paths[1], len(asset_names))
    return GroundTruth(mesh=load_textured_mesh(paths[0]), labels=labels, asset_names=asset_names)


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f'{path}: found invalid JSON ({error}), expected {{"assets": ["skin", ...]}}; correct the file'
        ) from error
    names = content.get("assets") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f'{path}: the key "assets" must be a list of names, one for each label, found {names!r}; correct the file'
        )
    return tuple(names)


def _read_labels(path: Path, num_names: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except OSError as error:
        raise UserError(
            f"{path}: found an unreadable image ({error}), expected a one-channel PNG of asset indices; write it again"
        ) from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise UserError(
            f"{path}: found an image of shape {labels.shape} and type {labels.dtype}, expected one 8-bit channel "
            "of asset indices; save it as a greyscale PNG"
        )
    highest = int(labels.max(initial=0))
    if highest >= num_names:
        raise UserError(
            f"{path}: found the asset index {highest}, but labels.json names only {num_names} assets; "
            "add the missing names or write the labels again"
        )
    return labels
