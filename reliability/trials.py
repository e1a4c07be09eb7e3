"""What a reader is, to a campaign that tries it with damaged and hostile files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from budgetnet.errors import DataError

MiB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One reader, ready to be tried."""

    place: Path
    """Where the file is written, anew for each try."""
    sound: Sequence[bytes]
    """Files that must be read without an error."""
    damaged: Callable[[Random], bytes]
    """A file that is damaged or hostile."""
    read: Callable[[], object]
    """Reads the file. An AssertionError says that what was read is not what the reader promises."""
    memory: int = 256 * MiB
    """Bytes beyond what the process has that reading may take."""


def choice(rng: Random, seeds: Sequence[bytes], how: Callable[[bytes, Random], bytes]) -> bytes:
    """One of the seeds, changed by `how`."""
    return how(rng.choice(seeds), rng)


def each(*readers: Callable[[], object]) -> object:
    """Read one file in several ways; only if all refuse it, it is refused."""
    refusals: list[DataError] = []
    for read in readers:
        try:
            read()
        except DataError as error:
            refusals.append(error)
    if len(refusals) == len(readers):
        raise refusals[0]
    return None
