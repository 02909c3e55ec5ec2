"""The tokenizer that is learned from captions."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.diffusion.tokenizer import load_tokenizer, train_tokenizer
from modules.diffusion.tokens import add_placeholders

CAPTIONS = ["a woman, oval face, wearing red t-shirt, front view."] * 20 + ["a man, long haircut, back view."] * 20


@cache
def learned():
    return train_tokenizer(CAPTIONS, vocabulary_size=600, max_tokens=16)


@pytest.fixture(scope="module")
def tokenizer():
    return learned()


def test_frequent_words_are_one_token(tokenizer) -> None:
    for word in ("woman", "face", "wearing", "haircut", "view"):
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer.tokenize("zebra")) > 1


def test_special_tokens_come_last_and_frame_every_prompt(tokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (len(tokenizer) - 2, len(tokenizer) - 1)
    ids = tokenizer("A Woman", padding="max_length").input_ids
    assert len(ids) == 16
    assert ids[0] == tokenizer.bos_token_id
    assert ids[3] == tokenizer.eos_token_id
    assert tokenizer(["a woman"]).input_ids[0][1:3] == ids[1:3], "capitals do not matter"
    assert len(tokenizer("word " * 40, truncation=True).input_ids) == 16


@settings(max_examples=50)
@given(st.text(max_size=20))
def test_every_string_has_tokens(text: str) -> None:
    """Byte-level: nothing is unknown, whatever the alphabet."""
    ids = learned()(text, add_special_tokens=False).input_ids
    assert learned().eos_token_id not in ids or "<|endoftext|>" in text.lower()
    assert bool(ids) == bool(text.split()) or not text.isprintable()


def test_saved_and_loaded_it_says_the_same(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    for text in (*set(CAPTIONS), "Größe 42, <asset0> shirt", "日本"):
        assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == 16


def test_the_same_captions_give_the_same_vocabulary() -> None:
    """Words whose parts are equally frequent: many ties, which a hash table's order must not decide."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), size)) for size in rng.integers(2, 6, 60)]
    captions = [" ".join(rng.choice(words, 6)) for _ in range(40)]
    learned_each_time = [train_tokenizer(captions, vocabulary_size=560).get_vocab() for _ in range(6)]
    assert all(vocabulary == learned_each_time[0] for vocabulary in learned_each_time)


def test_placeholders_are_one_token_each(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CAPTIONS, vocabulary_size=600, max_tokens=16)
    first = add_placeholders(tokenizer, 3)
    ids = tokenizer("<asset0> face, <asset2> shirt", add_special_tokens=False).input_ids
    assert first in ids
    assert first + 2 in ids
    assert add_placeholders(tokenizer, 3) == first
