"""The captioner without a model: a person in what the segmentor found."""

from __future__ import annotations

from datamodules.asset_names import canonical_asset
from datamodules.captioning.captioner import AlbumWords, CaptionRequest


class NamesCaptioner:
    """Gender "person", assets under the names that the segmentor gave them, no shape words."""

    identity = "names"

    def caption(self, request: CaptionRequest) -> AlbumWords:
        return AlbumWords(gender="person", names={name: canonical_asset(name) for name in request.asset_names})
