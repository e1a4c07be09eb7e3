"""What a folder has to train on, a tree of image files or shards: found, and from there on alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from budgetnet import cache, shards
from budgetnet.decoding import Pixels
from budgetnet.errors import DataError
from budgetnet.images import Images, children, few, list_classes, listing

Place = Path | shards.Layout
"""A folder tree, train/<class>/* and test/<class>/*, by its folder; or shards."""


class _Load(Protocol):
    def __call__(
        self, image_size: int, *, describe: cache.Describe, progress: cache.Progress | None
    ) -> tuple[Tensor, dict[str, Any]]: ...


@dataclass(frozen=True)
class Source:
    """A training set and a test set that were looked through, but for their pixels; training images come first."""

    root: Path
    """The folder that holds it."""
    kind: str
    """What messages call it: "image folder tree", "tar shards" or "Parquet files"."""
    classes: tuple[str, ...]
    """Their names, in the order of the labels."""
    labels: Tensor
    """int64 (n,)."""
    train_size: int
    """How many of the images are for training."""
    shards: int
    """How many there are; 0 of a folder tree."""
    names: tuple[str, ...] | None
    """The file of each image, relative to train/ or test/; None in shards."""
    name: Callable[[int], str]
    """Where an image is, in words."""
    load: _Load
    """All pixels, and what `describe` says of them: `cache.load_files`, `shards.load`."""
    decode: Callable[[int], Iterable[Pixels]]
    """The pixels at a side, a few megabytes at a time; nothing is kept: `cache.decode`, `shards.decode`."""

    def parts(self, pixels: Tensor) -> tuple[Images, Images]:
        """The training set and the test set, of all pixels (n, c, h, w)."""
        n, names = self.train_size, self.names
        train = Images(pixels[:n], self.labels[:n], names=names and names[:n])
        return train, Images(pixels[n:], self.labels[n:], names=names and names[n:])

    def require_contrast(self, spread: Iterable[float]) -> None:
        """See that the training pixels of every channel differ: that the spread of none is 0.

        Raises:
            DataError: one has a single value.
        """
        if 0 in spread:
            raise DataError(
                f"{self.root / 'train'}: found a channel with one value in all pixels, expected images that differ"
            )


def held(root: Path) -> dict[Path, Place]:
    """The folder tree, or the shards, that a folder is; else those that the folders in it are, by their folders.

    Raises:
        DataError: a folder cannot be read, or has shards of both kinds, or shards beside class folders.
    """

    def found(folder: Path) -> Place | None:
        is_tree = (folder / "train").is_dir() and (folder / "test").is_dir()
        return shards.find(folder) or (folder if is_tree else None)

    if not root.is_dir():
        return {}
    if own := found(root):
        return {root: own}
    return {child: one for child in children(root) if child.is_dir() and (one := found(child))}


def locate(root: Path) -> Place:
    """The one folder tree, or the shards, that a folder is or holds.

    Raises:
        DataError: there is none, or several, or `held` raised it.
    """
    places = held(root)
    if len(places) == 1:
        return next(iter(places.values()))
    listed = f"{len(places)} trees ({', '.join(child.name for child in places)})" if places else listing(root)
    raise DataError(
        f"{root}: found {listed}, expected one tree train/<class>/* and test/<class>/*, or shards train*.tar and "
        "test*.tar (or .parquet): name its folder"
    )


def num_classes(place: Place) -> int:
    """The number of classes, known before any image is read.

    Raises:
        DataError: shards are damaged or hostile.
    """
    if isinstance(place, shards.Layout):
        return len(shards.index(place).classes)
    return len([child for child in children(place / "train") if child.is_dir()])


def look_through(place: Place) -> Source:
    """What there is, but for the pixels.

    Raises:
        DataError: shards are damaged or hostile, or classes have no images, are too few, or are in the test set alone.
    """
    return _shards(shards.index(place)) if isinstance(place, shards.Layout) else _tree(place)


def _shards(index: shards.Index) -> Source:
    return Source(
        root=index.layout.root,
        kind=index.layout.kind,
        classes=index.classes,
        labels=index.labels,
        train_size=index.train_size,
        shards=len(index.layout.names),
        names=None,
        name=index.name,
        load=partial(shards.load, index),
        decode=partial(shards.decode, index),
    )


def _tree(root: Path) -> Source:
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
    names = train_names + test_names
    files = [*(f"train/{name}" for name in train_names), *(f"test/{name}" for name in test_names)]
    return Source(
        root=root,
        kind="image folder tree",
        classes=classes,
        labels=torch.cat([train_labels, test_labels]),
        train_size=len(train_names),
        shards=0,
        names=names,
        name=names.__getitem__,
        load=partial(cache.load_files, root, files),
        decode=partial(cache.decode, root, files),
    )
