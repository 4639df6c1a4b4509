"""Pickled arrays, read as data: nothing that a file asks for is ever imported or called.

A pickle is a program for a stack machine, and Python's own reader lets it call what it names. The machine here has the
instructions that build numbers, text, bytes, tuples, lists and dicts, and stand-ins of its own for the few functions by
which NumPy's arrays are written. Whatever else a file names is refused.
"""

from __future__ import annotations

import codecs
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy
from numpy.typing import NDArray

_INSTRUCTIONS = 2**22
"""More than files of arrays and labels have; so that a small file cannot ask for endless work or memory."""
_DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1", "f2", "f4", "f8"}
_KEYS = (str, int, bytes, type(None))
_LARGEST_KEY = 2**32
"""No tuples, since the hash of deeply nested ones overflows C's stack; no large numbers, of which many share a hash."""


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """What a pickle holds, of which nothing is executed: numbers, text, bytes, containers and NumPy arrays of numbers.

    Files of all protocols are read, also those of Python 2, whose strings are taken for Latin-1 as in
    ``pickle.load(file, encoding="latin1")``. A caller must not follow containers to any depth: as in any pickle they
    may hold themselves.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or asks for anything else; the message says for what.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return _Machine(file, size).run()
        except _RefusedError as error:
            raise ValueError(
                f"pickle {path} is refused: it asks for {error}; only numbers, text, containers and NumPy arrays of "
                "numbers are read"
            ) from error
        except OSError:
            raise
        except Exception as error:  # of what damage leads to there is no list
            raise ValueError(
                f"pickle {path} is damaged: {str(error)[:200] or type(error).__name__}; fetch it again"
            ) from error


class _RefusedError(Exception):
    """What the file asks for."""


class _Function:
    """Stands for a function that a file may name; it cannot be changed by the file."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


class _Dtype:
    """A type of numbers. It is made first and gets its byte order later."""

    def __init__(self, name: str) -> None:
        if name not in _DTYPES:
            raise _RefusedError(f"an array of the type {name[:60]!r}")
        self.dtype: numpy.dtype[Any] = numpy.dtype(name)

    def build(self, state: tuple[Any, ...]) -> None:
        if len(state) < 5 or state[1] not in ("<", ">", "|", "=") or state[2:5] != (None, None, None):
            raise _RefusedError("an array of a composed type")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Machine:
    """The stack machine, and the stand-ins."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0
        self.functions = {
            "numpy.ndarray": _Function(self._argument_only),
            "numpy.dtype": _Function(self._dtype),
            "numpy.core.multiarray._reconstruct": _Function(self._empty),
            "numpy.core.multiarray.scalar": _Function(self._scalar),
            "numpy.core.numeric._frombuffer": _Function(self._from_buffer),
            "_codecs.encode": _Function(self._encode),
            "collections.OrderedDict": _Function(self._dict),
            "collections.defaultdict": _Function(self._default_dict),
            "builtins.list": _Function(self._argument_only),
            "builtins.bytes": _Function(lambda: b""),  # which older protocols have no other way to write
        }

    def run(self) -> Any:
        for _ in range(_INSTRUCTIONS):
            code = self.read(1)
            if code == b".":
                return self.stack.pop()
            if code in _VALUES:
                value = _VALUES[code](self)
                self.stack.append(value)
            elif code in _ACTIONS:
                _ACTIONS[code](self)
            else:
                raise _RefusedError(_REFUSED.get(code, f"the unknown instruction 0x{code.hex()}"))
        raise _RefusedError(f"more than {_INSTRUCTIONS} instructions")

    # Reading

    def read(self, count: int) -> bytes:
        # Asked first, since room for the whole length is made before the file is found to be shorter.
        if count < 0 or count > self.size - self.file.tell():
            raise ValueError("it ends in the middle")
        return self.file.read(count)

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def counted(self, layout: str) -> bytes:
        return self.read(self.number(layout))

    def line(self) -> bytes:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise ValueError("it ends in the middle")
        return line[:-1]

    def whole_number(self) -> int | bool:
        line = self.line()
        return line == b"01" if line in (b"00", b"01") else int(line)

    def quoted(self) -> str:
        line = self.line().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
            raise ValueError("text without quotes")
        return codecs.escape_decode(line[1:-1])[0].decode("latin1")

    # The stack

    def pop(self, kind: type | tuple[type, ...] = object) -> Any:
        value = self.stack.pop()
        if not isinstance(value, kind):
            raise ValueError(f"a {type(value).__name__} where it cannot be")
        return value

    def marked(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def remember(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("an element of what is no list")
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        self.stack[-1] = self.filled(self.stack[-1], values)

    def filled(self, target: object, values: list[Any]) -> dict[Any, Any]:
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("an entry of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, _KEYS) or (isinstance(key, int) and abs(key) >= _LARGEST_KEY):
                raise _RefusedError(f"a key that is no text or small number, but {type(key).__name__}")
            target[key] = value
        return target

    # What a file names

    def named(self, module: object, name: object) -> _Function:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full not in self.functions:
            raise _RefusedError(repr(f"{module[:60]}.{name[:60]}"))
        return self.functions[full]

    def call(self) -> Any:
        arguments, function = self.pop(tuple), self.pop(_Function)
        return function.call(*arguments)

    def build(self) -> None:
        state, target = self.pop(tuple), self.stack[-1]
        if isinstance(target, _Dtype):
            target.build(state)
        elif isinstance(target, numpy.ndarray) and not target.size:
            _, shape, dtype, by_columns, content = state
            content, kind = self._checked(content, shape, dtype)
            state = (1, shape, kind, bool(by_columns), bytes(content))
            target.__setstate__(state)  # type: ignore[arg-type]  # typed for NumPy's own bool, which it refuses
        else:
            raise _RefusedError(f"changes in a {type(target).__name__}")

    # The stand-ins

    def _argument_only(self, *_: object) -> None:
        raise _RefusedError("a call of what is only an argument of others")

    def _dtype(self, name: object, *_: object) -> _Dtype:
        return _Dtype(name if isinstance(name, str) else type(name).__name__)

    def _empty(self, kind: object, *_: object) -> NDArray[Any]:
        if kind is not self.functions["numpy.ndarray"]:
            raise _RefusedError("an array of a class of its own")
        return numpy.empty(0, numpy.uint8)

    def _scalar(self, dtype: object, content: object) -> Any:
        content, kind = self._checked(content, (), dtype)
        return numpy.frombuffer(content, kind)[0].item()

    def _from_buffer(self, content: object, dtype: object, shape: Any, order: object, axes: Any = None) -> NDArray[Any]:
        content, kind = self._checked(content, shape, dtype)
        array: NDArray[Any] = numpy.frombuffer(content, kind) if content else numpy.empty(0, kind)
        if order == "K" and axes is not None:
            return array.reshape(shape).transpose(axes)
        return array.reshape(shape, order="F" if order == "F" else "C")

    def _checked(self, content: object, shape: object, dtype: object) -> tuple[bytes | bytearray, numpy.dtype[Any]]:
        """The content of an array as bytes, as many as it must have, and its type."""
        content = self._encode(content) if isinstance(content, str) else content
        if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
            raise _RefusedError("an array that is not made of numbers")
        if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(one) is int and one >= 0 for one in shape):
            raise ValueError("an array whose shape is no tuple of lengths")
        if math.prod(shape) * dtype.dtype.itemsize != len(content):
            raise ValueError(f"an array of shape {str(shape)[:60]} and type {dtype.dtype} in {len(content)} bytes")
        return content, dtype.dtype

    def _encode(self, text: object, encoding: object = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _RefusedError("another encoding than Latin-1")
        self._copy(len(text))
        return text.encode("latin1")

    def _dict(self, items: object = ()) -> dict[Any, Any]:
        pairs: list[Any] | tuple[Any, ...] = items if isinstance(items, (list, tuple)) else [items]
        self._copy(len(pairs))
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            raise ValueError("a dict of what are no pairs")
        return self.filled({}, [one for pair in pairs for one in pair])

    def _default_dict(self, factory: object = None) -> dict[Any, Any]:
        return {}  # what the factory makes of missing keys is of no use to a reader

    def _copy(self, count: int) -> None:
        # What is remembered can be copied again and again by few bytes; a file of data copies each byte once at most.
        self.copied += count
        if self.copied > self.size:
            raise _RefusedError("more memory than it holds data")


_RENAMED = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}
"""Modules whose names differ between versions of Python and NumPy."""

_VALUES: dict[bytes, Callable[[_Machine], Any]] = {
    b"N": lambda m: None,
    b"\x88": lambda m: True,
    b"\x89": lambda m: False,
    b"I": lambda m: m.whole_number(),
    b"J": lambda m: m.number("<i"),
    b"K": lambda m: m.number("<B"),
    b"M": lambda m: m.number("<H"),
    b"L": lambda m: int(m.line().rstrip(b"L")),
    b"\x8a": lambda m: int.from_bytes(m.counted("<B"), "little", signed=True),
    b"\x8b": lambda m: int.from_bytes(m.counted("<i"), "little", signed=True),
    b"F": lambda m: float(m.line()),
    b"G": lambda m: m.number(">d"),
    b"S": lambda m: m.quoted(),
    b"T": lambda m: m.counted("<i").decode("latin1"),
    b"U": lambda m: m.counted("<B").decode("latin1"),
    b"V": lambda m: m.line().decode("raw-unicode-escape"),
    b"X": lambda m: m.counted("<I").decode("utf-8", "surrogatepass"),
    b"\x8c": lambda m: m.counted("<B").decode("utf-8", "surrogatepass"),
    b"\x8d": lambda m: m.counted("<Q").decode("utf-8", "surrogatepass"),
    b"B": lambda m: m.counted("<I"),
    b"C": lambda m: m.counted("<B"),
    b"\x8e": lambda m: m.counted("<Q"),
    b"\x96": lambda m: bytearray(m.counted("<Q")),
    b")": lambda m: (),
    b"]": lambda m: [],
    b"}": lambda m: {},
    b"t": lambda m: tuple(m.marked()),
    b"l": lambda m: m.marked(),
    b"d": lambda m: m.filled({}, m.marked()),
    b"\x85": lambda m: (m.pop(),),
    b"\x86": lambda m: (m.pop(), m.pop())[::-1],
    b"\x87": lambda m: (m.pop(), m.pop(), m.pop())[::-1],
    b"2": lambda m: m.stack[-1],
    b"g": lambda m: m.memo[int(m.line())],
    b"h": lambda m: m.memo[m.number("<B")],
    b"j": lambda m: m.memo[m.number("<I")],
    b"c": lambda m: m.named(m.line().decode(), m.line().decode()),
    b"i": lambda m: m.named(m.line().decode(), m.line().decode()).call(*m.marked()),
    b"\x93": lambda m: m.named(*(m.pop(), m.pop())[::-1]),
    b"R": lambda m: m.call(),
}
"""The instructions that put a value on the stack."""

_ACTIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: m.read(1),  # the protocol: the instructions of one are also those of the next
    b"\x95": lambda m: m.read(8),  # a frame, for reading in pieces
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": lambda m: m.marks.pop() if m.marks[-1:] == [len(m.stack)] else m.stack.pop(),
    b"1": lambda m: m.marked(),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.marked()),
    b"s": lambda m: m.update([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.update(m.marked()),
    b"p": lambda m: m.remember(int(m.line())),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"b": lambda m: m.build(),
}
"""The others that build data."""

_REFUSED = {
    **dict.fromkeys((b"P", b"Q"), "a persistent id"),
    **dict.fromkeys((b"\x82", b"\x83", b"\x84"), "a registered extension"),
    **dict.fromkeys((b"o", b"\x81", b"\x92"), "an object of a class"),
    **dict.fromkeys((b"\x8f", b"\x90", b"\x91"), "a set"),
    **dict.fromkeys((b"\x97", b"\x98"), "a buffer outside of the file"),
}
"""Those that do not, by what they ask for."""
