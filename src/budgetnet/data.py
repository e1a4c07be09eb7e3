"""Find, check and read image data sets; split them and cut them into batches.

Files are hostile until shown otherwise: nothing in one is ever executed, and all that can be wrong with one is a
`DataError` of one line that names the file, what was found and what was expected.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet.config import DatasetName
from budgetnet.download import Progress, download, md5_of
from budgetnet.errors import ConfigError, DataError, reason
from budgetnet.pickles import unpickle

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

MOST_CLASSES = 10_000
"""Labels beyond are taken for damage: what counts them would fill the memory."""
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class Images:
    """Images in the order of their source, with what the source says of each."""

    images: Tensor
    """uint8 (n, c, h, w), contiguous, on the CPU."""
    labels: Tensor | None = None
    """int64 (n,), or None where the source has no labels."""
    ids: Tensor | None = None
    """int64 (n,), unique, or None where the source has no ids."""
    names: tuple[str, ...] | None = None
    """The file of each image, relative to the folder, or None where the images are not files of their own."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}, expected uint8 (n, c, h, w)")
        for name, values in (("labels", self.labels), ("ids", self.ids), ("names", self.names)):
            if values is not None and len(values) != len(self.images):
                raise ValueError(f"{len(values)} {name} for {len(self.images)} images, expected one each")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """A labelled training set and test set of the same classes."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    mean: tuple[float, ...]
    """Mean of each channel's training pixels, in [0, 1]: the one normalisation of this data set, with `std`."""
    std: tuple[float, ...]
    """Standard deviation of each channel's training pixels, in [0, 1] units."""
    checksum: str
    """SHA-256 of all pixels (uint8, n c h w order) and labels (int64, little-endian): train, then test."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found; it raises where something is broken."""

    kind: str
    """Such as "CIFAR-10 Python batches", "contest pickle" or "image folder"; several are joined by " + "."""
    lines: tuple[str, ...]
    """A line for each thing checked."""
    images: int
    official: bool | None
    """Whether all files with a published checksum are the official ones; None where no checksum applies."""


@dataclass(frozen=True)
class Statistics:
    """Counts and pixel statistics of some images."""

    counts: tuple[int, ...]
    """Images of each class, from class 0 to the largest label; empty without labels."""
    mean: tuple[float, ...]
    """Of each channel, pixels in [0, 1]."""
    std: tuple[float, ...]
    """Of each channel, pixels in [0, 1]; over the population (divided by the number of pixels)."""


# Data sets


@dataclass(frozen=True)
class _Layout:
    """Where a published data set keeps what, inside its own folder."""

    kind: str
    dataset: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    md5: dict[str, str] = field(default_factory=dict)

    @property
    def binary(self) -> bool:
        return self.test.endswith(".bin")

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)


_CIFAR10_MEAN, _CIFAR10_STD = (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)
_LAYOUTS = (
    _Layout(
        kind="CIFAR-10 Python batches",
        dataset="cifar10",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels="labels",
        names="label_names",
        classes=10,
        mean=_CIFAR10_MEAN,
        std=_CIFAR10_STD,
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    _Layout(
        kind="CIFAR-10 binary batches",
        dataset="cifar10",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test="test_batch.bin",
        meta="batches.meta.txt",
        labels="",
        names="",
        classes=10,
        mean=_CIFAR10_MEAN,
        std=_CIFAR10_STD,
    ),
    _Layout(
        kind="CIFAR-100 Python batches",
        dataset="cifar100",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
        classes=100,
        mean=(0.50708, 0.48655, 0.44092),
        std=(0.26733, 0.25644, 0.27615),
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
)


def default_folder() -> Path:
    """Where data is looked for without --data: $BUDGETNET_DATA, else `budgetnet` in the user's cache folder."""
    if named := os.environ.get("BUDGETNET_DATA"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "budgetnet"


def num_classes(name: DatasetName, folder: Path | None) -> int:
    """The number of classes of a data set, known before any image is read.

    Raises:
        DataError: `name` is folder, and there is no folder tree.
    """
    if name == "folder":
        root = _locate_tree(default_folder() if folder is None else folder)
        return len([child for child in _children(root / "train") if child.is_dir()])
    return 100 if name == "cifar100" else 10


def load(name: DatasetName, folder: Path | None, image_size: int = _SIDE, progress: Progress | None = None) -> Dataset:
    """Read a data set whole.

    Args:
        name: cifar10, cifar100, folder (train/<class>/* and test/<class>/*) or digits (needs no files).
        folder: what holds the data set, or is it; None is `default_folder()`, and CIFAR is downloaded into the cache
            folder when it is not there and $BUDGETNET_DATA is not set.
        image_size: side in pixels that the images of `folder` are resized to; the other data sets are 32x32.
        progress: told how the download goes.

    Returns:
        The data set: images uint8 (n, 3, side, side), labels int64 in [0, number of classes).

    Raises:
        DataError: the data is missing, damaged or hostile.

    CIFAR: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """
    if name == "digits":
        return _load_digits()
    may_download = folder is None and not os.environ.get("BUDGETNET_DATA")
    root = default_folder() if folder is None else folder
    if name == "folder":
        return _load_tree(_locate_tree(root), image_size)
    located = _locate(name, root)
    if located is None:
        wanted = " or ".join(f"{layout.folder}/" for layout in _LAYOUTS if layout.dataset == name)
        if not may_download:
            found = _listing(root)
            raise DataError(
                f"{root}: found {found}, expected {wanted}: name the folder that holds it, or run "
                f"`budgetnet data download {name} --data DIR`"
            )
        download(name, root, progress=progress)
        located = _locate(name, root)
        assert located is not None, "a finished download has the layout that it was checked for"
    layout, place = located
    classes, train, test = _read_layout(layout, place)
    return Dataset(name, classes, train, test, layout.mean, layout.std, _checksum(train, test))


def read_training(path: Path) -> tuple[Images, tuple[str, ...]]:
    """The training images of a data folder, or all those of a single input of `read_images`, with their class names.

    Classes of an input that does not name them are called by their numbers.

    Raises:
        DataError: the data is missing, damaged or hostile.
    """
    if path.is_dir():
        for layout in _LAYOUTS:
            located = _locate(layout.dataset, path)
            if located is not None:
                classes, train, _ = _read_layout(*located)
                return train, classes
        if _is_tree(path):
            return _read_classes(path / "train", _SIDE)
    images = read_images(path)
    count = 0 if images.labels is None else int(images.labels.max()) + 1
    return images, tuple(str(label) for label in range(count))


def _locate(name: str, root: Path) -> tuple[_Layout, Path] | None:
    for layout in _LAYOUTS:
        if layout.dataset != name:
            continue
        if (root / layout.folder).is_dir():
            return layout, root / layout.folder
        if any((root / file).is_file() for file in layout.files):
            return layout, root
    return None


def _locate_tree(root: Path) -> Path:
    if _is_tree(root):
        return root
    held = [child for child in _children(root) if _is_tree(child)] if root.is_dir() else []
    if len(held) == 1:
        return held[0]
    found = f"{len(held)} trees ({', '.join(child.name for child in held)})" if held else _listing(root)
    raise DataError(f"{root}: found {found}, expected one tree train/<class>/* and test/<class>/*: name its folder")


def _is_tree(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _children(folder: Path) -> list[Path]:
    """What is in a folder but for hidden files, in natural order of names."""
    try:
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: _natural(p.name))
    except OSError as error:
        raise DataError(f"{folder}: {reason(error)}, expected a folder that can be read: check --data") from error


def _natural(name: str) -> tuple[list[str | int], str]:
    """The sort key by which img2 comes before img10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))], name


def _listing(folder: Path) -> str:
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "a file"
    names = [child.name for child in _children(folder)]
    return (", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")) or "an empty folder"


def _checksum(*parts: Images) -> str:
    digest = hashlib.sha256()
    for part in parts:
        assert part.labels is not None
        digest.update(part.images.numpy().data)
        digest.update(part.labels.numpy().astype("<i8").data)
    return digest.hexdigest()


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    pixels = levels.repeat(_SIDE // 8, axis=1).repeat(_SIDE // 8, axis=2)
    images = torch.from_numpy(pixels)[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = (Images(images[part], labels[part]) for part in split(labels, len(labels) // 5, seed=0))
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("digits", classes, train, test, (0.30537,) * 3, (0.37614,) * 3, _checksum(train, test))


def _load_tree(root: Path, image_size: int) -> Dataset:
    train, classes = _read_classes(root / "train", image_size)
    if len(classes) < 2:
        raise DataError(f"{root / 'train'}: found one class ({classes[0]}), expected two or more class folders")
    test, test_classes = _read_classes(root / "test", image_size)
    if unknown := [name for name in test_classes if name not in classes]:
        raise DataError(
            f"{root / 'test'}: found class {unknown[0]}, expected only classes of train: {_few(classes)}; rename or "
            "remove the folder"
        )
    assert test.labels is not None
    test = Images(
        test.images, torch.tensor([classes.index(name) for name in test_classes])[test.labels], None, test.names
    )
    statistics = stats(train)
    if 0 in statistics.std:
        raise DataError(f"{root / 'train'}: found a channel with one value in all pixels, expected images that differ")
    return Dataset("folder", classes, train, test, statistics.mean, statistics.std, _checksum(train, test))


def _few(names: Iterable[str], count: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


# Splits, order and batches: pure functions of their arguments


def split(labels: Tensor, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide a training set into a training and a validation part, each class in its share.

    Args:
        labels: int64 (n,), the class of each image.
        val_size: images of the validation part, 0 <= val_size < n. A class of k images has floor or ceil of
            val_size * k / n of them, the larger fractions being rounded up.
        seed: decides, alone, which images of a class those are.

    Returns:
        Indices of the training part and of the validation part, int64, rising.

    Raises:
        ConfigError: `val_size` is out of range.
    """
    n = len(labels)
    if not 0 <= val_size < max(n, 1):
        raise ConfigError(f"val_size is {val_size:,}, expected 0 up to {n - 1:,}: the training set has {n:,} images")
    values = labels.cpu().numpy()
    classes, counts = np.unique(values, return_counts=True)
    quota, fraction = np.divmod(val_size * counts.astype(np.int64), max(n, 1))
    quota[np.argsort(-fraction, kind="stable")[: val_size - quota.sum()]] += 1
    shuffled = _shuffle(n, _mix(b"split", seed))
    held = np.zeros(n, dtype=bool)
    for label, size in zip(classes, quota, strict=True):
        held[shuffled[values[shuffled] == label][:size]] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits n images: a permutation, int64 (n,) on the CPU, by the arguments alone."""
    return torch.from_numpy(_shuffle(n, _mix(b"order", seed, epoch)))


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of a step's augmentation, in [0, 2**63): neighbouring arguments give unrelated seeds."""
    return _mix(b"step", seed, epoch, step)


def batches(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Cut an epoch's order into ceil(n / batch_size) batches whose sizes differ by at most one.

    Every index is in one batch, and no batch is left nearly empty, which batch norm would suffer from.

    Args:
        order: int64 (n,).
        batch_size: largest size, at least 1.

    Returns:
        Consecutive views of `order`; none when n is 0.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more images")
    return torch.tensor_split(order, math.ceil(len(order) / batch_size)) if len(order) else ()


def _mix(purpose: bytes, *values: int) -> int:
    return (
        int.from_bytes(
            hashlib.blake2b(struct.pack(f"<{len(values)}q", *values), person=purpose, digest_size=8).digest()
        )
        >> 1
    )


def _shuffle(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    # Raw PCG64 output is the part of NumPy's randomness whose stream is promised never to change between versions.
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable").astype(np.int64)


# Statistics


def stats(images: Images) -> Statistics:
    """Count the classes and compute the mean and standard deviation of each channel, exactly, in float64."""
    pixels = images.images.numpy()
    n, channels, height, width = pixels.shape
    if pixels.size == 0:
        raise DataError("found no pixels, expected at least one image to compute statistics of")
    totals, squares = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64)
    for start in range(0, n, 1024):  # in parts, so that the wider integers stay in the cache
        part = pixels[start : start + 1024].astype(np.uint16)
        totals += part.sum(axis=(0, 2, 3), dtype=np.uint64)
        squares += (part * part).sum(axis=(0, 2, 3), dtype=np.uint64)
    count = n * height * width
    sums = [(int(total), int(square)) for total, square in zip(totals, squares, strict=True)]
    counts = () if images.labels is None else tuple(torch.bincount(images.labels).tolist())
    return Statistics(
        counts=counts,
        mean=tuple(total / (255 * count) for total, _ in sums),
        std=tuple(math.sqrt(count * square - total * total) / (255 * count) for total, square in sums),
    )


# Reading any one input


_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])


def read_images(path: Path, image_size: int = _SIDE) -> Images:
    """Read the images of one input, in its order.

    Args:
        path: a contest pickle, an official batch (Python or binary), a .npy array (uint8), an image file, or a folder
            of images (directly in it or in class folders), taken in natural order of their names (2 before 10).
        image_size: side in pixels. Image files are resized to it; arrays must have it.

    Returns:
        images uint8 (n, 3, image_size, image_size); labels and ids where the file has them; names for image files. The
        labels of class folders are the ranks of the folders' names in plain order.

    Raises:
        DataError: the input is missing, damaged, hostile, or has images of another size.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder, expected a contest pickle, a batch, an image or a folder of images"
        )
    if path.is_dir():
        return _read_folder(path, image_size)
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        return Images(torch.from_numpy(_read_image(path, image_size))[None], names=(path.name,))
    if suffix == ".npy":
        return Images(_layout_of(path, _read_npy(path), image_size))
    if suffix == ".bin":
        if image_size != _SIDE:
            raise DataError(f"{path}: found images of 32x32 pixels, expected {image_size}x{image_size}")
        return _read_binary(path)
    return _read_pickled(path, unpickle(path, _read_bytes(path)), image_size)


def _read_folder(folder: Path, image_size: int) -> Images:
    children = _children(folder)
    files = [child for child in children if child.is_file() and child.suffix.lower() in _SUFFIXES]
    folders = [child for child in children if child.is_dir() and _image_files(child)]
    if files and folders:
        raise DataError(
            f"{folder}: found images ({files[0].name}) beside folders of images ({folders[0].name}/), expected one kind"
        )
    if folders:
        return _read_classes(folder, image_size)[0]
    if not files:
        raise DataError(f"{folder}: found {_listing(folder)}, expected images ({_few(sorted(_SUFFIXES), 10)})")
    return Images(_read_files(files, image_size), names=tuple(file.name for file in files))


def _image_files(folder: Path) -> list[Path]:
    return [child for child in _children(folder) if child.is_file() and child.suffix.lower() in _SUFFIXES]


def _read_classes(folder: Path, image_size: int) -> tuple[Images, tuple[str, ...]]:
    """The images of <folder>/<class>/*, their labels, and the class names in plain order."""
    classes = sorted(child.name for child in _children(folder) if child.is_dir())
    if not classes:
        raise DataError(f"{folder}: found {_listing(folder)}, expected a folder of images for each class")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _image_files(folder / name)
        if not found:
            raise DataError(f"{folder / name}: found no images, expected at least one of this class, or no such folder")
        files += found
        labels += [label] * len(found)
    names = tuple(file.relative_to(folder).as_posix() for file in files)
    return Images(_read_files(files, image_size), torch.tensor(labels), names=names), tuple(classes)


def _read_files(files: list[Path], image_size: int) -> Tensor:
    pixels = np.empty((len(files), 3, image_size, image_size), np.uint8)
    for i, file in enumerate(files):
        pixels[i] = _read_image(file, image_size)
    return torch.from_numpy(pixels)


def _read_image(path: Path, image_size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One image file, upright, as uint8 (3, image_size, image_size)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
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
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: found no readable image ({why}), expected PNG, JPEG or the like") from error


def _read_npy(path: Path) -> np.ndarray[Any, Any]:
    try:
        # A memory map is checked against the size of the file before anything as large as the header says is allocated.
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, TypeError, EOFError, OverflowError, MemoryError, tokenize.TokenError) as error:
        raise DataError(f"{path}: found no whole .npy array, expected uint8 images written by numpy.save") from error


def _layout_of(path: Path, pixels: np.ndarray[Any, Any], side: int) -> Tensor:
    """The images of an array whose shape tells its layout, as uint8 (n, 3, side, side)."""
    shape = pixels.shape
    if pixels.dtype == np.uint8 and pixels.ndim > 0 and shape[0] > 0:
        if shape[1:] == (side, side, 3):
            return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        if shape[1:] in ((3, side, side), (3 * side * side,)):
            return torch.from_numpy(pixels.reshape(-1, 3, side, side).copy())
    raise DataError(
        f"{path}: found {pixels.dtype} data of shape {'x'.join(map(str, shape)) or 'scalar'}, expected uint8 of shape "
        f"nx{side}x{side}x3, nx3x{side}x{side} or nx{3 * side * side}"
    )


# The official batches


def _read_layout(layout: _Layout, folder: Path) -> tuple[tuple[str, ...], Images, Images]:
    """Class names, training set and test set of a published data set, checked against one another."""
    if missing := [file for file in layout.files if not (folder / file).is_file()]:
        raise DataError(
            f"{folder}: found no {_few(missing)}, expected all files of {layout.kind}: unpack or download it again"
        )
    classes, per_file = _read_meta(layout, folder / layout.meta)
    train = [_read_batch(layout, folder / file) for file in layout.train]
    test = _read_batch(layout, folder / layout.test)
    if layout.dataset == "cifar10":  # whose files are all of one size
        per_file = per_file or max(len(part) for part in (*train, test))
        for file, part in zip((*layout.train, layout.test), (*train, test), strict=True):
            if len(part) != per_file:
                raise DataError(f"{folder / file}: found {len(part):,} images, expected {per_file:,} as in its like")
    return classes, _join(train), test


def _join(parts: list[Images]) -> Images:
    labels = [part.labels for part in parts if part.labels is not None]
    return Images(torch.cat([part.images for part in parts]), torch.cat(labels))


def _read_meta(layout: _Layout, path: Path) -> tuple[tuple[str, ...], int | None]:
    names: Any
    per_file: Any = None
    if layout.binary:
        names = [line.strip() for line in _read_bytes(path).split(b"\n") if line.strip()]
    else:
        content = unpickle(path, _read_bytes(path))
        names = content.get(layout.names.encode(), content.get(layout.names))
        per_file = content.get(b"num_cases_per_batch", content.get("num_cases_per_batch"))
    if not isinstance(names, list) or len(names) != layout.classes:
        found = f"{len(names)} names" if isinstance(names, list) else f"no list {layout.names}"
        raise DataError(f"{path}: found {found}, expected {layout.classes} class names")
    try:
        decoded = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: found class names that are no text, expected UTF-8") from error
    if per_file is not None and (not isinstance(per_file, int) or per_file < 1):
        raise DataError(f"{path}: found a num_cases_per_batch that is no count, expected a number of images")
    return decoded, per_file


def _read_batch(layout: _Layout, path: Path) -> Images:
    if layout.binary:
        return _read_binary(path)
    content = unpickle(path, _read_bytes(path))
    part = _read_pickled(path, content, _SIDE)
    labels = content.get(layout.labels.encode(), content.get(layout.labels))
    if labels is None:
        raise DataError(f"{path}: found no {layout.labels}, expected a label for each of {len(part):,} images")
    return Images(part.images, _labels(path, labels, len(part), layout.classes))


def _read_binary(path: Path) -> Images:
    """A CIFAR-10 binary batch: records of one label byte and 3,072 pixel bytes, channel first."""
    record = 1 + _PIXELS
    size = _size(path)
    if size == 0 or size % record:
        raise DataError(
            f"{path}: found {size:,} bytes, expected a multiple of {record:,} (a label and 3x32x32 pixels each)"
        )
    records = np.frombuffer(_read_bytes(path), np.uint8).reshape(-1, record)
    images = torch.from_numpy(records[:, 1:].copy().reshape(-1, 3, _SIDE, _SIDE))
    return Images(images, _labels(path, records[:, 0], len(records), 10))


def _read_pickled(path: Path, content: dict[Any, Any], side: int) -> Images:
    """The images of an unpickled batch or contest file, with labels and ids where it has them."""
    data = content.get(b"data", content.get("data"))
    if not isinstance(data, np.ndarray):
        keys = [key[:30] for key in content if isinstance(key, str | bytes)]
        found = "data that is no array" if data is not None else f"the keys {_few(map(ascii, keys)) or 'of no names'}"
        raise DataError(f"{path}: found {found}, expected a NumPy array of images under 'data'")
    images = _layout_of(path, data, side)
    labels = None
    for key, classes in (("labels", 10 if b"batch_label" in content else None), ("fine_labels", 100)):
        values = content.get(key.encode(), content.get(key))
        if values is not None:
            labels = _labels(path, values, len(images), classes)
    ids = content.get(b"ids", content.get("ids"))
    return Images(images, labels, None if ids is None else _ids(path, ids, len(images)))


def _labels(path: Path, values: Any, n: int, classes: int | None) -> Tensor:
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
    if values.dtype == np.uint64 and n and values.max() > np.iinfo(np.int64).max:
        raise DataError(f"{path}: found {what} of 2**63 and more, expected integers of 64 bits with sign")
    return values.astype(np.int64)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a file that can be read") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a file that can be read") from error


# Verification


def verify(path: Path) -> Verification:
    """Read everything in a data folder or a single file, and say what it is.

    Args:
        path: a folder as --data takes it, which may hold several data sets or be one, or any file that `read_images`
            takes, or a file of class names.

    Returns:
        What was found. Files that are whole but not the published ones have `official` False; that is no error.

    Raises:
        DataError: there is nothing, or something in it is damaged or hostile.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected a data folder or one of its files: check --data")
    if path.is_file():
        return _verify_file(path)
    found = list(_verify_folder(path))
    if not found:
        expected = ", ".join(f"{layout.folder}/" for layout in _LAYOUTS)
        raise DataError(
            f"{path}: found {_listing(path)}, expected {expected}, train/<class>/* and test/<class>/*, "
            "contest/*.pkl or images; `budgetnet data download` fetches CIFAR"
        )
    known = [part.official for part in found if part.official is not None]
    return Verification(
        kind=" + ".join(dict.fromkeys(part.kind for part in found)),
        lines=tuple(line for part in found for line in part.lines),
        images=sum(part.images for part in found),
        official=all(known) if known else None,
    )


def _verify_folder(folder: Path) -> Iterator[Verification]:
    found = False
    for layout in _LAYOUTS:
        place = folder / layout.folder
        if place.is_dir() or any((folder / file).is_file() for file in layout.files):
            found = True
            yield _verify_layout(layout, place if place.is_dir() else folder)
    for tree in [folder, *(child for child in _children(folder) if child.is_dir())]:
        if _is_tree(tree):
            found = True
            dataset = _load_tree(tree, _SIDE)
            line = (
                f"{tree.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images of "
                f"{len(dataset.classes)} classes ({_few(dataset.classes)})"
            )
            yield Verification("image folder tree", (line,), len(dataset.train) + len(dataset.test), None)
    for place in (folder, folder / "contest"):
        for file in sorted(place.glob("*.pkl")):
            found = True
            yield _verify_file(file)
    if not found and (_image_files(folder) or any(_image_files(c) for c in _children(folder) if c.is_dir())):
        images = _read_folder(folder, _SIDE)
        yield Verification("image folder", (f"{folder.name}: {len(images):,} readable images",), len(images), None)


def _verify_layout(layout: _Layout, folder: Path) -> Verification:
    classes, train, test = _read_layout(layout, folder)
    lines = [
        f"{folder.name}: {len(train):,} training and {len(test):,} test images of {len(classes)} classes, "
        "structure right"
    ]
    if not layout.md5:
        return Verification(layout.kind, tuple(lines), len(train) + len(test), None)
    other = [file for file in layout.files if md5_of(folder / file) != layout.md5[file]]
    if other:
        lines.append(
            f"{folder.name}: not the official files: {len(other)} of {len(layout.files)} differ in MD5 "
            f"({', '.join(other)})"
        )
    else:
        lines.append(f"{folder.name}: the official files, every MD5 matches")
    return Verification(layout.kind, tuple(lines), len(train) + len(test), not other)


def _verify_file(path: Path) -> Verification:
    suffix, official, count, about = path.suffix.lower(), None, 0, ""
    for layout in _LAYOUTS:
        if path.name == layout.meta:
            kind, (classes, _) = layout.kind.replace("batches", "class names"), _read_meta(layout, path)
            about = f"{len(classes)} class names ({_few(classes)})"
        elif path.name in (*layout.train, layout.test):
            kind, count = layout.kind.removesuffix("es"), len(_read_batch(layout, path))
        else:
            continue
        if expected := layout.md5.get(path.name):
            official = md5_of(path) == expected
        break
    else:
        images = read_images(path)
        count = len(images)
        kinds = {".npy": "NumPy array", ".bin": "CIFAR-10 binary batch"}
        kind = "image" if suffix in _SUFFIXES else kinds.get(suffix, "contest pickle")
        about = "".join(
            f", with {name}" for name, values in (("labels", images.labels), ("ids", images.ids)) if values is not None
        )
        about = f"{count:,} image{'s' * (count != 1)}{about}"
    line = f"{path.name}: {kind}, {about or f'{count:,} images with labels'}"
    if official is not None:
        line += ", the official file" if official else ", not the official file (its MD5 differs)"
    return Verification(kind, (line,), count, official)
