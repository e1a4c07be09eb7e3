"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from budgetnet.errors import ConfigError, WriteError


@contextmanager
def replacing(path: Path, *, keep: str | None = None) -> Iterator[Path]:
    """Give an empty file beside `path` to write to; when the block ends well it takes the place of `path`.

    It is flushed to the disk, renamed over `path` (through a symbolic link, the file that it names), and the folder is
    flushed, so that a crash at any moment leaves the old file or the new one. When the block raises, `path` is as it
    was and nothing stays beside it.

    Args:
        path: the file to be written, new or not; its folder exists.
        keep: the name, in the same folder, that the old file gets once the new one is on the disk, instead of being
            lost. It is at `path` too until the new one is, but on a file system without hard links: a crash between
            the two renamings leaves it under that name alone there.

    Yields:
        A path in the same folder.

    Raises:
        WriteError: the folder is missing, or writing failed (full disk, no permission, not a regular file).
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise WriteError(f"cannot write {path}: there is no folder {target.parent}; create it or choose another")
    if target.exists() and not target.is_file():
        raise WriteError(f"cannot write {path}: it is there and is no file; choose another name")
    temporary, spare = (target.with_name(f".{secrets.token_hex(8)}.part") for _ in range(2))
    try:
        # Made here, not by the caller: a folder that cannot be written is found before any work, with one message.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        flush(temporary)
        if keep is not None and target.exists():
            _keep(target, target.with_name(keep), spare)
        os.replace(temporary, target)
        if os.name == "posix":
            flush(target.parent)
    except OSError as error:
        ours = {str(path) for path in (temporary, spare, target, target.parent)}
        if error.filename is not None and os.fspath(error.filename) not in ours:
            raise  # about another file, which the block was working on
        with suppress(OSError):
            temporary.unlink()  # before the message says how much is left
        raise WriteError(_refusal(path, error)) from error
    finally:
        # Whatever keeps it from being removed (the folder is gone, say) is no worse than what is told already.
        with suppress(OSError):
            temporary.unlink()


def _keep(path: Path, other: Path, spare: Path) -> None:
    """Name a file `other`, in the place of what is there; where there are hard links it keeps its own name as well."""
    try:
        os.link(path, spare)
    except OSError:
        os.replace(path, other)
        return
    try:
        os.replace(spare, other)
    finally:
        spare.unlink(missing_ok=True)  # a crash may have left both names on one file, which is not renamed over itself


def atomic_write(path: Path, data: bytes, *, keep: str | None = None) -> None:
    """Write `data` to `path` so that the file is there whole or not at all; see `replacing`.

    Raises:
        WriteError: the folder is missing, or writing failed (full disk, no permission, not a regular file).
    """
    with replacing(path, keep=keep) as temporary:
        temporary.write_bytes(data)


def require_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """See that what a command is to write is none of the files that it reads or that belong to them, by whatever name.

    Raises:
        ConfigError: one is.
    """
    inputs = list(inputs)
    for output in outputs:
        for read in inputs:
            # Of files that are there, links may have several names; others have theirs alone.
            both = output.exists() and read.exists()
            if os.path.samefile(output, read) if both else os.path.realpath(output) == os.path.realpath(read):
                raise ConfigError(f"cannot write {output}: it is {read}, which is needed; choose another --output")


def append(path: Path, data: bytes) -> None:
    """Add `data` to the end of a file that is there, and wait until it is on the disk.

    A crash or a full disk may leave a part of it, or as many other bytes.

    Raises:
        WriteError: writing failed, or the file is not there.
    """
    try:
        with path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WriteError(_refusal(path, error)) from error


def remove(path: Path) -> None:
    """Remove a file, if it is there, and wait until the disk knows.

    Raises:
        OSError: it cannot be removed.
    """
    if path.exists():
        path.unlink()
        flush(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those that it lies in, unless they are there, and wait until the disk knows their names.

    Raises:
        OSError: one of them cannot be made, or is there and is no folder.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        flush(made.parent)


def clear_parts(folder: Path) -> None:
    """Remove what writers that died have left in a folder; whoever calls this knows that nobody writes there now."""
    for path in folder.iterdir():
        if is_part(path):
            path.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Whether a file is one that `atomic_write` has not finished."""
    return re.fullmatch(r"\.[0-9a-f]{16}\.part", path.name) is not None


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot flush a folder and say so; the rename has happened all the same.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def _refusal(path: Path, error: OSError) -> str:
    """The message about a file that could not be written: what the system says, and what would help."""
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            left = f", {shutil.disk_usage(path.parent).free / 1e6:,.1f} MB left there"
        except OSError:
            left = ""
        return f"cannot write {path}: {why}{left}; free some space on the disk of {path.parent}"
    if error.errno == errno.EFBIG:
        return f"cannot write {path}: {why}; raise the limit of this process (ulimit -f) or choose another disk"
    return f"cannot write {path}: {why}; make it writable or choose another folder"
