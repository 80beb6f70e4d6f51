"""Reads the plain data in a pickle file, dicts, lists, text, bytes, integers and NumPy arrays, without unpickling.

Knows nothing of what the file should hold. Nothing of a file is ever imported or called: its instructions are listed
by `pickletools` and interpreted here, where only those exist that build plain data. A reference to anything but the
few functions by which NumPy and Python 2 wrote arrays and bytes ends the reading.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cibhash.errors import DataError


@dataclass
class PlainArray:
    """An array as its file describes it; filled in by an instruction of its own, like NumPy's."""

    dtype: str = ""
    """Kind and size, as in `u1`."""
    shape: tuple[int, ...] = ()
    data: bytes = b""
    """In C order."""


@dataclass(frozen=True)
class _Dtype:
    name: str


def read_plain(content: bytes, source: str) -> Any:
    """The object in a pickle file, made of dicts, lists, tuples, str, bytes, int, bool, None and `PlainArray`.

    Text that Python 2 wrote, which does not tell text from bytes, becomes str, one character per byte.

    Args:
        content: The whole file.
        source: Its name, for messages.

    Raises:
        DataError: not a pickle, or one that holds, or does, anything else.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    try:
        argument: Any
        for opcode, argument, _ in pickletools.genops(content):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    marks.append(len(stack))
                case name if name in _LITERALS:
                    stack.append(argument)
                case name if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name]())
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                    stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
                case "LIST":
                    stack.append(since_mark())
                case "APPEND":
                    item = stack.pop()
                    stack[-1].append(item)
                case "APPENDS":
                    items = since_mark()
                    stack[-1].extend(items)
                case "DICT":
                    items = since_mark()
                    stack.append(dict(zip(items[::2], items[1::2], strict=True)))
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    stack[-1][key] = value
                case "SETITEMS":
                    items = since_mark()
                    stack[-1].update(zip(items[::2], items[1::2], strict=True))
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_known(argument.replace(" ", "."), source))
                case "STACK_GLOBAL":
                    attribute, module = stack.pop(), stack.pop()
                    stack.append(_known(f"{module}.{attribute}", source))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    if function not in _MAKERS:
                        raise DataError(f"{source}: calls {str(function)[:60]!r}, expected plain data")
                    stack.append(function(*arguments))
                case "BUILD":
                    state = stack.pop()
                    _build(stack[-1], state)
                case name:
                    raise DataError(f"{source}: instruction {name}, expected plain data")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{source}: not a pickle of plain data: {' '.join(str(error).split())[:120]}") from None
    raise DataError(f"{source}: a pickle without an end")


def _known(name: str, source: str) -> Any:
    if name not in _GLOBALS:
        raise DataError(f"{source}: refers to {name[:80]}, expected arrays of numbers and plain data: not read")
    return _GLOBALS[name]


def _reconstruct(_kind: Any, _shape: Any, _code: Any) -> PlainArray:
    """What `numpy.core.multiarray._reconstruct` stands for: an array whose content follows."""
    return PlainArray()


def _dtype(name: Any, _align: Any = False, _copy: Any = True) -> _Dtype:
    return _Dtype(_text(name))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> PlainArray:
    """What `numpy.core.numeric._frombuffer` stands for: an array with its content."""
    if order != "C":
        raise ValueError(f"an array in order {order!r}, expected 'C'")
    return PlainArray(dtype.name, tuple(map(int, shape)), bytes(data))


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"text encoded as {encoding!r}, expected latin1")
    return bytes(text, "latin-1")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, PlainArray):
        _, shape, dtype, fortran, data = state
        if fortran:
            raise ValueError("an array in Fortran order, expected C order")
        target.shape, target.dtype = tuple(map(int, shape)), dtype.name
        target.data = data.encode("latin-1") if isinstance(data, str) else bytes(data)
    elif not isinstance(target, _Dtype):  # what a dtype is told of byte order means nothing for its name
        raise TypeError(f"a state for {type(target).__name__}, expected an array's")


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


_MAKERS: tuple[Callable[..., Any], ...] = (_reconstruct, _dtype, _from_buffer, _encode)
_GLOBALS: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "numpy.dtype": _dtype,
    "numpy.ndarray": "numpy.ndarray",
    "_codecs.encode": _encode,
}
"""What a file may refer to, and what stands for it here."""
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
