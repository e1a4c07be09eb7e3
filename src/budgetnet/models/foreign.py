"""Networks of the package timm (Wightman 2019, github.com/huggingface/pytorch-image-models), where it is installed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from budgetnet.errors import ConfigError, first_line

PREFIX = "timm:"


@dataclass(frozen=True)
class TimmArchitecture:
    """A network of timm's by name, of the one size that it has, untrained, for small images.

    Its first convolution, where that has a stride, becomes 3x3 without one, and a max pooling after it is left out:
    32 pixels would come to one place before the last stage.
    """

    name: str
    """As timm knows it, without a tag of weights."""

    def __post_init__(self) -> None:
        # Other forms of timm's names fetch files from elsewhere.
        if not re.fullmatch(r"[A-Za-z0-9_]+", self.name):
            raise ConfigError(f"{PREFIX}{self.name[:80]} is no name of timm's: expected letters, digits and _ after it")

    @property
    def width(self) -> int:
        """It has none to speak of."""
        return 0

    def scaled(self, width: int) -> TimmArchitecture:
        """Refuse: a network of timm's has one size.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{PREFIX}{self.name} has one size: leave out model.width, or choose another network")

    def network(self, num_classes: int, image_size: int, channels: int) -> nn.Module:
        """Build it.

        Raises:
            ConfigError: timm is not installed, cannot be imported, knows no such network, or it does not take images
                of that size.
        """
        if find_spec("timm") is None:
            raise ConfigError(f"{PREFIX}{self.name} needs the package timm: pip install timm")
        try:
            import timm
        except Exception as error:  # it imports much that may be missing or may not fit
            raise ConfigError(f"timm is installed and cannot be imported: {first_line(error)}") from error
        try:
            network: nn.Module = timm.create_model(
                self.name, pretrained=False, num_classes=num_classes, in_chans=channels
            )
        except Exception as error:
            raise ConfigError(f"timm has no network {self.name}, or cannot build it: {first_line(error)}") from error
        _for_small_images(network)
        if next(network.parameters()).is_meta:  # as when it is counted, which comes first and costs nothing
            self._try(network, num_classes, image_size, channels)
        return network

    def _try(self, network: nn.Module, num_classes: int, image_size: int, channels: int) -> None:
        size = f"{image_size}x{image_size}"
        try:
            shape = tuple(network(torch.zeros(2, channels, image_size, image_size, device="meta")).shape)
        except Exception as error:
            raise ConfigError(
                f"{PREFIX}{self.name} does not take images of {size}: {first_line(error)}; choose a convolutional one"
            ) from error
        if shape != (2, num_classes):
            raise ConfigError(f"{PREFIX}{self.name} makes {shape} of 2 images of {size}, expected {(2, num_classes)}")


def _for_small_images(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            if max(module.stride) > 1:
                small = nn.Conv2d(module.in_channels, module.out_channels, 3, padding=1, bias=module.bias is not None)
                parent, _, own = name.rpartition(".")
                setattr(network.get_submodule(parent), own, small)
            break
    for name, child in network.named_children():
        if isinstance(child, nn.MaxPool2d):
            setattr(network, name, nn.Identity())
