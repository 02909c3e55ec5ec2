"""What a captioner is given, what it gives, and which one the settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from datamodules.album_description import Gender
from datamodules.asset_names import canonical_asset
from datamodules.captioning.config import CaptionerConfig
from modules.errors import UserError


class CaptionFailed(UserError):  # noqa: N818 - it says what became of the question
    """The model gave no usable answer; `on_failure` says whether its message ends the run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionRequest:
    """An album as its captioner sees it.

    photos: (H, W, 3) uint8 sRGB each, upright. masks: for each photo, asset name to (H, W) bool. asset_names: all of
    them, as the segmentor says; other names in `masks` are ignored.
    """

    photos: Sequence[np.ndarray]
    masks: Sequence[Mapping[str, np.ndarray]]
    asset_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.photos or not self.asset_names:
            raise ValueError("a captioner needs at least one photo and one asset")
        if len(self.masks) != len(self.photos):
            raise ValueError(f"there must be one table of masks for each of the {len(self.photos)} photos")
        for name in self.asset_names:
            canonical_asset(name)
            if not name.isprintable():
                raise ValueError(f"asset name {name[:60]!a} must be in one line")
        for photo, masks in zip(self.photos, self.masks, strict=True):
            if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or photo.size == 0:
                raise ValueError(f"a photo must be (H, W, 3) uint8, found {photo.shape} {photo.dtype}")
            for name, mask in masks.items():
                if mask.dtype != np.bool_ or mask.shape != photo.shape[:2]:
                    raise ValueError(
                        f"the mask of {name} must be {photo.shape[:2]} bool, found {mask.shape} {mask.dtype}"
                    )


@dataclass(frozen=True, kw_only=True)
class AlbumWords:
    """The words of an album.

    gender: the noun for prompts. names: each of the request's asset names to the canonical one it is kept under; two
    segmentor's names may share one. words: of those canonical names, the ones with shape words, to 1 to 3 of them with
    single spaces ("short tight"). notes: what of the answer was not taken. fallback: a model was asked in vain, and
    these are the segmentor's names.
    """

    gender: Gender = "person"
    names: Mapping[str, str]
    words: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fallback: bool = False


class Captioner(Protocol):
    """Names and words for an album."""

    @property
    def identity(self) -> str:
        """All that an answer depends on besides the request, for keys of caches; never a secret."""

    def caption(self, request: CaptionRequest) -> AlbumWords:
        """Raises UserError when the settings do not allow it, or when there is no usable answer and no fallback."""


class FallbackCaptioner:
    """Asks another captioner; where that gets no usable answer, the segmentor's names stay, and a note says why."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner

    @property
    def identity(self) -> str:
        return self.captioner.identity

    def caption(self, request: CaptionRequest) -> AlbumWords:
        from datamodules.captioning.names import NamesCaptioner

        try:
            return self.captioner.caption(request)
        except CaptionFailed as failure:
            note = f"{failure}; the assets keep the segmentor's names and have no shape words"
        return replace(NamesCaptioner().caption(request), notes=(note,), fallback=True)


def make_captioner(config: CaptionerConfig, *, announce: Callable[[str], None] = print) -> Captioner:
    """The captioner that the settings ask for; for "auto", the one of an album without words of its own.

    announce: is told in one line what is about to be sent, and what it may cost. Nothing is loaded or sent before
    `caption` is called.
    """
    captioner: Captioner
    match config.method:
        case "auto" | "names":
            from datamodules.captioning.names import NamesCaptioner

            return NamesCaptioner()
        case "local":
            from datamodules.captioning.local_model import LocalCaptioner

            captioner = LocalCaptioner(config)
        case "endpoint":
            from datamodules.captioning.endpoint import EndpointCaptioner

            captioner = EndpointCaptioner(config, announce)
    return FallbackCaptioner(captioner) if config.on_failure == "fallback" else captioner
