"""Random numbers for the images of a batch, the same for each image however the batch is shared out.

Whatever is random about an image is drawn for the whole batch, row by row, from one generator. Who has a share of the
batch gives a `Share` where others give a plain generator: as much is drawn, and the rows of the share are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor


class Share(Generator):
    """A generator for some images of a batch; it is seeded like that of the whole batch.

    Args:
        rows: int64 (k,), places of the images in the batch, on the device that is drawn on.
        total: images of the batch.
    """

    rows: Tensor
    total: int

    def __new__(cls, rows: Tensor, total: int) -> Share:
        """A generator on the device of `rows`."""
        return super().__new__(cls, rows.device)  # type: ignore[call-arg]  # which torch has, and does not declare

    def __init__(self, rows: Tensor, total: int) -> None:
        self.rows = rows
        self.total = total


def rand(shape: Sequence[int], rng: Generator, device: torch.device, dim: int = 0) -> Tensor:
    """Uniform in [0, 1): `torch.rand`, in which dimension `dim` counts images.

    That dimension may be a multiple of the images: so many blocks, each of all images, one after the other.

    Args:
        shape: of the result.
        rng: a generator on `device`, for all images of the batch or a `Share` of them.
        device: where the numbers go.
        dim: the dimension that counts images, 0 or more.

    Returns:
        float32 of that shape.
    """
    return _drawn(lambda whole: torch.rand(whole, generator=rng, device=device), shape, rng, dim)


def uniform(
    low: float, high: float, shape: Sequence[int], rng: Generator, device: torch.device, dim: int = 0
) -> Tensor:
    """Uniform in [low, high), but for rounding: otherwise as `rand`."""
    return rand(shape, rng, device, dim).mul_(high - low).add_(low)


def randn(shape: Sequence[int], rng: Generator, device: torch.device, dim: int = 0) -> Tensor:
    """Standard normal: `torch.randn`, otherwise as `rand`."""
    return _drawn(lambda whole: torch.randn(whole, generator=rng, device=device), shape, rng, dim)


def randint(low: int, high: int, shape: Sequence[int], rng: Generator, device: torch.device, dim: int = 0) -> Tensor:
    """int64 in [low, high), all equally likely: `torch.randint`, otherwise as `rand`."""
    return _drawn(lambda whole: torch.randint(low, high, whole, generator=rng, device=device), shape, rng, dim)


def _drawn(draw: Callable[[tuple[int, ...]], Tensor], shape: Sequence[int], rng: Generator, dim: int) -> Tensor:
    if not isinstance(rng, Share):
        return draw(tuple(shape))
    before, after = tuple(shape[:dim]), tuple(shape[dim + 1 :])
    blocks = shape[dim] // len(rng.rows)
    drawn = draw((*before, blocks * rng.total, *after)).view(*before, blocks, rng.total, *after)
    return drawn.index_select(dim + 1, rng.rows).view(tuple(shape))
