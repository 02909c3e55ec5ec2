"""Which photos of an album a model is shown, and how they are packed: the person alone, small, without metadata."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from datamodules.captioning.captioner import CaptionFailed, CaptionRequest
from datamodules.images import fit

_MARGIN = 0.1
_QUALITIES = (90, 80, 70, 60, 50)


def choose_photos(request: CaptionRequest, max_photos: int) -> list[int]:
    """Indices of up to `max_photos` photos that show the assets best, in the album's order.

    One after the other, that one is taken which adds most to the largest area (as a share of its photo) in which each
    asset is seen, an asset that is new counting by itself; the earlier photo on a draw.
    """
    shares = np.zeros((len(request.photos), len(request.asset_names)))
    for index, masks in enumerate(request.masks):
        for column, name in enumerate(request.asset_names):
            if name in masks:
                shares[index, column] = masks[name].mean()
    best = np.zeros(len(request.asset_names))
    chosen: list[int] = []
    while len(chosen) < min(max_photos, len(request.photos)):
        better = np.maximum(shares, best)
        scores = ((better > 0).astype(float) + better).sum(axis=1)
        scores[chosen] = -1
        chosen.append(int(np.argmax(scores)))
        best = better[chosen[-1]]
    return sorted(chosen)


def person_crop(request: CaptionRequest, index: int, max_px: int) -> Image.Image:
    """The photo around its masks, with a tenth of margin, its longer side at most `max_px`.

    What else the photo shows, other people among it, is nobody's business. Without masks it is the whole photo.
    """
    photo = request.photos[index]
    masks = [mask for name, mask in request.masks[index].items() if name in request.asset_names]
    inside = np.any(masks, axis=0) if masks else np.zeros(photo.shape[:2], bool)
    if inside.any():
        bounds = []
        for axis in (0, 1):
            filled = np.flatnonzero(inside.any(axis=1 - axis))
            margin = round(_MARGIN * (filled[-1] + 1 - filled[0]))
            bounds.append(slice(max(0, filled[0] - margin), filled[-1] + 1 + margin))
        photo = photo[bounds[0], bounds[1]]
    return fit(Image.fromarray(np.ascontiguousarray(photo)), max_px)


def encode_jpeg(image: Image.Image, max_bytes: int) -> bytes:
    """A JPEG file of pixels and nothing else, of at most `max_bytes`: at lower quality, then smaller, if need be."""
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
        if max(image.size) <= 32:
            raise CaptionFailed(f"no photo fits into {max_bytes} bytes (album.captioner.max_image_bytes)")
        image = fit(image, max(image.size) * 3 // 4)
