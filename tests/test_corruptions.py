"""What each corruption does, by slow and obvious references."""

import colorsys
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from budgetnet import corruptions, shift
from budgetnet.streams import Streams


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    """Images with edges, textures and smooth parts, uint8 (n, 3, 32, 32)."""
    rng = np.random.default_rng(seed)
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(n, 3, 32, 32)), (0, 0.5, 3, 3)) * 9
    edges = scipy.ndimage.gaussian_filter(rng.normal(size=(n, 1, 32, 32)), (0, 0, 2, 2)) > 0
    found = 120 + 40 * smooth + 60 * edges + 6 * rng.normal(size=(n, 3, 32, 32))
    return torch.from_numpy(np.clip(found, 0, 255).astype(np.uint8))


def channels_last(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def draws(name: str, severity: int, n: int) -> Streams:
    return Streams(f"0 {name} {severity}", np.arange(n))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return pictures(66)  # more than are worked on at a time


def reference(images: torch.Tensor, corrupted: np.ndarray) -> torch.Tensor:
    """Levels cut off as they are."""
    return torch.from_numpy(np.clip(corrupted, 0, 255).astype(np.uint8).transpose(0, 3, 1, 2))


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for a level where the last bit decides which way a fraction is cut off."""
    difference = (found.int() - expected.int()).abs()
    return difference.max() <= 1 and (difference > 0).double().mean() < 1e-3


@pytest.mark.parametrize(("severity", "deviation"), list(enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1)))
def test_gaussian_noise_has_the_deviation_of_its_severity(severity, deviation):
    grey = torch.full((20, 3, 32, 32), 127, dtype=torch.uint8)
    noise = shift.corrupt(grey, "gaussian_noise", severity).double() - 126.5  # half a level is cut off on average
    assert noise.std() == pytest.approx(255 * deviation, rel=0.02)
    assert abs(noise.mean()) < 0.4


def test_speckle_noise_grows_with_the_level():
    for level in (40, 120):
        grey = torch.full((20, 3, 32, 32), level, dtype=torch.uint8)
        assert shift.corrupt(grey, "speckle_noise", 2).double().std() == pytest.approx(level * 0.1, rel=0.03)
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(shift.corrupt(black, "speckle_noise", 5), black)


@pytest.mark.parametrize("photons", [500, 50])
def test_shot_noise_counts_photons_by_the_poisson_distribution(photons):
    starts, table = corruptions._poisson(photons)
    for level in (0, 1, 60, 255):
        cumulated = table[starts[level] : starts[level] + 40] - level
        expected = scipy.stats.poisson.cdf(np.arange(40), level / 255 * photons)
        assert np.allclose(cumulated, expected, atol=1e-12)
    grey = torch.full((20, 3, 32, 32), 100, dtype=torch.uint8)
    found = shift.corrupt(grey, "shot_noise", 1 if photons == 500 else 5).double() + 0.5
    assert found.mean() == pytest.approx(100, rel=0.01)
    assert found.std() == pytest.approx(255 / photons * math.sqrt(100 / 255 * photons), rel=0.03)


def test_impulse_noise_makes_a_share_of_the_values_black_or_white_alike():
    grey = torch.full((40, 3, 32, 32), 100, dtype=torch.uint8)
    found = shift.corrupt(grey, "impulse_noise", 5)
    assert set(found.unique().tolist()) == {0, 100, 255}
    for level in (0, 255):
        assert (found == level).double().mean() == pytest.approx(0.035, abs=0.002)


@pytest.mark.parametrize(("severity", "sigma"), list(enumerate((0.4, 0.6, 0.7, 0.8, 1), 1)))
def test_gaussian_blur_is_scipys(severity, sigma, images):
    expected = [
        scipy.ndimage.gaussian_filter(x / 255, (sigma, sigma, 0), mode="nearest") for x in channels_last(images)
    ]
    assert close(shift.corrupt(images, "gaussian_blur", severity), reference(images, np.stack(expected) * 255))


def test_defocus_blur_is_a_softened_disk():
    dot = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    dot[..., 16, 16] = 255
    found = shift.corrupt(dot, "defocus_blur", 5)[0, 0].numpy()
    assert (found[15:18, 15:18] == int(255 / 9)).all()  # a radius of 1.5 pixels, hardly softened
    assert found.sum() == 9 * int(255 / 9)
    cross = shift.corrupt(dot, "defocus_blur", 4)[0, 0].numpy()
    assert (cross[[15, 16, 16, 16, 17], [16, 15, 16, 17, 16]] >= 50).all()
    mirrored = np.pad(channels_last(pictures(3)) / 255, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    box = np.full((3, 3), 1 / 9)[None, ..., None]
    expected = scipy.ndimage.correlate(mirrored, box)[:, 3:-3, 3:-3] * 255
    assert close(shift.corrupt(pictures(3), "defocus_blur", 5), reference(mirrored, expected))


@pytest.mark.parametrize(("severity", "sigma", "passes"), [(1, 0.05, 1), (3, 0.4, 1), (5, 0.4, 2)])
def test_glass_blur_is_the_published_loop_over_pixels(severity, sigma, passes, images):
    some = images[:2]
    rng = draws("glass_blur", severity, 2)
    moves = [[np.floor(rng.uniform(30, 30, low=-1.0)).astype(int) for _ in range(2)] for _ in range(passes)]
    expected = []
    for i, x in enumerate(channels_last(some)):
        x = (scipy.ndimage.gaussian_filter(x / 255, (sigma, sigma, 0), mode="nearest") * 255).astype(np.uint8)
        for across, down in moves:
            for h in range(31, 1, -1):
                for w in range(31, 1, -1):
                    dx, dy = across[i, h - 2, w - 2], down[i, h - 2, w - 2]
                    # As they wrote it; NumPy's rows are views, so that nothing is swapped.
                    x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
        expected.append(scipy.ndimage.gaussian_filter(x / 255, (sigma, sigma, 0), mode="nearest") * 255)
    assert close(shift.corrupt(some, "glass_blur", severity), reference(some, np.stack(expected)))


@pytest.mark.parametrize(("severity", "radius", "sigma"), [(1, 6, 1), (5, 9, 2.5)])
def test_motion_blur_is_imagemagicks_loop_over_pixels(severity, radius, sigma, images):
    some = images[:2]
    angles = draws("motion_blur", severity, 2).uniform(low=-45, high=45)
    width = 2 * radius + 1
    kernel = [math.exp(-i * i / (2 * sigma**2)) for i in range(width)]
    kernel = [weight / sum(kernel) for weight in kernel]
    expected = np.zeros((2, 32, 32, 3))
    for picture, x in enumerate(channels_last(some).astype(float)):
        angle = math.radians(angles[picture])
        for row in range(32):
            for column in range(32):
                for i, weight in enumerate(kernel):
                    r = min(max(row + math.ceil(i * math.sin(angle) - 0.5), 0), 31)
                    c = min(max(column + math.ceil(i * math.cos(angle) - 0.5), 0), 31)
                    expected[picture, row, column] += weight * x[r, c]
    assert close(shift.corrupt(some, "motion_blur", severity), reference(some, expected + 0.5))


def test_zoom_blur_is_the_mean_of_scipys_enlarged_middles(images):
    some = channels_last(images[:3]) / 255
    total, factors = some.copy(), np.arange(1, 1.11, 0.01)
    assert len(factors) == 12  # not 11: the last is 1.11, by rounding
    for factor in factors:
        kept = math.ceil(32 / factor)
        top = (32 - kept) // 2
        middle = some[:, top : top + kept, top : top + kept]
        larger = scipy.ndimage.zoom(middle, (1, factor, factor, 1), order=1, mode="nearest")
        trim = (larger.shape[1] - 32) // 2
        total += larger[:, trim : trim + 32, trim : trim + 32]
    assert close(shift.corrupt(images[:3], "zoom_blur", 2), reference(images, total / 13 * 255))


def test_clouds_span_the_whole_range_and_are_smoother_with_more_decay():
    clouds = [corruptions._plasma(draws("fog", 1, 20), decay) for decay in (1.5, 3.0)]
    for field in clouds:
        assert (field.min((1, 2)) == 0).all()
        assert (field.max((1, 2)) == 1).all()
    # Neighbours at the seam are as alike as elsewhere: clouds tile.
    rough, smooth = (np.abs(field - np.roll(field, 1, 1)) for field in clouds)
    assert smooth.mean() < rough.mean() / 2
    assert smooth[:, 0].mean() < 1.5 * smooth.mean()


def test_fog_of_a_black_image_is_black_and_of_a_grey_one_keeps_its_brightest_level():
    assert shift.corrupt(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "fog", 5).max() == 0
    found = shift.corrupt(torch.full((4, 3, 32, 32), 200, dtype=torch.uint8), "fog", 3)
    assert (found.amax((1, 2, 3)) >= 199).all()
    assert found.min() < 120


def test_snow_is_white_and_falls_on_both_halves(images):
    black = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    found = shift.corrupt(black, "snow", 5).int()
    assert torch.equal(found[:, 0], found[:, 2])
    # Flakes are laid over twice, the second time turned by half a turn; black itself is brightened to (1 - 0.8) / 2.
    assert torch.equal(found, found.flip(2, 3))
    assert found.min() == 25


def test_frost_is_like_frost_and_differs_between_images():
    texture = shift.corrupt(torch.zeros(200, 3, 32, 32, dtype=torch.uint8), "frost", 5).double() / 0.45
    red, green, blue = texture.mean((0, 2, 3)).tolist()
    assert red < green < blue
    assert 20 < texture.mean((1, 2, 3)).std() < 60
    assert 5 < texture.mean(1).flatten(1).std(1).mean() < 25
    # CIFAR-10-C's severities, of the image and of the frost.
    assert corruptions.CORRUPTIONS["frost"][1] == ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))


@pytest.mark.parametrize(("name", "severity"), [("brightness", 3), ("saturate", 1), ("saturate", 5)])
def test_brightness_and_saturation_are_those_of_hsv(name, severity):
    some = pictures(1, seed=3)
    some[0, :, :2] = torch.randint(0, 256, (3, 2, 32), generator=torch.Generator().manual_seed(0)).byte()
    some[0, :, 3] = 0
    some[0, :, 4] = 77  # a grey, which has no hue
    expected = np.zeros((1, 32, 32, 3))
    for row in range(32):
        for column in range(32):
            h, s, v = colorsys.rgb_to_hsv(*(some[0, :, row, column].double() / 255).tolist())
            if name == "brightness":
                v = min(v + 0.15, 1)
            else:
                s = min(s * {1: 0.3, 5: 2.5}[severity] + {1: 0, 5: 0.2}[severity], 1)
            expected[0, row, column] = colorsys.hsv_to_rgb(h, s, v)
    function, settings = corruptions.CORRUPTIONS[name]
    found = function(channels_last(some), settings[severity - 1], draws(name, severity, 1))
    assert np.allclose(np.clip(found, 0, 255), expected * 255, atol=1e-9)


def test_contrast_moves_each_channel_towards_its_mean(images):
    found = shift.corrupt(images, "contrast", 5).double()
    means = images.double().mean((2, 3), keepdim=True)
    assert ((found + 0.5 - (means + 0.15 * (images - means))).abs() <= 0.5 + 1e-9).all()


def test_an_elastic_transform_without_strength_changes_nothing(images):
    levels = channels_last(images[:4])
    found = corruptions._elastic_transform(levels, (0, 0, 0), draws("elastic_transform", 1, 4))
    assert np.allclose(found, levels, atol=1e-9)


def test_an_elastic_transform_moves_three_points_and_samples_like_scipy(images):
    levels = channels_last(images[:2])
    setting = (0.08, 0.06, 0.06)
    rng = draws("elastic_transform", 3, 2)
    moves = rng.uniform(3, 2, low=-32 * 0.06, high=32 * 0.06)
    noise = [rng.uniform(32, 32, low=-1) for _ in range(2)]
    corners = np.array([[26.0, 26], [26, 6], [6, 6]])
    y, x = np.mgrid[:32, :32].astype(float)
    expected = np.zeros(levels.shape)
    for i in range(2):
        to = np.linalg.solve(np.column_stack([corners, np.ones(3)]), corners + moves[i])  # rows: x, y, 1
        back = np.linalg.inv(to[:2].T)
        columns, rows = np.tensordot(back, np.stack([x - to[2, 0], y - to[2, 1]]), 1)
        bend = [32 * 0.08 * scipy.ndimage.gaussian_filter(n[i], 32 * 0.06, mode="reflect", truncate=3) for n in noise]
        for channel in range(3):
            warped = scipy.ndimage.map_coordinates(
                levels[i, ..., channel] / 255, [rows, columns], order=1, mode="mirror"
            )
            moved = [y + bend[1], x + bend[0]]
            expected[i, ..., channel] = scipy.ndimage.map_coordinates(warped, moved, order=1, mode="reflect") * 255
    found = corruptions._elastic_transform(levels, setting, draws("elastic_transform", 3, 2))
    assert np.allclose(found, expected, atol=1e-6)


def test_edges_are_where_levels_jump_and_weak_ones_only_beside_strong_ones():
    levels = np.zeros((1, 32, 32))
    levels[0, 8:20, 8:20] = 200
    levels[0, 26:30, 4:8] = 15  # too weak to be an edge: its gradient is 4 * 15
    found = corruptions._edges(levels)[0]
    assert not found[24:].any()
    around = scipy.ndimage.binary_dilation(levels[0] > 100) & ~scipy.ndimage.binary_erosion(levels[0] > 100)
    assert found.any()
    assert not (found & ~around).any()
    assert scipy.ndimage.binary_dilation(found, np.ones((3, 3)))[8:20, 8].all()
    ramp = np.zeros((1, 32, 32))
    ramp[0, :, 16:] = np.linspace(13, 60, 32)[:, None]  # rises from weak to strong along one edge
    followed = corruptions._edges(ramp)[0, :, 15:17].any(1)
    strong = 4 * np.linspace(13, 60, 32) > 150
    assert followed[2:].all()
    assert not strong[:15].any()


def test_distances_are_scipys():
    marked = np.random.default_rng(0).random((5, 32, 32)) < 0.02
    expected = np.stack([scipy.ndimage.distance_transform_edt(~one) for one in marked])
    assert np.allclose(corruptions._distances(marked), expected)


def test_equalizing_spreads_levels_by_their_cumulated_counts():
    levels = np.random.default_rng(0).integers(2, 21, (3, 32, 32)).astype(float)
    levels[2] = 7
    expected = np.zeros_like(levels)
    for i in range(2):
        counts = np.bincount(levels[i].astype(int).ravel(), minlength=21)
        first = np.flatnonzero(counts)[0]
        table = [round(255 / (1024 - counts[first]) * counts[first + 1 : level + 1].sum()) for level in range(21)]
        expected[i] = np.array(table)[levels[i].astype(int)]
    expected[2] = 7  # one level stays, as there is nothing to spread
    assert np.array_equal(corruptions._equalized(levels), expected)


def test_water_is_turquoise_and_mud_brown():
    black, white = torch.zeros(30, 3, 32, 32, dtype=torch.uint8), torch.full((30, 3, 32, 32), 255, dtype=torch.uint8)
    water = shift.corrupt(black, "spatter", 2)
    assert water[:, 0].max() == int(175 * 0.5)
    assert torch.equal(water[:, 1], water[:, 2])
    assert 0.02 < (water > 0).double().mean() < 0.5
    mud = shift.corrupt(white, "spatter", 5)
    assert (255 - mud.amin((2, 3)).double().mean(0)).tolist() == pytest.approx([192, 213, 235], abs=8)


def test_pixelate_shows_fewer_different_pixels(images):
    counts = [len(shift.corrupt(images[:1], "pixelate", s)[0].flatten(1).unique(dim=1)[0]) for s in (1, 5)]
    assert counts[1] <= 20 * 20 < counts[0] <= 30 * 30


def test_jpeg_keeps_the_mean_of_each_channel(images):
    found = shift.corrupt(images, "jpeg_compression", 5)
    assert (found.double().mean((2, 3)) - images.double().mean((2, 3))).abs().max() < 8
