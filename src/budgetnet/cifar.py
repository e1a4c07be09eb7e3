"""The official batches of CIFAR-10 and CIFAR-100, and published shifted test images: what is where, and how it is read.

Krizhevsky 2009, "Learning multiple layers of features from tiny images". CIFAR-10-C: Hendrycks and Dietterich 2019,
arXiv:1903.12261. CIFAR-10.1: Recht et al. 2018, arXiv:1806.00451. CIFAR-10.2: Lu et al. 2020, "Harder or different?".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet.arrays import map_npy, read_npz
from budgetnet.errors import DataError
from budgetnet.images import (
    SIDE,
    Images,
    checked_labels,
    few,
    listing,
    read_binary,
    read_bytes,
    read_pickled,
)
from budgetnet.pickles import unpickle

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Layout:
    """Where a published data set keeps what, inside its own folder."""

    kind: str
    """What messages call it."""
    dataset: str
    """What `--dataset` calls it."""
    folder: str
    train: tuple[str, ...]
    """File names, like `test` and `meta`."""
    test: str
    meta: str
    labels: str
    """Under which key a file of `train` or `test` has the labels; none where the files are binary."""
    names: str
    """Under which key `meta` has the class names; none where it is plain text."""
    classes: int
    """How many there are."""
    mean: tuple[float, ...]
    """Of each channel's training pixels, in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of the same."""
    md5: dict[str, str] = field(default_factory=dict)
    """Of each file, where it was published."""

    @property
    def binary(self) -> bool:
        """Whether the files are records of bytes, not pickles."""
        return self.test.endswith(".bin")

    @property
    def files(self) -> tuple[str, ...]:
        """All that there must be."""
        return (*self.train, self.test, self.meta)


_CIFAR10_MEAN, _CIFAR10_STD = (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)
LAYOUTS = (
    Layout(
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
    Layout(
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
    Layout(
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


def locate(name: str, root: Path) -> tuple[Layout, Path] | None:
    """The layout of the data set of that name in a folder that holds it or is it, and its own folder."""
    for layout in LAYOUTS:
        if layout.dataset != name:
            continue
        if (root / layout.folder).is_dir():
            return layout, root / layout.folder
        if any((root / file).is_file() for file in layout.files):
            return layout, root
    return None


def read(layout: Layout, folder: Path) -> tuple[tuple[str, ...], Images, Images]:
    """Class names, training set and test set of a published data set, checked against one another.

    Raises:
        DataError: a file is missing, damaged or hostile.
    """
    if missing := [file for file in layout.files if not (folder / file).is_file()]:
        raise DataError(
            f"{folder}: found no {few(missing)}, expected all files of {layout.kind}: unpack or download it again"
        )
    classes, per_file = read_meta(layout, folder / layout.meta)
    train = [read_batch(layout, folder / file) for file in layout.train]
    test = read_batch(layout, folder / layout.test)
    if layout.dataset == "cifar10":  # whose files are all of one size
        per_file = per_file or max(len(part) for part in (*train, test))
        for file, part in zip((*layout.train, layout.test), (*train, test), strict=True):
            if len(part) != per_file:
                raise DataError(f"{folder / file}: found {len(part):,} images, expected {per_file:,} as in its like")
    return classes, _join(train), test


def _join(parts: list[Images]) -> Images:
    labels = [part.labels for part in parts if part.labels is not None]
    return Images(torch.cat([part.images for part in parts]), torch.cat(labels))


def read_meta(layout: Layout, path: Path) -> tuple[tuple[str, ...], int | None]:
    """The class names, and the images of a batch where the file says.

    Raises:
        DataError: the file is damaged or hostile.
    """
    names: Any
    per_file: Any = None
    if layout.binary:
        names = [line.strip() for line in read_bytes(path).split(b"\n") if line.strip()]
    else:
        content = unpickle(path, read_bytes(path))
        names = content.get(layout.names.encode(), content.get(layout.names))
        per_file = content.get(b"num_cases_per_batch", content.get("num_cases_per_batch"))
    if not isinstance(names, list) or len(names) != layout.classes:
        found = f"{len(names)} names" if isinstance(names, list) else f"no list {layout.names}"
        raise DataError(f"{path}: found {found}, expected {layout.classes} class names")
    try:
        decoded = tuple(name.decode() if isinstance(name, bytes) else name for name in names)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: found class names that are no text, expected UTF-8") from error
    if not all(isinstance(name, str) for name in decoded):
        raise DataError(f"{path}: found class names that are no text, expected UTF-8")
    if per_file is not None and (type(per_file) is not int or not 0 < per_file < 2**31):
        raise DataError(f"{path}: found a num_cases_per_batch that is no count, expected a number of images")
    return decoded, per_file


def read_batch(layout: Layout, path: Path) -> Images:
    """The images of one of the files, with labels.

    Raises:
        DataError: the file is damaged or hostile.
    """
    if layout.binary:
        return read_binary(path)
    content = unpickle(path, read_bytes(path))
    part = read_pickled(path, content, SIDE)
    labels = content.get(layout.labels.encode(), content.get(layout.labels))
    if labels is None:
        raise DataError(f"{path}: found no {layout.labels}, expected a label for each of {len(part):,} images")
    return Images(part.images, checked_labels(path, labels, len(part), layout.classes))


# Shifted test images. Nothing that trains or chooses reads them: they are no `Layout`.

TEST_SETS = {
    "cifar10.1": ("cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy"),
    "cifar10.2": ("cifar102_test.npz",),
    "cifar10.2-train": ("cifar102_train.npz",),
}
"""New test sets for CIFAR-10's classes and their files; the last is what its authors offer to train on, read as a test
set like the others."""
_CORRUPTED = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
_SEVERITIES = 5


def read_test_set(name: str, root: Path) -> Images:
    """One of `TEST_SETS`, whose files lie in a folder or in a folder directly in it.

    Returns:
        images uint8 (n, 3, 32, 32) with labels in [0, 10).

    Raises:
        DataError: a file is missing, damaged or hostile.
    """
    files = TEST_SETS[name]
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    held = [place for place in (root, *folders) if all((place / file).is_file() for file in files)]
    if not held:
        raise DataError(f"{root}: found {listing(root)}, expected {' and '.join(files)}, in it or in a folder of it")
    path = held[0] / files[0]
    if path.suffix == ".npz":
        pixels, labels = read_npz(path, "images"), read_npz(path, "labels")
    else:
        pixels, labels = map_npy(path), map_npy(held[0] / files[1])
    _require_images(path, pixels, None)
    every = np.arange(len(pixels))
    return Images(_picked(pixels, every), checked_labels(held[0] / files[-1], np.asarray(labels), len(pixels), 10))


@dataclass(frozen=True)
class CorruptedFiles:
    """The official corrupted test images of CIFAR-10 or CIFAR-100; found by `locate_corrupted`."""

    folder: Path
    """That has them, a .npy file a corruption."""
    test_images: int
    """Of the clean test set: each file holds as many of each severity, in its order."""

    def images(self, name: str, severity: int, chosen: Tensor) -> Tensor:
        """Some of the images of one corruption and severity.

        Args:
            name: of the corruption, which is that of its file.
            severity: 1 to 5.
            chosen: int64 (n,), which of the test images.

        Returns:
            uint8 (n, 3, 32, 32).

        Raises:
            DataError: the file is missing, damaged or of another shape.
        """
        path = self.folder / f"{name}.npy"
        pixels = map_npy(path)
        _require_images(path, pixels, _SEVERITIES * self.test_images)
        return _picked(pixels, (severity - 1) * self.test_images + chosen.numpy())


def locate_corrupted(dataset: str, root: Path, labels: Tensor) -> CorruptedFiles | None:
    """The official corrupted images of a data set, where a folder holds them; None where it does not.

    Args:
        dataset: its name, such as cifar10.
        root: what holds the folder CIFAR-10-C (or CIFAR-100-C).
        labels: int64 (n,), of the clean test images, with which those of the files must agree.

    Raises:
        DataError: labels.npy is missing or damaged, or is not of these test images.
    """
    folder = root / _CORRUPTED.get(dataset, "")
    if dataset not in _CORRUPTED or not folder.is_dir():
        return None
    path = folder / "labels.npy"
    found = np.asarray(map_npy(path))
    if found.dtype.kind not in "iu" or not np.array_equal(found, np.tile(labels.numpy(), _SEVERITIES)):
        raise DataError(
            f"{path}: found {found.dtype} data of shape {'x'.join(map(str, found.shape)) or 'scalar'}, expected the "
            f"labels of the {len(labels):,} test images, {_SEVERITIES} times over: is it of another data set?"
        )
    return CorruptedFiles(folder, len(labels))


def _require_images(path: Path, pixels: np.ndarray[Any, Any], count: int | None) -> None:
    shape = (count or max(1, len(pixels) if pixels.ndim else 1), SIDE, SIDE, 3)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise DataError(
            f"{path}: found {pixels.dtype} data of shape {'x'.join(map(str, pixels.shape)) or 'scalar'}, expected "
            f"uint8 of shape {count or 'n'}x{SIDE}x{SIDE}x3"
        )


def _picked(pixels: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels[chosen].transpose(0, 3, 1, 2)))
