"""A run's folder while a process trains into it: nobody else does, and of two checkpoints one is whole.

`last.ckpt` is where a run goes on, and `previous.ckpt` the one before it, for the day when a disk has damaged the last.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from budgetnet import checkpoint
from budgetnet.errors import DamagedError, FolderError
from budgetnet.files import clear_parts, flush, is_part, make_folder
from budgetnet.runfiles import DAMAGED, LAST, PREVIOUS

_LOCK = ".lock"


class RunFolder:
    """A folder that this process alone writes to; made by `hold`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found = path.stat()

    def require_still_there(self) -> None:
        """Make sure that the folder is still the one that was locked, before anything is written to it.

        Raises:
            FolderError: it was removed, or another was put in its place.
        """
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.stat(), self._found):
                return
        raise FolderError(
            f"{self.path} was removed during the run, or replaced, and nothing can be saved any more: train again, "
            "into a new folder"
        )

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `last.ckpt`; the one that was there becomes `previous.ckpt`.

        Raises:
            BudgetnetError: the file cannot be written, or the folder is gone; both checkpoints are as they were.
        """
        self.require_still_there()
        checkpoint.save_state(self.path / LAST, state, keep=PREVIOUS)

    def load(self, warn: Callable[[str], None]) -> tuple[dict[str, Any], Path] | None:
        """The state to go on from and the file that it is from, or None where no checkpoint was written yet.

        A damaged `last.ckpt` is moved to `damaged.ckpt`, so that the one before it is not overwritten with it.

        Args:
            warn: told, in a line, which file is damaged or missing, and what is used instead.

        Raises:
            CheckpointError: a checkpoint cannot be read, or there are some and none is whole.
        """
        last, previous = self.path / LAST, self.path / PREVIOUS
        if not last.exists() and not previous.exists():
            return None
        try:
            if last.exists():
                return checkpoint.load_state(last), last
        except DamagedError as error:
            if not previous.exists():
                raise DamagedError(f"{error}; there is none before it: remove it, and the run begins again") from error
            damage: DamagedError | None = error
        else:
            damage = None
        try:
            state = checkpoint.load_state(previous)
        except DamagedError as error:
            both = f"{damage}; and " if damage else f"{last} is missing; and "
            raise DamagedError(f"{both}{error}: remove them, and the run begins again") from error
        if damage:
            os.replace(last, self.path / DAMAGED)
            flush(self.path)
            warn(f"{damage}; going on from {previous}, and the damaged file is kept as {DAMAGED}")
        else:
            warn(f"{last} is missing; going on from {previous}")
        return state, previous


@contextlib.contextmanager
def hold(path: Path, warn: Callable[[str], None]) -> Iterator[RunFolder]:
    """Make a folder, unless it is there, and keep other processes from training into it until the block ends.

    A process that dies, however it does, holds nothing any more. What dead writers have left is removed.

    Args:
        path: the folder.
        warn: told where the file system has no locks.

    Raises:
        FolderError: another process holds the folder, or it cannot be written.
    """
    try:
        make_folder(path)
    except OSError as error:
        raise FolderError(f"{path} cannot be made: {error.strerror}; choose another --output") from error
    with _locked(path, warn):
        try:
            clear_parts(path)
        except OSError as error:
            raise FolderError(_unwritable(path, error)) from error
        yield RunFolder(path)


def is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but what a process that died, or one that starts, has put there."""
    return all(entry.name == _LOCK or is_part(entry) for entry in path.iterdir())


@contextlib.contextmanager
def _locked(path: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock of the operating system on a file in the folder; the file goes when the lock does."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    lock = path / _LOCK
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise FolderError(_unwritable(path, error)) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise FolderError(
                f"{path} is in use by {owner}: wait until that has ended, or choose another --output"
            ) from error
        except OSError as error:
            warn(f"{path} cannot be locked ({error.strerror}): see that no second process trains into it")
        # Who had the lock before may have removed the file meanwhile: then what is locked is no lock to others.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), lock.stat()):
                break
        os.close(handle)
    try:
        with contextlib.suppress(OSError):  # on a full disk the message of others is poorer, and that is all
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), lock.stat()):
                lock.unlink()
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} cannot be written: {error.strerror}; free some space on its disk"
    return f"{path} cannot be written: {error.strerror}; make it writable, or copy it to where it is"
