"""Read the images of any one input: a contest pickle, a batch, an array, an image file, a folder of images.

Files are hostile until shown otherwise: nothing in one is ever executed, and all that can be wrong with one is a
`DataError` of one line that names the file, what was found and what was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from budgetnet import cache
from budgetnet.arrays import map_npy
from budgetnet.decoding import MOST_CLASSES, SUFFIXES
from budgetnet.errors import DataError, reason
from budgetnet.pickles import unpickle

SIDE = 32
"""Pixels of a side of CIFAR's images, and of all that are not told another size."""
_PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Images:
    """Images in the order of their source, with what the source says of each."""

    images: Tensor
    """uint8 (n, c, h, w), contiguous, on the CPU; perhaps a map of a file, so never write to it."""
    labels: Tensor | None = None
    """int64 (n,), or None where the source has no labels."""
    ids: Tensor | None = None
    """int64 (n,), unique, or None where the source has no ids."""
    names: tuple[str, ...] | None = None
    """The file of each image, relative to the folder, or None where the images are not files of their own."""
    kind: str = "images"
    """What `read_images` has found the source to be, in words, such as "NumPy array"."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}, expected uint8 (n, c, h, w)")
        for name, values in (("labels", self.labels), ("ids", self.ids), ("names", self.names)):
            if values is not None and len(values) != len(self.images):
                raise ValueError(f"{len(values)} {name} for {len(self.images)} images, expected one each")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def targets(self) -> Tensor:
        """int64 (n,): the labels of images that must have some.

        Raises:
            DataError: they have none.
        """
        if self.labels is None:
            raise DataError("these images have no labels, expected one each")
        return self.labels


def read_images(path: Path, image_size: int = SIDE) -> Images:
    """Read the images of one input, in its order.

    Args:
        path: a contest pickle, an official batch (Python or binary), a .npy array (uint8), an image file, or a folder
            of images (directly in it or in class folders), taken in natural order of their names (2 before 10). A
            suffix that is none of theirs leaves it to the file's first bytes whether it is a pickle or an image.
        image_size: side in pixels. Image files are resized to it; arrays must have it.

    Returns:
        images uint8 (n, 3, image_size, image_size); labels and ids where the file has them; names for image files. The
        labels of class folders are the ranks of the folders' names in plain order.

    Raises:
        DataError: the input is missing, damaged, hostile, of no kind that is read, or has images of another size.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder, expected a contest pickle, a batch, an image or a folder of images"
        )
    reader = _reader_of(path)
    return replace(reader.read(path, image_size), kind=reader.kind)


def _read_folder(folder: Path, image_size: int) -> Images:
    names, labels = list_folder(folder)
    pixels, _ = cache.load_files(folder, names, image_size)
    return Images(pixels, labels, names=names)


def _read_image(path: Path, image_size: int) -> Images:
    return Images(torch.from_numpy(cache.read_image(path, image_size))[None], names=(path.name,))


def _read_array(path: Path, image_size: int) -> Images:
    return Images(_layout_of(path, map_npy(path), image_size))


def _read_batch(path: Path, image_size: int) -> Images:
    if image_size != SIDE:
        raise DataError(f"{path}: found images of 32x32 pixels, expected {image_size}x{image_size}")
    return read_binary(path)


def _read_pickle(path: Path, image_size: int) -> Images:
    return read_pickled(path, unpickle(path, read_bytes(path)), image_size)


class _Reader(NamedTuple):
    """Of one kind of input."""

    kind: str
    read: Callable[[Path, int], Images]


_FOLDER, _IMAGE = _Reader("image folder", _read_folder), _Reader("image", _read_image)
_PICKLE = _Reader("contest pickle", _read_pickle)
_READERS = {  # by suffix
    ".npy": _Reader("NumPy array", _read_array),
    ".bin": _Reader("CIFAR-10 binary batch", _read_batch),
    **dict.fromkeys((".pkl", ".pickle"), _PICKLE),
    **dict.fromkeys(SUFFIXES, _IMAGE),
}
# How files begin: PNG, JPEG, GIF, TIFF of both byte orders, WebP; dicts of pickle protocols 2 and later, 1, and 0.
_IMAGE_STARTS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")
_PICKLE_STARTS = (b"\x80", b"}", b"(d")


def _reader_of(path: Path) -> _Reader:
    if path.is_dir():
        return _FOLDER
    suffix = path.suffix.lower()
    if suffix in _READERS:
        return _READERS[suffix]
    start = _start(path) if path.is_file() else b""  # a pipe can be read only once
    if start.startswith(_IMAGE_STARTS):
        return _IMAGE
    if suffix and not start.startswith(_PICKLE_STARTS):
        raise DataError(
            f"{path}: found a file of no kind that is read, expected an image ({', '.join(sorted(SUFFIXES))}), a "
            "folder of images, a NumPy array (.npy), a CIFAR-10 binary batch (.bin) or a contest pickle (.pkl): "
            "convert it, or give it its suffix"
        )
    return _PICKLE  # as the official batches are, which have no suffix


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a file that can be read") from error


def list_folder(folder: Path) -> tuple[tuple[str, ...], Tensor | None]:
    """The n image files of a folder that `read_images` takes, relative to it, and int64 (n,) labels of class folders.

    Raises:
        DataError: there are none, or some beside folders of images.
    """
    files = image_names(folder)
    folders = [child.name for child in children(folder) if child.is_dir() and image_names(child)]
    if files and folders:
        raise DataError(
            f"{folder}: found images ({files[0]}) beside folders of images ({folders[0]}/), expected one kind"
        )
    if folders:
        return list_classes(folder)[:2]
    if not files:
        others = [child for child in children(folder) if child.suffix.lower() in _READERS and child.is_file()]
        advice = f": name {others[0]} itself" if others else ""
        raise DataError(f"{folder}: found {listing(folder)}, expected images ({few(sorted(SUFFIXES), 10)}){advice}")
    return tuple(files), None


def list_classes(folder: Path) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
    """The image files <class>/* of a folder, their labels, and the class names in plain order.

    Returns:
        Names relative to the folder (n,), labels int64 (n,) and classes (k,).

    Raises:
        DataError: there are no classes, or one has no images.
    """
    classes = tuple(sorted(child.name for child in children(folder) if child.is_dir()))
    if not classes:
        raise DataError(f"{folder}: found {listing(folder)}, expected a folder of images for each class")
    names: list[str] = []
    counts: list[int] = []
    for name in classes:
        found = image_names(folder / name)
        if not found:
            raise DataError(f"{folder / name}: found no images, expected at least one of this class, or no such folder")
        names += (f"{name}/{file}" for file in found)
        counts.append(len(found))
    return tuple(names), torch.arange(len(classes)).repeat_interleave(torch.tensor(counts)), classes


def image_names(folder: Path) -> list[str]:
    """The names of the image files directly in a folder, but for hidden ones, in natural order.

    Raises:
        DataError: it is no folder that can be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name[0] != "." and os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file()
            ]
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(names, key=_natural)


def children(folder: Path) -> list[Path]:
    """What is in a folder but for hidden files, in natural order of names.

    Raises:
        DataError: it is no folder that can be read.
    """
    try:
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: _natural(p.name))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(f"{folder}: {reason(error)}, expected a folder that can be read: check --data")


def _natural(name: str) -> tuple[list[str | int], str]:
    """The sort key by which img2 comes before img10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))], name


def listing(folder: Path) -> str:
    """What is in a folder, in the words of a message."""
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "a file"
    return few((child.name for child in children(folder)), 4) or "an empty folder"


def few(names: Iterable[str], count: int = 5) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _layout_of(path: Path, pixels: np.ndarray[Any, Any], side: int) -> Tensor:
    """The images of an array whose shape tells its layout, as uint8 (n, 3, side, side)."""
    shape = pixels.shape
    if pixels.dtype == np.uint8 and pixels.size:
        if shape[1:] == (side, side, 3):
            return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        if shape[1:] in ((3, side, side), (3 * side * side,)):
            return torch.from_numpy(pixels.reshape(len(pixels), 3, side, side).copy())
    raise DataError(
        f"{path}: found {pixels.dtype} data of shape {'x'.join(map(str, shape)) or 'scalar'}, expected uint8 of shape "
        f"nx{side}x{side}x3, nx3x{side}x{side} or nx{3 * side * side}"
    )


def read_binary(path: Path) -> Images:
    """A CIFAR-10 binary batch: records of one label byte and 3,072 pixel bytes, channel first.

    Raises:
        DataError: it is not whole records, or a label is out of range.
    """
    record = 1 + _PIXELS
    size = _size(path)
    if size == 0 or size % record:
        raise DataError(
            f"{path}: found {size:,} bytes, expected a multiple of {record:,} (a label and 3x32x32 pixels each)"
        )
    records = np.frombuffer(read_bytes(path), np.uint8).reshape(size // record, record)
    images = torch.from_numpy(records[:, 1:].copy().reshape(len(records), 3, SIDE, SIDE))
    return Images(images, checked_labels(path, records[:, 0], len(records), 10))


def read_pickled(path: Path, content: dict[Any, Any], side: int) -> Images:
    """The images of an unpickled batch or contest file, with labels and ids where it has them.

    Raises:
        DataError: the images, labels or ids are not what they should be.
    """
    data = content.get(b"data", content.get("data"))
    if not isinstance(data, np.ndarray):
        keys = [key[:30] for key in content if isinstance(key, str | bytes)]
        found = "data that is no array" if data is not None else f"the keys {few(map(ascii, keys)) or 'of no names'}"
        raise DataError(f"{path}: found {found}, expected a NumPy array of images under 'data'")
    images = _layout_of(path, data, side)
    labels = None
    for key, classes in (("labels", 10 if b"batch_label" in content else None), ("fine_labels", 100)):
        values = content.get(key.encode(), content.get(key))
        if values is not None:
            labels = checked_labels(path, values, len(images), classes)
    ids = content.get(b"ids", content.get("ids"))
    return Images(images, labels, None if ids is None else _ids(path, ids, len(images)))


def checked_labels(path: Path, values: Any, n: int, classes: int | None) -> Tensor:
    """Labels from a file, int64 (n,), each in [0, classes), or below `MOST_CLASSES`.

    Raises:
        DataError: they are not such.
    """
    labels = _integers(path, values, n, "labels")
    wrong = np.flatnonzero((labels < 0) | (labels >= (classes or MOST_CLASSES)))
    if len(wrong):
        expected = f"0 to {(classes or MOST_CLASSES) - 1}"
        raise DataError(f"{path}: found label {labels[wrong[0]]} at image {wrong[0]:,}, expected {expected}")
    return torch.from_numpy(labels)


def _ids(path: Path, values: Any, n: int) -> Tensor:
    ids = _integers(path, values, n, "ids")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != n:
        raise DataError(f"{path}: found id {unique[counts > 1][0]} {counts.max()} times, expected unique ids")
    return torch.from_numpy(ids)


def _integers(path: Path, values: Any, n: int, what: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    if isinstance(values, list) and all(type(value) is int for value in values):
        try:
            values = np.array(values, np.int64)
        except OverflowError as error:
            raise DataError(f"{path}: found {what} beyond 64 bits, expected integers") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu" or values.ndim != 1:
        raise DataError(f"{path}: found {what} that are no flat list of integers, expected one integer an image")
    if len(values) != n:
        raise DataError(f"{path}: found {len(values):,} {what}, expected {n:,}, one an image")
    if n and values.max() > np.iinfo(np.int64).max:
        raise DataError(f"{path}: found {what} of 2**63 and more, expected integers of 64 bits with sign")
    return values.astype(np.int64)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a file that can be read") from error


def read_bytes(path: Path) -> bytes:
    """All of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a file that can be read") from error
