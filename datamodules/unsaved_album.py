"""An album prepared in memory, for whoever wants to look at it and leave nothing behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from datamodules.album import AlbumConfig
from datamodules.album_reader import read_album
from datamodules.assets import PreparedAlbum, assets_of
from datamodules.assistants import make_assistants
from datamodules.overrides import AlbumOverrides


def prepare_unsaved(
    folder: Path,
    config: AlbumConfig,
    root: Path,
    *,
    overrides: AlbumOverrides | None = None,
    announce: Callable[[str], None] = print,
) -> PreparedAlbum:
    """What the stage "prepare" would make of an album folder; nothing is written.

    No vision-language model is asked, on this machine or another: its answer could not be kept, and may cost money, so
    names are the segmentor's. root: what relative paths of weights start from. overrides: decisions that are not in the
    album's folder. Raises UserError when the album cannot be used.
    """
    asked = config.captioner.method in ("local", "endpoint")
    if asked:
        config = dataclasses.replace(config, captioner=dataclasses.replace(config.captioner, method="names"))
    assistants = make_assistants(config, root, overrides=overrides, announce=announce)
    album = assets_of(read_album(folder, config, assistants))
    if not asked:
        return album
    note = "the captioner was not asked, so gender, names and shape words are those of the masks and of the album"
    return dataclasses.replace(album, notes=(*album.notes, note))
