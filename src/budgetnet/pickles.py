"""Read pickles of strangers as data.

NumPy's constructors are admitted by name only: stand-ins that can hold numbers and nothing else answer to the names, so
that no code but ours handles what a file says.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
import warnings
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from budgetnet.errors import DataError


class _Dtype:
    """Stands in for numpy.dtype: numbers and fixed strings, no objects, no records."""

    __slots__ = ("dtype",)

    def __init__(self, spec: Any, align: Any = False, copy: Any = False) -> None:
        text = spec.decode("latin1") if isinstance(spec, bytes) else spec
        if not isinstance(text, str) or not re.fullmatch("[<>|=]?([biuf][1248]|[SU][1-9][0-9]{0,5})", text):
            raise DataError("an array of other than numbers")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        _version, order, *structure = state[:5]
        orders: dict[Any, Literal["<", ">", "|", "="]] = {"<": "<", ">": ">", "|": "|", "=": "="}
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in orders or any(part is not None for part in structure):
            raise DataError("an array of other than numbers")
        self.dtype = self.dtype.newbyteorder(orders[order])


class _Array:
    """Stands in for numpy.ndarray; `value` is the array, once its state has been read."""

    __slots__ = ("value",)
    value: np.ndarray[Any, Any]

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray) or order not in ("C", "F"):
            raise DataError("an array of other than numbers")
        if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(size) is int and size >= 0 for size in shape):
            raise DataError("an array of impossible shape")
        if math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise DataError(f"an array whose shape does not fit its {len(raw):,} bytes")
        self.value = np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
    if kind is not _Array:
        raise DataError("an array of another kind")
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
    if axis_order is not None:
        raise DataError("an array in another order than C or Fortran")
    array = _Array()
    array.fill(raw, dtype, shape, order)
    return array


def _scalar(dtype: Any, raw: Any) -> Any:
    array = _Array()
    array.fill(raw, dtype, (), "C")
    if array.value.dtype.kind in "SU":
        raise DataError("a scalar that is no number")
    return array.value.item()


def _no_bytes() -> bytes:
    return b""


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{(builtins, "bytes"): _no_bytes for builtins in ("builtins", "__builtin__")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
_OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|POP|NONE|NEWTRUE|NEWFALSE|INT|LONG[14]?|BININT[12]?|(BIN)?FLOAT|(SHORT_)?BINSTRING|"
    "(SHORT_)?BINBYTES8?|BYTEARRAY8|UNICODE|(SHORT_)?BINUNICODE8?|(EMPTY_)?(LIST|DICT|TUPLE)|TUPLE[123]|APPENDS?|"
    "SETITEMS?|EMPTY_SET|ADDITEMS|FROZENSET|(LONG_)?(BIN)?(GET|PUT)|MEMOIZE|(STACK_)?GLOBAL|REDUCE|BUILD"
)
_MAX_TUPLES = 30_000


class _Unpickler(pickle.Unpickler):
    def __init__(self, raw: bytes):
        super().__init__(io.BytesIO(raw), encoding="bytes")
        self._unencoded = len(raw)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            found: Any = self._encode
        elif (module, name) in _ADMITTED:
            found = _ADMITTED[module, name]
        else:
            raise DataError(f"a call of {f'{module}.{name}'[:100]!a}")
        # A function of its own for each use: BUILD can set attributes of one, which must not outlive the file.
        return found if found is _Array else lambda *arguments: found(*arguments)

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """How protocols 0 to 2 write bytes."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
            raise DataError("text in another encoding than latin1")
        self._unencoded -= len(text)
        if self._unencoded < 0:  # the same text again and again would fill the memory
            raise DataError("more bytes than the file has")
        return text.encode("latin1")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise DataError("a reference to another file")


def _sizes() -> list[int]:
    """For each byte as an opcode: its size with its argument; less than 0, the bytes that hold its argument's size; 0
    where it takes a closer look."""
    sizes = [0] * 256
    # A size of four bytes that is meant to be less than 0 is read as one beyond any file.
    prefixes = {
        pickletools.TAKEN_FROM_ARGUMENT1: -1,
        pickletools.TAKEN_FROM_ARGUMENT4: -4,
        pickletools.TAKEN_FROM_ARGUMENT4U: -4,
    }
    for opcode in pickletools.opcodes:
        if _OPCODES.fullmatch(opcode.name) and not re.search("PUT|TUPLE|STOP", opcode.name):
            length = 0 if opcode.arg is None else opcode.arg.n
            sizes[ord(opcode.code)] = 1 + length if length >= 0 else prefixes.get(length, 0)
    return sizes


_SIZES = _sizes()
_KNOWN = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_BININT1, _LONG_BINPUT = b"Kr"
_uint4 = struct.Struct("<I").unpack_from
_SMALL_INTS = re.compile(rb"(?:K.)+", re.DOTALL)


def _check_opcodes(raw: bytes) -> None:
    """Refuse what the C unpickler would run out of memory or stack on, and what no array needs, before it sees it.

    Says what a loop over `pickletools.genops` would, but for text that is not UTF-8, in a fraction of its time.
    """
    stream, at, position, tuples = io.BytesIO(raw), 0, 0, 0
    while at < len(raw):
        code = raw[at]
        size = _SIZES[code]
        if code == _BININT1 and (run := _SMALL_INTS.match(raw, at)):  # labels: one after another
            position += (run.end() - at) // 2 - 1
            at = run.end()
        elif size > 0:
            at += size
        elif size == -1:
            at += 2 + raw[at + 1]
        elif size == -4:
            at += 5 + _uint4(raw, at + 1)[0]
        elif code == _LONG_BINPUT:
            if _uint4(raw, at + 1)[0] > position:
                raise DataError("a memo of impossible size")  # which would be allocated whole
            at += 5
        else:
            opcode = _KNOWN.get(code)
            if opcode is None or not _OPCODES.fullmatch(opcode.name):
                raise DataError(f"the opcode {opcode.name if opcode else code}")
            stream.seek(at + 1)
            argument: Any = opcode.arg.reader(stream) if opcode.arg else None
            if "PUT" in opcode.name and argument > position:
                raise DataError("a memo of impossible size")
            tuples += "TUPLE" in opcode.name
            if tuples > _MAX_TUPLES:
                raise DataError(f"more than {_MAX_TUPLES:,} tuples")  # which, nested in a key, would overflow the stack
            if opcode.name == "STOP":
                return
            at = stream.tell()
        position += 1
    raise ValueError("the pickle ends without STOP")


def unpickle(path: Path, raw: bytes) -> dict[Any, Any]:
    """Read a pickled dict of plain values and NumPy arrays of numbers; whatever else a pickle can say is refused.

    Args:
        path: the file, for messages.
        raw: its content.

    Returns:
        The dict; Python 2's strings are bytes, arrays among its values are NumPy arrays.

    Raises:
        DataError: the content is damaged or hostile; nothing in it was run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged bytes can look like a string with an odd escape
            _check_opcodes(raw)
        content = _Unpickler(raw).load()
        if not isinstance(content, dict):
            raise DataError(f"a {type(content).__name__.lstrip('_').lower()} instead of a dict")
        return {key: value.value if isinstance(value, _Array) else value for key, value in content.items()}
    except DataError as error:
        raise DataError(
            f"{path}: found {error} in the pickle, expected a dict of NumPy arrays and plain values: refused, and "
            "nothing in it was run"
        ) from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,  # UnicodeDecodeError is one
        TypeError,
        AttributeError,
        ImportError,
        LookupError,
        ArithmeticError,
        MemoryError,
        RecursionError,
        struct.error,
    ) as error:
        raise DataError(
            f"{path}: found {len(raw):,} bytes that are no whole pickle, expected a dict of NumPy arrays: the file is "
            "damaged or something else"
        ) from error
