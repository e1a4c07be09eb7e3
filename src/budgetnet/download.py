"""Fetch, verify and unpack the official archives; a transfer that broke off goes on where it stopped."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from budgetnet.errors import DataError, reason
from budgetnet.files import flush

Progress = Callable[[int, int | None], None]
"""Called with the bytes that have arrived and the bytes there are, None where the server does not say."""

_ARCHIVES = {
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
    ),
    "cifar100": (
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
    ),
}
URLS = {name: url for name, (url, _, _) in _ARCHIVES.items()}
"""Where the archives are."""

_MOST = 2**29  # bytes that an archive may unpack to; the official ones have 190 million
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)
_LONGEST_HEADER = 4096  # bytes of one of them
_CONFUSED = (ValueError, ArithmeticError, RecursionError)
"""What tarfile raises of headers that contradict each other, or are endless; and FileExistsError is of a name twice."""


def md5_of(path: Path) -> str:
    """The MD5 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _DroppedError(Exception):
    """A transfer that broke off, and may be tried again."""


def download(
    name: Literal["cifar10", "cifar100"],
    folder: Path,
    *,
    url: str | None = None,
    md5: str | None = None,
    progress: Progress | None = None,
    attempts: int = 5,
    pause: float = 2.0,
) -> Path:
    """Fetch and unpack an official archive, unless it is there already.

    What has arrived is kept in a .part file, and a later call goes on from there. The data set's folder appears in one
    step, when the archive's MD5 has been verified and all of it is unpacked.

    Args:
        name: which data set.
        folder: where its folder shall be; made if need be.
        url: another place to fetch the archive from.
        md5: checksum of the archive, for another archive than the official one.
        progress: told how it goes, also once at the start.
        attempts: times in a row that may bring nothing new before it gives up.
        pause: seconds between attempts.

    Returns:
        The data set's folder.

    Raises:
        DataError: the server cannot be reached or has no such file, the archive is not the expected one, or the folder
            cannot be written.
    """
    official_url, official_md5, inside = _ARCHIVES[name]
    url, md5 = url or official_url, md5 or official_md5
    target = folder / inside
    if target.is_dir():
        return target
    part = folder / f"{name}.tar.gz.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not part.exists() or md5_of(part) != md5:
            _fetch(url, part, progress, attempts, pause)
            found = md5_of(part)
            if found != md5:
                part.unlink()
                raise DataError(f"{url}: found an archive with MD5 {found}, expected {md5}: it was deleted, try again")
        _unpack(part, folder, inside)
        part.unlink()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space there, what has arrived is kept" if full else "name a folder that can be written"
        raise DataError(f"{folder}: {reason(error)} while downloading {name}: {cure}") from error
    return target


def _fetch(url: str, part: Path, progress: Progress | None, attempts: int, pause: float) -> None:
    best = part.stat().st_size if part.exists() else 0
    failures = 0
    while True:
        try:
            return _fetch_once(url, part, progress)
        except _DroppedError as error:
            size = part.stat().st_size if part.exists() else 0
            failures = 0 if size > best else failures + 1
            best = max(best, size)
            if failures >= attempts:
                raise DataError(
                    f"{url}: {error}, {attempts} times in a row; {size:,} bytes are kept in {part} and the next "
                    "download goes on from there: check the network"
                ) from error
        time.sleep(pause)


def _fetch_once(url: str, part: Path, progress: Progress | None) -> None:
    """Append what is missing to `part`, or start it over where the server cannot go on."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "budgetnet"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # longer than the archive, so not a part of it
            part.unlink()
        elif error.code < 500 and error.code not in (408, 429):
            raise DataError(f"{url}: the server answers {error.code} {error.reason}, expected the archive") from error
        raise _DroppedError(f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(f"no answer ({getattr(error, 'reason', error)})") from error
    except ValueError as error:
        raise DataError(f"{url}: found no URL, expected https://...") from error
    with response:
        resumed = getattr(response, "status", None) == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _DroppedError("the server sends another range than was asked for")
        done = start if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        if progress:
            progress(done, total)
        with part.open("ab" if resumed else "wb") as file:
            while True:
                try:
                    chunk = response.read(1 << 18)
                except (OSError, http.client.HTTPException) as error:
                    raise _DroppedError(f"the connection broke after {done:,} bytes") from error
                if not chunk:
                    break
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
    if total is not None and done < total:
        raise _DroppedError(f"the connection broke after {done:,} of {total:,} bytes")


class _Member(tarfile.TarInfo):
    """A header of an archive: of a file or a folder, or of the further headers that long names and fine times need."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        # Here, before tarfile reads as many bytes as a header says, or follows a link.
        found = super().frombuf(buf, encoding, errors)
        longest = _LONGEST_HEADER if found.type in _HEADERS else _MOST
        if found.type not in (*_HEADERS, *_PLAIN) or not 0 <= found.size <= longest:
            raise tarfile.HeaderError(f"a member of type {found.type!r} and {found.size:,} bytes")
        return found


def _unpack(archive: Path, folder: Path, inside: str) -> None:
    """Unpack `inside/` of a tar archive, files that lie directly in it, beside its place; then move it in one step."""
    prefix = f".unpack-{inside}-"
    for abandoned in folder.glob(f"{prefix}*"):  # by a process that was killed; two at once share the archive too
        shutil.rmtree(abandoned)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    try:
        # As a stream, in which nothing can lead back.
        with gzip.open(archive) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Member) as tar:
            room = _MOST
            for member in tar:
                place = re.fullmatch(r"(?:\./)?(\w[\w.-]*)(?:/(\w[\w.-]*))?/?", member.name)
                room -= member.size
                if not place or room < 0 or member.issparse() or not (member.isdir() or (member.isreg() and place[2])):
                    raise tarfile.TarError(f"{member.name!a} of {member.size:,} bytes")
                target = temporary / place[1]
                target.mkdir(exist_ok=True)
                content = tar.extractfile(member)
                if content is not None:
                    with (target / place[2]).open("xb") as unpacked:
                        shutil.copyfileobj(content, unpacked)
        found = ", ".join(sorted(path.name for path in temporary.iterdir())) or "nothing"
        if (temporary / inside).is_dir():
            for path in (temporary / inside).rglob("*"):
                flush(path)  # a folder that is there shall have its contents, after a power cut too
            os.replace(temporary / inside, folder / inside)
            flush(folder)
            return
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, FileExistsError, *_CONFUSED) as error:
        found = f"no sound tar.gz ({error})"
    finally:
        shutil.rmtree(temporary)
    archive.unlink()
    raise DataError(f"{archive}: found {found}, expected an archive of {inside}/: it was deleted")
