"""Erased rectangles against loops over single images, and the distributions of what is drawn."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photos import photos, quickly, rng, seeds, sizes
from torch import Tensor

from budgetnet.erasing import cutout, fill_rectangles, random_erase


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: random_erase(x, 1.1, (0.1, 0.2), (1, 1), 0, rng()), "p is 1.1"),
        (lambda x: random_erase(x, 1, (0.0, 0.2), (1, 1), 0, rng()), "scale is"),
        (lambda x: random_erase(x, 1, (0.3, 0.2), (1, 1), 0, rng()), "scale is"),
        (lambda x: random_erase(x, 1, (0.1, 1.2), (1, 1), 0, rng()), "scale is"),
        (lambda x: random_erase(x, 1, (0.1, 0.2), (2, 1), 0, rng()), "ratio is"),
        (lambda x: random_erase(x, 1, (0.1, 0.2), (1, 1), (0, 0), rng()), "the length of value is 2, expected the 3"),
        (lambda x: cutout(x, 0, rng()), "size is 0"),
        (lambda x: cutout(x, 2, rng(), (0,)), "the length of value is 1, expected the 3 channels"),
    ],
)
def test_an_impossible_argument_is_refused_in_one_line(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        call(photos(2))
    assert "\n" not in str(refusal.value)
