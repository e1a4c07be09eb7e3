"""Changes of colour against formulas pixel by pixel, and the distributions of what is drawn."""

import colorsys
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from photos import photos, rng
from PIL import Image, ImageEnhance
from torch import Tensor

from budgetnet.colors import adjust_color, color_jitter


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: color_jitter(x, -0.1, 0, 0, 0, rng()), "brightness is -0.1"),
        (lambda x: color_jitter(x, 0, math.nan, 0, 0, rng()), "contrast is nan"),
        (lambda x: color_jitter(x, 0, 0, math.inf, 0, rng()), "saturation is inf"),
        (lambda x: color_jitter(x, 0, 0, 0, 0.6, rng()), "hue is 0.6"),
        (lambda x: adjust_color(x[:, :2]), "the number of channels is 2, expected 1"),
        (lambda x: adjust_color(x.long()), "images are torch.int64, expected torch.uint8 or a float"),
    ],
)
def test_an_impossible_argument_is_refused_in_one_line(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        call(photos(2))
    assert "\n" not in str(refusal.value)
