"""The networks: what they compute, and that they are the networks whose names they bear."""

import copy
import functools
import itertools
import json
import math
import pathlib
import pickle
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budgetnet import memory, models
from budgetnet.config import ModelConfig, StageConfig
from budgetnet.errors import ConfigError
from budgetnet.models.blocks import BLOCKS, BlockOptions
from budgetnet.models.gates import ChannelSpatialAttention, EfficientChannelAttention
from budgetnet.models.noise import StochasticDepth, shake
from budgetnet.models.residual import ResidualArchitecture, uniform
from budgetnet.models.shortcuts import PaddedShortcut, ShiftedShortcut

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "reference_networks.json"
REFERENCE = json.loads(FIXTURE.read_text())
# He et al. 2015, He et al. 2016, Xie et al. 2017 as counted from pytorch-cifar; Zagoruyko and Komodakis 2016;
# PyramidNet, Shake-Shake and deeper ResNeXt as counted by imgclsmob; MobileNetV2 as torchvision's, whose classifier has
# 1,281 x 990 parameters more for 1,000 classes and so 3,504,872.
KNOWN_COUNTS = {
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet101": 42_512_970,
    "preact_resnet18": 11_171_146,
    "resnext29_32x4d": 4_774_218,
    "resnext29_2x64d": 9_128_778,
    "resnext20_4x32d": 4_650_314,
    "resnext56_16x4d": 4_962_634,
    "pyramidnet110_84": 3_904_446,
    "shake_shake26_2x32d": 2_923_162,
    "mobilenet_v2": 3_504_872 - 1281 * 990,
    "wrn_16_4": 2_748_890,
    "wrn_28_10": 36_479_194,
    "wrn_40_2": 2_243_546,
    "resnet_bottleneck": 4_764_074,
    "resnet_leaky": 4_773_354,
    "resnet_se": 5_237_546,
    "resnet_grouped": 3_562_858,
    "resnet_custom": 4_613_034,
}


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


@pytest.mark.parametrize(("added", "known"), [(48, 1_772_706), (270, 28_485_477)])
def test_pyramidal_networks_of_stages_have_their_known_numbers_of_parameters(added, known):
    step = added // 3
    stages = [
        StageConfig(block="pyramid", depth=18, width=16 + step * i, widen=step, stride=min(2, i + 1)) for i in range(3)
    ]
    assert models.count_parameters(on_meta(ModelConfig(name="residual", stages=stages))) == known


def test_a_convnext_of_the_papers_size_has_its_known_number_of_parameters():
    stages = uniform("convnext", (3, 3, 9, 3), 96, 4, activation=("gelu",) * 4)
    with torch.device("meta"):
        tiny = ResidualArchitecture(stages=stages, stem_width=96, stem_kernel=4).network(1000, 32, 3)
    assert models.count_parameters(tiny) == 28_589_128


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


def block_of(stage: StageConfig, in_channels: int, stride: int = 1, **options: float) -> nn.Module:
    torch.manual_seed(0)
    return BLOCKS[stage.block](in_channels, stage, stride, BlockOptions(**options))


@pytest.mark.parametrize("channels", [1, 3, 8, 64, 130])
def test_eca_gates_each_channel_by_the_means_of_its_neighbours(channels):
    torch.manual_seed(0)
    gate, x = EfficientChannelAttention(channels), images(2, channels, 5)
    (weights,) = gate.conv.weight.flatten(1).tolist()
    assert len(weights) % 2 == 1
    means = x.mean((2, 3)).tolist()
    for n, mean in enumerate(means):
        for c in range(channels):
            near = range(c - len(weights) // 2, c + len(weights) // 2 + 1)
            total = sum(w * mean[j] for w, j in zip(weights, near, strict=True) if 0 <= j < channels)
            expected = x[n, c] / (1 + math.exp(-total))
            torch.testing.assert_close(gate(x)[n, c], expected)


def test_eca_looks_as_far_as_the_paper_says():
    sizes = {64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7}
    assert {c: EfficientChannelAttention(c).conv.kernel_size[0] for c in sizes} == sizes


def test_cbam_gates_channels_and_then_positions_by_mean_and_maximum():
    torch.manual_seed(0)
    gate, x = ChannelSpatialAttention(6, 2), images(2, 6, 9)
    with torch.no_grad():
        found = gate(x)
        for n, image in enumerate(x):
            seen = [torch.stack([channel.mean() for channel in image]), torch.stack([c.max() for c in image])]
            scores = [gate.fc2(F.relu(gate.fc1(vector))) for vector in seen]
            image = torch.stack([torch.sigmoid(scores[0] + scores[1])[c] * image[c] for c in range(6)])
            for i, j in itertools.product(range(9), range(9)):
                score = torch.zeros(())
                for a, b in itertools.product(range(7), range(7)):
                    y, z = i + a - 3, j + b - 3
                    if 0 <= y < 9 and 0 <= z < 9:
                        pixel = image[:, y, z]
                        score += (
                            gate.conv.weight[0, 0, a, b] * pixel.mean() + gate.conv.weight[0, 1, a, b] * pixel.max()
                        )
                torch.testing.assert_close(found[n, :, i, j], image[:, i, j] * torch.sigmoid(score))


def test_blocks_of_the_pyramid_widen_in_equal_steps_over_the_whole_network():
    network = on_meta(ModelConfig(name="pyramidnet110_84"))
    widths = [block.out_channels for stage in (1, 2, 3) for block in network.get_submodule(f"layer{stage}")]
    assert widths == [round(16 + 84 * k / 54) for k in range(1, 55)]


@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 11, 16, 33])
def test_a_pyramid_of_any_width_never_narrows(width):
    network = on_meta(ModelConfig(name="pyramidnet110_84", width=width))
    widths = [block.out_channels for stage in (1, 2, 3) for block in network.get_submodule(f"layer{stage}")]
    assert widths == sorted(widths)
    assert widths[-1] == pytest.approx(100 * width / 16, abs=1)


def test_a_pyramids_steps_are_multiples_of_its_groups():
    stage = StageConfig(block="pyramid", depth=5, width=8, widen=20, groups=4)
    network = on_meta(ModelConfig(name="residual", stages=[stage]))
    assert [block.out_channels for block in network.layer1] == [12, 16, 20, 24, 28]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_padded_shortcut_is_the_mean_of_pixels_and_zeros(stride):
    x = images(2, 3, 7)
    found = PaddedShortcut(3, 5, stride)(x)
    assert found.shape == (2, 5, -(-7 // stride), -(-7 // stride))
    assert not found[:, 3:].any()
    for i, j in itertools.product(range(found.shape[2]), range(found.shape[3])):
        here = x[:, :, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
        torch.testing.assert_close(found[:, :3, i, j], here.mean((2, 3)))


@pytest.mark.parametrize("out_channels", [1, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_shifted_shortcut_sees_every_stride_th_pixel_and_those_beside_them(stride, out_channels):
    torch.manual_seed(0)
    shortcut, x = ShiftedShortcut(3, out_channels, stride).eval(), images(2, 3, 7)
    beyond = torch.zeros(2, 3, 8, 8)
    beyond[:, :, :7, :7] = x
    with torch.no_grad():
        found = shortcut(x) * math.sqrt(1 + shortcut.bn.eps)
        for i, j in itertools.product(range(found.shape[2]), range(found.shape[3])):
            here = x[:, :, i * stride, j * stride] @ shortcut.conv1.weight.flatten(1).T
            parts = [here]
            if out_channels > 1:
                parts.append(beyond[:, :, i * stride + 1, j * stride + 1] @ shortcut.conv2.weight.flatten(1).T)
            torch.testing.assert_close(found[:, :, i, j], torch.cat(parts, 1), rtol=1e-4, atol=1e-5)


def test_a_pyramid_block_has_no_activation_before_its_first_convolution_and_ends_in_a_norm():
    block = block_of(StageConfig(block="pyramid", width=5), 4).eval()
    x = images(2, 4, 8)
    with torch.no_grad():
        expected = block.bn3(block.conv2(F.relu(block.bn2(block.conv1(block.bn1(x))))))
        expected[:, :4] += x
        torch.testing.assert_close(block(x), expected)


def test_an_inverted_block_widens_inside_gates_there_and_ends_without_activation():
    block = block_of(StageConfig(block="inverted", width=4, expansion=3, se=2), 4).eval()
    x = images(2, 4, 8)
    with torch.no_grad():
        wide = F.relu(block.bn2(block.conv2(F.relu(block.expand[1](block.expand[0](x))))))
        assert wide.shape == (2, 12, 8, 8)
        gate = block.se_block.fc2(F.relu(block.se_block.fc1(wide.mean((2, 3))))).sigmoid()
        expected = block.bn3(block.conv3(wide * gate[:, :, None, None]))
        torch.testing.assert_close(block(x), expected + x)


@pytest.mark.parametrize(("out_channels", "stride"), [(4, 2), (6, 1), (6, 2)])
def test_an_inverted_block_has_no_shortcut_where_the_shape_changes(out_channels, stride):
    block = block_of(StageConfig(block="inverted", width=out_channels, expansion=2), 4, stride).eval()
    nn.init.zeros_(block.bn3.weight)
    assert not block(images(2, 4, 8)).any()


def test_a_convnext_block_is_that_of_the_paper():
    block = block_of(StageConfig(block="convnext", width=6, expansion=4, activation="gelu"), 4, 2)
    x = images(2, 4, 8)

    def layer_norm(x: Tensor, norm: nn.Module) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]

    def pointwise(x: Tensor, conv: nn.Module) -> Tensor:
        return torch.einsum("nchw,dc->ndhw", x, conv.weight[:, :, 0, 0]) + conv.bias[:, None, None]

    with torch.no_grad():
        for parameter in block.parameters():
            nn.init.normal_(parameter)
        down = F.conv2d(layer_norm(x, block.shortcut[0]), block.shortcut[1].weight, block.shortcut[1].bias, stride=2)
        mixed = F.conv2d(down, block.conv1.weight, block.conv1.bias, padding=3, groups=6)
        hidden = F.gelu(pointwise(layer_norm(mixed, block.norm1), block.conv2))
        out = pointwise(hidden, block.conv3)
        torch.testing.assert_close(block(x), down + out * block.scale[:, None, None], rtol=1e-4, atol=1e-4)


def test_the_kinds_of_block_are_those_that_a_stage_may_name():
    assert tuple(BLOCKS) == get_args(get_type_hints(StageConfig)["block"])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("gate", [{"se": 4}, {"eca": True}, {"cbam": 4}, {"activation": "silu"}], ids=str)
def test_each_kind_of_block_learns_with_each_gate_on_images_of_odd_sizes(block, gate):
    torch.manual_seed(0)
    stages = [
        StageConfig(block=block, depth=2, width=4, **gate),
        StageConfig(block=block, depth=1, width=10, expansion=2, stride=2, **gate),
    ]
    network = models.build(ModelConfig(name="residual", stages=stages), 3, image_size=13)
    F.cross_entropy(network(images(8, size=13)), torch.arange(8) % 3).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("block", sorted(BLOCKS.keys() - {"pyramid"}))  # which cannot narrow
def test_each_kind_of_block_works_however_narrow(block):
    stages = [StageConfig(block=block, depth=1, width=8 * i, expansion=2, stride=i) for i in (1, 2, 1)]
    network = models.build(ModelConfig(name="residual", stages=stages, width=1), 2).eval()
    assert network(images(1)).isfinite().all()


def test_stochastic_depth_leaves_out_a_share_of_the_images_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.3), images(4000, 2, 3)
    out = layer.train()(x)
    left_out = (out == 0).flatten(1).all(1)
    torch.testing.assert_close(out[~left_out], x[~left_out] / 0.7)
    assert left_out.float().mean() == pytest.approx(0.3, abs=0.03)
    kept_mean = layer(torch.ones(20_000, 1, 1, 1)).mean()
    assert kept_mean == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("name", ["resnet18", "wrn_16_4", "pyramidnet110_84", "shake_shake26_2x32d", "convnext_atto"])
def test_branches_are_left_out_more_often_towards_the_end(name):
    network = on_meta(ModelConfig(name=name, drop_path=0.4))
    rates = [module.rate for module in network.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.4 * (i + 1) / len(rates) for i in range(len(rates))])
    plain = on_meta(ModelConfig(name=name))
    assert not any(isinstance(module, StochasticDepth) for module in plain.modules())
    assert list(network.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_whose_branch_is_left_out_is_its_shortcut(block):
    stage = StageConfig(block=block, width=4)
    whole, always = block_of(stage, 4), block_of(stage, 4, drop_path=1 - 1e-9)
    x = images(3, 4, 8).abs()  # so that an activation after the sum changes nothing
    assert not torch.equal(whole(x), x)
    assert torch.equal(always.train()(x), x)
    assert torch.equal(always.eval()(x), whole.eval()(x))


@pytest.mark.parametrize("name", models.names())
def test_a_network_draws_random_numbers_only_in_training_and_only_where_it_has_use_for_them(name):
    network, x = copy.deepcopy(example(name)), images(2, size=12)
    before = torch.get_rng_state()
    with torch.no_grad():
        first = network.eval()(x)
        assert torch.equal(network(x), first)
        network.train()(x)
    assert torch.equal(torch.get_rng_state(), before) == (name != "shake_shake26_2x32d")


def test_the_branches_of_shake_shake_are_mixed_for_each_image_and_by_other_shares_in_the_backward_pass():
    torch.manual_seed(0)
    first, second = torch.ones(200, 2, 3, 3, requires_grad=True), torch.zeros(200, 2, 3, 3, requires_grad=True)
    out = shake(first, second, training=True)
    out.sum().backward()
    shares = [tensor[:, :1, :1, :1].detach() for tensor in (out, first.grad, second.grad)]
    for tensor, share in zip((out, first.grad, second.grad), shares, strict=True):
        assert torch.equal(tensor, share.expand_as(tensor)), "one share for all of an image"
    forward, backward, rest = (share.flatten() for share in shares)
    torch.testing.assert_close(backward + rest, torch.ones(200))
    for share in (forward, backward):
        assert len(share.unique()) == 200
        assert 0 <= share.min() < 0.1 < 0.9 < share.max() <= 1
    assert torch.corrcoef(torch.stack([forward, backward]))[0, 1].abs() < 0.3


def test_the_branches_of_shake_shake_count_a_half_each_in_evaluation():
    first, second = images(2, 3, 4), images(3, 3, 4)[1:]
    torch.testing.assert_close(shake(first, second, training=False), 0.5 * first + 0.5 * second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"se": 4, "eca": True}, "more than one of se, eca and cbam"),
        ({"cbam": -1}, r"model\.stages\.cbam is -1"),
        ({"widen": 3}, "widen is given, but block is basic: only pyramid blocks widen"),
        ({"block": "inverted", "groups": 2}, "groups 2, separable false in inverted blocks"),
        ({"block": "convnext", "separable": True}, "groups 1, separable true in convnext blocks"),
        ({"block": "inverted", "se": 4, "se_place": "sum"}, "se_place is sum, but inverted blocks"),
    ],
)
def test_switches_that_do_not_go_together_are_an_error(options, message):
    with pytest.raises(ConfigError, match=message):
        on_meta(ModelConfig(name="residual", stages=[StageConfig(width=8, **options)]))


def test_a_pyramid_that_narrows_is_an_error():
    stages = [StageConfig(width=16), StageConfig(block="pyramid", width=8)]
    with pytest.raises(ConfigError, match="puts out 8 channels where 16 come in"):
        on_meta(ModelConfig(name="residual", stages=stages))


def test_options_of_blocks_that_a_network_has_not_are_an_error():
    with pytest.raises(ConfigError, match=r"drop_path is 0.1, but whitened_cnn has no residual blocks"):
        models.build(ModelConfig(name="whitened_cnn", drop_path=0.1), 10)


def test_images_that_convnext_strides_leave_nothing_of_are_refused():
    with pytest.raises(ConfigError, match="image_size is 7, of which 1 pixels are left before a stride of 2"):
        models.build(ModelConfig(name="convnext_atto"), 10, image_size=7)
    assert narrow("convnext_atto", image_size=8).eval()(images(1, size=8)).shape == (1, 10)


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


@pytest.mark.parametrize("budget", [None, 10**12])
def test_a_network_that_memory_does_not_hold_is_refused_before_it_is_built(budget, monkeypatch):
    config = ModelConfig(name="resnet_leaky")
    monkeypatch.setattr(memory, "available", lambda: 4 * 4_773_354)
    models.build(config, 10, budget=budget)
    monkeypatch.setattr(memory, "available", lambda: 4 * 4_773_354 - 1)
    with torch.device("meta"):
        models.build(config, 10, budget=budget)
    with pytest.raises(ConfigError, match=r"4,773,354 trainable parameters, .* are free: choose"):
        models.build(config, 10, budget=budget)


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
