"""Schedules, groups, optimizers and averages equal slow, obvious references."""

import copy
import itertools
import math
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from budgetnet import models, optim
from budgetnet.config import ModelConfig, OptimizerConfig, ScheduleConfig
from budgetnet.optim import (
    Muon,
    Plateau,
    WeightAverage,
    ascended,
    estimate_norms,
    lr_factor,
    make_optimizer,
    orthogonalize,
    parameter_groups,
    set_learning_rate,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
close = {"rel": 1e-9, "abs": 1e-12}


def curve(config, steps_per_epoch, epochs):
    return [lr_factor(config, step, steps_per_epoch, epochs) for step in range(epochs * steps_per_epoch)]


def stepped(make_scheduler, steps, lr=1.0):
    """What a scheduler of torch gives over so many of its steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# ---------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(("epochs", "steps", "floor"), [(1, 1, 0.0), (7, 3, 0.0), (5, 4, 0.05), (3, 5, 1.0)])
def test_cosine_is_torchs_cosine_annealing_by_the_step(epochs, steps, floor):
    total = epochs * steps
    expected = stepped(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total, eta_min=floor), total)
    assert curve(ScheduleConfig(name="cosine", floor=floor), steps, epochs) == pytest.approx(expected, **close)


def test_cosine_after_a_warm_up_is_the_same_cosine_over_the_steps_that_remain():
    epochs, steps, warmup = 6, 4, 2
    rest = (epochs - warmup) * steps
    expected = stepped(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, rest, eta_min=0.1), rest)
    found = curve(ScheduleConfig(name="cosine", warmup=warmup, floor=0.1), steps, epochs)
    assert found[warmup * steps :] == pytest.approx(expected, **close)


@pytest.mark.parametrize("milestones", [[1], [2, 5], [2, 2, 3]])
def test_multistep_is_torchs_by_the_epoch(milestones):
    expected = stepped(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones, gamma=0.3), 7)
    config = ScheduleConfig(name="multistep", milestones=milestones, gamma=0.3)
    assert curve(config, 4, 7) == pytest.approx([rate for rate in expected for _ in range(4)], **close)


def test_multistep_drops_within_an_epoch_where_a_milestone_says_so():
    assert curve(ScheduleConfig(name="multistep", milestones=[1.5], gamma=0.5), 4, 3) == [1.0] * 6 + [0.5] * 6


def test_exponential_is_torchs_by_the_epoch():
    expected = stepped(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.8), 9)
    config = ScheduleConfig(name="exponential", gamma=0.8)
    assert curve(config, 3, 9) == pytest.approx([rate for rate in expected for _ in range(3)], **close)


def test_exponential_counts_its_epochs_from_the_end_of_the_warm_up():
    plain = curve(ScheduleConfig(name="exponential", gamma=0.8), 5, 4)
    assert curve(ScheduleConfig(name="exponential", gamma=0.8, warmup=3), 5, 7)[15:] == pytest.approx(plain, **close)


@pytest.mark.parametrize("name", ["multistep", "exponential"])
def test_drops_end_at_the_floor(name):
    milestones = [1, 2, 3, 4, 5] if name == "multistep" else []
    plain = curve(ScheduleConfig(name=name, gamma=0.5, milestones=milestones), 2, 8)
    floored = curve(ScheduleConfig(name=name, gamma=0.5, milestones=milestones, floor=0.2), 2, 8)
    assert floored == [max(0.2, factor) for factor in plain]
    assert floored[-1] == 0.2


@pytest.mark.parametrize(("period", "growth", "floor"), [(2, 1, 0.0), (1, 2, 0.01), (3, 2, 0.2)])
def test_restarts_are_torchs_cosine_annealing_with_warm_restarts(period, growth, floor):
    steps, epochs = 4, 15
    expected = stepped(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, period * steps, growth, eta_min=floor),
        steps * epochs,
    )
    config = ScheduleConfig(name="restarts", period=period, period_growth=growth, floor=floor)
    assert curve(config, steps, epochs) == pytest.approx(expected, **close)


@pytest.mark.parametrize(("name", "anneal"), [("onecycle", "cos"), ("triangular", "linear")])
@pytest.mark.parametrize(("peak", "start", "floor"), [(0.3, 0.04, 0.0004), (0.25, 0.2, 0.1), (0.5, 0.5, 0.5)])
def test_one_cycle_and_triangular_are_torchs_one_cycle(name, anneal, peak, start, floor):
    steps, epochs = 5, 8
    total = steps * epochs
    # torch reaches its last value at the last of its steps, we at the end of ours: one step more, the same peak.
    expected = stepped(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o,
            max_lr=1.0,
            total_steps=total + 1,
            pct_start=(peak * total + 1) / (total + 1),
            anneal_strategy=anneal,
            cycle_momentum=False,
            div_factor=1 / start,
            final_div_factor=start / floor,
        ),
        total,
    )
    config = ScheduleConfig(name=name, peak=peak, start=start, floor=floor)
    assert curve(config, steps, epochs) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant_and_plateau_stay_at_the_peak(name):
    assert curve(ScheduleConfig(name=name, floor=0.5), 3, 4) == [1.0] * 12


shares = st.floats(0, 1)
runs = st.tuples(st.integers(1, 40), st.integers(1, 20))


@st.composite
def schedules(draw):
    name = draw(
        st.sampled_from(
            ["constant", "cosine", "multistep", "exponential", "plateau", "restarts", "onecycle", "triangular"]
        )
    )
    return ScheduleConfig(
        name=name,
        warmup=0.0 if name in ("onecycle", "triangular") else draw(st.floats(0, 10)),
        floor=draw(shares),
        milestones=sorted(draw(st.lists(st.floats(0.01, 50), min_size=1, max_size=4))) if name == "multistep" else [],
        gamma=draw(st.floats(0.001, 1)),
        period=draw(st.floats(0.1, 20)),
        period_growth=draw(st.floats(1, 3)),
        peak=draw(st.floats(0.01, 0.99)),
        start=draw(shares),
    )


@quick
@given(schedules(), runs)
def test_every_factor_is_in_0_to_1(config, run):
    epochs, steps = run
    assert all(0 <= factor <= 1 for factor in curve(config, steps, epochs))


@quick
@given(schedules(), runs)
def test_after_its_rise_no_schedule_goes_below_its_floor(config, run):
    epochs, steps = run
    rise = config.peak * epochs if config.name in ("onecycle", "triangular") else config.warmup
    after = curve(config, steps, epochs)[math.ceil(rise * steps) :]
    assert all(factor >= config.floor - 1e-12 for factor in after)


@quick
@given(
    st.sampled_from(["constant", "cosine", "exponential", "plateau", "restarts"]),
    st.floats(0.01, 10),
    shares,
    runs,
)
def test_a_warm_up_rises_strictly_in_equal_steps(name, warmup, floor, run):
    epochs, steps = run
    factors = curve(ScheduleConfig(name=name, warmup=warmup, floor=floor, period=epochs + 1), steps, epochs)
    n = min(math.ceil(warmup * steps), len(factors))
    rise = factors[:n]
    assert all(a < b for a, b in itertools.pairwise([0.0, *rise]))
    assert rise[-1] < 1
    increment = rise[0]
    assert rise == pytest.approx([increment * (i + 1) for i in range(n)], **close)


@pytest.mark.parametrize("name", ["cosine", "restarts", "exponential", "constant"])
@pytest.mark.parametrize("warmup", [1, 2.5, 3])
def test_a_warm_up_meets_the_schedule_at_its_peak_with_one_more_step_like_the_others(name, warmup):
    factors = curve(ScheduleConfig(name=name, warmup=warmup, period=100), 10, 50)
    n = int(10 * warmup)
    assert factors[n] == pytest.approx(1, **close)
    assert factors[n] - factors[n - 1] == pytest.approx(factors[0], **close)


def test_a_warm_up_longer_than_the_run_rises_to_its_end():
    factors = curve(ScheduleConfig(warmup=50), 2, 3)
    assert factors == pytest.approx([(i + 1) / 7 for i in range(6)], **close)


@quick
@given(shares, runs)
def test_cosine_never_rises_and_ends_within_a_step_of_the_floor(floor, run):
    epochs, steps = run
    factors = curve(ScheduleConfig(floor=floor), steps, epochs)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors))
    steepest = math.pi / 2 / (epochs * steps)
    assert factors[0] == pytest.approx(1, **close)
    assert abs(factors[-1] - floor) <= (1 - floor) * steepest + 1e-12


@quick
@given(st.sampled_from(["onecycle", "triangular"]), st.floats(0.1, 0.9), shares, shares, st.integers(20, 60))
def test_one_cycle_starts_where_told_rises_to_its_peak_and_falls_to_its_floor_without_a_jump(
    name, peak, start, floor, epochs
):
    factors = curve(ScheduleConfig(name=name, peak=peak, start=start, floor=floor), 4, epochs)
    top = math.ceil(peak * len(factors))
    steepest = math.pi / 2 / (min(peak, 1 - peak) * len(factors))
    assert factors[0] == pytest.approx(start, **close)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(factors[:top]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors[top:]))
    assert all(abs(a - b) <= steepest + 1e-12 for a, b in itertools.pairwise(factors))
    assert abs(factors[-1] - floor) <= steepest + 1e-12


@quick
@given(st.sampled_from(["cosine", "onecycle", "triangular"]), shares, runs, st.integers(2, 5))
def test_a_schedule_depends_on_the_time_in_epochs_and_not_on_how_many_steps_an_epoch_has(name, floor, run, times):
    epochs, steps = run
    config = ScheduleConfig(name=name, floor=floor)
    fine = curve(config, steps * times, epochs)
    assert curve(config, steps, epochs) == pytest.approx(fine[::times], **close)


# ------------------------------------------------------------------------------------------------ plateau


losses = st.lists(st.one_of(st.floats(0, 3), st.sampled_from([0.5, 1.0, math.nan, math.inf])), min_size=1, max_size=40)


@quick
@given(losses, st.integers(0, 4), st.floats(0.1, 0.9), st.sampled_from([0.0, 0.1, 0.3]))
def test_plateau_is_torchs_reduce_on_plateau(seen, patience, gamma, floor):
    plateau = Plateau(ScheduleConfig(name="plateau", patience=patience, gamma=gamma, floor=floor))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=gamma, patience=patience, threshold=0, threshold_mode="abs", min_lr=floor, eps=0
    )
    for loss in seen:
        plateau.update(loss)
        scheduler.step(loss)
        assert plateau.factor == pytest.approx(optimizer.param_groups[0]["lr"], **close)


@quick
@given(losses, losses)
def test_a_plateau_goes_on_from_its_state_as_if_never_stopped(before, after):
    config = ScheduleConfig(name="plateau", patience=1, gamma=0.5)
    whole, first, second = Plateau(config), Plateau(config), Plateau(config)
    for loss in before:
        whole.update(loss)
        first.update(loss)
    second.load_state_dict(first.state_dict())
    for loss in after:
        whole.update(loss)
        second.update(loss)
    assert second.state_dict() == whole.state_dict()
    assert second.factor == whole.factor


@pytest.mark.parametrize("name", sorted({*get_args(get_type_hints(ScheduleConfig)["name"])} - {"plateau"}))
def test_under_another_schedule_the_validation_loss_decides_nothing(name):
    plateau = Plateau(ScheduleConfig(name=name, patience=0, milestones=[2.0] if name == "multistep" else []))
    for loss in range(30):
        plateau.update(float(loss))
    assert plateau.factor == 1
    plateau.load_state_dict({"factor": 0.1, "best": 0.5, "stale": 3})
    assert plateau.factor == 1


# --------------------------------------------------------------------------------- groups and optimizers


NETWORKS = ["enhanced", "whitened_cnn", "resnet_se", "resnet_grouped", "preact_resnet18", "wrn_16_4"]


def narrow(name, width=4):
    torch.manual_seed(0)
    return models.build(ModelConfig(name=name, width=width), 10)


def roles(network):
    """Each trainable parameter with what it is, found another way: by looking its owner up by name."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            owner, _, kind = name.rpartition(".")
            module = network.get_submodule(owner)
            kinds = {nn.BatchNorm2d: "norm ", nn.Linear: "linear "}
            yield parameter, next((said for of, said in kinds.items() if isinstance(module, of)), "") + kind


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("decay_norms", [True, False])
def test_every_trainable_parameter_is_updated_once_and_as_its_kind_asks(name, decay_norms):
    network = narrow(name)
    config = OptimizerConfig(lr=0.5, weight_decay=0.02, decay_norms=decay_norms, bias_lr=64.0, head_lr=3.0)
    groups = parameter_groups(network, config)
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    expected = list(roles(network))
    assert sum(len(group["params"]) for group in groups) == len(expected) == len(group_of)
    for parameter, kind in expected:
        group = group_of[id(parameter)]
        assert group["lr_factor"] == {"norm bias": 64.0, "linear weight": 3.0, "linear bias": 3.0}.get(kind, 1.0)
        assert group["lr"] == 0.5 * group["lr_factor"]
        decayed = decay_norms or kind in ("weight", "linear weight")  # of a convolution or a linear layer
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.5 * 0.02 if decayed else 0.0)


def test_biases_of_layer_norms_are_norm_biases():
    groups = parameter_groups(nn.Sequential(nn.LayerNorm(3), nn.Conv2d(3, 3, 1)), OptimizerConfig(bias_lr=64.0))
    assert {group["lr_factor"]: len(group["params"]) for group in groups} == {64.0: 1, 1.0: 3}


def test_frozen_parameters_are_in_no_group():
    network = narrow("resnet18")
    network.conv1.requires_grad_(False)
    frozen = {id(parameter) for parameter in network.conv1.parameters()}
    found = {id(p) for group in parameter_groups(network, OptimizerConfig()) for p in group["params"]}
    assert frozen
    assert not frozen & found
    assert len(found) == len(list(network.parameters())) - len(frozen)


def test_a_parameter_that_two_modules_share_is_updated_once():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    groups = parameter_groups(network, OptimizerConfig())
    assert sum(p is network[0].weight for group in groups for p in group["params"]) == 1


def test_without_differences_there_is_one_group():
    assert len(parameter_groups(narrow("resnet18"), OptimizerConfig())) == 1


def test_setting_the_learning_rate_keeps_each_groups_factor():
    optimizer = make_optimizer(narrow("resnet18"), OptimizerConfig(lr=0.1, bias_lr=64.0))
    set_learning_rate(optimizer, 0.02)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.02, 0.02 * 64])


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        # No bias before a norm: its gradient is rounding noise, which Adam would magnify.
        self.conv = nn.Conv2d(2, 5, 3, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


def trained(network, optimizer, rates):
    rng = torch.Generator().manual_seed(1)
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        x = torch.randn(8, 2, 6, 6, generator=rng)
        y = torch.randint(3, (8,), generator=rng)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.state_dict()


PLAIN = {"fused": False, "foreach": False}
OPTIMIZERS = [
    (OptimizerConfig(weight_decay=0.01), lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.01, **PLAIN)),
    (OptimizerConfig(momentum=0.0), lambda p: torch.optim.SGD(p, weight_decay=5e-4, **PLAIN)),
    (
        OptimizerConfig(momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, momentum=0.8, nesterov=True, weight_decay=5e-4, **PLAIN),
    ),
    (
        OptimizerConfig(name="adam", betas=(0.8, 0.95), weight_decay=0.1),
        lambda p: torch.optim.Adam(p, betas=(0.8, 0.95), weight_decay=0.1, **PLAIN),
    ),
    (
        OptimizerConfig(name="adamw", betas=(0.8, 0.95), weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, betas=(0.8, 0.95), weight_decay=0.1, **PLAIN),
    ),
]


@pytest.mark.parametrize(("config", "plain"), OPTIMIZERS, ids=["momentum", "sgd", "nesterov", "adam", "adamw"])
def test_an_optimizer_equals_torchs_plain_one(config, plain):
    torch.manual_seed(0)
    ours = Small()
    theirs = copy.deepcopy(ours)
    rates = [0.01, 0.02, 0.03, 0.02, 0.01]
    found = trained(ours, make_optimizer(ours, config), rates)
    torch.testing.assert_close(found, trained(theirs, plain(theirs.parameters()), rates), rtol=1e-4, atol=1e-6)


def reference_muon(parameters, rate, momentum, decay, orthogonal, buffers):
    """A step of Muon, a parameter at a time, the nearest orthogonal matrix by singular values."""
    for parameter in parameters:
        gradient = parameter.grad
        if id(parameter) not in orthogonal:
            gradient = gradient + decay * parameter.data
        buffer = buffers[id(parameter)] = momentum * buffers.get(id(parameter), 0) + gradient
        update = gradient + momentum * buffer
        if id(parameter) in orthogonal:
            parameter.data *= len(parameter) ** 0.5 / parameter.data.norm()
            update = nearest_orthogonal(update)
        parameter.data -= rate * update


def nearest_orthogonal(update):
    u, _, v = torch.linalg.svd(update.flatten(1), full_matrices=False)
    return (u @ v).view(update.shape)


def test_muon_orthogonalises_the_updates_of_convolutions_and_is_nesterovs_momentum_for_the_rest(monkeypatch):
    monkeypatch.setattr(optim, "orthogonalize", lambda matrices: torch.stack([*map(nearest_orthogonal, matrices)]))
    torch.manual_seed(0)
    ours = Small()
    theirs = copy.deepcopy(ours)
    rates = [0.01, 0.02, 0.03, 0.02, 0.01]
    found = trained(ours, make_optimizer(ours, OptimizerConfig(name="muon", momentum=0.6, weight_decay=0.01)), rates)

    class Reference:
        def __init__(self):
            self.param_groups = [{"lr": 0.0}]
            self.buffers = {}

        def zero_grad(self):
            theirs.zero_grad()

        def step(self):
            conv = {id(theirs.conv.weight)}
            reference_muon(theirs.parameters(), self.param_groups[0]["lr"], 0.6, 0.01, conv, self.buffers)

    torch.testing.assert_close(found, trained(theirs, Reference(), rates), rtol=1e-4, atol=1e-6)


def test_muon_updates_groups_that_say_nothing_as_nesterovs_momentum_without_decay():
    torch.manual_seed(0)
    ours = Small()
    theirs = copy.deepcopy(ours)
    muon = Muon([{"params": list(ours.parameters())}], 0.02, 0.6)
    assert muon.param_groups[0]["lr"] == 0.02
    plain = torch.optim.SGD(theirs.parameters(), 0.02, momentum=0.6, nesterov=True, **PLAIN)
    found = trained(ours, muon, [0.01] * 3)
    torch.testing.assert_close(found, trained(theirs, plain, [0.01] * 3), rtol=1e-4, atol=1e-6)


def test_muon_leaves_what_has_no_gradient_as_it_is():
    used, unused, alone = (nn.Parameter(torch.ones(2)) for _ in range(3))
    muon = Muon([{"params": [unused, used]}, {"params": [alone]}], 0.1, 0.6)
    used.sum().backward()
    muon.step()
    assert used.tolist() == pytest.approx([1 - 0.1 * 1.6] * 2)
    assert unused.tolist() == alone.tolist() == [1, 1]


@quick
@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**16),
)
def test_orthogonalising_keeps_the_singular_vectors_and_brings_the_values_towards_1(rows, columns, scale, seed):
    matrix = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    (found,) = orthogonalize(matrix[None])
    assert found.shape == matrix.shape
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    core = u.T @ found.double() @ v.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()), rtol=0, atol=2e-3)
    large = values > 0.05 * values.norm()
    assert ((core.diagonal()[large] > 0.3) & (core.diagonal()[large] < 1.3)).all()
    assert (core.diagonal() > -1e-3).all()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 4)])
def test_orthogonalising_takes_the_singular_values_three_times_through_jordans_polynomial(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    (found,) = orthogonalize(matrix[None])
    torch.testing.assert_close(found.double(), u @ torch.diag(values) @ v, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_orthogonalising_computes_in_32_bits_on_a_cpu_whatever_the_matrix_has(dtype):
    matrices = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert orthogonalize(matrices).dtype == dtype
    assert torch.equal(orthogonalize(matrices), orthogonalize(matrices.float()).to(dtype))


@pytest.mark.parametrize("size", [1e-12, 1e-7, 1e-6])
def test_orthogonalising_next_to_nothing_gives_nothing_large(size):
    assert 0 <= orthogonalize(torch.full((1, 1, 1), size)).item() < 1.3


def test_orthogonalising_nothing_gives_nothing():
    zeros = torch.zeros(2, 3, 5)
    assert torch.equal(orthogonalize(zeros), zeros)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_orthogonal_updates_stand_in_memory_as_the_parameters_do(layout):
    """Else each of them would be added by a kernel of its own."""
    updates = [torch.ones(shape).clone(memory_format=layout) for shape in [(6, 4, 3, 3), (8, 5, 2, 3), (6, 4, 3, 3)]]
    assert [found.stride() for found in optim._orthogonalized(updates)] == [update.stride() for update in updates]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_each_convolution_alike_however_many_have_its_shape_and_in_either_layout(layout):
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4, 3, 3), (4, 6, 1, 1), (6, 4, 3, 3), (8, 2, 1, 1), (4, 3, 3, 3), (6, 4, 3, 3), (3, 12, 1, 3)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]

    def moved(places):
        """The parameters at these places after a step of an optimizer that has no others."""
        parameters = [nn.Parameter(start[place].clone(memory_format=layout)) for place in places]
        for parameter, place in zip(parameters, places, strict=True):
            parameter.grad = gradients[place].clone(memory_format=layout)
        Muon([{"params": parameters, "orthogonal": True}], 0.1, 0.6).step()
        assert all(p.is_contiguous(memory_format=layout) for p in parameters)
        return [parameter.detach() for parameter in parameters]

    together = moved(range(len(shapes)))
    for place, found in enumerate(together):
        torch.testing.assert_close(found, moved([place])[0], rtol=1e-5, atol=1e-6)
        (update,) = orthogonalize(1.6 * gradients[place].flatten(1)[None])
        expected = start[place] * len(found) ** 0.5 / start[place].norm() - 0.1 * update.view(found.shape)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [OptimizerConfig(name=name) for name in get_args(get_type_hints(OptimizerConfig)["name"])],
    ids=lambda c: c.name,
)
def test_an_optimizer_goes_on_from_its_state_bit_for_bit(config):
    torch.manual_seed(0)
    whole = Small()
    first = copy.deepcopy(whole)
    optimizer = make_optimizer(whole, config)
    trained(whole, optimizer, [0.01] * 2)
    expected = trained(whole, optimizer, [0.02] * 2)
    optimizer = make_optimizer(first, config)
    trained(first, optimizer, [0.01] * 2)
    second = copy.deepcopy(first)
    resumed = make_optimizer(second, config)
    resumed.load_state_dict(optimizer.state_dict())
    found = trained(second, resumed, [0.02] * 2)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# --------------------------------------------------------------------------------------------------- sam


def a_batch(seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(8, 2, 6, 6, generator=rng), torch.randint(3, (8,), generator=rng)


def gradients(network, batch):
    loss = nn.functional.cross_entropy(network(batch[0]), batch[1])
    return dict(zip(dict(network.named_parameters()), torch.autograd.grad(loss, network.parameters()), strict=True))


@pytest.mark.parametrize("rho", [1e-3, 0.05, 2.0])
def test_steps_of_sam_equal_those_of_a_network_that_is_copied_and_moved_by_hand(rho):
    torch.manual_seed(0)
    ours = Small()
    theirs = copy.deepcopy(ours)
    optimizer = make_optimizer(ours, OptimizerConfig(lr=0.1, momentum=0.0, weight_decay=0.0))
    for seed in range(4):
        x, y = a_batch(seed)
        optimizer.zero_grad()
        nn.functional.cross_entropy(ours(x), y).backward()
        with ascended(ours, rho):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ours(x), y).backward()
        optimizer.step()

        first = gradients(theirs, (x, y))
        length = sum(float(gradient.square().sum()) for gradient in first.values()) ** 0.5
        moved = copy.deepcopy(theirs)
        for name, parameter in moved.named_parameters():
            parameter.data = parameter.data + rho * first[name] / length
        second = gradients(moved, (x, y))
        for name, parameter in theirs.named_parameters():
            parameter.data = parameter.data - 0.1 * second[name]
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-6)


def test_the_way_up_has_its_length_and_ends_where_it_began_statistics_included():
    torch.manual_seed(0)
    network = Small()
    x, y = a_batch(0)
    nn.functional.cross_entropy(network(x), y).backward()
    before = copy.deepcopy(network.state_dict())
    with ascended(network, 0.7):
        way = torch.cat([(p - before[name]).flatten() for name, p in network.named_parameters()])
        assert way.norm().item() == pytest.approx(0.7, rel=1e-4)
        network(10 * x)
        assert not torch.equal(network.norm.running_var, before["norm.running_var"])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_gradient_of_nothing_leads_nowhere():
    network = nn.Linear(2, 2)
    (0 * network(torch.ones(1, 2)).sum()).backward()
    before = network.weight.detach().clone()
    with ascended(network, 0.5):
        assert torch.equal(network.weight, before)


@pytest.mark.parametrize("size", [1e-14, 1e-12, 1e-10])
def test_a_gradient_of_next_to_nothing_leads_no_further_than_others(size):
    network = nn.Linear(1, 1, bias=False)
    network.weight.grad = torch.full((1, 1), size)
    before = network.weight.item()
    with ascended(network, 0.5):
        assert 0 <= network.weight.item() - before < 0.5001


def test_what_has_no_gradient_stays_where_it_is_on_the_way_up():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    network(torch.ones(1, 2)).sum().backward()
    before = network[1].weight.clone()
    with ascended(network, 0.5):
        assert torch.equal(network[1].weight, before)
        assert network[0].weight.grad is not None


# ---------------------------------------------------------------------------------------- weight average


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.99])
def test_a_weight_average_equals_an_explicit_loop(decay):
    torch.manual_seed(0)
    network = Small()
    average = WeightAverage(network, decay)
    expected = {key: value.clone().double() for key, value in network.state_dict().items()}
    optimizer = make_optimizer(network, OptimizerConfig())
    for t in range(12):
        trained(network, optimizer, [0.1])
        average.update(network)
        keep = min(decay, (1 + t) / (10 + t))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                expected[key] = keep * expected[key] + (1 - keep) * value.double()
            else:
                expected[key] = value.clone().double()
    found = {key: value.double() for key, value in average.network.state_dict().items()}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert average.updates == 12
    assert int(average.network.norm.num_batches_tracked) == 12


def test_a_weight_average_is_a_copy_apart_without_gradients_in_evaluation_mode():
    network = Small()
    average = WeightAverage(network, 0.9)
    before = copy.deepcopy(average.network.state_dict())
    trained(network, make_optimizer(network, OptimizerConfig()), [0.1])
    assert all(torch.equal(value, before[key]) for key, value in average.network.state_dict().items())
    own = {key: value.clone() for key, value in network.state_dict().items()}
    average.update(network)
    assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())
    assert network.training
    assert not average.network.training
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in average.network.parameters())


def test_the_average_of_a_network_that_stands_still_is_that_network():
    network = narrow("whitened_cnn")
    average = WeightAverage(network, 0.99)
    for _ in range(5):
        average.update(network)
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(average.network.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_an_equal_average_is_the_mean_of_all_it_was_given_and_of_nothing_else():
    torch.manual_seed(0)
    network = Small()
    average = WeightAverage(network, None)
    given = []
    for _ in range(5):
        trained(network, make_optimizer(network, OptimizerConfig()), [0.1])
        average.update(network)
        given.append(copy.deepcopy(network.state_dict()))
    found = average.network.state_dict()
    for key in ("conv.weight", "norm.bias", "linear.bias"):
        torch.testing.assert_close(found[key], torch.stack([state[key] for state in given]).mean(0))


def test_estimated_norms_have_the_mean_statistics_of_the_batches_and_all_else_is_as_in_evaluation():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(2, momentum=0.4))
    network(torch.randn(8, 2, 5, 5) - 7)  # what the norms knew before, they forget
    network.eval()
    batches = [3 + 2 * torch.randn(8, 2, 5, 5) for _ in range(4)]
    state = torch.get_rng_state()
    estimate_norms(network, iter(batches))
    norm = network[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0))
    assert torch.equal(torch.get_rng_state(), state), "dropout drew"
    assert norm.momentum == 0.4
    assert not any(module.training for module in network.modules())
