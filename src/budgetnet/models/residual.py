"""Residual networks: one description of stages, and the network it describes. The blocks are in `blocks`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from budgetnet.config import StageConfig
from budgetnet.errors import ConfigError
from budgetnet.models.blocks import ACTIVATIONS, BLOCKS, Block, BlockOptions
from budgetnet.models.norms import BatchNorm2d


@dataclass(frozen=True, kw_only=True)
class ResidualArchitecture:
    """A residual network, described: a stem, stages of blocks, the mean over positions, one linear layer.

    The stem ends, and the last stage is followed by, what the blocks there expect (`Block.takes` and `Block.gives`).
    """

    stages: tuple[StageConfig, ...]
    """The stages in order."""
    stem: int = 1
    """Number of convolutions before the first stage; with ReLU, whatever the stages have."""
    stem_width: int
    """Channels of the stem."""
    stem_kernel: int = 3
    """Side of its convolutions, odd."""
    bare: bool = False
    """Leave out the norm and activation that would follow the last stage."""
    head_width: int = 0
    """Channels of a 1x1 convolution, with norm and activation, after the last stage; 0 is none."""
    options: BlockOptions = field(default_factory=BlockOptions)
    """What the blocks are told; `drop_path` is that of the last, and rises to it from block to block."""

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
        first = max(1, _nearest(width, 1, multiple)) * multiple

        def scale(old: int) -> int:
            return max(1, _nearest(old * first, self.width, multiple)) * multiple

        def scaled_stage(stage: StageConfig) -> StageConfig:
            # Its last width as that of a stage, so that one that begins with it still does.
            widen = scale(stage.width + stage.widen) - scale(stage.width) if stage.widen else 0
            return replace(stage, width=scale(stage.width), widen=widen)

        return replace(
            self,
            stages=tuple(map(scaled_stage, self.stages)),
            stem_width=scale(self.stem_width),
            head_width=scale(self.head_width) if self.head_width else 0,
        )

    def network(self, num_classes: int, image_size: int, channels: int) -> ResidualNetwork:
        """The network, freshly initialised, on the current default device.

        Raises:
            ConfigError: switches of a stage that do not go together, or with what comes in; images of which nothing
                comes out of some block.
        """
        side = image_size
        for stage in self.stages:
            try:
                side = BLOCKS[stage.block].side(side, stage.stride)
            except ConfigError as error:
                raise ConfigError(f"image_size is {image_size}, of which {error}") from error
        return ResidualNetwork(self, num_classes, channels)


def _nearest(numerator: int, denominator: int, multiple: int) -> int:
    """How many times `multiple` is nearest to a fraction, halves up."""
    step = denominator * multiple
    return (2 * numerator + step) // (2 * step)


def _blocks_of(stage: StageConfig) -> list[StageConfig]:
    """The stage for each of its blocks, with the width of that block."""
    steps = (_nearest(stage.widen * i, stage.depth, stage.groups) for i in range(1, stage.depth + 1))
    return [replace(stage, width=stage.width + stage.groups * step) for step in steps]


class ResidualNetwork(nn.Module):
    """The network that a ResidualArchitecture describes.

    Its modules are `conv1`, `bn1` (and `conv2`, `bn2` in a stem of two), `layer1`, `layer2`, ..., `bn` (or `norm`, a
    layer norm) where the last stage is followed by one, `head` where there is one, and `linear`.
    """

    sequences = (("conv1", "bn1", "conv2"), ("head.0", "head.1", "linear"))

    def __init__(self, architecture: ResidualArchitecture, num_classes: int, channels: int):
        super().__init__()
        self.relu = nn.ReLU()
        self._path: list[str] = []  # names of the modules that compute before the mean, in this order
        # Each takes the channels that come in, and gives those that come out.
        channels = self._add_stem(architecture, channels)
        channels = self._add_stages(architecture, channels)
        channels = self._add_end(architecture, channels)
        self.linear = nn.Linear(channels, num_classes)

    def _add(self, name: str, module: nn.Module) -> None:
        self.add_module(name, module)
        self._path.append(name)

    def _add_stem(self, architecture: ResidualArchitecture, channels: int) -> int:
        """Convolutions, each with norm and activation, but that the last ends as the first block takes it."""
        first = BLOCKS[architecture.stages[0].block]
        width, kernel = architecture.stem_width, architecture.stem_kernel
        for i in range(1, architecture.stem + 1):
            inner = i < architecture.stem
            norm = BatchNorm2d if inner else first.norm
            bias = norm is not BatchNorm2d
            self._add(f"conv{i}", nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=bias))
            if inner or first.takes != "raw":
                self._add(f"bn{i}", norm(width))
            if inner or first.takes == "activated":
                self._path.append("relu")
            channels = width
        return channels

    def _add_stages(self, architecture: ResidualArchitecture, channels: int) -> int:
        """The blocks, a sequence for each stage, whose first one has the stride."""
        options, stages = architecture.options, architecture.stages
        count, total = 0, sum(stage.depth for stage in stages)
        for i, stage in enumerate(stages, start=1):
            blocks: list[Block] = []
            for own in _blocks_of(stage):
                count += 1
                # The linear rule of Huang et al. 2016 (arXiv:1603.09382): early features are used by all that follows.
                drop_path = options.drop_path * count / total
                stride = 1 if blocks else stage.stride
                blocks.append(BLOCKS[stage.block](channels, own, stride, replace(options, drop_path=drop_path)))
                channels = blocks[-1].out_channels
            self._add(f"layer{i}", nn.Sequential(*blocks))
        return channels

    def _add_end(self, architecture: ResidualArchitecture, channels: int) -> int:
        """What the last block gives to be done, and the head."""
        last = BLOCKS[architecture.stages[-1].block]
        activation = ACTIVATIONS[architecture.stages[-1].activation][1]
        if not architecture.bare:
            if last.gives == "sum":
                self._add("bn", BatchNorm2d(channels))
            if last.gives == "unnormed":
                self._add("norm", last.norm(channels))
            if last.gives in ("sum", "unactivated"):
                self._add("activation", activation())
        if head := architecture.head_width:
            conv = nn.Conv2d(channels, head, 1, bias=False)
            self._add("head", nn.Sequential(conv, BatchNorm2d(head), activation()))
            channels = head
        return channels

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) float to logits (n, num_classes)."""
        for name in self._path:
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
