"""What a power cut could leave of a folder: every state of it, at every moment of what is done in it.

`Disk` listens to what a process does to the files of one folder. What has been synced is on the disk. What has not may
be there or not: of the changes to names since the folder was synced any may have happened and any not, in whatever
order; of the bytes of a file since it was synced none, all, half, or zeros in their place.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Disk:
    """The states that power cuts could leave of a folder.

    Args:
        folder: has no folders in it. What it holds now is on the disk.
        note: asked at each moment; of the answers at the moments that could leave a state, the largest is kept with it.
    """

    def __init__(self, folder: Path, note: Callable[[], Any]) -> None:
        self.folder, self.note = folder, note
        self.states: dict[tuple[tuple[str, bytes], ...], Any] = {}
        self._numbers: dict[int, int] = {}  # of files, by inode, which is used again when its file is gone
        self._synced: list[bytes] = []  # by number: what is on the disk
        self._content: list[bytes] = []  # by number: what a reader sees
        self._names: dict[str, int] = {}  # what a reader sees: numbers
        self._on_disk: dict[str, int] = {}
        self._pending: list[tuple[str | None, str, int]] = []  # from (None: new), to ("": removed), number
        self._look()
        self._synced, self._on_disk = list(self._content), dict(self._names)
        self._pending.clear()
        self.states.clear()

    @contextmanager
    def listening(self) -> Iterator[Disk]:
        """Take note of whatever this process does to the folder, until the block ends."""
        sync, replace, rename, unlink, remove = os.fsync, os.replace, os.rename, os.unlink, os.remove

        def synced(handle: int) -> None:
            self._look()
            sync(handle)
            found = os.fstat(handle)
            if os.path.samestat(found, self.folder.stat()):
                self._on_disk = dict(self._names)
                self._pending.clear()
            elif found.st_ino in self._numbers:
                number = self._numbers[found.st_ino]
                self._synced[number] = self._content[number]
            self._collect()

        def moved(how: Callable[..., None]) -> Callable[..., None]:
            def move(source: Any, target: Any, **options: Any) -> None:
                self._look()
                how(source, target, **options)
                if not os.path.lexists(source):  # it stays where both are names of one file
                    self._moved(Path(source), Path(target))

            return move

        def gone(how: Callable[..., None]) -> Callable[..., None]:
            def go(path: Any, **options: Any) -> None:
                self._look()
                how(path, **options)
                self._moved(Path(path), None)

            return go

        try:
            os.fsync, os.replace, os.rename = synced, moved(replace), moved(rename)
            os.unlink, os.remove = gone(unlink), gone(remove)
            yield self
            self._look()
        finally:
            os.fsync, os.replace, os.rename, os.unlink, os.remove = sync, replace, rename, unlink, remove

    def _look(self) -> None:
        """See what was written since the last moment, by whatever means, and what could be left of it."""
        there = {entry.name: entry.inode() for entry in os.scandir(self.folder)}
        if lost := self._names.keys() - there.keys():
            raise AssertionError(f"{lost} went unseen: this listens to too little")
        for name, inode in there.items():
            if name not in self._names:
                if self._numbers.get(inode) not in self._names.values():  # else it is a second name of the same file
                    self._numbers[inode] = len(self._content)
                    self._synced.append(b"")
                    self._content.append(b"")
                self._names[name] = self._numbers[inode]
                self._pending.append((None, name, self._numbers[inode]))
            if self._numbers[inode] != self._names[name]:
                raise AssertionError(f"{name} was replaced unseen: this listens to too little")
            self._content[self._names[name]] = (self.folder / name).read_bytes()
        self._collect()

    def _moved(self, source: Path, target: Path | None) -> None:
        if source.parent.resolve() != self.folder.resolve() or source.name not in self._names:
            return
        number = self._names.pop(source.name)
        if target is not None:
            self._names[target.name] = number
        self._pending.append((source.name, target.name if target is not None else "", number))
        self._collect()

    def _collect(self) -> None:
        note = self.note()
        for happened in itertools.product((False, True), repeat=len(self._pending)):
            names = dict(self._on_disk)
            for (source, target, number), did in zip(self._pending, happened, strict=True):
                if did:
                    if source is not None and names.get(source) == number:
                        del names[source]
                    if target:
                        names[target] = number
            each = [[(name, content) for content in self._possible(name, number)] for name, number in names.items()]
            for possible in itertools.product(*each):
                state = tuple(sorted(possible))
                self.states[state] = max(note, self.states.get(state, note))

    def _possible(self, name: str, number: int) -> set[bytes]:
        """What the disk may hold of a file."""
        synced, now = self._synced[number], self._content[number]
        if synced == now or name.endswith((".part", ".lock")):  # of which nobody reads what is in them
            return {now}
        same = next(
            (i for i, (a, b) in enumerate(zip(synced, now, strict=False)) if a != b), min(len(synced), len(now))
        )
        return {synced, now, now[: (same + len(now)) // 2], now[:same] + bytes(len(now) - same)}


def restore(state: tuple[tuple[str, bytes], ...], folder: Path) -> Path:
    """Make a folder with what a power cut has left."""
    folder.mkdir(parents=True)
    for name, content in state:
        (folder / name).write_bytes(content)
    return folder
