"""Randomness inside networks, in training only: whole branches left out, or mixed by chance.

All draws come from torch's global generator, an element for each image, and none makes the host wait.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Set a residual branch to zero for a share of the images, and scale it up for the others, so that its mean stays.

    Does nothing in evaluation. Huang et al. 2016, arXiv:1603.09382, who scale in evaluation instead.

    Args:
        rate: probability of leaving the branch out, in [0, 1).
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        if not self.training:
            return branch
        keep = 1 - self.rate
        return branch * branch.new_empty((len(branch), 1, 1, 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Its rate."""
        return f"rate={self.rate:g}"


def shake(first: Tensor, second: Tensor, training: bool) -> Tensor:
    """Two branches mixed by shares that are drawn anew for each image, others in the backward pass than in the forward.

    Gastaldi 2017, arXiv:1705.07485, whose "Shake-Shake-Image" this is.

    Args:
        first: (n, c, h, w) float.
        second: the same.
        training: whether to draw; else both get a half.

    Returns:
        (n, c, h, w).
    """
    if not training:
        return (first + second) / 2
    forward, backward = torch.rand((2, len(first), 1, 1, 1), dtype=first.dtype, device=first.device)
    mixed: Tensor = _Shake.apply(first, second, forward, backward)  # type: ignore[no-untyped-call]
    return mixed


class _Shake(torch.autograd.Function):
    """a * first + (1 - a) * second, whose gradient is that of b * first + (1 - b) * second."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(b)
        return torch.lerp(second, first, a)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (b,) = ctx.saved_tensors
        return gradient * b, gradient * (1 - b), None, None
