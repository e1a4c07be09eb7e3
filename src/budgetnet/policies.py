"""Augmentation policies: Pillow's operations on whole batches, drawn for each image as published rules say.

`apply` computes, whatever an image's operation is, in three steps of fixed shape: one gather moves the pixels of all
geometric operations, one table of 256 entries for each image and channel holds all operations on single values, and
one blend does saturation and sharpness. The policies draw operations and magnitudes and call it. Like the other
augmentations, they leave their input unchanged, draw only from the generator they are given, and never make the host
wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Generator, Tensor

from budgetnet import draws

Operation = Literal[
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
]
Space = dict[Operation, tuple[float, float]]
"""For each operation, its magnitude at the lowest level and how far that of the highest is from it."""

_MOVING = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
_TABULAR = {"brightness", "contrast", "posterize", "solarize", "autocontrast", "equalize"}
_BLENDING = {"color", "sharpness"}
_SIGNED = {*_MOVING, "brightness", "color", "contrast", "sharpness"}  # as likely to either side of the lowest level
_NEUTRAL = {"brightness": 1.0, "color": 1.0, "contrast": 1.0, "sharpness": 1.0, "posterize": 8.0, "solarize": 256.0}
"""The magnitude that changes nothing, where it is not 0."""
_LEVELS = 30  # above 0, of RandAugment and TrivialAugment
_CHAINS = 3  # of AugMix


def apply(images: Tensor, operations: Sequence[Operation], which: Tensor, magnitude: Tensor) -> Tensor:
    """Change each image by an operation of its own, as Pillow does.

    | operation | magnitude |
    |---|---|
    | identity, autocontrast, equalize | none |
    | shear_x, shear_y | pixels that a row (a column) moves against the one before, to the left (up) |
    | translate_x, translate_y | pixels to the right, down; a fraction is cut off |
    | rotate | degrees counter-clockwise about the centre |
    | brightness, color, contrast, sharpness | factor, 0 or more; 1 changes nothing |
    | posterize | bits that are kept, 0 to 8, rounded |
    | solarize | values from this one on are inverted |

    Geometric operations take the nearest pixel, and black from outside; where two are equally near, rounding decides.
    Values are Pillow's (ImageOps, ImageEnhance) to the digit, but for autocontrast, where they may be higher by one:
    Pillow computes in floating point and falls below whole numbers at times.

    Args:
        images: (n, c, h, w) uint8, c 1 or 3 (RGB), sides of 3 pixels or more; left unchanged.
        operations: what may occur; the fewer, the less is computed.
        which: (n,) int64, each image's operation, as its place in `operations`.
        magnitude: (n,) float32.

    Returns:
        (n, c, h, w) uint8, device of `images`.

    Raises:
        ValueError: `images` is not such.
    """
    n, c, h, w = _shape(images)
    device = images.device
    each = which == torch.arange(len(operations), device=device).unsqueeze(1)
    chosen = dict(zip(operations, each, strict=True))
    neutral = _constants(tuple(_NEUTRAL.get(name, 0.0) for name in operations), device).unsqueeze(1)
    amounts = dict(zip(operations, torch.where(each, magnitude, neutral), strict=True))

    def amount(name: Operation) -> Tensor:
        """(n, 1, 1): the magnitude of those that have this operation, and for the others what changes nothing."""
        found = amounts[name] if name in amounts else _constants((_NEUTRAL.get(name, 0.0),), device).expand(n)
        return found.view(n, 1, 1)

    if chosen.keys() & _MOVING:
        across, down = amount("translate_x").trunc(), amount("translate_y").trunc()
        images = _move(images, amount("rotate"), amount("shear_x"), amount("shear_y"), across, down)
    if chosen.keys() & _TABULAR:
        places = images.flatten(2).long()
        table = _table(images, places, chosen, amount).to(torch.uint8).expand(n, c, 256)
        images = table.gather(2, places).view(n, c, h, w)
    if chosen.keys() & _BLENDING:
        pixels = images.float()
        other = _smooth(pixels) if "sharpness" in chosen else pixels
        if "color" in chosen:
            other = torch.where(chosen["color"].view(n, 1, 1, 1), _grey(images).unsqueeze(1), other)
        images = _blend(other, pixels, (amount("color") * amount("sharpness")).unsqueeze(3)).to(torch.uint8)
    return images


def trivial_augment(images: Tensor, rng: Generator) -> Tensor:
    """Change each image by one operation, all equally likely, at one of 31 levels, all equally likely: TrivialAugment.

    Its "wide" space: shears up to 0.99, shifts up to 32 pixels whatever the images' size, turns up to 135 degrees,
    factors of 0.01 to 1.99, posterizing to 8 to 2 bits, solarizing from 255 to 0 on; autocontrast, equalize and
    identity have no level.

    Args:
        images: as `apply`; left unchanged.
        rng: where operations, levels and signs come from, on the device of the images.

    Returns:
        (n, c, h, w) uint8, device of `images`.

    Raises:
        ValueError: `images` is unfit: see `apply`.

    Mueller and Hutter 2021, arXiv:2103.10158, table 1.
    """
    n, *_ = _shape(images)
    level = draws.randint(0, _LEVELS + 1, (n,), rng, images.device) / _LEVELS
    return _change(images, _space(0.99, 32, 32, 135, (8, 2), 0.99), level, rng)


def rand_augment(images: Tensor, ops: int, magnitude: float, rng: Generator) -> Tensor:
    """Change each image by some operations in turn, each drawn anew, all equally likely: RandAugment.

    Operations are those of TrivialAugment. At magnitude 1: shears of 0.3, shifts of 150/331 of the side, turns of 30
    degrees, factors of 0.1 and 1.9, posterizing to 4 bits, solarizing from 0 on, as in torchvision.

    Args:
        images: as `apply`; left unchanged.
        ops: operations an image (the paper's N), 1 or more.
        magnitude: of all of them, in [0, 1] (the paper's M, of 30).
        rng: where operations and signs come from, on the device of the images.

    Returns:
        (n, c, h, w) uint8, device of `images`.

    Raises:
        ValueError: `ops` or `magnitude` is out of range, or `images` is unfit: see `apply`.

    Cubuk et al. 2019, arXiv:1909.13719.
    """
    _check(ops, magnitude)
    n, _, h, w = _shape(images)
    space = _space(0.3, 150 / 331 * w, 150 / 331 * h, 30, (8, 4), 0.9)
    level = torch.full((n,), magnitude, device=images.device)
    for _ in range(ops):
        images = _change(images, space, level, rng)
    return images


def augmix(images: Tensor, ops: int, magnitude: float, rng: Generator) -> Tensor:
    """Mix each image with three chains of operations on it: AugMix.

    A chain has 1 to `ops` operations, drawn anew: the geometric ones, autocontrast, equalize, posterize and solarize,
    but none that resembles a corruption that robustness is tested by. The chains' weights are uniform over all that
    sum to 1 (Dirichlet(1, 1, 1)), and their sum is blended with the image by a uniform share (Beta(1, 1)). At level 1:
    shears of 0.3, shifts of a third of the side, turns of 30 degrees, posterizing to 0 bits (4 at level 0), solarizing
    from 0 on.

    Args:
        images: as `apply`; left unchanged.
        ops: operations of the longest chain, 1 or more (3 in the paper).
        magnitude: highest level, in [0, 1]; each operation's is uniform up to it (the paper's severity, of 10).
        rng: where operations, levels, signs and weights come from, on the device of the images.

    Returns:
        (n, c, h, w) uint8, device of `images`.

    Raises:
        ValueError: `ops` or `magnitude` is out of range, or `images` is unfit: see `apply`.

    Hendrycks et al. 2020, arXiv:1912.02781, algorithm 1.
    """
    _check(ops, magnitude)
    n, _, h, w = _shape(images)
    space = _space(0.3, w / 3, h / 3, 30, (4.5, 0.5))  # of bits: rounded, 4 less the whole part of 4 levels
    chains = images.repeat(_CHAINS, 1, 1, 1)
    length = draws.randint(1, ops + 1, (_CHAINS * n,), rng, images.device)
    for place in range(ops):
        level = draws.rand((_CHAINS * n,), rng, images.device).mul_(magnitude)
        chains = _change(chains, space, level, rng, place < length)
    # Exponential variables over their sum are Dirichlet(1, 1, 1).
    shares = draws.rand((_CHAINS + 1, n, 1, 1, 1), rng, images.device, dim=1)
    weights = (1 - shares[:_CHAINS]).log_()
    weights = weights / weights.sum(0).clamp_max(-1e-30)
    mixed = (weights * chains.view(_CHAINS, *images.shape)).sum(0)
    return images.float().lerp(mixed, shares[_CHAINS]).round_().clamp_(0, 255).to(torch.uint8)


def jensen_shannon(logits: Tensor) -> Tensor:
    """How much the predictions for several views of an image disagree: AugMix's consistency loss.

    The mean over the images of the Jensen-Shannon divergence: the entropy of the mean prediction less the mean entropy
    of the predictions.

    Args:
        logits: (views, n, classes) float.

    Returns:
        A scalar, in nats, in [0, log views].

    Raises:
        ValueError: `logits` has another number of dimensions.

    Hendrycks et al. 2020, arXiv:1912.02781, section 3.
    """
    if logits.dim() != 3:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, expected (views, n, classes)")
    each = logits.log_softmax(2)
    mean = each.logsumexp(0) - math.log(len(logits))
    return (each.exp() * (each - mean)).sum(2).mean()


def _shape(images: Tensor) -> tuple[int, int, int, int]:
    n, c, h, w = images.shape if images.dim() == 4 else (0, 0, 0, 0)
    if images.dtype != torch.uint8 or c not in (1, 3) or min(h, w) < 3:
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}, expected torch.uint8 (n, 1 or 3, h, w), sides of 3 "
            "pixels or more"
        )
    return n, c, h, w


def _check(ops: int, magnitude: float) -> None:
    if ops < 1:
        raise ValueError(f"ops is {ops}, expected 1 or more")
    if not 0 <= magnitude <= 1:
        raise ValueError(f"magnitude is {magnitude}, expected a share of the largest in [0, 1]")


def _space(
    shear: float, across: float, down: float, degrees: float, bits: tuple[float, float], factor: float | None = None
) -> Space:
    """The operations of a policy: `bits` kept at the lowest and highest level; no `factor` is no such operations."""
    space: Space = {
        "shear_x": (0, shear),
        "shear_y": (0, shear),
        "translate_x": (0, across),
        "translate_y": (0, down),
        "rotate": (0, degrees),
        "posterize": (bits[0], bits[1] - bits[0]),
        "solarize": (255, -255),
        "autocontrast": (0, 0),
        "equalize": (0, 0),
    }
    if factor is not None:
        space |= {
            "brightness": (1, factor),
            "color": (1, factor),
            "contrast": (1, factor),
            "sharpness": (1, factor),
            "identity": (0, 0),
        }
    return space


def _change(images: Tensor, space: Space, level: Tensor, rng: Generator, changed: Tensor | None = None) -> Tensor:
    """Apply to each image, or to those where `changed` (n,), an operation of `space`, all equally likely.

    `level` is (n,) in [0, 1], one an image; operations that have two sides take each with probability one half.
    """
    device = images.device
    which = draws.randint(0, len(space), (len(images),), rng, device)
    minus = draws.randint(0, 2, (len(images),), rng, device)
    columns = zip(*((name in _SIGNED, *ends) for name, ends in space.items()), strict=True)
    signed, start, extent = (_constants(tuple(map(float, each)), device).index_select(0, which) for each in columns)
    magnitude = start + extent * level * (1 - 2 * signed * minus)
    if changed is not None:
        which = torch.where(changed, which, len(space))
    return apply(images, (*space, "identity"), which, magnitude)


@cache  # one kernel for each number; copying them to a GPU would make the host wait
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 (k,), which nobody may change."""
    return torch.cat([torch.full((1,), value, device=device) for value in values])


def _move(images: Tensor, degrees: Tensor, shear_x: Tensor, shear_y: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Take each pixel from where an affine map of its centre lies; all but the images is (n, 1, 1)."""
    n, c, h, w = images.shape
    radians = torch.deg2rad(degrees)
    cosine, sine = radians.cos(), radians.sin()
    x = torch.arange(w, device=images.device).view(1, 1, w) + 0.5
    y = torch.arange(h, device=images.device).view(1, h, 1) + 0.5
    # Turns are about the centre, shears about the corner: where the angle is 0, so is what the centre adds.
    column = cosine * x + ((shear_x - sine) * y + (w / 2 * (1 - cosine) + h / 2 * sine - across))
    row = (shear_y + sine) * x + (cosine * y + (h / 2 * (1 - cosine) - w / 2 * sine - down))
    column, row = column.floor_(), row.floor_()
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    source = row.mul_(w).add_(column).mul_(inside).long().view(n, 1, h * w).expand(n, c, h * w)
    return images.flatten(2).gather(2, source).view(n, c, h, w).mul_(inside.unsqueeze(1))


def _table(
    images: Tensor, places: Tensor, chosen: dict[Operation, Tensor], amount: Callable[[Operation], Tensor]
) -> Tensor:
    """int64 (n, 1 or c, 256): what becomes of each value, by the operation that each image has.

    `places` are the values of the images, int64 (n, c, h * w); for `chosen` and `amount` see `apply`.
    """
    n, _, h, w = images.shape
    values = torch.arange(256, device=images.device)
    # Of brightness, the other end of the blend is black; of contrast, the mean grey.
    other = torch.zeros((n, 1, 1), device=images.device)
    if "contrast" in chosen:
        sums = _grey(images).flatten(1).sum(1)
        mean = (2 * sums + h * w).div(2 * h * w, rounding_mode="floor")
        other = torch.where(chosen["contrast"], mean, 0).float().view(n, 1, 1)
    table = _blend(other, values, amount("brightness") * amount("contrast")).long()
    lost = 8 - amount("posterize").round().long()
    table = (table >> lost) << lost
    table = torch.where(table >= amount("solarize"), 255 - table, table)
    low, high = (edge.long().unsqueeze(2) for edge in images.flatten(2).aminmax(dim=2))
    if "autocontrast" in chosen:
        stretched = (255 * (values - low)).div((high - low).clamp_min(1), rounding_mode="floor").clamp_(0, 255)
        table = torch.where(chosen["autocontrast"].view(n, 1, 1) & (high > low), stretched, table)
    if "equalize" in chosen:
        spread, fits = _equalized(places, high)
        table = torch.where(chosen["equalize"].view(n, 1, 1) & fits, spread, table)
    return table


def _equalized(places: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """int64 (n, c, 256): each value by how many pixels are below it; bool (n, c, 1): whether they are enough for that.

    `places` are values, int64 (n, c, pixels), and `highest` the highest of them, int64 (n, c, 1).
    """
    n, c, pixels = places.shape
    one = torch.ones((1, 1, 1), dtype=torch.int64, device=places.device).expand_as(places)
    counts = torch.zeros((n, c, 256), dtype=torch.int64, device=places.device).scatter_add_(2, places, one)
    step = (pixels - counts.gather(2, highest)).div(255, rounding_mode="floor")
    below = counts.cumsum(2) - counts
    return (below + step // 2).div(step.clamp_min(1), rounding_mode="floor").clamp_(max=255), step > 0


def _blend(other: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """`factor` of `pixels` and the rest of `other`, beyond either too, in [0, 255]; fractions are cut off."""
    return (other + factor * (pixels - other)).clamp_(0, 255).floor_()


def _grey(images: Tensor) -> Tensor:
    """(n, h, w) int64: what Pillow's convert("L") makes of uint8 (n, c, h, w): ITU-R BT.601 in units of 1/65536."""
    if images.shape[1] == 1:
        return images[:, 0].long()
    red, green, blue = images.long().unbind(1)
    return (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(0x8000) >> 16


def _smooth(pixels: Tensor) -> Tensor:
    """Pillow's SMOOTH of float (n, c, h, w): the mean of 3x3 pixels, the middle one counted five times; edges stay."""
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = (sums / 13 + 0.5).floor_()
    return smooth
