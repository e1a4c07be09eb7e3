"""Augmentations that move pixels: crops, mirror images, rotations.

`crop` and `turn` apply given parameters, one a row; `random_crop` and `rotate` draw them.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from budgetnet import checks, draws

Border = Literal["zeros", "reflect"]


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int, border: Border = "zeros") -> Tensor:
    """Pad every side by `padding` pixels and cut from each image the window of the old size at its (`top`, `left`).

    Args:
        images: (n, c, h, w), any dtype.
        top: (n,) int64, first row of the window in the padded image, in [0, 2 * padding].
        left: (n,) int64, first column, likewise.
        padding: pixels added to each side, 0 <= padding < min(h, w).
        border: what the added pixels show, "zeros" (black) or "reflect" (mirrored, without repeating the edge).

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `padding` is out of range, `border` is unknown, or `images` is no batch.
    """
    n, _, h, w = checks.shape(images)
    checks.require(
        0 <= padding < min(h, w), "padding", padding, f"0 or more and less than the smaller side, {min(h, w)}"
    )
    if border == "zeros":
        padded = F.pad(images, (padding, padding, padding, padding))
    elif border == "reflect":
        # F.pad does not reflect every dtype on every device; indexing does.
        rows, columns = _reflected(h, padding, images.device), _reflected(w, padding, images.device)
        padded = images.index_select(2, rows).index_select(3, columns)
    else:
        raise ValueError(f"border is {border!r}, expected 'zeros' or 'reflect'")
    windows = padded.unfold(2, h, 1).unfold(3, w, 1).permute(0, 2, 3, 1, 4, 5)  # a view: (n, tops, lefts, c, h, w)
    return windows[torch.arange(n, device=images.device), top, left]


def random_crop(images: Tensor, padding: int, rng: Generator, border: Border = "zeros") -> Tensor:
    """Shift each image, on its own, by up to `padding` pixels down or up and left or right, all shifts equally likely.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        padding: largest shift in pixels, 0 <= padding < min(h, w).
        rng: where the shifts come from, on the device of the images.
        border: what the uncovered edge shows, "zeros" or "reflect".

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `padding` is out of range, `border` is unknown, or `images` is no batch.

    He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    n, _, h, w = checks.shape(images)
    checks.require(
        0 <= padding < min(h, w), "padding", padding, f"0 or more and less than the smaller side, {min(h, w)}"
    )
    top, left = draws.randint(0, 2 * padding + 1, (2, n), rng, images.device, dim=1)
    return crop(images, top, left, padding, border)


def random_flip(images: Tensor, rng: Generator) -> Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        rng: where the coins come from, on the device of the images.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `images` is no batch.
    """
    n, *_ = checks.shape(images)
    return _flip_where(draws.rand((n,), rng, images.device) < 0.5, images)


def alternating_flip(images: Tensor, indices: Tensor, epoch: int, seed: int) -> Tensor:
    """Mirror each image left to right in every other epoch; which epochs those are is a hash of (its index, `seed`).

    Two consecutive epochs so show every image both ways, which a coin does for only half of them.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        indices: (n,) int64, place of each image in the training set, on the device of the images.
        epoch: epoch, 0 or more.
        seed: any integer; another seed gives independent first orientations.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `indices` is not (n,) int64, or `images` is no batch.

    Jordan 2024, arXiv:2404.00498. The hash is SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195).
    """
    n, *_ = checks.shape(images)
    if indices.shape != (n,) or indices.dtype != torch.int64:
        raise ValueError(
            f"indices are {tuple(indices.shape)} {indices.dtype}, expected ({n},) torch.int64: one an image"
        )
    flipped = _hash_bit(indices, seed)
    return _flip_where(~flipped if epoch % 2 else flipped, images)


def turn(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre; what comes from outside is zero.

    Nearest neighbour, as torchvision's RandomRotation does unless told otherwise: it keeps the dtype and does not blur
    training images that test images would not match.

    Args:
        images: (n, c, h, w), any dtype.
        degrees: (n,) float, counter-clockwise.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `images` is no batch.
    """
    n, c, h, w = checks.shape(images)
    radians = torch.deg2rad(degrees.to(torch.float32)).view(n, 1, 1)
    cosine, sine = radians.cos(), radians.sin()
    y = torch.arange(h, device=images.device, dtype=torch.float32).view(1, h, 1) - (h - 1) / 2
    x = torch.arange(w, device=images.device, dtype=torch.float32).view(1, 1, w) - (w - 1) / 2
    column = (cosine * x - sine * y).add_((w - 1) / 2).round_()
    row = (sine * x + cosine * y).add_((h - 1) / 2).round_()
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    source = row.mul_(w).add_(column).mul_(inside).long().view(n, 1, h * w).expand(n, c, h * w)
    return images.flatten(2).gather(2, source).view(n, c, h, w).mul_(inside.unsqueeze(1))


def rotate(images: Tensor, degrees: float, rng: Generator) -> Tensor:
    """Rotate each image about its centre by an angle uniform in [-`degrees`, `degrees`]: see `turn`.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        degrees: largest angle either way, in [0, 180].
        rng: where the angles come from, on the device of the images.

    Returns:
        (n, c, h, w), dtype and device of `images`; nearest neighbour, zero outside.

    Raises:
        ValueError: `degrees` is out of range, or `images` is no batch.
    """
    n, *_ = checks.shape(images)
    checks.require(0 <= degrees <= 180, "degrees", degrees, "an angle in [0, 180]")
    return turn(images, draws.uniform(-degrees, degrees, (n,), rng, images.device))


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    """The source of each of `size + 2 * padding` rows or columns when the edges are mirrors."""
    places = torch.arange(-padding, size + padding, device=device)
    return (size - 1) - (places.abs() - (size - 1)).abs()


def _flip_where(flipped: Tensor, images: Tensor) -> Tensor:
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)


def _splitmix(seed: int) -> int:
    mask = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def _hash_bit(indices: Tensor, seed: int) -> Tensor:
    """(n,) bool: the top bit of SplitMix64 at each index of the stream that `seed` begins, in wrapping int64."""

    def signed(value: int) -> int:
        return value - 2**64 if value >= 2**63 else value

    def shifted(z: Tensor, bits: int) -> Tensor:
        return (z >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts in copies of the sign; these are not wanted

    z = indices * signed(0x9E3779B97F4A7C15) + signed(_splitmix(seed))
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    return z < 0  # the last step of SplitMix64 leaves the top bit as it is
