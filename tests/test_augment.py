"""What holds for each augmentation, and that the chain is its steps in order."""

import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photos import photos, quickly, rng, seeds
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from budgetnet import augment, checks, colors, erasing, geometry, inputs, policies
from budgetnet.augment import Augment
from budgetnet.colors import color_jitter
from budgetnet.config import AugmentConfig
from budgetnet.erasing import cutout, random_erase
from budgetnet.geometry import alternating_flip, random_crop, random_flip, rotate
from budgetnet.inputs import normalize

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


@pytest.mark.parametrize("module", [checks, inputs, geometry, colors, erasing, augment])
def test_every_public_function_has_a_docstring_that_says_what_it_raises(module: Any) -> None:
    for name, member in inspect.getmembers(module, inspect.isfunction):
        if member.__module__ == module.__name__ and not name.startswith("_"):
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
