"""The networks: what they compute, and that they are the networks whose names they bear."""

import copy
import functools
import json
import pathlib
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budgetnet import models
from budgetnet.config import ModelConfig, StageConfig
from budgetnet.errors import ConfigError

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "reference_networks.json"
REFERENCE = json.loads(FIXTURE.read_text())
# He et al. 2015, He et al. 2016, Xie et al. 2017 as counted from pytorch-cifar; Zagoruyko and Komodakis 2016.
KNOWN_COUNTS = {
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet101": 42_512_970,
    "preact_resnet18": 11_171_146,
    "resnext29_32x4d": 4_774_218,
    "resnext29_2x64d": 9_128_778,
    "wrn_16_4": 2_748_890,
    "wrn_28_10": 36_479_194,
    "wrn_40_2": 2_243_546,
    "resnet_bottleneck": 4_764_074,
    "resnet_leaky": 4_773_354,
    "resnet_se": 5_237_546,
    "resnet_grouped": 3_562_858,
    "resnet_custom": 4_613_034,
}


@pytest.fixture(autouse=True)
def _one_thread(_two_threads: None) -> None:
    torch.set_num_threads(1)  # on networks this small, threads cost more than they save


def on_meta(config: ModelConfig, num_classes: int = 10, **options: int) -> nn.Module:
    with torch.device("meta"):
        return models.build(config, num_classes, **options)


def narrow(name: str, num_classes: int = 10, **options: int) -> nn.Module:
    torch.manual_seed(0)
    return models.build(ModelConfig(name=name, width=8), num_classes, **options)


@functools.cache
def example(name: str) -> nn.Module:
    """A narrow network with seven classes, built once; copy it before changing it."""
    return narrow(name, num_classes=7)


def without_weights(config: ModelConfig, num_classes: int = 10) -> nn.Module:
    """A network whose weights are whatever was in memory, so that a test sees what loading leaves out."""
    return on_meta(config, num_classes).to_empty(device="cpu")


def images(n: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def filled(shapes: list[tuple[str, list[int]]], seed: int) -> dict[str, Tensor]:
    """Weights by the rule that the fixture was made with."""
    state = {}
    for i, (key, shape) in enumerate(shapes):
        x = np.asarray(np.random.Generator(np.random.PCG64([seed, i])).standard_normal(tuple(shape), np.float32))
        tenth = np.float32(0.1) * x
        if key.endswith("num_batches_tracked"):
            value = np.asarray(0)
        elif key.endswith("running_var"):
            value = np.float32(0.5) + np.abs(x)
        elif len(shape) >= 2:
            value = x * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif key.endswith("weight"):
            value = 1 + tenth
        else:
            value = tenth
        state[key] = torch.from_numpy(np.asarray(value))
    return state


@pytest.mark.parametrize("name", REFERENCE["networks"])
def test_a_reference_network_has_the_keys_shapes_and_logits_of_the_reference_project(name):
    expected = REFERENCE["networks"][name]
    network = without_weights(ModelConfig(name=name)).eval()
    assert [[key, list(value.shape)] for key, value in network.state_dict().items()] == expected["state_dict"]
    assert models.count_parameters(network) == expected["parameters"]
    network.load_state_dict(filled(expected["state_dict"], REFERENCE["seed"]))
    rng = np.random.Generator(np.random.PCG64([REFERENCE["seed"], 1_000_000]))
    with torch.no_grad():
        logits = network(torch.from_numpy(rng.standard_normal((4, 3, 32, 32), np.float32)))
    wanted = torch.tensor(expected["logits"])
    error = (logits - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert error.max() <= 1e-4


@pytest.mark.parametrize("name", KNOWN_COUNTS)
def test_a_network_of_the_literature_has_its_known_number_of_parameters(name):
    assert models.count_parameters(on_meta(ModelConfig(name=name))) == KNOWN_COUNTS[name]


def test_se_resnet18_is_resnet18_with_a_gate_in_every_block():
    gates = sum(2 * (2 * c * (c // 16) + c // 16 + c) for c in (64, 128, 256, 512))
    assert models.count_parameters(on_meta(ModelConfig(name="se_resnet18"))) == KNOWN_COUNTS["resnet18"] + gates


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("name", ["enhanced", "whitened_cnn", "whitened_cnn_large"])
def test_our_own_networks_fit_five_million_parameters(name, num_classes):
    assert models.count_parameters(on_meta(ModelConfig(name=name), num_classes)) <= 5_000_000


def test_enhanced_is_the_published_network_with_gates_added():
    enhanced, published = on_meta(ModelConfig(name="enhanced")), on_meta(ModelConfig(name="resnet_leaky"))
    without_gates = [key for key in enhanced.state_dict() if ".se_block." not in key]
    assert without_gates == list(published.state_dict())
    assert len(without_gates) < len(enhanced.state_dict())


@pytest.mark.parametrize("name", models.names())
def test_every_network_gives_finite_logits_and_every_trainable_parameter_a_gradient(name):
    network = copy.deepcopy(example(name)).train()
    logits = network(images(4, size=12))
    assert logits.shape == (4, 7)
    assert logits.isfinite().all()
    F.cross_entropy(logits, torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None, key


@pytest.mark.parametrize("name", models.names())
def test_every_network_gives_the_same_logits_in_channels_last_order(name):
    network = copy.deepcopy(example(name)).eval()
    with torch.no_grad():
        expected = network(images(size=12))
        network.to(memory_format=torch.channels_last)
        found = network(images(size=12).to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.names())
def test_weights_of_every_network_go_from_one_instance_to_another_strictly(name):
    source, target = example(name), without_weights(ModelConfig(name=name, width=8), 7)
    target.load_state_dict(source.state_dict(), strict=True)
    for (key, expected), found in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert torch.equal(found, expected), key
    x = images(1, size=12)
    with torch.no_grad():
        assert torch.equal(target.eval()(x), copy.deepcopy(source).eval()(x))


@pytest.mark.parametrize("name", ["enhanced", "whitened_cnn_large", "preact_resnet18", "resnext29_32x4d"])
def test_the_same_seed_builds_the_same_weights_and_another_seed_others(name):
    first, second = narrow(name), narrow(name)
    other = models.build(ModelConfig(name=name, width=8), 10)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_networks_can_be_pickled_for_tracking():
    for name in ("enhanced", "whitened_cnn", "wrn_16_4"):
        network = copy.deepcopy(example(name)).eval()
        x = images(1, size=12)
        with torch.no_grad():
            assert torch.equal(pickle.loads(pickle.dumps(network))(x), network(x))


@pytest.mark.parametrize("name", ["enhanced", "preact_resnet18", "whitened_cnn"])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 15)])
def test_networks_take_other_image_sizes_and_channels(name, channels, size):
    network = narrow(name, channels=channels, image_size=size).eval()
    with torch.no_grad():
        assert network(images(2, channels, size)).shape == (2, 10)


def test_enhanced_works_however_narrow():
    network = models.build(ModelConfig(name="enhanced", width=1), 10).eval()
    assert network(images(1)).isfinite().all()


def test_stages_of_a_configuration_build_the_network_that_has_a_name():
    stages = [
        StageConfig(block="basic", depth=2, width=64 * 2**i, stride=1 if i == 0 else 2, expansion=1) for i in range(4)
    ]
    described = on_meta(ModelConfig(name="residual", stages=stages))
    named = on_meta(ModelConfig(name="resnet18"))
    assert [(k, v.shape) for k, v in described.state_dict().items()] == [
        (k, v.shape) for k, v in named.state_dict().items()
    ]


stage_configs = st.builds(
    StageConfig,
    block=st.sampled_from(["basic", "bottleneck", "preact"]),
    depth=st.integers(1, 2),
    width=st.sampled_from([4, 8, 12]),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    expansion=st.integers(1, 2),
    se=st.sampled_from([0, 2, 100]),
    se_place=st.sampled_from(["branch", "sum"]),
    activation=st.sampled_from(["relu", "leaky_relu", "silu", "gelu"]),
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(stage_configs, min_size=1, max_size=3), st.sampled_from([1, 2]), st.integers(1, 40))
def test_any_stages_build_at_any_width_and_the_width_taken_is_kept(stages, stem, width):
    config = ModelConfig(name="residual", stages=stages, stem=stem, width=width)
    network = models.build(config, 3, image_size=16).eval()
    with torch.no_grad():
        assert network(images(1, size=16)).isfinite().all()
    rows = models.summarize(network, 16)
    assert sum(row.parameters for row in rows) == models.count_parameters(network)


def test_a_separable_convolution_is_a_depthwise_then_a_pointwise_one_and_takes_no_groups():
    network = on_meta(ModelConfig(name="residual", stages=[StageConfig(width=8, depth=1, separable=True)]))
    block = network.get_submodule("layer1.0")
    assert block.conv1.weight.shape == (8, 1, 3, 3)
    assert block.pointwise1.weight.shape == (8, 8, 1, 1)
    with pytest.raises(ConfigError, match=r"model\.stages\.groups is 2 in a separable stage"):
        on_meta(ModelConfig(name="residual", stages=[StageConfig(width=8, groups=2, separable=True)]))


def test_groups_that_do_not_divide_what_comes_in_are_an_error():
    stages = [StageConfig(width=6), StageConfig(width=8, groups=4)]
    with pytest.raises(ConfigError, match=r"groups is 4 where 6 channels come in, expected a divisor"):
        on_meta(ModelConfig(name="residual", stages=stages))


def test_the_gate_scales_the_branch_or_the_sum_as_asked():
    x = images(2, channels=4, size=8)
    for place in ("branch", "sum"):
        stage = StageConfig(block="bottleneck", depth=1, width=4, se=2, se_place=place)
        block = models.build(ModelConfig(name="residual", stages=[stage]), 3).eval().get_submodule("layer1.0")
        with torch.no_grad():
            branch = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))))
            seen = branch if place == "branch" else branch + x
            mean = seen.mean((2, 3))
            hidden = F.relu(mean @ block.se_block.fc1.weight.T + block.se_block.fc1.bias)
            gate = torch.sigmoid(hidden @ block.se_block.fc2.weight.T + block.se_block.fc2.bias)[:, :, None, None]
            expected = F.relu(branch * gate + x if place == "branch" else (branch + x) * gate)
            torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    ("typo", "meant"), [("resnet_sse", "resnet_se"), ("enhnaced", "enhanced"), ("residul", "residual")]
)
def test_an_unknown_network_is_an_error_that_names_the_nearest(typo, meant):
    with pytest.raises(ConfigError, match=rf"{typo} is not a network \(did you mean {meant}\?\)"):
        models.build(ModelConfig(name=typo), 10)


def test_a_name_like_no_other_points_to_the_list():
    with pytest.raises(ConfigError, match="`budgetnet models` lists"):
        models.build(ModelConfig(name="zzzzzzz"), 10)


@pytest.mark.parametrize("name", ["wrn_27_10", "wrn_4_1", "wrn_28_0"])
def test_a_wide_network_of_an_impossible_depth_or_factor_is_an_error(name):
    with pytest.raises(ConfigError, match="6n \\+ 4"):
        models.build(ModelConfig(name=name), 10)


def test_a_wide_network_of_any_right_depth_is_known_by_either_spelling():
    counts = {models.count_parameters(on_meta(ModelConfig(name=name))) for name in ("wrn_22_3", "wrn-22-3")}
    assert len(counts) == 1
    names = [row.name for row in models.summarize(on_meta(ModelConfig(name="wrn_22_3")), 32)]
    assert [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)] == [n for n in names if "layer" in n]


def test_dropout_acts_inside_wide_blocks_while_training_only():
    config = ModelConfig(name="wrn_10_1", width=8, dropout=0.5)
    network = models.build(config, 10)
    torch.manual_seed(0)
    x = images(size=12)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))
    assert list(network.state_dict()) == list(models.build(ModelConfig(name="wrn_10_1", width=8), 10).state_dict())


def test_dropout_for_a_network_without_any_is_an_error():
    with pytest.raises(ConfigError, match=r"model\.dropout is 0\.3, but resnet18 has none"):
        models.build(ModelConfig(name="resnet18", dropout=0.3), 10)


def test_one_class_is_an_error():
    with pytest.raises(ConfigError, match="number of classes is 1, expected 2 or more"):
        models.build(ModelConfig(), 1)


def patches_of(x: Tensor) -> Tensor:
    """Every 2x2 patch of every image, as a row, by slicing."""
    _, _, h, w = x.shape
    return torch.stack([x[:, :, i : i + 2, j : j + 2].flatten(1) for i in range(h - 1) for j in range(w - 1)]).flatten(
        0, 1
    )


def correlated(n: int, channels: int = 3) -> Tensor:
    """Images whose neighbouring pixels and channels resemble each other, as in photographs."""
    noise = images(n, channels, 14)
    smooth = F.avg_pool2d(noise, 3, stride=1) * 3
    return (smooth + smooth.mean(1, keepdim=True)).contiguous()


@pytest.mark.parametrize("channels", [1, 3])
def test_initialize_makes_the_first_layer_whiten_the_patches(channels):
    network = models.build(ModelConfig(name="whitened_cnn", width=8), 10, channels=channels)
    assert isinstance(network, models.Initializable)
    x = correlated(64, channels)
    network.initialize(x)
    half = 4 * channels
    response = network.whiten(x)[:, :half].transpose(0, 1).flatten(1).double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(patches_of(x).double().T)).flip(0)
    expected = (eigenvalues / (eigenvalues + 5e-4)).diag()
    torch.testing.assert_close(torch.cov(response), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(network.whiten.weight[half:], -network.whiten.weight[:half])
    assert not network.whiten.bias.any()


def test_initialize_leaves_the_filters_frozen_the_bias_trainable_and_the_images_alone():
    network = narrow("whitened_cnn_large")
    x = correlated(4)
    before = x.clone()
    network.initialize(x)
    assert torch.equal(x, before)
    assert not network.whiten.weight.requires_grad
    assert network.whiten.bias.requires_grad


def test_initialize_does_not_depend_on_how_images_are_chunked():
    x = correlated(16).repeat(63, 1, 1, 1)  # 1,008 images: more than one chunk
    network, other = narrow("whitened_cnn"), narrow("whitened_cnn")
    network.initialize(x)
    other.initialize(x[:16])
    half = 12
    a, b = network.whiten.weight[:half].flatten(1), other.whiten.weight[:half].flatten(1)
    torch.testing.assert_close(a.T @ a, b.T @ b, rtol=1e-3, atol=1e-3)  # signs of eigenvectors are free


def test_initialize_refuses_images_of_another_shape():
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\), expected \(n, 3, h, w\)"):
        narrow("whitened_cnn").initialize(torch.zeros(2, 1, 8, 8))


def test_convolutions_of_a_whitened_network_begin_as_the_identity_on_what_comes_in():
    network = models.build(ModelConfig(name="whitened_cnn"), 10)
    x = images(1, channels=64, size=7)
    with torch.no_grad():
        torch.testing.assert_close(network.group2.conv1(x)[:, :64], x)


def test_a_whitened_network_refuses_images_too_small_to_pool_three_times():
    with pytest.raises(ConfigError, match="image_size is 8, expected at least 9"):
        models.build(ModelConfig(name="whitened_cnn"), 10, image_size=8)
    network = models.build(ModelConfig(name="whitened_cnn", width=8), 10, image_size=9).eval()
    assert network(images(1, size=9)).shape == (1, 10)


@pytest.mark.real_data
def test_whitening_real_images_gives_decorrelated_responses(real_data):
    with (real_data / "cifar-10-batches-py" / "data_batch_1").open("rb") as file:
        raw = pickle.load(file, encoding="bytes")[b"data"][:1500]
    x = torch.from_numpy(raw).reshape(-1, 3, 32, 32).float().div(255).sub(0.47).div(0.25)
    network = models.build(ModelConfig(name="whitened_cnn", width=8), 10)
    network.initialize(x)
    with torch.no_grad():
        covariance = torch.cov(network.whiten(x)[:, :12].transpose(0, 1).flatten(1).double())
    off_diagonal = covariance - covariance.diag().diag()
    assert off_diagonal.abs().max() < 1e-3
    assert covariance.diag().max() <= 1.001


def test_kaiming_initialisation_has_the_spreads_of_the_reference_project():
    torch.manual_seed(0)
    network = without_weights(ModelConfig(name="resnet_se"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7)
    models.kaiming_(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.detach().std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Linear):
            assert module.weight.detach().std() == pytest.approx(1e-3, rel=0.05)
            assert (module.bias == 0).all()


def test_kaiming_initialisation_leaves_frozen_filters_alone():
    network = narrow("whitened_cnn")
    network.initialize(correlated(4))
    before = network.whiten.weight.clone()
    models.kaiming_(network)
    assert torch.equal(network.whiten.weight, before)
