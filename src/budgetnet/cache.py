"""Image files as one array of pixels: decoded once, and kept in a file where they are many.

A kept array is a memory map. The operating system reads its pages when they are touched and takes them back when memory
runs short, so that data larger than the memory can be trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet.errors import DataError, reason
from budgetnet.files import replacing

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Progress = Callable[[int, int], None]
"""Called with the image files that are decoded and those that there are."""

KEEP_FROM = 64 << 20
"""Bytes, of the files or of their pixels, from which the pixels are kept. What is less is decoded anew each time, in
seconds: then nothing needs a cache folder that can be written, and nothing is left in it by a handful of images."""

_FORMAT = 1  # to be counted up whenever the same images would give other pixels or facts, or stand otherwise in a file
_TAIL = struct.Struct("<32sQ")
_LONGEST_ABOUT = 1 << 16  # so that a damaged length does not fill the memory
_CHUNK = 4 << 20  # bytes of pixels
_DAY = 24 * 60 * 60
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""What is decoded, whatever a file is called. Pillow knows more: for PostScript, it starts an interpreter."""
_MOST_PIXELS = 2**26  # of a file: 8192x8192, in 268 MB while it is decoded
_MOST_BYTES = 2**28  # of a file


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
    describe: Callable[[Tensor], dict[str, Any]] = lambda _: {},
    progress: Progress | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """The pixels of image files, and facts about them that are computed only when they are decoded.

    From `KEEP_FROM` on, the pixels are kept in the cache folder, in a file that is replaced when an image is changed,
    added, removed or renamed (its size, or its time of modification or of status change), and made anew when it is
    damaged. Making it takes little memory. Two processes that make it at once end with one whole file.

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
    source = os.path.realpath(root)
    key, file_bytes = _digest(source, root, names, image_size)
    needed = int(np.prod(shape, dtype=np.int64))
    if max(needed, file_bytes) < KEEP_FROM:
        pixels = torch.from_numpy(np.concatenate(list(decode(root, names, image_size, progress))))
        return pixels, describe(pixels)

    folder = cache_folder() / "decoded"
    place = folder / f"{key}.pixels"
    about = _read_about(place)
    if about and about.key == key and about.shape == shape:
        return _map(place, shape), about.facts
    _clean(folder, source, shape)
    _require_room(folder, root, needed)
    with replacing(place) as part:
        try:
            with part.open("r+b") as file:
                # Written, not mapped: a disk that is full is an error here and would end the process there.
                for chunk in decode(root, names, image_size, progress):
                    file.write(chunk.data)
                file.flush()
                pixels = _map(part, shape)
                about = _About(key=key, source=source, shape=shape, facts=describe(pixels))
                text = json.dumps(asdict(about)).encode()
                file.write(text + _TAIL.pack(hashlib.sha256(text).digest(), len(text)))
        except OSError as error:
            raise DataError(_no_room(folder, root, needed, reason(error))) from error
    return pixels, about.facts


def decode(root: Path, names: Sequence[str], image_size: int, progress: Progress | None = None) -> Iterator[Pixels]:
    """The pixels of image files a few megabytes at a time, in order: uint8 (m, 3, image_size, image_size).

    Nothing is kept, and nothing that was kept is read. As many threads decode as torch computes with: photos gain by
    it, and images of a few kilobytes lose little.

    Raises:
        DataError: an image is missing, damaged or of more than 8 bits a channel.
    """
    step = max(1, _CHUNK // (3 * image_size * image_size))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, len(names), step):
            some = names[start : start + step]
            yield np.stack(list(pool.map(lambda name: read_image(root / name, image_size), some)))
            if progress:
                progress(start + len(some), len(names))


def read_image(path: Path, image_size: int) -> Pixels:
    """One image file, upright, as uint8 (3, image_size, image_size).

    Raises:
        DataError: the image is missing, damaged or of more than 8 bits a channel.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: found an image file of more than {_MOST_BYTES:,} bytes: make the image smaller")
        # From memory: of a file, Pillow would ask for as many bytes as a chunk says that it has.
        with Image.open(io.BytesIO(path.read_bytes()), formats=_FORMATS) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise DataError(
                    f"{path}: found {opened.width}x{opened.height} pixels, expected at most {_MOST_PIXELS:,}: make the "
                    "image smaller"
                )
            if opened.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path}: found pixels of mode {opened.mode}, expected 8 bits a channel: convert the image"
                )
            image = ImageOps.exif_transpose(opened)
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # what Pillow asks for before such a palette becomes RGB
            image = image.convert("RGB")
            if image.size != (image_size, image_size):
                image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
            return np.array(image).transpose(2, 0, 1).copy()
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: found no readable image, expected PNG, JPEG or the like") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: found no readable image ({why}), expected PNG, JPEG or the like") from error


def _digest(source: str, root: Path, names: Sequence[str], image_size: int) -> tuple[str, int]:
    """What tells one set of decoded pixels from another, without opening an image; and the bytes of the files."""
    import PIL

    digest = hashlib.sha256(repr((_FORMAT, PIL.__version__, source, image_size)).encode(errors="backslashreplace"))
    total = 0
    for name in names:
        try:
            found = (root / name).stat()
        except OSError as error:
            raise DataError(f"{root / name}: {reason(error)}, expected an image that can be read") from error
        # The time of the last status change too: tools that unpack or copy set the other one to what they like.
        digest.update(os.fsencode(name) + struct.pack("<xQqq", found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        total += found.st_size
    return digest.hexdigest(), total


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


def _clean(folder: Path, source: str, shape: tuple[int, ...]) -> None:
    """Remove what nothing will read again.

    That is what was kept of the same folder at the same size before it changed, or of folders that are gone, damaged
    files, and what processes that died have left: a file that is being written does not stay as it is for a day.
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
        for path in folder.glob(".*.part"):
            if time.time() - path.stat().st_mtime > _DAY:
                path.unlink(missing_ok=True)


def _require_room(folder: Path, root: Path, needed: int) -> None:
    """Refuse before the first image is decoded what would fail after the last."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
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
