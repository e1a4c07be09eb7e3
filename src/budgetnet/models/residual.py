"""Residual networks: one description of stages, and the network it describes.

He et al. 2015 (arXiv:1512.03385) for the basic and bottleneck blocks, He et al. 2016 (arXiv:1603.05027) for the
pre-activation one, Xie et al. 2017 (arXiv:1611.05431) for groups, Zagoruyko and Komodakis 2016 (arXiv:1605.07146) for
width and dropout, Hu et al. 2018 (arXiv:1709.01507) for squeeze-and-excitation.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.config import StageConfig
from budgetnet.errors import ConfigError

ACTIVATIONS: dict[str, tuple[str, type[nn.Module]]] = {
    "relu": ("ReLU", nn.ReLU),
    "leaky_relu": ("LeakyReLU", nn.LeakyReLU),
    "silu": ("SiLU", nn.SiLU),
    "gelu": ("GELU", nn.GELU),
}
"""The name that a picture shows and the module, LeakyReLU with PyTorch's slope of 0.01."""


@dataclass(frozen=True, kw_only=True)
class ResidualArchitecture:
    """A residual network, described: a stem, stages of blocks, the mean over positions, one linear layer.

    Where the first stage is of pre-activation blocks, these bring norm and activation, so the stem ends without.
    """

    stages: tuple[StageConfig, ...]
    """The stages in order."""
    stem: int = 1
    """Number of convolutions before the first stage; with ReLU, whatever the stages have."""
    stem_width: int
    """Channels of the stem."""
    stem_kernel: int = 3
    """Side of its convolutions, odd."""
    final_norm: bool = False
    """Norm and activation after the last stage, which pre-activation blocks leave without."""
    dropout: float = 0.0
    """Share of values dropped before the second convolution of pre-activation blocks."""

    @property
    def width(self) -> int:
        """Channels inside the blocks of the first stage."""
        return self.stages[0].width

    def scaled(self, width: int) -> ResidualArchitecture:
        """The same network with the first stage `width` wide and all else in proportion.

        Every width is rounded to the nearest multiple, never 0, of what the groups of the stages divide by; scaling to
        the width of the result changes nothing more.
        """
        multiple = math.lcm(*(stage.groups for stage in self.stages))
        first = _nearest(width, 1, multiple)

        def scale(old: int) -> int:
            return _nearest(old * first, self.width, multiple)

        stages = tuple(replace(stage, width=scale(stage.width)) for stage in self.stages)
        return replace(self, stages=stages, stem_width=scale(self.stem_width))

    def network(self, num_classes: int, image_size: int, channels: int) -> ResidualNetwork:
        """The network, freshly initialised, on the current default device.

        Raises:
            ConfigError: a stage is separable and grouped at once, or its groups do not divide the channels coming in.
        """
        del image_size  # strides round up and the mean takes any size
        return ResidualNetwork(self, num_classes, channels)


def _nearest(numerator: int, denominator: int, multiple: int) -> int:
    """The multiple of `multiple` nearest to a fraction, halves up, at least `multiple`."""
    step = denominator * multiple
    return max(1, (2 * numerator + step) // (2 * step)) * multiple


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

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        gate: Tensor = self.fc2(self.relu(self.fc1(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


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


class Block(nn.Module):
    """What the three kinds of block share: the shortcut, the gate, and where the two branches meet.

    Args:
        in_channels: channels coming in.
        stage: the stage it belongs to.
        stride: of its first 3x3 convolution.
        dropout: share of values dropped inside; pre-activation blocks only.
    """

    def __init__(self, in_channels: int, stage: StageConfig, stride: int, dropout: float = 0.0):
        super().__init__()
        if stage.separable and stage.groups > 1:
            raise ConfigError(
                f"model.stages.groups is {stage.groups} in a separable stage, expected 1: a depthwise convolution has "
                "a group for each channel already"
            )
        self.stage, self.stride = stage, stride
        self.in_channels, self.out_channels = in_channels, stage.width * stage.expansion
        self.activation = ACTIVATIONS[stage.activation][1]()
        self._convolutions(in_channels, stage, stride, dropout)
        self.shortcut = self._shortcut() if self.projects else nn.Sequential()
        self.se_block = SqueezeExcitation(self.out_channels, stage.se) if stage.se else None

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a 1x1 convolution, as it must be where the shape changes."""
        return self.stride != 1 or self.in_channels != self.out_channels

    def describe(self) -> str:
        """The kind of block and its switches, separated by a comma and a space."""
        stage = self.stage
        inner = [stage.width, stage.width] if stage.block == "bottleneck" else [stage.width]
        parts = [stage.block, "-".join(str(width) for width in [*inner, self.out_channels])]
        if self.stride != 1:
            parts.append(f"stride {self.stride}")
        if self.projects:
            parts.append("projection")
        if stage.groups > 1:
            parts.append(f"{stage.groups} groups")
        if stage.separable:
            parts.append("separable")
        if stage.se:
            parts.append(f"SE 1/{stage.se} on the {stage.se_place}")
        return ", ".join([*parts, ACTIVATIONS[stage.activation][0]])

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int, dropout: float) -> None:
        raise NotImplementedError

    def _shortcut(self) -> nn.Sequential:
        return nn.Sequential(
            Projection(self.in_channels, self.out_channels, self.stride),
            nn.BatchNorm2d(self.out_channels),
        )

    def _sum(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        if self.se_block is not None and self.stage.se_place == "branch":
            branch = self.se_block(branch)
        out = branch + shortcut
        if self.se_block is not None and self.stage.se_place == "sum":
            out = self.se_block(out)
        return out


def _conv3x3(in_channels: int, out_channels: int, stage: StageConfig, stride: int) -> tuple[nn.Module, nn.Module]:
    """A 3x3 convolution and what follows it: nothing, or the pointwise half of a separable one."""
    if stage.separable:
        return (
            nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )
    if in_channels % stage.groups:
        raise ConfigError(
            f"model.stages.groups is {stage.groups} where {in_channels} channels come in, expected a divisor of "
            f"{in_channels}: change the groups, or the width of the stage before"
        )
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=stage.groups, bias=False)
    return conv, nn.Identity()


class BasicBlock(Block):
    """Two 3x3 convolutions, each with its norm (He et al. 2015, arXiv:1512.03385)."""

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int, dropout: float) -> None:
        self.conv1, self.pointwise1 = _conv3x3(in_channels, stage.width, stage, stride)
        self.bn1 = nn.BatchNorm2d(stage.width)
        self.conv2, self.pointwise2 = _conv3x3(stage.width, self.out_channels, stage, 1)
        self.bn2 = nn.BatchNorm2d(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        out = self.activation(self.bn1(self.pointwise1(self.conv1(x))))
        out = self.bn2(self.pointwise2(self.conv2(out)))
        joined: Tensor = self.activation(self._sum(out, self.shortcut(x)))
        return joined


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions, each with its norm (He et al. 2015, arXiv:1512.03385)."""

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int, dropout: float) -> None:
        self.conv1 = nn.Conv2d(in_channels, stage.width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stage.width)
        self.conv2, self.pointwise = _conv3x3(stage.width, stage.width, stage, stride)
        self.bn2 = nn.BatchNorm2d(stage.width)
        self.conv3 = nn.Conv2d(stage.width, self.out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.activation(self.bn2(self.pointwise(self.conv2(out))))
        out = self.bn3(self.conv3(out))
        joined: Tensor = self.activation(self._sum(out, self.shortcut(x)))
        return joined


class PreactBlock(Block):
    """Norm and activation before each of two 3x3 convolutions; the projection has no norm (arXiv:1603.05027)."""

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int, dropout: float) -> None:
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1, self.pointwise1 = _conv3x3(in_channels, stage.width, stage, stride)
        self.bn2 = nn.BatchNorm2d(stage.width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2, self.pointwise2 = _conv3x3(stage.width, self.out_channels, stage, 1)

    def _shortcut(self) -> nn.Sequential:
        return nn.Sequential(Projection(self.in_channels, self.out_channels, self.stride))

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        out = self.activation(self.bn1(x))
        shortcut = self.shortcut(out) if self.projects else x
        out = self.activation(self.bn2(self.pointwise1(self.conv1(out))))
        out = self.pointwise2(self.conv2(self.dropout(out)))
        return self._sum(out, shortcut)


BLOCKS: dict[str, type[Block]] = {"basic": BasicBlock, "bottleneck": BottleneckBlock, "preact": PreactBlock}


class ResidualNetwork(nn.Module):
    """The network that a ResidualArchitecture describes.

    Its modules are `conv1`, `bn1` (and `conv2`, `bn2` in a stem of two), `layer1`, `layer2`, ..., `bn` where there is a
    final norm, and `linear`.
    """

    def __init__(self, architecture: ResidualArchitecture, num_classes: int, channels: int = 3):
        super().__init__()
        stages = architecture.stages
        width, kernel, in_channels = architecture.stem_width, architecture.stem_kernel, channels
        self.relu = nn.ReLU()
        self._stem: list[str] = []
        for i in range(1, architecture.stem + 1):
            self._append(self._stem, f"conv{i}", nn.Conv2d(in_channels, width, kernel, padding=kernel // 2, bias=False))
            if i < architecture.stem or stages[0].block != "preact":
                self._append(self._stem, f"bn{i}", nn.BatchNorm2d(width))
                self._stem.append("relu")
            in_channels = width
        self._layers: list[str] = []
        for i, stage in enumerate(stages, start=1):
            blocks: list[Block] = []
            for stride in itertools.chain([stage.stride], itertools.repeat(1, stage.depth - 1)):
                blocks.append(BLOCKS[stage.block](in_channels, stage, stride, architecture.dropout))
                in_channels = blocks[-1].out_channels
            self._append(self._layers, f"layer{i}", nn.Sequential(*blocks))
        if architecture.final_norm:
            self._append(self._layers, "bn", nn.BatchNorm2d(in_channels))
            self._append(self._layers, "activation", ACTIVATIONS[stages[-1].activation][1]())
        self.linear = nn.Linear(in_channels, num_classes)

    def _append(self, path: list[str], name: str, module: nn.Module) -> None:
        self.add_module(name, module)
        path.append(name)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) float to logits (n, num_classes)."""
        for name in self._stem + self._layers:
            x = getattr(self, name)(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def uniform(
    block: str, depths: tuple[int, ...], width: int, expansion: int = 1, **switches: tuple[object, ...]
) -> tuple[StageConfig, ...]:
    """Stages that double in width and halve in resolution from one to the next.

    Args:
        block: kind of every block.
        depths: blocks of each stage.
        width: channels inside the blocks of the first stage.
        expansion: output channels as a multiple of the stage's width.
        switches: further fields of StageConfig, a value for each stage.
    """
    return tuple(
        StageConfig(
            block=block,  # type: ignore[arg-type]
            depth=depth,
            width=width * 2**i,
            stride=1 if i == 0 else 2,
            expansion=expansion,
            **{name: values[i] for name, values in switches.items()},  # type: ignore[arg-type]
        )
        for i, depth in enumerate(depths)
    )
