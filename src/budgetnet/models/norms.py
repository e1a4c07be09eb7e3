"""Batch norm that a CPU trains fast also where channels are few."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LINE = 16
"""Floats in a cache line of 64 bytes."""
_NARROW = 64
"""From so many channels on, torch's own is as fast."""


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, to rounding; where a CPU trains narrow networks, several times as fast.

    In channels-last order torch adds up the channels in a row of floats for each thread. Rows that are no whole cache
    lines share some, which the threads then take from each other at every pixel, and are partly added up one number at
    a time. Here neighbouring pixels count as channels of their own, so many that a row is whole lines, and what was
    found of them is put together afterwards.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        together = self._together(x)
        if together == 1:
            return super().forward(x)
        normed, mean, variance = _Norm.apply(x, self.weight, self.bias, self.eps, together)  # type: ignore[no-untyped-call]
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        count = x.numel() // len(mean)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        found: Tensor = normed
        return found

    def _together(self, x: Tensor) -> int:
        """How many neighbouring pixels to take together; 1 leaves it to torch."""
        if not self.training or x.device.type != "cpu" or torch.compiler.is_compiling():
            return 1
        if self.weight is None or self.running_mean is None or self.momentum is None:
            return 1
        if x.dtype != torch.bfloat16 and torch.get_num_threads() == 1:
            return 1
        together = _LINE // math.gcd(self.num_features, _LINE)
        if x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last) or self.num_features >= _NARROW:
            return 1
        return together if x.shape[2] * x.shape[3] % together == 0 else 1


class _Norm(torch.autograd.Function):
    """Batch norm by the statistics of the batch, which come with it: mean and biased variance, float (c,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, together: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, channels = _grouped(x, together), x.shape[1]
        unused = weight.new_zeros(together * channels)  # without them, statistics have the precision of x
        found = torch.batch_norm_update_stats(rows, unused, unused.clone(), 0.0)
        means, variances = (values.view(together, channels) for values in found)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.mark_non_differentiable(mean, variance)
        ctx.eps, ctx.together = eps, together
        return _ungrouped(_affine(rows, mean, variance, weight, bias, eps, together), x), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        eps, together, channels = ctx.eps, ctx.together, len(mean)
        rows = _grouped(x, together)
        # As if the statistics were constants: gradient * weight / deviation, and the sums that lead to those of weight
        # and bias. The statistics' own part follows from these two, and is affine in x.
        through, *sums = torch.ops.aten.native_batch_norm_backward(
            _grouped(gradient.contiguous(memory_format=torch.channels_last), together),
            rows,
            *(values.repeat(together) for values in (weight, mean, variance)),
            None,
            None,
            False,
            eps,
            [True, True, True],
        )
        of_weight, of_bias = (values.view(together, channels).sum(0) for values in sums)
        scale = -weight * torch.rsqrt(variance + eps) * (channels / x.numel())
        through += _affine(rows, mean, variance, scale * of_weight, scale * of_bias, eps, together)
        return _ungrouped(through, x), of_weight, of_bias, None, None


def _affine(
    rows: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float, together: int
) -> Tensor:
    """(x - mean) / deviation * weight + bias of grouped x."""
    weight, bias, mean, variance = (values.repeat(together) for values in (weight, bias, mean, variance))
    return torch.batch_norm(rows, weight, bias, mean, variance, False, 0.0, eps, False)


def _grouped(x: Tensor, together: int) -> Tensor:
    """(n, c, h, w) in channels-last order as (n, together * c, h * w / together, 1), the same memory."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h * w // together, 1, together * c).permute(0, 3, 1, 2)


def _ungrouped(rows: Tensor, x: Tensor) -> Tensor:
    """What `_grouped` made of something like x, in its shape."""
    n, c, h, w = x.shape
    return rows.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)
