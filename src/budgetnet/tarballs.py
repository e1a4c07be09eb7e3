"""Tar shards in WebDataset's layout: KEY.png (or .jpg and the like) beside KEY.cls or KEY.json, plain tar, never gzip.

Headers are read by a reader of our own, which is strict where Python's tarfile is lenient: that takes a damaged header
in the middle for the end of the archive, and so loses images without a word. Nothing is ever unpacked: members are
bytes at a place in the file. Whatever is no plain file (links, devices, sparse files), has an absolute name or one that
leads out, or claims more bytes than there are, is refused in a line that names the shard and the member.

WebDataset: Aizman, Maltby and Breuel 2020, arXiv:2001.01858. The format: POSIX.1-2001, pax; GNU's long names.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from budgetnet.decoding import MOST_BYTES, SUFFIXES, Pixels, read_image
from budgetnet.errors import DataError, reason

_BLOCK = 512
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_LONGEST_HEADER = 1 << 16  # bytes of a header's extension
_LONGEST_LABEL = 1 << 20  # bytes
_OCTAL = re.compile(rb"[ \0]*([0-7]{1,12})[ \0]*")
_RECORD = re.compile(rb"([0-9]{1,6}) ([^=\n]{1,200})=")


@dataclass(frozen=True)
class Member:
    """A plain file in an archive."""

    name: str
    """With the folders it is in, as the archive has it."""
    start: int
    """Of its content, in bytes from the start of the archive."""
    size: int
    """Of its content, in bytes."""


def members(path: Path) -> Iterator[Member]:
    """The plain files of an archive, in its order.

    Raises:
        DataError: the archive cannot be read, is damaged, cut off or hostile.
    """
    try:
        with path.open("rb", buffering=1 << 17) as file:
            yield from _members(path, file)
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a tar file that can be read") from error


def _members(path: Path, file: IO[bytes]) -> Iterator[Member]:
    held, at, last = os.fstat(file.fileno()).st_size, 0, "its first member"
    extended: dict[str, Any] = {}
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise DataError(f"{path}: found its end after {last}, expected an end of archive: it is cut off")
        if not block.strip(b"\0"):
            while rest := file.read(1 << 20):
                if rest.strip(b"\0"):
                    raise DataError(f"{path}: found more after the end of archive, behind {last}: pack it anew")
            return
        kind, size = block[156:157], _number(block[124:136])
        if size is None or _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
            raise DataError(f"{path}: found no tar header behind {last}, expected one: the file is damaged")
        prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
        raw = block[:100].partition(b"\0")[0]
        name = _text(prefix + b"/" + raw if prefix else raw)
        if kind in b"xgL":
            if not 0 <= size <= _LONGEST_HEADER:
                raise DataError(f"{path}: {name}: found a header of {size:,} bytes, expected at most {_LONGEST_HEADER}")
            content = file.read(size)
            if kind == b"L":
                extended["path"] = _text(content.rstrip(b"\0"))
            elif kind == b"x":
                extended |= _records(path, name, content)
            at += _BLOCK + _padded(size)
            continue
        name, size = extended.get("path", name), extended.get("size", size)
        extended = {}
        if kind not in (b"0", b"\0", b"7", b"5"):
            what = _KINDS.get(kind, f"a member of type {kind!r}")
            raise DataError(f"{path}: {name}: found {what}, expected plain files: refused")
        if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise DataError(f"{path}: {name}: found a name that leads out of the archive: refused")
        start = at + _BLOCK
        if size > held - start:
            raise DataError(f"{path}: {name}: found {size:,} bytes in a file of {held:,}: the archive is cut off")
        at, last = start + _padded(size), name
        if kind != b"5":
            yield Member(name, start, size)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _number(field: bytes) -> int | None:
    """A number of a header, or None where it is none; GNU's binary form too, without a sign."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    return int(match[1], 8) if match else None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _records(path: Path, name: str, content: bytes) -> dict[str, Any]:
    """Name and size from a pax header; times, owners and comments are of no use here."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(content) and content[at:].strip(b"\0"):
        match = _RECORD.match(content, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            raise DataError(f"{path}: {name}: found a damaged pax header, expected records")
        key, value = match[2], content[match.end() : end - 1]
        if key.startswith(b"GNU.sparse"):
            raise DataError(f"{path}: {name}: found a sparse file, expected plain files: refused")
        if key == b"path":
            found["path"] = _text(value)
        elif key == b"size":
            if not re.fullmatch(rb"[0-9]{1,18}", value):
                raise DataError(f"{path}: {name}: found a size that is no number, expected one")
            found["size"] = int(value)
        at = end
    return found


@dataclass(frozen=True)
class Samples:
    """What a shard holds, without its pixels."""

    labels: list[int] | list[str]
    """Of each image."""
    places: np.ndarray[Any, np.dtype[np.int64]]
    """(n, 2): where the content of each image begins in the file, and its bytes."""


def scan(path: Path) -> Samples:
    """Find the images and labels of a shard. Members of a sample, which have one KEY, stand together.

    A label is the text of KEY.cls (a number, or the name of a class), or `label` or `cls` of the object in KEY.json.
    Hidden members, and samples without an image and a label, are passed over; so are captions and whatever else.

    Raises:
        DataError: the shard is damaged or hostile, or an image has no label.
    """
    labels: list[Any] = []
    places: list[tuple[int, int]] = []
    keys: set[str] = set()
    try:
        with path.open("rb", buffering=1 << 16) as file:
            for key, parts in _samples(path):
                pictures = [m for suffix, m in parts.items() if f".{suffix}" in SUFFIXES]
                label = _label(path, file, parts)
                if not pictures and label is None:
                    continue
                if len(pictures) != 1 or label is None:
                    found = ", ".join(member.name for member in parts.values())
                    raise DataError(f"{path}: {key}: found {found}, expected an image and {key}.cls or {key}.json")
                if key in keys:
                    raise DataError(f"{path}: {key}: found its members apart, expected those of a key together")
                if not 0 < pictures[0].size <= MOST_BYTES:
                    raise DataError(
                        f"{path}: {pictures[0].name}: found {pictures[0].size:,} bytes, expected 1 to {MOST_BYTES:,}"
                    )
                if labels and type(labels[0]) is not type(label):
                    raise DataError(f"{path}: {key}: found label {label!r} beside {labels[0]!r}, expected one kind")
                keys.add(key)
                labels.append(label)
                places.append((pictures[0].start, pictures[0].size))
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a tar file that can be read") from error
    return Samples(labels, np.array(places, np.int64).reshape(-1, 2))


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Keys and, by suffix, members: of one key as long as they follow each other."""
    key, parts = "", dict[str, Member]()
    for member in members(path):
        folder, slash, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not stem or not dot:
            continue
        if (name := folder + slash + stem) != key:
            if parts:
                yield key, parts
            key, parts = name, {}
        if (suffix := suffix.lower()) in parts:
            raise DataError(f"{path}: {member.name}: found it twice, expected each member once")
        parts[suffix] = member
    if parts:
        yield key, parts


def _label(path: Path, file: IO[bytes], parts: dict[str, Member]) -> int | str | None:
    for suffix in ("cls", "json"):
        if not (member := parts.get(suffix)):
            continue
        if member.size > _LONGEST_LABEL:
            raise DataError(f"{path}: {member.name}: found {member.size:,} bytes, expected at most {_LONGEST_LABEL:,}")
        file.seek(member.start)
        raw = file.read(member.size)
        try:
            text = raw.decode("utf-8").strip()
            if suffix == "cls":
                return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else _name(text)
            said = json.loads(text)
            value = said.get("label", said.get("cls")) if isinstance(said, dict) else None
            if value is not None:
                return value if type(value) is int and abs(value) < 2**63 else _name(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: {member.name}: found no label ({error}), expected a number or a name") from error
    return None


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        raise ValueError(f"{str(value)[:20]!r}")
    return value


def images(path: Path, places: Iterable[tuple[int, int]], image_size: int) -> Iterator[Pixels]:
    """Decode the images at some places: each uint8 (3, image_size, image_size).

    Raises:
        DataError: an image is damaged.
    """
    try:
        with path.open("rb", buffering=1 << 17) as file:
            for start, size in places:
                file.seek(start)
                try:
                    yield read_image(io.BytesIO(file.read(size)), image_size)
                except DataError as error:
                    name = next((member.name for member in members(path) if member.start == start), f"byte {start}")
                    raise DataError(f"{path}: {name}: {str(error).removeprefix('the file: ')}") from error
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}, expected a tar file that can be read") from error
