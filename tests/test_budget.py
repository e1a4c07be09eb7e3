"""The budget: what is counted, what is refused, and the widest network that fits."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from budgetnet import models
from budgetnet.config import ModelConfig, StageConfig
from budgetnet.errors import BudgetError, ConfigError


def count(config: ModelConfig, num_classes: int = 10, channels: int = 3) -> int:
    with torch.device("meta"):
        return models.count_parameters(models.build(config, num_classes, channels=channels))


def test_frozen_parameters_and_buffers_do_not_count():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    assert models.count_parameters(network) == (4 * 3 * 9 + 4) + (4 + 4) + (4 * 2 + 2)
    network[0].weight.requires_grad_(False)
    assert models.count_parameters(network) == 4 + (4 + 4) + (4 * 2 + 2)


def test_a_network_over_budget_is_refused_with_count_excess_limit_and_the_widest_that_fits():
    widest = count(ModelConfig(name="resnet_se", width=31))
    with pytest.raises(BudgetError) as error:
        models.build(ModelConfig(name="resnet_se"), 10, budget=5_000_000)
    assert str(error.value) == (
        "resnet_se has 5,237,546 trainable parameters, 237,546 over the budget of 5,000,000; "
        f"the widest that fits is width 31 ({widest:,})"
    )


def test_a_network_of_exactly_the_budget_fits_and_of_one_parameter_more_does_not():
    config = ModelConfig(name="resnet_leaky")
    assert models.check_budget(config, 10, budget=4_773_354) == config
    with pytest.raises(BudgetError, match="1 over the budget of 4,773,353"):
        models.check_budget(config, 10, budget=4_773_353)


def test_no_budget_refuses_nothing():
    config = ModelConfig(name="wrn_28_10")
    assert models.check_budget(config, 10, budget=None) == config


@pytest.mark.parametrize("width", [None, 8, "auto"])
def test_when_not_even_the_narrowest_fits_the_message_says_so(width):
    config = ModelConfig(name="resnet18", width=width)
    with pytest.raises(
        BudgetError, match=r"not even width 1 fits \(2,991 .*the budget is 100\).*choose another"
    ) as error:
        models.build(config, 10, budget=100)
    assert "\n" not in str(error.value)
    assert models.largest_width(config, 10, budget=100) is None


def test_the_budget_is_checked_without_drawing_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    models.check_budget(ModelConfig(width="auto"), 10, budget=5_000_000)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["enhanced", "whitened_cnn_large", "resnet_custom", "resnext29_2x64d", "wrn_16_4"])
def test_auto_takes_the_largest_width_that_fits(name):
    budget = 1_000_000
    resolved = models.check_budget(ModelConfig(name=name, width="auto"), 10, budget=budget)
    assert isinstance(resolved.width, int)
    assert models.largest_width(ModelConfig(name=name), 10, budget=budget) == resolved.width
    assert count(resolved) <= budget
    wider = next(
        number
        for width in range(resolved.width + 1, 4 * resolved.width)
        if (number := count(replace(resolved, width=width))) != count(resolved)
    )
    assert wider > budget


def test_the_largest_width_equals_that_of_trying_every_width():
    config = ModelConfig(name="enhanced")
    counts = {width: count(replace(config, width=width), num_classes=3, channels=1) for width in range(1, 14)}
    for budget in (20_000, 100_000, counts[7], counts[7] - 1, 600_000):
        slow = max((width for width, number in counts.items() if number <= budget), default=None)
        assert models.largest_width(config, 3, budget=budget, channels=1) == slow


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.sampled_from(["enhanced", "whitened_cnn", "resnext29_2x64d", "wrn_10_2"]))
def test_a_wider_network_never_has_fewer_parameters(width, name):
    assert count(ModelConfig(name=name, width=width)) <= count(ModelConfig(name=name, width=width + 1))


@pytest.mark.parametrize("name", ["enhanced", "whitened_cnn_large", "resnext29_32x4d", "wrn_28_10"])
def test_the_largest_width_within_a_networks_own_count_is_its_own(name):
    own = count(ModelConfig(name=name))
    width = models.largest_width(ModelConfig(name=name), 10, budget=own)
    assert count(ModelConfig(name=name, width=width)) == own


@pytest.mark.parametrize("width", [1, 100, 140, 143])
def test_grouped_stages_scale_to_widths_that_their_groups_divide(width):
    stages = [
        StageConfig(block="bottleneck", width=96, groups=32, expansion=2),
        StageConfig(block="basic", width=160, groups=32, stride=2),
    ]
    with torch.device("meta"):
        network = models.build(ModelConfig(name="residual", stages=stages, width=width), 10)
    first = network.get_submodule("layer1.0.conv2").weight.shape[0]
    second = network.get_submodule("layer2.0.conv2").weight.shape[0]
    assert first % 32 == second % 32 == 0
    assert first == max(32, round(width / 32) * 32)
    assert abs(second - first * 160 / 96) <= 16


def test_auto_without_a_budget_is_an_error():
    with pytest.raises(ConfigError, match=r"model\.width is auto and budget is null"):
        models.build(ModelConfig(width="auto"), 10)


def test_more_classes_leave_room_for_less_width():
    few = models.largest_width(ModelConfig(), 10, budget=5_000_000)
    many = models.largest_width(ModelConfig(), 1000, budget=5_000_000)
    assert few is not None
    assert many is not None
    assert many < few


@pytest.mark.parametrize("name", models.names())
def test_the_rows_of_a_summary_add_up_to_the_network(name):
    with torch.device("meta"):
        network = models.build(ModelConfig(name=name), 10)
    rows = models.summarize(network, 32)
    assert sum(row.parameters for row in rows) == models.count_parameters(network)
    assert sum(row.multiply_adds for row in rows) == models.multiply_adds(network, 32)
    assert rows[-1].output_shape == (10,)
    assert len({row.name for row in rows}) == len(rows)


def test_multiply_adds_equal_those_counted_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    by_hand = (8 * 10 * 10) * (3 * 9) + (16 * 5 * 5) * (8 // 4 * 9) + 16 * 5
    assert models.multiply_adds(network, 10) == by_hand


def test_resnet18_makes_the_published_multiply_adds():
    with torch.device("meta"):
        network = models.build(ModelConfig(name="resnet18"), 10)
    assert models.multiply_adds(network, 32) == pytest.approx(0.56e9, rel=0.01)


def test_a_summary_leaves_the_network_as_it_was():
    network = models.build(ModelConfig(name="enhanced", width=8), 10)
    network.layer1.eval()
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rows = models.summarize(network, 32)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert rows == models.summarize(network, 32)


def test_a_summary_names_blocks_with_their_switches_and_shapes():
    with torch.device("meta"):
        rows = {row.name: row for row in models.summarize(models.build(ModelConfig(name="resnet_custom"), 10), 32)}
    assert list(rows)[:5] == ["conv1", "bn1", "conv2", "bn2", "layer1.0"]
    assert rows["conv1"].kind == "conv 3x3, 3-32"
    assert rows["layer2.0"].kind == "bottleneck, 64-64-256, stride 2, projection, separable, ReLU"
    assert rows["layer4.1"].kind == "bottleneck, 256-256-1024, SE 1/16 on the sum, LeakyReLU"
    assert rows["layer3.0"].output_shape == (512, 8, 8)
    assert rows["linear"].kind == "linear, 1024-10"
    assert all(re.fullmatch(r"[ -~]+", row.kind) for row in rows.values())
