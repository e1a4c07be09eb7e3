"""Networks made smaller after training: channels taken out, and convolutions of lower rank.

Two lists of numbers say what is left of a network, `model.channels` and `model.ranks` of its configuration, so that a
smaller one is built, saved and loaded like any other. From a trained network `reduce` keeps the channels that matter
most and the best approximation of each convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from budgetnet.errors import ConfigError

_MULTIPLE = 8  # of channels that are kept, where there were so many: vector units compute eight or sixteen at a time


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where channels may go: made by one layer, read by one, and treated each alone by whatever is between."""

    producer: str
    """The convolution that makes them, by its name in the network."""
    between: tuple[str, ...]
    """Norms and depthwise convolutions."""
    consumer: str
    """The convolution or linear layer that reads them."""


class Factored(nn.Sequential):
    """A convolution through few channels: one of `rank` outputs and the same kernel, and a 1x1 to all of them.

    Jaderberg, Vedaldi and Zisserman 2014, arXiv:1405.3866; this split is that of Zhang et al. 2015, arXiv:1505.06798.

    Args:
        conv: whose shapes it takes, groups of 1; freshly initialised all the same: see `approximate`.
        rank: 1 to the smaller of the outputs of `conv` and the inputs of one of them.
    """

    def __init__(self, conv: nn.Conv2d, rank: int):
        kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
        super().__init__(
            nn.Conv2d(conv.in_channels, rank, kernel, stride, padding, bias=False),  # type: ignore[arg-type]
            nn.Conv2d(rank, conv.out_channels, 1, bias=conv.bias is not None),
        )

    @property
    def halves(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """To few channels, and from them to all."""
        return cast("tuple[nn.Conv2d, nn.Conv2d]", tuple(self))

    def describe(self) -> str:
        """What it is."""
        first, second = self.halves
        side = "x".join(map(str, first.kernel_size))
        return f"conv {side} and 1x1, {first.in_channels}-{first.out_channels}-{second.out_channels}"

    @torch.no_grad()
    def approximate(self, conv: nn.Conv2d) -> None:
        """Take the weights of the best approximation of `conv`, in the sum of squared differences.

        That is the truncated singular value decomposition of its filters, a row each (Eckart and Young 1936); both
        halves get the root of the singular values.
        """
        u, values, v = torch.linalg.svd(conv.weight.flatten(1).double(), full_matrices=False)
        first, second = self.halves
        rank, roots = first.out_channels, values.sqrt()
        first.weight.copy_((roots[:rank, None] * v[:rank]).view(first.weight.shape))
        second.weight.copy_((u[:, :rank] * roots[:rank]).view(second.weight.shape))
        if conv.bias is not None and second.bias is not None:
            second.bias.copy_(conv.bias)


def places(network: nn.Module) -> list[Place]:
    """Where channels may be taken out, in the order of the network; none where its modules do not say.

    Modules say by `sequences`: names of parts that follow each other with nothing between that mixes channels.
    Channels on a residual stream have no such place, nor those before a grouped convolution or a gate.
    """
    found: list[Place] = []
    for name, module in network.named_modules():
        for sequence in getattr(module, "sequences", ()):
            found += _places_in(network, [f"{name}.{part}" if name else part for part in sequence])
    return found


def _places_in(network: nn.Module, names: Sequence[str]) -> list[Place]:
    found: list[Place] = []
    producer, between = "", list[str]()
    for name in names:
        try:
            module = network.get_submodule(name)
        except AttributeError:  # a part that this one has not, such as a gate
            continue
        if isinstance(module, nn.Identity):
            continue
        if isinstance(module, nn.BatchNorm2d) or _is_depthwise(module):
            between.append(name)
            continue
        dense = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if dense and producer:
            found.append(Place(producer=producer, between=tuple(between), consumer=name))
        producer, between = name if dense else "", []
    return found


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def convolutions(network: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """What may be factored: trained convolutions of one group, with their names, in the order of the network."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if type(module) is nn.Conv2d and module.groups == 1 and module.weight.requires_grad
    ]


def is_factored(network: nn.Module) -> bool:
    """Whether some convolution is factored already."""
    return any(isinstance(module, Factored) for module in network.modules())


def fewer_channels(network: nn.Module, sparsity: float) -> list[int]:
    """How many channels are left at each of its places when a share of them goes.

    Args:
        network: on any device.
        sparsity: the share, in [0, 1); what is left is rounded to a multiple of 8 where there are 16 or more.
    """
    return [_kept(_channels(network, place), sparsity) for place in places(network)]


def _kept(channels: int, sparsity: float) -> int:
    multiple = _MULTIPLE if channels % _MULTIPLE == 0 and channels >= 2 * _MULTIPLE else 1
    # Two, as a depthwise convolution of a single channel is none.
    return min(channels, max(multiple, 2, int((1 - sparsity) * channels / multiple + 0.5) * multiple))


def lower_ranks(network: nn.Module, share: float) -> list[int]:
    """The rank of each of its convolutions as a share of the full one; 0, for whole, where that would save nothing.

    Args:
        network: on any device.
        share: in (0, 1].
    """
    found = []
    for _, conv in convolutions(network):
        outputs, inputs = len(conv.weight), conv.weight[0].numel()
        rank = max(1, int(share * min(outputs, inputs) + 0.5))
        found.append(rank if rank * (outputs + inputs) < outputs * inputs else 0)
    return found


def reduce(
    network: nn.Module, channels: Sequence[int] | None, ranks: Sequence[int] | None, *, trained: bool = False
) -> None:
    """Make a network smaller in place: first its channels, then its ranks.

    Args:
        network: the whole one.
        channels: what is left at each of `places`; None is all.
        ranks: of each of `convolutions`, 0 for those that stay whole; None is all.
        trained: keep the channels of most `importance` and the best approximations; else any, and fresh weights.

    Raises:
        ConfigError: there are not as many places or convolutions, or they are smaller already.
    """
    if channels is not None:
        found = places(network)
        _require_as_many("channels", channels, [place.producer for place in found], "places to take channels from")
        have = [_channels(network, place) for place in found]
        for place, count, most in zip(found, channels, have, strict=True):
            if count > most:
                raise ConfigError(
                    f"model.channels has {count} for {place.producer}, which has {most}: give at most that"
                )
        # All are weighed before the first goes.
        scores = [importance(network, place) if trained else None for place in found]
        for place, count, score in zip(found, channels, scores, strict=True):
            kept = torch.arange(count) if score is None else score.topk(count).indices.sort().values
            keep_channels(network, place, kept)
        for place, count, most in zip(found, channels, have, strict=True):
            if count < most:
                _note(network, place.producer, f"{count} of {most} channels")
    if ranks is not None:
        layers = convolutions(network)
        _require_as_many("ranks", ranks, [name for name, _ in layers], "convolutions that can be factored")
        for (name, conv), rank in zip(layers, ranks, strict=True):
            if not rank:
                continue
            if rank > (full := min(len(conv.weight), conv.weight[0].numel())):
                raise ConfigError(f"model.ranks has {rank} for {name}, whose full rank is {full}: give at most that")
            factored = Factored(conv, rank)
            if trained:
                factored.approximate(conv)
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, factored)
            _note(network, name, f"rank {rank} of {full}")


def _note(network: nn.Module, name: str, text: str) -> None:
    """Have the block that a layer is in say, where it is described, what became of that layer."""
    parent = name.rpartition(".")[0]
    while parent:
        module: Any = network.get_submodule(parent)
        if hasattr(module, "describe"):
            module.reduced = [*getattr(module, "reduced", ()), f"{name[len(parent) + 1 :]} {text}"]
            return
        parent = parent.rpartition(".")[0]


def _require_as_many(option: str, numbers: Sequence[int], names: Sequence[str], what: str) -> None:
    if len(numbers) != len(names):
        some = f": {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
        raise ConfigError(f"model.{option} has {len(numbers)} numbers, but the network has {len(names)} {what}{some}")


def importance(network: nn.Module, place: Place) -> Tensor:
    """How much each channel of a place matters, float32 (channels,), by the weights alone.

    The sum of the absolute weights that read it, times the scale that the last norm before them gives it (Liu et al.
    2017, arXiv:1708.06519); without a norm, times the sum of those that make it (Li et al. 2017, arXiv:1608.08710),
    which a norm would undo.
    """
    consumer: Any = network.get_submodule(place.consumer)
    read: Tensor = consumer.weight.detach().abs().transpose(0, 1).flatten(1).sum(1)
    norms = [module for module in map(network.get_submodule, place.between) if isinstance(module, nn.BatchNorm2d)]
    producer: Any = network.get_submodule(place.producer)
    scale: Tensor = norms[-1].weight.detach() if norms else producer.weight.detach().abs().flatten(1).sum(1)
    return read * scale.abs()


@torch.no_grad()
def keep_channels(network: nn.Module, place: Place, kept: Tensor) -> None:
    """Leave only some channels of a place, in place. Those compute what they did while the others were 0.

    Args:
        network: has it.
        place: of `places(network)`.
        kept: int64 (n,), rising, n >= 1.
    """
    producer: Any = network.get_submodule(place.producer)
    consumer: Any = network.get_submodule(place.consumer)
    _take(producer, ("weight", "bias"), 0, kept)
    producer.out_channels = len(kept)
    for name in place.between:
        module: Any = network.get_submodule(name)
        _take(module, ("weight", "bias", "running_mean", "running_var"), 0, kept)
        if isinstance(module, nn.BatchNorm2d):
            module.num_features = len(kept)
        else:
            module.in_channels = module.out_channels = module.groups = len(kept)
    _take(consumer, ("weight",), 1, kept)
    setattr(consumer, "in_features" if isinstance(consumer, nn.Linear) else "in_channels", len(kept))


def _take(module: nn.Module, names: Sequence[str], dimension: int, kept: Tensor) -> None:
    for name in names:
        value = getattr(module, name, None)
        if value is None:
            continue
        taken = value.detach().index_select(dimension, kept.to(value.device)).contiguous()
        if isinstance(value, nn.Parameter):
            setattr(module, name, nn.Parameter(taken, requires_grad=value.requires_grad))
        else:
            setattr(module, name, taken)


def _channels(network: nn.Module, place: Place) -> int:
    return len(network.get_submodule(place.producer).weight)  # type: ignore[arg-type]
