"""A compiled network says what PyTorch says, of each image alone, and in int8 nearly so."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budgetnet import engine, models
from budgetnet.config import ModelConfig, StageConfig
from budgetnet.engine import Engine, compile_network
from budgetnet.errors import BudgetnetError, CheckpointError, ConfigError
from budgetnet.inputs import normalize
from budgetnet.logits import predict_logits
from budgetnet.models.blocks import BLOCKS

MEAN, STD = (0.5, 0.4, 0.45), (0.25, 0.24, 0.26)
SHAPE = (3, 16, 16)
N = 41


def a_network(name: str = "enhanced", width: int = 8) -> nn.Module:
    """With the statistics of images in its norms, as a training leaves them: images then differ in their logits.

    Residual branches are weak, or a deep network of random weights is chaotic: it blows up any rounding.
    """
    torch.manual_seed(0)
    network = models.build(ModelConfig(name=name, width=width), 7, image_size=SHAPE[1])
    for key, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0
            if key.endswith("bn3"):
                nn.init.constant_(module.weight, 0.2)
    with torch.no_grad():
        network(inputs_of(some_images(64, seed=2)))
    return network.eval()


def some_images(n: int = N, seed: int = 0) -> Tensor:
    """Pictures of smooth colours: uint8 (n, 3, 16, 16)."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (255 * nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear")).to(torch.uint8)


def inputs_of(images: Tensor) -> Tensor:
    return normalize(images, MEAN, STD)


def compiled(network: nn.Module, precision: str = "fp32", threads: int = 1) -> Engine:
    torch.set_num_threads(threads)
    return compile_network(
        network,
        SHAPE,
        precision=precision,
        calibration=inputs_of(some_images(30, seed=1)) if precision == "int8" else None,
    )


@pytest.fixture(scope="module")
def engines() -> dict[tuple[str, int], Engine]:
    """By precision and number of threads, of one network."""
    network = a_network()
    return {(p, t): compiled(network, p, t) for p in ("fp32", "int8") for t in (1, 3)}


@pytest.fixture(scope="module")
def one_by_one(engines) -> dict[str, Tensor]:
    inputs = inputs_of(some_images())
    return {p: torch.cat([engines[p, 1](image[None]) for image in inputs]) for p in ("fp32", "int8")}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_logits_are_the_same_bits_alone_and_among_any_others_in_any_order_with_any_threads(
    precision, threads, engines, one_by_one
):
    own, inputs = engines[precision, threads], inputs_of(some_images())

    @given(st.lists(st.integers(0, N - 1), max_size=60))
    @settings(max_examples=30, deadline=None, derandomize=True)
    def holds(chosen: list[int]) -> None:
        assert torch.equal(own(inputs[chosen]), one_by_one[precision][chosen])

    holds()
    assert torch.equal(own(inputs), one_by_one[precision])


@pytest.mark.parametrize("name", models.names())
def test_every_network_of_the_registry_compiles_and_agrees_with_pytorch(name):
    network, images = a_network(name, width=64 if name == "resnext29_32x4d" else 8), some_images(9)
    with torch.no_grad():
        expected = network(inputs_of(images))
    error = (compiled(network)(inputs_of(images)) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4


@pytest.mark.parametrize("kind", BLOCKS)
def test_kinds_of_block_and_gates_compile_for_images_of_odd_sides(kind):
    torch.manual_seed(0)
    gates = {"se": 4}, {"eca": True}, {"cbam": 4}
    stages = [StageConfig(block=kind, depth=1, width=8, stride=1 + i, **gate) for i, gate in enumerate(gates)]
    network = models.build(ModelConfig(name="residual", stages=stages), 3, image_size=13).eval()
    images = torch.randn(3, 3, 13, 13)
    with torch.no_grad():
        torch.testing.assert_close(compile_network(network, (3, 13, 13))(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["enhanced", "whitened_cnn_large", "wrn_16_4", "resnet_custom", "resnext29_2x64d", "convnext_atto"]
)
def test_int8_stays_near_fp32_and_is_something_else(name):
    network, inputs = a_network(name, width=64 if name == "resnext29_2x64d" else 8), inputs_of(some_images())
    exact, quantized = compiled(network)(inputs), compiled(network, "int8")(inputs)
    error = (quantized - exact).square().mean().sqrt() / (exact - exact.mean(0)).square().mean().sqrt()
    assert 0 < error < 0.25


def test_one_strange_image_among_those_of_the_calibration_leaves_int8_as_good():
    network, inputs = a_network(), inputs_of(some_images())
    exact = compiled(network)(inputs)

    def error(calibration: Tensor) -> float:
        quantized = compile_network(network, SHAPE, precision="int8", calibration=calibration)
        return (quantized(inputs) - exact).square().mean().sqrt().item()

    images = inputs_of(some_images(100, seed=1))
    strange = images.clone()
    strange[50] *= 100
    usual = error(images)
    assert error(strange) < 1.2 * usual
    assert error(100 * images) > 5 * usual


def test_int8_weights_leave_a_bit_free_so_that_no_processor_overflows():
    network = a_network()
    exported = engine.export_onnx(network, SHAPE)
    graph = onnx.load_from_string(engine.quantize_onnx(exported, inputs_of(some_images()).numpy())).graph
    weights = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    convolutions = [weight for weight in weights if weight.ndim == 4]
    assert len(convolutions) == sum(isinstance(module, nn.Conv2d) for module in network.modules()) - 1
    assert {int(abs(weight.astype(int)).max()) for weight in convolutions} <= {63, 64}


@pytest.mark.parametrize("side", [40, 100, 200])
def test_images_of_any_size_are_the_same_bits_alone_and_together(side):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 20, 3, stride=2), nn.GELU(), nn.Conv2d(20, 20, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.SiLU()
    )
    inputs = torch.randn(21, 3, side, side + 8)
    own = compile_network(network, inputs.shape[1:])
    logits = own(inputs)
    torch.testing.assert_close(logits, network(inputs).detach())
    assert torch.equal(logits, torch.cat([own(image[None]) for image in inputs]))


class Leaning(nn.Module):
    """Each image's logits lean, by a little, on what else is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = a_network()

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, classes)."""
        return self.network(x) + 1e-8 * x.abs().sum()


def test_where_a_batch_changes_bits_images_run_one_by_one():
    network, inputs = Leaning(), inputs_of(some_images())
    with torch.no_grad():
        assert not torch.equal(network(inputs)[:1], network(inputs[:1]))
    own = compiled(network)
    assert torch.equal(own(inputs), torch.cat([own(image[None]) for image in inputs]))


def test_where_threads_change_bits_they_are_not_shared(monkeypatch):
    usual = engine.session

    class Rounding:
        def __init__(self, session) -> None:
            self.session = session

        def run(self, names, feed):
            return [1.0000001 * logits for logits in self.session.run(names, feed)]

    monkeypatch.setattr(
        engine, "session", lambda model, threads: Rounding(usual(model, 1)) if threads > 1 else usual(model, 1)
    )
    own, inputs = compiled(a_network()), inputs_of(some_images())
    assert torch.equal(own(inputs[:1]), own(inputs)[:1])


def test_calls_from_several_threads_at_once_do_not_disturb_each_other(engines, one_by_one):
    own, inputs = engines["fp32", 3], inputs_of(some_images())
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: own(inputs[i : i + 20]), range(20)))
    assert all(torch.equal(answer, one_by_one["fp32"][i : i + 20]) for i, answer in enumerate(answers))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_compiling_changes_neither_the_network_nor_the_random_numbers(precision):
    network = a_network().train()
    network.linear.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes, forwards = ([m.training for m in network.modules()], [m.forward for m in network.modules()])
    rng = torch.get_rng_state()
    compiled(network, precision)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in network.modules()] == modes
    assert [m.forward for m in network.modules()] == forwards
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("tta", ["none", "flip", "flip-shift", "crops"])
def test_predicted_logits_are_pytorchs_also_in_several_passes_and_with_views(tta, monkeypatch):
    monkeypatch.setattr(engine, "_BATCH", 16 * math.prod(SHAPE))
    network, images = a_network(), some_images()
    own = compiled(network)
    assert own.batch == 16
    expected = predict_logits(network, images, MEAN, STD, tta=tta)
    found = predict_logits(own, images, MEAN, STD, tta=tta)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:30]
    assert torch.equal(predict_logits(own, images[order], MEAN, STD, tta=tta), found[order])
    assert predict_logits(own, images[:0], MEAN, STD, tta=tta).shape == (0, 7)


def test_weights_that_are_not_finite_are_refused_as_with_pytorch():
    network, images = a_network(), some_images(3)
    network.linear.bias.data[3] = math.nan
    for either in (network, compiled(network)):
        with pytest.raises(CheckpointError, match=r"3 of 3 images .* are not finite"):
            predict_logits(either, images, MEAN, STD)
    network.conv1.weight.data[0] = math.inf
    with pytest.raises(CheckpointError, match="not finite"):
        compiled(network, "int8")


def test_a_disagreement_with_pytorch_is_an_error_that_names_the_figures(monkeypatch):
    torch.manual_seed(1)
    other = engine.export_onnx(
        a_network().apply(lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None), SHAPE
    )
    monkeypatch.setattr(engine, "export_onnx", lambda network, shape: other)
    with pytest.raises(
        BudgetnetError, match=r"disagree .* differ by \d.* expected at most 0\.0001 .* --engine torch"
    ) as e:
        compiled(a_network())
    assert "\n" not in str(e.value)


def test_a_network_that_cannot_be_compiled_is_an_error_in_one_line():
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x).mean((2, 3))

    with pytest.raises(BudgetnetError, match=r"cannot compile this network \(.*--engine torch") as caught:
        compiled(Unknown())
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused(engines):
    own = engines["fp32", 3]
    for inputs in (torch.zeros(2, 3, 8, 8), torch.zeros(3, 16, 16), torch.zeros(2, *SHAPE, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"expected torch\.float32 \(n, 3, 16, 16\)"):
            own(inputs)
    with pytest.raises(ValueError, match="an engine computes in what it was compiled for"):
        predict_logits(own, some_images(1), MEAN, STD, precision=torch.bfloat16)
    with pytest.raises(ValueError, match="expected fp32 or int8"):
        compile_network(a_network(), SHAPE, precision="int4")  # type: ignore[arg-type]
    for calibration in (None, torch.zeros(0, *SHAPE), torch.zeros(2, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"expected images \(n, 3, 16, 16\), n >= 1"):
            compile_network(a_network(), SHAPE, precision="int8", calibration=calibration)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_its_packages_there_is_no_engine_and_the_error_says_what_to_install(package, monkeypatch):
    assert engine.available()
    monkeypatch.setitem(sys.modules, package, None)
    assert not engine.available()
    for precision in ("fp32", "int8"):
        with pytest.raises(ConfigError, match=f"but {package} is not installed: pip install {package}, or .*torch"):
            compiled(a_network(), precision)
