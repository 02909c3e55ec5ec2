"""What a configuration takes of an album: a share of its photos, short words or long descriptions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from datamodules.album import AlbumConfig
from datamodules.album_reader import read_album
from modules.errors import UserError

STEMS = tuple(f"photo_{index:02d}" for index in range(8))
DESCRIPTION = {
    "assets": {"face": "oval", "shirt": "long-sleeved"},
    "descriptions": {"shirt": "Long-sleeved red  striped white", "cap": "blue"},
}


def stems(folder: Path, **config) -> list[str]:
    return [photo.stem for photo in read_album(folder, AlbumConfig(**config)).photos]


def test_a_share_of_the_photos_is_the_same_every_time_and_part_of_a_larger_one(write_album) -> None:
    folder = write_album(STEMS)
    shares = [stems(folder, photo_fraction=fraction) for fraction in (0.25, 0.5, 0.75, 1.0)]
    assert [len(share) for share in shares] == [2, 4, 6, 8]
    assert shares[1] == stems(folder, photo_fraction=0.5)
    for smaller, larger in itertools.pairwise(shares):
        assert set(smaller) < set(larger)
        assert larger == sorted(larger)


def test_the_share_is_rounded_up_and_no_less_than_the_minimum(write_album) -> None:
    folder = write_album(STEMS)
    assert len(stems(folder, photo_fraction=0.3)) == 3
    assert len(stems(folder, photo_fraction=0.01)) == 1
    assert len(stems(folder, photo_fraction=0.01, min_photos=5)) == 5


def test_photos_that_are_left_out_are_named_and_make_another_album(write_album) -> None:
    folder = write_album(STEMS)
    whole, half = (read_album(folder, AlbumConfig(photo_fraction=fraction)) for fraction in (1.0, 0.5))
    left_out = dict(half.set_aside)
    assert set(left_out) == set(STEMS) - {photo.stem for photo in half.photos}
    assert all("album.photo_fraction is 0.5" in reason for reason in left_out.values())
    assert whole.set_aside == ()
    assert half.content_hash != whole.content_hash


def test_which_photos_are_taken_does_not_depend_on_their_names(write_album) -> None:
    folder = write_album(STEMS)
    before = {stem: (folder / "image" / f"{stem}.png").read_bytes() for stem in stems(folder, photo_fraction=0.5)}
    for place in (folder / "image", folder / "mask"):
        for path in list(place.iterdir()):
            path.rename(path.with_name(f"{9 - int(path.name[6:8])}{path.name[8:]}"))
    after = [(folder / "image" / f"{stem}.png").read_bytes() for stem in stems(folder, photo_fraction=0.5)]
    assert sorted(after) == sorted(before.values())


def test_long_descriptions_take_the_place_of_shape_words(write_album) -> None:
    folder = write_album(description=DESCRIPTION)
    short, long = (read_album(folder, AlbumConfig(descriptions=kind)) for kind in ("short", "long"))  # type: ignore[arg-type]
    assert [(asset.name, asset.words) for asset in short.assets] == [("face", "oval"), ("shirt", "long-sleeved")]
    assert [asset.words for asset in long.assets] == ["oval", "long-sleeved red striped white"]
    assert short.notes == ()
    assert long.notes == ("album.json has no long description of face; its shape words are used",)
    assert "cap" in dict(long.set_aside)
    assert short.content_hash == long.content_hash


@pytest.mark.parametrize("description", [None, {"assets": {"shirt": "long"}}])
def test_long_descriptions_that_are_not_there_are_asked_for(write_album, description) -> None:
    folder = write_album(description=description)
    with pytest.raises(UserError, match=r'album.json has no "descriptions": add them to album.json') as caught:
        read_album(folder, AlbumConfig(descriptions="long"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(["red"], '"descriptions" is a list'), ({"shirt": 3}, 'the description of "shirt" is a number')],
)
def test_descriptions_of_a_wrong_kind_are_named(write_album, content, words) -> None:
    folder = write_album()
    (folder / "album.json").write_text(json.dumps({"descriptions": content}))
    with pytest.raises(UserError, match=words):
        read_album(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"photo_fraction": 0.0}, "photo_fraction"),
        ({"photo_fraction": 1.1}, "photo_fraction"),
        ({"descriptions": "some"}, "descriptions"),
    ],
)
def test_ranges(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"{words} must .*found"):
        AlbumConfig(**change)
