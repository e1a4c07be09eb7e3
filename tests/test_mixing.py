"""Mixing against loops over single images, and what is drawn against scipy and the papers' procedures."""

import inspect
import math
from collections.abc import Callable
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor

from budgetnet import mixing
from budgetnet.config import MixConfig
from budgetnet.mixing import beta, blend, cutmix, mix, mixup, paste, ricap, tile

CPU = torch.device("cpu")
METHODS = {name: method.mix for name, method in mixing.METHODS.items()}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
quickly = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32)
Method = Callable[[Tensor, Tensor, float, float, Generator], tuple[Tensor, Tensor]]


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def batch(n: int, h: int = 8, w: int = 8, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    targets = torch.rand(n, classes, generator=rng(seed)) + 0.01
    return torch.randn(n, 3, h, w, generator=rng(seed + 1)), targets / targets.sum(1, keepdim=True)


def maps(n: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Pixels that are their own address, i * h * w + y * w + x, float64 (n, 1, h, w); targets that are the image."""
    return torch.arange(n * h * w, dtype=torch.float64).view(n, 1, h, w), torch.eye(n)


def test_the_methods_are_those_that_a_recipe_may_name() -> None:
    assert ("none", *METHODS) == get_args(get_type_hints(MixConfig)["name"])


# Given parameters


@given(n=st.integers(1, 6), h=st.integers(1, 7), w=st.integers(1, 7), seed=seeds)
@quickly
def test_blend_equals_a_loop_over_the_images(n: int, h: int, w: int, seed: int) -> None:
    images, targets = batch(n, h, w, seed=seed)
    share = torch.rand(n, generator=rng(seed))
    mixed, shares = blend(images, targets, share)
    for i in range(n):
        s = share[i].item()
        torch.testing.assert_close(mixed[i], s * images[i] + (1 - s) * images[i - 1])
        torch.testing.assert_close(shares[i], s * targets[i] + (1 - s) * targets[i - 1])


@given(n=st.integers(1, 6), h=st.integers(2, 7), w=st.integers(2, 7), seed=seeds)
@quickly
def test_paste_equals_assigning_a_slice_of_each_image(n: int, h: int, w: int, seed: int) -> None:
    images, targets = batch(n, h, w, seed=seed)
    top, left, height, width = (torch.randint(low, 8, (n,), generator=rng(seed + low)) for low in (-4, -3, 0, 1))
    mixed, shares = paste(images, targets, top, left, height, width)
    for i in range(n):
        expected = images[i].clone()
        rows, columns = (
            slice(max(0, a[i].item()), max(0, (a + b)[i].item())) for a, b in ((top, height), (left, width))
        )
        expected[:, rows, columns] = images[i - 1][:, rows, columns]
        assert torch.equal(mixed[i], expected)
        pasted = images[i][0, rows, columns].numel() / (h * w)
        torch.testing.assert_close(shares[i], (1 - pasted) * targets[i] + pasted * targets[i - 1])


@given(n=st.integers(1, 6), h=st.integers(2, 7), w=st.integers(2, 7), seed=seeds)
@quickly
def test_tile_equals_putting_each_image_together_from_four_slices(n: int, h: int, w: int, seed: int) -> None:
    images, targets = batch(n, h, w, seed=seed)
    draw = np.random.default_rng(seed)
    height, width = draw.integers(0, h + 1, n), draw.integers(0, w + 1, n)
    heights, widths = np.stack([height, height, h - height, h - height]), np.stack([width, w - width] * 2)
    top, left = draw.integers(0, h - heights + 1), draw.integers(0, w - widths + 1)
    mixed, shares = tile(images, targets, *map(torch.from_numpy, (height, width, top, left)))
    for i in range(n):
        parts = [
            images[(i - k) % n][:, top[k, i] : top[k, i] + heights[k, i], left[k, i] : left[k, i] + widths[k, i]]
            for k in range(4)
        ]
        expected = torch.cat([torch.cat(parts[:2], 2), torch.cat(parts[2:], 2)], 1)
        assert torch.equal(mixed[i], expected)
        whole = sum(targets[(i - k) % n] * heights[k, i] * widths[k, i] / (h * w) for k in range(4))
        torch.testing.assert_close(shares[i], whole.float())


# Draws


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.3, 1.0, 2.5, 30.0])
def test_beta_draws_from_its_distribution(alpha: float) -> None:
    draws = beta(alpha, 20_000, rng(1), CPU).double().numpy()
    assert draws.min() >= 0
    assert draws.max() <= 1
    # float32 cannot tell apart what is near 1, so the two halves are compared by the lower one.
    low = draws[draws < 0.5]
    assert abs(len(low) / len(draws) - 0.5) < 4 * 0.5 / math.sqrt(len(draws))
    assert stats.kstest(low, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 1e-3
    assert draws.var() == pytest.approx(stats.beta(alpha, alpha).var(), rel=0.05)


def test_beta_is_finite_where_nearly_all_is_at_the_ends() -> None:
    draws = beta(1e-4, 2000, rng(), CPU)
    assert draws.isfinite().all()
    assert ((draws < 0.001) | (draws > 0.999)).float().mean() > 0.99


def test_mixup_blends_by_beta_shares_that_targets_tell() -> None:
    images, targets = maps(4000, 1, 1)
    mixed, shares = mixup(images, targets, 1.0, 1.0, rng())
    own = shares.diagonal()
    assert stats.kstest(own.numpy(), "uniform").pvalue > 1e-3
    expected = own * images.flatten() + (1 - own) * images.flatten().roll(1)
    torch.testing.assert_close(mixed.flatten(), expected.double(), rtol=1e-5, atol=1e-3)


def the_papers_cutmix(alpha: float, n: int, h: int, w: int) -> np.ndarray:
    """The shares that remain, by the procedure of Yun et al."""
    draw, remaining = np.random.default_rng(0), []
    for share in draw.beta(alpha, alpha, n):
        cut_h, cut_w = int(h * math.sqrt(1 - share)), int(w * math.sqrt(1 - share))
        y, x = draw.integers(h), draw.integers(w)
        rows = np.clip([y - cut_h // 2, y + cut_h // 2], 0, h)
        columns = np.clip([x - cut_w // 2, x + cut_w // 2], 0, w)
        remaining.append(1 - (rows[1] - rows[0]) * (columns[1] - columns[0]) / (h * w))
    return np.array(remaining)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_cutmix_pastes_as_much_as_the_papers_procedure(alpha: float) -> None:
    _, shares = cutmix(*maps(3000, 16, 12), alpha, 1.0, rng())
    ours, theirs = (a.round(5) for a in (shares.diagonal().double().numpy(), the_papers_cutmix(alpha, 3000, 16, 12)))
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


def test_cutmix_keeps_every_pixel_where_it_was_and_pastes_everywhere_alike() -> None:
    n, h, w = 3000, 12, 12
    images, targets = maps(n, h, w)
    mixed, shares = cutmix(images, targets, 1.0, 1.0, rng())
    assert torch.equal(mixed % (h * w), images % (h * w))
    pasted = mixed != images
    torch.testing.assert_close(pasted.flatten(1).float().mean(1), 1 - shares.diagonal())
    often = pasted[:, 0].double().mean(0)
    assert (often - often.flip(0)).abs().max() < 0.06  # top as bottom, left as right, but one pixel of an even side
    assert (often - often.flip(1)).abs().max() < 0.06
    assert (often - often.t()).abs().max() < 0.06


def test_ricap_has_beta_boundaries_and_cuts_each_part_at_a_uniform_place() -> None:
    n, h, w = 3000, 16, 12
    images, targets = maps(n, h, w)
    mixed, shares = ricap(images, targets, 0.3, 1.0, rng())
    source = (mixed[:, 0] / (h * w)).floor().long()
    part = (torch.arange(n).view(n, 1, 1) - source) % n
    assert part.max() == 3
    counts = torch.stack([(part == k).flatten(1).sum(1) for k in range(4)]) / (h * w)
    for k in range(4):
        torch.testing.assert_close(counts[k], shares[torch.arange(n), torch.arange(n) - k])
    draw = np.random.default_rng(0)
    height, width = np.round(h * draw.beta(0.3, 0.3, 9000)), np.round(w * draw.beta(0.3, 0.3, 9000))
    assert stats.ks_2samp(counts[0].double().numpy().round(5), (height * width / (h * w)).round(5)).pvalue > 1e-3
    # How far the lower right part was moved, as a share of how far it could be: its corner is the image's last pixel.
    rows, columns = (part[:, :, -1] == 3).sum(1), (part[:, -1] == 3).sum(1)
    last = mixed[:, 0, -1, -1].long() % (h * w)
    for length, side, place in ((rows, h, last // w), (columns, w, last % w)):
        inside = (rows > 0) & (columns > 0) & (length < side)
        lowest = length[inside] - 1
        moved = (place[inside] - lowest + torch.rand(len(lowest), generator=rng(1))) / (side - lowest)
        assert stats.kstest(moved.numpy(), "uniform").pvalue > 1e-3


@every_method
def test_only_a_share_p_of_the_images_is_mixed_and_the_others_are_left_whole(method: Method) -> None:
    images, targets = batch(3000, 6, 6)
    mixed, shares = method(images, targets, 8.0, 0.3, rng())
    whole = (shares == targets).all(1)
    assert torch.equal(mixed[whole], images[whole])
    assert abs(whole.float().mean() - 0.7) < (0.05 if method is mixup else 0.15)  # or nothing was cut, after rounding


# Any method


@every_method
def test_inputs_are_left_unchanged_and_shape_dtype_and_the_sum_of_targets_are_kept(method: Method) -> None:
    images, targets = batch(5, 6, 9)
    before = images.clone(), targets.clone()
    mixed, shares = method(images, targets, 0.8, 1.0, rng())
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])
    assert (mixed.shape, mixed.dtype, shares.shape) == (images.shape, images.dtype, targets.shape)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(5))


@every_method
def test_a_method_is_a_function_of_its_arguments_and_of_its_generator_alone(method: Method) -> None:
    images, targets = batch(9)
    usual, generator = torch.get_rng_state(), rng(3)
    first, second = method(images, targets, 1.0, 1.0, generator)[0], method(images, targets, 1.0, 1.0, generator)[0]
    assert torch.equal(method(images.to(memory_format=torch.channels_last), targets, 1.0, 1.0, rng(3))[0], first)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), usual)


@pytest.mark.parametrize(("name", "usual"), [("mixup", 1.0), ("cutmix", 1.0), ("ricap", 0.3)])
def test_a_configuration_names_the_method_and_its_numbers_and_labels_become_shares(name: str, usual: float) -> None:
    images, labels = batch(20)[0], torch.randint(0, 7, (20,), generator=rng())
    targets = torch.eye(7)[labels]
    for config, alpha in ((MixConfig(name=name), usual), (MixConfig(name=name, alpha=2.0, p=0.5), 2.0)):
        expected = METHODS[name](images, targets, alpha, config.p, rng(1))
        for ours, theirs in zip(mix(images, labels, 7, config, rng(1)), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: mixup(x, y, 0.0, 1.0, rng()), "alpha is 0.0, expected a number above 0"),
        (lambda x, y: ricap(x, y, math.inf, 1.0, rng()), "alpha is inf"),
        (lambda x, y: cutmix(x, y, 1.0, 1.5, rng()), "p is 1.5, expected a probability"),
        (lambda x, y: mix(x, y, 4, MixConfig(), rng()), "mix.name is 'none', expected one of mixup, cutmix, ricap"),
    ],
)
def test_an_impossible_argument_is_refused(call: Callable[[Tensor, Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*batch(3))


def test_every_public_function_says_its_shapes() -> None:
    for name, member in inspect.getmembers(mixing, inspect.isfunction):
        if member.__module__ == mixing.__name__ and not name.startswith("_"):
            assert "(n," in (member.__doc__ or ""), name
