"""One album on its way through the stages: where its folders are, what it is made of, and whether it can go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datamodules.album import IMAGE_FOLDER, MASK_FOLDER
from datamodules.assets import PreparedAlbum
from trainer.artifacts import StageFolder
from trainer.canonical import hash_file, hash_json

SUBJECT, BASELINE, TEMPLATE = "avatar", "words_only", "template"


@dataclass
class AlbumRun:
    """One album on its way through the stages. `failed` holds the reason once it cannot go on, `traceback` the place.

    keys and inputs: of the trained stages that it has come to, by the stage's name.
    """

    name: str
    source: Path
    folder: Path
    prepared: PreparedAlbum | None = None
    has_truth: bool = False
    failed: str | None = None
    traceback: str | None = None
    keys: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.folder / name, name)

    @property
    def album(self) -> PreparedAlbum:
        assert self.prepared is not None, "the assets stage comes first"
        return self.prepared

    def fail(self, stage: str, reason: str, *, seed: int) -> None:
        """Leave the pack in a trained stage; its manifest keeps the reason (no full stop at its end)."""
        self.failed = reason
        self.stage(stage).fail(self.keys[stage], reason, inputs=self.inputs[stage], seed=seed)


def content_key(folder: Path) -> str:
    """A hash of an album's files as they are, without decoding a photo.

    Hidden files (a file manager's) and other folders (ground truth, or results that were put there) do not count.
    """
    places = (folder, folder / IMAGE_FOLDER, folder / MASK_FOLDER)
    found = [path for place in places if place.is_dir() for path in place.iterdir()]
    files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    return hash_json({path.relative_to(folder).as_posix(): hash_file(path) for path in files})
