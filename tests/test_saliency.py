"""Where a network looks, by what happens when parts are hidden."""

import pytest
import torch

from budgetnet.saliency import occlusion


def believes(images):
    """Two classes; the first as probable as the red of the upper left quarter is strong, relative to the whole."""
    corner = images[:, 0, :8, :8].float().mean((1, 2)) / 255
    return torch.stack([corner, 1 - corner], 1)


def pixel_by_pixel(predict, image, label, window, stride):
    _, h, w = image.shape
    clean = predict(image[None])[0, label]
    grey = image.float().mean().round()
    falls = {}
    for top in range(stride - window, h, stride):
        for left in range(stride - window, w, stride):
            hidden = image.clone()
            hidden[:, max(top, 0) : top + window, max(left, 0) : left + window] = grey
            falls[top, left] = clean - predict(hidden[None])[0, label]
    found = torch.empty(h, w)
    for y in range(h):
        for x in range(w):
            over = [f for (t, l), f in falls.items() if t <= y < t + window and l <= x < l + window]  # noqa: E741
            found[y, x] = sum(over) / len(over)
    return found


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (5, 2), (3, 3), (1, 1), (20, 7)])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 12, 17)])
def test_occlusion_equals_hiding_each_window_and_averaging_over_those_that_cover_a_pixel(shape, window, stride):
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = occlusion(believes, image, 1, window, stride)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pixel_by_pixel(believes, image, 1, window, stride))


def test_occlusion_points_at_what_the_network_looks_at_and_has_the_other_sign_for_the_other_class():
    image = torch.full((3, 32, 32), 20, dtype=torch.uint8)
    image[0, :8, :8] = 255
    for_it, against_it = (occlusion(believes, image, label) for label in (0, 1))
    assert for_it[:8, :8].min() > 0.1
    assert for_it[12:].abs().max() == for_it[:, 12:].abs().max() == 0
    torch.testing.assert_close(against_it, -for_it)


def test_hiding_a_part_of_an_even_image_changes_nothing():
    image = torch.full((3, 32, 32), 77, dtype=torch.uint8)
    assert occlusion(believes, image, 0).abs().max() == 0


def test_occlusion_asks_once_about_82_images_of_32x32_and_leaves_the_image_as_it_was():
    asked = []

    def predict(images):
        asked.append(images)
        return believes(images)

    image = torch.arange(3 * 32 * 32).remainder(251).to(torch.uint8).view(3, 32, 32)
    before = image.clone()
    occlusion(predict, image, 0)
    assert [len(images) for images in asked] == [82]
    assert asked[0].dtype == torch.uint8
    assert image.equal(before)


@pytest.mark.parametrize(
    ("image", "window", "stride", "message"),
    [
        (torch.zeros(3, 8, 8), 4, 2, r"torch.float32 \(3, 8, 8\), expected torch.uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 4, 2, r"\(1, 3, 8, 8\), expected torch.uint8 \(c, h, w\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 4, 5, "stride is 5, expected 1 to the window, which is 4"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 4, 0, "stride is 0"),
    ],
)
def test_occlusion_refuses_what_is_no_image_and_strides_that_leave_gaps(image, window, stride, message):
    with pytest.raises(ValueError, match=message):
        occlusion(believes, image, 0, window, stride)
