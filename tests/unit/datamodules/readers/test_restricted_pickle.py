"""Pickles are read without running what they ask for."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.readers.restricted_pickle import load_plain_pickle
from modules.errors import UserError

GOOD: dict[str, Any] = {
    "vertices": np.arange(12.0).reshape(4, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big": np.arange(4, dtype=">i2"),
    "flags": np.array([True, False]),
    "frames": np.array(["00006", "00011"]),
    "empty": np.zeros((0, 3)),
    "scalar": np.float64(2.5),
    "zero": np.array(7),
    "objects": np.array(["a", None, 3], dtype=object),
    "list": [1, 2.5, "x", b"y", None, True],
    "nested": {"tuple": (1, (2, 3)), 4: "four"},
}


def same(one: Any, other: Any) -> bool:
    # Arrays without axes come back as the number that they hold.
    if isinstance(other, np.ndarray) and other.ndim:
        return isinstance(one, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], value) for key, value in other.items())
    return bool(one == other)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_dicts_and_numbers_come_back(protocol):
    data = pickle.dumps(GOOD, protocol=protocol)
    for name, value in load_plain_pickle(data).items():
        assert same(value, GOOD[name]), name


def test_names_of_older_and_newer_numpy_are_both_known():
    data = pickle.dumps(np.arange(5.0), protocol=2)
    for old, new in ((b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")):
        np.testing.assert_array_equal(load_plain_pickle(data.replace(old, new)), np.arange(5.0))


def test_ordered_dicts_are_dicts():
    assert load_plain_pickle(pickle.dumps(collections.OrderedDict(a=1, b=np.arange(2))))["a"] == 1


class Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch ran",)),
        (eval, ("open('ran', 'w')",)),
        (exec, ("open('ran', 'w')",)),
        (getattr, (os, "system")),
        (np.load, ("ran",)),
        (np.memmap, ("ran", "u1", "w+", 0, (4,))),
        (open, ("ran", "w")),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_that_is_asked_for_runs(tmp_path, monkeypatch, function, arguments, protocol):
    monkeypatch.chdir(tmp_path)
    try:
        data = pickle.dumps({"a": [1, Runs(function, *arguments)]}, protocol=protocol)
    except (pickle.PicklingError, TypeError):  # modules cannot be pickled
        data = pickle.dumps({"a": [1, Runs(function, "os", "system")]}, protocol=protocol)
    with pytest.raises(UserError, match=r"asks for .* but only numpy arrays"):
        load_plain_pickle(data)
    assert not list(tmp_path.iterdir())


def dtype_bytes(code: bytes, state: Any) -> bytes:
    """A pickle of a data type with a state of one's own."""
    buffer = io.BytesIO()
    buffer.write(b"\x80\x02cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"tR")
    buffer.write(pickle.dumps(state, protocol=2)[2:-1] + b"b.")
    return buffer.getvalue()


def array_pickle(dtype: Any, shape: Any, data: Any, *, state_of_dtype: Any = None) -> bytes:
    """A pickle of an array that says anything about itself."""
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    inner = dtype_bytes(dtype, state_of_dtype or (3, "<", None, None, None, -1, -1, 0))[2:-1]
    parts = [b"K\x01", pickle.dumps(shape, protocol=2)[2:-1], inner, b"\x89", pickle.dumps(data, protocol=3)[2:-1]]
    return b"\x80\x03" + head + b"(" + b"".join(parts) + b"tb."


def test_hand_made_pickle_of_an_array_is_one():
    data = array_pickle(b"f8", (2,), struct.pack("<2d", 1, 2))
    np.testing.assert_array_equal(load_plain_pickle(data), [1.0, 2.0])


@pytest.mark.parametrize(
    "data",
    [
        array_pickle(b"f8", (1 << 39,), b"12345678"),
        array_pickle(b"f8", (-1,), b"12345678"),
        array_pickle(b"S0", (1 << 39,), b""),
        array_pickle(b"f8", (2,), b"12345678"),
        array_pickle(b"f8", (1,) * 40, b"12345678"),
        array_pickle(b"f8", "no shape", b"12345678"),
        # Numpy itself would take these bytes for addresses of objects.
        array_pickle(b"O8", (1,), b"\x41" * 8),
        array_pickle(b"V8", (1,), b"\x41" * 8, state_of_dtype=(3, "|", None, ("a",), {"a": 1}, 8, 8, 0)),
        array_pickle(b"f8", (1,), b"\x41" * 8, state_of_dtype=(3, "|", None, ("a",), {"a": 1}, 8, 8, 0)),
        array_pickle(b"M8", (1,), b"\x41" * 8),
        # A length and a memo index far beyond the file.
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x.",
        b"\x80\x02Nr" + struct.pack("<I", 0xFFFFFFF0) + b".",
        b"\x80\x02]" + b"]" * 5000 + b"a" * 5000 + b".",
        b"",
        b"not a pickle",
        pickle.dumps(GOOD)[:-30],
        pickle.dumps({1, 2}),
        pickle.dumps({(1, 2): 3}),
    ],
)
def test_lies_end_in_a_sentence(data):
    with pytest.raises(UserError):
        load_plain_pickle(data)


def test_what_a_pickle_names_cannot_be_changed_by_it():
    # Sets attributes of the thing that stands for numpy.dtype, as a pickle may do to any object.
    data = b"\x80\x02cnumpy\ndtype\n}U\x05_makeK\x01sb."
    with pytest.raises(UserError, match="may not change"):
        load_plain_pickle(data)
    np.testing.assert_array_equal(load_plain_pickle(pickle.dumps(np.arange(3))), np.arange(3))


def test_what_refers_to_itself_or_doubles_is_no_trap():
    knot: list[Any] = []
    knot.append(knot)
    with pytest.raises(UserError, match="holds itself"):
        load_plain_pickle(pickle.dumps(knot))
    # 2^20 leaves if it were written out.
    laughs: Any = ["ha"]
    for _ in range(20):
        laughs = [laughs, laughs]
    assert load_plain_pickle(pickle.dumps(laughs))[0][1][0][1] is not None


@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_mutated_pickles_never_end_otherwise(noise, place):
    data = bytearray(pickle.dumps({"a": np.arange(3.0), "b": ["x", 1]}, protocol=place % 6))
    at = place % len(data)
    data[at : at + len(noise)] = noise
    with contextlib.suppress(UserError):
        load_plain_pickle(bytes(data))
