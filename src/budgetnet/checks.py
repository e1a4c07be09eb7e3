"""What functions over batches of images (n, c, h, w) ask of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shape(images: Tensor) -> tuple[int, int, int, int]:
    """Number of images, channels, height and width.

    Raises:
        ValueError: `images` has other dimensions than four.
    """
    if images.dim() != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}, expected (n, c, h, w)")
    n, c, h, w = images.shape
    return n, c, h, w


def require(condition: bool, name: str, found: object, expected: str) -> None:
    """Refuse an argument that is out of range.

    Raises:
        ValueError: the condition does not hold; it says what was found, and what was expected.
    """
    if not condition:
        raise ValueError(f"{name} is {found}, expected {expected}")


def per_channel(name: str, values: float | Sequence[float], images: Tensor, dtype: torch.dtype) -> Tensor:
    """One number a channel, to compute with `images`.

    Args:
        name: of the argument, for the message.
        values: one number, or one a channel.
        images: (n, c, h, w).
        dtype: of the result.

    Returns:
        (1, c, 1, 1), or (1, 1, 1, 1) of one number, on the device of `images`.

    Raises:
        ValueError: there is not one number a channel.
    """
    # Made by filling: copying a list to a GPU would make the host wait.
    if isinstance(values, (int, float)):
        return torch.full((1, 1, 1, 1), values, dtype=dtype, device=images.device)
    require(len(values) == images.shape[1], f"the length of {name}", len(values), f"the {images.shape[1]} channels")
    return torch.cat([torch.full((1, 1, 1, 1), v, dtype=dtype, device=images.device) for v in values], 1)
