"""What a network takes in: images that are normalised, and of which size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from budgetnet import checks
from budgetnet.config import ProgressiveConfig


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel.

    Args:
        images: (n, c, h, w), uint8 in [0, 255] or a float in [0, 1]; left unchanged.
        mean: c numbers, in units of [0, 1].
        std: c numbers above 0, in units of [0, 1].

    Returns:
        (n, c, h, w) float32, device of `images`.

    Raises:
        ValueError: `mean` or `std` does not have one number a channel, a std is not positive, or `images` is neither
            uint8 nor float, or no batch.
    """
    checks.shape(images)
    check_statistics(mean, std)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, expected torch.uint8 or a float in [0, 1]")
    largest = 255 if images.dtype == torch.uint8 else 1
    factor = checks.per_channel("std", [1 / (largest * s) for s in std], images, torch.float32)
    offset = checks.per_channel("mean", [-m / s for m, s in zip(mean, std, strict=True)], images, torch.float32)
    return (images.to(torch.float32) * factor).add_(offset)


def resize(images: Tensor, size: int) -> Tensor:
    """Shrink or enlarge images, smoothing what would alias.

    Args:
        images: (n, c, h, w) float; left unchanged.
        size: side in pixels of the result, 1 or more.

    Returns:
        (n, c, size, size), dtype and device of `images`; the images themselves where they have that size.

    Raises:
        ValueError: `size` is not positive, or `images` is no batch.
    """
    _, _, h, w = checks.shape(images)
    checks.require(size >= 1, "size", size, "1 pixel or more")
    if h == w == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def progressive_size(config: ProgressiveConfig, progress: float, size: int) -> int:
    """The side in pixels of the training images at some point of a run: a pure function, so nothing has to be saved.

    Args:
        config: where it begins, and when it is over.
        progress: share of the run that is done, in [0, 1].
        size: full side of the images.

    Returns:
        `size` from `config.until` on; before, a straight line from `config.size`, rounded down to whole steps of 4
        pixels from there, so that few shapes occur.

    Raises:
        ValueError: `progress` is no share.
    """
    checks.require(0 <= progress <= 1, "progress", progress, "a share in [0, 1]")
    if config.size is None or progress >= config.until:
        return size
    grown = (size - config.size) * progress / config.until
    return min(size, config.size + int(grown / 4) * 4)


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse what is no mean and standard deviation of each channel.

    Raises:
        ValueError: they differ in length, or a std is not positive and finite.
    """
    checks.require(len(mean) == len(std), "std", tuple(std), f"as many numbers as mean has, {len(mean)}")
    checks.require(all(0 < s < math.inf for s in std), "std", tuple(std), "numbers above 0")
