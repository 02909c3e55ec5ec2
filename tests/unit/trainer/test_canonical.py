"""Canonical JSON and hashes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.canonical import canonical_json, hash_file, hash_json, hash_tree, to_plain


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-5
    folder: Path = Path("a/b")


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_plain_values_survive_and_the_form_is_canonical(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers()))
def test_order_of_keys_does_not_matter(value):
    assert hash_json(value) == hash_json(dict(reversed(value.items())))


def test_types_of_a_configuration():
    assert to_plain(Outer()) == {"inner": {"rate": 1e-5, "folder": "a/b"}, "sizes": [1, 2]}
    assert canonical_json({"b": {2, 1}, "a": np.float32(0.5), "c": torch.tensor(3)}) == '{"a":0.5,"b":[1,2],"c":3}'
    assert hash_json((1, 2)) == hash_json([1, 2])
    assert hash_json(2) != hash_json(2.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="finite"):
        canonical_json(value)


@pytest.mark.parametrize("value", [object(), b"bytes", np.zeros(2), {1.5: 2}])
def test_values_without_canonical_form_are_refused(value):
    with pytest.raises(TypeError):
        canonical_json(value)


def test_tree_hash_sees_names_and_contents_only(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x.png").write_bytes(b"x")
        (tmp_path / name / "y.txt").write_bytes(b"y")
    (tmp_path / "two" / ".cache").mkdir()
    (tmp_path / "two" / ".cache" / "z").write_bytes(b"z")
    assert hash_tree(tmp_path / "one") == hash_tree(tmp_path / "two")
    images = hash_tree(tmp_path / "one", ["*.png"])
    assert images != hash_tree(tmp_path / "one")
    (tmp_path / "one" / "y.txt").write_bytes(b"other")
    assert hash_tree(tmp_path / "one") != hash_tree(tmp_path / "two")
    assert hash_tree(tmp_path / "one", ["*.png"]) == images
    assert hash_file(tmp_path / "one" / "y.txt") != hash_file(tmp_path / "two" / "y.txt")
