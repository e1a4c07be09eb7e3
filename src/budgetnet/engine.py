"""Trained networks on CPUs: compiled by ONNX Runtime, in float32 or quantised to 8-bit integers.

It is what `evaluate` and `predict` run on, where it is several times as fast as PyTorch (docs/speed.md). On an
accelerator, within a training, and where onnx or onnxruntime is not installed, PyTorch computes.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from budgetnet.errors import BudgetnetError, CheckpointError, ConfigError, first_line
from budgetnet.models.blocks import Projection

Precision = Literal["fp32", "int8"]

_PACKAGES = ("onnx", "onnxruntime")
_INPUT, _OUTPUT = "images", "logits"
_OPSET = 20  # the latest that torch writes without further packages, and the first in which a GELU is one operator
# Images of one run on one thread, and their pixels: fewer leave vector units idle, more fall out of the caches.
_TOGETHER, _TOGETHER_PIXELS = 8, 2**15
# Numbers. PyTorch's threads, which normalise a batch, wait busily for a while afterwards and so delay its first images.
_BATCH = 2**22
_AGREEMENT = 1e-4  # of the largest logit; sums in another order make some 1e-6
_COVERED = 98.0  # per cent of the calibration images
# Cheap and lossy are linear layers, GELU and the mean over positions: these stay in float32, as does the first
# convolution, which has little to compute and all the information.
_QUANTIZED = ("Conv", "Add", "Mul", "Sigmoid", "Relu", "LeakyRelu", "MaxPool", "Concat")

_Array = NDArray[np.float32]


class Engine:
    """A compiled network: maps normalised images to logits that depend on each image alone, bit for bit.

    Made by `compile_network`. May be called from several threads at once.

    A kernel may sum in another order in a larger batch or with more threads. So only three ways to run are ever used:
    one image on one thread, a few images (always as many) on one thread, and one image on all threads. The last two
    are compared with the first when the engine is made, each place in the batch, and are used only if they give the
    same bits.
    """

    precision: Precision
    """What it computes in."""
    image_shape: tuple[int, int, int]
    """Channels, height and width of the images it takes."""
    classes: int
    """Logits of an image."""
    batch: int
    """Images to give it at a time where there are more: some 16 MB of them, and all threads have the same to do."""

    def __init__(self, model: bytes, precision: Precision, probe: Tensor):
        """Load a model in ONNX's format.

        Args:
            model: from float32 images (n, c, h, w), any n, to logits (n, classes).
            precision: what the model computes in.
            probe: float32 (k, c, h, w), any images, as many as go together on one thread; the ways to run are compared
                by them.
        """
        pixels: _Array = probe.numpy()
        threads = torch.get_num_threads()
        self._alone = session(model, 1)
        self._one_by_all = session(model, threads) if threads > 1 else self._alone
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="budgetnet-engine")
        expected = [_run(self._alone, image[None]) for image in pixels]
        if any(_run(self._one_by_all, x[None]).tobytes() != y.tobytes() for x, y in zip(pixels, expected, strict=True)):
            self._one_by_all = self._alone
        together = _run(self._alone, pixels).tobytes() == b"".join(logits.tobytes() for logits in expected)
        self._together = len(pixels) if together else 1
        self._round = self._together * threads
        self.precision, self.classes = precision, expected[0].shape[1]
        _, *shape = probe.shape
        self.image_shape = (shape[0], shape[1], shape[2])
        self.batch = max(1, _BATCH // probe[0].numel() // self._round) * self._round

    def __call__(self, inputs: Tensor) -> Tensor:
        """The logits of each image.

        Args:
            inputs: float32 (n, c, h, w), normalised, c, h and w as in `image_shape`; any n, on any device.

        Returns:
            float32 (n, classes), on the CPU.

        Raises:
            ValueError: `inputs` is not such.
        """
        if inputs.dtype != torch.float32 or inputs.ndim != 4 or inputs.shape[1:] != self.image_shape:
            channels, height, width = self.image_shape
            raise ValueError(
                f"inputs are {inputs.dtype} {tuple(inputs.shape)}, expected torch.float32 (n, {channels}, {height}, "
                f"{width})"
            )
        n = len(inputs)
        if n == 0:
            return torch.zeros(0, self.classes)
        pixels: _Array = inputs.detach().cpu().contiguous().numpy()
        if n == 1:
            return torch.from_numpy(_run(self._one_by_all, pixels))
        # Some at a time as long as every thread gets as many, the rest one by one.
        even = n // self._round * self._round
        ends = [*range(self._together, even + 1, self._together), *range(even + 1, n + 1)]
        rows = self._pool.map(partial(_run, self._alone), np.split(pixels, ends[:-1]))
        return torch.from_numpy(np.concatenate(list(rows)))


def available() -> bool:
    """Whether the packages are installed that compiling needs: onnx and onnxruntime."""
    return all(find_spec(package) is not None for package in _PACKAGES)


def compile_network(
    network: nn.Module,
    image_shape: Sequence[int],
    *,
    precision: Precision = "fp32",
    calibration: Tensor | None = None,
) -> Engine:
    """Compile a trained network for this machine's CPU, with as many threads as `torch.get_num_threads()` says.

    Its logits in fp32 are compared with PyTorch's before it is handed out, or quantised. In int8, convolutions compute
    in 8-bit integers: static quantisation (Jacob et al. 2018, arXiv:1712.05877) with a scale for each output channel of
    the weights and one for each activation, whose range covers all values of 98 % of the calibration images; a range
    that covered all would be set by the strangest image, and be coarse for the others. What it costs in accuracy is for
    the caller to measure.

    Args:
        network: maps float32 (n, c, h, w) to (n, classes), on any device; left unchanged.
        image_shape: (c, h, w) of the images.
        precision: "fp32" or "int8".
        calibration: training images for int8, float32 (n, c, h, w), normalised; some hundreds are enough.

    Raises:
        BudgetnetError: ONNX Runtime cannot compile this network, or disagrees with PyTorch on it.
        CheckpointError: activations are not finite, so that they have no range (int8).
        ConfigError: onnx or onnxruntime is not installed.
        ValueError: `precision` is unknown, or `calibration` is missing, empty or of another shape.
    """
    if precision not in ("fp32", "int8"):
        raise ValueError(f"precision is {precision!r}, expected fp32 or int8")
    if precision == "int8" and (
        calibration is None or calibration.shape[1:] != (*image_shape,) or not len(calibration)
    ):
        found = None if calibration is None else tuple(calibration.shape)
        raise ValueError(f"calibration is {found}, expected images (n, {', '.join(map(str, image_shape))}), n >= 1")
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        raise ConfigError(
            f"ONNX Runtime is to compute, but {' and '.join(missing)} is not installed: pip install "
            f"{' '.join(missing)}, or give --engine torch (in fp32)"
        )
    network = copy.deepcopy(network).cpu().eval()
    together = min(_TOGETHER, max(1, _TOGETHER_PIXELS // (image_shape[1] * image_shape[2])))
    # Around the means and as far from them as images are.
    probe = torch.randn((together, *image_shape), generator=torch.Generator().manual_seed(0))
    try:
        model = export_onnx(network, image_shape)
        engine = Engine(model, "fp32", probe)
        _require_agreement(engine, network, probe)
        if calibration is not None and precision == "int8":
            engine = Engine(quantize_onnx(model, calibration.detach().cpu().numpy()), "int8", probe)
    except BudgetnetError:
        raise
    except Exception as error:  # exporter, quantiser and runtime raise whatever they meet first
        raise BudgetnetError(
            f"ONNX Runtime cannot compile this network ({first_line(error)}): give --engine torch"
        ) from error
    return engine


def export_onnx(network: nn.Module, image_shape: Sequence[int]) -> bytes:
    """The network in ONNX's format: float32 `images` (n, c, h, w), normalised, any n -> `logits` (n, classes).

    Args:
        network: maps such images to logits, on any device; left unchanged.
        image_shape: (c, h, w) of the images.
    """
    network = copy.deepcopy(network).cpu().eval()
    for module in network.modules():
        if isinstance(module, Projection):
            # As one strided operator: the pixels left out would be copied around.
            module.forward = partial(nn.Conv2d.forward, module)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        # The exporter that is to replace this one needs further packages.
        for message in ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed"):
            warnings.filterwarnings("ignore", message, DeprecationWarning)
        # How much `pad` pads, which ONNX Runtime folds itself.
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1 can be constant folded", UserWarning)
        path = Path(folder) / "exported.onnx"
        torch.onnx.export(
            network,
            (torch.zeros(1, *image_shape),),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_axes={_INPUT: {0: "n"}, _OUTPUT: {0: "n"}},
        )
        return path.read_bytes()


def session(model: bytes | Path, threads: int) -> Any:
    """A model in ONNX's format, or a file of one, ready to run on the CPU: an `onnxruntime.InferenceSession`."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # which Microsoft's builds for Windows send
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    # Between two operators threads wait busily, being woken takes too long; between two runs they shall sleep.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(compiled: Any, pixels: _Array) -> _Array:
    logits: _Array = compiled.run(None, {_INPUT: pixels})[0]
    return logits


@torch.no_grad()
def _require_agreement(engine: Engine, network: nn.Module, probe: Tensor) -> None:
    expected = network(probe)
    # Logits that are not finite are refused with the images that they are of, when there are some.
    if not expected.isfinite().all():
        return
    error, largest = (engine(probe) - expected).abs().max().item(), expected.abs().max().item()
    if not error <= _AGREEMENT * largest:
        raise BudgetnetError(
            f"ONNX Runtime and PyTorch disagree on this network: logits differ by {error:.3g} where the largest is "
            f"{largest:.3g}, expected at most {_AGREEMENT:g} of it; give --engine torch, and please report this"
        )


def quantize_onnx(model: bytes, images: _Array) -> bytes:
    """What `export_onnx` made, with 8-bit weights and activations where that is worth it.

    Args:
        model: of `export_onnx`.
        images: to calibrate on, float32 (n, c, h, w), normalised.

    Raises:
        CheckpointError: activations are not finite, so that they have no range.
    """
    import onnx
    from onnxruntime import quantization

    class FirstImage(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Enough for a calibration whose results are overridden."""

        def __init__(self) -> None:
            self.rest = iter([{_INPUT: images[:1]}])

        def get_next(self) -> dict[str, _Array] | None:
            return next(self.rest, None)

    with tempfile.TemporaryDirectory() as folder:
        exported, prepared, quantized = (
            Path(folder) / f"{name}.onnx" for name in ("exported", "prepared", "quantized")
        )
        exported.write_bytes(model)
        quantization.quant_pre_process(str(exported), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        first = next(node.name for node in graph.node if node.op_type == "Conv")
        quantization.quantize_static(
            str(prepared),
            str(quantized),
            FirstImage(),
            activation_type=quantization.QuantType.QUInt8,  # with signed weights, the pair that processors multiply
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            # 7 of the 8 bits, or sums of two products would overflow the 16 bits that processors without VNNI have.
            reduce_range=True,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_exclude=[first],
            extra_options={"TensorQuantOverrides": _ranges(prepared, images)},
        )
        return quantized.read_bytes()


def _ranges(path: Path, images: _Array) -> dict[str, list[dict[str, np.float32]]]:
    """For each activation that may be quantised, the range that covers all values of most of the images, and 0.

    As overrides of `quantize_static`.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    touched = [name for node in graph.node if node.op_type in _QUANTIZED for name in (*node.input, *node.output)]
    names = [name for name in dict.fromkeys(touched) if name not in constants]
    # The extremes are taken where the values are, so that memory holds one image's activations and not all.
    del graph.output[:]
    for kind in ("ReduceMin", "ReduceMax"):
        for name in names:
            graph.node.append(helper.make_node(kind, [name], [f"{kind} {name}"], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{kind} {name}", TensorProto.FLOAT, []))
    computed = session(model.SerializeToString(), 1)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        rows = pool.map(lambda image: computed.run(None, {_INPUT: image[None]}), images)
        lows, highs = np.split(np.array(list(rows), np.float32), 2, axis=1)
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        raise CheckpointError("activations of the calibration images are not finite: the weights are of no use")
    low = np.minimum(np.percentile(lows, 100 - _COVERED, axis=0), 0).astype(np.float32)
    high = np.maximum(np.percentile(highs, _COVERED, axis=0), 0).astype(np.float32)
    return {name: [{"rmin": a, "rmax": b}] for name, a, b in zip(names, low, high, strict=True)}
