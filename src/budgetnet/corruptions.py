"""What each corruption of CIFAR-10-C does to a batch of 32x32 images, and its settings at five severities.

Constants and order of operations are those of make_cifar_c.py (Hendrycks and Dietterich 2019, arXiv:1903.12261), down
to their cutting off, where one would round, of fractions of a level; `shift` says what differs.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetnet.filters import Floats, correlated, filtered, gaussian, motion, sampled, zoomed
from budgetnet.images import SIDE
from budgetnet.streams import Streams

Levels = NDArray[np.uint8]
"""Images (n, 32, 32, 3) in [0, 255]."""
Corruption = Callable[[Levels, Any, Streams], Floats | Levels]
"""From images and a severity's setting to levels in [0, 255]; what is outside is clipped, and fractions are cut off."""

_Integers = NDArray[np.int64]

_GREY = (0.299, 0.587, 0.114)


def _unit(levels: Levels) -> Floats:
    return levels.astype(np.float64) / 255


def _plasma(draws: Streams, decay: float) -> Floats:
    """(n, 32, 32) clouds in [0, 1] that tile, by the diamond-square algorithm (Fournier, Fussell, Carpenter 1982).

    The noise of each halving is weaker by the square of `decay`, as theirs is.
    """
    field = np.zeros((len(draws.uniform(1)), SIDE, SIDE))
    step, wobble = SIDE, 100.0

    def disturbed(total: Floats) -> Floats:
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
    highest: Floats = field.max((1, 2), keepdims=True)
    return field / highest


# Noise


def _gaussian_noise(levels: Levels, deviation: float, draws: Streams) -> Floats:
    return (_unit(levels) + deviation * draws.normal(*levels.shape[1:])) * 255


def _shot_noise(levels: Levels, photons: float, draws: Streams) -> Floats:
    starts, cumulated = _poisson(photons)
    # In the one table of all levels, level v's probabilities lie between v and v + 1.
    found = np.searchsorted(cumulated, draws.uniform(*levels.shape[1:]) + levels)
    return (found - starts[levels]) / photons * 255


@cache
def _poisson(photons: float) -> tuple[_Integers, Floats]:
    """Where each of 256 levels begins in the table, and the table: level + the probability of at most k counts."""
    counts = np.arange(int(photons + 12 * math.sqrt(photons)) + 20, dtype=np.float64)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    mean = np.arange(256)[:, None] / 255 * photons
    table = np.ones((256, len(counts)))
    table[1:] = np.exp(counts * np.log(mean[1:]) - mean[1:] - log_factorials).cumsum(1)
    table[:, -1] = 1.0
    starts: _Integers = np.arange(256, dtype=np.int64) * len(counts)
    cumulated: Floats = np.minimum(table, 1.0) + np.arange(256.0)[:, None]
    return starts, cumulated.ravel()


def _impulse_noise(levels: Levels, share: float, draws: Streams) -> Floats:
    hit, salt = draws.uniform(*levels.shape[1:]) < share, draws.uniform(*levels.shape[1:]) < 0.5
    return np.where(hit, np.where(salt, 255.0, 0.0), levels)


def _speckle_noise(levels: Levels, deviation: float, draws: Streams) -> Floats:
    x = _unit(levels)
    return (x + x * deviation * draws.normal(*levels.shape[1:])) * 255


# Blur


def _defocus_blur(levels: Levels, setting: tuple[float, float], draws: Streams) -> Floats:
    radius, softness = setting
    reach = np.arange(-3, 4)  # beyond are only zeros: the largest radius is 1.5, softened by a pixel
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float64)
    soft = np.exp(-0.5 * (np.array([-1.0, 0.0, 1.0]) / softness) ** 2)
    soft /= soft.sum()
    disk = filtered(filtered(disk[None] / disk.sum(), soft, 1, "nearest"), soft, 2, "nearest")[0]
    return correlated(_unit(levels), disk) * 255


def _glass_blur(levels: Levels, setting: tuple[float, int], draws: Streams) -> Floats:
    """Each pixel shows one of its upper left neighbours, between two soft blurs.

    Their code reads as if two pixels were swapped, going from the last to the first. But NumPy's rows are views, so
    that one value is written twice, and by that order always one that was not written before: a pass is one gather.
    """
    sigma, passes = setting
    x = np.trunc(gaussian(_unit(levels), sigma) * 255)
    each, place = np.arange(len(x))[:, None, None], np.arange(2, SIDE)
    for _ in range(passes):
        across, down = (np.floor(draws.uniform(SIDE - 2, SIDE - 2, low=-1.0)).astype(np.int64) for _ in range(2))
        x[:, 2:, 2:] = x[each, place[:, None] + down, place + across]
    return gaussian(x / 255, sigma) * 255


def _motion_blur(levels: Levels, setting: tuple[float, float], draws: Streams) -> Floats:
    return motion(levels.astype(np.float64), *setting, draws.uniform(low=-45, high=45))


def _zoom_blur(levels: Levels, farthest: float, draws: Streams) -> Floats:
    x = _unit(levels)
    factors = np.arange(1, farthest, 0.01)  # whose length is what theirs is, by the same rounding
    total = x.copy()
    for factor in factors.tolist():
        total += zoomed(x, factor)
    return total / (len(factors) + 1) * 255


def _gaussian_blur(levels: Levels, sigma: float, draws: Streams) -> Floats:
    return gaussian(_unit(levels), sigma) * 255


# Weather


def _snow(levels: Levels, setting: tuple[float, ...], draws: Streams) -> Floats:
    mean, deviation, zoom, threshold, radius, sigma, kept = setting
    x = _unit(levels)
    flakes = zoomed(mean + deviation * draws.normal(SIDE, SIDE), zoom)
    flakes[flakes < threshold] = 0
    flakes = np.trunc(np.clip(flakes, 0, 1) * 255)
    flakes = motion(flakes, radius, sigma, draws.uniform(low=-135, high=-45))[..., None] / 255
    red, green, blue = (x[..., i : i + 1] for i in range(3))
    grey = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
    x = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return (x + flakes + np.rot90(flakes, 2, (1, 2))) * 255


# Mean colour of five kinds of frost and how far its crystals rise from it, in levels; like those of their photographs.
_FROST_COLOURS = np.array([[80.0, 150, 165], [202, 205, 213], [200, 206, 215], [140, 153, 165], [112, 123, 135]])
_FROST_RISES = np.array([18.0, 20, 20, 22, 36])


def _frost(levels: Levels, setting: tuple[float, float], draws: Streams) -> Floats:
    """A stand-in for theirs, which blends in cut-outs of five photographs of frost.

    The texture is of needles in three directions, each where clouds let it show, over a slow change of brightness.
    """
    kept, added = setting
    kind = np.floor(draws.uniform(low=0, high=5)).astype(np.int64)
    texture = 2.5 * (_plasma(draws, 2.0) - 0.5)
    for _ in range(3):
        needles = motion(draws.uniform(SIDE, SIDE, high=255), 6, 3, draws.uniform(high=360))
        texture = np.maximum(texture, (needles / 255 - 0.5) * 7 + 2.5 * (_plasma(draws, 2.0) - 0.8))
    rise = (_FROST_RISES[kind][:, None, None] * np.clip(texture - 0.4, -2, 3))[..., None]
    frost: Floats = np.clip(_FROST_COLOURS[kind][:, None, None] + rise, 0, 255)
    return kept * levels + added * frost


def _fog(levels: Levels, setting: tuple[float, float], draws: Streams) -> Floats:
    thickness, decay = setting
    x = _unit(levels)
    brightest: Floats = x.max((1, 2, 3), keepdims=True)
    return (x + thickness * _plasma(draws, decay)[..., None]) * brightest / (brightest + thickness) * 255


def _brightness(levels: Levels, added: float, draws: Streams) -> Floats:
    """The value of HSV is raised, which scales a pixel's channels alike; black has no hue and becomes grey."""
    x = _unit(levels)
    value: Floats = x.max(-1, keepdims=True)
    raised = np.minimum(value + added, 1.0)
    return np.where(value > 0, x / np.where(value > 0, value, 1.0) * raised, raised) * 255


_MUD: Floats = np.array([63.0, 42, 20]) / 255
_WATER: Floats = np.array([175.0, 238, 238]) / 255


def _spatter(levels: Levels, setting: tuple[float, ...], draws: Streams) -> Floats:
    mean, deviation, sigma, threshold, strength, mud = setting
    x = _unit(levels)
    liquid = gaussian(mean + deviation * draws.normal(SIDE, SIDE), sigma)
    if mud:
        cover = gaussian((liquid > threshold).astype(np.float64), strength)[..., None]
        cover[cover < 0.8] = 0
        return (x * (1 - cover) + cover * _MUD) * 255
    liquid = np.trunc(np.where(liquid < threshold, 0, np.minimum(liquid, 1)) * 255)
    box, relief = np.full((3, 3), 1 / 9), np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    # Added up before division, so that nine equal levels stay what they are.
    depth = np.trunc(correlated(np.minimum(_distances(_edges(liquid)), 20), np.ones((3, 3))) / 9)
    lit = np.clip(correlated(_equalized(depth), relief), 0, 255)
    wet = liquid * np.rint(correlated(lit, box))
    most: Floats = wet.max((1, 2), keepdims=True)
    water: Floats = (strength * wet / np.where(most > 0, most, 1.0))[..., None]
    return (x + water * _WATER) * 255


def _edges(levels: Floats) -> NDArray[np.bool_]:
    """As OpenCV's Canny with thresholds of 50 and 150 (Canny 1986), of (n, h, w) levels."""
    smooth, slope = np.array([1.0, 2, 1]), np.array([-1.0, 0, 1])
    across = filtered(filtered(levels, smooth, 1, "nearest"), slope, 2, "nearest")
    down = filtered(filtered(levels, smooth, 2, "nearest"), slope, 1, "nearest")
    strength = np.abs(across) + np.abs(down)
    height, width = levels.shape[1:]
    padded = np.pad(strength, ((0, 0), (1, 1), (1, 1)))

    def beside(dy: int, dx: int) -> Floats:
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


def _distances(marked: NDArray[np.bool_]) -> Floats:
    """The distance of each pixel to the nearest marked one (n, h, w); far where none is marked."""
    place = np.arange(SIDE, dtype=np.float64)
    beside = np.full(marked.shape, 1e6)
    for column in range(SIDE):
        beside = np.minimum(beside, np.where(marked[:, :, column, None], (place - column) ** 2, 1e6))
    squares = np.full(marked.shape, 1e6)
    for row in range(SIDE):
        squares = np.minimum(squares, beside[:, row, None] + (place[:, None] - row) ** 2)
    distances: Floats = np.sqrt(squares)
    return distances


def _equalized(levels: Floats) -> Floats:
    """As OpenCV's equalizeHist, of (n, h, w) levels up to 20."""
    at_most = np.stack([(levels <= level).sum((1, 2)) for level in range(21)], 1)
    lowest = np.take_along_axis(at_most, levels.min((1, 2)).astype(np.int64)[:, None], 1)
    count = levels[0].size
    spread = np.rint((at_most - lowest) * (255 / np.maximum(count - lowest, 1)))
    table = np.where(lowest == count, np.arange(21.0), np.maximum(spread, 0))
    return np.take_along_axis(table, levels.reshape(len(levels), -1).astype(np.int64), 1).reshape(levels.shape)


# Digital


def _contrast(levels: Levels, kept: float, draws: Streams) -> Floats:
    # A sum of integers, which is the same in any order.
    means: Floats = levels.sum((1, 2), keepdims=True, dtype=np.int64) / (255.0 * SIDE * SIDE)
    return ((_unit(levels) - means) * kept + means) * 255


def _elastic_transform(levels: Levels, setting: tuple[float, float, float], draws: Streams) -> Floats:
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
    warped = sampled(_unit(levels), rows, columns, "mirror")
    across, down = (
        strength * gaussian(draws.uniform(SIDE, SIDE, low=-1), sigma, "reflect", truncate=3) for _ in range(2)
    )
    return sampled(warped, y + down, x + across, "reflect") * 255


def _pixelate(levels: Levels, kept: float, draws: Streams) -> Levels:
    from PIL import Image

    size = int(SIDE * kept)

    def coarse(pixels: Levels) -> Levels:
        small = Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX)
        return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX))

    return np.stack([coarse(pixels) for pixels in levels])


def _jpeg_compression(levels: Levels, quality: int, draws: Streams) -> Levels:
    from PIL import Image

    def compressed(pixels: Levels) -> Levels:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            return np.asarray(image)

    return np.stack([compressed(pixels) for pixels in levels])


def _saturate(levels: Levels, setting: tuple[float, float], draws: Streams) -> Floats:
    """The saturation of HSV is scaled and raised, which moves channels below the largest away from it.

    Greys have the hue 0, which is red, and so turn reddish where saturation is raised, as theirs do.
    """
    factor, added = setting
    x = _unit(levels)
    value: Floats = x.max(-1, keepdims=True)
    drop = value - x
    saturation: Floats = drop.max(-1, keepdims=True) / np.where(value > 0, value, 1.0)
    raised: Floats = np.clip(saturation * factor + added, 0, 1)
    grey = saturation == 0
    red = np.array([0.0, 1.0, 1.0]) * value * raised
    return (value - np.where(grey, red, drop * (raised / np.where(grey, 1.0, saturation)))) * 255


CORRUPTIONS: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
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
"""Of each, what it does, and its setting at each severity, from 1 to 5; the 15 common ones come before the 4 extra."""
