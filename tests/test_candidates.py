"""Networks that fill a budget: which are proposed, and what each costs."""

from dataclasses import replace

import pytest
import torch

from budgetnet import candidates, data, models
from budgetnet.candidates import Candidate, Request
from budgetnet.config import Config, ModelConfig, OptimizerConfig
from budgetnet.errors import BudgetError, ConfigError

RECIPE = Config(
    dataset="digits", val_size=100, train_size=238, batch_size=32, optimizer=OptimizerConfig(lr=0.05), ema=0.5
)
FAMILIES = ("preact", "bottleneck")


def request(**options: object) -> Request:
    return Request(**{"budget": 12_000, "recipe": RECIPE, "families": FAMILIES, "epochs": 1, **options})


def test_each_family_is_proposed_as_wide_as_the_budget_allows():
    budget = 60_000
    found = candidates.propose(request(budget=budget, families=()), 10)
    assert {candidate.family for candidate in found} == set(candidates.FAMILIES)
    assert len({candidate.name for candidate in found}) == len(found)
    for candidate in found:
        with torch.device("meta"):
            network = models.build(candidate.model, 10, budget=budget)
        assert candidate.parameters == models.count_parameters(network) >= 0.75 * budget
        assert candidate.multiply_adds == models.multiply_adds(network, 32)
        width = int(candidate.name.rpartition(" w")[2])
        wider = replace(candidate.model, width=width + 16)  # the next multiple of any groups
        with pytest.raises(BudgetError), torch.device("meta"):
            models.build(wider, 10, budget=budget)


def test_networks_that_make_too_many_multiply_adds_are_left_out():
    costs = sorted(candidate.multiply_adds for candidate in candidates.propose(request(), 10))
    limited = candidates.propose(request(multiply_adds=costs[1]), 10)
    assert sorted(candidate.multiply_adds for candidate in limited) == costs[:2]
    with pytest.raises(ConfigError, match=rf"at most 1,000 multiply-adds, the cheapest {costs[0]:,}: raise --flops"):
        candidates.propose(request(multiply_adds=1000), 10)


def test_a_budget_that_nothing_fills_is_refused():
    with pytest.raises(ConfigError, match="fills 50 parameters: raise --budget"):
        candidates.propose(request(budget=50), 10)


def test_latency_is_measured_and_draws_no_random_numbers():
    before = torch.get_rng_state()
    assert 0 < candidates.measure_latency(ModelConfig(name="whitened_cnn", width=4), 10, 16) < 1000
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_double_from_rung_to_rung_or_follow_the_speed_where_time_is_to_be_equal():
    slow, fast = (
        Candidate(name="", family="", model=ModelConfig(), parameters=1, multiply_adds=1, images_per_second=images)
        for images in (100, 250)
    )
    asked = request(epochs=3)
    assert [slow.epochs(asked, rung, 1000) for rung in range(3)] == [3, 6, 12]
    asked = request(minutes=1.0)
    assert [slow.epochs(asked, rung, 1000) for rung in range(3)] == [6, 12, 24]
    assert [fast.epochs(asked, rung, 1000) for rung in range(3)] == [15, 30, 60]
    assert slow.epochs(asked, 0, 50_000) == 1


def test_speed_is_measured_by_steps_of_the_training():
    config = replace(RECIPE, model=ModelConfig(name="whitened_cnn", width=4))
    assert 1 < candidates.measure_speed(config, data.load("digits", None), torch.device("cpu"), steps=1) < 1e7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ("preakt",)}, "preakt is not a family of networks, expected some of preact, "),
        ({"budget": 0}, "budget is 0, expected a number above 0"),
        ({"latency_ms": -1.0}, "latency is -1"),
        ({"minutes": 0.0}, "^minutes is 0, expected"),
        ({"recipe": replace(RECIPE, val_size=0)}, "val_size is 0, but networks are chosen by validation accuracy"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        request(**options)


def test_folders_of_images_need_a_recipe():
    with pytest.raises(ConfigError, match="needs a recipe with its image_size and val_size"):
        candidates.default_recipe("folder")
