"""Augmentation of whole batches by tensor operations: pure functions of (images, parameters or generator).

Every function leaves its input unchanged, draws only from the generator it is given, and runs on any device without
making the host wait for it. Random functions come in two parts: one that applies given parameters, one a row
(`crop`, `turn`, `adjust_color`, `fill_rectangles`), and one that draws those parameters and applies them
(`random_crop`, `rotate`, `color_jitter`, `random_erase`, `cutout`). Images are uint8 in [0, 255] or floats in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from budgetnet import draws
from budgetnet.config import AugmentConfig, ProgressiveConfig
from budgetnet.policies import augmix, rand_augment, trivial_augment

Border = Literal["zeros", "reflect"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's convert("L")
_ERASE_CANDIDATES = 10  # as many as torchvision tries before it leaves an image alone
_RAND_OPS, _AUGMIX_OPS, _MAGNITUDE = 2, 3, 0.3  # what policies do unless told otherwise: M = 9 of 30, severity 3 of 10


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int, border: Border = "zeros") -> Tensor:
    """Pad every side by `padding` pixels and cut from each image the window of the old size at its (`top`, `left`).

    Args:
        images: (n, c, h, w), any dtype.
        top: (n,) int64, first row of the window in the padded image, in [0, 2 * padding].
        left: (n,) int64, first column, likewise.
        padding: pixels added to each side, 0 <= padding < min(h, w).
        border: what the added pixels show, "zeros" (black) or "reflect" (mirrored, without repeating the edge).

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `padding` is out of range, `border` is unknown, or `images` is no batch.
    """
    n, _, h, w = _batch_shape(images)
    _require(0 <= padding < min(h, w), "padding", padding, f"0 or more and less than the smaller side, {min(h, w)}")
    if border == "zeros":
        padded = F.pad(images, (padding, padding, padding, padding))
    elif border == "reflect":
        # F.pad does not reflect every dtype on every device; indexing does.
        rows, columns = _reflected(h, padding, images.device), _reflected(w, padding, images.device)
        padded = images.index_select(2, rows).index_select(3, columns)
    else:
        raise ValueError(f"border is {border!r}, expected 'zeros' or 'reflect'")
    windows = padded.unfold(2, h, 1).unfold(3, w, 1).permute(0, 2, 3, 1, 4, 5)  # a view: (n, tops, lefts, c, h, w)
    return windows[torch.arange(n, device=images.device), top, left]


def random_crop(images: Tensor, padding: int, rng: Generator, border: Border = "zeros") -> Tensor:
    """Shift each image, on its own, by up to `padding` pixels down or up and left or right, all shifts equally likely.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        padding: largest shift in pixels, 0 <= padding < min(h, w).
        rng: where the shifts come from, on the device of the images.
        border: what the uncovered edge shows, "zeros" or "reflect".

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `padding` is out of range, `border` is unknown, or `images` is no batch.

    He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    n, _, h, w = _batch_shape(images)
    _require(0 <= padding < min(h, w), "padding", padding, f"0 or more and less than the smaller side, {min(h, w)}")
    top, left = draws.randint(0, 2 * padding + 1, (2, n), rng, images.device, dim=1)
    return crop(images, top, left, padding, border)


def random_flip(images: Tensor, rng: Generator) -> Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        rng: where the coins come from, on the device of the images.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `images` is no batch.
    """
    n, *_ = _batch_shape(images)
    return _flip_where(draws.rand((n,), rng, images.device) < 0.5, images)


def alternating_flip(images: Tensor, indices: Tensor, epoch: int, seed: int) -> Tensor:
    """Mirror each image left to right in every other epoch; which epochs those are is a hash of (its index, `seed`).

    Two consecutive epochs so show every image both ways, which a coin does for only half of them.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        indices: (n,) int64, place of each image in the training set, on the device of the images.
        epoch: epoch, 0 or more.
        seed: any integer; another seed gives independent first orientations.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `indices` is not (n,) int64, or `images` is no batch.

    Jordan 2024, arXiv:2404.00498. The hash is SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195).
    """
    n, *_ = _batch_shape(images)
    if indices.shape != (n,) or indices.dtype != torch.int64:
        raise ValueError(
            f"indices are {tuple(indices.shape)} {indices.dtype}, expected ({n},) torch.int64: one an image"
        )
    flipped = _hash_bit(indices, seed)
    return _flip_where(~flipped if epoch % 2 else flipped, images)


def turn(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre; what comes from outside is zero.

    Nearest neighbour, as torchvision's RandomRotation does unless told otherwise: it keeps the dtype and does not blur
    training images that test images would not match.

    Args:
        images: (n, c, h, w), any dtype.
        degrees: (n,) float, counter-clockwise.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `images` is no batch.
    """
    n, c, h, w = _batch_shape(images)
    radians = torch.deg2rad(degrees.to(torch.float32)).view(n, 1, 1)
    cosine, sine = radians.cos(), radians.sin()
    y = torch.arange(h, device=images.device, dtype=torch.float32).view(1, h, 1) - (h - 1) / 2
    x = torch.arange(w, device=images.device, dtype=torch.float32).view(1, 1, w) - (w - 1) / 2
    column = (cosine * x - sine * y).add_((w - 1) / 2).round_()
    row = (sine * x + cosine * y).add_((h - 1) / 2).round_()
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    source = row.mul_(w).add_(column).mul_(inside).long().view(n, 1, h * w).expand(n, c, h * w)
    return images.flatten(2).gather(2, source).view(n, c, h, w).mul_(inside.unsqueeze(1))


def rotate(images: Tensor, degrees: float, rng: Generator) -> Tensor:
    """Rotate each image about its centre by an angle uniform in [-`degrees`, `degrees`]: see `turn`.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        degrees: largest angle either way, in [0, 180].
        rng: where the angles come from, on the device of the images.

    Returns:
        (n, c, h, w), dtype and device of `images`; nearest neighbour, zero outside.

    Raises:
        ValueError: `degrees` is out of range, or `images` is no batch.
    """
    n, *_ = _batch_shape(images)
    _require(0 <= degrees <= 180, "degrees", degrees, "an angle in [0, 180]")
    return turn(images, _uniform(n, -degrees, degrees, rng, images.device))


def adjust_color(
    images: Tensor,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
    hue: Tensor | None = None,
) -> Tensor:
    """Change each image's brightness, contrast, saturation and hue, in this order, clamping to the range after each.

    Brightness multiplies; contrast moves pixels away from the image's mean grey, saturation away from their own grey
    (0 is grey, 1 changes nothing); hue turns the colour wheel of HSV. Meanings as in torchvision and Pillow; uint8
    images are rounded once at the end, not after each step. One-channel images have neither saturation nor hue.

    Args:
        images: (n, c, h, w), c 1 or 3 (RGB), uint8 or a float in [0, 1].
        brightness: (n,) float, factors 0 or more; None leaves it alone, likewise for the others.
        contrast: (n,) float, factors 0 or more.
        saturation: (n,) float, factors 0 or more.
        hue: (n,) float, turns of the colour wheel (1 is all the way round).

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `images` has neither one nor three channels, is neither uint8 nor float, or is no batch.
    """
    n, c, _, _ = _batch_shape(images)
    _require(c in (1, 3), "the number of channels", c, "1 (grey) or 3 (RGB)")
    if images.dtype == torch.uint8:
        pixels = images.to(torch.float32).div_(255)
    elif images.is_floating_point():
        pixels = images.clone()
    else:
        raise ValueError(f"images are {images.dtype}, expected torch.uint8 or a float in [0, 1]")

    def per_image(values: Tensor) -> Tensor:
        return values.to(pixels.dtype).view(n, 1, 1, 1)

    if brightness is not None:
        pixels.mul_(per_image(brightness)).clamp_(0, 1)
    if contrast is not None:
        factor = per_image(contrast)
        grey = _luma(pixels.mean((2, 3), keepdim=True))  # the mean of the grey is the grey of the mean
        pixels.mul_(factor).add_(grey * (1 - factor)).clamp_(0, 1)
    if saturation is not None and c == 3:
        factor = per_image(saturation)
        grey = _luma(pixels)
        pixels.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 1)
    if hue is not None and c == 3:
        _turn_hue_(pixels, per_image(hue).squeeze(1))
    return pixels.mul_(255).round_().to(torch.uint8) if images.dtype == torch.uint8 else pixels


def color_jitter(
    images: Tensor, brightness: float, contrast: float, saturation: float, hue: float, rng: Generator
) -> Tensor:
    """Change each image's colours at random: torchvision's ColorJitter, with factors drawn for each image.

    The order is always brightness, contrast, saturation, hue (torchvision shuffles it): see `adjust_color`.

    Args:
        images: (n, c, h, w), c 1 or 3 (RGB), uint8 or a float in [0, 1]; left unchanged.
        brightness: factors are uniform in [max(0, 1 - brightness), 1 + brightness]; 0 leaves it alone.
        contrast: likewise.
        saturation: likewise.
        hue: shifts are uniform in [-hue, hue] turns of the colour wheel, in [0, 0.5].
        rng: where factors and shifts come from, on the device of the images.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: a strength is out of range, or `images` is unfit: see `adjust_color`.
    """
    n, *_ = _batch_shape(images)
    for name, strength in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        _require(0 <= strength < math.inf, name, strength, "0 or more")
    _require(0 <= hue <= 0.5, "hue", hue, "turns in [0, 0.5]")

    def factors(strength: float) -> Tensor | None:
        return _uniform(n, max(0.0, 1 - strength), 1 + strength, rng, images.device) if strength else None

    return adjust_color(
        images,
        factors(brightness),
        factors(contrast),
        factors(saturation),
        _uniform(n, -hue, hue, rng, images.device) if hue else None,
    )


def fill_rectangles(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, value: float | Sequence[float]
) -> Tensor:
    """Set a rectangle of each image to `value`; what lies outside the image is cut off, an empty rectangle is none.

    Args:
        images: (n, c, h, w), any dtype.
        top: (n,) first row, may be negative.
        left: (n,) first column, may be negative.
        height: (n,) number of rows.
        width: (n,) number of columns.
        value: one number, or one a channel, in the units of `images`.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `value` does not have one number a channel, or `images` is no batch.
    """
    inside = rectangles(images, top, left, height, width)
    return torch.where(inside, _per_channel("value", value, images, images.dtype), images)


def rectangles(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Which pixels lie inside a rectangle of each image.

    Args:
        images: (n, c, h, w).
        top: (n,) first row, may be negative.
        left: (n,) first column, may be negative.
        height: (n,) number of rows.
        width: (n,) number of columns.

    Returns:
        (n, 1, h, w) bool, on the device of `images`.

    Raises:
        ValueError: `images` is no batch.
    """
    n, _, h, w = _batch_shape(images)
    rows = torch.arange(h, device=images.device)
    columns = torch.arange(w, device=images.device)
    in_rows = (rows >= top.view(n, 1)) & (rows < (top + height).view(n, 1))
    in_columns = (columns >= left.view(n, 1)) & (columns < (left + width).view(n, 1))
    return in_rows.view(n, 1, h, 1) & in_columns.view(n, 1, 1, w)


def random_erase(
    images: Tensor,
    p: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    value: float | Sequence[float],
    rng: Generator,
) -> Tensor:
    """Erase a random rectangle of some images: torchvision's RandomErasing, with coin and rectangle for each image.

    The area is uniform in `scale`, the ratio log-uniform in `ratio`, both sides rounded to pixels. Ten rectangles are
    drawn for each image, and the first with both sides shorter than the image's is placed uniformly inside it; where
    none of the ten fits, the image stays whole. The distribution is torchvision's, which draws up to ten in turn.

    Args:
        images: (n, c, h, w), any dtype, normalised where `value` is meant so; left unchanged.
        p: probability that an image is erased at all.
        scale: smallest and largest erased share of the area, 0 < smallest <= largest <= 1.
        ratio: smallest and largest ratio of the rectangle's height to its width, 0 < smallest <= largest.
        value: what erased pixels show: one number, or one a channel, in the units of `images`.
        rng: where coins and rectangles come from, on the device of the images.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: an argument is out of range, `value` does not have one number a channel, or `images` is no batch.

    Zhong et al. 2017, arXiv:1708.04896.
    """
    n, _, h, w = _batch_shape(images)
    _require(0 <= p <= 1, "p", p, "a probability")
    _require(0 < scale[0] <= scale[1] <= 1, "scale", scale, "0 < smallest <= largest <= 1")
    _require(0 < ratio[0] <= ratio[1] < math.inf, "ratio", ratio, "0 < smallest <= largest")
    shapes = draws.rand((2, n, _ERASE_CANDIDATES), rng, images.device, dim=1)
    area = (shapes[0] * (scale[1] - scale[0]) + scale[0]) * (h * w)
    aspect = (shapes[1] * math.log(ratio[1] / ratio[0]) + math.log(ratio[0])).exp()
    heights, widths = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (heights < h) & (widths < w)
    first = fits.int().argmax(1, keepdim=True)
    height, width = heights.gather(1, first).squeeze(1), widths.gather(1, first).squeeze(1)
    coin, row, column = draws.rand((3, n), rng, images.device, dim=1)
    height = height * (fits.any(1) & (coin < p))
    # A draw near 1 may round up to the first place outside.
    top = torch.minimum((row * (h - height + 1)).floor(), h - height)
    left = torch.minimum((column * (w - width + 1)).floor(), w - width)
    return fill_rectangles(images, top, left, height, width, value)


def cutout(images: Tensor, size: int, rng: Generator, fill: float | Sequence[float] = 0.0) -> Tensor:
    """Set a square of each image to `fill`; its centre is uniform over the pixels, and what lies outside is cut off.

    Args:
        images: (n, c, h, w), any dtype; left unchanged.
        size: side of the square in pixels, 1 or more; an even square reaches one pixel further up and left.
        rng: where the centres come from, on the device of the images.
        fill: one number, or one a channel, in the units of `images`; 0 is the mean colour of normalised ones.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `size` is not positive, `fill` does not have one number a channel, or `images` is no batch.

    DeVries and Taylor 2017, arXiv:1708.04552.
    """
    n, _, h, w = _batch_shape(images)
    _require(size >= 1, "size", size, "1 pixel or more")
    row = draws.randint(0, h, (n,), rng, images.device)
    column = draws.randint(0, w, (n,), rng, images.device)
    side = torch.full_like(row, size)
    return fill_rectangles(images, row - size // 2, column - size // 2, side, side, fill)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel.

    Args:
        images: (n, c, h, w), uint8 in [0, 255] or a float in [0, 1]; left unchanged.
        mean: c numbers, in units of [0, 1].
        std: c numbers above 0, in units of [0, 1].

    Returns:
        (n, c, h, w) float32, device of `images`.

    Raises:
        ValueError: `mean` or `std` does not have one number a channel, a std is not positive, or `images` is neither
            uint8 nor float, or no batch.
    """
    _batch_shape(images)
    _check_statistics(mean, std)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, expected torch.uint8 or a float in [0, 1]")
    largest = 255 if images.dtype == torch.uint8 else 1
    factor = _per_channel("std", [1 / (largest * s) for s in std], images, torch.float32)
    offset = _per_channel("mean", [-m / s for m, s in zip(mean, std, strict=True)], images, torch.float32)
    return (images.to(torch.float32) * factor).add_(offset)


def resize(images: Tensor, size: int) -> Tensor:
    """Shrink or enlarge images, smoothing what would alias.

    Args:
        images: (n, c, h, w) float; left unchanged.
        size: side in pixels of the result, 1 or more.

    Returns:
        (n, c, size, size), dtype and device of `images`; the images themselves where they have that size.

    Raises:
        ValueError: `size` is not positive, or `images` is no batch.
    """
    _, _, h, w = _batch_shape(images)
    _require(size >= 1, "size", size, "1 pixel or more")
    if h == w == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def progressive_size(config: ProgressiveConfig, progress: float, size: int) -> int:
    """The side in pixels of the training images at some point of a run: a pure function, so nothing has to be saved.

    Args:
        config: where it begins, and when it is over.
        progress: share of the run that is done, in [0, 1].
        size: full side of the images.

    Returns:
        `size` from `config.until` on; before, a straight line from `config.size`, rounded down to whole steps of 4
        pixels from there, so that few shapes occur.

    Raises:
        ValueError: `progress` is no share.
    """
    _require(0 <= progress <= 1, "progress", progress, "a share in [0, 1]")
    if config.size is None or progress >= config.until:
        return size
    grown = (size - config.size) * progress / config.until
    return min(size, config.size + int(grown / 4) * 4)


class Augment:
    """The chain that a configuration describes: crop, flip, rotation, policy, colours, normalisation, erasing, cutout.

    A step that is off costs nothing and draws nothing. Crop and rotation show black where they uncover an edge, cutout
    shows the mean colour (0 after normalisation).

    Args:
        config: which steps, how strong.
        mean: one number a channel, in units of [0, 1].
        std: one number above 0 a channel, in units of [0, 1].
        seed: seed of the alternating flip's first orientations.

    Raises:
        ValueError: `mean` and `std` differ in length, or a std is not positive.
    """

    def __init__(self, config: AugmentConfig, mean: Sequence[float], std: Sequence[float], seed: int) -> None:
        _check_statistics(mean, std)
        self.config = config
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed

    def __call__(self, images: Tensor, indices: Tensor, epoch: int, rng: Generator, *, strong: bool = True) -> Tensor:
        """Augment and normalise a batch; the result is a function of the arguments and the generator's state alone.

        Args:
            images: (n, c, h, w) uint8; left unchanged.
            indices: (n,) int64, place of each image in the training set.
            epoch: epoch, 0 or more.
            rng: where all draws come from, on the device of the images.
            strong: whether to do more than crop and flip.

        Returns:
            (n, c, h, w) float32, normalised, on the device of `images`. With a consistency loss and `strong`, (3 * n,
            c, h, w): the images, a mix of each, and another mix of each.

        Raises:
            ValueError: `images` is not a uint8 batch, or a step of the configuration does not fit it.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}, expected torch.uint8")
        c = self.config
        if c.crop_padding:
            images = random_crop(images, c.crop_padding, rng, c.crop_border)
        if c.flip == "random":
            images = random_flip(images, rng)
        elif c.flip == "alternate":
            images = alternating_flip(images, indices, epoch, self.seed)
        if not strong:
            return normalize(images, self.mean, self.std)
        if c.rotation:
            images = rotate(images, c.rotation, rng)
        if c.policy != "none":
            images = self._policy(images, rng)
        if c.brightness or c.contrast or c.saturation or c.hue:
            # As floats, so that nothing is rounded back to uint8 before normalisation.
            images = color_jitter(images.float().div_(255), c.brightness, c.contrast, c.saturation, c.hue, rng)
        images = normalize(images, self.mean, self.std)
        if c.erase_p:
            images = random_erase(images, c.erase_p, c.erase_scale, c.erase_ratio, c.erase_value, rng)
        if c.cutout:
            images = cutout(images, c.cutout, rng)
        return images

    def _policy(self, images: Tensor, rng: Generator) -> Tensor:
        c = self.config
        magnitude = _MAGNITUDE if c.policy_magnitude is None else c.policy_magnitude
        if c.policy == "trivial":
            return trivial_augment(images, rng)
        if c.policy == "rand":
            return rand_augment(images, c.policy_ops or _RAND_OPS, magnitude, rng)
        if not c.consistency:
            return augmix(images, c.policy_ops or _AUGMIX_OPS, magnitude, rng)
        # One view after the other: on a CPU both at once fall out of the caches and take twice as long.
        return torch.cat([images, *(augmix(images, c.policy_ops or _AUGMIX_OPS, magnitude, rng) for _ in range(2))])


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {found}, expected {expected}")


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    _require(len(mean) == len(std), "std", tuple(std), f"as many numbers as mean has, {len(mean)}")
    _require(all(0 < s < math.inf for s in std), "std", tuple(std), "numbers above 0")


def _batch_shape(images: Tensor) -> tuple[int, int, int, int]:
    if images.dim() != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}, expected (n, c, h, w)")
    n, c, h, w = images.shape
    return n, c, h, w


def _per_channel(name: str, values: float | Sequence[float], images: Tensor, dtype: torch.dtype) -> Tensor:
    """(1, c, 1, 1) on the device of `images`, made by filling: copying a list to a GPU would make the host wait."""
    if isinstance(values, (int, float)):
        return torch.full((1, 1, 1, 1), values, dtype=dtype, device=images.device)
    _require(len(values) == images.shape[1], f"the length of {name}", len(values), f"the {images.shape[1]} channels")
    return torch.cat([torch.full((1, 1, 1, 1), v, dtype=dtype, device=images.device) for v in values], 1)


def _uniform(n: int, low: float, high: float, rng: Generator, device: torch.device) -> Tensor:
    return draws.rand((n,), rng, device).mul_(high - low).add_(low)


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    """The source of each of `size + 2 * padding` rows or columns when the edges are mirrors."""
    places = torch.arange(-padding, size + padding, device=device)
    return (size - 1) - (places.abs() - (size - 1)).abs()


def _flip_where(flipped: Tensor, images: Tensor) -> Tensor:
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)


def _splitmix(seed: int) -> int:
    mask = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def _hash_bit(indices: Tensor, seed: int) -> Tensor:
    """(n,) bool: the top bit of SplitMix64 at each index of the stream that `seed` begins, in wrapping int64."""

    def signed(value: int) -> int:
        return value - 2**64 if value >= 2**63 else value

    def shifted(z: Tensor, bits: int) -> Tensor:
        return (z >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts in copies of the sign; these are not wanted

    z = indices * signed(0x9E3779B97F4A7C15) + signed(_splitmix(seed))
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    return z < 0  # the last step of SplitMix64 leaves the top bit as it is


def _luma(pixels: Tensor) -> Tensor:
    """(n, 1, h, w): grey of (n, c, h, w) with one channel or three."""
    if pixels.shape[1] == 1:
        return pixels.clone()
    red, green, blue = pixels.unbind(1)
    grey = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return grey.unsqueeze(1)


def _turn_hue_(pixels: Tensor, turns: Tensor) -> None:
    """Add `turns` (n, 1, 1) to the hue of `pixels` (n, 3, h, w) in [0, 1], in place; HSV's value and saturation stay.

    With the hue in sixths of the wheel, each channel is low + chroma * ramp(hue), so HSV itself is never built.
    """
    red, green, blue = pixels.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Where the pixel is grey, the numerators are 0 and so is the chroma: any divisor will do.
    divisor = chroma.clamp_min(torch.finfo(pixels.dtype).tiny)
    from_green = (blue - red).div_(divisor).add_(2)
    from_blue = (red - green).div_(divisor).add_(4)
    hue = torch.where(high == green, from_green, from_blue)
    hue = torch.where(high == red, (green - blue).div_(divisor), hue).add_(turns * 6)
    hue.sub_((hue / 6).floor_().mul_(6))
    ramps = ((hue - 3).abs_().sub_(1), (hue - 2).abs_().neg_().add_(2), (hue - 4).abs_().neg_().add_(2))
    for channel, ramp in zip((red, green, blue), ramps, strict=True):
        torch.addcmul(low, chroma, ramp.clamp_(0, 1), out=channel)
    pixels.clamp_(0, 1)  # low + (high - low) may exceed high by a rounding
