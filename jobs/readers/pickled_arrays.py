"""What a pickle may ask for, recognised and noted in place of called: how Python writes bytes, and NumPy its arrays.

Called by `jobs.readers.plain_pickle`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

_MOST_DIMENSIONS = 8
_MODULES = ("numpy.core.", "numpy._core.")
_ORDERS = ("|", "=", "<", ">")
_LONGEST_CODE = 8


class PlainPickleError(Exception):
    """It is no pickle, or one of more than plain data; the message says of what."""


@dataclass(frozen=True)
class Global:
    """A name that would be imported."""

    name: str


@dataclass
class _Type:
    """A NumPy dtype in the making: its code, such as u1, and its byte order."""

    code: str
    order: str = "|"

    def numpy(self) -> np.dtype[Any]:
        if self.code not in _Type.known:
            raise PlainPickleError(f"it holds an array of type {self.code!r}, not of numbers")
        return np.dtype(("" if self.order in ("|", "=") else self.order) + self.code)

    known: ClassVar[frozenset[str]] = frozenset(
        {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}
    )


@dataclass
class Array:
    """A NumPy array in the making: None until it is built."""

    values: NDArray[Any] | None = None


def recognise(function: Any, arguments: Any) -> Any:
    """Return what a call would make.

    Raises
    ------
    PlainPickleError
        When it is not one of those that Python and NumPy write, or has other arguments.
    """
    name = function.name if isinstance(function, Global) else type(function).__name__
    for prefix in _MODULES:
        name = name.replace(prefix, "numpy.core.", 1) if name.startswith(prefix) else name
    if name not in _RECOGNISED:
        raise PlainPickleError(f"it asks for {ascii(name)[1:-1]}")
    made = _RECOGNISED[name](arguments) if isinstance(arguments, tuple) else None
    if made is None:
        raise PlainPickleError(f"it asks for {name} with other arguments than Python and NumPy write")
    return made


def build(target: Any, state: Any) -> None:
    """Take note of what a type or an array, already recognised, consists of.

    Raises
    ------
    PlainPickleError
        When it is neither, or is written in another way.
    """
    match target, state:
        case _Type(), (int(), str() | bytes() as order, None, None, None, -1, -1, 0):
            # NumPy reads much more than an order into what stands before a type.
            target.order = _code_of(order)
            if target.order not in _ORDERS:
                raise PlainPickleError("it builds a type of another byte order than NumPy has")
        case Array(values=None), (int(), shape, _Type() as kind, bool() | int() as is_fortran, bytes() as raw):
            target.values = _array(raw, kind, shape, "F" if is_fortran else "C")
        case _:
            known = isinstance(target, (_Type, Array))
            what = "an array or a type in another way than NumPy" if known else type(target).__name__
            raise PlainPickleError(f"it builds {what}")


def _recognise_array(arguments: tuple[Any, ...]) -> Array | None:
    match arguments:
        case (Global(name="numpy.ndarray"), (0,), bytes() | str()):
            return Array()
    return None


def _recognise_buffer(arguments: tuple[Any, ...]) -> Array | None:
    match arguments:
        case (bytes() as raw, _Type() as kind, shape, "C" | "F" as order):
            return Array(_array(raw, kind, shape, order))
    return None


def _recognise_type(arguments: tuple[Any, ...]) -> _Type | None:
    match arguments:
        case (bytes() | str() as code, int(), int()):
            return _Type(_code_of(code))
    return None


def _recognise_encoded(arguments: tuple[Any, ...]) -> bytes | None:
    match arguments:
        case (str() as text, "latin1" | "latin-1" | b"latin1"):
            return text.encode("latin-1")
    return None


def _recognise_no_bytes(arguments: tuple[Any, ...]) -> bytes | None:
    return b"" if not arguments else None


_RECOGNISED: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "numpy.core.multiarray._reconstruct": _recognise_array,
    "numpy.core.numeric._frombuffer": _recognise_buffer,
    "numpy.dtype": _recognise_type,
    "_codecs.encode": _recognise_encoded,  # how Python 3 writes bytes in protocols 0 to 2
    "__builtin__.bytes": _recognise_no_bytes,
}


def _array(raw: bytes, kind: _Type, shape: Any, order: str) -> NDArray[Any]:
    dtype = kind.numpy()
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MOST_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**31 for size in shape)
        or math.prod(shape) * dtype.itemsize != len(raw)
    ):
        raise PlainPickleError(f"an array whose shape does not go with its {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if order == "F" else "C")


def _code_of(code: bytes | str) -> str:
    if len(code) > _LONGEST_CODE:
        raise PlainPickleError(f"a type whose name has {len(code):,} characters")
    return code.decode("ascii") if isinstance(code, bytes) else code
