"""The common corruptions of CIFAR-10-C: 15 and 4 extra, five severities each, of 32x32 images.

Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations",
arXiv:1903.12261; constants and order of operations are those by which CIFAR-10-C was made (make_cifar_c.py in their
repository), down to their cutting off, where one would round, of fractions of a level. What differs:

- Random numbers are a pure function of (seed, corruption, severity, index of the image), so that an image is corrupted
  alike in any batch and any order. Theirs came from one global generator, so no image can be equal to theirs.
- `frost` is a stand-in: theirs overlays cut-outs of five photographs, ours a procedural texture of like colours and
  contrast. Its figures are comparable with one another, not with published ones.
- `motion_blur` and `snow` apply ImageMagick's one-sided kernel by a computation of ours; `spatter` measures exact
  distances where OpenCV approximates them, and `elastic_transform` interpolates exactly, not in steps of 1/32 pixel.

The settings are in pixels of 32x32 images; other sizes are refused, because scaled settings would be another benchmark.
"""

from __future__ import annotations

import difflib

import numpy as np
import torch
from torch import Tensor

from budgetnet.corruptions import CORRUPTIONS
from budgetnet.errors import ConfigError, DataError
from budgetnet.images import SIDE
from budgetnet.streams import Streams

SEVERITIES = (1, 2, 3, 4, 5)
NAMES = tuple(CORRUPTIONS)
"""All 19, in the order in which tables list them."""
COMMON, EXTRA = NAMES[:15], NAMES[15:]
"""The 15 that the mean corruption accuracy is over, and the 4 beside them."""

_TOGETHER = 64  # images: their float64 pixels fill a core's cache and no more


def corrupt(images: Tensor, name: str, severity: int, *, indices: Tensor | None = None, seed: int = 0) -> Tensor:
    """Corrupt each image, as a function of the image, its index, the corruption, the severity and the seed alone.

    Args:
        images: uint8 (n, 3, 32, 32) in [0, 255], on the CPU; left unchanged.
        name: one of `NAMES`.
        severity: 1 (least) to 5.
        indices: int64 (n,), which image of its data set each is; None counts from 0.
        seed: any integer; another seed draws other noise.

    Returns:
        uint8 (n, 3, 32, 32), contiguous.

    Raises:
        ConfigError: `name` is no corruption, or `severity` none of 1 to 5.
        DataError: the images are of another size.
        ValueError: the images are no uint8 batch of three channels, or the indices do not fit it.
    """
    check(name, severity)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, expected torch.uint8 (n, 3, 32, 32)")
    require_size(*images.shape[2:])
    if indices is None:
        indices = torch.arange(len(images))
    if indices.shape != images.shape[:1]:
        raise ValueError(f"indices are {tuple(indices.shape)}, expected one for each of {len(images)} images")
    function, settings = CORRUPTIONS[name]
    purpose, ids = f"{seed} {name} {severity}", indices.numpy()
    corrupted = torch.empty_like(images, memory_format=torch.contiguous_format)
    for start in range(0, len(images), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        levels = np.ascontiguousarray(images[some].permute(0, 2, 3, 1).numpy())
        found = function(levels, settings[severity - 1], Streams(purpose, ids[some]))
        corrupted[some] = torch.from_numpy(np.clip(found, 0, 255).astype(np.uint8)).permute(0, 3, 1, 2)
    return corrupted


def check(name: str, severity: int = 1) -> None:
    """Refuse what is no corruption or no severity.

    Raises:
        ConfigError: `name` is none of `NAMES`, or `severity` none of 1 to 5.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        guess = f" (did you mean {near[0]}?)" if near else f": expected one of {', '.join(NAMES)}"
        raise ConfigError(f"{name!r} is no corruption{guess}")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity is {severity}, expected 1 (least) to 5")


def require_size(height: int, width: int) -> None:
    """Refuse images of another size than CIFAR's.

    Raises:
        DataError: they are not of 32x32 pixels.
    """
    if (height, width) != (SIDE, SIDE):
        raise DataError(
            f"found images of {height}x{width} pixels, expected {SIDE}x{SIDE}: the corruptions are defined for that "
            "size alone, their strengths being in its pixels"
        )
