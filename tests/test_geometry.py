"""Crops, mirror images and rotations against loops over single images, and the distributions of what is drawn."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photos import photos, quickly, rng, seeds, sizes
from PIL import Image
from torch import Tensor

from budgetnet.geometry import alternating_flip, crop, random_crop, random_flip, rotate, turn

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


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: random_crop(x, 8, rng()), "padding is 8, expected 0 or more and less than the smaller side, 8"),
        (lambda x: random_crop(x, -1, rng()), "padding is -1"),
        (lambda x: random_crop(x, 1, rng(), "wrap"), "border is 'wrap', expected 'zeros' or 'reflect'"),
        (lambda x: rotate(x, 181, rng()), "degrees is 181"),
        (lambda x: rotate(x, -1, rng()), "degrees is -1"),
    ],
)
def test_an_impossible_argument_is_refused_in_one_line(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        call(photos(2))
    assert "\n" not in str(refusal.value)
