"""Filters over batches, against SciPy's on one image."""

import numpy as np
import pytest
import scipy.ndimage

from budgetnet import filters

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(3, 12, 12))


@pytest.mark.parametrize("border", ["nearest", "reflect", "mirror"])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_a_gaussian_filter_is_scipys_at_any_border(border, sigma):
    expected = [scipy.ndimage.gaussian_filter(image, sigma, mode=border, truncate=3) for image in IMAGES]
    assert np.allclose(filters.gaussian(IMAGES, sigma, border, truncate=3), expected)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("weights", [[1.0, 2, 1], [-1.0, 0, 1], [0.1, 0.2, 0.4, 0.2, 0.1]])
def test_a_filter_along_one_axis_is_scipys(axis, weights):
    expected = scipy.ndimage.correlate1d(IMAGES, weights, axis, mode="nearest")
    assert np.allclose(filters.filtered(IMAGES, np.array(weights), axis, "nearest"), expected)


def test_a_correlation_is_scipys():
    kernel = RNG.normal(size=(5, 3))
    expected = [scipy.ndimage.correlate(image, kernel, mode="mirror") for image in IMAGES]
    assert np.allclose(filters.correlated(IMAGES, kernel), expected)


def test_what_is_enlarged_is_scipys_middle():
    # 12 pixels: the middle 8 of them, once and a half as large.
    assert np.allclose(
        filters.zoomed(IMAGES, 1.5), [scipy.ndimage.zoom(image[2:10, 2:10], 1.5, order=1) for image in IMAGES]
    )


@pytest.mark.parametrize("border", ["nearest", "reflect", "mirror"])
def test_images_are_sampled_between_pixels_as_scipy_does(border):
    rows, columns = RNG.uniform(-15, 27, size=(2, 3, 12, 12))
    found = filters.sampled(IMAGES[..., None], rows, columns, border)[..., 0]
    for image, y, x, one in zip(IMAGES, rows, columns, found, strict=True):
        assert np.allclose(one, scipy.ndimage.map_coordinates(image, [y, x], order=1, mode=border))


def test_motion_draws_a_dot_out_to_one_side():
    dot = np.zeros((2, 9, 9))
    dot[:, 4, 4] = 255
    across, down = filters.motion(dot, 2, 1, np.array([0.0, 90.0]))
    assert across[4, :5].tolist() == down[:5, 4].tolist()
    assert (across[4, 1:5] > across[4, :4]).all()
    assert across[4, 5:].sum() == 0
    assert across.sum() == pytest.approx(255, abs=2)
