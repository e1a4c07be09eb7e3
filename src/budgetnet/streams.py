"""Random numbers for NumPy, each image's from a stream of its own, so that they are alike in any batch and any order.

Not NumPy's distributions: these may change with its version, and a generator an image would take most of the time.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Streams:
    """The random numbers of n images, each a pure function of (purpose, index, how many it was given before).

    Args:
        purpose: what they are for, with whatever else they depend on, a seed say; another text, other numbers.
        indices: int64 (n,), which image of its data set each is.

    SplitMix64 (Steele, Lea and Flood 2014).
    """

    def __init__(self, purpose: str, indices: NDArray[np.int64]) -> None:
        start = np.frombuffer(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "<u8")
        self._keys = _mixed(start + indices.astype(np.uint64) * _GOLDEN)
        self._used = 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """(n, *shape), between `low` and `high`, neither included in [0, 1]."""
        count = math.prod(shape)
        steps = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64) * _GOLDEN
        self._used += count
        bits = _mixed(self._keys[:, None] + steps) >> np.uint64(12)  # 52, to which a half can be added exactly
        unit = (bits.astype(np.float64) + 0.5) * 2.0**-52
        found: NDArray[np.float64] = (low + (high - low) * unit).reshape(len(unit), *shape)
        return found

    def normal(self, *shape: int) -> NDArray[np.float64]:
        """(n, *shape), standard normal (Box and Muller 1958)."""
        count = math.prod(shape)
        pairs = self.uniform(2, (count + 1) // 2)
        radius, angle = np.sqrt(-2 * np.log(pairs[:, 0])), 2 * np.pi * pairs[:, 1]
        found = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]
        return found.reshape(len(found), *shape)


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output of SplitMix64 for each state, in wrapping arithmetic."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
