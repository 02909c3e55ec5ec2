"""Answers of captioners, kept on disk: the same album keeps its names, whatever a model would say the next time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.asset_names import canonical_asset, clean_words
from datamodules.atomic import write_bytes
from datamodules.captioning.captioner import AlbumWords, Captioner, CaptionRequest

_FORMAT = 1
_MAX_BYTES = 1_000_000


def cached_caption(captioner: Captioner, request: CaptionRequest, folder: Path) -> AlbumWords:
    """The answer that was given before to this very request, or a new one, which is kept in `folder`.

    The names that stand in for a model that failed are not kept, so that it is asked again the next time. A damaged
    file counts as none and is replaced.
    """
    path = folder / f"{cache_key(captioner.identity, request)}.json"
    if (words := _read(path, request)) is not None:
        return words
    words = captioner.caption(request)
    if not words.fallback:
        content = {
            "format": _FORMAT,
            "gender": words.gender,
            "names": dict(words.names),
            "words": dict(words.words),
            "notes": list(words.notes),
        }
        write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
    return words


def cache_key(identity: str, request: CaptionRequest) -> str:
    """sha256 of the captioner's identity, the photos' pixels, which assets each of them shows, and the assets' names.

    The masks' own pixels do not count: a segmentor that draws an outline otherwise is no reason to rename a shirt.
    """
    digest = hashlib.sha256(json.dumps([_FORMAT, identity, request.asset_names]).encode())
    for photo, masks in zip(request.photos, request.masks, strict=True):
        digest.update(json.dumps([photo.shape, sorted(masks)]).encode())
        digest.update(np.ascontiguousarray(photo).data)
    return digest.hexdigest()


def _read(path: Path, request: CaptionRequest) -> AlbumWords | None:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        content: Any = json.loads(path.read_bytes())
        words = AlbumWords(
            gender=content["gender"],
            names={name: content["names"][name] for name in request.asset_names},
            words={str(name): str(said) for name, said in content["words"].items()},
            notes=tuple(map(str, content["notes"])),
        )
        kept = set(words.names.values())
        whole = (
            content["format"] == _FORMAT
            and words.gender in ("man", "woman", "person")
            and all(canonical_asset(name) == name for name in kept)
            and all(name in kept and said and clean_words(said) == said for name, said in words.words.items())
        )
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    return words if whole else None
