"""Shallow convolutional networks that begin by whitening their input, for training in minutes.

Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv:2404.00498), after Page 2019, "How to train your
ResNet" (myrtle.ai).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.errors import ConfigError
from budgetnet.models.norms import BatchNorm2d

SMALLEST_IMAGE = 9
"""Pixels: the whitening takes one off, and three poolings must leave one."""


@dataclass(frozen=True, kw_only=True)
class WhitenedArchitecture:
    """Frozen whitening filters, then three groups of convolutions with GELU (Jordan 2024, arXiv:2404.00498)."""

    widths: tuple[int, int, int]
    """Channels of the three groups."""
    convolutions: Literal[2, 3] = 2
    """3x3 convolutions of a group; with three, a residual connection goes over the last two."""

    @property
    def width(self) -> int:
        """Channels of the first group."""
        return self.widths[0]

    def scaled(self, width: int) -> WhitenedArchitecture:
        """The same network with the first group `width` wide and the others in proportion, rounded, halves up."""
        first, *others = self.widths
        second, third = ((2 * other * width + first) // (2 * first) for other in others)
        return replace(self, widths=(width, max(1, second), max(1, third)))

    def network(self, num_classes: int, image_size: int, channels: int) -> WhitenedNetwork:
        """The network, freshly initialised, on the current default device; `initialize` it before training.

        Raises:
            ConfigError: images of this size do not survive three poolings.
        """
        if image_size < SMALLEST_IMAGE:
            raise ConfigError(
                f"image_size is {image_size}, expected at least {SMALLEST_IMAGE} for a whitened network, which halves "
                "it three times: resize the images or choose another network"
            )
        return WhitenedNetwork(self, num_classes, channels)


class ConvGroup(nn.Module):
    """3x3 convolutions, each with its norm and GELU, the first with a 2x2 max-pooling before its norm.

    Convolutions start as the identity on as many channels as come in; norms have a bias but no scale, which the next
    convolution would only undo. With three, the output of the first is added to that of the last.
    """

    def __init__(self, in_channels: int, out_channels: int, convolutions: int):
        super().__init__()
        self.in_channels, self.out_channels, self.convolutions = in_channels, out_channels, convolutions
        self.pool = nn.MaxPool2d(2)
        self.activation = nn.GELU()
        self.conv1, self.norm1 = _convolution(in_channels, out_channels), _norm(out_channels)
        self.conv2, self.norm2 = _convolution(out_channels, out_channels), _norm(out_channels)
        if convolutions == 3:
            self.conv3, self.norm3 = _convolution(out_channels, out_channels), _norm(out_channels)

    def describe(self) -> str:
        """The kind of group and its switches, separated by a comma and a space."""
        parts = [f"{self.convolutions} x conv 3x3", f"{self.in_channels}-{self.out_channels}", "max-pool 2x2"]
        return ", ".join([*parts, *(["residual"] if self.convolutions == 3 else []), "GELU"])

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, h // 2, w // 2)."""
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        out: Tensor = self.activation(self.norm2(self.conv2(x)))
        if self.convolutions == 3:
            out = self.activation(self.norm3(self.conv3(out)) + x)
        return out


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution whose first `in_channels` outputs are its inputs, until trained."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:in_channels])
    return conv


def _norm(channels: int) -> BatchNorm2d:
    # 0.4 of a new batch, as in the paper: with few epochs the statistics must follow fast. Its eps of 1e-12 would be
    # lost in bfloat16.
    norm = BatchNorm2d(channels, eps=1e-5, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


class WhitenedNetwork(nn.Module):
    """A frozen whitening convolution, three groups, the maximum over positions, one linear layer, logits over 9."""

    def __init__(self, architecture: WhitenedArchitecture, num_classes: int, channels: int):
        super().__init__()
        first, second, third = architecture.widths
        filters = 2 * channels * 2 * 2
        self.whiten = nn.Conv2d(channels, filters, 2)
        self.whiten.weight.requires_grad_(False)
        self.activation = nn.GELU()
        self.group1 = ConvGroup(filters, first, architecture.convolutions)
        self.group2 = ConvGroup(first, second, architecture.convolutions)
        self.group3 = ConvGroup(second, third, architecture.convolutions)
        self.linear = nn.Linear(third, num_classes, bias=False)
        groups = ("group1", "group2", "group3")
        self.sequences: tuple[tuple[str, ...], ...]
        if architecture.convolutions == 2:  # one path from end to end
            parts = [f"{group}.{part}" for group in groups for part in ("conv1", "norm1", "conv2", "norm2")]
            self.sequences = ((*parts, "linear"),)
        else:
            self.sequences = tuple((f"{group}.conv2", f"{group}.norm2", f"{group}.conv3") for group in groups)

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Set the first layer to whiten 2x2 patches of these images; its bias to 0.

        Half the filters are the eigenvectors of the patches' covariance, largest eigenvalue first, each over the square
        root of its eigenvalue (plus 5e-4, or noise would be blown up); the other half are their negatives.

        Args:
            images: (n, channels, h, w) float, normalised, n >= 1; a few thousand are enough. Left unchanged.

        Raises:
            ValueError: another shape.
        """
        weight = self.whiten.weight
        channels = weight.shape[1]
        if images.ndim != 4 or images.shape[0] < 1 or images.shape[1] != channels or min(images.shape[2:]) < 2:
            raise ValueError(f"images have the shape {tuple(images.shape)}, expected (n, {channels}, h, w)")
        size = 4 * channels
        total = torch.zeros(size, dtype=torch.float64)
        products = torch.zeros(size, size, dtype=torch.float64)
        positions = 0
        for chunk in torch.split(images, 1000):  # unfolding repeats every pixel four times: keep that small
            patches = F.unfold(chunk.float(), 2).transpose(1, 2).reshape(-1, size)
            total += patches.sum(0).cpu().double()
            products += (patches.T @ patches).cpu().double()
            positions += len(patches)
        mean = total / positions
        eigenvalues, eigenvectors = torch.linalg.eigh(products / positions - mean.outer(mean))
        filters = (eigenvectors / (eigenvalues.clamp(min=0) + 5e-4).sqrt()).T.flip(0).reshape(size, channels, 2, 2)
        weight.copy_(torch.cat([filters, -filters]))
        if self.whiten.bias is not None:
            self.whiten.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) float, h and w at least 9, to logits (n, num_classes)."""
        x = self.activation(self.whiten(x))
        x = self.group3(self.group2(self.group1(x)))
        logits: Tensor = self.linear(x.amax((2, 3))) / 9
        return logits
