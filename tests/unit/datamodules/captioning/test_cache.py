from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from datamodules.captioning.cache import cache_key, cached_caption
from datamodules.captioning.captioner import AlbumWords, CaptionFailed, CaptionRequest, FallbackCaptioner

WORDS = AlbumWords(
    gender="woman",
    names={"face": "face", "hair": "haircut", "upper": "jumper"},
    words={"jumper": "loose"},
    notes=("a note",),
)


class Drifting:
    """Says something else each time, as models do; `None` is a failure."""

    identity = "drifting"

    def __init__(self, *answers: AlbumWords | None) -> None:
        self.answers = list(answers)

    def caption(self, request: CaptionRequest) -> AlbumWords:
        answer = self.answers.pop(0)
        if answer is None:
            raise CaptionFailed("it is asleep")
        return answer


def test_the_same_album_keeps_its_names(tmp_path, request_of_two):
    captioner = Drifting(WORDS, replace(WORDS, gender="man"))
    first = cached_caption(captioner, request_of_two, tmp_path / "new")
    again = cached_caption(captioner, request_of_two, tmp_path / "new")
    assert first == again == WORDS
    assert list(again.names) == list(first.names)
    assert len(captioner.answers) == 1
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".json"]


def test_a_fallback_is_not_kept(tmp_path, request_of_two):
    captioner = FallbackCaptioner(Drifting(None, WORDS))
    assert cached_caption(captioner, request_of_two, tmp_path).fallback
    assert cached_caption(captioner, request_of_two, tmp_path) == WORDS


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b"x" * 1_000_001,
        {"format": 0},
        {"gender": "robot"},
        {"names": {"face": "face"}},
        {"names": {"face": "face", "hair": "haircut", "upper": "<asset0>"}},
        {"names": {"face": "face", "hair": "Hair", "upper": "jumper"}},
        {"words": {"shirt": "loose"}},
        {"words": {"jumper": "</s>"}},
        {"words": {"jumper": ""}},
        {"words": ["jumper"]},
        {"notes": None},
    ],
)
def test_a_damaged_file_is_replaced(tmp_path, request_of_two, damage):
    cached_caption(Drifting(WORDS), request_of_two, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage if isinstance(damage, bytes) else json.dumps(json.loads(whole) | damage).encode())
    assert cached_caption(Drifting(WORDS), request_of_two, tmp_path) == WORDS
    assert path.read_bytes() == whole


def test_the_key_depends_on_all_that_is_asked_but_the_masks_outlines(request_of_two):
    base = cache_key("a", request_of_two)
    photos, masks = list(request_of_two.photos), list(request_of_two.masks)
    other_photo = photos[1].copy()
    other_photo[3, 4, 0] ^= 1
    assert cache_key("a", replace(request_of_two, photos=[photos[0], other_photo])) != base
    assert cache_key("a", replace(request_of_two, photos=photos[::-1])) != base
    assert cache_key("a", replace(request_of_two, asset_names=("face", "hair"))) != base
    assert cache_key("a", replace(request_of_two, masks=[masks[0], masks[0]])) != base
    assert cache_key("b", request_of_two) != base
    outlines = [{name: np.ones((64, 48), bool) for name in table} for table in masks]
    assert cache_key("a", replace(request_of_two, masks=outlines)) == base
