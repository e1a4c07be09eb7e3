"""Filters over batches of images in NumPy, as libraries of image processing have them.

Arrays are float64 (n, h, w) or (n, h, w, channels). Sums are written out tap by tap: in one order, whatever the size of
the batch, so that an image becomes the same alone as among others.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Border = Literal["nearest", "reflect", "mirror"]
"""How an image goes on beyond its edge: abc|ccc, abc|cba or abc|ba."""

_Integers = NDArray[np.int64]


def _inside(positions: _Integers, size: int, border: Border) -> _Integers:
    """The position within [0, size) whose value an image shows at each position, also beyond its edges."""
    if border == "nearest":
        return np.clip(positions, 0, size - 1)
    period = 2 * size if border == "reflect" else 2 * (size - 1)
    folded = positions % period
    return np.where(folded < size, folded, period - (border == "reflect") - folded)


def filtered(x: Floats, weights: Floats, axis: int, border: Border) -> Floats:
    """Correlate along axis 1 or 2 with an odd number of weights, each as large as its opposite."""
    size, reach = x.shape[axis], len(weights) // 2
    padded = np.take(x, _inside(np.arange(-reach, size + reach), size, border), axis)

    def window(start: int) -> Floats:
        return padded[(*[slice(None)] * axis, slice(start, start + size))]

    sign = 1.0 if weights[0] == weights[-1] else -1.0
    total: Floats = weights[reach] * x
    # In SciPy's order, so that 255 everywhere stays 255 wherever it does there, before fractions are cut off.
    for i in range(reach):
        total += (window(i) + sign * window(2 * reach - i)) * weights[i]
    return total


def gaussian(x: Floats, sigma: float, border: Border = "nearest", truncate: float = 4.0) -> Floats:
    """As scikit-image's and SciPy's Gaussian filters: `sigma` in pixels, cut off after `truncate` of them."""
    reach = int(truncate * sigma + 0.5)
    if reach == 0:
        return x
    weights = np.exp(-0.5 / sigma**2 * np.arange(-reach, reach + 1) ** 2)
    weights /= weights.sum()
    return filtered(filtered(x, weights, 1, border), weights, 2, border)


def correlated(x: Floats, kernel: Floats) -> Floats:
    """As OpenCV's filter2D: correlate with a kernel (odd, odd); the border is mirrored."""
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    height, width = x.shape[1:3]
    padded = np.take(x, _inside(np.arange(-up, height + up), height, "mirror"), 1)
    padded = np.take(padded, _inside(np.arange(-left, width + left), width, "mirror"), 2)
    total = np.zeros_like(x)
    for i, j in zip(*np.nonzero(kernel), strict=True):
        total += kernel[i, j] * padded[:, i : i + height, j : j + width]
    return total


def motion(x: Floats, radius: float, sigma: float, degrees: Floats) -> Floats:
    """As ImageMagick's MotionBlurImage on levels in [0, 255]: half a Gaussian on one side of each pixel, rounded.

    `radius` and `sigma` are in pixels; `degrees` (n,) is where each image's pixels look for the others.
    """
    n, height, width = x.shape[:3]
    taps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    across, down = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    each = np.arange(n)[:, None, None]
    total = np.zeros_like(x)
    for i, weight in enumerate(weights):
        rows = np.arange(height) + np.ceil(i * down - 0.5).astype(np.int64)[:, None]
        columns = np.arange(width) + np.ceil(i * across - 0.5).astype(np.int64)[:, None]
        rows, columns = _inside(rows, height, "nearest"), _inside(columns, width, "nearest")
        total += weight * x[each, rows[:, :, None], columns[:, None, :]]
    return np.floor(total + 0.5)


def zoomed(x: Floats, factor: float) -> Floats:
    """The middle of each square image, enlarged `factor` times (1 or more) by linear interpolation to the old size."""
    size = x.shape[1]
    kept = math.ceil(size / factor)
    enlarged = round(kept * factor)
    first, trimmed = (size - kept) // 2, (enlarged - size) // 2
    place = np.minimum((np.arange(size) + trimmed) * ((kept - 1) / (enlarged - 1)), kept - 1)
    low = np.floor(place).astype(np.int64)
    high, share = np.minimum(low + 1, kept - 1), place - low
    for axis in (1, 2):
        part = share.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x = (1 - part) * np.take(x, first + low, axis) + part * np.take(x, first + high, axis)
    return x


def sampled(x: Floats, rows: Floats, columns: Floats, border: Border) -> Floats:
    """The images (n, h, w, 3) at real positions (n, h, w), by bilinear interpolation."""
    n, height, width = x.shape[:3]
    each = np.arange(n)[:, None, None]
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    row, column = top.astype(np.int64), left.astype(np.int64)
    above, below = (_inside(row + i, height, border) for i in (0, 1))
    before, after = (_inside(column + i, width, border) for i in (0, 1))
    upper = (1 - right) * x[each, above, before] + right * x[each, above, after]
    lower = (1 - right) * x[each, below, before] + right * x[each, below, after]
    return (1 - down) * upper + down * lower
