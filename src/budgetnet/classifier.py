"""A trained network and all that is needed to use it on images: what the commands use, and what `budgetnet.load` gives.

scikit-learn's conventions where they fit: images in, arrays out, a row for each image, labels as integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from budgetnet import engine, evaluate, models
from budgetnet.config import ModelConfig
from budgetnet.decoding import fitted
from budgetnet.engine import Engine
from budgetnet.errors import DataError
from budgetnet.images import read_images
from budgetnet.logits import predict_logits

if TYPE_CHECKING:
    from PIL import Image

ImagesLike: TypeAlias = Union[str, Path, "Image.Image", NDArray[np.uint8], Tensor, Sequence["ImagesLike"]]
"""What a classifier takes: see `pixels_of`."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network with all that is needed to use it on raw images.

    >>> import budgetnet
    >>> model = budgetnet.load("runs/first")
    >>> model.parameters, model.classes[:3]
    (5478, ('0', '1', '2'))
    >>> model.predict_proba("photo.png").shape
    (1, 10)
    """

    network: nn.Module
    """uint8 images, normalised, (n, c, image_size, image_size) -> logits (n, classes)."""
    model: ModelConfig
    """What rebuilds the network."""
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    mean: tuple[float, ...]
    """Channel means of the normalisation, for pixels in [0, 1]."""
    std: tuple[float, ...]
    """Channel standard deviations of the normalisation."""
    image_size: int
    """Side of the images in pixels."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: recipe, seed, epoch, validation score, data checksum, versions."""

    def __repr__(self) -> str:
        return (
            f"Classifier of {len(self.classes)} classes by {self.model.name}, {self.parameters:,} parameters, "
            f"images of {self.image_size}x{self.image_size} pixels"
        )

    @property
    def parameters(self) -> int:
        """Trainable parameters, as the budget counts them."""
        return models.count_parameters(self.network)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network takes."""
        return len(self.mean), self.image_size, self.image_size

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((weight.device for weight in self.network.parameters()), torch.device("cpu"))

    @cached_property
    def computer(self) -> nn.Module | Engine:
        """What computes: on a CPU ONNX Runtime, where it is installed (compiled at first use), else the network."""
        if self.device.type == "cpu" and engine.available():
            return engine.compile_network(self.network, self.image_shape)
        return self.network

    def logits(self, images: ImagesLike) -> Tensor:
        """The logits of each image, float32 (n, classes), which depend on that image alone.

        Args:
            images: one or many: see `pixels_of`.

        Raises:
            DataError: `images` is nothing that can be read as such.
            CheckpointError: a logit is not finite.
        """
        return predict_logits(self.computer, pixels_of(images, self.image_size), self.mean, self.std)

    def predict_proba(self, images: ImagesLike) -> NDArray[np.float32]:
        """The probability of each class, float32 (n, classes); n is 1 for a single image.

        Args:
            images: one or many: see `pixels_of`.

        Raises:
            DataError: `images` is nothing that can be read as such.
            CheckpointError: a logit is not finite.

        >>> import budgetnet
        >>> model = budgetnet.load("runs/first")
        >>> model.predict_proba(["photo.png", "photo.png"]).sum(axis=1).round(3)
        array([1., 1.], dtype=float32)
        """
        probabilities: NDArray[np.float32] = self.logits(images).softmax(1).numpy()
        return probabilities

    def predict(self, images: ImagesLike) -> NDArray[np.int64]:
        """The most probable class of each image, int64 (n,): places in `classes`; n is 1 for a single image.

        Args:
            images: one or many: see `pixels_of`.

        Raises:
            DataError: `images` is nothing that can be read as such.
            CheckpointError: a logit is not finite.

        >>> import budgetnet, numpy
        >>> model = budgetnet.load("runs/first")
        >>> labels = model.predict(numpy.zeros((5, 100, 80, 3), numpy.uint8))
        >>> len(labels), model.classes[labels[0]] in model.classes
        (5, True)
        """
        labels: NDArray[np.int64] = self.logits(images).argmax(1).numpy()
        return labels

    def score(self, images: ImagesLike, labels: ArrayLike) -> float:
        """The share of the images that are classified right, in [0, 1].

        `budgetnet.evaluate.score(model.logits(images), labels)` says more: top-5, loss, calibration, confusion.

        Args:
            images: one or many: see `pixels_of`.
            labels: integers (n,), places in `classes`.

        Raises:
            DataError: there are no images, or the labels are not one such integer for each.
            CheckpointError: a logit is not finite.

        >>> import budgetnet
        >>> from budgetnet import data
        >>> digits = data.load("digits", None)
        >>> 0.3 < budgetnet.load("runs/first").score(digits.test.images, digits.test.labels) <= 1
        True
        """
        pixels, true = pixels_of(images, self.image_size), np.asarray(labels)
        if true.dtype.kind not in "iu" or true.shape != (len(pixels),):
            raise DataError(
                f"the labels are {true.dtype} {true.shape} for {len(pixels)} images, expected an integer for each"
            )
        predicted = torch.from_numpy(self.predict(pixels))
        return evaluate.score_labels(predicted, torch.from_numpy(true.astype(np.int64)), len(self.classes)).accuracy


def pixels_of(images: ImagesLike, image_size: int) -> Tensor:
    """Images of any kind as a network of that size sees them: resized, as the commands do, whatever their aspect ratio.

    Args:
        images: a path (an image file, a folder of images, or another input of `budgetnet predict`), a PIL image, an
            array or tensor uint8 (h, w, 3), (n, h, w, 3), (3, h, w) or (n, 3, h, w), or a sequence of such. What could
            be either has the channels last in an array, and first in a tensor.
        image_size: side in pixels.

    Returns:
        uint8 (n, 3, image_size, image_size) on the CPU; n is 1 for a single image.

    Raises:
        DataError: it is nothing such, or a file is missing or damaged.
    """
    from PIL import Image, ImageOps

    if isinstance(images, str | Path):
        return read_images(Path(images), image_size).images
    if isinstance(images, Image.Image):
        return torch.from_numpy(fitted(ImageOps.exif_transpose(images), image_size, "the image"))[None]
    if isinstance(images, np.ndarray | Tensor):
        return _resized(images, image_size)
    if isinstance(images, Sequence):
        none = torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8)
        return torch.cat([none, *(pixels_of(image, image_size) for image in images)])
    raise DataError(
        f"found {type(images).__name__} for images, expected a path, a PIL image, an array or a tensor, or a list of "
        "such"
    )


def _resized(images: NDArray[Any] | Tensor, image_size: int) -> Tensor:
    """An array or tensor of images as uint8 (n, 3, image_size, image_size)."""
    from PIL import Image

    shape, last, first = tuple(images.shape), images.shape[-1:] == (3,), images.shape[-3:-2] == (3,)
    if images.dtype not in (np.uint8, torch.uint8) or len(shape) not in (3, 4) or not (last or first):
        raise DataError(
            f"the images are {images.dtype} {shape}, expected uint8 in [0, 255] of shape (h, w, 3), (n, h, w, 3), "
            "(3, h, w) or (n, 3, h, w)"
        )
    if 0 in shape[-3:]:
        raise DataError(f"the images are of shape {shape}, expected one pixel at least")
    pixels = torch.as_tensor(np.require(images, None, ["C", "W"]) if isinstance(images, np.ndarray) else images.cpu())
    pixels = pixels.reshape(-1, *shape[-3:])
    if last and not (first and isinstance(images, Tensor)):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.shape[2:] == (image_size, image_size):
        return pixels.contiguous()
    if not len(pixels):
        return pixels.new_zeros(0, 3, image_size, image_size)
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return torch.from_numpy(np.stack([fitted(Image.fromarray(row), image_size, "the image") for row in rows]))
