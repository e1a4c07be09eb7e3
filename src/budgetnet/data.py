"""Load labelled data sets, and measure their images."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet import cache, cifar, sources
from budgetnet.config import DatasetName
from budgetnet.download import Progress, download
from budgetnet.errors import DataError
from budgetnet.images import SIDE, Images, listing, read_images
from budgetnet.splits import split

__all__ = [
    "Dataset",
    "Images",
    "Statistics",
    "default_folder",
    "load",
    "num_classes",
    "read_images",
    "read_training",
    "stats",
]


@dataclass(frozen=True)
class Dataset:
    """A labelled training set and test set of the same classes."""

    name: str
    """What `--dataset` calls it."""
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
        return replace(self, train=Images(images, torch.cat([self.train.targets, self.test.targets])))


@dataclass(frozen=True)
class Statistics:
    """Counts and pixel statistics of some images."""

    counts: tuple[int, ...]
    """Images of each class, from class 0 to the largest label; empty without labels."""
    mean: tuple[float, ...]
    """Of each channel, pixels in [0, 1]."""
    std: tuple[float, ...]
    """Of each channel, pixels in [0, 1]; over the population (divided by the number of pixels)."""


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
        return sources.num_classes(sources.locate(default_folder() if folder is None else folder))
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
        return _load_source(sources.look_through(sources.locate(root)), image_size, decoding)
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
        if len(sources.held(path)) == 1:
            dataset = load("folder", path)
            return dataset.train, dataset.classes
    images = read_images(path)
    if images.names and images.labels is not None:
        return images, tuple(dict.fromkeys(name.partition("/")[0] for name in images.names))
    count = 0 if images.labels is None else int(images.labels.max()) + 1
    return images, tuple(str(label) for label in range(count))


def _checksum(*parts: Images) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.images.numpy().data)
        digest.update(part.targets.numpy().astype("<i8").data)
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


def _load_source(source: sources.Source, image_size: int, decoding: cache.Progress | None) -> Dataset:
    def describe(pixels: Tensor) -> dict[str, Any]:
        train, test = source.parts(pixels)
        found = stats(train)
        return {"mean": found.mean, "std": found.std, "checksum": _checksum(train, test)}

    pixels, facts = source.load(image_size, describe=describe, progress=decoding)
    source.require_contrast(facts["std"])
    return Dataset(
        "folder", source.classes, *source.parts(pixels), tuple(facts["mean"]), tuple(facts["std"]), facts["checksum"]
    )


def stats(images: Images) -> Statistics:
    """Count the classes and compute the mean and standard deviation of each channel, exactly, in float64.

    Raises:
        DataError: there are no pixels.
    """
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
