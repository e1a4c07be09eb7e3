"""What a network costs: parameters, and multiply-adds as its own forward pass makes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, kw_only=True)
class Row:
    """A layer, or a block of layers, of a network."""

    name: str
    """Its name in the network, such as `layer1.0`."""
    kind: str
    """What it is, in words separated by a comma and a space: the kind, then its switches."""
    output_shape: tuple[int, ...]
    """Shape of its output for one image: (channels, height, width) or (features,)."""
    parameters: int
    """Trainable parameters."""
    multiply_adds: int
    """Multiply-adds of its convolutions and linear layers for one image."""


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters; frozen ones and buffers do not count."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def multiply_adds(network: nn.Module, image_size: int, channels: int = 3) -> int:
    """Multiply-adds of the convolutions and linear layers for one image; all else is small beside them.

    Args:
        network: on any device, `meta` included; left as it was.
        image_size: side of the image in pixels.
        channels: channels of the image.
    """
    costs, _ = _trace(network, image_size, channels)
    return sum(costs.values())


def summarize(network: nn.Module, image_size: int, channels: int = 3) -> list[Row]:
    """A row for each layer or block with parameters, in the order of the network.

    The rows' parameters add up to `count_parameters`, their multiply-adds to `multiply_adds`.

    Args:
        network: on any device, `meta` included; left as it was.
        image_size: side of the image in pixels.
        channels: channels of the image.
    """
    costs, shapes = _trace(network, image_size, channels)
    rows: list[Row] = []
    for name, module in _parts(network, ""):
        inside = [f"{name}.{inner}" if inner else name for inner, _ in module.named_modules()]
        rows.append(
            Row(
                name=name,
                kind=_kind(module),
                output_shape=shapes[name],
                parameters=count_parameters(module),
                multiply_adds=sum(costs.get(path, 0) for path in inside),
            )
        )
    return rows


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The network's children that have parameters, with those of sequences in place of the sequences."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from _parts(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}", child


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        kind = f"conv {'x'.join(str(side) for side in module.kernel_size)}, {module.in_channels}-{module.out_channels}"
        stride = f", stride {module.stride[0]}" if module.stride[0] != 1 else ""
        return kind + stride + ("" if module.weight.requires_grad else ", frozen weight")
    if isinstance(module, nn.BatchNorm2d):
        return "batch norm"
    if isinstance(module, nn.Linear):
        return f"linear, {module.in_features}-{module.out_features}"
    describe = getattr(module, "describe", None)
    kind = str(describe()) if callable(describe) else type(module).__name__
    return ", ".join([kind, *getattr(module, "reduced", ())])


def _trace(network: nn.Module, image_size: int, channels: int) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Multiply-adds of every convolution and linear layer, and the output shape of every module, by name."""
    costs: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            shapes[name] = tuple(output.shape[1:])
            if isinstance(module, nn.Conv2d):
                per_value = module.in_channels // module.groups * math.prod(module.kernel_size)
            elif isinstance(module, nn.Linear):
                per_value = module.in_features
            else:
                return
            costs[name] = costs.get(name, 0) + output.numel() * per_value

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in network.named_modules()]
    try:
        parameter = next(network.parameters())
        image = torch.zeros(1, channels, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
        with evaluating(network), torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    return costs, shapes


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within it, the network is in evaluation mode, so that a look at it leaves its running statistics alone; after it,
    each of its modules is in its own mode again."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
