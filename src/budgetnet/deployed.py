"""A classifier as one function from raw pixels to probabilities, in the formats that others load."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from budgetnet import __version__, engine
from budgetnet.checkpoint import Classifier, is_narrowed, load_classifier
from budgetnet.engine import export_onnx

Format = Literal["onnx", "torch", "safetensors", "openvino", "hub"]
Precision = Literal["fp32", "fp16", "int8"]
Function = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From uint8 (n, h, w, 3), any n, to probabilities float32 (n, classes)."""

INPUT, OUTPUT = "images", "probabilities"
_PREPARED = "preprocessing"  # what stands before the network's own names
_PARTS = {
    "Conv": ("", "weight", "bias"),
    "Gemm": ("", "weight", "bias"),
    "MatMul": ("input0", "weight"),
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
}
"""What the network calls the inputs of an operator that are its state."""


class Deployed(nn.Module):
    """From raw pixels to probabilities: uint8 (n, h, w, 3) -> float32 (n, classes)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = copy.deepcopy(classifier.network).cpu().eval()
        factor, offset = _normalisation(classifier)
        self.factor: Tensor
        self.offset: Tensor
        self.register_buffer("factor", torch.from_numpy(factor))
        self.register_buffer("offset", torch.from_numpy(offset))

    def forward(self, images: Tensor) -> Tensor:
        """float32 probabilities (n, classes) of uint8 images (n, side, side, channels)."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        probabilities: Tensor = self.network(pixels * self.factor + self.offset).softmax(1)
        return probabilities


def _normalisation(classifier: Classifier) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What pixels in [0, 255] are multiplied by, and what is added then: each (1, c, 1, 1)."""
    mean, std = np.array(classifier.mean), np.array(classifier.std)
    shape = (1, -1, 1, 1)
    return (1 / (255 * std)).astype(np.float32).reshape(shape), (-mean / std).astype(np.float32).reshape(shape)


def about(classifier: Classifier, precision: Precision) -> dict[str, str]:
    """What an exported file says of itself, each value as JSON."""
    found: dict[str, Any] = {
        "classes": classifier.classes,
        "image_size": classifier.image_size,
        "mean": classifier.mean,
        "std": classifier.std,
        "network": classifier.model.name,
        "parameters": classifier.parameters,
        "precision": precision,
        "budgetnet": __version__,
    }
    return {key: json.dumps(value) for key, value in found.items()}


# ---------------------------------------------------------------------------------------------------- torch


class _Widened(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(torch.float32)


def save_torch(path: Path, classifier: Classifier, precision: Precision) -> None:
    """Write a program of `torch.export`, with what `about` says as `about.json` in it."""
    program = Deployed(classifier).eval().requires_grad_(False)
    if precision == "fp16":
        for module in list(program.network.modules()):
            for name, weight in list(module.named_parameters(recurse=False)):
                if is_narrowed(weight):
                    setattr(module, name, nn.Parameter(weight.half(), requires_grad=False))
                    parametrize.register_parametrization(module, name, _Widened(), unsafe=True)
    example = torch.zeros(2, classifier.image_size, classifier.image_size, 3, dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(program, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("n", min=1)}})
    torch.export.save(exported, path, extra_files={"about.json": json.dumps(about(classifier, precision))})


def load_torch(path: Path) -> Function:
    """What `save_torch` wrote. Not for files of strangers: torch evaluates expressions in them."""
    program = torch.export.load(path).module()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            probabilities: NDArray[np.float32] = program(torch.from_numpy(images)).numpy()
        return probabilities

    return run


# ---------------------------------------------------------------------------------------------------- safetensors


def load_safetensors(path: Path) -> Function:
    """A model file of ours, or a folder with one, computed by PyTorch."""
    return computed_by_torch(load_classifier(path))


def computed_by_torch(classifier: Classifier) -> Function:
    """A classifier, computed by PyTorch."""
    program = Deployed(classifier).eval()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = program(torch.from_numpy(images)).numpy()
        return probabilities

    return run


# ---------------------------------------------------------------------------------------------------- ONNX


def to_onnx(classifier: Classifier, precision: Precision, calibration: NDArray[np.float32] | None) -> bytes:
    """The classifier in ONNX's format, named as the network names its parts, with what `about` says as metadata.

    Args:
        classifier: whose network is exported.
        precision: fp16 keeps weights in 16 bits and computes in 32; int8 computes convolutions in 8-bit integers.
        calibration: training images for int8, float32 (n, c, h, w), normalised.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    exported = onnx.load_from_string(export_onnx(classifier.network, classifier.image_shape))
    _name_as_the_network(exported.graph)
    if precision == "int8":
        assert calibration is not None
        exported = onnx.load_from_string(engine.quantize_onnx(exported.SerializeToString(), calibration))
    graph = exported.graph
    if precision == "fp16":
        _narrow(graph)
    float_input, logits = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.input[:] = [_PREPARED if name == float_input else name for name in node.input]
    factor, offset = _normalisation(classifier)
    prepared: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Cast", [INPUT], {"to": TensorProto.FLOAT}),
        ("Transpose", [f"{_PREPARED}/Cast"], {"perm": [0, 3, 1, 2]}),
        ("Mul", [f"{_PREPARED}/Transpose", f"{_PREPARED}/factor"], {}),
        ("Add", [f"{_PREPARED}/Mul", f"{_PREPARED}/offset"], {}),
    ]
    before = [
        helper.make_node(kind, inputs, [f"{_PREPARED}/{kind}"], f"{_PREPARED}/{kind}", **attributes)
        for kind, inputs, attributes in prepared
    ]
    before[-1].output[0] = _PREPARED
    after = helper.make_node("Softmax", [logits], [OUTPUT], OUTPUT, axis=1)
    nodes = [*before, *graph.node, after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    size = classifier.image_size
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", size, size, 3]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", len(classifier.classes)]))
    graph.initializer.append(numpy_helper.from_array(factor, f"{_PREPARED}/factor"))
    graph.initializer.append(numpy_helper.from_array(offset, f"{_PREPARED}/offset"))
    graph.name = classifier.model.name
    exported.producer_name, exported.producer_version = "budgetnet", __version__
    helper.set_model_props(exported, about(classifier, precision))
    onnx.checker.check_model(exported, full_check=True)
    return bytes(exported.SerializeToString())


def _name_as_the_network(graph: Any) -> None:
    """Name nodes, and what they put out, by the modules that they come from, and weights as the network's state does.

    The exporter calls a node /layer1/layer1.0/conv1/Conv, a weight that a norm was folded into onnx::Conv_824, and
    lets one stand for all that are equal.
    """
    from onnx import TensorProto

    weights = {tensor.name: tensor for tensor in graph.initializer}
    equal = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in weights]
    same = {node.output[0]: node.input[0] for node in equal}
    nodes = [node for node in graph.node if node.output[0] not in same]
    kept = {graph.input[0].name, graph.output[0].name}
    taken = set(kept)
    renamed: dict[str, str] = {}
    tensors: dict[str, Any] = {}
    for node in nodes:
        *scopes, operation = node.name.strip("/").split("/") if node.name.startswith("/") else [node.op_type]
        path, last = "", ""
        for scope in scopes:  # within a sequence, the exporter repeats the name of the sequence
            path += scope.removeprefix(last) if last and scope.startswith(f"{last}.") else f".{scope}"
            last = scope
        path = path.lstrip(".")
        name = path if path and path not in taken and operation == node.op_type else f"{path}/{operation}".lstrip("/")
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name
        for i, given in enumerate(node.input):
            source = same.get(given, given)
            if source in weights:
                part = _PARTS[node.op_type][i] if node.op_type in _PARTS else f"input{i}"
                own = f"{name}.{part}" if "::" in source or "/" in source or source in tensors else source
                while own in tensors:
                    own += "_"
                tensors[own] = TensorProto()
                tensors[own].CopyFrom(weights[source])
                tensors[own].name = node.input[i] = own
            else:
                node.input[i] = renamed.get(given, given)
        for i, given in enumerate(node.output):
            if given not in kept:
                renamed[given] = name if len(node.output) == 1 else f"{name}:{i}"
                node.output[i] = renamed[given]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors.values())


def _narrow(graph: Any) -> None:
    """Keep weights of more than one dimension in 16 bits; they are cast when the file is loaded."""
    from onnx import TensorProto, helper, numpy_helper

    casts: list[Any] = []
    wide: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
            wide[tensor.name] = f"{tensor.name}/Cast"
            casts.append(
                helper.make_node("Cast", [tensor.name], [wide[tensor.name]], wide[tensor.name], to=TensorProto.FLOAT)
            )
    for node in graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def load_onnx(path: Path) -> Function:
    """A file of `to_onnx`, computed by ONNX Runtime on as many threads as torch has."""
    loaded = engine.session(path, torch.get_num_threads())

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probabilities: NDArray[np.float32] = loaded.run(None, {INPUT: images})[0]
        return probabilities

    return run


# ---------------------------------------------------------------------------------------------------- OpenVINO


def save_openvino(path: Path, classifier: Classifier, model: bytes, precision: Precision) -> None:
    """Write a model of `to_onnx` as OpenVINO's two files, `path` (.xml) and the weights beside it (.bin)."""
    import openvino

    converted = openvino.Core().read_model(model)
    for key, value in about(classifier, precision).items():
        converted.set_rt_info(value, ["budgetnet", key])
    openvino.save_model(converted, path, compress_to_fp16=precision == "fp16")


def load_openvino(path: Path) -> Function:
    """What `save_openvino` wrote, computed by OpenVINO on as many threads as torch has."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probabilities: NDArray[np.float32] = compiled(images)[0].copy()
        return probabilities

    return run
