"""Data sets in shards, tar or Parquet: found, looked through once, and decoded once into a kept file, by processes.

The order of the images is that of the shards' names (2 before 10) and, within one, of the shard, however many
processes decode. What is read of a shard is in `tarballs` and `tables`; whatever is wrong with one names it, and the
member or row.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet import cache, tables, tarballs, workers
from budgetnet.decoding import MOST_CLASSES, Pixels
from budgetnet.errors import DataError, reason
from budgetnet.images import children, few

SUFFIXES = (".tar", ".parquet")
_PIECE = 16 << 20  # bytes of pixels that one process makes at a time, and that are made again after a death
_CLASS_FILES = ("classes.txt", "index.json")
_LONGEST_CLASSES = 1 << 22  # bytes


@dataclass(frozen=True)
class Layout:
    """Which shards a folder holds."""

    root: Path
    """The folder."""
    train: tuple[str, ...]
    """Names relative to `root`, in natural order: train/*.tar and train*.tar, or the same of .parquet."""
    test: tuple[str, ...]
    """The same of the test set."""

    @property
    def names(self) -> tuple[str, ...]:
        """All shards, those of the training set first."""
        return self.train + self.test

    @property
    def kind(self) -> str:
        """What messages call them."""
        return "tar shards" if self.names[0].endswith(".tar") else "Parquet files"

    @property
    def sources(self) -> list[str]:
        """All files that the data set is a function of."""
        return [*self.names, *(name for name in _CLASS_FILES if (self.root / name).is_file())]


@dataclass(frozen=True)
class Index:
    """What there is in the shards, but for the pixels."""

    layout: Layout
    """The shards."""
    classes: tuple[str, ...]
    """Names, in the order of the labels."""
    groups: tuple[tuple[int, ...], ...]
    """Of each shard, how many images it holds: of each row group of a Parquet file, or of all of a tar file."""
    table: np.ndarray[Any, np.dtype[np.int64]]
    """(n, 3): the label of each image and, in a tar file, the first byte and the number of bytes of its content."""

    @property
    def train_size(self) -> int:
        """Training images, which come first."""
        return sum(map(sum, self.groups[: len(self.layout.train)]))

    @property
    def labels(self) -> Tensor:
        """int64 (n,)."""
        return torch.from_numpy(self.table[:, 0].copy())

    def name(self, image: int) -> str:
        """Where an image is, in words: its shard, and its member or row.

        Raises:
            IndexError: there are fewer images.
        """
        for shard, groups in zip(self.layout.names, self.groups, strict=True):
            if image < sum(groups):
                start = self.table[image + self._before(shard), 1]
                return f"{shard}: {_member(self.layout.root / shard, image, int(start))}"
            image -= sum(groups)
        raise IndexError(image)

    def _before(self, shard: str) -> int:
        return sum(map(sum, self.groups[: self.layout.names.index(shard)]))


def _member(path: Path, row: int, start: int) -> str:
    """What an image of a shard is called."""
    if path.suffix == ".tar":
        return next((member.name for member in tarballs.members(path) if member.start == start), f"byte {start}")
    return f"row {row:,}"


def find(root: Path) -> Layout | None:
    """The shards of a training set, and of a test set, in a folder; None where there are none of a training set.

    Raises:
        DataError: there are shards of both kinds, or class folders beside them.
    """
    found = [layout for suffix in SUFFIXES if (layout := _find(root, suffix)).train]
    if len(found) > 1:
        raise DataError(f"{root}: found {found[0].train[0]} beside {found[1].train[0]}, expected shards of one kind")
    if found and (root / "train").is_dir() and (beside := [p.name for p in children(root / "train") if p.is_dir()]):
        raise DataError(
            f"{root}: found {found[0].train[0]} beside train/{beside[0]}/, expected shards or class folders"
        )
    return found[0] if found else None


def _find(root: Path, suffix: str) -> Layout:
    def of(split: str) -> tuple[str, ...]:
        inside = children(root / split) if (root / split).is_dir() else []
        beside = [path for path in children(root) if path.name.startswith(split)]
        return tuple(str(p.relative_to(root)) for p in (*inside, *beside) if p.suffix == suffix and p.is_file())

    return Layout(root, of("train"), of("test"))


def index(layout: Layout) -> Index:
    """Look through all shards, or know them from the last time: what is large is kept (`cache.keep`).

    Classes are named by classes.txt (a name a line) or index.json (a list, or an object with `classes`, or one from
    names to numbers) beside the shards, else by the Parquet files themselves; else labels that are names are put in
    plain order, and numbers are their own names.

    Raises:
        DataError: there is no test set, a shard is damaged or hostile, or labels and classes do not agree.
    """
    if not layout.test:
        suffix = Path(layout.train[0]).suffix
        raise DataError(
            f"{layout.root}: found {layout.train[0]} and no test set, expected test/*{suffix} or test*{suffix}"
        )
    key, size = cache.digest(layout.root, layout.sources, 0)
    return _indexed(layout, key, size >= cache.KEEP_FROM)


def index_of(path: Path) -> Index:
    """Look through one shard, as if it were a training set.

    Raises:
        DataError: it is damaged or hostile, or labels and classes do not agree.
    """
    return _look_through(Layout(path.parent, (path.name,), ()), large=False)


@lru_cache(maxsize=4)
def _indexed(layout: Layout, key: str, large: bool) -> Index:
    if not large:
        return _look_through(layout, large)
    known = cache.kept(key)
    if known is None:
        made = _look_through(layout, large)
        rows = np.ascontiguousarray(made.table, "<i8").view(np.uint8).reshape(-1, 1, 1, 24)

        def work(part: Path, wanted: Sequence[int]) -> Generator[tuple[int, int], None, None]:
            for i in wanted:
                yield i, cache.write_piece(part, 0, [rows])

        facts: dict[str, Any] = {"classes": made.classes, "groups": made.groups}
        cache.keep(key, layout.root, rows.shape, [len(rows)], work, lambda _: facts)
        return made
    rows_kept, said = known
    table = rows_kept.numpy().reshape(-1).view("<i8").reshape(-1, 3).astype(np.int64)
    groups = tuple(tuple(map(int, groups)) for groups in said["groups"])
    return Index(layout, tuple(said["classes"]), groups, table)


def _answers(layout: Layout, jobs: Sequence[workers.Job], large: bool) -> Generator[tuple[int, Any], None, None]:
    """By processes, as many as torch computes with; a few megabytes of tar files by this one."""
    if large or layout.names[0].endswith(".parquet"):
        yield from workers.answers(jobs, torch.get_num_threads())
    else:
        for i, job in enumerate(jobs):
            yield i, workers.carry_out(job)


def _look_through(layout: Layout, large: bool) -> Index:
    paths = [layout.root / name for name in layout.names]
    found: dict[int, Any] = dict(_answers(layout, [workers.scan_job(path) for path in paths], large))
    parts = [workers.scanned(found.pop(i))[0] for i in range(len(paths))]
    n = len(layout.train)
    for some, shards in ((parts[:n], layout.train), (parts[n:], layout.test)):
        if shards and not any(samples.labels for samples in some):
            raise DataError(f"{layout.root}: found no images in {few(shards)}, expected some")
    numbers = [_numbers(path, part) for path, part in zip(paths, parts, strict=True)]
    classes = _classes(layout, parts)
    columns, place = [], {name: i for i, name in enumerate(classes)}
    for path, part, labels in zip(paths, parts, numbers, strict=True):
        if labels is None:
            labels = np.array([place.get(str(label), -1) for label in part.labels], np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        places = part.places if isinstance(part, tarballs.Samples) else np.zeros((len(labels), 2), np.int64)
        if len(wrong):
            row = int(wrong[0])
            where = _member(path, row, int(places[row, 0]))
            raise DataError(
                f"{path}: {where}: found label {part.labels[row]!r}, expected one of {len(classes)} classes "
                f"({few(classes)})"
            )
        columns.append(np.column_stack([labels, places]))
    groups = tuple(tuple(part.groups) if isinstance(part, tables.Table) else (len(part.labels),) for part in parts)
    return Index(layout, classes, groups, np.concatenate(columns))


def _numbers(path: Path, part: tarballs.Samples | tables.Table) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """The labels of a shard, where they are numbers."""
    if part.labels and isinstance(part.labels[0], str):
        return None
    try:
        return np.array(part.labels, np.int64)
    except OverflowError as error:
        raise DataError(f"{path}: found a label beyond 64 bits, expected integers") from error


def _classes(layout: Layout, parts: Sequence[tarballs.Samples | tables.Table]) -> tuple[str, ...]:
    kinds = {type(part.labels[0]) for part in parts if part.labels}
    if len(kinds) > 1:
        raise DataError(f"{layout.root}: found shards labelled by numbers and others by names, expected one kind")
    said = [tuple(part.classes) for part in parts if isinstance(part, tables.Table) and part.classes]
    named = _named(layout.root)
    if named is None and len(set(said)) > 1:
        raise DataError(f"{layout.root}: found shards that name different classes, expected the same in all")
    classes = named or (said[0] if said else None)
    if classes is None:
        labels = {label for part in parts[: len(layout.train)] for label in part.labels}
        if str in kinds:
            classes = tuple(sorted(map(str, labels)))
        else:
            most = max(map(int, labels))
            if not 0 <= most < MOST_CLASSES:
                raise DataError(f"{layout.root}: found label {most}, expected 0 to {MOST_CLASSES - 1}")
            classes = tuple(map(str, range(most + 1)))
    fewest = 2 if layout.test else 1  # a shard by itself may be of one class
    if not fewest <= len(classes) <= MOST_CLASSES:
        raise DataError(
            f"{layout.root}: found {len(classes):,} classes ({few(classes)}), expected {fewest} to {MOST_CLASSES:,}"
        )
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise DataError(f"{layout.root}: found class {twice} twice, expected names that differ")
    return classes


def _named(root: Path) -> tuple[str, ...] | None:
    """The classes that a file beside the shards names."""
    for path in (root / name for name in _CLASS_FILES):
        if not path.is_file():
            continue
        try:
            if path.stat().st_size > _LONGEST_CLASSES:
                raise ValueError(f"{path.stat().st_size:,} bytes")
            text = path.read_text("utf-8")
            names = text.split("\n") if path.suffix == ".txt" else _listed(json.loads(text))
            names = [name.strip() for name in names]
        except OSError as error:
            raise DataError(f"{path}: {reason(error)}, expected a file that can be read") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: found no names of classes ({error}), expected a name a line, or a list"
            ) from error
        names = [name for name in names if name]
        if not names:
            raise DataError(f"{path}: found no names of classes, expected a name a line, or a list")
        return tuple(names)
    return None


def _listed(said: Any) -> list[str]:
    if isinstance(said, dict) and "classes" in said:
        said = said["classes"]
    if isinstance(said, dict) and sorted(said.values()) == list(range(len(said))):
        return sorted(said, key=said.__getitem__)
    if not isinstance(said, list):
        raise ValueError("neither a list nor an object from names to 0, 1, 2 ...")
    return said


@dataclass(frozen=True)
class _Piece:
    """What one process decodes at a time."""

    path: Path
    places: Any
    rows: int


def _pieces(index: Index, image_size: int) -> list[_Piece]:
    step = max(1, _PIECE // (3 * image_size * image_size))
    pieces = []
    at = 0
    for name, groups in zip(index.layout.names, index.groups, strict=True):
        path = index.layout.root / name
        if path.suffix == ".tar":
            for start in range(0, groups[0], step):
                places = index.table[at + start : at + min(start + step, groups[0]), 1:]
                pieces.append(_Piece(path, places, len(places)))
        else:
            first = 0
            for last in range(1, len(groups) + 1):
                rows = sum(groups[first:last])
                if rows and (rows >= step or last == len(groups)):
                    pieces.append(_Piece(path, (first, last), rows))
                    first = last
        at += sum(groups)
    return pieces


def load(
    index: Index,
    image_size: int,
    *,
    describe: cache.Describe = lambda _: {},
    progress: cache.Progress | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """The pixels of all images, training images first, and facts about them that are computed only when decoded.

    From `cache.KEEP_FROM` on they are kept, and what a process that died has decoded is not decoded again.

    Args:
        index: what is in the shards.
        image_size: side in pixels that the images are resized to.
        describe: from all pixels to what JSON can hold; kept with the pixels.
        progress: told how the decoding goes; not called where there is nothing to decode, or little.

    Returns:
        uint8 (n, 3, image_size, image_size) on the CPU, and what `describe` says. Where it is a memory map it must not
        be written to.

    Raises:
        DataError: an image is damaged, or the cache folder has no room.
    """
    shape = (len(index.table), 3, image_size, image_size)
    pieces = _pieces(index, image_size)
    starts = np.cumsum([0, *(piece.rows for piece in pieces)]).tolist()
    key, size = cache.digest(index.layout.root, index.layout.sources, image_size)
    large = max(math.prod(shape), size) >= cache.KEEP_FROM

    def work(part: Path, wanted: Sequence[int]) -> Generator[tuple[int, int], None, None]:
        jobs = [
            workers.decode_job(
                pieces[i].path, pieces[i].places, image_size, part, starts[i] * 3 * image_size * image_size
            )
            for i in wanted
        ]
        done = shape[0] - sum(pieces[i].rows for i in wanted)
        for i, (count, checksum) in _answers(index.layout, jobs, large):
            _require_rows(pieces[wanted[i]], count)
            yield wanted[i], checksum
            done += count
            if progress and large:
                progress(done, shape[0])

    if large:
        return cache.keep(key, index.layout.root, shape, [piece.rows for piece in pieces], work, describe)
    with tempfile.TemporaryDirectory(prefix="budgetnet-") as folder:
        part = Path(folder) / "pixels"
        part.touch()
        for _ in work(part, range(len(pieces))):
            pass
        pixels = torch.frombuffer(bytearray(part.read_bytes()), dtype=torch.uint8).reshape(shape)
    return pixels, describe(pixels)


def decode(index: Index, image_size: int) -> Iterator[Pixels]:
    """The pixels of all images a few megabytes at a time, in order: uint8 (m, 3, image_size, image_size).

    Nothing is kept, and nothing that was kept is read; on the way they are in files that are removed.

    Raises:
        DataError: an image is damaged.
    """
    pieces, waiting, at = _pieces(index, image_size), set[int](), 0
    with tempfile.TemporaryDirectory(prefix="budgetnet-") as folder:
        parts = [Path(folder) / str(i) for i in range(len(pieces))]
        for part in parts:
            part.touch()
        jobs = [
            workers.decode_job(piece.path, piece.places, image_size, part, 0)
            for piece, part in zip(pieces, parts, strict=True)
        ]
        for i, (count, _) in _answers(index.layout, jobs, large=True):
            _require_rows(pieces[i], count)
            waiting.add(i)
            while at in waiting:
                yield np.frombuffer(bytearray(parts[at].read_bytes()), np.uint8).reshape(-1, 3, image_size, image_size)
                parts[at].unlink()
                at += 1


def _require_rows(piece: _Piece, found: int) -> None:
    if found != piece.rows:
        raise DataError(f"{piece.path}: found {found:,} images, expected {piece.rows:,}: it was changed meanwhile")
