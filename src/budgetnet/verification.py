"""Read everything in a data folder or a file, and say what it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from budgetnet import audit, cache, cifar, shards, sources
from budgetnet.download import md5_of
from budgetnet.errors import DataError
from budgetnet.images import SIDE, children, few, image_names, list_folder, listing, read_images


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
    for held in sources.held(folder).values():
        found = True
        yield _verify_source(sources.look_through(held))
    for place in (folder, folder / "contest"):
        for file in sorted(place.glob("*.pkl")):
            found = True
            yield _verify_file(file)
    if not found and (image_names(folder) or any(image_names(c) for c in children(folder) if c.is_dir())):
        names, _ = list_folder(folder)
        count = sum(map(len, cache.decode(folder, names, SIDE)))
        lines = (f"{folder.name}: {count:,} readable images", *_passed_over(folder, names))
        yield Verification("image folder", lines, count, None)


def _passed_over(folder: Path, taken: Iterable[str]) -> Iterator[str]:
    """A line on the files that lie among a folder's images and are not read: of other kinds, deeper down, broken links.

    Args:
        folder: of images, or of folders of images.
        taken: the files that are read, relative to it.
    """
    known = set(taken)
    there = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    shown = (path.as_posix() for path in there if not any(part.startswith(".") for part in path.parts))
    if others := sorted(name for name in shown if name not in known):
        yield f"{folder.name}: {len(others):,} other file{'s' * (len(others) != 1)}, passed over: {few(others, 3)}"


def _verify_source(source: sources.Source) -> Verification:
    """Decode every image, whatever is kept of them, and hold none."""
    size, train_size = len(source.labels), source.train_size
    near = audit.comparable(train_size, size - train_size)
    train, test = audit.Prints(near=near), audit.Prints(near=near)
    lowest, highest = np.full(3, 255, np.uint8), np.zeros(3, np.uint8)
    done = 0
    for chunk in source.decode(SIDE):
        ours = chunk[: max(0, train_size - done)]
        if len(ours):
            lowest, highest = np.minimum(lowest, ours.min((0, 2, 3))), np.maximum(highest, ours.max((0, 2, 3)))
        train.add(torch.from_numpy(ours))
        test.add(torch.from_numpy(chunk[len(ours) :]))
        done += len(chunk)
    source.require_contrast((highest - lowest).tolist())
    line = (
        f"{source.root.name}: {train_size:,} training and {size - train_size:,} test images of {len(source.classes)} "
        f"classes ({few(source.classes)})"
    ) + (f" in {source.shards:,} {source.kind}" if source.shards else "")
    duplicates = audit.compare(
        source.root.name,
        train,
        test,
        train_name=source.name,
        test_name=lambda i: source.name(train_size + i),
    )
    lines = [line, *duplicates.lines()]
    if source.names:
        for part, names in (("train", source.names[:train_size]), ("test", source.names[train_size:])):
            lines += _passed_over(source.root / part, names)
    return Verification(source.kind, tuple(lines), size, None, (duplicates,))


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
    official, count, kind, about = None, 0, "", ""
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
        kind, count = images.kind, len(images)
        about = "".join(
            f", with {name}" for name, values in (("labels", images.labels), ("ids", images.ids)) if values is not None
        )
        about = f"{count:,} image{'s' * (count != 1)}{about}"
    line = f"{path.name}: {kind}, {about or f'{count:,} images with labels'}"
    if official is not None:
        line += ", the official file" if official else ", not the official file (its MD5 differs)"
    return Verification(kind, (line,), count, official)
