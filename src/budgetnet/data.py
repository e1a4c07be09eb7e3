"""Load labelled data sets, check them, split them and cut them into batches."""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet import audit, cache, cifar, shards
from budgetnet.cifar import CIFAR10_CLASSES
from budgetnet.config import DatasetName
from budgetnet.decoding import SUFFIXES, Pixels
from budgetnet.download import Progress, download, md5_of
from budgetnet.errors import ConfigError, DataError
from budgetnet.images import (
    SIDE,
    Images,
    children,
    few,
    image_names,
    list_classes,
    list_folder,
    listing,
    read_images,
)

__all__ = [
    "CIFAR10_CLASSES",
    "Dataset",
    "Images",
    "Statistics",
    "Verification",
    "batches",
    "default_folder",
    "epoch_order",
    "load",
    "num_classes",
    "read_images",
    "read_training",
    "split",
    "stats",
    "step_seed",
    "verify",
]


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

    def with_test_to_train(self) -> Dataset:
        """The same, the test images standing behind the training images too; the checksum is that of the source."""
        train, test = self.train.images, self.test.images
        if test.data_ptr() == train.data_ptr() + train.numel() and train.untyped_storage().data_ptr() == (
            test.untyped_storage().data_ptr()
        ):  # one file in the cache folder, which need not fit in memory
            images = train.as_strided((len(train) + len(test), *train.shape[1:]), train.stride())
        else:
            images = torch.cat([train, test])
        assert self.train.labels is not None
        assert self.test.labels is not None
        return replace(self, train=Images(images, torch.cat([self.train.labels, self.test.labels])))


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
    duplicates: tuple[audit.Duplicates, ...] = ()
    """Of each data set with training and test images, what both have, and what either has twice."""


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


def default_folder() -> Path:
    """Where data is looked for without --data: $BUDGETNET_DATA, else `budgetnet` in the user's cache folder."""
    named = os.environ.get("BUDGETNET_DATA")
    return Path(named).expanduser() if named else cache.cache_folder()


def num_classes(name: DatasetName, folder: Path | None) -> int:
    """The number of classes of a data set, known before any image is read.

    Raises:
        DataError: `name` is folder, and there is neither a folder tree nor sound shards.
    """
    if name == "folder":
        found = _locate_folder(default_folder() if folder is None else folder)
        if isinstance(found, shards.Layout):
            return len(shards.index(found).classes)
        return len([child for child in children(found / "train") if child.is_dir()])
    return 100 if name == "cifar100" else 10


def load(
    name: DatasetName,
    folder: Path | None,
    image_size: int = SIDE,
    progress: Progress | None = None,
    decoding: cache.Progress | None = None,
) -> Dataset:
    """Load a data set, into memory or, where it is a large one of image files or shards, as a memory map (`cache`).

    Args:
        name: cifar10, cifar100, folder (train/<class>/* and test/<class>/*, or shards of both) or digits (needs no
            files).
        folder: what holds the data set, or is it; None is `default_folder()`, and CIFAR is downloaded into the cache
            folder when it is not there and $BUDGETNET_DATA is not set.
        image_size: side in pixels that the images of `folder` are resized to; the other data sets are 32x32.
        progress: told how the download goes.
        decoding: told how many of the images of `folder` are decoded.

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
        place = _locate_folder(root)
        if isinstance(place, shards.Layout):
            return _load_shards(place, image_size, decoding)
        return _load_tree(place, image_size, decoding)
    located = cifar.locate(name, root)
    if located is None:
        wanted = " or ".join(f"{layout.folder}/" for layout in cifar.LAYOUTS if layout.dataset == name)
        if not may_download:
            found = listing(root)
            raise DataError(
                f"{root}: found {found}, expected {wanted}: name the folder that holds it, or run "
                f"`budgetnet data download {name} --data DIR`"
            )
        download(name, root, progress=progress)
        located = cifar.locate(name, root)
        assert located is not None, "a finished download has the layout that it was checked for"
    layout, place = located
    classes, train, test = cifar.read(layout, place)
    return Dataset(name, classes, train, test, layout.mean, layout.std, _checksum(train, test))


def read_training(path: Path) -> tuple[Images, tuple[str, ...]]:
    """The training images of a data folder, or all those of a single input of `read_images`, with their class names.

    Classes of an input that does not name them are called by their numbers.

    Raises:
        DataError: the data is missing, damaged or hostile.
    """
    if path.is_dir():
        for official in cifar.LAYOUTS:
            located = cifar.locate(official.dataset, path)
            if located is not None:
                classes, train, _ = cifar.read(*located)
                return train, classes
        if len(_held(path)) == 1:
            dataset = load("folder", path)
            return dataset.train, dataset.classes
    images = read_images(path)
    count = 0 if images.labels is None else int(images.labels.max()) + 1
    return images, tuple(str(label) for label in range(count))


def _locate_folder(root: Path) -> Path | shards.Layout:
    """The one folder tree, or the shards, that a folder is or holds."""
    held = _held(root)
    if len(held) == 1:
        return next(iter(held.values()))
    listed = f"{len(held)} trees ({', '.join(child.name for child in held)})" if held else listing(root)
    raise DataError(
        f"{root}: found {listed}, expected one tree train/<class>/* and test/<class>/*, or shards train*.tar and "
        "test*.tar (or .parquet): name its folder"
    )


def _held(root: Path) -> dict[Path, Path | shards.Layout]:
    """The folder tree, or the shards, that a folder is; else those that the folders in it are, by their folders."""

    def found(folder: Path) -> Path | shards.Layout | None:
        return shards.find(folder) or (folder if _is_tree(folder) else None)

    if not root.is_dir():
        return {}
    if own := found(root):
        return {root: own}
    return {child: one for child in children(root) if child.is_dir() and (one := found(child))}


def _is_tree(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _checksum(*parts: Images) -> str:
    digest = hashlib.sha256()
    for part in parts:
        assert part.labels is not None
        digest.update(part.images.numpy().data)
        digest.update(part.labels.numpy().astype("<i8").data)
    return digest.hexdigest()


def _load_digits() -> Dataset:
    # The file of scikit-learn's `load_digits`, to import which takes longer than to train on it.
    carrier = find_spec("sklearn")
    if carrier is None or not carrier.submodule_search_locations:
        raise DataError("scikit-learn, which carries the digits, is not installed: pip install scikit-learn")
    file = Path(carrier.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():
        raise DataError(f"{file} is not there: install a scikit-learn that carries it, such as 1.9")
    rows = np.loadtxt(file, delimiter=",", dtype=np.int64)
    levels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pixels = levels.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
    images = torch.from_numpy(pixels)[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(rows[:, -1].copy())
    train, test = (Images(images[part], labels[part]) for part in split(labels, len(labels) // 5, seed=0))
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("digits", classes, train, test, (0.30537,) * 3, (0.37614,) * 3, _checksum(train, test))


@dataclass(frozen=True)
class _Tree:
    """The image files of a folder tree and what its folders say of them."""

    root: Path
    classes: tuple[str, ...]
    train_names: tuple[str, ...]
    train_labels: Tensor
    test_names: tuple[str, ...]
    test_labels: Tensor

    @property
    def names(self) -> list[str]:
        return [*(f"train/{name}" for name in self.train_names), *(f"test/{name}" for name in self.test_names)]

    def parts(self, pixels: Tensor) -> tuple[Images, Images]:
        """The training set and the test set, whose pixels (n, c, h, w) stand in the order of `names`."""
        n = len(self.train_names)
        train = Images(pixels[:n], self.train_labels, names=self.train_names)
        return train, Images(pixels[n:], self.test_labels, names=self.test_names)


def _list_tree(root: Path) -> _Tree:
    train_names, train_labels, classes = list_classes(root / "train")
    if len(classes) < 2:
        raise DataError(f"{root / 'train'}: found one class ({classes[0]}), expected two or more class folders")
    test_names, test_labels, test_classes = list_classes(root / "test")
    if unknown := [name for name in test_classes if name not in classes]:
        raise DataError(
            f"{root / 'test'}: found class {unknown[0]}, expected only classes of train: {few(classes)}; rename or "
            "remove the folder"
        )
    test_labels = torch.tensor([classes.index(name) for name in test_classes])[test_labels]
    return _Tree(root, classes, train_names, train_labels, test_names, test_labels)


def _load_tree(root: Path, image_size: int, decoding: cache.Progress | None) -> Dataset:
    tree = _list_tree(root)

    def describe(pixels: Tensor) -> dict[str, Any]:
        train, test = tree.parts(pixels)
        found = stats(train)
        return {"mean": found.mean, "std": found.std, "checksum": _checksum(train, test)}

    pixels, facts = cache.load_files(root, tree.names, image_size, describe=describe, progress=decoding)
    _require_contrast(root, facts["std"])
    return Dataset(
        "folder", tree.classes, *tree.parts(pixels), tuple(facts["mean"]), tuple(facts["std"]), facts["checksum"]
    )


def _load_shards(layout: shards.Layout, image_size: int, decoding: cache.Progress | None) -> Dataset:
    index = shards.index(layout)
    labels, n = index.labels, index.train_size

    def parts(pixels: Tensor) -> tuple[Images, Images]:
        return Images(pixels[:n], labels[:n]), Images(pixels[n:], labels[n:])

    def describe(pixels: Tensor) -> dict[str, Any]:
        train, test = parts(pixels)
        found = stats(train)
        return {"mean": found.mean, "std": found.std, "checksum": _checksum(train, test)}

    pixels, facts = shards.load(index, image_size, describe=describe, progress=decoding)
    _require_contrast(layout.root, facts["std"])
    return Dataset(
        "folder", index.classes, *parts(pixels), tuple(facts["mean"]), tuple(facts["std"]), facts["checksum"]
    )


def _require_contrast(root: Path, deviations: Iterable[float]) -> None:
    if 0 in deviations:
        raise DataError(f"{root / 'train'}: found a channel with one value in all pixels, expected images that differ")


# Splits, order and batches: pure functions of their arguments


def split(labels: Tensor, val_size: int, seed: int, train_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Divide a training set into a training and a validation part, each class in its share.

    Args:
        labels: int64 (n,), the class of each image.
        val_size: images of the validation part, 0 <= val_size < n. A class of k images has floor or ceil of
            val_size * k / n of them, the larger fractions being rounded up.
        seed: decides, alone, which images of a class those are.
        train_size: images of the training part, each class in its share; None is all that are left. Which are held out
            does not depend on it.

    Returns:
        Indices of the training part and of the validation part, int64, rising.

    Raises:
        ConfigError: `val_size` or `train_size` is out of range.
    """
    train, val = _divide(labels, val_size, seed)
    if train_size is None:
        return train, val
    if not 0 < train_size <= len(train):
        raise ConfigError(
            f"train_size is {train_size:,}, expected 1 up to {len(train):,}: so many images are left to train on"
        )
    return train[_divide(labels[train], len(train) - train_size, seed)[0]], val


def _divide(labels: Tensor, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    n = len(labels)
    if not 0 <= val_size < max(n, 1):
        raise ConfigError(f"val_size is {val_size:,}, expected 0 up to {n - 1:,}: the training set has {n:,} images")
    values = labels.cpu().numpy()
    counts = np.unique(values, return_counts=True)[1]
    quota, fraction = np.divmod(val_size * counts.astype(np.int64), max(n, 1))
    quota[np.argsort(-fraction, kind="stable")[: val_size - quota.sum()]] += 1
    shuffled = _shuffle(n, _mix(b"split", seed))
    grouped = shuffled[np.argsort(values[shuffled], kind="stable")]  # one class after another, each in shuffled order
    held = np.zeros(n, dtype=bool)
    for end, count, size in zip(np.cumsum(counts), counts, quota, strict=True):
        held[grouped[end - count : end - count + size]] = True
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
    step = max(1, (1 << 20) // pixels[0].size)  # in parts, so that the wider integers stay in the processor's cache
    for start in range(0, n, step):
        part = pixels[start : start + step].astype(np.uint16)
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
        expected = ", ".join(f"{layout.folder}/" for layout in cifar.LAYOUTS)
        raise DataError(
            f"{path}: found {listing(path)}, expected {expected}, train/<class>/* and test/<class>/*, shards of "
            "both (*.tar, *.parquet), contest/*.pkl or images; `budgetnet data download` fetches CIFAR"
        )
    known = [part.official for part in found if part.official is not None]
    return Verification(
        kind=" + ".join(dict.fromkeys(part.kind for part in found)),
        lines=tuple(line for part in found for line in part.lines),
        images=sum(part.images for part in found),
        official=all(known) if known else None,
        duplicates=tuple(one for part in found for one in part.duplicates),
    )


def _verify_folder(folder: Path) -> Iterator[Verification]:
    found = False
    for official in cifar.LAYOUTS:
        place = folder / official.folder
        if place.is_dir() or any((folder / file).is_file() for file in official.files):
            found = True
            yield _verify_layout(official, place if place.is_dir() else folder)
    for held in _held(folder).values():
        found = True
        yield _verify_shards(shards.index(held)) if isinstance(held, shards.Layout) else _verify_tree(held)
    for place in (folder, folder / "contest"):
        for file in sorted(place.glob("*.pkl")):
            found = True
            yield _verify_file(file)
    if not found and (image_names(folder) or any(image_names(c) for c in children(folder) if c.is_dir())):
        names, _ = list_folder(folder)
        count = sum(map(len, cache.decode(folder, names, SIDE)))
        yield Verification("image folder", (f"{folder.name}: {count:,} readable images",), count, None)


def _verify_tree(root: Path) -> Verification:
    tree = _list_tree(root)
    names = tree.names
    chunks = cache.decode(root, names, SIDE)
    return _verified("image folder tree", root, tree.classes, len(tree.train_names), len(names), chunks, _bare(names))


def _bare(names: list[str]) -> Callable[[int], str]:
    """Names without train/ and test/."""
    return lambda i: names[i].partition("/")[2]


def _verify_shards(index: shards.Index) -> Verification:
    layout = index.layout
    chunks = shards.decode(index, SIDE)
    return _verified(
        layout.kind,
        layout.root,
        index.classes,
        index.train_size,
        len(index.table),
        chunks,
        index.name,
        len(layout.names),
    )


def _verified(
    kind: str,
    root: Path,
    classes: Sequence[str],
    train_size: int,
    size: int,
    chunks: Iterable[Pixels],
    name: Callable[[int], str],
    files: int | None = None,
) -> Verification:
    """Decode every image, whatever is kept of them, and hold none."""
    near = audit.comparable(train_size, size - train_size)
    train, test = audit.Prints(near=near), audit.Prints(near=near)
    lowest, highest = np.full(3, 255, np.uint8), np.zeros(3, np.uint8)
    done = 0
    for chunk in chunks:
        ours = chunk[: max(0, train_size - done)]
        if len(ours):
            lowest, highest = np.minimum(lowest, ours.min((0, 2, 3))), np.maximum(highest, ours.max((0, 2, 3)))
        train.add(torch.from_numpy(ours))
        test.add(torch.from_numpy(chunk[len(ours) :]))
        done += len(chunk)
    _require_contrast(root, (highest - lowest).tolist())
    line = (
        f"{root.name}: {train_size:,} training and {size - train_size:,} test images of {len(classes)} classes "
        f"({few(classes)})"
    ) + (f" in {files:,} {kind}" if files else "")
    duplicates = audit.compare(root.name, train, test, train_name=name, test_name=lambda i: name(train_size + i))
    return Verification(kind, (line, *duplicates.lines()), size, None, (duplicates,))


def _verify_layout(layout: cifar.Layout, folder: Path) -> Verification:
    classes, train, test = cifar.read(layout, folder)
    lines = [
        f"{folder.name}: {len(train):,} training and {len(test):,} test images of {len(classes)} classes, "
        "structure right"
    ]
    official = None
    if layout.md5:
        official = _official_line(layout, folder, lines)
    near = audit.comparable(len(train), len(test))
    prints = audit.Prints(near=near), audit.Prints(near=near)
    for part, found in zip((train, test), prints, strict=True):
        found.add(part.images)
    duplicates = audit.compare(folder.name, *prints)
    lines += duplicates.lines()
    return Verification(layout.kind, tuple(lines), len(train) + len(test), official, (duplicates,))


def _official_line(layout: cifar.Layout, folder: Path, lines: list[str]) -> bool:
    """Say whether the files are the published ones."""
    other = [file for file in layout.files if md5_of(folder / file) != layout.md5[file]]
    if other:
        lines.append(
            f"{folder.name}: not the official files: {len(other)} of {len(layout.files)} differ in MD5 "
            f"({', '.join(other)})"
        )
    else:
        lines.append(f"{folder.name}: the official files, every MD5 matches")
    return not other


def _verify_file(path: Path) -> Verification:
    suffix, official, count, kind, about = path.suffix.lower(), None, 0, "", ""
    for layout in cifar.LAYOUTS:
        if path.name == layout.meta:
            kind, (classes, _) = layout.kind.replace("batches", "class names"), cifar.read_meta(layout, path)
            about = f"{len(classes)} class names ({few(classes)})"
        elif path.name in (*layout.train, layout.test):
            kind, count = layout.kind.removesuffix("es"), len(cifar.read_batch(layout, path))
        else:
            continue
        if expected := layout.md5.get(path.name):
            official = md5_of(path) == expected
        break
    if path.suffix in shards.SUFFIXES:
        index = shards.index_of(path)
        kind, count = index.layout.kind.removesuffix("s"), sum(map(len, shards.decode(index, SIDE)))
    elif not kind:
        images = read_images(path)
        count = len(images)
        kinds = {".npy": "NumPy array", ".bin": "CIFAR-10 binary batch"}
        kind = "image" if suffix in SUFFIXES else kinds.get(suffix, "contest pickle")
        about = "".join(
            f", with {name}" for name, values in (("labels", images.labels), ("ids", images.ids)) if values is not None
        )
        about = f"{count:,} image{'s' * (count != 1)}{about}"
    line = f"{path.name}: {kind}, {about or f'{count:,} images with labels'}"
    if official is not None:
        line += ", the official file" if official else ", not the official file (its MD5 differs)"
    return Verification(kind, (line,), count, official)
