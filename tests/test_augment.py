"""Each augmentation against a slow, obvious reference for one image, and the distributions of what is drawn."""

import colorsys
import dataclasses
import inspect
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from budgetnet import augment, policies
from budgetnet.augment import (
    Augment,
    adjust_color,
    alternating_flip,
    color_jitter,
    crop,
    cutout,
    fill_rectangles,
    normalize,
    progressive_size,
    random_crop,
    random_erase,
    random_flip,
    resize,
    rotate,
    turn,
)
from budgetnet.config import AugmentConfig, ProgressiveConfig

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
REFERENCE = AugmentConfig(
    crop_padding=4,
    flip="random",
    rotation=10,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.1,
    erase_p=0.5,
    erase_value=(0.042, 0.090, 0.268),
)
sizes = st.integers(3, 9)
seeds = st.integers(0, 2**32)
quickly = settings(max_examples=25, deadline=None, derandomize=True)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def photos(n: int, c: int = 3, h: int = 8, w: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=rng(seed))


def smooth_photos(n: int, h: int = 16, w: int = 16, seed: int = 0) -> Tensor:
    """Colour gradients with some grey and some saturated pixels, so that every branch of HSV is met."""
    images = torch.rand(n, 3, h, w, generator=rng(seed))
    images[:, :, 0] = images[:, :1, 0]  # grey
    images[:, 0, 1] = 1  # two channels equal, at the top
    images[:, 1, 1] = 1
    images[:, 1, 2] = images[:, 2, 2]
    images[:, :, 3, 0] = 0
    images[:, :, 3, 1] = 1
    return images


EVERY_FUNCTION: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "random_crop": lambda x, g: random_crop(x, 2, g),
    "random_crop reflect": lambda x, g: random_crop(x, 2, g, "reflect"),
    "random_flip": random_flip,
    "alternating_flip": lambda x, g: alternating_flip(x, torch.arange(len(x)), 1, 3),
    "rotate": lambda x, g: rotate(x, 30, g),
    "color_jitter": lambda x, g: color_jitter(x, 0.4, 0.4, 0.4, 0.2, g),
    "random_erase": lambda x, g: random_erase(x, 0.9, (0.1, 0.3), (0.5, 2.0), 0.0, g),
    "cutout": lambda x, g: cutout(x, 3, g),
    "normalize": lambda x, g: normalize(x, [0.5] * x.shape[1], [0.2] * x.shape[1]),
}
every_function = pytest.mark.parametrize("function", EVERY_FUNCTION.values(), ids=EVERY_FUNCTION.keys())
every_random_function = pytest.mark.parametrize(
    "function", [f for name, f in EVERY_FUNCTION.items() if name not in ("alternating_flip", "normalize")]
)


# What holds for all of them


@every_function
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 1, 8, 8), (4, 3, 6, 9)])
def test_shape_and_dtype_are_kept_and_the_input_is_left_unchanged(
    function: Callable[[Tensor, Generator], Tensor], dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    images = photos(*shape) if dtype == torch.uint8 else torch.rand(shape, dtype=dtype, generator=rng())
    before = images.clone()
    out = function(images, rng())
    assert out.shape == shape
    assert out.dtype == (torch.float32 if function is EVERY_FUNCTION["normalize"] else dtype)
    assert out.device == images.device
    assert out.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)


@every_function
def test_the_memory_order_of_the_images_does_not_change_the_result(
    function: Callable[[Tensor, Generator], Tensor],
) -> None:
    images = photos(6, 3, 7, 9)
    out = function(images, rng())
    assert torch.equal(function(images.contiguous(memory_format=torch.channels_last), rng()), out)
    strided = photos(6, 3, 7, 18)
    strided[:, :, :, ::2] = images
    assert torch.equal(function(strided[:, :, :, ::2], rng()), out)


@every_random_function
def test_the_same_generator_state_gives_the_same_result_and_the_next_state_another(
    function: Callable[[Tensor, Generator], Tensor],
) -> None:
    images, generator = photos(32), rng(7)
    first, second = function(images, generator), function(images, generator)
    assert torch.equal(function(images, rng(7)), first)
    assert not torch.equal(first, second)


@every_function
def test_the_global_generator_is_never_drawn_from(function: Callable[[Tensor, Generator], Tensor]) -> None:
    before = torch.get_rng_state()
    function(photos(4), rng())
    assert torch.equal(torch.get_rng_state(), before)


class NoReadback(TorchDispatchMode):
    """Fails when a value must reach the host, or a host's list the device: on a GPU, both wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "lift_fresh", "item")
        assert name.removeprefix("aten::") not in waits, f"{name} makes the host wait"
        return func(*args, **(kwargs or {}))


@every_function
def test_the_host_never_waits_for_a_value(function: Callable[[Tensor, Generator], Tensor]) -> None:
    images, generator = photos(4), rng()
    with NoReadback():
        function(images, generator)
        with pytest.raises(AssertionError, match="makes the host wait"):
            bool(images.any())  # the check itself works


@every_function
def test_one_image_without_its_batch_dimension_is_refused(function: Callable[[Tensor, Generator], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"images have shape \(3, 8, 8\), expected \(n, c, h, w\)"):
        function(photos(1)[0], rng())


# Crop


@given(n=st.integers(1, 4), c=st.integers(1, 3), h=sizes, w=sizes, padding=st.integers(0, 2), seed=seeds)
@pytest.mark.parametrize(("border", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
@quickly
def test_crop_equals_padding_and_slicing_each_image(
    border: Any, mode: Any, n: int, c: int, h: int, w: int, padding: int, seed: int
) -> None:
    images = photos(n, c, h, w, seed)
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=rng(seed))
    out = crop(images, top, left, padding, border)
    for i in range(n):
        padded = np.pad(images[i].numpy(), ((0, 0), (padding, padding), (padding, padding)), mode=mode)
        window = padded[:, top[i] : top[i] + h, left[i] : left[i] + w]
        assert np.array_equal(out[i].numpy(), window)


def test_random_crop_draws_all_shifts_equally_often() -> None:
    padding, n = 2, 25 * 400
    place = torch.zeros(1, 1, 5, 5)
    place[0, 0, 2, 2] = 1  # a single lit pixel shows where its image went
    out = random_crop(place.expand(n, 1, 5, 5), padding, rng())
    counts = out.sum(0).flatten()
    assert counts.sum() == n
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 51.2  # 24 degrees of freedom, p = 0.001


# Flip


def test_random_flip_mirrors_about_half_of_the_images_and_leaves_the_others() -> None:
    images = photos(4000, 1, 2, 3)
    out = random_flip(images, rng())
    flipped = (out == images.flip(3)).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert (flipped | kept).all()
    share = (flipped & ~kept).sum() / (flipped ^ kept).sum()
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(4000)


def splitmix64(state: int) -> int:
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def orientations(indices: Tensor, epoch: int, seed: int) -> Tensor:
    """(n,) bool: whether each index is mirrored, seen on a two-pixel image."""
    images = torch.tensor([0, 1], dtype=torch.uint8).expand(len(indices), 1, 1, 2)
    return alternating_flip(images, indices, epoch, seed)[:, 0, 0, 0] == 1


@given(seed=st.integers(0, 2**63 - 1), start=st.integers(0, 2**40), epoch=st.integers(0, 9))
@quickly
def test_alternating_flip_equals_a_hash_in_python_integers(seed: int, start: int, epoch: int) -> None:
    golden = 0x9E3779B97F4A7C15
    indices = torch.arange(start, start + 20)
    expected = []
    for index in indices.tolist():
        state = (splitmix64(seed) + (index - 1) * golden) % 2**64  # splitmix64 itself takes the step to index
        expected.append((splitmix64(state) >> 63 == 1) != (epoch % 2 == 1))
    assert orientations(indices, epoch, seed).tolist() == expected


def test_alternating_flip_shows_each_image_both_ways_in_two_epochs_and_the_same_after_two() -> None:
    images, indices = photos(50), torch.arange(50)
    first, second, third = (alternating_flip(images, indices, epoch, 5) for epoch in (3, 4, 5))
    assert torch.equal(second, first.flip(3))
    assert torch.equal(third, first)


def test_alternating_flip_depends_on_the_index_and_not_on_the_place_in_the_batch() -> None:
    images, order = photos(50), torch.randperm(50, generator=rng())
    whole = alternating_flip(images, torch.arange(50), 2, 5)
    assert torch.equal(alternating_flip(images[order], order, 2, 5), whole[order])


def test_alternating_flip_begins_with_half_of_the_images_mirrored_independently_for_each_seed() -> None:
    indices = torch.arange(50_000)
    first = [orientations(indices, 0, seed).float() for seed in (0, 1, 2)]
    tolerance = 4 * 0.5 / math.sqrt(50_000)
    for mirrored in first:
        assert abs(mirrored.mean() - 0.5) < tolerance
        assert abs((mirrored[1:] == mirrored[:-1]).float().mean() - 0.5) < tolerance
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs((first[a] == first[b]).float().mean() - 0.5) < tolerance


@pytest.mark.parametrize("indices", [torch.arange(3), torch.arange(4.0), torch.zeros(4, 1, dtype=torch.int64)])
def test_alternating_flip_refuses_indices_that_are_not_one_integer_an_image(indices: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(4,\) torch.int64"):
        alternating_flip(photos(4), indices, 0, 0)


# Rotation


def rotated_by_loops(image: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """The rotated image, and where no coordinate is so near a tie between pixels that rounding decides it."""
    _, h, w = image.shape
    out, certain = torch.zeros_like(image), torch.ones(h, w, dtype=torch.bool)
    angle = math.radians(degrees)
    for row in range(h):
        for column in range(w):
            x, y = column - (w - 1) / 2, row - (h - 1) / 2
            source_x = math.cos(angle) * x - math.sin(angle) * y + (w - 1) / 2
            source_y = math.sin(angle) * x + math.cos(angle) * y + (h - 1) / 2
            certain[row, column] = all(abs(v - math.floor(v) - 0.5) > 1e-4 for v in (source_x, source_y))
            if 0 <= round(source_x) < w and 0 <= round(source_y) < h:
                out[:, row, column] = image[:, round(source_y), round(source_x)]
    return out, certain


@given(n=st.integers(1, 3), c=st.integers(1, 3), h=sizes, w=sizes, degrees=st.floats(-180, 180), seed=seeds)
@quickly
def test_turn_equals_a_loop_over_the_pixels_of_each_image(
    n: int, c: int, h: int, w: int, degrees: float, seed: int
) -> None:
    images = photos(n, c, h, w, seed)
    angles = degrees + torch.arange(n) * 7.3
    out = turn(images, angles)
    for i in range(n):
        expected, certain = rotated_by_loops(images[i], float(angles[i]))
        assert torch.equal(out[i][:, certain], expected[:, certain])


@pytest.mark.parametrize("degrees", [-37.0, -8.0, 3.0, 10.0, 65.0])
def test_turn_agrees_with_pillow(degrees: float) -> None:
    image = photos(1, 3, 33, 32)
    out = turn(image, torch.tensor([degrees]))[0].permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(image[0].permute(1, 2, 0).numpy()).rotate(degrees, Image.Resampling.NEAREST))
    assert (out == expected).all(axis=2).mean() > 0.995  # Pillow works in fixed point: ties may fall otherwise


def test_turn_by_right_angles_is_exact_and_counter_clockwise() -> None:
    images = photos(3, 3, 32, 32)
    for quarters in range(4):
        turned = turn(images, torch.full((3,), 90.0 * quarters))
        assert torch.equal(turned, torch.rot90(images, quarters, (2, 3)))


def test_rotate_draws_angles_uniformly_between_its_limits() -> None:
    # Each angle is read off from how far the top of an upright line has moved.
    h, w, n = 201, 81, 600
    line = torch.zeros(1, 1, h, w, dtype=torch.uint8)
    line[:, :, :, w // 2] = 1
    out = rotate(line.expand(n, 1, h, w), 20, rng())
    at_top = out[:, 0, 10].float()
    assert (at_top.sum(1) >= 1).all()
    shift = (at_top * (torch.arange(w) - w // 2)).sum(1) / at_top.sum(1)
    angles = torch.rad2deg(torch.atan(-shift / (h // 2 - 10)))
    assert 18.5 < angles.max() < 20.7
    assert -20.7 < angles.min() < -18.5
    assert abs(angles.mean()) < 4 * 20 / math.sqrt(3 * n)
    assert abs(angles.std() - 20 / math.sqrt(3)) < 1


# Colour


def jittered_by_loops(image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> Any:
    """(h, w, 3) float64 in [0, 1], pixel by pixel, through colorsys."""

    def grey(pixel: Any) -> float:
        return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    out = np.clip(image.astype(np.float64) * brightness, 0, 1)
    mean = np.mean([grey(pixel) for row in out for pixel in row])
    out = np.clip(out * contrast + mean * (1 - contrast), 0, 1)
    for row in out:
        for pixel in row:
            pixel[:] = np.clip(pixel * saturation + grey(pixel) * (1 - saturation), 0, 1)
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            pixel[:] = colorsys.hsv_to_rgb((h + hue) % 1.0, s, v)
    return out


FACTORS = [(1, 1, 1, 0), (1.2, 0.8, 1.1, 0.1), (0.7, 1.3, 0.0, -0.3), (1.9, 0.1, 2.0, 0.5), (0.9, 1.5, 1.8, -0.5)]


def test_adjust_color_equals_the_formulas_pixel_by_pixel_and_the_definition_of_hsv() -> None:
    images = smooth_photos(len(FACTORS), h=10, w=12)
    out = adjust_color(images, *(torch.tensor(column) for column in zip(*FACTORS, strict=True)))
    for i, factors in enumerate(FACTORS):
        expected = jittered_by_loops(images[i].permute(1, 2, 0).numpy(), *factors)
        np.testing.assert_allclose(out[i].permute(1, 2, 0).numpy(), expected, atol=3e-6)


@pytest.mark.parametrize("turns", [0.0, 1 / 6, -1 / 6, 1 / 3, 0.5, -0.5, 0.071, -0.29])
def test_a_turn_of_hue_equals_the_round_trip_through_hsv(turns: float) -> None:
    images = smooth_photos(1, seed=4).double()
    out = adjust_color(images, hue=torch.tensor([turns], dtype=torch.float64))[0].permute(1, 2, 0)
    for before, after in zip(images[0].permute(1, 2, 0).reshape(-1, 3), out.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before.tolist())
        assert after.tolist() == pytest.approx(colorsys.hsv_to_rgb((h + turns) % 1.0, s, v), abs=1e-9)


def test_a_turn_of_hue_by_a_third_of_the_wheel_moves_the_channels_round() -> None:
    images = smooth_photos(3)
    out = adjust_color(images, hue=torch.full((3,), 1 / 3))
    torch.testing.assert_close(out, images.roll(1, 1), atol=3e-6, rtol=0)


@pytest.mark.parametrize(
    ("step", "enhancer"), [("brightness", "Brightness"), ("contrast", "Contrast"), ("saturation", "Color")]
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7])
def test_adjust_color_of_uint8_is_pillows_enhancer_up_to_its_rounding(step: str, enhancer: str, factor: float) -> None:
    image = photos(1, 3, 16, 16)
    out = adjust_color(image, **{step: torch.tensor([factor])})[0].permute(1, 2, 0).numpy().astype(int)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    expected = np.asarray(getattr(ImageEnhance, enhancer)(picture).enhance(factor)).astype(int)
    assert np.abs(out - expected).max() <= 2  # Pillow rounds its grey to uint8 and truncates the blend


def test_adjust_color_of_uint8_is_that_of_floats_rounded() -> None:
    images = photos(len(FACTORS))
    factors = [torch.tensor(column) for column in zip(*FACTORS, strict=True)]
    expected = adjust_color(images.float() / 255, *factors).mul(255).round().to(torch.uint8)
    assert torch.equal(adjust_color(images, *factors), expected)


def test_unit_factors_change_no_uint8_image() -> None:
    images, one = photos(3), torch.ones(3)
    assert torch.equal(adjust_color(images, one, one, one, torch.zeros(3)), images)


def test_an_image_is_adjusted_the_same_alone_and_in_a_batch() -> None:
    images = smooth_photos(len(FACTORS))
    factors = [torch.tensor(column) for column in zip(*FACTORS, strict=True)]
    whole = adjust_color(images, *factors)
    for i in range(len(images)):
        alone = adjust_color(images[i : i + 1], *(column[i : i + 1] for column in factors))
        torch.testing.assert_close(alone[0], whole[i], atol=1e-6, rtol=0)


def test_grey_images_have_brightness_and_contrast_but_no_hue_and_saturation() -> None:
    images = torch.rand(2, 1, 5, 5, generator=rng())
    factor = torch.tensor([0.5, 1.5])
    assert torch.equal(adjust_color(images, saturation=factor, hue=factor), images)
    as_rgb = adjust_color(images.expand(2, 3, 5, 5), factor, factor)
    torch.testing.assert_close(adjust_color(images, factor, factor), as_rgb[:, :1], atol=1e-6, rtol=0)


def test_color_jitter_draws_factors_uniformly_in_their_ranges() -> None:
    n = 4000
    flat = torch.full((n, 3, 2, 2), 0.5)
    factors = color_jitter(flat, 0.4, 0, 0, 0, rng())[:, 0, 0, 0] / 0.5
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4 + 1e-6
    assert abs(factors.mean() - 1) < 4 * 0.4 / math.sqrt(3 * n)

    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(n, 3, 1, 1)
    shifted = color_jitter(red, 0, 0, 0, 0.1, rng())[:, :, 0, 0]
    turns = (shifted[:, 1] - shifted[:, 2]) / 6  # near red, green rises one way and blue the other
    assert -0.1 - 1e-6 <= turns.min() < -0.098
    assert 0.098 < turns.max() <= 0.1 + 1e-6
    assert abs(turns.mean()) < 4 * 0.1 / math.sqrt(3 * n)


def test_color_jitter_draws_no_negative_factor_and_independent_ones() -> None:
    n = 2000
    flat = torch.full((n, 3, 1, 1), 0.25)
    assert (color_jitter(flat, 3.0, 0, 0, 0, rng()) == 0).float().mean() < 0.01  # negative ones would all end at black
    images = torch.tensor([0.2, 0.6]).view(1, 1, 1, 2).expand(n, 3, 1, 2)
    out = color_jitter(images, 0.2, 0.2, 0, 0, rng())[:, 0, 0]
    brightness = out.mean(1) / 0.4
    contrast = (out[:, 1] - out[:, 0]) / 0.4 / brightness
    assert abs(torch.corrcoef(torch.stack([brightness, contrast]))[0, 1]) < 4 / math.sqrt(n)


# Erasing


@given(n=st.integers(1, 4), c=st.integers(1, 3), h=sizes, w=sizes, seed=seeds)
@quickly
def test_fill_rectangles_equals_assigning_a_slice_of_each_image(n: int, c: int, h: int, w: int, seed: int) -> None:
    images = photos(n, c, h, w, seed)
    places = torch.randint(-4, 12, (4, n), generator=rng(seed))
    top, left, height, width = places
    height, width = height.clamp(min=0), width.clamp(min=0)
    value = [9, 8, 7][:c]
    out = fill_rectangles(images, top, left, height, width, value)
    for i in range(n):
        expected = images[i].clone()
        for row in range(h):
            for column in range(w):
                if top[i] <= row < top[i] + height[i] and left[i] <= column < left[i] + width[i]:
                    expected[:, row, column] = torch.tensor(value, dtype=torch.uint8)
        assert torch.equal(out[i], expected)


def erased_boxes(erased: Tensor) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of the marked pixels of each (h, w) that has some; they must fill a rectangle."""
    boxes = []
    for mark in erased.numpy():
        if mark.any():
            rows, columns = np.nonzero(mark.any(1))[0], np.nonzero(mark.any(0))[0]
            box = (rows[0], columns[0], len(rows), len(columns))
            assert mark.sum() == len(rows) * len(columns)
            boxes.append(box)
    return boxes


def test_random_erase_erases_a_share_p_of_the_images_with_rectangles_inside_the_limits() -> None:
    n, scale, ratio, value = 4000, (0.02, 0.1), (0.3, 3.3), (0.042, 0.090, 0.268)
    images = torch.ones(n, 3, 32, 32)
    out = random_erase(images, 0.5, scale, ratio, value, rng())
    erased = (out == torch.tensor(value).view(1, 3, 1, 1)).all(1)
    assert ((out == 1).all(1) | erased).all()
    boxes = np.array(erased_boxes(erased))
    assert abs(len(boxes) / n - 0.5) < 4 * 0.5 / math.sqrt(n)
    top, left, height, width = boxes.T
    # Sides are rounded to pixels: the unrounded rectangle lies within half a pixel of them.
    assert ((height - 0.5) * (width - 0.5) <= scale[1] * 1024).all()
    assert ((height + 0.5) * (width + 0.5) >= scale[0] * 1024).all()
    assert ((height - 0.5) / (width + 0.5) <= ratio[1]).all()
    assert ((height + 0.5) / (width - 0.5) >= ratio[0]).all()
    assert abs((height * width).mean() / 1024 - 0.06) < 0.002
    assert abs(np.log(height / width).mean() - np.log(0.3 * 3.3) / 2) < 4 * 0.7 / math.sqrt(len(boxes))
    # Uniform inside: the places left over are shared evenly by both sides, and both ends are met.
    for start, side in ((top, height), (left, width)):
        share = start / (32 - side)
        assert abs(share.mean() - 0.5) < 4 * 0.31 / math.sqrt(len(boxes))
        assert share.min() == 0
        assert share.max() == 1


def test_random_erase_draws_as_trying_ten_times_in_turn_does() -> None:
    # Half of the tries do not fit here, so what is kept of them shows in the sides.
    scale, ratio, n = (0.3, 1.0), (0.5, 2.0), 6000
    generator = np.random.default_rng(0)
    areas = []
    for _ in range(n):
        for _ in range(10):
            area = 256 * generator.uniform(*scale)
            aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height < 16 and width < 16:
                areas.append(height * width)
                break
    out = random_erase(torch.ones(n, 1, 16, 16), 1.0, scale, ratio, 0.0, rng())
    erased = 256 - out.sum((1, 2, 3)).numpy()
    assert erased.mean() == pytest.approx(np.mean(areas), abs=4 * np.std(areas) * math.sqrt(2 / n))
    assert erased.std() == pytest.approx(np.std(areas), rel=0.05)


def test_random_erase_leaves_alone_an_image_in_which_no_rectangle_fits() -> None:
    images = photos(20, 3, 4, 40)  # every rectangle of this area and ratio is too high
    assert torch.equal(random_erase(images, 1.0, (0.5, 0.6), (1.0, 1.0), 0, rng()), images)


def test_random_erase_with_probability_zero_or_one_erases_none_or_all() -> None:
    images = torch.ones(500, 1, 8, 8)
    assert torch.equal(random_erase(images, 0.0, (0.1, 0.2), (1.0, 1.0), 0.0, rng()), images)
    assert (random_erase(images, 1.0, (0.1, 0.2), (1.0, 1.0), 0.0, rng()) == 0).flatten(1).any(1).all()


@pytest.mark.parametrize("size", [1, 4, 5, 20])
def test_cutout_sets_a_square_around_a_pixel_drawn_uniformly(size: int) -> None:
    h, w, n = 6, 7, 42 * 100
    out = cutout(torch.ones(n, 2, h, w), size, rng(), fill=(0.0, 0.5))
    erased = out[:, 0] == 0
    assert torch.equal(out[:, 1] == 0.5, erased)
    expected: dict[bytes, int] = {}
    for row in range(h):
        for column in range(w):
            mask = np.zeros((h, w), dtype=bool)
            top, left = row - size // 2, column - size // 2
            mask[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = True
            expected[mask.tobytes()] = expected.get(mask.tobytes(), 0) + 100
    found = dict.fromkeys(expected, 0)
    for mask in erased.numpy():
        found[mask.tobytes()] += 1  # a KeyError is a square that should not be
    chi_square = sum((found[key] - count) ** 2 / count for key, count in expected.items())
    assert chi_square < 77  # at most 41 degrees of freedom, p = 0.0005


# Normalisation


@given(n=st.integers(1, 3), c=st.integers(1, 3), h=sizes, w=sizes, seed=seeds)
@quickly
def test_normalize_equals_the_definition_for_uint8_and_for_floats(n: int, c: int, h: int, w: int, seed: int) -> None:
    images = photos(n, c, h, w, seed)
    expected = images.numpy() / 255.0
    expected = (expected - np.array(MEAN[:c]).reshape(c, 1, 1)) / np.array(STD[:c]).reshape(c, 1, 1)
    for given_images in (images, images.float() / 255, images.double() / 255):
        out = normalize(given_images, MEAN[:c], STD[:c])
        assert out.dtype == torch.float32
        np.testing.assert_allclose(out.numpy(), expected, atol=2e-6)


# Refusals


@pytest.mark.parametrize(("side", "size"), [(32, 20), (32, 28), (9, 4), (8, 8), (6, 11)])
def test_resize_equals_pillows_smoothing_of_each_channel(side: int, size: int) -> None:
    images = normalize(photos(3, h=side, w=side), MEAN, STD)
    found = resize(images, size)
    for image, one in zip(images, found, strict=True):
        for channel, result in zip(image, one, strict=True):
            expected = Image.fromarray(channel.numpy()).resize((size, size), Image.Resampling.BILINEAR)
            torch.testing.assert_close(result, torch.from_numpy(np.array(expected)), rtol=1e-4, atol=1e-5)


@quickly
@given(start=st.integers(8, 64), until=st.floats(0.05, 1.0), size=st.integers(8, 64), progress=st.floats(0, 1))
def test_images_grow_in_steps_of_four_along_a_straight_line_to_their_full_size(
    start: int, until: float, size: int, progress: float
) -> None:
    start = min(start, size)
    found = progressive_size(ProgressiveConfig(size=start, until=until), progress, size)
    assert found == size if progress >= until else found % 4 == start % 4 or found == size
    line = start + (size - start) * min(1.0, progress / until)
    assert line - 4 < found <= line + 1e-6
    assert progressive_size(ProgressiveConfig(), progress, size) == size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: random_crop(x, 8, rng()), "padding is 8, expected 0 or more and less than the smaller side, 8"),
        (lambda x: random_crop(x, -1, rng()), "padding is -1"),
        (lambda x: random_crop(x, 1, rng(), "wrap"), "border is 'wrap', expected 'zeros' or 'reflect'"),
        (lambda x: rotate(x, 181, rng()), "degrees is 181"),
        (lambda x: rotate(x, -1, rng()), "degrees is -1"),
        (lambda x: color_jitter(x, -0.1, 0, 0, 0, rng()), "brightness is -0.1"),
        (lambda x: color_jitter(x, 0, math.nan, 0, 0, rng()), "contrast is nan"),
        (lambda x: color_jitter(x, 0, 0, math.inf, 0, rng()), "saturation is inf"),
        (lambda x: color_jitter(x, 0, 0, 0, 0.6, rng()), "hue is 0.6"),
        (lambda x: adjust_color(x[:, :2]), "the number of channels is 2, expected 1"),
        (lambda x: adjust_color(x.long()), "images are torch.int64, expected torch.uint8 or a float"),
        (lambda x: random_erase(x, 1.1, (0.1, 0.2), (1, 1), 0, rng()), "p is 1.1"),
        (lambda x: random_erase(x, 1, (0.0, 0.2), (1, 1), 0, rng()), "scale is"),
        (lambda x: random_erase(x, 1, (0.3, 0.2), (1, 1), 0, rng()), "scale is"),
        (lambda x: random_erase(x, 1, (0.1, 1.2), (1, 1), 0, rng()), "scale is"),
        (lambda x: random_erase(x, 1, (0.1, 0.2), (2, 1), 0, rng()), "ratio is"),
        (lambda x: random_erase(x, 1, (0.1, 0.2), (1, 1), (0, 0), rng()), "the length of value is 2, expected the 3"),
        (lambda x: cutout(x, 0, rng()), "size is 0"),
        (lambda x: cutout(x, 2, rng(), (0,)), "the length of value is 1, expected the 3 channels"),
        (lambda x: normalize(x, MEAN, (0.2, 0.0, 0.2)), "std is"),
        (lambda x: normalize(x, MEAN[:2], STD), "std is .*as many numbers as mean has, 2"),
        (lambda x: normalize(x, MEAN[:2], STD[:2]), "expected the 3 channels"),
        (lambda x: normalize(x.int(), MEAN, STD), "images are torch.int32"),
        (lambda x: Augment(AugmentConfig(), MEAN, STD[:1], 0), "std is .*as many numbers as mean has, 3"),
        (lambda x: Augment(AugmentConfig(), MEAN, (0.2, -1, 0.2), 0), "std is .*numbers above 0"),
        (
            lambda x: Augment(AugmentConfig(), MEAN, STD, 0)(x.float(), torch.arange(2), 0, rng()),
            "expected torch.uint8",
        ),
    ],
)
def test_an_impossible_argument_is_refused_in_one_line(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        call(photos(2))
    assert "\n" not in str(refusal.value)


# The chain


def test_the_chain_is_its_steps_in_order() -> None:
    c = dataclasses.replace(REFERENCE, crop_border="reflect", cutout=3)
    images, indices = photos(40, 3, 32, 32), torch.arange(40)
    g = rng(3)
    expected = random_flip(random_crop(images, 4, g, "reflect"), g)
    expected = rotate(expected, 10, g).float() / 255
    expected = normalize(color_jitter(expected, 0.2, 0.2, 0.2, 0.1, g), MEAN, STD)
    expected = cutout(random_erase(expected, 0.5, c.erase_scale, c.erase_ratio, c.erase_value, g), 3, g)
    assert torch.equal(Augment(c, MEAN, STD, 0)(images, indices, 0, rng(3)), expected)


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({"policy": "trivial"}, policies.trivial_augment),
        ({"policy": "rand"}, lambda x, g: policies.rand_augment(x, 2, 0.3, g)),
        ({"policy": "rand", "policy_ops": 3, "policy_magnitude": 0.0}, lambda x, g: policies.rand_augment(x, 3, 0, g)),
        ({"policy": "augmix"}, lambda x, g: policies.augmix(x, 3, 0.3, g)),
        (
            {"policy": "augmix", "policy_ops": 1, "policy_magnitude": 0.8, "consistency": 12},
            lambda x, g: torch.cat([x, policies.augmix(x, 1, 0.8, g), policies.augmix(x, 1, 0.8, g)]),
        ),
    ],
)
def test_a_policy_has_its_place_after_rotation_and_before_colours(options: dict[str, Any], policy: Any) -> None:
    images, indices, g = photos(20, 3, 16, 16), torch.arange(20), rng(3)
    expected = policy(rotate(random_flip(random_crop(images, 2, g), g), 10, g), g).float() / 255
    expected = cutout(normalize(color_jitter(expected, 0.2, 0, 0, 0, g), MEAN, STD), 3, g)
    c = AugmentConfig(crop_padding=2, flip="random", rotation=10, brightness=0.2, cutout=3, **options)
    assert torch.equal(Augment(c, MEAN, STD, 0)(images, indices, 0, rng(3)), expected)


def test_a_chain_that_is_not_to_be_strong_crops_flips_and_normalizes_and_draws_nothing_else() -> None:
    images, g, other = photos(20, 3, 32, 32), rng(3), rng(3)
    c = dataclasses.replace(REFERENCE, policy="trivial", cutout=3)
    expected = normalize(random_flip(random_crop(images, 4, g), g), MEAN, STD)
    assert torch.equal(Augment(c, MEAN, STD, 0)(images, torch.arange(20), 0, other, strong=False), expected)
    assert torch.equal(g.get_state(), other.get_state())


def test_the_chain_flips_alternately_by_its_seed() -> None:
    images, indices = photos(40), torch.arange(100, 140)
    chain = Augment(AugmentConfig(flip="alternate"), MEAN, STD, seed=11)
    for epoch in range(3):
        expected = normalize(alternating_flip(images, indices, epoch, 11), MEAN, STD)
        assert torch.equal(chain(images, indices, epoch, rng()), expected)


def test_a_chain_with_every_step_off_only_normalizes_and_draws_nothing() -> None:
    generator = rng()
    before = generator.get_state()
    out = Augment(AugmentConfig(), MEAN, STD, 0)(photos(5), torch.arange(5), 0, generator)
    assert torch.equal(out, normalize(photos(5), MEAN, STD))
    assert torch.equal(generator.get_state(), before)


def test_the_chain_shows_black_where_the_crop_uncovers_an_edge_and_the_mean_colour_where_cutout_cuts() -> None:
    white = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    black = normalize(torch.zeros(1, 3, 1, 1), MEAN, STD)
    light = normalize(torch.ones(1, 3, 1, 1), MEAN, STD)
    cropped = Augment(AugmentConfig(crop_padding=2), MEAN, STD, 0)(white, torch.arange(200), 0, rng())
    assert set(cropped[:, 0].unique().tolist()) == {black[0, 0].item(), light[0, 0].item()}
    cut = Augment(AugmentConfig(cutout=4), MEAN, STD, 0)(white, torch.arange(200), 0, rng())
    assert set(cut[:, 0].unique().tolist()) == {0.0, light[0, 0].item()}


@given(n=st.integers(1, 5), h=st.integers(8, 14), w=st.integers(8, 14), seed=seeds)
@quickly
def test_the_chain_is_a_function_of_its_arguments_and_leaves_the_images_unchanged(
    n: int, h: int, w: int, seed: int
) -> None:
    images = photos(n, 3, h, w, seed)
    before, chain = images.clone(), Augment(REFERENCE, MEAN, STD, 0)
    out = chain(images, torch.arange(n), 0, rng(seed))
    assert out.shape == (n, 3, h, w)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert torch.equal(images, before)
    assert torch.equal(chain(images, torch.arange(n), 0, rng(seed)), out)


def test_every_public_function_has_a_docstring_that_says_what_it_raises() -> None:
    for name, member in inspect.getmembers(augment, inspect.isfunction):
        if member.__module__ == augment.__name__ and not name.startswith("_"):
            assert "Raises:" in (member.__doc__ or ""), name


@pytest.mark.real_data
def test_the_reference_chain_keeps_real_photographs_recognisable(real_data: Any) -> None:
    with open(real_data / "cifar-10-batches-py" / "test_batch", "rb") as file:
        data = pickle.load(file, encoding="bytes")[b"data"]
    images = torch.from_numpy(data).view(-1, 3, 32, 32)[:512]
    plain = normalize(images, MEAN, STD)
    out = Augment(REFERENCE, MEAN, STD, 0)(images, torch.arange(512), 0, rng())
    middle, plain_middle = out[:, :, 8:24, 8:24], plain[:, :, 8:24, 8:24]  # away from the black edges
    assert abs(middle.mean() - plain_middle.mean()) < 0.1
    assert 0.85 < middle.std() / plain_middle.std() < 1.15
    # A photograph resembles its own augmentation, one way round, more than another's: by chance half of them would.
    seen, whole, mirrored = (
        torch.nn.functional.avg_pool2d(x, 4).flatten(1) for x in (middle, plain_middle, plain_middle.flip(3))
    )
    own = torch.minimum((seen - whole).norm(dim=1), (seen - mirrored).norm(dim=1))
    other = torch.minimum((seen - whole.roll(1, 0)).norm(dim=1), (seen - mirrored.roll(1, 0)).norm(dim=1))
    assert (own < other).float().mean() > 0.9
