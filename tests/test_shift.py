"""Common corruptions: that what each does depends on the image, its index, the severity and the seed alone."""

import itertools

import pytest
import torch
from test_corruptions import pictures

from budgetnet import shift
from budgetnet.errors import ConfigError, DataError

# CIFAR-10-C's saturate takes colour away before it adds any, elastic_transform bends first the whole image and then its
# parts, less far, spatter is of water and then of mud, and frost lightens the image the less the more it hides.
NOT_RISING = {"saturate", "elastic_transform", "spatter", "frost"}
DRAWN = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow", "frost"),
    *("fog", "elastic_transform", "spatter"),
}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return pictures(66)  # more than are worked on at a time


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("name", shift.NAMES)
def test_an_image_is_corrupted_alike_in_any_batch_and_any_order(name, severity, images):
    before = images.clone()
    corrupted = shift.corrupt(images, name, severity)
    assert (corrupted.dtype, corrupted.shape) == (torch.uint8, images.shape)
    assert corrupted.is_contiguous()
    assert torch.equal(images, before)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert torch.equal(shift.corrupt(images[order], name, severity, indices=order), corrupted[order])
    for i in (0, 65):
        alone = shift.corrupt(images[i : i + 1], name, severity, indices=torch.tensor([i]))
        assert torch.equal(alone[0], corrupted[i])


@pytest.mark.parametrize("name", shift.NAMES)
def test_what_is_drawn_depends_on_the_index_and_the_seed(name):
    same = pictures(1).expand(8, -1, -1, -1)
    corrupted = shift.corrupt(same, name, 3)
    assert (len(corrupted.flatten(1).unique(dim=0)) == 8) == (name in DRAWN)
    assert torch.equal(shift.corrupt(same, name, 3, seed=1), corrupted) == (name not in DRAWN)
    assert not torch.equal(corrupted, same)


@pytest.mark.parametrize("name", sorted({*shift.NAMES} - NOT_RISING))
def test_a_higher_severity_changes_the_images_more(name):
    images = pictures(24)
    changes = [
        (shift.corrupt(images, name, severity).int() - images.int()).abs().double().mean().item()
        for severity in shift.SEVERITIES
    ]
    assert changes[0] > 0
    # Angles are drawn anew, and a second blur of glass takes back a little of what was shuffled.
    assert all(later > 0.95 * earlier for earlier, later in itertools.pairwise(changes))
    assert changes[-1] > 1.3 * changes[0]


def test_there_are_15_common_corruptions_and_4_extra():
    assert (len(shift.COMMON), len(shift.EXTRA), len(set(shift.NAMES))) == (15, 4, 19)
    assert shift.EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def test_no_images_are_corrupted_to_no_images():
    for name in shift.NAMES:
        assert shift.corrupt(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), name, 1).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("motion_blurr", 1, r"'motion_blurr' is no corruption \(did you mean motion_blur\?\)"),
        ("rain", 1, "expected one of gaussian_noise, "),
        ("fog", 6, "severity is 6, expected 1 "),
        ("fog", 0, "severity is 0"),
    ],
)
def test_what_is_no_corruption_is_refused(name, severity, message, images):
    with pytest.raises(ConfigError, match=message):
        shift.corrupt(images, name, severity)


def test_other_sizes_are_refused_as_strengths_are_in_pixels():
    with pytest.raises(DataError, match="found images of 64x32 pixels, expected 32x32"):
        shift.corrupt(torch.zeros(1, 3, 64, 32, dtype=torch.uint8), "fog", 1)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32, dtype=torch.uint8)])
def test_what_is_no_batch_of_coloured_levels_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected torch\.uint8 \(n, 3, 32, 32\)"):
        shift.corrupt(wrong, "fog", 1)
    with pytest.raises(ValueError, match="expected one for each of 2 images"):
        shift.corrupt(pictures(2), "fog", 1, indices=torch.arange(3))
