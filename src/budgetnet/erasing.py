"""Augmentations that erase a part of an image.

`fill_rectangles` applies given rectangles, one a row; `random_erase` and `cutout` draw them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from budgetnet import checks, draws

_CANDIDATES = 10  # as many as torchvision tries before it leaves an image alone


def fill_rectangles(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, value: float | Sequence[float]
) -> Tensor:
    """Set a rectangle of each image to `value`; what lies outside the image is cut off, an empty rectangle is none.

    Args:
        images: (n, c, h, w), any dtype.
        top: (n,) first row, may be negative.
        left: (n,) first column, may be negative.
        height: (n,) number of rows.
        width: (n,) number of columns.
        value: one number, or one a channel, in the units of `images`.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `value` does not have one number a channel, or `images` is no batch.
    """
    inside = rectangles(images, top, left, height, width)
    return torch.where(inside, checks.per_channel("value", value, images, images.dtype), images)


def rectangles(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Which pixels lie inside a rectangle of each image.

    Args:
        images: (n, c, h, w).
        top: (n,) first row, may be negative.
        left: (n,) first column, may be negative.
        height: (n,) number of rows.
        width: (n,) number of columns.

    Returns:
        (n, 1, h, w) bool, on the device of `images`.

    Raises:
        ValueError: `images` is no batch.
    """
    n, _, h, w = checks.shape(images)
    rows = torch.arange(h, device=images.device)
    columns = torch.arange(w, device=images.device)
    in_rows = (rows >= top.view(n, 1)) & (rows < (top + height).view(n, 1))
    in_columns = (columns >= left.view(n, 1)) & (columns < (left + width).view(n, 1))
    return in_rows.view(n, 1, h, 1) & in_columns.view(n, 1, 1, w)


def random_erase(
    images: Tensor,
    p: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    value: float | Sequence[float],
    rng: Generator,
) -> Tensor:
    """Erase a random rectangle of some images: torchvision's RandomErasing, with coin and rectangle for each image.

    The area is uniform in `scale`, the ratio log-uniform in `ratio`, both sides rounded to pixels. Ten rectangles are
    drawn for each image, and the first with both sides shorter than the image's is placed uniformly inside it; where
    none of the ten fits, the image stays whole. The distribution is torchvision's, which draws up to ten in turn.

    Args:
        images: (n, c, h, w), any dtype, normalised where `value` is meant so; left unchanged.
        p: probability that an image is erased at all.
        scale: smallest and largest erased share of the area, 0 < smallest <= largest <= 1.
        ratio: smallest and largest ratio of the rectangle's height to its width, 0 < smallest <= largest.
        value: what erased pixels show: one number, or one a channel, in the units of `images`.
        rng: where coins and rectangles come from, on the device of the images.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: an argument is out of range, `value` does not have one number a channel, or `images` is no batch.

    Zhong et al. 2017, arXiv:1708.04896.
    """
    n, _, h, w = checks.shape(images)
    checks.require(0 <= p <= 1, "p", p, "a probability")
    checks.require(0 < scale[0] <= scale[1] <= 1, "scale", scale, "0 < smallest <= largest <= 1")
    checks.require(0 < ratio[0] <= ratio[1] < math.inf, "ratio", ratio, "0 < smallest <= largest")
    shapes = draws.rand((2, n, _CANDIDATES), rng, images.device, dim=1)
    area = (shapes[0] * (scale[1] - scale[0]) + scale[0]) * (h * w)
    aspect = (shapes[1] * math.log(ratio[1] / ratio[0]) + math.log(ratio[0])).exp()
    heights, widths = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (heights < h) & (widths < w)
    first = fits.int().argmax(1, keepdim=True)
    height, width = heights.gather(1, first).squeeze(1), widths.gather(1, first).squeeze(1)
    coin, row, column = draws.rand((3, n), rng, images.device, dim=1)
    height = height * (fits.any(1) & (coin < p))
    # A draw near 1 may round up to the first place outside.
    top = torch.minimum((row * (h - height + 1)).floor(), h - height)
    left = torch.minimum((column * (w - width + 1)).floor(), w - width)
    return fill_rectangles(images, top, left, height, width, value)


def cutout(images: Tensor, size: int, rng: Generator, fill: float | Sequence[float] = 0.0) -> Tensor:
    """Set a square of each image to `fill`; its centre is uniform over the pixels, and what lies outside is cut off.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        size: side of the square in pixels, 1 or more; an even square reaches one pixel further up and left.
        rng: where the centres come from, on the device of the images.
        fill: one number, or one a channel, in the units of `images`; 0 is the mean colour of normalised ones.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `size` is not positive, `fill` does not have one number a channel, or `images` is no batch.

    DeVries and Taylor 2017, arXiv:1708.04552.
    """
    n, _, h, w = checks.shape(images)
    checks.require(size >= 1, "size", size, "1 pixel or more")
    row = draws.randint(0, h, (n,), rng, images.device)
    column = draws.randint(0, w, (n,), rng, images.device)
    side = torch.full_like(row, size)
    return fill_rectangles(images, row - size // 2, column - size // 2, side, side, fill)
