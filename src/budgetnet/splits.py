"""Which images are trained on and which are held out, in which order, and by which batches.

Pure functions of their arguments: what a run did is known from its seeds, and a resumed one goes on as if it had never
stopped.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet.errors import ConfigError


def split(labels: Tensor, val_size: int, seed: int, train_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Divide a training set into a training and a validation part, each class in its share.

    Args:
        labels: int64 (n,), the class of each image.
        val_size: images of the validation part, 0 <= val_size < n. A class of k images has floor or ceil of
            val_size * k / n of them, the larger fractions being rounded up, of equal ones those of the first classes.
        seed: decides, alone, which images of a class those are.
        train_size: images of the training part, each class in its share; None is all that are left. Which are held out
            does not depend on it.

    Returns:
        Indices of the training part and of the validation part, int64, rising.

    Raises:
        ConfigError: `val_size` or `train_size` is out of range.
    """
    train, val = _divide(labels, val_size, seed)
    if train_size is None:
        return train, val
    if not 0 < train_size <= len(train):
        raise ConfigError(
            f"train_size is {train_size:,}, expected 1 up to {len(train):,}: so many images are left to train on"
        )
    return train[_divide(labels[train], len(train) - train_size, seed)[0]], val


def _divide(labels: Tensor, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    n = len(labels)
    if not 0 <= val_size < n:
        raise ConfigError(f"val_size is {val_size:,}, expected 0 up to {n - 1:,}: the training set has {n:,} images")
    values = labels.cpu().numpy()
    counts = np.unique(values, return_counts=True)[1]
    quota, fraction = np.divmod(val_size * counts.astype(np.int64), n)
    quota[np.argsort(-fraction, kind="stable")[: val_size - quota.sum()]] += 1
    shuffled = _shuffle(n, _mix(b"split", seed))
    grouped = shuffled[np.argsort(values[shuffled], kind="stable")]  # one class after another, each in shuffled order
    held = np.zeros(n, dtype=bool)
    for end, count, size in zip(np.cumsum(counts), counts, quota, strict=True):
        held[grouped[end - count : end - count + size]] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits n images: a permutation, int64 (n,) on the CPU, by the arguments alone."""
    return torch.from_numpy(_shuffle(n, _mix(b"order", seed, epoch)))


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of a step's augmentation, in [0, 2**63): neighbouring arguments give unrelated seeds."""
    return _mix(b"step", seed, epoch, step)


def batches(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Cut an epoch's order into ceil(n / batch_size) batches whose sizes differ by at most one.

    Every index is in one batch, and no batch is left nearly empty, which batch norm would suffer from.

    Args:
        order: int64 (n,).
        batch_size: largest size, at least 1.

    Returns:
        Consecutive views of `order`; none when n is 0.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more images")
    return torch.tensor_split(order, math.ceil(len(order) / batch_size)) if len(order) else ()


def _mix(purpose: bytes, *values: int) -> int:
    return (
        int.from_bytes(
            hashlib.blake2b(struct.pack(f"<{len(values)}q", *values), person=purpose, digest_size=8).digest()
        )
        >> 1
    )


def _shuffle(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    # Raw PCG64 output is the part of NumPy's randomness whose stream is promised never to change between versions.
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable").astype(np.int64)
