"""Read NumPy's files of strangers as numbers: .npy mapped from the disk, members of an .npz read whole.

A header is text of one form, and nothing else is taken for one: no expression is evaluated. What it says is checked
against the bytes that there are before anything as large as it says is allocated, and arrays of objects, which only a
pickle can hold, are refused.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from budgetnet.errors import DataError, reason

_Array = np.ndarray[Any, Any]
_Header = tuple[tuple[int, ...], bool, str]
_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}
"""How each version of the format says how long its header is."""
_LONGEST_HEADER = 10_000  # bytes, as NumPy's own limit
_ENTRY = re.compile(
    r"""\s* '(?: descr'\s*:\s* (?:'(?P<descr>[^'\\]*)' | (?P<records>\[.*\]))
        | fortran_order'\s*:\s* (?P<fortran>True|False)
        | shape'\s*:\s* \((?P<shape>[0-9L,\ ]*)\) ) \s* (?:,|(?=\}))""",  # L: a NumPy of Python 2
    re.VERBOSE,
)
_NUMBERS = re.compile("[<>|=]?(?:b1|[iu][1248]|f[248])")
_MOST = 2**29  # bytes of a member: 170,000 images of 32x32, and no more of a small file that unpacks to a huge one


def map_npy(path: Path) -> _Array:
    """A .npy file as a memory map, which is only to be read.

    Raises:
        DataError: the file cannot be read, is no whole array, or holds objects.
    """
    try:
        with path.open("rb") as file:
            shape, fortran, descr = _read_header(file)
            start, held = file.tell(), path.stat().st_size
            size = math.prod(shape) * _dtype(descr).itemsize
            if size > held - start:
                raise ValueError(f"an array of {size:,} bytes in a file of {held:,}")
            if not size:
                return np.zeros(shape, _dtype(descr), order="F" if fortran else "C")
            return np.memmap(file, _dtype(descr), "r", start, shape, "F" if fortran else "C")
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a .npy file that can be read") from error
    except ValueError as error:
        raise DataError(
            f"{path}: found no whole .npy array of numbers, expected what numpy.save writes: the file is damaged or "
            f"something else ({error})"
        ) from error


def read_npz(path: Path, name: str) -> _Array:
    """One array of numbers of an .npz file; the others are not looked at.

    Raises:
        DataError: the file cannot be read or is damaged, has no array of that name, or that holds objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.removesuffix(".npy") for member in archive.namelist()]
            if name not in names:
                shown = ", ".join(map(ascii, names[:5])) or "nothing"
                raise DataError(f"{path}: found {shown[:200]}, expected an array {name!r}")
            info = archive.getinfo(f"{name}.npy")
            if info.compress_size > path.stat().st_size:
                raise ValueError(f"a member of {info.compress_size:,} bytes")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Unpacked by zipfile all at once, to however much that is; NumPy writes none.
                raise ValueError(f"a member that is compressed by method {info.compress_type}")
            with archive.open(info) as member:
                shape, fortran, descr = _read_header(member)
                if not _NUMBERS.fullmatch(descr):
                    kind = "object" if descr.endswith("O") else descr
                    raise DataError(f"{path}: found {name!r} of {kind}, expected numbers: refused, nothing was run")
                dtype = _dtype(descr)
                size = math.prod(shape) * dtype.itemsize
                if info.file_size - member.tell() != size or size > _MOST:
                    raise DataError(
                        f"{path}: found {name!r} of shape {'x'.join(map(str, shape)) or 'scalar'} in "
                        f"{info.file_size:,} bytes, expected as many as that takes, and at most {_MOST:,}"
                    )
                raw = member.read()  # to the end, where its checksum is compared
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected an .npz file that can be read") from error
    # What else zipfile raises on bytes that are no archive, of a kind it has not, or with a password.
    except (ValueError, EOFError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: found no whole .npz file with an array {name!r}, expected what numpy.savez writes: the file is "
            "damaged or something else"
        ) from error


def _read_header(file: IO[bytes]) -> _Header:
    """The shape, whether it is in Fortran's order, and the type, as written, of the array that follows in `file`.

    Raises:
        ValueError: there is no header in any form that NumPy writes.
    """
    start = file.read(len(_MAGIC) + 2)
    if start[:-2] != _MAGIC or start[-2] not in _LENGTHS:
        raise ValueError("no .npy file of version 1 to 3")
    prefix = _LENGTHS[start[-2]]
    raw = file.read(prefix.size)
    length = prefix.unpack(raw)[0] if len(raw) == prefix.size else 0
    if not 0 < length <= _LONGEST_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    raw = file.read(length)
    text = raw.decode("latin1").strip()
    found: dict[str, str] = {}
    at = 1
    while entry := _ENTRY.match(text, at):
        found |= {key: value for key, value in entry.groupdict().items() if value is not None}
        at = entry.end()
    if len(raw) != length or text[:1] != "{" or text[at:].strip() != "}" or len(found) != 3:
        raise ValueError("another header than NumPy writes")
    sizes = [size.strip() for size in found["shape"].split(",") if size.strip()]
    if len(sizes) > 8 or not all(re.fullmatch("[0-9]{1,18}L?", size) for size in sizes):
        raise ValueError("an impossible shape")
    shape = tuple(int(size.removesuffix("L")) for size in sizes)
    return shape, found["fortran"] == "True", found.get("descr", "records")


def _dtype(descr: str) -> np.dtype[Any]:
    if not _NUMBERS.fullmatch(descr):
        raise ValueError("an array of other than numbers")
    return np.dtype(descr)
