"""Networks by their names, and the budget of parameters that they must fit.

A network is described by an architecture (no weights, cheap to rescale) and built from it. Counting uses PyTorch's
meta device, where a network has shapes and no memory, so that it takes milliseconds and no random numbers.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from budgetnet import memory
from budgetnet.config import ModelConfig
from budgetnet.errors import BudgetError, ConfigError
from budgetnet.models.blocks import BLOCKS, BlockOptions
from budgetnet.models.foreign import PREFIX, TimmArchitecture
from budgetnet.models.named import NETWORKS, wide_resnet
from budgetnet.models.residual import ResidualArchitecture
from budgetnet.models.shrink import reduce
from budgetnet.models.summary import Row, count_parameters, multiply_adds, summarize

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

_BYTES = 4  # of a parameter
_SMALLER = "choose a smaller network, or a smaller width"


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


def names() -> tuple[str, ...]:
    """Names that `build` knows: ours, the reference project's, the field's.

    Besides these it takes `wrn_D_K` for any depth D = 6n + 4 and widening factor K, `residual` for the stages of a
    configuration, and `timm:NAME` for a network of the package timm, where that is installed.
    """
    return tuple(NETWORKS)


def build(
    config: ModelConfig, num_classes: int, *, image_size: int = 32, budget: int | None = None, channels: int = 3
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
        ConfigError: no such network, one that cannot be built, or one that memory does not hold.
    """
    config = check_budget(config, num_classes, budget=budget, image_size=image_size, channels=channels)
    room = memory.available() if torch.get_default_device().type == "cpu" else None
    # Told before it is tried: the system would sooner end the process than refuse.
    if room is not None and (budget is None or _BYTES * budget > room):
        count = _count(config, num_classes, image_size, channels)
        if _BYTES * count > room:
            raise ConfigError(
                f"{config.name} has {count:,} trainable parameters, {_BYTES * count / 1e9:,.1f} GB, and "
                f"{room / 1e9:,.1f} GB of memory are free: {_SMALLER}"
            )
    return _network(config, num_classes, image_size, channels)


def check_budget(
    config: ModelConfig, num_classes: int, *, budget: int | None, image_size: int = 32, channels: int = 3
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
        widest = largest_width(config, num_classes, budget=budget, image_size=image_size, channels=channels)
        if widest is None:
            raise BudgetError(f"{config.name}: {_nothing_fits(config, num_classes, budget, image_size, channels)}")
        return replace(config, width=widest)
    count = _count(config, num_classes, image_size, channels)
    if budget is None or count <= budget:
        return config
    raise BudgetError(
        f"{config.name} has {count:,} trainable parameters, {count - budget:,} over the budget of {budget:,}; "
        + _what_fits(config, num_classes, budget, image_size, channels)
    )


def largest_width(
    config: ModelConfig, num_classes: int, *, budget: int, image_size: int = 32, channels: int = 3
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

    def fits(width: int) -> bool:
        return _count(replace(config, width=width), num_classes, image_size, channels) <= budget

    # More width never means fewer parameters, so double until it is too wide, then bisect.
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return _architecture(replace(config, width=low)).width if low else None


@torch.no_grad()
def kaiming_(network: nn.Module) -> None:
    """Initialise in place as the reference project does; frozen parameters stay as they are.

    Convolutions: normal, variance 2 / fan-out (He et al. 2015, arXiv:1502.01852). Batch norms: weight 1.
    Linear layers: normal, standard deviation 1e-3. Biases of all these: 0. What else a network has stays as it is.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            continue
        if module.weight.requires_grad:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
            else:
                nn.init.normal_(module.weight, std=1e-3)
        if module.bias is not None and module.bias.requires_grad:
            nn.init.zeros_(module.bias)


def _network(config: ModelConfig, num_classes: int, image_size: int, channels: int) -> nn.Module:
    """What the configuration describes, freshly initialised, whatever the budget."""
    architecture = _architecture(config)
    if num_classes < 2:
        raise ConfigError(f"the number of classes is {num_classes}, expected 2 or more: there is nothing to tell apart")
    try:
        network = architecture.network(num_classes, image_size, channels)
    except (RuntimeError, TypeError) as error:
        # Of sizes that no 64 bits hold, where only shapes are asked for, or of memory.
        if not (memory.is_out_of_memory(error) or "overflow" in str(error).lower()):
            raise
        raise ConfigError(f"{config.name} is too large to be built: {_SMALLER}") from error
    reduce(network, config.channels, config.ranks)
    return network


def _architecture(config: ModelConfig) -> _Architecture:
    """What the configuration describes, at its width (its own where that is null), before anything is taken out."""
    name = config.name
    wide = re.fullmatch(r"wrn[-_](\d+)[-_](\d+)", name)
    architecture: _Architecture
    if name == "residual":
        stages = tuple(config.stages or ())
        architecture = ResidualArchitecture(stages=stages, stem=config.stem, stem_width=stages[0].width)
    elif wide:
        depth, factor = int(wide[1]), int(wide[2])
        if depth < 10 or depth % 6 != 4 or factor < 1:
            raise ConfigError(
                f"model.name is {name!r}, expected wrn_D_K with D = 6n + 4 (10, 16, 22, 28, 34, 40, ...) and K >= 1"
            )
        architecture = wide_resnet(depth, factor)
    elif name.startswith(PREFIX):
        architecture = TimmArchitecture(name.removeprefix(PREFIX))
    elif name in NETWORKS:
        architecture = NETWORKS[name]
    else:
        near = difflib.get_close_matches(name, [*NETWORKS, "residual"], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "`budgetnet models` lists those that are"
        raise ConfigError(f"model.name: {name} is not a network ({hint})")
    architecture = _with_options(architecture, config)
    return architecture.scaled(config.width) if isinstance(config.width, int) else architecture


def _with_options(architecture: _Architecture, config: ModelConfig) -> _Architecture:
    """The architecture with the options of the configuration that concern all blocks; what it lacks is refused."""
    stages = architecture.stages if isinstance(architecture, ResidualArchitecture) else ()
    kinds = {BLOCKS[stage.block] for stage in stages}
    if config.dropout and not any(kind.drops for kind in kinds):
        raise ConfigError(
            f"model.dropout is {config.dropout:g}, but {config.name} has none: only pre-activation blocks do"
        )
    if config.drop_path and not stages:
        raise ConfigError(
            f"model.drop_path is {config.drop_path:g}, but {config.name} has no residual blocks: leave it out"
        )
    if not isinstance(architecture, ResidualArchitecture):
        return architecture
    options = BlockOptions(dropout=config.dropout, drop_path=config.drop_path)
    return replace(architecture, options=options)


def _count(config: ModelConfig, num_classes: int, image_size: int, channels: int) -> int:
    with torch.device("meta"):
        return count_parameters(_network(config, num_classes, image_size, channels))


def _what_fits(config: ModelConfig, num_classes: int, budget: int, image_size: int, channels: int) -> str:
    """What to do about a network that is over the budget."""
    if config.name.startswith(PREFIX) or config.channels is not None or config.ranks is not None:  # of one size
        return "raise the budget or choose another network"
    widest = largest_width(config, num_classes, budget=budget, image_size=image_size, channels=channels)
    if widest is None:
        return _nothing_fits(config, num_classes, budget, image_size, channels)
    fitting = _count(replace(config, width=widest), num_classes, image_size, channels)
    return f"the widest that fits is width {widest} ({fitting:,})"


def _nothing_fits(config: ModelConfig, num_classes: int, budget: int, image_size: int, channels: int) -> str:
    narrowest = replace(config, width=1)
    count = _count(narrowest, num_classes, image_size, channels)
    return (
        f"not even width {_architecture(narrowest).width} fits ({count:,} trainable parameters, the budget is "
        f"{budget:,}): raise the budget or choose another network"
    )
