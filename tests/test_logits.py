"""Logits depend on the image alone, and are those of the network and of the views that they are averaged over."""

import math

import pytest
import torch
from torch import Tensor, nn

from budgetnet.engine import compile_network
from budgetnet.errors import CheckpointError
from budgetnet.inputs import normalize
from budgetnet.logits import _passes_of_one_size, predict_logits, require_finite

MEAN, STD = (0.5, 0.4, 0.45), (0.25, 0.24, 0.26)


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))[:, :, None, None]


def a_network(channels_last: bool = False) -> nn.Sequential:
    """Has the layers whose kernels could treat one place in a batch unlike another."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.GELU(),
        nn.Conv2d(16, 30, 3, stride=2, padding=1, groups=2),
        nn.SiLU(),
        nn.Conv2d(30, 30, 1),
        Gate(30),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(30, 7),
    )
    return network.to(memory_format=torch.channels_last) if channels_last else network


def some_images(n: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 20, 24), dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize(("channels_last", "precision"), [(False, None), (True, None), (True, torch.bfloat16)])
def test_logits_of_an_image_are_the_same_bits_alone_in_a_subset_and_in_any_order(threads, channels_last, precision):
    torch.set_num_threads(threads)
    network, images = a_network(channels_last), some_images(40)
    together = predict_logits(network, images, MEAN, STD, precision=precision)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for chosen in (order, torch.arange(17, 25), torch.tensor([0]), torch.tensor([39]), torch.tensor([5, 5])):
        assert torch.equal(predict_logits(network, images[chosen], MEAN, STD, precision=precision), together[chosen])


@pytest.mark.parametrize("channels_last", [False, True])
def test_logits_are_what_the_network_says_of_each_normalised_image(channels_last):
    network, images = a_network(channels_last), some_images(5)
    logits = predict_logits(network, images, MEAN, STD)
    network.eval()
    one_by_one = torch.cat([network(normalize(image[None], MEAN, STD)) for image in images])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, one_by_one)


def views(image: Tensor, tta: str) -> list[tuple[float, Tensor]]:
    """Views of an image (3, h, w) with their weights, by slicing."""
    mirror = image.flip(2)
    if tta == "none":
        return [(1.0, image)]
    if tta == "flip":
        return [(0.5, image), (0.5, mirror)]
    rows, columns = image.shape[1:]

    def moved(down: int, right: int) -> Tensor:
        def source(i: int, length: int, by: int) -> int:
            i = abs(i - by)
            return i if i < length else 2 * (length - 1) - i

        found = image[:, [source(i, rows, down) for i in range(rows)]]
        return found[:, :, [source(i, columns, right) for i in range(columns)]]

    if tta == "flip-shift":
        shifted = [view for by in (-1, 1) for view in (moved(by, by), moved(by, by).flip(2))]
        return [(0.25, image), (0.25, mirror), *((0.125, view) for view in shifted)]
    crops = [moved(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return [(1 / 18, view) for crop in crops for view in (crop, crop.flip(2))]


@pytest.mark.parametrize("tta", ["none", "flip", "flip-shift", "crops"])
def test_tta_is_the_weighted_mean_of_the_logits_of_each_view(tta):
    network, images = a_network(), some_images(2)
    logits = predict_logits(network, images, MEAN, STD, tta=tta)
    expected = []
    for image in images:
        terms = [w * predict_logits(network, view[None], MEAN, STD) for w, view in views(image, tta)]
        expected.append(torch.stack(terms).sum(0))
    torch.testing.assert_close(logits, torch.cat(expected))


def test_groups_of_views_count_for_their_shares_and_one_alone_is_the_mean_of_its_views():
    network, images = a_network(), some_images(2)

    def logits(tta, shares=None):
        return predict_logits(network, images, MEAN, STD, tta=tta, shares=shares)

    torch.testing.assert_close(logits("flip-shift", [3, 0]), logits("flip"))
    torch.testing.assert_close(logits("flip-shift", [2, 2]), logits("flip-shift"))
    alone = [logits("crops", shares) for shares in torch.eye(3).tolist()]
    torch.testing.assert_close(logits("crops", [1, 2, 5]), (alone[0] + 2 * alone[1] + 5 * alone[2]) / 8)
    with pytest.raises(ValueError, match="zip"):
        logits("flip-shift", [1, 1, 1])


def test_flipping_the_images_changes_nothing_under_flip_tta():
    network, images = a_network(), some_images(3)
    torch.testing.assert_close(
        predict_logits(network, images, MEAN, STD, tta="flip"),
        predict_logits(network, images.flip(3), MEAN, STD, tta="flip"),
    )


def test_every_module_returns_to_the_mode_it_was_in_even_when_the_network_fails():
    network = a_network()
    network[1].eval()
    before = [module.training for module in network.modules()]
    predict_logits(network, some_images(1), MEAN, STD)
    assert [module.training for module in network.modules()] == before
    with pytest.raises(RuntimeError):
        predict_logits(network, torch.zeros(1, 1, 20, 24, dtype=torch.uint8), MEAN[:1], STD[:1])
    assert [module.training for module in network.modules()] == before


def test_an_autocast_around_the_call_changes_nothing():
    network, images = a_network(), some_images(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = predict_logits(network, images, MEAN, STD)
    assert torch.equal(inside, predict_logits(network, images, MEAN, STD))


def test_nothing_is_kept_for_a_backward_pass():
    network, seen = a_network(), []
    network.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    predict_logits(network, some_images(2), MEAN, STD)
    assert seen == [True]


def test_on_an_accelerator_images_go_256_at_a_time_in_their_order():
    passes = _passes_of_one_size(some_images(300), torch.device("cuda"))
    assert [size for size, _, _ in passes] == [256, 256]
    assert torch.equal(torch.cat([chosen for _, chosen, _ in passes]), torch.arange(300))
    assert torch.equal(torch.cat([places for _, _, places in passes]), torch.arange(300) % 256)


def test_weights_of_neither_memory_format_are_given_images_in_the_usual_one():
    network, seen = a_network(channels_last=True), []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(module.weight.detach().transpose(2, 3))
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
    predict_logits(network, some_images(2), MEAN, STD)
    assert seen == [True]


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_network_is_given_images_in_the_memory_format_of_its_weights(channels_last):
    network, seen = a_network(channels_last), []
    network.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    predict_logits(network, some_images(2), MEAN, STD)
    assert seen == [channels_last]


def test_no_images_give_no_logits_of_the_right_width():
    assert predict_logits(a_network(), some_images(0), MEAN, STD).shape == (0, 7)


def test_an_unknown_tta_and_images_that_are_not_uint8_are_refused():
    with pytest.raises(ValueError, match="expected none, flip, flip-shift, crops"):
        predict_logits(a_network(), some_images(1), MEAN, STD, tta="twice")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected torch\.uint8"):
        predict_logits(a_network(), some_images(1).float(), MEAN, STD)
    with pytest.raises(
        ValueError, match=r"^images are torch\.uint8 \(3, 20, 24\), expected torch\.uint8 \(n, c, h, w\)"
    ):
        predict_logits(a_network(), some_images(1)[0], MEAN, STD)


def test_an_engine_stands_for_its_network_also_with_no_images():
    network, images = a_network().eval(), some_images(5)
    engine = compile_network(network, (3, 20, 24))
    torch.testing.assert_close(predict_logits(engine, images, MEAN, STD), predict_logits(network, images, MEAN, STD))
    assert predict_logits(engine, images[:0], MEAN, STD).shape == (0, 7)


def test_an_engine_takes_no_precision():
    engine = compile_network(a_network().eval(), (3, 20, 24))
    with pytest.raises(ValueError, match=r"^precision is torch\.bfloat16, but an engine computes in what it was"):
        predict_logits(engine, some_images(1), MEAN, STD, precision=torch.bfloat16)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_precision_is_what_the_network_computes_in_and_32_bits_are_none(precision):
    network, images = a_network(), some_images(3)
    seen = []
    network[-1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    narrow = predict_logits(network, images, MEAN, STD, precision=precision)
    plain = [predict_logits(network, images, MEAN, STD, precision=what) for what in (None, torch.float32)]
    assert set(seen[:1]) == {precision}
    assert set(seen[-2:]) == {torch.float32}
    assert narrow.dtype == torch.float32
    assert torch.equal(*plain)
    torch.testing.assert_close(narrow, plain[0], rtol=0.1, atol=0.1)


def test_a_network_without_parameters_runs_where_the_images_are():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = some_images(3)
    logits = predict_logits(network, images, MEAN, STD)
    torch.testing.assert_close(logits, normalize(images, MEAN, STD).mean((2, 3)))


def test_logits_that_are_not_finite_are_refused():
    network = a_network()
    network[-1].bias.data[3] = math.nan
    with pytest.raises(CheckpointError, match=r"2 of 2 images .* not finite"):
        predict_logits(network, some_images(2), MEAN, STD)
    with pytest.raises(CheckpointError, match="the first is image 1"):
        require_finite(torch.tensor([[0.0, 1.0], [math.inf, 0.0]]))
