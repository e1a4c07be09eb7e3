"""Mixing of training images with others of their batch, and of their targets in the same shares.

Every function leaves its input unchanged, draws only from the generator it is given, and never makes the host wait for
the device. `blend`, `paste` and `tile` apply given parameters, one an image; `mixup`, `cutmix` and `ricap` draw them.
An image's partners are those before it in the batch, whose order is random already: nothing is drawn for that, and no
image meets itself in a batch of four or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from budgetnet import draws
from budgetnet.config import MixConfig
from budgetnet.erasing import rectangles

# Each is accepted with a probability of 0.95 or more (Marsaglia and Tsang 2000, figure 2): none, once in 10^10 draws.
_CANDIDATES = 8


def mix(images: Tensor, labels: Tensor, classes: int, config: MixConfig, rng: Generator) -> tuple[Tensor, Tensor]:
    """Mix a batch as a configuration says.

    Args:
        images: (n, c, h, w) float.
        labels: (n,) int64, classes of the images, in [0, classes).
        classes: number of classes.
        config: which method, and how; its name is not "none".
        rng: where all draws come from, on the device of the images.

    Returns:
        (n, c, h, w) and targets (n, classes) float32, each row of which is the shares of the classes.

    Raises:
        ValueError: the configuration names no method.
    """
    if config.name not in METHODS:
        raise ValueError(f"mix.name is {config.name!r}, expected one of {', '.join(METHODS)}")
    method = METHODS[config.name]
    # Not torch's one_hot: it looks at the labels first, for which the host may wait.
    targets = (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).float()
    return method.mix(images, targets, method.alpha if config.alpha is None else config.alpha, config.p, rng)


def mixup(images: Tensor, targets: Tensor, alpha: float, p: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """Blend some images with the one before: mixup, with a share for each image.

    Args:
        images: (n, c, h, w) float; left unchanged.
        targets: (n, classes) float, shares of the classes; left unchanged.
        alpha: an image's own share is Beta(alpha, alpha).
        p: probability that an image is mixed at all.
        rng: where coins and shares come from, on the device of the images.

    Returns:
        (n, c, h, w) and (n, classes), dtype and device as given.

    Raises:
        ValueError: `alpha` or `p` is out of range.

    Zhang et al. 2018, arXiv:1710.09412.
    """
    share = beta(alpha, len(images), rng, images.device)
    return blend(images, targets, torch.where(_coins(len(images), p, rng, images.device), share, 1.0))


def cutmix(images: Tensor, targets: Tensor, alpha: float, p: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """Paste into some images a rectangle of the one before: CutMix, with a rectangle for each image.

    The rectangle has the image's proportions and the share 1 - Beta(alpha, alpha) of its area, its centre is uniform
    over the pixels, and what lies outside is cut off. Targets have the share that remains.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        targets: (n, classes) float, shares of the classes; left unchanged.
        alpha: see above.
        p: probability that an image is mixed at all.
        rng: where coins and rectangles come from, on the device of the images.

    Returns:
        (n, c, h, w) and (n, classes), dtype and device as given.

    Raises:
        ValueError: `alpha` or `p` is out of range.

    Yun et al. 2019, arXiv:1905.04899.
    """
    n, _, h, w = images.shape
    side = (1 - beta(alpha, n, rng, images.device)).sqrt() * _coins(n, p, rng, images.device)
    half_height, half_width = ((side * length / 2).floor().long() for length in (h, w))
    row = draws.randint(0, h, (n,), rng, images.device)
    column = draws.randint(0, w, (n,), rng, images.device)
    return paste(images, targets, row - half_height, column - half_width, 2 * half_height, 2 * half_width)


def ricap(images: Tensor, targets: Tensor, alpha: float, p: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """Put some images together from four: RICAP, with a boundary for each image.

    Width and height of the upper left part are Beta(alpha, alpha) of the image's, each, rounded to pixels, and the
    others fill the rest. Each is cut from its image at a place that is uniform over all where it fits.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        targets: (n, classes) float, shares of the classes; left unchanged.
        alpha: see above.
        p: probability that an image is mixed at all.
        rng: where coins, boundaries and places come from, on the device of the images.

    Returns:
        (n, c, h, w) and (n, classes), dtype and device as given.

    Raises:
        ValueError: `alpha` or `p` is out of range.

    Takahashi et al. 2018, arXiv:1811.09030.
    """
    n, _, h, w = images.shape
    mixed = _coins(n, p, rng, images.device)
    height = torch.where(mixed, (beta(alpha, n, rng, images.device) * h).round().long(), h)
    width = torch.where(mixed, (beta(alpha, n, rng, images.device) * w).round().long(), w)
    places = draws.rand((2, 4, n), rng, images.device, dim=2)
    # How far each part can be moved in its image: by as much as the other part of the side is long.
    slack_y, slack_x = torch.stack([h - height, h - height, height, height]), torch.stack([w - width, width] * 2)
    # A draw near 1 may round up to the first place outside.
    top = torch.minimum((places[0] * (slack_y + 1)).long(), slack_y)
    left = torch.minimum((places[1] * (slack_x + 1)).long(), slack_x)
    return tile(images, targets, height, width, top, left)


def beta(alpha: float, n: int, rng: Generator, device: torch.device) -> Tensor:
    """Draw from the symmetric beta distribution.

    As x / (x + y) of two gamma variables, in logarithms, so that small alphas do not underflow. Those are drawn by
    rejection (Marsaglia and Tsang 2000, doi:10.1145/358407.358414), of which eight candidates are made at once and the
    first that is accepted is taken: no loop that would wait for values, and a fixed number of draws. torch's own gamma
    draws are private, and some devices lack them.

    Args:
        alpha: both parameters of the distribution, above 0.
        n: how many to draw.
        rng: where they come from, on `device`.
        device: where they go.

    Returns:
        (n,) float32 in [0, 1].

    Raises:
        ValueError: `alpha` is not above 0.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}, expected a number above 0")
    d = alpha + 1 - 1 / 3  # of the gamma distribution of alpha + 1, which rejection wants to be 1 or more
    normal = draws.randn((2, n, _CANDIDATES), rng, device, dim=1)
    uniform = 1 - draws.rand((2, n, _CANDIDATES + 1), rng, device, dim=1)  # in (0, 1]
    cube = (1 + normal / (9 * d) ** 0.5) ** 3
    log_cube = cube.clamp_min(1e-30).log()
    accepted = (cube > 0) & (uniform[..., 1:].log() < normal**2 / 2 + d * (1 - cube + log_cube))
    first = accepted.int().argmax(2, keepdim=True)
    # The power of a uniform variable leads from alpha + 1 back to alpha; d is common to both.
    log_gamma = log_cube.gather(2, first).squeeze(2) + uniform[..., 0].log() / alpha
    return torch.sigmoid(log_gamma[0] - log_gamma[1])


def blend(images: Tensor, targets: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Blend each image with the one before it, the first with the last.

    Args:
        images: (n, c, h, w) float.
        targets: (n, classes) float.
        share: (n,) float in [0, 1], what each image keeps.

    Returns:
        (n, c, h, w) and (n, classes), dtype and device as given.
    """
    rest = 1 - share
    return (
        images * share.view(-1, 1, 1, 1) + images.roll(1, 0) * rest.view(-1, 1, 1, 1),
        targets * share.view(-1, 1) + targets.roll(1, 0) * rest.view(-1, 1),
    )


def paste(
    images: Tensor, targets: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image by that of the image before it, of the first by that of the last.

    Args:
        images: (n, c, h, w), any dtype.
        targets: (n, classes) float.
        top: (n,) first row, may be negative; what lies outside is cut off.
        left: (n,) first column, likewise.
        height: (n,) number of rows.
        width: (n,) number of columns.

    Returns:
        (n, c, h, w) and (n, classes), dtype and device as given.
    """
    inside = rectangles(images, top, left, height, width)
    rest = inside.flatten(1).float().mean(1).view(-1, 1)
    return torch.where(inside, images.roll(1, 0), images), targets * (1 - rest) + targets.roll(1, 0) * rest


def tile(
    images: Tensor, targets: Tensor, height: Tensor, width: Tensor, top: Tensor, left: Tensor
) -> tuple[Tensor, Tensor]:
    """Put each image together from four parts: of itself (upper left), of the image before it (upper right), of the
    one before that (lower left), and of the one before that.

    Args:
        images: (n, c, h, w), any dtype.
        targets: (n, classes) float.
        height: (n,) int64, rows of the upper parts, in [0, h].
        width: (n,) int64, columns of the left parts, in [0, w].
        top: (4, n) int64, the row at which each part is cut from its image.
        left: (4, n) int64, the column.

    Returns:
        (n, c, h, w) and (n, classes), dtype and device as given.
    """
    n, c, h, w = images.shape
    x, y = torch.arange(w, device=images.device), torch.arange(h, device=images.device)
    right, lower = x >= width.view(n, 1, 1), y.view(h, 1) >= height.view(n, 1, 1)
    part = (right + 2 * lower).view(n, h * w)

    def of_part(values: Tensor) -> Tensor:
        """(4, n) as (n, h, w): for each pixel, the value of its part."""
        return values.t().gather(1, part).view(n, h, w)

    none = torch.zeros_like(width)
    row = y.view(h, 1) + of_part(top - torch.stack([none, none, height, height]))
    column = x + of_part(left - torch.stack([none, width, none, width]))
    source = (torch.arange(n, device=images.device).view(n, 1, 1) - part.view(n, h, w)) % n
    channel = torch.arange(c, device=images.device).view(1, c, 1, 1)
    pixel = ((source.unsqueeze(1) * c + channel) * h + row.unsqueeze(1)) * w + column.unsqueeze(1)
    areas = torch.stack([height * width, height * (w - width), (h - height) * width, (h - height) * (w - width)])
    shares = (areas / (h * w)).unsqueeze(2)
    mixed = sum((targets.roll(k, 0) * shares[k] for k in range(1, 4)), targets * shares[0])
    return images.reshape(-1).take(pixel), mixed


def _coins(n: int, p: float, rng: Generator, device: torch.device) -> Tensor:
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}, expected a probability")
    return draws.rand((n,), rng, device) < p


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to mix, as the configuration chooses it."""

    mix: Callable[[Tensor, Tensor, float, float, Generator], tuple[Tensor, Tensor]]
    """Of (images, targets, alpha, p, rng) makes mixed images and targets."""
    alpha: float
    """That of its paper."""
    reach: int
    """How many images before it in the batch each image is mixed with."""


METHODS = {
    "mixup": Method(mix=mixup, alpha=1.0, reach=1),
    "cutmix": Method(mix=cutmix, alpha=1.0, reach=1),
    "ricap": Method(mix=ricap, alpha=0.3, reach=3),
}
"""By the name that `mix.name` has for it."""
REACH = {"none": 0} | {name: method.reach for name, method in METHODS.items()}
"""How many images before it in the batch each image is mixed with, by `mix.name`."""
