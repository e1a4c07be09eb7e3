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
import hashlib
import io
import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetnet.errors import ConfigError, DataError
from budgetnet.images import SIDE

SEVERITIES = (1, 2, 3, 4, 5)

_Levels = NDArray[np.uint8]
"""Images (n, 32, 32, 3) in [0, 255]."""
_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]
# From images and a severity's setting to levels in [0, 255]; what is outside is clipped, and fractions are cut off.
_Corruption = Callable[[_Levels, Any, "_Draws"], _Floats | _Levels]
# How an image goes on beyond its edge: abc|ccc, abc|cba or abc|ba.
_Border = Literal["nearest", "reflect", "mirror"]

_TOGETHER = 64  # images: their float64 pixels fill a core's cache and no more
_GREY = (0.299, 0.587, 0.114)


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
    function, settings = _CORRUPTIONS[name]
    keys = _keys(f"{seed} {name} {severity}", indices.numpy())
    corrupted = torch.empty_like(images, memory_format=torch.contiguous_format)
    for start in range(0, len(images), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        levels = np.ascontiguousarray(images[some].permute(0, 2, 3, 1).numpy())
        found = function(levels, settings[severity - 1], _Draws(keys[some]))
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


# Random numbers


def _keys(purpose: str, indices: _Integers) -> NDArray[np.uint64]:
    start = np.frombuffer(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "<u8")
    return _mixed(start + indices.astype(np.uint64) * _GOLDEN)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014), in wrapping arithmetic."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class _Draws:
    """Random numbers for n images, each from a stream of its own that its key begins.

    Not NumPy's distributions: these may change with its version, and a generator an image would take most of the time.
    """

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._keys = keys
        self._used = 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> _Floats:
        """(n, *shape), between `low` and `high`, neither included in [0, 1]."""
        count = math.prod(shape)
        steps = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64) * _GOLDEN
        self._used += count
        bits = _mixed(self._keys[:, None] + steps) >> np.uint64(12)  # 52, to which a half can be added exactly
        unit = (bits.astype(np.float64) + 0.5) * 2.0**-52
        found: _Floats = (low + (high - low) * unit).reshape(len(unit), *shape)
        return found

    def normal(self, *shape: int) -> _Floats:
        """(n, *shape), standard normal (Box and Muller 1958)."""
        count = math.prod(shape)
        pairs = self.uniform(2, (count + 1) // 2)
        radius, angle = np.sqrt(-2 * np.log(pairs[:, 0])), 2 * np.pi * pairs[:, 1]
        found = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]
        return found.reshape(len(found), *shape)


def _unit(levels: _Levels) -> _Floats:
    return levels.astype(np.float64) / 255


# Filters over (n, h, w) or (n, h, w, 3). Sums are written out tap by tap: in one order, whatever the size of the batch.


def _inside(positions: _Integers, size: int, border: _Border) -> _Integers:
    """The position within [0, size) whose value an image shows at each position, also beyond its edges."""
    if border == "nearest":
        return np.clip(positions, 0, size - 1)
    period = 2 * size if border == "reflect" else 2 * (size - 1)
    folded = positions % period
    return np.where(folded < size, folded, period - (border == "reflect") - folded)


def _filtered(x: _Floats, weights: _Floats, axis: int, border: _Border) -> _Floats:
    """Correlate along one axis with an odd number of weights, each as large as its opposite."""
    size, reach = x.shape[axis], len(weights) // 2
    padded = np.take(x, _inside(np.arange(-reach, size + reach), size, border), axis)

    def window(start: int) -> _Floats:
        return padded[(*[slice(None)] * axis, slice(start, start + size))]

    sign = 1.0 if weights[0] == weights[-1] else -1.0
    total: _Floats = weights[reach] * x
    # In SciPy's order, so that 255 everywhere stays 255 wherever it does there, before fractions are cut off.
    for i in range(reach):
        total += (window(i) + sign * window(2 * reach - i)) * weights[i]
    return total


def _gaussian(x: _Floats, sigma: float, border: _Border = "nearest", truncate: float = 4.0) -> _Floats:
    """As scikit-image's and SciPy's Gaussian filters."""
    reach = int(truncate * sigma + 0.5)
    if reach == 0:
        return x
    weights = np.exp(-0.5 / sigma**2 * np.arange(-reach, reach + 1) ** 2)
    weights /= weights.sum()
    return _filtered(_filtered(x, weights, 1, border), weights, 2, border)


def _correlated(x: _Floats, kernel: _Floats) -> _Floats:
    """As OpenCV's filter2D: correlate with a kernel (odd, odd); the border is mirrored."""
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    height, width = x.shape[1:3]
    padded = np.take(x, _inside(np.arange(-up, height + up), height, "mirror"), 1)
    padded = np.take(padded, _inside(np.arange(-left, width + left), width, "mirror"), 2)
    total = np.zeros_like(x)
    for i, j in zip(*np.nonzero(kernel), strict=True):
        total += kernel[i, j] * padded[:, i : i + height, j : j + width]
    return total


def _motion(x: _Floats, radius: float, sigma: float, degrees: _Floats) -> _Floats:
    """As ImageMagick's MotionBlurImage on levels in [0, 255]: half a Gaussian on one side of each pixel, rounded.

    `degrees` (n,) is the direction in which each image's pixels look for the others.
    """
    n, height, width = x.shape[:3]
    taps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    across, down = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    each = np.arange(n)[:, None, None]
    total = np.zeros_like(x)
    for i, weight in enumerate(weights):
        rows = np.arange(height) + np.ceil(i * down - 0.5).astype(np.int64)[:, None]
        columns = np.arange(width) + np.ceil(i * across - 0.5).astype(np.int64)[:, None]
        rows, columns = _inside(rows, height, "nearest"), _inside(columns, width, "nearest")
        total += weight * x[each, rows[:, :, None], columns[:, None, :]]
    return np.floor(total + 0.5)


def _zoomed(x: _Floats, factor: float) -> _Floats:
    """The middle of each image, enlarged by linear interpolation to the old size."""
    size = x.shape[1]
    kept = math.ceil(size / factor)
    enlarged = round(kept * factor)
    first, trimmed = (size - kept) // 2, (enlarged - size) // 2
    place = np.minimum((np.arange(size) + trimmed) * ((kept - 1) / (enlarged - 1)), kept - 1)
    low = np.floor(place).astype(np.int64)
    high, share = np.minimum(low + 1, kept - 1), place - low
    for axis in (1, 2):
        part = share.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x = (1 - part) * np.take(x, first + low, axis) + part * np.take(x, first + high, axis)
    return x


def _sampled(x: _Floats, rows: _Floats, columns: _Floats, border: _Border) -> _Floats:
    """The images (n, h, w, 3) at real positions (n, h, w), by bilinear interpolation."""
    n, height, width = x.shape[:3]
    each = np.arange(n)[:, None, None]
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    row, column = top.astype(np.int64), left.astype(np.int64)
    above, below = (_inside(row + i, height, border) for i in (0, 1))
    before, after = (_inside(column + i, width, border) for i in (0, 1))
    upper = (1 - right) * x[each, above, before] + right * x[each, above, after]
    lower = (1 - right) * x[each, below, before] + right * x[each, below, after]
    return (1 - down) * upper + down * lower


def _plasma(draws: _Draws, decay: float) -> _Floats:
    """(n, 32, 32) clouds in [0, 1] that tile, by the diamond-square algorithm (Fournier, Fussell, Carpenter 1982).

    The noise of each halving is weaker by the square of `decay`, as theirs is.
    """
    field = np.zeros((len(draws.uniform(1)), SIDE, SIDE))
    step, wobble = SIDE, 100.0

    def disturbed(total: _Floats) -> _Floats:
        return total / 4 + wobble * draws.uniform(*total.shape[1:], low=-wobble, high=wobble)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, 1)
        centres = disturbed(pairs + np.roll(pairs, -1, 2))
        field[:, half::step, half::step] = centres
        beside, above = corners + np.roll(corners, -1, 2), corners + np.roll(corners, -1, 1)
        field[:, ::step, half::step] = disturbed(centres + np.roll(centres, 1, 1) + beside)
        field[:, half::step, ::step] = disturbed(centres + np.roll(centres, 1, 2) + above)
        step, wobble = half, wobble / decay
    field -= field.min((1, 2), keepdims=True)
    highest: _Floats = field.max((1, 2), keepdims=True)
    return field / highest


# Noise


def _gaussian_noise(levels: _Levels, deviation: float, draws: _Draws) -> _Floats:
    return (_unit(levels) + deviation * draws.normal(*levels.shape[1:])) * 255


def _shot_noise(levels: _Levels, photons: float, draws: _Draws) -> _Floats:
    starts, cumulated = _poisson(photons)
    # In the one table of all levels, level v's probabilities lie between v and v + 1.
    found = np.searchsorted(cumulated, draws.uniform(*levels.shape[1:]) + levels)
    return (found - starts[levels]) / photons * 255


@cache
def _poisson(photons: float) -> tuple[_Integers, _Floats]:
    """Where each of 256 levels begins in the table, and the table: level + the probability of at most k counts."""
    counts = np.arange(int(photons + 12 * math.sqrt(photons)) + 20, dtype=np.float64)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    mean = np.arange(256)[:, None] / 255 * photons
    table = np.ones((256, len(counts)))
    table[1:] = np.exp(counts * np.log(mean[1:]) - mean[1:] - log_factorials).cumsum(1)
    table[:, -1] = 1.0
    starts: _Integers = np.arange(256, dtype=np.int64) * len(counts)
    cumulated: _Floats = np.minimum(table, 1.0) + np.arange(256.0)[:, None]
    return starts, cumulated.ravel()


def _impulse_noise(levels: _Levels, share: float, draws: _Draws) -> _Floats:
    hit, salt = draws.uniform(*levels.shape[1:]) < share, draws.uniform(*levels.shape[1:]) < 0.5
    return np.where(hit, np.where(salt, 255.0, 0.0), levels)


def _speckle_noise(levels: _Levels, deviation: float, draws: _Draws) -> _Floats:
    x = _unit(levels)
    return (x + x * deviation * draws.normal(*levels.shape[1:])) * 255


# Blur


def _defocus_blur(levels: _Levels, setting: tuple[float, float], draws: _Draws) -> _Floats:
    radius, softness = setting
    reach = np.arange(-3, 4)  # beyond are only zeros: the largest radius is 1.5, softened by a pixel
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float64)
    soft = np.exp(-0.5 * (np.array([-1.0, 0.0, 1.0]) / softness) ** 2)
    soft /= soft.sum()
    disk = _filtered(_filtered(disk[None] / disk.sum(), soft, 1, "nearest"), soft, 2, "nearest")[0]
    return _correlated(_unit(levels), disk) * 255


def _glass_blur(levels: _Levels, setting: tuple[float, int], draws: _Draws) -> _Floats:
    """Each pixel shows one of its upper left neighbours, between two soft blurs.

    Their code reads as if two pixels were swapped, going from the last to the first. But NumPy's rows are views, so
    that one value is written twice, and by that order always one that was not written before: a pass is one gather.
    """
    sigma, passes = setting
    x = np.trunc(_gaussian(_unit(levels), sigma) * 255)
    each, place = np.arange(len(x))[:, None, None], np.arange(2, SIDE)
    for _ in range(passes):
        across, down = (np.floor(draws.uniform(SIDE - 2, SIDE - 2, low=-1.0)).astype(np.int64) for _ in range(2))
        x[:, 2:, 2:] = x[each, place[:, None] + down, place + across]
    return _gaussian(x / 255, sigma) * 255


def _motion_blur(levels: _Levels, setting: tuple[float, float], draws: _Draws) -> _Floats:
    return _motion(levels.astype(np.float64), *setting, draws.uniform(low=-45, high=45))


def _zoom_blur(levels: _Levels, farthest: float, draws: _Draws) -> _Floats:
    x = _unit(levels)
    factors = np.arange(1, farthest, 0.01)  # whose length is what theirs is, by the same rounding
    total = x.copy()
    for factor in factors.tolist():
        total += _zoomed(x, factor)
    return total / (len(factors) + 1) * 255


def _gaussian_blur(levels: _Levels, sigma: float, draws: _Draws) -> _Floats:
    return _gaussian(_unit(levels), sigma) * 255


# Weather


def _snow(levels: _Levels, setting: tuple[float, ...], draws: _Draws) -> _Floats:
    mean, deviation, zoom, threshold, radius, sigma, kept = setting
    x = _unit(levels)
    flakes = _zoomed(mean + deviation * draws.normal(SIDE, SIDE), zoom)
    flakes[flakes < threshold] = 0
    flakes = np.trunc(np.clip(flakes, 0, 1) * 255)
    flakes = _motion(flakes, radius, sigma, draws.uniform(low=-135, high=-45))[..., None] / 255
    red, green, blue = (x[..., i : i + 1] for i in range(3))
    grey = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
    x = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return (x + flakes + np.rot90(flakes, 2, (1, 2))) * 255


# Mean colour of five kinds of frost and how far its crystals rise from it, in levels; like those of their photographs.
_FROST_COLOURS = np.array([[80.0, 150, 165], [202, 205, 213], [200, 206, 215], [140, 153, 165], [112, 123, 135]])
_FROST_RISES = np.array([18.0, 20, 20, 22, 36])


def _frost(levels: _Levels, setting: tuple[float, float], draws: _Draws) -> _Floats:
    """A stand-in for theirs, which blends in cut-outs of five photographs of frost.

    The texture is of needles in three directions, each where clouds let it show, over a slow change of brightness.
    """
    kept, added = setting
    kind = np.floor(draws.uniform(low=0, high=5)).astype(np.int64)
    texture = 2.5 * (_plasma(draws, 2.0) - 0.5)
    for _ in range(3):
        needles = _motion(draws.uniform(SIDE, SIDE, high=255), 6, 3, draws.uniform(high=360))
        texture = np.maximum(texture, (needles / 255 - 0.5) * 7 + 2.5 * (_plasma(draws, 2.0) - 0.8))
    rise = (_FROST_RISES[kind][:, None, None] * np.clip(texture - 0.4, -2, 3))[..., None]
    frost: _Floats = np.clip(_FROST_COLOURS[kind][:, None, None] + rise, 0, 255)
    return kept * levels + added * frost


def _fog(levels: _Levels, setting: tuple[float, float], draws: _Draws) -> _Floats:
    thickness, decay = setting
    x = _unit(levels)
    brightest: _Floats = x.max((1, 2, 3), keepdims=True)
    return (x + thickness * _plasma(draws, decay)[..., None]) * brightest / (brightest + thickness) * 255


def _brightness(levels: _Levels, added: float, draws: _Draws) -> _Floats:
    """The value of HSV is raised, which scales a pixel's channels alike; black has no hue and becomes grey."""
    x = _unit(levels)
    value: _Floats = x.max(-1, keepdims=True)
    raised = np.minimum(value + added, 1.0)
    return np.where(value > 0, x / np.where(value > 0, value, 1.0) * raised, raised) * 255


_MUD: _Floats = np.array([63.0, 42, 20]) / 255
_WATER: _Floats = np.array([175.0, 238, 238]) / 255


def _spatter(levels: _Levels, setting: tuple[float, ...], draws: _Draws) -> _Floats:
    mean, deviation, sigma, threshold, strength, mud = setting
    x = _unit(levels)
    liquid = _gaussian(mean + deviation * draws.normal(SIDE, SIDE), sigma)
    if mud:
        cover = _gaussian((liquid > threshold).astype(np.float64), strength)[..., None]
        cover[cover < 0.8] = 0
        return (x * (1 - cover) + cover * _MUD) * 255
    liquid = np.trunc(np.where(liquid < threshold, 0, np.minimum(liquid, 1)) * 255)
    box, relief = np.full((3, 3), 1 / 9), np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    # Added up before division, so that nine equal levels stay what they are.
    depth = np.trunc(_correlated(np.minimum(_distances(_edges(liquid)), 20), np.ones((3, 3))) / 9)
    lit = np.clip(_correlated(_equalized(depth), relief), 0, 255)
    wet = liquid * np.rint(_correlated(lit, box))
    most: _Floats = wet.max((1, 2), keepdims=True)
    water: _Floats = (strength * wet / np.where(most > 0, most, 1.0))[..., None]
    return (x + water * _WATER) * 255


def _edges(levels: _Floats) -> NDArray[np.bool_]:
    """As OpenCV's Canny with thresholds of 50 and 150 (Canny 1986), of (n, h, w) levels."""
    smooth, slope = np.array([1.0, 2, 1]), np.array([-1.0, 0, 1])
    across = _filtered(_filtered(levels, smooth, 1, "nearest"), slope, 2, "nearest")
    down = _filtered(_filtered(levels, smooth, 2, "nearest"), slope, 1, "nearest")
    strength = np.abs(across) + np.abs(down)
    height, width = levels.shape[1:]
    padded = np.pad(strength, ((0, 0), (1, 1), (1, 1)))

    def beside(dy: int, dx: int) -> _Floats:
        return padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    tan = math.tan(math.pi / 8)
    flat, steep = np.abs(down) < tan * np.abs(across), np.abs(down) > np.abs(across) / tan
    falling = across * down < 0
    peak = np.select(
        [flat, steep, falling],
        [
            (strength > beside(0, -1)) & (strength >= beside(0, 1)),
            (strength > beside(-1, 0)) & (strength >= beside(1, 0)),
            (strength > beside(-1, 1)) & (strength > beside(1, -1)),
        ],
        (strength > beside(-1, -1)) & (strength > beside(1, 1)),
    )
    candidates, edges = peak & (strength > 50), peak & (strength > 150)
    while True:
        near = np.pad(edges, ((0, 0), (1, 1), (1, 1)))
        grown = edges.copy()
        for dy in range(3):
            for dx in range(3):
                grown |= near[:, dy : dy + height, dx : dx + width]
        grown &= candidates
        if (grown == edges).all():
            return edges
        edges = grown


def _distances(marked: NDArray[np.bool_]) -> _Floats:
    """The distance of each pixel to the nearest marked one (n, h, w); far where none is marked."""
    place = np.arange(SIDE, dtype=np.float64)
    beside = np.full(marked.shape, 1e6)
    for column in range(SIDE):
        beside = np.minimum(beside, np.where(marked[:, :, column, None], (place - column) ** 2, 1e6))
    squares = np.full(marked.shape, 1e6)
    for row in range(SIDE):
        squares = np.minimum(squares, beside[:, row, None] + (place[:, None] - row) ** 2)
    distances: _Floats = np.sqrt(squares)
    return distances


def _equalized(levels: _Floats) -> _Floats:
    """As OpenCV's equalizeHist, of (n, h, w) levels up to 20."""
    at_most = np.stack([(levels <= level).sum((1, 2)) for level in range(21)], 1)
    lowest = np.take_along_axis(at_most, levels.min((1, 2)).astype(np.int64)[:, None], 1)
    count = levels[0].size
    spread = np.rint((at_most - lowest) * (255 / np.maximum(count - lowest, 1)))
    table = np.where(lowest == count, np.arange(21.0), np.maximum(spread, 0))
    return np.take_along_axis(table, levels.reshape(len(levels), -1).astype(np.int64), 1).reshape(levels.shape)


# Digital


def _contrast(levels: _Levels, kept: float, draws: _Draws) -> _Floats:
    # A sum of integers, which is the same in any order.
    means: _Floats = levels.sum((1, 2), keepdims=True, dtype=np.int64) / (255.0 * SIDE * SIDE)
    return ((_unit(levels) - means) * kept + means) * 255


def _elastic_transform(levels: _Levels, setting: tuple[float, float, float], draws: _Draws) -> _Floats:
    """An affine map that moves three points at random, then smooth random displacements."""
    strength, sigma, reach = (SIDE * part for part in setting)
    middle, square = SIDE // 2, SIDE // 3
    corners = np.array([[middle + square] * 2, [middle + square, middle - square], [middle - square] * 2], float)
    inverse = np.linalg.inv(np.column_stack([corners, np.ones(3)]))
    moved = corners + draws.uniform(3, 2, low=-reach, high=reach)
    # affine[:, j] is the image of the j-th base vector, and of the origin for j = 2.
    affine = np.zeros_like(moved)
    for i in range(3):
        affine += inverse[:, i, None] * moved[:, None, i]
    (ax, ay), (bx, by), (ox, oy) = (affine[:, j].T[:, :, None, None] for j in range(3))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    scale = ax * by - bx * ay
    columns, rows = (by * (x - ox) - bx * (y - oy)) / scale, (ax * (y - oy) - ay * (x - ox)) / scale
    warped = _sampled(_unit(levels), rows, columns, "mirror")
    across, down = (
        strength * _gaussian(draws.uniform(SIDE, SIDE, low=-1), sigma, "reflect", truncate=3) for _ in range(2)
    )
    return _sampled(warped, y + down, x + across, "reflect") * 255


def _pixelate(levels: _Levels, kept: float, draws: _Draws) -> _Levels:
    from PIL import Image

    size = int(SIDE * kept)

    def coarse(pixels: _Levels) -> _Levels:
        small = Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX)
        return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX))

    return np.stack([coarse(pixels) for pixels in levels])


def _jpeg_compression(levels: _Levels, quality: int, draws: _Draws) -> _Levels:
    from PIL import Image

    def compressed(pixels: _Levels) -> _Levels:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            return np.asarray(image)

    return np.stack([compressed(pixels) for pixels in levels])


def _saturate(levels: _Levels, setting: tuple[float, float], draws: _Draws) -> _Floats:
    """The saturation of HSV is scaled and raised, which moves channels below the largest away from it.

    Greys have the hue 0, which is red, and so turn reddish where saturation is raised, as theirs do.
    """
    factor, added = setting
    x = _unit(levels)
    value: _Floats = x.max(-1, keepdims=True)
    drop = value - x
    saturation: _Floats = drop.max(-1, keepdims=True) / np.where(value > 0, value, 1.0)
    raised: _Floats = np.clip(saturation * factor + added, 0, 1)
    grey = saturation == 0
    red = np.array([0.0, 1.0, 1.0]) * value * raised
    return (value - np.where(grey, red, drop * (raised / np.where(grey, 1.0, saturation)))) * 255


_CORRUPTIONS: dict[str, tuple[_Corruption, tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (_glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40)),
    "speckle_noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "spatter": (
        _spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    ),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
NAMES = tuple(_CORRUPTIONS)
"""All 19, in the order in which tables list them."""
COMMON, EXTRA = NAMES[:15], NAMES[15:]
"""The 15 that the mean corruption accuracy is over, and the 4 beside them."""
