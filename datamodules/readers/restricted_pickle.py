"""Pickles of datasets, read without running anything that they ask for.

A pickle is a program. Of the names that it may ask for only the few that numpy's arrays are pickled with are answered,
and none of them with numpy itself: stand-ins collect what the pickle says of an array, and the array is made afterwards
from checked values, since numpy's own constructors trust the sizes and types that they are given. Before that, the
opcodes are read through once, so that lengths and memo indices beyond the file's end never reach the interpreter.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from modules.errors import UserError

_MAX_OPCODES = 3_000_000
_MAX_DEPTH = 24
_CODE = re.compile(r"(?:[biu][1248]|f[248]|[SU]\d{1,6}|O8)")
_PLAIN = (str, bytes, int, float, bool, type(None))


def load_plain_pickle(data: bytes) -> Any:
    """The dicts, lists, tuples, numbers, text and numpy arrays of a pickle.

    Raises UserError, completing "mesh.pkl ..." to a sentence, for one that is broken or holds anything else. Arrays may
    share memory with `data` and are read-only.
    """
    try:
        _look_through(data)
        loaded = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        return _Converter().convert(loaded, 0)
    except UserError:
        raise
    except MemoryError:
        raise UserError("asks for more memory than there is") from None
    except Exception as error:  # a broken pickle can raise anything in the unpickler
        text = " ".join(str(error).split())[:100]
        raise UserError(f"is no readable pickle ({text if text.isprintable() else ascii(text)})") from None


def _look_through(data: bytes) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count > _MAX_OPCODES:
            raise UserError(f"has more than {_MAX_OPCODES} parts; a file of numpy arrays has far fewer")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(data):
            raise UserError("is no readable pickle (a memo index beyond its end)")
        if opcode.name in ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER"):
            raise UserError(f"refers to something outside of itself ({opcode.name}), which is not followed")


class _Maker:
    """What a name stands for: callable, but nothing in it can be set by the pickle."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a pickle may not change what it names")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a pickle may not change what it names")


class _Dtype:
    """A data type as the pickle describes it."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not _CODE.fullmatch(text):
            raise pickle.UnpicklingError("an array of a type other than numbers and text")
        self._code, self._order = text, "|"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of records")
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an unknown byte order")
        self._order = order

    @property
    def holds_objects(self) -> bool:
        return self._code.startswith("O")

    def make(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._code)


class _Array:
    """An array as the pickle describes it."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise pickle.UnpicklingError("an array in an unknown form")
        self.shape, self.dtype, self.fortran, self.data = state[-4:]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.shape, array.dtype, array.fortran, array.data = shape, dtype, order == "F", data
    return array


def _scalar(dtype: Any, data: Any = b"") -> _Array:
    array = _Array()
    array.shape, array.dtype, array.fortran, array.data = (), dtype, False, data
    return array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Protocol 2 writes bytes as text that is to be encoded."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return text.encode("latin1")


def _empty_dict(*arguments: Any) -> dict[Any, Any]:
    return dict(arguments[0]) if arguments and isinstance(arguments[0], list) else {}


def _bytes(*arguments: Any) -> bytes:
    if arguments and not isinstance(arguments[0], (bytes, bytearray)):
        raise pickle.UnpicklingError("bytes in an unknown form")
    return bytes(arguments[0]) if arguments else b""


_MAKERS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _empty_dict,
    ("builtins", "bytearray"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
} | {
    (f"numpy.{package}.{module}", name): make
    for package in ("core", "_core")
    for module, name, make in (
        ("multiarray", "_reconstruct", _Array),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _from_buffer),
    )
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        make = _MAKERS.get((module_name, global_name))
        if make is None:
            name = f"{module_name}.{global_name}"[:80]
            raise UserError(
                f"asks for {name if name.isprintable() else ascii(name)}, but only numpy arrays, dicts, lists, numbers "
                "and text are read; it may be harmful, get it again from its publisher"
            )
        return _Maker(make)


class _Converter:
    """Turns stand-ins into arrays. What occurs in several places is converted once, so it stays as large as it was."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def convert(self, value: Any, depth: int) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, bytearray):
            return bytes(value)
        if id(value) in self._done:
            return self._done[id(value)]
        if depth > _MAX_DEPTH or id(value) in self._open:
            raise UserError("is nested too deeply or holds itself")
        self._open.add(id(value))
        result: Any
        match value:
            case dict():
                result = {self._key(key): self.convert(item, depth + 1) for key, item in value.items()}
            case list():
                result = [self.convert(item, depth + 1) for item in value]
            case tuple():
                result = tuple(self.convert(item, depth + 1) for item in value)
            case _Array():
                result = self._array(value, depth)
            case _:
                raise UserError(f"holds a {type(value).__name__.strip('_')[:40]}, which is not read")
        self._open.discard(id(value))
        self._done[id(value)] = result
        return result

    @staticmethod
    def _key(key: Any) -> Any:
        if not isinstance(key, (str, int, bytes, float)):
            raise UserError("has a dict whose keys are neither text nor numbers")
        return key

    def _array(self, value: _Array, depth: int) -> Any:
        shape, dtype, data = value.shape, getattr(value, "dtype", None), getattr(value, "data", None)
        if shape is None or not isinstance(dtype, _Dtype):
            raise UserError("holds an array without a shape or a type")
        if isinstance(shape, int):
            shape = (shape,)
        if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
            raise UserError("holds an array with an impossible shape")
        count = math.prod(shape)
        if dtype.holds_objects:
            if not isinstance(data, list) or len(data) != count:
                raise UserError("holds an array whose size is not what it says")
            items = np.empty(count, object)
            for index, item in enumerate(data):
                items[index] = self.convert(item, depth + 1)
            return items.reshape(shape, order="F" if value.fortran else "C")
        if isinstance(data, str):
            data = data.encode("latin1")
        made = dtype.make()
        if not made.itemsize or not isinstance(data, (bytes, bytearray)) or len(data) != count * made.itemsize:
            raise UserError("holds an array whose size is not what it says")
        if not count:
            return np.zeros(shape, made)
        array = np.frombuffer(bytes(data), made).reshape(shape, order="F" if value.fortran else "C")
        return array if shape else array[()].item()
