"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from budgetnet.errors import DataError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path` to write to; when the block ends well it takes the place of `path`.

    It is flushed to the disk, renamed over `path` (through a symbolic link, the file that it names), and the folder is
    flushed, so that a crash at any moment leaves the old file or the new one. When the block raises, `path` is as it
    was and nothing stays beside it.

    Args:
        path: the file to be written, new or not; its folder exists.

    Yields:
        A path in the same folder.

    Raises:
        DataError: the folder is missing, or writing failed (full disk, no permission, not a regular file).
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise DataError(f"cannot write {path}: there is no folder {target.parent}; create it or choose another")
    if target.exists() and not target.is_file():
        raise DataError(f"cannot write {path}: it is there and is no file; choose another name")
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        # Made here, not by the caller: a folder that cannot be written is found before any work, with one message.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        if os.name == "posix":
            _flush(target.parent)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) not in (str(temporary), str(target.parent)):
            raise  # about another file, which the block was working on
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {path}: {reason}; free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that the file is there whole or not at all; see `replacing`.

    Raises:
        DataError: the folder is missing, or writing failed (full disk, no permission, not a regular file).
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot flush a folder and say so; the rename has happened all the same.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)
