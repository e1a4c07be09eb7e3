"""Normalisation by its definition, sizes by Pillow's smoothing, and how images grow in a run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from budgetnet.config import ProgressiveConfig
from budgetnet.inputs import normalize, progressive_size, resize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
sizes = st.integers(3, 9)
seeds = st.integers(0, 2**32)
quickly = settings(max_examples=25, deadline=None, derandomize=True)


def photos(n: int, c: int = 3, h: int = 8, w: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


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
        (lambda x: normalize(x, MEAN, (0.2, 0.0, 0.2)), "std is"),
        (lambda x: normalize(x, MEAN[:2], STD), "std is .*as many numbers as mean has, 2"),
        (lambda x: normalize(x, MEAN[:2], STD[:2]), "expected the 3 channels"),
        (lambda x: normalize(x.int(), MEAN, STD), "images are torch.int32"),
    ],
)
def test_an_impossible_argument_is_refused_in_one_line(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        call(photos(2))
    assert "\n" not in str(refusal.value)
