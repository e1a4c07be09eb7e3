"""Gates: small modules that scale the channels, or positions, of a block by what they see of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from budgetnet.config import StageConfig


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate in (0, 1) computed from the means of all channels.

    The channels are reduced by `reduction`, but not below 4: with a single hidden unit, one dead ReLU would end all
    learning of the gate. Hu et al. 2018, arXiv:1709.01507.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        hidden = max(4, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, channels)

    def _score(self, seen: Tensor) -> Tensor:
        """What is seen of each channel, (n, c), to the gates before the sigmoid."""
        score: Tensor = self.fc2(self.relu(self.fc1(seen)))
        return score

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        return x * self._score(x.mean((2, 3))).sigmoid()[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """Scale each channel by a gate in (0, 1) computed from the means of the channels around it.

    One filter, over log2(c) / 2 + 1/2 channels, brought to an odd number, slides along the channels: a handful of
    parameters where squeeze-and-excitation has c^2 / 8. Wang et al. 2020, arXiv:1910.03151.
    """

    def __init__(self, channels: int):
        super().__init__()
        kernel = int((math.log2(channels) + 1) / 2) // 2 * 2 + 1
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        gate: Tensor = self.conv(x.mean((2, 3))[:, None]).sigmoid()
        return x * gate[:, 0, :, None, None]


class ChannelSpatialAttention(SqueezeExcitation):
    """Scale each channel by what its mean and maximum say, then each position by those over the channels.

    As CBAM (Woo et al. 2018, arXiv:1807.06521), with their 7x7 convolution over positions and, as in
    `SqueezeExcitation`, no fewer than 4 hidden units and biases.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__(channels, reduction)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        score = self._score(x.mean((2, 3))) + self._score(x.amax((2, 3)))
        x = x * score.sigmoid()[:, :, None, None]
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        gated: Tensor = x * self.conv(seen).sigmoid()
        return gated


def make_gate(stage: StageConfig, channels: int) -> nn.Module | None:
    """The gate that the stage asks for, over so many channels, or None."""
    if stage.se:
        return SqueezeExcitation(channels, stage.se)
    if stage.eca:
        return EfficientChannelAttention(channels)
    return ChannelSpatialAttention(channels, stage.cbam) if stage.cbam else None


def describe_gate(stage: StageConfig) -> str:
    """The gate that the stage asks for, in words, or nothing."""
    name = f"SE 1/{stage.se}" if stage.se else "ECA" if stage.eca else f"CBAM 1/{stage.cbam}" if stage.cbam else ""
    return name and f"{name} on the {stage.se_place}"
