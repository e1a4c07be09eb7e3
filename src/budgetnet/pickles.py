"""Read pickles of strangers as data.

Python's own unpickler in Python is the machine, with the opcodes that data needs, and those changed that would look up,
call or set something. NumPy's constructors are admitted by name only: stand-ins that can hold numbers and nothing else
answer to the names, so that no code but ours handles what a file says. Checkpoints are torch's to read; here they are
rehearsed, with stand-ins that make nothing.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
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
_MOST_ARGUMENTS = 8
_LONGEST_NUMBER = 620
"""Digits: those of 255 bytes, as many as the shorter opcode of long numbers has. Python prints no more than 4,300."""
_KEYS = frozenset([str, bytes, int, float, bool, type(None)])


class _Machine(pickle._Unpickler):
    """What time and memory it takes is in proportion to the file.

    Nothing is allocated by what a size says. Keys are plain: the hash of a tuple of tuples that all are the same one,
    taken from the memo again and again, would take forever. No attribute is set, so that nothing outlives the file.
    """

    stack: list[Any]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]
    built: tuple[type, ...] = ()
    """What may be given a state."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise DataError("a call with other than a few arguments")
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) not in self.built:
            raise DataError(f"a state of what has none, a {type(self.stack[-1]).__name__.lstrip('_').lower()}")
        self.stack[-1].__setstate__(state)

    def load_append(self) -> None:
        value = self.stack.pop()
        self._top(list).append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._top(list).extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict)[_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._top(dict).update(_pairs(items))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(_pairs(items))

    def load_additems(self) -> None:
        items = self.pop_mark()
        self._top(set).update(map(_key, items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(map(_key, items)))

    def load_int(self) -> None:
        line = self._number()
        self.stack.append(line == b"01" if line in (b"00", b"01") else int(line, 0))

    def load_long(self) -> None:
        self.stack.append(int(self._number().removesuffix(b"L"), 0))

    def _number(self) -> bytes:
        line = self.readline()[:-1]
        if len(line) > _LONGEST_NUMBER:
            raise DataError(f"a number of {len(line):,} digits")
        return line

    def load_bytearray8(self) -> None:
        self.stack.append(bytearray(self.read(struct.unpack("<Q", self.read(8))[0])))

    def _top(self, kind: type[Any]) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise DataError(f"items in what is no {kind.__name__}")
        return self.stack[-1]


def _key(value: Any) -> Any:
    """A key as it is, where its hash takes no time: text, a short number, or a few of them."""
    parts = value[:_MOST_ARGUMENTS] if type(value) is tuple else (value,)
    plain = all(type(part) in _KEYS and not (type(part) is int and part.bit_length() > 64) for part in parts)
    if not plain or (type(value) is tuple and len(value) > _MOST_ARGUMENTS):
        raise DataError("a key that is no text or number")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise DataError("a key without a value")
    return {_key(items[i]): items[i + 1] for i in range(0, len(items), 2)}


class _Dispatch(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> NoReturn:
        names = [opcode.name for opcode in pickletools.opcodes if ord(opcode.code) == code]
        if not names:
            raise ValueError(f"a byte {code} where an opcode should be")
        raise DataError(f"the opcode {names[0]}")


def _dispatch(more: str = "") -> _Dispatch:
    """What the machine can do: the opcodes of data, and more."""
    names = (
        "PROTO|FRAME|STOP|MARK|POP|NONE|NEWTRUE|NEWFALSE|LONG1|BININT[12]?|(BIN)?FLOAT|(SHORT_)?BINSTRING|"
        "(SHORT_)?BINBYTES8?|UNICODE|(SHORT_)?BINUNICODE8?|EMPTY_(LIST|DICT|TUPLE|SET)|LIST|TUPLE[123]?|"
        f"(LONG_)?(BIN)?(GET|PUT)|MEMOIZE|(STACK_)?GLOBAL{more}"
    )
    own = {
        pickle.REDUCE: lambda machine: machine.load_reduce(),
        pickle.BUILD: lambda machine: machine.load_build(),
        pickle.APPEND: _Machine.load_append,
        pickle.APPENDS: _Machine.load_appends,
        pickle.SETITEM: _Machine.load_setitem,
        pickle.SETITEMS: _Machine.load_setitems,
        pickle.DICT: _Machine.load_dict,
        pickle.ADDITEMS: _Machine.load_additems,
        pickle.FROZENSET: _Machine.load_frozenset,
        pickle.BYTEARRAY8: _Machine.load_bytearray8,
        pickle.INT: _Machine.load_int,
        pickle.LONG: _Machine.load_long,
    }
    taken = [ord(opcode.code) for opcode in pickletools.opcodes if re.fullmatch(names, opcode.name)]
    base: dict[int, Any] = pickle._Unpickler.dispatch
    return _Dispatch({code: base[code] for code in taken} | {code[0]: method for code, method in own.items()})


class _Unpickler(_Machine):
    dispatch = _dispatch()
    built = (_Dtype, _Array)

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw))
        self._unencoded = len(raw)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        raise DataError(f"a call of {f'{module}.{name}'[:100]!a}")

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """How protocols 0 to 2 write bytes."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
            raise DataError("text in another encoding than latin1")
        self._unencoded -= len(text)
        if self._unencoded < 0:  # the same text again and again would fill the memory
            raise DataError("more bytes than the file has")
        return text.encode("latin1")


_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,  # UnicodeDecodeError is one
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    struct.error,
)
"""What the machine stumbles over in bytes that are no whole pickle."""


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
        content = _Unpickler(raw).load()
        if not isinstance(content, dict):
            raise DataError(f"a {type(content).__name__.lstrip('_').lower()} instead of a dict")
        return {key: value.value if isinstance(value, _Array) else value for key, value in content.items()}
    except DataError as error:
        raise DataError(
            f"{path}: found {error} in the pickle, expected a dict of NumPy arrays and plain values: refused, and "
            "nothing in it was run"
        ) from None
    except _BROKEN as error:
        raise DataError(
            f"{path}: found {len(raw):,} bytes that are no whole pickle, expected a dict of NumPy arrays: the file is "
            "damaged or something else"
        ) from error


class _Storage:
    """Stands in for the kinds of memory that checkpoints name, and for some of one: so many elements of a size."""

    __slots__ = ("element", "elements")

    def __init__(self, element: int, elements: int = 0) -> None:
        self.element, self.elements = element, elements


_PROTOCOLS = (b"\x80\x02", b"\x80\x03")  # how a pickle that torch reads without running code begins
_STORAGES = {
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}


def _tensor(storage: Any, offset: Any, shape: Any, *_: Any) -> None:
    if type(storage) is not _Storage or type(shape) is not tuple or len(shape) > _MOST_ARGUMENTS:
        raise DataError("a tensor of nothing")
    if not all(type(size) is int and 0 <= size < 2**63 for size in (offset, *shape)):
        raise DataError("a tensor of impossible shape")
    if math.prod(shape) > storage.elements:
        raise DataError("a tensor larger than what it is stored in")


class _Rehearsal(_Machine):
    """Makes nothing but containers and plain values, and counts what torch would have to find room for."""

    dispatch = _dispatch("|BINPERSID")

    def __init__(self, file: io.BytesIO, room: int) -> None:
        super().__init__(file)
        self._sizes: dict[Any, int] = {}
        self._room = room

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda *arguments: None
        if module == "torch" and name in _STORAGES:
            return _Storage(_STORAGES[name])
        raise DataError(f"{module}.{name}"[:100])

    def load_reduce(self) -> None:
        if self.stack[-2] is OrderedDict and self.stack[-1] != ():
            raise DataError("a call of collections.OrderedDict")
        super().load_reduce()

    def load_build(self) -> None:
        self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict:  # whose state is the _metadata of a state_dict
            raise DataError("a state of what has none")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, elements = pid[:5]
        if kind not in ("storage", b"storage") or type(storage) is not _Storage or type(elements) is not int:
            raise DataError("a reference to what is no tensor")
        size = elements * storage.element
        self._room -= max(0, size - self._sizes.get(_key(key), 0))
        if elements < 0 or self._room < 0:
            raise DataError(f"a tensor of {elements:,} elements, for which there is no room in the file")
        self._sizes[key] = size
        return _Storage(storage.element, elements)


def rehearse(raw: bytes, start: int, room: int) -> int:
    """Go through a pickle of a checkpoint as torch would, and make nothing of it.

    Args:
        raw: holds the pickle: tensors, plain values and containers.
        start: where it begins.
        room: bytes that its tensors can have.

    Returns:
        Where it ends.

    Raises:
        DataError: it holds, or claims, anything else. The message names it.
        ValueError: it is damaged.
    """
    file = io.BytesIO(raw)
    file.seek(start)
    try:
        _Rehearsal(file, room).load()
    except _BROKEN as error:
        raise ValueError(f"a damaged pickle, {error or type(error).__name__}") from error
    if not raw.startswith(_PROTOCOLS, start):  # of which torch says how to load it without any check
        raise ValueError(
            "its pickle is of another protocol than 2, which torch.save writes unless told otherwise, or 3"
        )
    return file.tell()
