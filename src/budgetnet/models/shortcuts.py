"""The shortcuts of residual blocks, where these change the resolution or the number of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.models.norms import BatchNorm2d


class Projection(nn.Conv2d):
    """A 1x1 convolution with a stride, computed as one without on every stride-th pixel: the same numbers.

    oneDNN's own (in PyTorch 2.13, on processors with AVX-512, in channels-last order) writes past its buffers in the
    backward pass with 4, 8 or 12 channels coming in, which ends in a crash of the whole process.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight)


class PaddedShortcut(nn.Module):
    """The mean over stride x stride pixels, with channels of zeros appended: a shortcut without parameters.

    Han et al. 2017, arXiv:1610.02915.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.missing = out_channels - in_channels
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        return F.pad(self.pool(x), (0, 0, 0, 0, 0, self.missing))


class ShiftedShortcut(nn.Module):
    """Half of the channels from every stride-th pixel, the others from those one down and to the right; then a norm.

    Gastaldi 2017, arXiv:1705.07485.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = Projection(in_channels, (out_channels + 1) // 2, stride)
        self.conv2 = Projection(in_channels, out_channels // 2, stride) if out_channels > 1 else None
        self.bn = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        halves = [self.conv1(x)]
        if self.conv2 is not None:
            halves.append(self.conv2(F.pad(x, (-1, 1, -1, 1))))
        normed: Tensor = self.bn(torch.cat(halves, dim=1))
        return normed
