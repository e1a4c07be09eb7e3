"""Norm statistics of the images at hand, what views count for, and the temperature of probabilities."""

from statistics import mean, stdev

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from budgetnet import models, remedies
from budgetnet.config import ModelConfig, StageConfig
from budgetnet.errors import CheckpointError, ConfigError, DataError
from budgetnet.evaluate import score
from budgetnet.inputs import normalize
from budgetnet.logits import predict_logits
from budgetnet.remedies import adapted, fit_shares, fit_temperature, gain, render_predicted, render_scored

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def images(n: int, seed: int = 0, low: int = 0, high: int = 256) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (n, 3, 8, 8), generator=rng, dtype=torch.uint8)


@pytest.fixture
def network() -> nn.Module:
    """Small, with norms that have seen some images."""
    torch.manual_seed(0)
    stages = (StageConfig(depth=1, width=6), StageConfig(block="preact", depth=1, width=8, stride=2))
    built = models.build(ModelConfig(name="residual", stages=stages), 5)
    with torch.no_grad():
        for step in range(3):
            built(normalize(images(8, seed=step), MEAN, STD))
    return built.eval()


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in network.state_dict().items() if "running" in key}


def norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def inputs_of(network: nn.Module, norm: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    found = []
    handle = norm.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
    with torch.no_grad():
        network(normalize(pixels, MEAN, STD))
    handle.remove()
    return found[0]


@pytest.mark.parametrize("prior", [0, 24, 1000])
def test_each_norm_takes_the_statistics_of_its_inputs_blended_with_those_of_training(network, prior):
    dark = images(40, seed=99, high=120)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = adapted(network, dark, MEAN, STD, prior)
    ours = 40 / (40 + prior)
    source = norms(network)
    for name, norm in norms(found).items():
        # Through the norms before it as they are now, which is what one batch makes exact.
        x = inputs_of(found, norm, dark)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        assert torch.allclose(norm.running_mean, (1 - ours) * source[name].running_mean + ours * mean, atol=1e-5)
        assert torch.allclose(norm.running_var, (1 - ours) * source[name].running_var + ours * variance, rtol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "a copy is changed"
    weights = {key: value for key, value in found.state_dict().items() if "running" not in key}
    assert all(torch.equal(value, before[key]) for key, value in weights.items())
    assert not found.training


def test_the_order_of_the_images_changes_nothing(network, monkeypatch):
    monkeypatch.setattr(remedies, "_PIXELS", 16 * 64)  # batches of 16
    some = images(50, seed=1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    one, other = (statistics(adapted(network, pixels, MEAN, STD, 3)) for pixels in (some, some[order]))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_several_batches_come_close_to_one(network, monkeypatch):
    some = images(200, seed=1, low=100)
    whole = statistics(adapted(network, some, MEAN, STD))
    monkeypatch.setattr(remedies, "_PIXELS", 50 * 64)
    batched = statistics(adapted(network, some, MEAN, STD))
    source = statistics(network)
    assert any(not torch.equal(value, batched[key]) for key, value in whole.items())
    for key, value in whole.items():
        assert (value - batched[key]).abs().max() < 0.2 * (value - source[key]).abs().max() + 0.02


@pytest.mark.parametrize(("n", "expected"), [(50, [17, 17, 16]), (20, [20]), (21, [11, 10]), (41, [14, 14, 13])])
def test_whatever_the_batches_what_comes_before_the_first_norm_counts_by_image(network, monkeypatch, n, expected):
    some, sizes = images(n, seed=3), []
    whole = norms(adapted(network, some, MEAN, STD))
    monkeypatch.setattr(remedies, "_PIXELS", 20 * 64 + 32)
    network.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    batched = norms(adapted(network, some, MEAN, STD))
    assert sizes == expected
    first = next(iter(whole))
    assert torch.allclose(batched[first].running_mean, whole[first].running_mean, atol=1e-5)
    assert torch.allclose(batched[first].running_var, whole[first].running_var, rtol=1e-4)


@pytest.mark.parametrize(
    ("n", "side", "expected"), [(512, 32, [512]), (513, 32, [257, 256]), (16, 256, [16]), (17, 256, [9, 8])]
)
def test_batches_are_of_512_images_and_of_fewer_where_images_are_large(n, side, expected):
    norm, sizes = nn.BatchNorm2d(3), []
    norm.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    adapted(norm, torch.arange(n * 3 * side * side).byte().view(n, 3, side, side), MEAN, STD)
    assert sizes == expected


def test_a_small_variance_beside_a_large_mean_is_exact_and_none_is_below_zero(monkeypatch):
    monkeypatch.setattr(remedies, "_PIXELS", 3 * 64)
    some = images(50, seed=3, low=254)
    x = normalize(some, [0.0] * 3, [1e-4] * 3).double()  # some 10,000; in 32 bits squares would be off by a fiftieth
    found = adapted(nn.BatchNorm2d(3), some, [0.0] * 3, [1e-4] * 3)
    assert torch.allclose(found.running_var.double(), x.var((0, 2, 3), correction=0), rtol=1e-4)
    for n in range(40, 60):  # of some, shares of batches add up to more than 1 by the last digit
        flat = torch.full((n, 3, 8, 8), 200, dtype=torch.uint8)
        assert (adapted(nn.BatchNorm2d(3), flat, [0.0] * 3, [1e-4] * 3).running_var >= 0).all()


def test_norms_that_keep_no_statistics_are_left_to_themselves(network):
    both = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3))
    adapted(both, images(4), MEAN, STD)
    with pytest.raises(ConfigError, match="no batch norms"):
        adapted(both[:1], images(4), MEAN, STD)


def test_two_images_are_enough_and_one_where_training_counts_as_another(network):
    for n, prior in ((2, 0), (1, 1)):
        found = statistics(adapted(network, images(n), MEAN, STD, prior))
        assert any(not torch.equal(value, found[key]) for key, value in statistics(network).items())


def test_a_large_prior_leaves_the_network_as_it_was(network):
    some = images(4, seed=5)
    found = adapted(network, some, MEAN, STD, 10**9)
    expected, logits = (predict_logits(either, some, MEAN, STD) for either in (network, found))
    assert torch.allclose(logits, expected, atol=1e-4)


def test_contrast_that_was_lost_is_brought_back(network):
    some = images(64, seed=7)
    grey = 255 * torch.tensor(MEAN).view(3, 1, 1)  # which is 0 to the network, as is its padding
    dimmed = (grey + (some - grey) / 4).round().byte()
    expected = predict_logits(adapted(network, some, MEAN, STD), some, MEAN, STD)
    plain = predict_logits(network, dimmed, MEAN, STD)
    found = predict_logits(adapted(network, dimmed, MEAN, STD), dimmed, MEAN, STD)
    assert (found - expected).abs().mean() < 0.1 * (plain - expected).abs().mean()


def test_what_cannot_be_adapted_is_refused(network):
    with pytest.raises(ConfigError, match="norm_prior is -1, expected 0 or more"):
        adapted(network, images(3), MEAN, STD, -1)
    with pytest.raises(DataError, match="found 1 images, expected two or more"):
        adapted(network, images(1), MEAN, STD)
    with pytest.raises(DataError, match="found 0 images"):
        adapted(network, images(3)[:0], MEAN, STD, 16)
    with pytest.raises(ConfigError, match="no batch norms"):
        adapted(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), images(3), MEAN, STD)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        adapted(network, images(3), MEAN, STD)


# Temperature


def calibrated(n: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right as often as they say once they are divided by the temperature."""
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, 10, generator=rng)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=rng)[:, 0]
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_was_applied_is_found_and_calibrates(temperature):
    logits, labels = calibrated(5000, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.04)
    assert score(logits / found, labels).ece < 0.02


def test_the_temperature_has_the_least_cross_entropy_of_all_on_a_fine_grid():
    logits, labels = calibrated(300, 1.7)
    grid = torch.logspace(-1.3, 1.3, 2001, dtype=torch.float64)
    losses = torch.stack([F.cross_entropy(logits.double() / t, labels) for t in grid])
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(grid[losses.argmin()].item(), rel=2e-3)
    assert F.cross_entropy(logits.double() / found, labels) <= losses.min()


def test_the_order_of_the_images_does_not_change_the_temperature():
    logits, labels = calibrated(300, 1.7)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert fit_temperature(logits[order], labels[order]) == fit_temperature(logits, labels)
    assert fit_temperature(logits.double(), labels) == fit_temperature(logits, labels)


def test_a_network_that_is_never_wrong_or_never_right_gets_the_end_of_the_range():
    logits = torch.eye(4) * 3
    assert fit_temperature(logits, torch.arange(4)) == remedies.LOWEST == 0.05
    assert fit_temperature(logits, (torch.arange(4) + 1) % 4) == remedies.HIGHEST == 20
    with pytest.raises(DataError, match="no images"):
        fit_temperature(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def three_groups(n: int, noise: tuple[float, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of three groups of views, which see the same with more or less noise, and labels."""
    logits, labels = calibrated(n, 1.0)
    rng = torch.Generator().manual_seed(1)
    return torch.stack([logits + each * torch.randn(logits.shape, generator=rng) for each in noise]), labels


def test_shares_have_the_least_cross_entropy_of_all_on_a_grid_of_shares_and_temperatures():
    logits, labels = three_groups(400, (1.0, 0.5, 4.0))
    found = fit_shares(logits, labels)
    assert sum(found) == pytest.approx(1)
    assert found[1] > found[0] > found[2] >= 0

    def loss(shares: list[float]) -> float:
        mean = torch.tensordot(torch.tensor(shares), logits, 1)
        return F.cross_entropy(mean / fit_temperature(mean, labels), labels).item()

    grid = [(a / 10, b / 10, (10 - a - b) / 10) for a in range(11) for b in range(11 - a)]
    assert loss(found) <= min(loss([*shares]) for shares in grid) + 1e-6


def test_shares_are_those_of_logits_of_any_scale_and_what_misleads_counts_for_nothing():
    logits, labels = three_groups(400, (1.0, 0.5, 4.0))
    assert fit_shares(20 * logits, labels) == pytest.approx(fit_shares(logits, labels), abs=0.01)
    logits[2] = -calibrated(400, 1.0)[0]
    assert fit_shares(logits, labels)[2] == 0


def test_views_that_say_nothing_of_the_classes_count_alike_and_some_images_are_needed():
    labels = torch.arange(4)
    wrong = torch.stack([-torch.eye(4), -2 * torch.eye(4)])
    assert fit_shares(wrong, labels) == [0.5, 0.5]
    with pytest.raises(DataError, match="no images"):
        fit_shares(torch.zeros(2, 0, 4), labels[:0])


def test_a_gain_is_judged_by_the_difference_on_each_image():
    rng = torch.Generator().manual_seed(0)
    before, after = torch.randint(0, 2, (2, 400), generator=rng).bool()
    found = gain(before, after)
    each = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    assert found["accuracy"] == pytest.approx(mean(each))
    assert found["noise"] == pytest.approx(1.96 * stdev(each) / 20)
    few = before.clone()
    few[before.nonzero()[:1]] = False  # one fewer is right: by accuracies alone, 5 points are noise
    assert gain(before, few)["accuracy"] == pytest.approx(-1 / 400)
    assert gain(before, few)["noise"] < 0.005


@pytest.mark.parametrize(
    ("gained", "line"),
    [
        ({"accuracy": 0.02, "noise": 0.01}, "          +2.00 ± 1.00 points, beyond the noise of these images"),
        ({"accuracy": -0.02, "noise": 0.01}, "          -2.00 ± 1.00 points, beyond the noise of these images"),
        ({"accuracy": 0.01, "noise": 0.01}, "          +1.00 ± 1.00 points, within the noise of these images"),
        ({"accuracy": 0.0, "noise": 0.0}, None),
        (None, None),
    ],
)
def test_what_is_said_of_a_gain(gained, line):
    remedy = {"remedy": "norm statistics", "prior": 0, "predictions_changed": 0.5}
    lines = render_predicted(remedy if gained is None else remedy | {"gain": gained}).splitlines()
    assert lines[2:] == ([] if line is None else [line])


BEFORE, AFTER = {"accuracy": 0.5, "loss": 1.25, "ece": 0.1}, {"accuracy": 0.525, "loss": 1.2, "ece": 0.02}
GAIN, JUDGED = {"accuracy": 0.025, "noise": 0.01}, "          +2.50 ± 1.00 points, beyond the noise of these images"
CHANGE = "accuracy 50.00 -> 52.50 %, loss 1.250 -> 1.200, ECE 10.00 -> 2.00 %"
FITTED = {"images": 5000, "before": BEFORE, "after": AFTER}


@pytest.mark.parametrize(
    ("remedy", "name"),
    [
        (
            {"remedy": "norm statistics", "prior": 1600},
            "norm statistics of these images (training's count as 1,600 images)",
        ),
        (
            {"remedy": "views", "shares": [0.12345, 0.87655], "fitted": FITTED},
            "views that count for 0.123 : 0.877, fitted on the 5,000 validation images",
        ),
        (
            {"remedy": "temperature", "temperature": 1.23456, "fitted": FITTED},
            "temperature 1.235, fitted on the 5,000 validation images",
        ),
        ({"remedy": "temperature", "temperature": 2.0}, "temperature 2"),
    ],
)
def test_what_a_remedy_did_is_told_by_its_name_and_by_scores_before_and_after(remedy, name):
    fitted = "fitted" in remedy
    scored = remedy | {"before": BEFORE, "after": AFTER, "gain": GAIN}
    assert render_scored(scored, "test").splitlines() == [name, f"          {CHANGE}", JUDGED]
    assert render_scored(scored, "val").splitlines()[0] == name + (" (scored here too)" if fitted else "")
    both = {key: value | {"clean": value} for key, value in (("before", BEFORE), ("after", AFTER), ("gain", GAIN))}
    lines = render_scored(remedy | both, "test").splitlines()
    assert lines == [name, f"  clean   {CHANGE}", JUDGED, f"  shifted {CHANGE}", JUDGED]
    predicted = remedy | {"predictions_changed": 0.0625}
    there = [f"  there   {CHANGE}"] if fitted else []
    assert render_predicted(predicted).splitlines() == [name, "  6.25% of predictions changed", *there]
    predicted |= {"accuracy_before": 0.5, "accuracy_after": 0.525, "gain": GAIN}
    changed = "  6.25% of predictions changed, accuracy 50.00% -> 52.50%"
    assert render_predicted(predicted).splitlines() == [name, changed, JUDGED, *there]
    assert max(map(len, lines)) <= 80
