"""Batch norm that takes neighbouring pixels together: torch's numbers, and torch's own where nothing is gained."""

import copy

import pytest
import torch
from torch import nn

from budgetnet import models
from budgetnet.config import ModelConfig
from budgetnet.models.norms import BatchNorm2d


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def both(channels: int, **options) -> tuple[BatchNorm2d, nn.BatchNorm2d]:
    """The norm and torch's, with the same weights and statistics."""
    own, theirs = BatchNorm2d(channels, **options), nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        for values in own.state_dict().values():
            values.copy_(torch.rand(values.shape) + 0.5)
    theirs.load_state_dict(own.state_dict())
    return own, theirs


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(shape) + 1).to(dtype).contiguous(memory_format=torch.channels_last)


def results(norm: nn.BatchNorm2d, x: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    """What two steps compute: outputs, gradients, statistics."""
    found = []
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        y.backward(upstream)
        found += [y.detach(), leaf.grad]
    return [*found, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


@pytest.mark.parametrize("shape", [(8, 12, 32, 32), (4, 20, 16, 16), (3, 13, 8, 8), (5, 1, 4, 4), (2, 60, 8, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_gradients_and_statistics_are_torchs(shape, dtype):
    torch.manual_seed(1)
    own, theirs = both(shape[1], momentum=0.3)
    x, upstream = drawn(shape, dtype), drawn(shape, dtype)
    assert own._together(x) > 1, "else this compares torch with itself"
    for mine, expected in zip(results(own, x, upstream), results(theirs, x, upstream), strict=True):
        assert mine.dtype == expected.dtype
        assert mine.ndim == 1 or mine.is_contiguous(memory_format=torch.channels_last)
        # A step of bfloat16 is a 128th, and the gradient is rounded once more here.
        largest = float(expected.abs().max())
        torch.testing.assert_close(
            mine, expected, rtol=0, atol=(0.01 if mine.dtype == torch.bfloat16 else 1e-5) * largest
        )
    assert own.num_batches_tracked == theirs.num_batches_tracked


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(2)
    norm = BatchNorm2d(6, dtype=torch.float64)
    x = drawn((2, 6, 4, 4), torch.float64).requires_grad_()

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)

    weight, bias = torch.rand(2, 6, dtype=torch.float64).unbind()
    assert norm._together(x) > 1
    assert torch.autograd.gradcheck(run, (x, weight.requires_grad_(), bias.requires_grad_()))


@torch.no_grad()
def test_a_mean_far_from_zero_loses_no_digits():
    own, theirs = both(12)
    x = drawn((4, 12, 8, 8)) / 100 + 1000
    exact = copy.deepcopy(theirs).double()(x.double())
    errors = [float((norm(x) - exact).abs().max()) for norm in (own, theirs)]
    assert errors[0] < 2 * errors[1]
    torch.testing.assert_close(own.running_var, theirs.running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("channels", "shape", "options"),
    [
        (16, (2, 16, 8, 8), {}),
        (72, (2, 72, 8, 8), {}),
        (12, (2, 12, 3, 3), {}),
        (12, (2, 12, 8, 8), {"affine": False}),
        (12, (2, 12, 8, 8), {"track_running_stats": False}),
        (12, (2, 12, 8, 8), {"momentum": None}),
    ],
)
def test_what_gains_nothing_or_is_rare_is_left_to_torch(channels, shape, options):
    own = BatchNorm2d(channels, **options)
    theirs = nn.BatchNorm2d(channels, **options)
    x = drawn(shape)
    assert own._together(x) == 1
    assert torch.equal(own(x), theirs(x))
    for key, value in theirs.state_dict().items():
        assert torch.equal(own.state_dict()[key], value)


def test_in_evaluation_in_contiguous_order_and_on_one_thread_it_is_torchs():
    own, theirs = both(12)
    x = drawn((2, 12, 8, 8))
    assert own._together(x.contiguous()) == 1
    assert own._together(x.to("meta")) == 1
    torch.set_num_threads(1)
    assert own._together(x) == 1
    assert own._together(x.bfloat16()) > 1, "whose numbers torch adds up one at a time"
    own.eval(), theirs.eval()
    assert torch.equal(own(x), theirs(x))


def test_what_needs_two_values_a_channel_is_refused_as_torch_does():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNorm2d(12)(torch.zeros(1, 12, 1, 1))


def test_a_narrow_network_trains_as_with_torchs_norms():
    torch.manual_seed(3)
    network = models.build(ModelConfig(name="wrn_16_4", width=12), 10, image_size=32)
    network = network.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(module, BatchNorm2d):
            module.__class__ = nn.BatchNorm2d
    x, y = drawn((16, 3, 32, 32)), torch.arange(16) % 10
    losses = []
    for model in (network, plain):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for mine, expected in zip(network.parameters(), plain.parameters(), strict=True):
        error = (mine.grad - expected.grad).norm() / expected.grad.norm()
        assert error < 1e-3
    assert [*network.state_dict()] == [*plain.state_dict()]
