"""album.json and gpt4v_response.json: what is taken over, and one sentence for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.album_description import PhotoWords, parse_description
from modules.errors import UserError

OURS, THEIRS = Path("x/album.json"), Path("x/gpt4v_response.json")


def parse(content: object, path: Path = OURS):
    return parse_description(path, json.dumps(content).encode())


def test_own_layout() -> None:
    found = parse(
        {
            "gender": "woman",
            "assets": {"face": "oval", "hair": "Long", "T-shirt": None},
            "photos": {
                "a": {"view": "Front-Left", "framing": "full body", "pose": "standing", "background": "random"},
                "b": {"view": None},
            },
        }
    )
    assert found.gender == "woman"
    assert found.asset_words == {"face": "oval", "haircut": "long", "t-shirt": ""}
    assert found.photos == {
        "a": PhotoWords(view="front left", framing="full body", pose="standing", background="random"),
        "b": PhotoWords(),
    }
    assert found.notes == ()


def test_layout_of_the_reference() -> None:
    found = parse({"gender": "male", "face": "oval", "haircut": "short dreadlocks", "pants": "fitted jeans"}, THEIRS)
    assert found.gender == "man"
    assert found.asset_words == {"face": "oval", "haircut": "short dreadlocks", "trousers": "fitted jeans"}
    assert found.photos == {}


@pytest.mark.parametrize(("word", "gender"), [("Female", "woman"), ("neutral", "person"), (None, "person")])
def test_gender_words(word: str | None, gender: str) -> None:
    assert parse({"gender": word}).gender == gender


def test_what_is_left_out_is_noted() -> None:
    found = parse(
        {
            "genre": "x",
            "assets": {"hair": "", "haircut": "long"},
            "photos": {"a": {"view": "sideways", "framing": "feet", "pose": "<asset0>", "mood": "sad"}},
        }
    )
    assert found.asset_words == {"haircut": "long"}
    assert found.photos["a"] == PhotoWords()
    text = "\n".join(found.notes)
    for word in ("genre", "haircut", "sideways", "feet", "<asset0>", "mood"):
        assert word in text
    assert len(found.notes) == 6


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"gender": "man"', "line 1, column 17"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply|not valid JSON"),
        (b'{"gender": ' + b"9" * 5000 + b"}", "endless number"),
        (b"[1, 2]", "a list"),
        (b"3", "a number"),
        (b"null", "null"),
        (b'{"assets": ["face"]}', '"assets" is a list'),
        (b'{"photos": "a"}', '"photos" is text'),
        (b'{"photos": {"a": 3}}', '"a" is a number'),
        (b'{"photos": {"a": {"view": ["front"]}}}', "view.*a list"),
        (b'{"gender": "robot"}', "robot"),
        (b'{"gender": true}', "true or false"),
        (b'{"assets": {"face": {"x": 1}}}', "face.*an object"),
        (b'{"assets": {"../x": ""}}', r"\.\./x"),
        (b'{"assets": {"face": "<asset3> oval"}}', "the words"),
        (b'{"gender": "man"}' + b" " * 4_000_001, "at most"),
    ],
)
def test_mistakes_end_in_one_sentence_that_names_the_file(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as found:
        parse_description(OURS, data)
    assert "album.json" in str(found.value)
    assert "\n" not in str(found.value)


def test_byte_order_mark_is_no_mistake() -> None:
    assert parse_description(OURS, b'\xef\xbb\xbf{"gender": "man"}').gender == "man"
