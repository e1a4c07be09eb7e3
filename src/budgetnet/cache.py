"""Images as one array of pixels: decoded once, and kept in a file where they are many.

A kept array is a memory map. The operating system reads its pages when they are touched and takes them back when memory
runs short, so that data larger than the memory can be trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import shutil
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet.decoding import MOST_PIXELS as MOST_PIXELS
from budgetnet.decoding import Pixels
from budgetnet.decoding import read_image as read_image
from budgetnet.errors import DataError, reason
from budgetnet.files import flush

Progress = Callable[[int, int], None]
"""Called with the images that are decoded and those that there are."""
Describe = Callable[[Tensor], dict[str, Any]]
Work = Callable[[Path, Sequence[int]], Generator[tuple[int, int], None, None]]
"""Writes the pieces of these numbers into the file of all pieces, each at its place, and tells of each, in any order,
its number and the CRC-32 of its bytes."""

KEEP_FROM = 64 << 20
"""Bytes, of the files or of their pixels, from which the pixels are kept. What is less is decoded anew each time, in
seconds: then nothing needs a cache folder that can be written, and nothing is left in it by a handful of images."""

_FORMAT = 1  # to be counted up whenever the same images would give other pixels or facts, or stand otherwise in a file
_TAIL = struct.Struct("<32sQ")
_LONGEST_ABOUT = 1 << 22  # so that a damaged length does not fill the memory
_CHUNK = 4 << 20  # bytes of pixels
_DAY = 24 * 60 * 60


def cache_folder() -> Path:
    """The folder of budgetnet in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "budgetnet"


@dataclass(frozen=True, kw_only=True)
class _About:
    """What stands behind the pixels of a kept file."""

    key: str
    """What the pixels are a function of, digested."""
    source: str
    """The folder of the images."""
    shape: tuple[int, ...]
    facts: dict[str, Any]


def load_files(
    root: Path,
    names: Sequence[str],
    image_size: int,
    *,
    describe: Describe = lambda _: {},
    progress: Progress | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """The pixels of image files, and facts about them that are computed only when they are decoded.

    From `KEEP_FROM` on, the pixels are kept (`keep`), in a file that is replaced when an image is changed, added,
    removed or renamed (its size, or its time of modification or of status change).

    Args:
        root: the folder that the names are relative to.
        names: one or more image files, in the order wanted.
        image_size: side in pixels that the images are resized to.
        describe: from all pixels to what JSON can hold; kept with the pixels. A function of them and of `names`.
        progress: told how the decoding goes; not called where there is nothing to decode.

    Returns:
        uint8 (n, 3, image_size, image_size) on the CPU, and what `describe` says. Where it is a memory map it cannot be
        written to: an attempt ends the process.

    Raises:
        DataError: an image is missing, damaged or of more than 8 bits a channel, or the cache folder has no room.
    """
    shape = (len(names), 3, image_size, image_size)
    key, file_bytes = digest(root, names, image_size)
    if max(math.prod(shape), file_bytes) < KEEP_FROM:
        pixels = torch.from_numpy(np.concatenate(list(decode(root, names, image_size, progress))))
        return pixels, describe(pixels)
    step = _step(image_size)
    starts = range(0, len(names), step)

    def work(part: Path, wanted: Sequence[int]) -> Generator[tuple[int, int], None, None]:
        done = len(names) - sum(len(names[starts[i] : starts[i] + step]) for i in wanted)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for i in wanted:
                chunk = _stacked(pool, root, names[starts[i] : starts[i] + step], image_size)
                yield i, write_piece(part, starts[i] * chunk[0].size, [chunk])
                done += len(chunk)
                if progress:
                    progress(done, len(names))

    rows = [min(step, len(names) - start) for start in starts]
    return keep(key, root, shape, rows, work, describe)


def decode(root: Path, names: Sequence[str], image_size: int, progress: Progress | None = None) -> Iterator[Pixels]:
    """The pixels of image files a few megabytes at a time, in order: uint8 (m, 3, image_size, image_size).

    Nothing is kept, and nothing that was kept is read. As many threads decode as torch computes with: photos gain by
    it, and images of a few kilobytes lose little.

    Raises:
        DataError: an image is missing, damaged or of more than 8 bits a channel.
    """
    step = _step(image_size)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, len(names), step):
            some = names[start : start + step]
            yield _stacked(pool, root, some, image_size)
            if progress:
                progress(start + len(some), len(names))


def _step(image_size: int) -> int:
    return max(1, _CHUNK // (3 * image_size * image_size))


def _stacked(pool: ThreadPoolExecutor, root: Path, names: Sequence[str], image_size: int) -> Pixels:
    return np.stack(list(pool.map(lambda name: read_image(root / name, image_size), names)))


def keep(
    key: str, root: Path, shape: tuple[int, ...], rows: Sequence[int], work: Work, describe: Describe = lambda _: {}
) -> tuple[Tensor, dict[str, Any]]:
    """Bytes from the cache folder, made piece by piece where they are not there yet, and facts about them.

    A process that dies while it makes them leaves the pieces that it has made, and the next one goes on behind those
    whose checksum is right. Others that want the same meanwhile wait for it. What fails for another reason than the
    process's end leaves nothing. Damaged files are made anew.

    Args:
        key: what the bytes are a function of, digested.
        root: the folder that they are made from.
        shape: four sizes, of which the product is the number of bytes.
        rows: of each piece, how many of the `shape[0]` rows it makes up; the pieces stand one behind the other.
        work: writes the pieces.
        describe: from all bytes, uint8 of `shape`, to what JSON can hold.

    Returns:
        A map of the bytes, uint8 of `shape`, which must not be written to, and what `describe` said.

    Raises:
        DataError: `work` says so, or the cache folder has no room.
    """
    folder, source, needed = cache_folder() / "decoded", os.path.realpath(root), math.prod(shape)
    place, part, journal = (folder / name for name in (f"{key}.pixels", f".{key}.part", f".{key}.journal"))
    while True:
        about = _read_about(place)
        if about and about.key == key and about.shape == shape:
            return _map(place, shape), about.facts
        _clean(folder, source, shape, (part, journal))
        _require_room(folder, root, needed, part)
        try:
            handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DataError(_no_room(folder, root, needed, reason(error))) from error
        _lock(handle)
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), part.stat()):
                break
        os.close(handle)  # who had it has finished it, or given it up
    starts = [n * (needed // shape[0]) for n in accumulate(rows, initial=0)]
    try:
        os.truncate(part, needed)
        there = _intact(part, journal, starts)
        # Written, not mapped: a disk that is full is an error here and would end the process there.
        wanted = [i for i in range(len(rows)) if i not in there]
        with journal.open("a", encoding="ascii") as notes, closing(work(part, wanted)) as made:
            for number, checksum in made:
                notes.write(f"{number} {checksum}\n")
                notes.flush()
        pixels = _map(part, shape)
        about = _About(key=key, source=source, shape=shape, facts=describe(pixels))
        text = json.dumps(asdict(about)).encode()
        with part.open("ab") as file:
            file.write(text + _TAIL.pack(hashlib.sha256(text).digest(), len(text)))
        flush(part)
        os.replace(part, place)
        journal.unlink()
        flush(folder)
    except Exception as error:
        for path in (part, journal):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise DataError(_no_room(folder, root, needed, reason(error))) from error
    finally:
        os.close(handle)
    return pixels, about.facts


def kept(key: str) -> tuple[Tensor, dict[str, Any]] | None:
    """What `keep` has made under a key and returned (a map of uint8 bytes, and facts), if it is still there."""
    place = cache_folder() / "decoded" / f"{key}.pixels"
    about = _read_about(place)
    return (_map(place, about.shape), about.facts) if about and about.key == key else None


def write_piece(part: Path, offset: int, chunks: Iterable[Pixels]) -> int:
    """Write arrays one behind the other, from `offset` on, into a file that is there.

    Returns:
        The CRC-32 of their bytes.
    """
    checksum = 0
    with part.open("r+b") as file:
        file.seek(offset)
        for chunk in chunks:
            file.write(chunk.data)
            checksum = zlib.crc32(chunk.data, checksum)
    return checksum


def _intact(part: Path, journal: Path, starts: Sequence[int]) -> set[int]:
    """The pieces that a process which died has written down as made, and that are on the disk as it made them."""
    found = set()
    noted = journal.read_text("ascii", "replace").splitlines() if journal.exists() else []
    with part.open("rb") as file:
        for line in noted:
            if not (match := re.fullmatch("([0-9]{1,9}) ([0-9]{1,10})", line)) or int(match[1]) >= len(starts) - 1:
                continue
            number, checksum = int(match[1]), 0
            file.seek(starts[number])
            left = starts[number + 1] - starts[number]
            while left and (read := file.read(min(left, _CHUNK))):
                checksum, left = zlib.crc32(read, checksum), left - len(read)
            if checksum == int(match[2]):
                found.add(number)
    return found


def _lock(handle: int) -> None:
    """Wait until no other process holds the file; where there are no locks, go on: two then write the same."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)


def digest(root: Path, names: Sequence[str], image_size: int) -> tuple[str, int]:
    """What tells one state of some files from another, without opening them; and their bytes.

    Raises:
        DataError: a file is missing.
    """
    import PIL

    source = os.path.realpath(root)
    found = hashlib.sha256(repr((_FORMAT, PIL.__version__, source, image_size)).encode(errors="backslashreplace"))
    total = 0
    for name in names:
        try:
            status = (root / name).stat()
        except OSError as error:
            raise DataError(f"{root / name}: {reason(error)}, expected a file that can be read") from error
        # The time of the last status change too: tools that unpack or copy set the other one to what they like.
        found.update(os.fsencode(name) + struct.pack("<xQqq", status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        total += status.st_size
    return found.hexdigest(), total


def _read_about(path: Path) -> _About | None:
    """What a kept file says of itself, or None where it is not there, not whole or not ours."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - _TAIL.size)
            digest, length = _TAIL.unpack(file.read(_TAIL.size))
            if length > _LONGEST_ABOUT:
                return None
            file.seek(size - _TAIL.size - length)
            text = file.read(length)
        if hashlib.sha256(text).digest() != digest:
            return None
        said = json.loads(text)
        about = _About(**said | {"shape": tuple(said["shape"])})
        if not all(isinstance(part, str) for part in (about.key, about.source)) or not isinstance(about.facts, dict):
            return None
        if len(about.shape) != 4 or not all(type(part) is int and 0 < part < 1 << 40 for part in about.shape):
            return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, struct.error):
        return None
    return about if size == math.prod(about.shape) + length + _TAIL.size else None


def _map(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The pixels of a kept file, as a tensor over a shared, read-only map.

    A private map that could be written to would count as memory that may be asked for, and be refused by the operating
    system where it is larger than the memory.
    """
    array = np.memmap(path, np.uint8, "r", shape=shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def expect_random(images: Tensor) -> None:
    """Tell the operating system that rows will be read in no order, so that it reads those and none around them.

    Without it, Linux fetches 128 KB around each 4 KB that are missing: of shuffled images of a file that does not fit
    in memory, forty times what is wanted. So a process that gathers its share of each batch reads the pages of that
    share and no others. What is not a mapped file is left as it is.

    Args:
        images: any tensor.
    """
    if sys.platform != "linux" or images.device.type != "cpu":
        return
    import ctypes

    page = mmap.PAGESIZE
    start = images.data_ptr() // page * page
    length = images.data_ptr() + images.nbytes - start
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_RANDOM)


def _clean(folder: Path, source: str, shape: tuple[int, ...], own: Sequence[Path] = ()) -> None:
    """Remove what nothing will read again.

    That is what was kept of the same folder at the same size before it changed, or of folders that are gone, damaged
    files, and what processes that died have left, but for what is to be gone on with (`own`): a file that is being
    written does not stay as it is for a day.
    """
    with suppress(OSError):
        for path in folder.glob("*.pixels"):
            about = _read_about(path)
            if (
                about is None
                or not Path(about.source).is_dir()
                or (about.source, about.shape[1:]) == (source, shape[1:])
            ):
                path.unlink(missing_ok=True)
        for path in (*folder.glob(".*.part"), *folder.glob(".*.journal")):
            if path not in own and time.time() - path.stat().st_mtime > _DAY:
                path.unlink(missing_ok=True)


def _require_room(folder: Path, root: Path, needed: int, part: Path) -> None:
    """Refuse before the first image is decoded what would fail after the last; what is in `part` has its room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if os.name == "posix" and part.exists():
            free += 512 * part.stat().st_blocks
    except OSError as error:
        raise DataError(_no_room(folder, root, needed, reason(error))) from error
    if not os.access(folder, os.W_OK):
        raise DataError(_no_room(folder, root, needed, "no permission to write"))
    if free < needed:
        raise DataError(_no_room(folder, root, needed, f"found {free / 1e9:,.1f} GB free"))


def _no_room(folder: Path, root: Path, needed: int, found: str) -> str:
    return (
        f"{folder}: {found}, expected room for {needed / 1e9:,.2f} GB of decoded images of {root}: free some space, or "
        "set XDG_CACHE_HOME to a folder that has it"
    )
