"""The blocks of residual networks: what they share, and one class for each kind.

He et al. 2015 (arXiv:1512.03385) for the basic and bottleneck blocks, He et al. 2016 (arXiv:1603.05027) for the
pre-activation one, Xie et al. 2017 (arXiv:1611.05431) for groups, Zagoruyko and Komodakis 2016 (arXiv:1605.07146) for
dropout within; the other kinds name their papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from budgetnet.config import StageConfig
from budgetnet.errors import ConfigError
from budgetnet.models.gates import describe_gate, make_gate
from budgetnet.models.noise import StochasticDepth, shake
from budgetnet.models.norms import BatchNorm2d
from budgetnet.models.shortcuts import PaddedShortcut, Projection, ShiftedShortcut

ACTIVATIONS: dict[str, tuple[str, type[nn.Module]]] = {
    "relu": ("ReLU", nn.ReLU),
    "leaky_relu": ("LeakyReLU", nn.LeakyReLU),
    "silu": ("SiLU", nn.SiLU),
    "gelu": ("GELU", nn.GELU),
}
"""The name that a picture shows and the module, LeakyReLU with PyTorch's slope of 0.01."""


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of each position (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def describe(self) -> str:
        """What it is."""
        return "layer norm"

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """What the whole network decides for a block."""

    dropout: float = 0.0
    """Share of values dropped before the second convolution; pre-activation blocks only."""
    drop_path: float = 0.0
    """Share of images for which the residual branch is left out in training."""


class Block(nn.Module):
    """What all kinds of block share: the shortcut, the gate, and where the two branches meet.

    A kind makes the layers of its residual branch in `_convolutions`, and computes in `forward`, where `_sum`
    joins the branch and the shortcut. What else differs from what is here it overrides.

    Args:
        in_channels: channels coming in.
        stage: the stage it belongs to, its width that of this block.
        stride: of its first 3x3 convolution.
        options: what the whole network decides.
    """

    takes: ClassVar[Literal["activated", "normed", "raw"]] = "activated"
    """What it expects of the stem: norm and activation after the last convolution, a norm, or neither."""
    gives: ClassVar[Literal["finished", "sum", "unactivated", "unnormed"]] = "finished"
    """What the network has to add after the last: nothing, norm and activation, an activation, or a norm."""
    norm: ClassVar[type[nn.Module]] = BatchNorm2d
    """The kind of norm before the first and after the last."""
    wide_inside: ClassVar[bool] = False
    """Whether `expansion` widens the inside, and not what comes out."""
    drops: ClassVar[bool] = False
    """Whether it has a dropout."""
    sequences: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Parts of the residual branch in the order that they compute in, but for activations: see `shrink.places`."""

    def __init__(self, in_channels: int, stage: StageConfig, stride: int, options: BlockOptions):
        super().__init__()
        if stage.separable and stage.groups > 1:
            raise ConfigError(
                f"model.stages.groups is {stage.groups} in a separable stage, expected 1: a depthwise convolution has "
                "a group for each channel already"
            )
        self.stage, self.stride, self.options = stage, stride, options
        self.in_channels = in_channels
        self.out_channels = stage.width if self.wide_inside else stage.width * stage.expansion
        self.activation = ACTIVATIONS[stage.activation][1]()
        self._convolutions(in_channels, stage, stride)
        self.shortcut = self._shortcut() if self.projects else nn.Sequential()
        self.se_block = self._gate()  # older files know it by this name, whatever kind it is
        self.drop_path = StochasticDepth(options.drop_path) if options.drop_path else nn.Identity()

    @classmethod
    def side(cls, side: int, stride: int) -> int:
        """Side in pixels of what comes out, of images of so large a side.

        Raises:
            ConfigError: nothing would come out; the message goes on where it has been said what the images are.
        """
        return -(-side // stride)

    @property
    def projects(self) -> bool:
        """Whether the shortcut is more than the identity, as it must be where the shape changes."""
        return self.stride != 1 or self.in_channels != self.out_channels

    def describe(self) -> str:
        """The kind of block and its switches, separated by a comma and a space."""
        stage = self.stage
        parts = [stage.block, self._channels()]
        if self.stride != 1:
            parts.append(f"stride {self.stride}")
        if self.projects:
            parts.append(self._shortcut_name())
        if stage.groups > 1:
            parts.append(f"{stage.groups} groups")
        if stage.separable:
            parts.append("separable")
        if gate := describe_gate(stage):
            parts.append(gate)
        if self.options.drop_path:
            parts.append(f"left out {self.options.drop_path:.0%}")
        return ", ".join([*parts, ACTIVATIONS[stage.activation][0]])

    def _channels(self) -> str:
        """Channels inside the block, one after another, and what comes out."""
        return f"{self.stage.width}-{self.out_channels}"

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int) -> None:
        """Make the layers of the residual branch, as attributes; `out_channels` and `activation` are there."""
        raise NotImplementedError

    def _shortcut(self) -> nn.Module:
        """What takes the input to the shape of the output, where that is another."""
        return nn.Sequential(
            Projection(self.in_channels, self.out_channels, self.stride),
            BatchNorm2d(self.out_channels),
        )

    def _shortcut_name(self) -> str:
        """The same in words."""
        return "projection"

    def _gate(self) -> nn.Module | None:
        """The gate, where the stage has one; of the channels where it stands."""
        return make_gate(self.stage, self.out_channels)

    def _sum(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Both branches, (n, out_channels, h, w) each, gated and with stochastic depth, in one."""
        if self.se_block is not None and self.stage.se_place == "branch":
            branch = self.se_block(branch)
        out: Tensor = self.drop_path(branch) + shortcut
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


def _refuse_groups(stage: StageConfig) -> None:
    """An error where the stage asks for other spatial convolutions than depthwise ones."""
    if stage.groups > 1 or stage.separable:
        raise ConfigError(
            f"model.stages has groups {stage.groups}, separable {str(stage.separable).lower()} in {stage.block} "
            "blocks, whose spatial convolutions have a group for each channel already: leave both out"
        )


class BasicBlock(Block):
    """Two 3x3 convolutions, each with its norm (He et al. 2015, arXiv:1512.03385)."""

    sequences = (("conv1", "pointwise1", "bn1", "conv2", "pointwise2"),)

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int) -> None:
        self.conv1, self.pointwise1 = _conv3x3(in_channels, stage.width, stage, stride)
        self.bn1 = BatchNorm2d(stage.width)
        self.conv2, self.pointwise2 = _conv3x3(stage.width, self.out_channels, stage, 1)
        self.bn2 = BatchNorm2d(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        out = self.activation(self.bn1(self.pointwise1(self.conv1(x))))
        out = self.bn2(self.pointwise2(self.conv2(out)))
        joined: Tensor = self.activation(self._sum(out, self.shortcut(x)))
        return joined


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions, each with its norm (He et al. 2015, arXiv:1512.03385)."""

    sequences = (("conv1", "bn1", "conv2", "pointwise", "bn2", "conv3"),)

    def _channels(self) -> str:
        return f"{self.stage.width}-{self.stage.width}-{self.out_channels}"

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int) -> None:
        self.conv1 = nn.Conv2d(in_channels, stage.width, 1, bias=False)
        self.bn1 = BatchNorm2d(stage.width)
        self.conv2, self.pointwise = _conv3x3(stage.width, stage.width, stage, stride)
        self.bn2 = BatchNorm2d(stage.width)
        self.conv3 = nn.Conv2d(stage.width, self.out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.activation(self.bn2(self.pointwise(self.conv2(out))))
        out = self.bn3(self.conv3(out))
        joined: Tensor = self.activation(self._sum(out, self.shortcut(x)))
        return joined


class PreactBlock(Block):
    """Norm and activation before each of two 3x3 convolutions; the projection has no norm (arXiv:1603.05027)."""

    takes, gives = "raw", "sum"
    drops = True
    sequences = (("conv1", "pointwise1", "bn2", "conv2", "pointwise2"),)

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int) -> None:
        self.bn1 = BatchNorm2d(in_channels)
        self.conv1, self.pointwise1 = _conv3x3(in_channels, stage.width, stage, stride)
        self.bn2 = BatchNorm2d(stage.width)
        self.dropout = nn.Dropout(self.options.dropout) if self.options.dropout else nn.Identity()
        self.conv2, self.pointwise2 = _conv3x3(stage.width, self.out_channels, stage, 1)

    def _shortcut(self) -> nn.Module:
        return nn.Sequential(Projection(self.in_channels, self.out_channels, self.stride))

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        out = self.activation(self.bn1(x))
        shortcut = self.shortcut(out) if self.projects else x
        out = self.activation(self.bn2(self.pointwise1(self.conv1(out))))
        out = self.pointwise2(self.conv2(self.dropout(out)))
        return self._sum(out, shortcut)


class PyramidBlock(Block):
    """A pre-activation block without the first activation and with a norm at its end, over a padded shortcut.

    Han et al. 2017, arXiv:1610.02915, figure 6d.
    """

    takes, gives = "normed", "sum"
    sequences = (("conv1", "pointwise1", "bn2", "conv2", "pointwise2"),)

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int) -> None:
        if in_channels > self.out_channels:
            raise ConfigError(
                f"a pyramid block puts out {self.out_channels} channels where {in_channels} come in, expected as many "
                "or more: widen the stage"
            )
        self.bn1 = BatchNorm2d(in_channels)
        self.conv1, self.pointwise1 = _conv3x3(in_channels, stage.width, stage, stride)
        self.bn2 = BatchNorm2d(stage.width)
        self.conv2, self.pointwise2 = _conv3x3(stage.width, self.out_channels, stage, 1)
        self.bn3 = BatchNorm2d(self.out_channels)

    def _shortcut(self) -> nn.Module:
        return PaddedShortcut(self.in_channels, self.out_channels, self.stride)

    def _shortcut_name(self) -> str:
        return "zeros appended"

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        out = self.activation(self.bn2(self.pointwise1(self.conv1(self.bn1(x)))))
        out = self.bn3(self.pointwise2(self.conv2(out)))
        return self._sum(out, self.shortcut(x))


class ShakeBlock(Block):
    """Two branches of activation, 3x3 convolution and norm, twice, mixed by chance (`noise.shake`).

    Gastaldi 2017, arXiv:1705.07485.
    """

    takes, gives = "normed", "unactivated"
    sequences = tuple(tuple(f"{branch}.{i}" for i in (0, 1, 2, 4, 5)) for branch in ("branch1", "branch2"))

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int) -> None:
        self.branch1, self.branch2 = (
            nn.Sequential(
                *_conv3x3(in_channels, stage.width, stage, stride),
                BatchNorm2d(stage.width),
                self.activation,
                *_conv3x3(stage.width, self.out_channels, stage, 1),
                BatchNorm2d(self.out_channels),
            )
            for _ in range(2)
        )

    def _channels(self) -> str:
        return f"2 x {self.stage.width}-{self.out_channels}"

    def _shortcut(self) -> nn.Module:
        return ShiftedShortcut(self.in_channels, self.out_channels, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        active = self.activation(x)
        branch = shake(self.branch1(active), self.branch2(active), self.training)
        return self._sum(branch, self.shortcut(active) if self.projects else x)


class InvertedBlock(Block):
    """1x1 to `expansion` times the channels, depthwise 3x3, the gate, and 1x1 back without activation.

    The shortcut is the identity, and is left out where the shape changes; with an expansion of 1, so is the first
    convolution. Sandler et al. 2018, arXiv:1801.04381; the gate as in Howard et al. 2019, arXiv:1905.02244.
    """

    wide_inside = True
    sequences = (("expand.0", "expand.1", "conv2", "bn2", "se_block", "conv3"),)

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int) -> None:
        _refuse_groups(stage)
        if stage.se_place == "sum":
            raise ConfigError("model.stages.se_place is sum, but inverted blocks gate their branch: leave it out")
        hidden = self.hidden = in_channels * stage.expansion
        self.expand = nn.Sequential()
        if stage.expansion > 1:
            self.expand.extend([nn.Conv2d(in_channels, hidden, 1, bias=False), BatchNorm2d(hidden), self.activation])
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.bn2 = BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, self.out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(self.out_channels)

    def _channels(self) -> str:
        return f"{self.hidden}-{self.out_channels}"

    def _shortcut(self) -> nn.Module:
        return nn.Sequential()

    def _shortcut_name(self) -> str:
        return "no shortcut"

    def _gate(self) -> nn.Module | None:
        return make_gate(self.stage, self.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        out = self.activation(self.bn2(self.conv2(self.expand(x))))
        if self.se_block is not None:
            out = self.se_block(out)
        out = self.bn3(self.conv3(out))
        joined: Tensor = out if self.projects else self.drop_path(out) + x
        return joined


class ConvNextBlock(Block):
    """Depthwise 7x7, layer norm, 1x1 to `expansion` times the channels, activation, 1x1 back, a scale a channel.

    Where the shape changes, a layer norm and a convolution as large as its stride come before. Scales start at 0.1 and
    not at 1e-6, which suits deep networks trained for long (Touvron et al. 2021, arXiv:2103.17239, section 2). Liu et
    al. 2022, arXiv:2201.03545.
    """

    takes, gives = "normed", "unnormed"
    norm = ChannelNorm
    wide_inside = True
    sequences = (("conv2", "conv3"),)

    @classmethod
    def side(cls, side: int, stride: int) -> int:
        """See `Block`; pixels that are left over at an edge go."""
        if side < stride:
            raise ConfigError(
                f"{side} pixels are left before a stride of {stride} of ConvNeXt blocks: resize the images or choose "
                "another network"
            )
        return side // stride

    def _convolutions(self, in_channels: int, stage: StageConfig, stride: int) -> None:
        _refuse_groups(stage)
        width, hidden = self.out_channels, self.out_channels * stage.expansion
        self.conv1 = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, hidden, 1)
        self.conv3 = nn.Conv2d(hidden, width, 1)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def _channels(self) -> str:
        return f"{self.out_channels * self.stage.expansion}-{self.out_channels}"

    def _shortcut(self) -> nn.Module:
        return nn.Sequential(
            ChannelNorm(self.in_channels),
            nn.Conv2d(self.in_channels, self.out_channels, self.stride, stride=self.stride),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, h // stride, w // stride)."""
        x = self.shortcut(x)
        out = self.conv3(self.activation(self.conv2(self.norm1(self.conv1(x)))))
        return self._sum(out * self.scale[:, None, None], x)


BLOCKS: dict[str, type[Block]] = {
    "basic": BasicBlock,
    "bottleneck": BottleneckBlock,
    "preact": PreactBlock,
    "pyramid": PyramidBlock,
    "shake": ShakeBlock,
    "inverted": InvertedBlock,
    "convnext": ConvNextBlock,
}
"""By the name that a stage gives its kind."""
