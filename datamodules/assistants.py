"""Who makes what an album does not bring along: masks, words, and a person's later decisions about both."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.album import AlbumConfig
from datamodules.captioning.captioner import AlbumWords, Captioner, CaptionRequest, make_captioner
from datamodules.overrides import AlbumOverrides
from datamodules.segmentation.segmentor import Segmentor, make_segmentor


@dataclass(frozen=True, kw_only=True)
class Assistants:
    """segmentor: called for when the first mask has to be made; returns None where none may be made. captioner: None
    leaves names and words as they are. words_folder: where answers of the captioner are kept. overrides: decisions that
    are not in the album's folder.
    """

    segmentor: Callable[[], Segmentor | None] = lambda: None
    captioner: Captioner | None = None
    words_folder: Path | None = None
    overrides: AlbumOverrides = field(default_factory=AlbumOverrides)

    def words(self, request: CaptionRequest) -> AlbumWords | None:
        """What the captioner says, asked once for equal requests."""
        if self.captioner is None:
            return None
        if self.words_folder is None:
            return self.captioner.caption(request)
        from datamodules.captioning.cache import cached_caption

        return cached_caption(self.captioner, request, self.words_folder)


def make_assistants(
    config: AlbumConfig,
    root: Path,
    *,
    words_folder: Path | None = None,
    overrides: AlbumOverrides | None = None,
    announce: Callable[[str], None] = print,
) -> Assistants:
    """The assistants of the settings; networks are loaded when they are needed, once for all albums.

    root: what relative paths of weights start from.
    """
    return Assistants(
        segmentor=functools.partial(_segmentor, config.segmentor, root),
        captioner=make_captioner(config.captioner, announce=announce),
        words_folder=words_folder,
        overrides=overrides or AlbumOverrides(),
    )


@functools.lru_cache(maxsize=2)
def _segmentor(config, root):  # type: ignore[no-untyped-def]
    return make_segmentor(config, root)
