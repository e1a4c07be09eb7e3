"""Each operation against Pillow, each policy against its paper's numbers, the consistency loss against its formula."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from budgetnet import policies
from budgetnet.geometry import turn
from budgetnet.policies import apply, augmix, jensen_shannon, rand_augment, trivial_augment

ALL = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
MOVING = ALL[1:6]
OF_AUGMIX = {*MOVING, "posterize", "solarize", "autocontrast", "equalize"}
RANGES = {  # of magnitudes that are tried
    "shear_x": (-1, 1),
    "shear_y": (-1, 1),
    "translate_x": (-9, 9),
    "translate_y": (-9, 9),
    "rotate": (-180, 180),
    "posterize": (0.51, 8),
    "solarize": (0, 256),
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0, 2)),
}
POLICIES: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "trivial": trivial_augment,
    "rand": lambda x, g: rand_augment(x, 2, 0.5, g),
    "augmix": lambda x, g: augmix(x, 3, 0.5, g),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
quickly = settings(max_examples=25, deadline=None, derandomize=True)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def photos(n: int, c: int = 3, h: int = 24, w: int = 20, seed: int = 0) -> Tensor:
    """Smooth colours of different contrast, with a few pixels of noise: uint8 (n, c, h, w)."""
    coarse = torch.rand(n, c, 3, 3, generator=rng(seed))
    smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic")
    low, span = torch.rand(2, n, 1, 1, 1, generator=rng(seed + 1))
    images = (255 * (low * (1 - span) + smooth * span)).clamp(0, 255).to(torch.uint8)
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=rng(seed + 2))
    return torch.where(torch.rand(n, c, h, w, generator=rng(seed + 3)) < 0.05, noise, images)


def by_pillow(pixels: Tensor, name: str, m: float) -> Tensor:
    """uint8 (c, h, w)."""
    image = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())

    def affine(*inverse: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST)

    changed = {
        "identity": lambda: image,
        "shear_x": lambda: affine(1, m, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, m, 1, 0),
        "translate_x": lambda: affine(1, 0, -int(m), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -int(m)),
        "rotate": lambda: image.rotate(m),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(m),
        "color": lambda: ImageEnhance.Color(image).enhance(m),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(m),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(m),
        "posterize": lambda: ImageOps.posterize(image, round(m)),
        "solarize": lambda: ImageOps.solarize(image, m),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()
    return torch.from_numpy(np.array(changed).reshape(*pixels.shape[1:], -1)).permute(2, 0, 1)


def magnitudes(name: str, n: int, seed: int) -> Tensor:
    low, high = RANGES.get(name, (0, 0))
    return low + (high - low) * torch.rand(n, generator=rng(seed))


# Operations


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ALL)
def test_each_operation_is_pillows(name: str, channels: int) -> None:
    images, m = photos(100, channels), magnitudes(name, 100, 5)
    ours = apply(images, ALL, torch.full((100,), ALL.index(name)), m)
    expected = torch.stack([by_pillow(images[i], name, m[i].item()) for i in range(100)])
    differences = ours.int() - expected.int()
    if name in MOVING:  # a source between two pixels is rounded either way
        assert (differences != 0).float().mean() < 1e-3
    elif name == "autocontrast":  # Pillow falls below whole numbers at times
        assert (differences != 0).float().mean() < 1e-2
        assert differences.min() >= 0
        assert differences.max() <= 1
    else:
        assert (differences == 0).all()


@given(h=st.integers(3, 24), w=st.integers(3, 24), c=st.sampled_from([1, 3]), seed=st.integers(0, 2**32))
@quickly
def test_an_image_among_others_with_other_operations_is_changed_as_alone_and_by_a_loop_over_single_images(
    h: int, w: int, c: int, seed: int
) -> None:
    images = photos(20, c, h, w, seed)
    which = torch.randint(len(ALL), (20,), generator=rng(seed))
    m = torch.stack([magnitudes(ALL[k], 1, seed + i)[0] for i, k in enumerate(which)])
    together = apply(images, ALL, which, m)
    for i, k in enumerate(which.tolist()):
        alone = apply(images[i : i + 1], (ALL[k],), torch.zeros(1, dtype=torch.int64), m[i : i + 1])[0]
        assert torch.equal(together[i], alone), ALL[k]
        if ALL[k] not in MOVING and ALL[k] != "autocontrast":
            assert torch.equal(alone, by_pillow(images[i], ALL[k], m[i].item())), ALL[k]


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("name", ALL)
def test_an_image_of_one_colour_is_changed_as_pillow_does(name: str, value: int) -> None:
    images = torch.full((1, 3, 8, 8), value, dtype=torch.uint8)
    m = torch.tensor([{"posterize": 3.0, "solarize": 100.0, "rotate": 90.0}.get(name, 0.7)])
    assert torch.equal(
        apply(images, (name,), torch.zeros(1, dtype=torch.int64), m)[0], by_pillow(images[0], name, m.item())
    )


@pytest.mark.parametrize("name", ALL)
def test_the_lowest_magnitude_changes_nothing(name: str) -> None:
    neutral = {"posterize": 8.0, "solarize": 256.0, **dict.fromkeys(MOVING, 0.0)}.get(name, 1.0)
    images = photos(8)
    out = apply(images, (name,), torch.zeros(8, dtype=torch.int64), torch.full((8,), neutral))
    assert torch.equal(out, images) == (name not in ("autocontrast", "equalize"))


def test_no_bits_kept_is_black() -> None:
    assert not apply(photos(2), ("posterize",), torch.zeros(2, dtype=torch.int64), torch.zeros(2)).any()


def test_a_rotation_is_that_of_turn() -> None:
    images, degrees = photos(50), magnitudes("rotate", 50, 0)
    out = apply(images, ("rotate",), torch.zeros(50, dtype=torch.int64), degrees)
    assert (out == turn(images, degrees)).float().mean() > 0.999


# Policies


@every_policy
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 1, 8, 8), (4, 3, 6, 9)])
def test_shape_and_dtype_are_kept_and_the_input_is_left_unchanged(
    policy: Callable[[Tensor, Generator], Tensor], shape: tuple[int, int, int, int]
) -> None:
    images = photos(*shape)
    before = images.clone()
    out = policy(images, rng())
    assert (out.shape, out.dtype) == (shape, torch.uint8)
    assert out.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)


@every_policy
def test_a_policy_is_a_function_of_the_images_and_of_its_generator_alone(
    policy: Callable[[Tensor, Generator], Tensor],
) -> None:
    images, generator, usual = photos(32), rng(7), torch.get_rng_state()
    first, second = policy(images, generator), policy(images, generator)
    assert torch.equal(policy(images.contiguous(memory_format=torch.channels_last), rng(7)), first)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), usual)


class NoReadback(TorchDispatchMode):
    """Fails when a value must reach the host, or a host's list the device: on a GPU, both wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "lift_fresh", "item")
        assert func._schema.name.removeprefix("aten::") not in waits, f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


@every_policy
def test_the_host_never_waits_for_a_value(policy: Callable[[Tensor, Generator], Tensor]) -> None:
    images, generator = photos(4), rng()
    with NoReadback():
        policy(images, generator)
        with pytest.raises(AssertionError, match="makes the host wait"):
            bool(images.any())  # the check itself works


class Watched:
    """Stands in for `apply`: notes what is asked for, and gives back what it is told to."""

    def __init__(self, answer: Callable[[Tensor], Tensor] = lambda images: images) -> None:
        self.answer = answer
        self.calls: list[list[tuple[str, float]]] = []

    def __call__(self, images: Tensor, operations: tuple[str, ...], which: Tensor, magnitude: Tensor) -> Tensor:
        self.calls.append([(operations[k], m) for k, m in zip(which.tolist(), magnitude.tolist(), strict=True)])
        return self.answer(images)

    def of(self, name: str) -> list[float]:
        return [m for call in self.calls for operation, m in call if operation == name]


def watch(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Tensor], Tensor] = lambda images: images) -> Watched:
    watched = Watched(answer)
    monkeypatch.setattr(policies, "apply", watched)
    return watched


def either_side(values: list[float]) -> list[float]:
    return sorted({*values, *(-value for value in values)})


def test_trivial_augment_draws_operation_level_and_sign_uniformly_from_the_wide_space(monkeypatch) -> None:
    watched, n = watch(monkeypatch), 14 * 2000
    trivial_augment(torch.zeros(n, 1, 3, 3, dtype=torch.uint8), rng())
    (call,) = watched.calls
    assert stats.chisquare([len(watched.of(name)) for name in ALL]).pvalue > 1e-3
    assert len(call) == n
    steps = [step / 30 for step in range(31)]
    factors = [1 + f for f in either_side([0.99 * s for s in steps])]
    expected = {
        **dict.fromkeys(("shear_x", "shear_y"), either_side([0.99 * s for s in steps])),
        **dict.fromkeys(("translate_x", "translate_y"), either_side([32 * s for s in steps])),
        "rotate": either_side([135 * s for s in steps]),
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), factors),
        "posterize": sorted(8 - 6 * s for s in steps),
        "solarize": sorted(255 - 255 * s for s in steps),
    }
    for name, values in expected.items():
        drawn = np.array(watched.of(name))
        nearest = np.abs(drawn[:, None] - np.array(values)).argmin(1)
        assert np.abs(drawn - np.array(values)[nearest]).max() < 1e-4, name
        # Of two sides, each has half of its level, and where they meet a whole one.
        weights = np.array([1 if len(values) == 31 or abs(v - np.mean(values)) < 1e-6 else 0.5 for v in values])
        counts = np.bincount(nearest, minlength=len(values))
        assert stats.chisquare(counts, weights / weights.sum() * len(drawn)).pvalue > 1e-3, name


def test_rand_augment_draws_operations_uniformly_and_anew_at_one_magnitude(monkeypatch) -> None:
    watched, n = watch(monkeypatch), 14 * 500
    rand_augment(torch.zeros(n, 1, 3, 331, dtype=torch.uint8), 3, 0.3, rng())
    first, second, third = ([name for name, _ in call] for call in watched.calls)
    for names in (first, second, third):
        assert stats.chisquare([names.count(name) for name in ALL]).pvalue > 1e-3
    assert abs(sum(a == b for a, b in zip(first, second, strict=True)) / n - 1 / 14) < 0.02
    expected = {
        "shear_x": [-0.09, 0.09],
        "shear_y": [-0.09, 0.09],
        "translate_x": [-45, 45],
        "translate_y": [-0.408, 0.408],
        "rotate": [-9, 9],
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.73, 1.27)),
        "posterize": [6.8],
        "solarize": [178.5],
    }
    for name, values in expected.items():
        drawn = np.array(watched.of(name))
        assert sorted(set(drawn.round(3))) == list(values), name
        assert abs(np.mean(drawn == drawn.max()) - 1 / len(values)) < 0.07, name


def test_augmix_draws_chains_of_one_to_three_operations_up_to_its_magnitude(monkeypatch) -> None:
    watched, n = watch(monkeypatch), 3000
    augmix(torch.zeros(n, 1, 30, 60, dtype=torch.uint8), 3, 0.5, rng())
    active = [np.array([name != "identity" for name, _ in call]) for call in watched.calls]
    assert [len(chains) for chains in active] == [3 * n] * 3
    assert active[0].all()
    assert (active[1] >= active[2]).all(), "a chain that has ended does not go on"
    assert abs(active[1].mean() - 2 / 3) < 0.02
    assert abs(active[2].mean() - 1 / 3) < 0.02
    names = [name for call in watched.calls for name, _ in call if name != "identity"]
    assert set(names) == OF_AUGMIX
    assert stats.chisquare([names.count(name) for name in sorted(OF_AUGMIX)]).pvalue > 1e-3
    limits = {"shear_x": 0.15, "shear_y": 0.15, "translate_x": 10, "translate_y": 5, "rotate": 15}
    for name, limit in limits.items():
        assert stats.kstest(watched.of(name), stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-3, name
    assert stats.kstest(watched.of("posterize"), stats.uniform(2.5, 2).cdf).pvalue > 1e-3
    assert stats.kstest(watched.of("solarize"), stats.uniform(127.5, 127.5).cdf).pvalue > 1e-3


def test_augmix_blends_by_a_uniform_share_chains_of_weights_that_sum_to_one(monkeypatch) -> None:
    n = 4000
    black = torch.zeros(n, 1, 3, 3, dtype=torch.uint8)
    watch(monkeypatch, lambda images: torch.full_like(images, 255))
    white = augmix(black, 1, 0.5, rng())
    assert (white == white[:, :, :1, :1]).all(), "one share for all pixels of an image"
    shares = (white[:, 0, 0, 0] + torch.rand(n, generator=rng(1)) - 0.5) / 255  # the rounding undone
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 1e-3

    def first_white(images: Tensor) -> Tensor:
        out = images.clone()
        out[:n] = 255
        return out

    watch(monkeypatch, first_white)
    one_chain = augmix(black, 1, 0.5, rng())[:, 0, 0, 0] / 255
    # The same draws, so the same shares; of Dirichlet(1, 1, 1), each weight is Beta(1, 2).
    seen = shares > 0.3
    weights = (one_chain / shares)[seen].numpy()
    assert stats.kstest(weights, stats.beta(1, 2).cdf).statistic < 0.03


@every_policy
def test_policies_keep_images_recognisable(policy: Callable[[Tensor, Generator], Tensor]) -> None:
    images = photos(64, h=32, w=32)
    out = policy(images, rng()).float().flatten(1)
    own, other = ((out - x.float().flatten(1)).norm(dim=1) for x in (images, images.roll(1, 0)))
    assert (own < other).float().mean() > 0.8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: trivial_augment(x.float(), rng()),
            r"images are torch.float32 \(2, 3, 24, 20\), expected torch.uint8",
        ),
        (lambda x: rand_augment(x[:, :2], 1, 0.5, rng()), r"\(2, 2, 24, 20\), expected .* 1 or 3"),
        (lambda x: augmix(x[:, :, :2], 1, 0.5, rng()), "sides of 3 pixels or more"),
        (
            lambda x: augmix(x[0], 1, 0.5, rng()),
            r"images are torch.uint8 \(.*\), expected torch.uint8 \(n, 1 or 3, h, w\)",
        ),
        (lambda x: rand_augment(x, 0, 0.5, rng()), "ops is 0, expected 1 or more"),
        (lambda x: augmix(x, 1, 1.5, rng()), "magnitude is 1.5"),
        (lambda x: jensen_shannon(torch.zeros(2, 3)), r"logits have shape \(2, 3\), expected \(views, n, classes\)"),
    ],
)
def test_an_impossible_argument_is_refused_in_one_line(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        call(photos(2))
    assert "\n" not in str(refusal.value)


# Consistency


@given(views=st.integers(2, 4), n=st.integers(1, 5), classes=st.integers(2, 6), seed=st.integers(0, 2**32))
@quickly
def test_jensen_shannon_is_the_mean_divergence_from_the_mean_prediction(
    views: int, n: int, classes: int, seed: int
) -> None:
    logits = 3 * torch.randn(views, n, classes, generator=rng(seed), dtype=torch.float64)
    expected = 0.0
    for i in range(n):
        each = [np.exp(row) / np.exp(row).sum() for row in logits[:, i].numpy()]
        mean = np.mean(each, 0)
        expected += sum(stats.entropy(p, mean) for p in each) / views / n
    assert jensen_shannon(logits).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_jensen_shannon_is_zero_for_equal_predictions_and_log_3_for_certain_ones_of_three_classes() -> None:
    same = torch.randn(1, 4, 5, generator=rng()).expand(3, 4, 5)
    assert jensen_shannon(same).abs() < 1e-6
    certain = (1e4 * torch.eye(3)).unsqueeze(1).requires_grad_()
    apart = jensen_shannon(certain)
    assert apart.item() == pytest.approx(math.log(3))
    apart.backward()
    assert certain.grad.isfinite().all()
