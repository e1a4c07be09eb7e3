"""Read NumPy's files of strangers as numbers: .npy mapped from the disk, members of an .npz read whole.

A header is checked against the bytes that there are before anything as large as it says is allocated, and arrays of
objects, which only a pickle can hold, are refused.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from budgetnet.errors import DataError, reason

_Array = np.ndarray[Any, Any]
_BROKEN = (ValueError, TypeError, EOFError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError)
"""What NumPy's readers raise on bytes that are no array."""
_MOST = 2**29  # bytes of a member: 170,000 images of 32x32, and no more of a small file that unpacks to a huge one


def map_npy(path: Path) -> _Array:
    """A .npy file as a memory map, which is only to be read.

    Raises:
        DataError: the file cannot be read, is no whole array, or holds objects.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a .npy file that can be read") from error
    except _BROKEN as error:
        raise DataError(
            f"{path}: found no whole .npy array of numbers, expected what numpy.save writes: the file is damaged or "
            "something else"
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
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, fortran, dtype = read_header[version](member)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or dtype.kind not in "biuf":
                    raise DataError(f"{path}: found {name!r} of {dtype}, expected numbers: refused, nothing was run")
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
    except (*_BROKEN, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: found no whole .npz file with an array {name!r}, expected what numpy.savez writes: the file is "
            "damaged or something else"
        ) from error
