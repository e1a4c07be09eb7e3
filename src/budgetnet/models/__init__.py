"""The registry of networks, and the budget of parameters that they must fit.

A network is described by an architecture (no weights, cheap to rescale) and built from it. Counting uses PyTorch's
meta device, where a network has shapes and no memory, so that it takes milliseconds and no random numbers.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from budgetnet.config import ModelConfig, StageConfig
from budgetnet.errors import BudgetError, ConfigError
from budgetnet.models.blocks import BLOCKS, BlockOptions, ZeroNorm
from budgetnet.models.foreign import PREFIX, TimmArchitecture
from budgetnet.models.residual import ResidualArchitecture, uniform
from budgetnet.models.shrink import reduce
from budgetnet.models.summary import Row, count_parameters, multiply_adds, summarize
from budgetnet.models.whitened import WhitenedArchitecture

__all__ = [
    "Initializable",
    "Row",
    "build",
    "check_budget",
    "count_parameters",
    "kaiming_",
    "largest_width",
    "multiply_adds",
    "names",
    "summarize",
]


@runtime_checkable
class Initializable(Protocol):
    """A network that wants to see training images before it is trained."""

    def initialize(self, images: Tensor) -> None:
        """Set weights from images: (n, channels, h, w) float, normalised, not augmented; some thousands are enough."""


class _Architecture(Protocol):
    @property
    def width(self) -> int: ...
    def scaled(self, width: int) -> _Architecture: ...
    def network(self, num_classes: int, image_size: int, channels: int) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class _ReducedArchitecture:
    """Another network, made smaller: see `shrink.reduce`."""

    whole: _Architecture
    channels: list[int] | None
    ranks: list[int] | None

    @property
    def width(self) -> int:
        return self.whole.width

    def scaled(self, width: int) -> _ReducedArchitecture:
        return replace(self, whole=self.whole.scaled(width))

    def network(self, num_classes: int, image_size: int, channels: int) -> nn.Module:
        network = self.whole.network(num_classes, image_size, channels)
        reduce(network, self.channels, self.ranks)
        return network


def _enhanced() -> ResidualArchitecture:
    """The reference project's idea done right: under 5,000,000 parameters with 10 classes and with 100.

    Bottlenecks [2, 4, 6, 2] of width 32 after a stem of two convolutions, LeakyReLU in stages 3 and 4, and
    squeeze-and-excitation on the residual branch (Hu et al. 2018, arXiv:1709.01507) in stages 1 to 3: with 100
    classes some 134,000 parameters are left for it, a gate in stage 4 costs most and, by their section 6.4, brings
    least; reduction 32 instead of 16 is what fits.
    """
    relu, leaky = "relu", "leaky_relu"
    stages = uniform(
        "bottleneck", (2, 4, 6, 2), 32, expansion=4, activation=(relu, relu, leaky, leaky), se=(32, 32, 32, 0)
    )
    return ResidualArchitecture(stages=stages, stem=2, stem_width=32)


def _reference(
    depths: tuple[int, int, int, int] = (2, 4, 6, 2),
    stem: int = 2,
    leaky: tuple[int, ...] = (),
    se: tuple[int, ...] = (),
    separable: tuple[int, ...] = (),
) -> ResidualArchitecture:
    """A bottleneck network of the reference project, its switches given by the stages (from 1) that have them."""
    stages = uniform(
        "bottleneck",
        depths,
        32,
        expansion=4,
        activation=tuple("leaky_relu" if i in leaky else "relu" for i in range(1, 5)),
        se=tuple(16 if i in se else 0 for i in range(1, 5)),
        se_place=("sum",) * 4,
        separable=tuple(i in separable for i in range(1, 5)),
    )
    return ResidualArchitecture(stages=stages, stem=stem, stem_width=32)


def _resnet(block: str, depths: tuple[int, ...], expansion: int = 1, se: int = 0) -> ResidualArchitecture:
    """He et al. 2015 (arXiv:1512.03385) for small images: one 3x3 convolution before the stages, no pooling.

    With pre-activation blocks (He et al. 2016, arXiv:1603.05027) as pytorch-cifar has it, with nothing at the end.
    """
    stages = uniform(block, depths, 64, expansion, se=(se,) * len(depths))
    return ResidualArchitecture(stages=stages, stem_width=64, bare=True)


def _resnext(depth: int, groups: int, group_width: int, stem_kernel: int = 3) -> ResidualArchitecture:
    """Xie et al. 2017 (arXiv:1611.05431), section 5.3: depth 9n + 2, stages that put out 256, 512 and 1024.

    pytorch-cifar has a 1x1 stem.
    """
    width = groups * group_width
    stages = uniform("bottleneck", ((depth - 2) // 9,) * 3, width, 256 // width, groups=(groups,) * 3)
    return ResidualArchitecture(stages=stages, stem_width=64, stem_kernel=stem_kernel)


def _pyramid(depth: int, added: int) -> ResidualArchitecture:
    """Han et al. 2017 (arXiv:1610.02915): depth 6n + 2, from 16 channels to 16 + `added`, a multiple of 3."""
    stages = tuple(
        StageConfig(
            block="pyramid",
            depth=(depth - 2) // 6,
            width=16 + added // 3 * i,
            widen=added // 3,
            stride=1 if i == 0 else 2,
        )
        for i in range(3)
    )
    return ResidualArchitecture(stages=stages, stem_width=16)


def _shake_shake(depth: int, width: int) -> ResidualArchitecture:
    """Gastaldi 2017 (arXiv:1705.07485): depth 6n + 2, two branches `width` wide."""
    return ResidualArchitecture(stages=uniform("shake", ((depth - 2) // 6,) * 3, width), stem_width=16)


def _mobilenet_v2() -> ResidualArchitecture:
    """Sandler et al. 2018 (arXiv:1801.04381), with ReLU, and strides for small images as pytorch-cifar has them."""
    table = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    stages = tuple(
        StageConfig(block="inverted", expansion=expansion, width=width, depth=depth, stride=stride)
        for expansion, width, depth, stride in table
    )
    return ResidualArchitecture(stages=stages, stem_width=32, head_width=1280)


def _convnext(depths: tuple[int, ...], width: int) -> ResidualArchitecture:
    """Liu et al. 2022 (arXiv:2201.03545) for small images: a 3x3 stem without stride instead of 4x4 patches.

    The last layer norm comes before the mean over positions, not after it.
    """
    stages = uniform("convnext", depths, width, 4, activation=("gelu",) * len(depths))
    return ResidualArchitecture(stages=stages, stem_width=width)


def _wide(depth: int, factor: int) -> ResidualArchitecture:
    """Zagoruyko and Komodakis 2016 (arXiv:1605.07146): depth 6n + 4, stages `factor` times 16, 32 and 64 wide."""
    stages = uniform("preact", ((depth - 4) // 6,) * 3, 16 * factor)
    return ResidualArchitecture(stages=stages, stem_width=16)


_REGISTRY: dict[str, _Architecture] = {
    "enhanced": _enhanced(),
    "whitened_cnn": WhitenedArchitecture(widths=(64, 256, 256)),
    "whitened_cnn_large": WhitenedArchitecture(widths=(128, 288, 320), convolutions=3),
    "resnet_bottleneck": _reference(stem=1),
    "resnet_leaky": _reference(leaky=(3, 4)),
    "resnet_se": _reference(se=(3, 4)),
    "resnet_grouped": _reference((3, 4, 6, 3), separable=(3, 4)),
    "resnet_custom": _reference((2, 4, 5, 2), leaky=(3, 4), se=(4,), separable=(1, 2)),
    "resnet18": _resnet("basic", (2, 2, 2, 2)),
    "resnet34": _resnet("basic", (3, 4, 6, 3)),
    "resnet50": _resnet("bottleneck", (3, 4, 6, 3), expansion=4),
    "resnet101": _resnet("bottleneck", (3, 4, 23, 3), expansion=4),
    "preact_resnet18": _resnet("preact", (2, 2, 2, 2)),
    "se_resnet18": _resnet("basic", (2, 2, 2, 2), se=16),
    "resnext29_32x4d": _resnext(29, 32, 4, stem_kernel=1),
    "resnext29_2x64d": _resnext(29, 2, 64, stem_kernel=1),
    "resnext20_4x32d": _resnext(20, 4, 32),
    "resnext56_16x4d": _resnext(56, 16, 4),
    "wrn_16_4": _wide(16, 4),
    "wrn_28_10": _wide(28, 10),
    "wrn_40_2": _wide(40, 2),
    "preact_resnet20_4": ResidualArchitecture(stages=uniform("preact", (3, 3, 3), 64), stem_width=64),
    "pyramidnet110_84": _pyramid(110, 84),
    "shake_shake26_2x32d": _shake_shake(26, 32),
    "mobilenet_v2": _mobilenet_v2(),
    "convnext_atto": _convnext((2, 2, 6, 2), 40),
}


def names() -> tuple[str, ...]:
    """Names that `build` knows: ours, the reference project's, the field's.

    Besides these it takes `wrn_D_K` for any depth D = 6n + 4 and widening factor K, `residual` for the stages of a
    configuration, and `timm:NAME` for a network of the package timm, where that is installed.
    """
    return tuple(_REGISTRY)


def build(
    config: ModelConfig, num_classes: int, image_size: int = 32, budget: int | None = None, channels: int = 3
) -> nn.Module:
    """The network that a configuration asks for, freshly initialised, after checking that it fits the budget.

    It maps images, (n, channels, h, w) float and normalised, to logits (n, num_classes). Which weights it starts
    from is decided by torch's generator alone. Under `with torch.device("meta")` it has shapes and no weights.

    Args:
        config: the name, the width and the rest.
        num_classes: number of classes, 2 or more.
        image_size: side of the images in pixels.
        budget: largest number of trainable parameters; None is no limit.
        channels: channels of the images.

    Raises:
        BudgetError: it has more trainable parameters than `budget`.
        ConfigError: no such network, or one that cannot be built.
    """
    config = check_budget(config, num_classes, budget, image_size=image_size, channels=channels)
    return _architecture(config).network(num_classes, image_size, channels)


def check_budget(
    config: ModelConfig, num_classes: int, budget: int | None, image_size: int = 32, channels: int = 3
) -> ModelConfig:
    """The configuration with `width: auto` replaced by the largest width that fits; others are checked and returned.

    Args:
        config: the name, the width and the rest.
        num_classes: number of classes, 2 or more.
        budget: largest number of trainable parameters; None is no limit.
        image_size: side of the images in pixels.
        channels: channels of the images.

    Raises:
        BudgetError: it has more trainable parameters than `budget`, or with `width: auto`, no width fits.
        ConfigError: no such network, one that cannot be built, or `width: auto` without a budget.
    """
    if config.width == "auto":
        if budget is None:
            raise ConfigError("model.width is auto and budget is null: give the budget that the width shall fill")
        widest = largest_width(config, num_classes, budget, image_size=image_size, channels=channels)
        if widest is None:
            raise BudgetError(f"{config.name}: {_nothing_fits(config, num_classes, budget, image_size, channels)}")
        return replace(config, width=widest)
    architecture = _architecture(config)
    count = _count(architecture, num_classes, image_size, channels)
    if budget is None or count <= budget:
        return config
    one_size = isinstance(architecture, TimmArchitecture | _ReducedArchitecture)
    widest = None if one_size else largest_width(config, num_classes, budget, image_size, channels)
    if one_size:
        advice = "raise the budget or choose another network"
    elif widest is None:
        advice = _nothing_fits(config, num_classes, budget, image_size, channels)
    else:
        fitting = _count(_architecture(replace(config, width=widest)), num_classes, image_size, channels)
        advice = f"the widest that fits is width {widest} ({fitting:,})"
    raise BudgetError(
        f"{config.name} has {count:,} trainable parameters, {count - budget:,} over the budget of {budget:,}; {advice}"
    )


def largest_width(
    config: ModelConfig, num_classes: int, budget: int, image_size: int = 32, channels: int = 3
) -> int | None:
    """The largest width of the first stage with which the network fits the budget, or None where none does.

    Args:
        config: the network; its own width plays no part.
        num_classes: number of classes, 2 or more.
        budget: largest number of trainable parameters.
        image_size: side of the images in pixels.
        channels: channels of the images.

    Raises:
        ConfigError: no such network, or one that cannot be built.
    """
    architecture = _architecture(replace(config, width=None))

    def fits(width: int) -> bool:
        return _count(architecture.scaled(width), num_classes, image_size, channels) <= budget

    # More width never means fewer parameters, so double until it is too wide, then bisect.
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return architecture.scaled(low).width if low else None


@torch.no_grad()
def kaiming_(network: nn.Module) -> None:
    """Initialise in place as the reference project does; frozen parameters stay as they are.

    Convolutions: normal, variance 2 / fan-out (He et al. 2015, arXiv:1502.01852). Batch norms: weight 1, or 0 where
    `model.zero_init` says so. Linear layers: normal, standard deviation 1e-3. Biases of all these: 0. What else a
    network has stays as it is.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            continue
        if module.weight.requires_grad:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.0 if isinstance(module, ZeroNorm) else 1.0)
            else:
                nn.init.normal_(module.weight, std=1e-3)
        if module.bias is not None and module.bias.requires_grad:
            nn.init.zeros_(module.bias)


def _architecture(config: ModelConfig) -> _Architecture:
    """What the configuration describes, at its width (its own where that is null)."""
    name = config.name
    wide = re.fullmatch(r"wrn[-_](\d+)[-_](\d+)", name)
    architecture: _Architecture
    if name == "residual":
        architecture = _described(config)
    elif wide:
        depth, factor = int(wide[1]), int(wide[2])
        if depth < 10 or depth % 6 != 4 or factor < 1:
            raise ConfigError(
                f"model.name is {name!r}, expected wrn_D_K with D = 6n + 4 (10, 16, 22, 28, 34, 40, ...) and K >= 1"
            )
        architecture = _wide(depth, factor)
    elif name.startswith(PREFIX):
        architecture = TimmArchitecture(name.removeprefix(PREFIX))
    elif name in _REGISTRY:
        architecture = _REGISTRY[name]
    else:
        near = difflib.get_close_matches(name, [*_REGISTRY, "residual"], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "`budgetnet models` lists those that are"
        raise ConfigError(f"model.name: {name} is not a network ({hint})")
    architecture = _with_options(architecture, config)
    if isinstance(config.width, int):
        architecture = architecture.scaled(config.width)
    if config.channels is None and config.ranks is None:
        return architecture
    return _ReducedArchitecture(whole=architecture, channels=config.channels, ranks=config.ranks)


def _with_options(architecture: _Architecture, config: ModelConfig) -> _Architecture:
    """The architecture with the options of the configuration that concern all blocks; what it lacks is refused."""
    stages = architecture.stages if isinstance(architecture, ResidualArchitecture) else ()
    kinds = {stage.block for stage in stages}
    if config.dropout and "preact" not in kinds:
        raise ConfigError(
            f"model.dropout is {config.dropout:g}, but {config.name} has none: only pre-activation blocks do"
        )
    if config.drop_path and not stages:
        raise ConfigError(
            f"model.drop_path is {config.drop_path:g}, but {config.name} has no residual blocks: leave it out"
        )
    if config.zero_init and not any(BLOCKS[kind].ends_in_norm for kind in kinds):
        raise ConfigError(f"model.zero_init is true, but no block of {config.name} ends in a batch norm: leave it out")
    if not isinstance(architecture, ResidualArchitecture):
        return architecture
    options = BlockOptions(dropout=config.dropout, drop_path=config.drop_path, zero_init=config.zero_init)
    return replace(architecture, options=options)


def _described(config: ModelConfig) -> ResidualArchitecture:
    stages: tuple[StageConfig, ...] = tuple(config.stages or ())
    if not stages:
        raise ConfigError("model.name is residual and model.stages is not given: list the stages")
    return ResidualArchitecture(stages=stages, stem=config.stem, stem_width=stages[0].width)


def _count(architecture: _Architecture, num_classes: int, image_size: int, channels: int) -> int:
    if num_classes < 2:
        raise ConfigError(f"the number of classes is {num_classes}, expected 2 or more: there is nothing to tell apart")
    with torch.device("meta"):
        return count_parameters(architecture.network(num_classes, image_size, channels))


def _nothing_fits(config: ModelConfig, num_classes: int, budget: int, image_size: int, channels: int) -> str:
    narrowest = _architecture(replace(config, width=1))
    count = _count(narrowest, num_classes, image_size, channels)
    return (
        f"not even width {narrowest.width} fits ({count:,} trainable parameters, the budget is {budget:,}): "
        "raise the budget or choose another network"
    )
