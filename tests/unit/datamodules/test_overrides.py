"""assets.yaml: reading it strictly, merging, writing, and what it makes of an album."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.album import Album, AlbumConfig, Asset, Photo, SetAside
from datamodules.album_reader import read_album
from datamodules.asset_names import CANONICAL_ASSETS, canonical_asset, clean_words
from datamodules.assets import prepare_assets
from datamodules.overridden_album import apply_overrides
from datamodules.overrides import (
    GENDERS,
    UNKNOWN,
    AlbumOverrides,
    AssetOverride,
    PhotoOverride,
    SubjectPoint,
    dump_overrides,
    merge_overrides,
    parse_overrides,
    photo_key,
    read_overrides,
)
from datamodules.views import view_words
from modules.errors import UserError
from modules.geometry.camera import FRAMINGS

FILE = Path("assets.yaml")
WHOLE = """\
gender: woman
subject: {photo: IMG_0001, at: [0.42, 0.55]}   # the one in the middle
assets:
  shirt: {name: Blouse, words: Long-Sleeved}
  hair: drop
  cap: {drop: true}
  tee: keep
photos:
  IMG_0007.JPG: drop
  001: {view: Front View, framing: full, pose: standing, background: Plain, drop_masks: [shoes, hair]}
  IMG_0002: {view: unknown}
"""


def parse(text: str | bytes, vocabulary="eight") -> AlbumOverrides:
    return parse_overrides(FILE, text if isinstance(text, bytes) else text.encode(), vocabulary)


def test_every_key_is_read_and_names_are_canonical() -> None:
    assert parse(WHOLE) == AlbumOverrides(
        gender="woman",
        subject_point=SubjectPoint(photo="IMG_0001", x=0.42, y=0.55),
        assets={
            "shirt": AssetOverride(name="blouse", words="long-sleeved"),
            "haircut": AssetOverride(drop=True),
            "cap": AssetOverride(drop=True),
            "t-shirt": AssetOverride(drop=False),
        },
        photos={
            "IMG_0007": PhotoOverride(drop=True),
            "001": PhotoOverride(
                view="front",
                framing="full body",
                pose="standing",
                background="plain",
                drop_masks=("haircut", "shoes"),
            ),
            "IMG_0002": PhotoOverride(view=UNKNOWN),
        },
    )


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "assets:\n", "assets: {shirt: }\nphotos: {a: {view: }}"])
def test_what_is_left_empty_says_nothing(text: str) -> None:
    assert parse(text) == AlbumOverrides()


def test_scalars_stay_what_is_written() -> None:
    found = parse("photos: {001: drop, 0x10: drop, 1e3: drop, no: drop}\nassets: {null: drop, shirt: {words: no}}")
    assert set(found.photos) == {"001", "0x10", "1e3", "no"}
    assert found.assets == {"null": AssetOverride(drop=True), "shirt": AssetOverride(words="no")}
    assert parse('assets: {shirt: {words: ""}}').assets["shirt"].words == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gendr: man", 'unknown key "gendr".*did you mean "gender"'),
        ("gender: womann", 'is "womann", but one of man, woman, person.*did you mean "woman"'),
        ("gender: [man]", '"gender" is a list'),
        ("assets: [shirt]", '"assets" is a list, but a table'),
        ("assets: {shirt: blouse}", 'asset "shirt" is "blouse".*or the word drop'),
        ("assets: {shirt: {nam: blouse}}", 'asset "shirt" has the unknown key "nam".*did you mean "name"'),
        ("assets: {shirt: {name: a!}}", '"name" of asset "shirt": asset name \'a!\' must be'),
        ("assets: {shirt: {name: person}}", "no asset; choose another name"),
        ("assets: {person: drop}", "no asset"),
        ("assets: {shirt: {words: <new1>}}", "plain punctuation"),
        ("assets: {shirt: {drop: maybe}}", 'is "maybe", but true or false'),
        ("assets: {hair: drop, haircut: drop}", 'asset "haircut" is the same as "hair"'),
        ("photos: {a.jpg: drop, a: drop}", 'photo "a" is the same as "a.jpg"'),
        ("photos: {a: {view: frnt}}", '"view" of photo "a" is "frnt", but one of front, .*did you mean "front"'),
        ("photos: {a: {framing: feet}}", "full body, upper body, head, unknown"),
        ("photos: {a: {pose: <b>}}", "up to 60 letters"),
        ("photos: {a: {view: [front]}}", '"view" of photo "a" is a list, but a word'),
        ("photos: {a: {drop_masks: shoes}}", 'is "shoes", but a list like'),
        ("photos: {../a: drop}", "without folder"),
        ('photos: {"a\\nb": drop}', "a photo's name without folder"),
        (f"photos: {{{'a' * 300}: drop}}", "a photo's name"),
        ("subject: {photo: a}", '"subject" has no "at"'),
        ("subject: {at: [0, 0]}", '"subject" has no "photo"'),
        ("subject: {photo: a, at: [0.5, 1.5]}", r"\[0.5, 1.5\], but fractions"),
        ("subject: {photo: a, at: [0.5, nan]}", "not finite"),
        ("subject: {photo: a, at: [0.5]}", "two numbers"),
        ("subject: {photo: a, at: {0.1: b, 0.2: c}}", "two numbers"),
        ("- a", "the file is a list"),
        # Not YAML, or YAML that is not taken.
        ("a: 1\na: 2", 'line 2: the key "a" is given twice'),
        ("assets: &a {}", "anchor or an alias"),
        ("assets: *a", "anchor or an alias"),
        ("*a : b", "anchor or an alias"),
        ("gender: !!python/object/apply:os.getcwd []", "there is a tag"),
        ("? [a]\n: b", "a key is a list"),
        ("--- {}\n--- {}", "a second document"),
        ("a: {b: {c: {d: {e: {f: g}}}}}", "nested more than 5 deep"),
        ("[" * 100_000, "nested more than 5 deep"),
        ("a:\n\t- b", "not valid YAML: .* in line 2, column 1"),
        ("a: {", "not valid YAML"),
        ('"\\Uffffffff"', "not valid YAML"),
        ("a: 1\nb: \x00", "a character in line 2"),
        (b"gender: \xff", "not UTF-8"),
        (b"#" * 300_000, "300000 bytes, but at most 262144"),
    ],
)
def test_mistakes_are_named(text: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("assets.yaml")
    assert message.isprintable()
    assert len(message) < 400


def test_views_are_those_of_the_vocabulary() -> None:
    assert parse("photos: {a: {view: overhead}}", "four").photos["a"].view == "overhead"
    with pytest.raises(UserError, match="but one of front, front left"):
        parse("photos: {a: {view: overhead}}")


def test_files_are_read_only_when_regular_and_small(tmp_path: Path) -> None:
    path = tmp_path / "assets.yaml"
    assert read_overrides(path) == AlbumOverrides()
    path.write_text("gender: man")
    assert read_overrides(path).gender == "man"
    path.write_bytes(b"#" * 300_000)
    with pytest.raises(UserError, match="300000 bytes"):
        read_overrides(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        read_overrides(path)


def test_photos_that_are_wanted_or_not() -> None:
    found = parse("photos: {a.HEIC: drop, b: keep, c: {view: front}, é: drop}")
    assert [found.drops_photo(stem) for stem in ("a", "a.jpg", "b", "c", "d", "é")] == [True, True] + [False] * 3 + [
        True
    ]
    assert [found.keeps_photo(stem) for stem in "abcd"] == [False, True, False, False]
    assert [photo_key(name) for name in ("a.JPG", "a.heic", "a.b", ".jpg", "a.jpg.png")] == [
        "a",
        "a",
        "a.b",
        ".jpg",
        "a",
    ]


ASSET_NAMES = st.one_of(
    st.sampled_from([*CANONICAL_ASSETS, "null", "no", "1e3", "yes"]),
    st.from_regex(r"[a-zé0-9][a-z '\-]{0,10}[a-z]", fullmatch=True),
).map(canonical_asset)
ASSETS = st.builds(
    AssetOverride,
    name=st.none() | ASSET_NAMES,
    words=st.none() | st.text("abz09é丁_ ,.'&/()-", max_size=9).map(clean_words),
    drop=st.none() | st.booleans(),
).filter(lambda entry: entry != AssetOverride())
FREE_WORDS = st.sampled_from(["standing", "arms-out", "no", "1 2", UNKNOWN])
PHOTOS = st.builds(
    PhotoOverride,
    view=st.none() | st.sampled_from([*view_words("eight"), UNKNOWN]),
    framing=st.none() | st.sampled_from([*FRAMINGS, UNKNOWN]),
    pose=st.none() | FREE_WORDS,
    background=st.none() | FREE_WORDS,
    drop=st.none() | st.booleans(),
    drop_masks=st.none()
    | st.sets(st.sampled_from(CANONICAL_ASSETS)).map(
        lambda names: tuple(name for name in CANONICAL_ASSETS if name in names)
    ),
).filter(lambda entry: entry != PhotoOverride())
STEMS = st.text(min_size=1, max_size=150).map(photo_key).filter(lambda key: key.isprintable() and "/" not in key)
OVERRIDES = st.builds(
    AlbumOverrides,
    gender=st.none() | st.sampled_from(GENDERS),
    subject_point=st.none() | st.builds(SubjectPoint, photo=STEMS, x=st.floats(0, 1), y=st.floats(0, 1)),
    assets=st.dictionaries(ASSET_NAMES, ASSETS, max_size=4),
    photos=st.dictionaries(STEMS, PHOTOS, max_size=4),
)


@settings(max_examples=60)
@given(OVERRIDES)
def test_what_is_written_reads_back_equal(overrides: AlbumOverrides) -> None:
    text = dump_overrides(overrides)
    again = parse(text)
    assert again == overrides
    assert dump_overrides(again) == text


@settings(max_examples=60)
@given(OVERRIDES, OVERRIDES)
def test_merging(base: AlbumOverrides, over: AlbumOverrides) -> None:
    nothing = AlbumOverrides()
    assert merge_overrides(base, nothing) == merge_overrides(nothing, base) == merge_overrides(base, base) == base
    merged = merge_overrides(base, over)
    assert merge_overrides(merged, over) == merged
    assert merged.gender == (over.gender or base.gender)
    assert set(merged.assets) == {*base.assets, *over.assets}
    for name, entry in over.assets.items():
        assert merged.assets[name].name == (entry.name or base.assets.get(name, AssetOverride()).name)
        assert bool(merged.assets[name].drop) == bool(entry.drop)
    for name in set(base.photos) - set(over.photos):
        assert merged.photos[name] == base.photos[name]


def test_who_says_more_than_drop_keeps() -> None:
    base = parse("assets: {shirt: drop}\nphotos: {a: {drop: true, view: back}}")
    merged = merge_overrides(base, parse("assets: {shirt: {name: blouse}}\nphotos: {a: {pose: sitting}}"))
    assert merged.assets["shirt"] == AssetOverride(name="blouse", drop=False)
    assert merged.photos["a"] == PhotoOverride(view="back", pose="sitting", drop=False)
    assert dump_overrides(merge_overrides(base, parse("assets: {shirt: keep}"))).startswith("assets:\n  shirt: keep\n")


def stripe(row: int) -> np.ndarray:
    mask = np.zeros((8, 8), bool)
    mask[row] = True
    return mask


def photo(stem: str, *assets: str, **words: str) -> Photo:
    masks = {name: stripe(("face", "shirt", "jumper", "shoes").index(name)) for name in assets}
    return Photo(stem=stem, image=np.zeros((8, 8, 3), np.uint8), masks=masks, **words)


@pytest.fixture
def album() -> Album:
    return Album(
        name="anna",
        folder=Path("anna"),
        gender="person",
        assets=(
            Asset(name="face"),
            Asset(name="shirt", words="long"),
            Asset(name="jumper", words="wide"),
            Asset(name="shoes"),
        ),
        photos=(
            photo("a", "face", "shirt", "jumper", view="back", pose="standing"),
            photo("b", "face", "shirt", "shoes"),
            photo("c", "jumper"),
        ),
        set_aside=(SetAside("d.jpg", "is blurred"),),
        notes=("a note",),
        content_hash="0" * 64,
    )


def change(album: Album, text: str) -> Album:
    return apply_overrides(album, parse(text))


def test_without_decisions_nothing_changes(album: Album) -> None:
    assert apply_overrides(album, AlbumOverrides()) is album


def test_new_names_words_gender_and_views(album: Album) -> None:
    changed = change(
        album,
        "gender: woman\nassets: {shirt: {name: blouse}, shoes: {words: Red}}\n"
        "photos: {a: {view: left, pose: unknown}, b: {view: front, framing: head}}",
    )
    assert changed.gender == "woman"
    assert changed.assets == (
        Asset(name="face"),
        Asset(name="jumper", words="wide"),
        Asset(name="shoes", words="red"),
        Asset(name="blouse", words="long"),
    )
    assert [list(one.masks) for one in changed.photos] == [
        ["face", "jumper", "blouse"],
        ["face", "shoes", "blouse"],
        ["jumper"],
    ]
    np.testing.assert_array_equal(changed.photos[0].masks["blouse"], stripe(1))
    first, second = changed.photos[:2]
    assert (first.view, first.pose, first.framing) == ("left", None, None)
    assert (second.view, second.framing) == ("front", "head")
    assert changed.notes == album.notes
    assert changed.set_aside == album.set_aside
    assert changed.content_hash != album.content_hash
    assert changed.content_hash != change(album, "gender: woman").content_hash
    assert album.photos[0].view == "back"


def test_assets_of_one_name_are_joined(album: Album) -> None:
    changed = change(album, "assets: {shirt: {name: jumper}}")
    assert changed.asset_names == ("face", "jumper", "shoes")
    np.testing.assert_array_equal(changed.photos[0].masks["jumper"], stripe(1) | stripe(2))
    np.testing.assert_array_equal(changed.photos[1].masks["jumper"], stripe(1))
    assert changed.assets[1].words == "wide"
    assert change(album, "assets: {shirt: {name: jumper, words: thick}}").assets[1].words == "thick"
    assert change(album, "assets: {shirt: {name: coat}, jumper: {name: coat}}").assets[-1] == Asset(
        name="coat", words="long"
    )


def test_two_assets_change_names(album: Album) -> None:
    changed = change(album, "assets: {shirt: {name: jumper}, jumper: {name: shirt}}")
    np.testing.assert_array_equal(changed.photos[0].masks["jumper"], stripe(1))
    np.testing.assert_array_equal(changed.photos[0].masks["shirt"], stripe(2))
    assert {asset.name: asset.words for asset in changed.assets}["shirt"] == "wide"
    # A dropped asset's name is free for another.
    changed = change(album, "assets: {shirt: {name: jumper}, jumper: drop}")
    np.testing.assert_array_equal(changed.photos[0].masks["jumper"], stripe(1))
    assert [one.stem for one in changed.photos] == ["a", "b"]


def test_what_is_dropped_is_set_aside_with_its_reason(album: Album) -> None:
    changed = change(album, "assets: {jumper: drop}\nphotos: {b: {drop_masks: [shoes]}}")
    assert changed.asset_names == ("face", "shirt")
    assert changed.set_aside[1:] == (
        SetAside("jumper", "assets.yaml drops it"),
        SetAside("b_shoes", "assets.yaml drops it"),
        SetAside("c", "assets.yaml drops all of its masks"),
        SetAside("shoes", "assets.yaml drops every mask of it"),
    )
    changed = change(album, "photos: {a.jpg: drop}")
    assert [one.stem for one in changed.photos] == ["b", "c"]
    assert changed.set_aside[-1] == SetAside("a", "assets.yaml drops it")
    assert changed.notes == album.notes


def test_masks_are_dropped_by_their_old_or_new_name(album: Album) -> None:
    for name in ("shirt", "blouse"):
        changed = change(album, f"assets: {{shirt: {{name: blouse}}}}\nphotos: {{a: {{drop_masks: [{name}]}}}}")
        assert list(changed.photos[0].masks) == ["face", "jumper"]
        assert list(changed.photos[1].masks) == ["face", "shoes", "blouse"]


def test_what_fits_nothing_becomes_a_note(album: Album) -> None:
    changed = change(
        album,
        "subject: {photo: d, at: [0, 0]}\nassets: {shirts: drop, shirt: {name: blouse}, blouse: {words: x}}\n"
        "photos: {z: drop, d: {view: back}, a: {drop_masks: [shose]}}",
    )
    assert changed.notes[1:] == (
        'assets.yaml names the asset "shirts", which was not found; did you mean "shirt"?',
        'assets.yaml names the photo "z", which the album does not have',
        'assets.yaml says something of the photo "d", which is set aside',
        'assets.yaml drops a mask "shose" of the photo "a", but no asset has that name; did you mean "shoes"?',
        'the subject of assets.yaml is a point of the photo "d", which is set aside',
    )
    assert change(album, "photos: {d: drop}").notes == album.notes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("assets: {face: drop, shirt: drop, jumper: drop, shoes: drop}", "drops every asset of the album anna; keep"),
        ("photos: {a: drop, b: drop, c: drop}", "drops every photo of the album anna; keep at least one"),
    ],
)
def test_nothing_left_is_an_error(album: Album, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        change(album, text)


def test_overridden_album_is_prepared(write_album, tmp_path: Path) -> None:
    album = read_album(write_album(("a", "b"), ("face", "shirt")), AlbumConfig(working_resolution=64, min_photos=2))
    prepared = prepare_assets(change(album, "assets: {shirt: {name: blouse, words: silk}}"), tmp_path / "assets")
    assert prepared.asset_names == ("face", "blouse")
    assert prepared.asset_words == ("", "silk")
    with pytest.raises(UserError, match=r"leaves 1 photos of the album .* at least 2"):
        change(album, "photos: {a: drop}")
