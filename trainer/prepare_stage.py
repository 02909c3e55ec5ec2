"""The first stage: from a folder of photos to checked assets, with masks and words made where the album has none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.album import MASK_FOLDER
from datamodules.album_reader import read_album
from datamodules.assets import load_assets, prepare_assets
from datamodules.assistants import make_assistants
from datamodules.overrides import APPLIED_FILE, OVERRIDES_FILE, AlbumOverrides, dump_overrides, read_overrides
from modules.errors import UserError
from trainer.album_run import AlbumRun, album_key
from trainer.artifacts import write_text
from trainer.canonical import hash_file, hash_json

if TYPE_CHECKING:
    from trainer.config import RunConfig

# Beside the stages: answers of a captioner outlive changed settings, so that names never drift.
WORDS_FOLDER = "words"
_log = logging.getLogger(__name__)


def prepare(run: AlbumRun, config: RunConfig) -> None:
    """Fill in `run.prepared`, from disk where nothing changed. Raises UserError when the album cannot be used."""
    stage = run.stage("assets")
    decisions = read_overrides(run.folder / OVERRIDES_FILE, config.album.view_vocabulary)
    inputs = {"album": album_key(run.source, config.album.max_file_bytes)}
    if decisions != AlbumOverrides():
        inputs["decisions"] = hash_json(dump_overrides(decisions))
    if (weights := _parser_weights(run.source, config)) is not None:
        inputs["parser"] = hash_file(weights)
    key = stage.key(inputs, config.album, config.seed)
    if stage.status(key) != "complete":
        from trainer.config import PROJECT_ROOT

        assistants = make_assistants(
            config.album,
            PROJECT_ROOT,
            words_folder=run.folder / WORDS_FOLDER,
            overrides=decisions,
            announce=_log.warning,
        )
        album = read_album(run.source, config.album, assistants)
        working = stage.working(key)
        prepared = prepare_assets(album, working)
        if album.overrides != AlbumOverrides():
            # The page on which a person reviews the album has to know under which names things were found.
            write_text(working / APPLIED_FILE, dump_overrides(album.overrides))
        stage.commit(
            key,
            inputs=inputs,
            config=config.album,
            seed=config.seed,
            metrics={"photos": len(prepared.stems), "set_aside": len(prepared.set_aside)},
            reproducible=True,
        )
    run.prepared = load_assets(stage.path)
    from trainer.ground_truth import load_ground_truth

    # Read whole, so that a damaged one is reported now and not after the training.
    run.has_truth = load_ground_truth(run.source) is not None


def _parser_weights(source: Path, config: RunConfig) -> Path | None:
    """The file of the mini parser where it will be asked, so that other weights make other masks."""
    from trainer.config import PROJECT_ROOT

    segmentor = config.album.segmentor
    asked = segmentor.method == "mini" or (segmentor.method == "auto" and not (source / MASK_FOLDER).is_dir())
    path = PROJECT_ROOT / segmentor.weights / "parser.safetensors"
    if not asked:
        return None
    if not path.is_file():
        raise UserError(
            f"{path} is missing, but the album {source} has no masks, and the mini parser was to make them: name the "
            f"folder of an exported parser with album.segmentor.weights=, or bring masks"
        )
    return path
