"""Reads a pickle of plain data without unpickling it: nothing that it names is imported or called.

CIFAR's python version is pickles. Python's unpickler calls whatever a file asks for, and even with nothing but
NumPy's own constructors let in, their arguments crash the process. So this is a small interpreter of its own: it
knows the opcodes of data, and recognises the few calls by which Python 2 and 3 write bytes and NumPy arrays. What it
does in their place is to take note of the arguments. Called by `jobs.readers.image_formats`.

A file decides how deep its objects nest, how often one holds another, and what the hash of a number is. So nothing here
formats, compares or hashes an object before it is known to be text, bytes or a small number, and what an opcode makes
is no longer than the file.
"""

from __future__ import annotations

import codecs
import io
import struct
from typing import Any

from jobs.readers.pickled_arrays import Array, Global, PlainPickleError, build, recognise

__all__ = ["PlainPickleError", "load"]

# A file of CIFAR-100's 50,000 images, names and two labels each has 400,000.
_MOST_OPCODES = 4_000_000
_LONGEST_NUMBER = 32  # characters, or bytes of the binary form
_LONGEST_NAME = 200  # of what would be imported
_MOST_KEYS = 1_000  # of one dict; CIFAR's batches have fewer than ten
# Opcodes by name, with the format of their argument for `struct`, "line", or the format of a length and then so many
# bytes. See pickletools for what each means.
_ARGUMENTS: dict[bytes, tuple[str, str]] = {
    b"(": ("mark", ""),
    b".": ("stop", ""),
    b"0": ("pop", ""),
    b"1": ("pop_mark", ""),
    b"2": ("dup", ""),
    b"F": ("float_line", "line"),
    b"I": ("int_line", "line"),
    b"J": ("number", "<i"),
    b"K": ("number", "<B"),
    b"L": ("int_line", "line"),
    b"M": ("number", "<H"),
    b"N": ("none", ""),
    b"R": ("reduce", ""),
    b"S": ("string_line", "line"),
    b"T": ("bytes", "<I*"),
    b"U": ("bytes", "<B*"),
    b"V": ("unicode_line", "line"),
    b"X": ("text", "<I*"),
    b"a": ("append", ""),
    b"b": ("build", ""),
    b"c": ("global", "line"),
    b"d": ("dict", ""),
    b"}": ("empty_dict", ""),
    b"e": ("appends", ""),
    b"g": ("get_line", "line"),
    b"h": ("get", "<B"),
    b"j": ("get", "<I"),
    b"l": ("list", ""),
    b"]": ("empty_list", ""),
    b"p": ("put_line", "line"),
    b"q": ("put", "<B"),
    b"r": ("put", "<I"),
    b"s": ("setitem", ""),
    b"t": ("tuple", ""),
    b")": ("empty_tuple", ""),
    b"u": ("setitems", ""),
    b"G": ("number", ">d"),
    b"\x80": ("proto", "<B"),
    b"\x85": ("tuple1", ""),
    b"\x86": ("tuple2", ""),
    b"\x87": ("tuple3", ""),
    b"\x88": ("true", ""),
    b"\x89": ("false", ""),
    b"\x8a": ("long", "<B*"),
    b"\x8b": ("long", "<i*"),
    b"B": ("bytes", "<I*"),
    b"C": ("bytes", "<B*"),
    b"\x8c": ("text", "<B*"),
    b"\x8d": ("text", "<Q*"),
    b"\x8e": ("bytes", "<Q*"),
    b"\x93": ("stack_global", ""),
    b"\x94": ("memoize", ""),
    b"\x95": ("frame", "<Q"),
    b"\x96": ("bytes", "<Q*"),
}
# Those that can do nothing but call, or fetch from outside: named in the refusal.
_CALLS = {
    b"P": "PERSID",
    b"Q": "BINPERSID",
    b"i": "INST",
    b"o": "OBJ",
    b"\x81": "NEWOBJ",
    b"\x92": "NEWOBJ_EX",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"\x97": "NEXT_BUFFER",
    b"\x98": "READONLY_BUFFER",
    b"\x8f": "EMPTY_SET",
    b"\x90": "ADDITEMS",
    b"\x91": "FROZENSET",
}


def load(data: bytes) -> Any:
    """Return what a pickle of protocol 0 to 5 holds: dict, list, tuple, bytes, str, numbers, None, arrays of numbers.

    Text that Python 2 wrote is bytes. The keys of a dict are text or bytes.

    Raises
    ------
    PlainPickleError
        When it is damaged, or holds or asks for anything else.
    """
    try:
        return _Interpreter(data).result()
    except (RecursionError, MemoryError) as error:
        raise PlainPickleError(f"it takes more than there is ({type(error).__name__})") from error
    except (IndexError, KeyError, ValueError, TypeError, struct.error, OverflowError) as error:
        raise PlainPickleError(f"damaged, {type(error).__name__}: {error}") from error


class _Interpreter:
    """The stack, the memo and the marks of one pickle."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self._size = len(data)
        self._n_encoded = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        """Run to the STOP."""
        for _ in range(_MOST_OPCODES):
            opcode = self._file.read(1)
            if opcode in _CALLS:
                raise PlainPickleError(f"it asks for a call ({_CALLS[opcode]})")
            if opcode not in _ARGUMENTS:
                raise PlainPickleError(f"no opcode {opcode!r} at byte {self._file.tell() - len(opcode)}")
            name, kind = _ARGUMENTS[opcode]
            argument = self._argument(kind)
            if name == "stop":
                return _finished(self._pop())
            getattr(self, f"_{name}")(*argument)
        raise PlainPickleError(f"more than {_MOST_OPCODES:,} opcodes")

    def _argument(self, kind: str) -> tuple[Any, ...]:
        if not kind:
            return ()
        if kind == "line":
            return (self._line(),)
        format = kind.removesuffix("*")
        (number,) = struct.unpack(format, self._exactly(struct.calcsize(format)))
        return (self._exactly(number) if kind.endswith("*") else number,)

    def _exactly(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= self._size - self._file.tell():
            raise PlainPickleError("cut short")
        return self._file.read(n_bytes)

    def _line(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise PlainPickleError("cut short")
        return line[:-1]

    # --- the stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise PlainPickleError("damaged, a mark in the way")
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _pop_mark(self) -> None:
        self._since_mark()

    def _dup(self) -> None:
        self._push(self._stack[-1])

    def _proto(self, version: int) -> None:
        if version > 5:
            raise PlainPickleError(f"protocol {version}")

    def _frame(self, size: int) -> None:
        pass

    # --- the memo

    def _put(self, index: int) -> None:
        # Python counts them up. Anybody could choose larger ones such that their hashes are the same.
        if not 0 <= index < _MOST_OPCODES:
            raise PlainPickleError("damaged, a place in the memo that Python would not write")
        self._memo[index] = self._stack[-1]

    def _put_line(self, line: bytes) -> None:
        self._put(_whole(line))

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _get(self, index: int) -> None:
        self._push(self._memo[index])

    def _get_line(self, line: bytes) -> None:
        self._get(_whole(line))

    # --- values

    def _none(self) -> None:
        self._push(None)

    def _true(self) -> None:
        self._push(True)

    def _false(self) -> None:
        self._push(False)

    def _number(self, value: float) -> None:
        self._push(value)

    def _int_line(self, line: bytes) -> None:
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _whole(line.removesuffix(b"L")))

    def _long(self, data: bytes) -> None:
        if len(data) > _LONGEST_NUMBER:
            raise PlainPickleError(f"a number of {len(data)} bytes")
        self._push(int.from_bytes(data, "little", signed=True))

    def _float_line(self, line: bytes) -> None:
        self._push(float(line[:_LONGEST_NUMBER]))

    def _bytes(self, data: bytes) -> None:
        self._push(data)

    def _text(self, data: bytes) -> None:
        self._push(data.decode("utf-8", "surrogatepass"))

    def _string_line(self, line: bytes) -> None:
        line = line.strip()
        if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
            raise PlainPickleError("damaged, a text without quotes")
        self._push(codecs.escape_decode(line[1:-1])[0])

    def _unicode_line(self, line: bytes) -> None:
        self._push(line.decode("raw-unicode-escape"))

    # --- containers

    def _empty_tuple(self) -> None:
        self._push(())

    def _tuple(self) -> None:
        self._push(tuple(self._since_mark()))

    def _tuple1(self) -> None:
        self._push((self._pop(),))

    def _tuple2(self) -> None:
        last = self._pop()
        self._push((self._pop(), last))

    def _tuple3(self) -> None:
        third, second = self._pop(), self._pop()
        self._push((self._pop(), second, third))

    def _empty_list(self) -> None:
        self._push([])

    def _list(self) -> None:
        self._push(self._since_mark())

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _empty_dict(self) -> None:
        self._push({})

    def _dict(self) -> None:
        values = self._since_mark()
        self._push({})
        self._set(values)

    def _setitem(self) -> None:
        value = self._pop()
        self._set([self._pop(), value])

    def _setitems(self) -> None:
        self._set(self._since_mark())

    def _set(self, values: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            # A key that holds others could take for ever to hash, and numbers can be chosen that have one hash.
            if not isinstance(key, (bytes, str)):
                raise PlainPickleError(f"a key of type {type(key).__name__}")
            target[key] = value
            if len(target) > _MOST_KEYS:
                raise PlainPickleError(f"a dictionary of more than {_MOST_KEYS:,} keys")

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise PlainPickleError(f"damaged, {type(self._stack[-1]).__name__} in place of {kind.__name__}")
        return self._stack[-1]

    # --- what would call

    def _global(self, module: bytes) -> None:
        self._name(module.decode(), self._line().decode())

    def _stack_global(self) -> None:
        name = self._pop()
        self._name(self._pop(), name)

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PlainPickleError("it asks for a name that is no text")
        if len(module) + len(name) > _LONGEST_NAME:
            raise PlainPickleError(f"it asks for a name of {len(module) + len(name):,} characters")
        self._push(Global(f"{module}.{name}"))

    def _reduce(self) -> None:
        arguments = self._pop()
        made = recognise(self._pop(), arguments)
        if isinstance(made, bytes):
            # Python encodes each text once; the same one again and again would be more than the file.
            self._n_encoded += len(made)
            if self._n_encoded > self._size:
                raise PlainPickleError("it encodes more text than it has")
        self._push(made)

    def _build(self) -> None:
        state = self._pop()
        build(self._stack[-1], state)


def _finished(value: Any) -> Any:
    """Put arrays in place of their making: in a dict and its lists, which is as deep as these files go."""
    if isinstance(value, Array):
        return value.values
    if isinstance(value, dict):
        return {key: each.values if isinstance(each, Array) else each for key, each in value.items()}
    return value


def _whole(line: bytes) -> int:
    if len(line) > _LONGEST_NUMBER:
        raise PlainPickleError(f"a number of {len(line)} digits")
    return int(line)
