"""Files that hold weights: a run's `last.ckpt`, a model's `best.safetensors`, and the reference project's checkpoints.

All are read as data: nothing that a file brings is ever executed. All are written beside and renamed.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet import config as configuration
from budgetnet import models
from budgetnet.config import ModelConfig
from budgetnet.data import CIFAR10_CLASSES
from budgetnet.errors import CheckpointError
from budgetnet.files import atomic_write

STATE_FORMAT = 1
MODEL_FORMAT = "budgetnet 1"

# What the reference project's networks were trained with (its stds are averages of per-image stds).
REFERENCE_MEAN = (0.4914, 0.4822, 0.4465)
REFERENCE_STD = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network with all that is needed to use it on raw images."""

    network: nn.Module
    """uint8 images, normalised, (n, c, image_size, image_size) -> logits (n, classes)."""
    model: ModelConfig
    """What rebuilds the network."""
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    mean: tuple[float, ...]
    """Channel means of the normalisation, for pixels in [0, 1]."""
    std: tuple[float, ...]
    """Channel standard deviations of the normalisation."""
    image_size: int
    """Side of the images in pixels."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: recipe, seed, epoch, validation score, data checksum, versions."""


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a training, tensors and plain values only, followed by its SHA-256.

    Raises:
        BudgetnetError: the file cannot be written; what was there before is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": STATE_FORMAT, **state}, buffer)
    content = buffer.getbuffer()
    atomic_write(path, bytes(content) + hashlib.sha256(content).digest())


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, onto the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
    """
    content = _read(path)
    if len(content) < 32 or hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise CheckpointError(f"{path} is damaged or no state of a budgetnet run: its checksum does not hold")
    state = _load_tensors(path, content[:-32])
    if state.get("format") != STATE_FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')!r}, expected {STATE_FORMAT}: it was written by another version"
        )
    return state


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a model file that alone rebuilds the classifier.

    Raises:
        BudgetnetError: the file cannot be written; what was there before is untouched.
    """
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous() for key, value in classifier.network.state_dict().items()}
    metadata = {
        "format": MODEL_FORMAT,
        "model": json.dumps(asdict(classifier.model)),
        "classes": json.dumps(classifier.classes),
        "mean": json.dumps(classifier.mean),
        "std": json.dumps(classifier.std),
        "image_size": json.dumps(classifier.image_size),
        "provenance": json.dumps(classifier.provenance),
        "sha256": _digest(tensors),
    }
    atomic_write(path, save(tensors, metadata))


def load_classifier(path: Path, model: str | None = None) -> Classifier:
    """Read a classifier, on the CPU and in evaluation mode, from any file that holds one.

    Args:
        path: a model file, a run folder, a run's `last.ckpt`, or a checkpoint of the reference project.
        model: the network's name, needed for (and only for) a checkpoint of the reference project.

    Raises:
        CheckpointError: the file is missing, damaged, of an unknown kind, or does not fit the network; keys that are
            missing, extra or of another shape are named.
    """
    if path.is_dir():
        if not (path / "best.safetensors").is_file():
            raise CheckpointError(f"{path} holds no best.safetensors: give a finished run's folder or a model file")
        path = path / "best.safetensors"
    content = _read(path)
    if path.suffix == ".safetensors":
        if model is not None:
            raise CheckpointError(f"{path} says itself which network it holds: leave out --model {model}")
        return _load_model_file(path, content)
    if len(content) > 32 and hashlib.sha256(content[:-32]).digest() == content[-32:]:
        raise CheckpointError(
            f"{path} is the state of a training, not a model: use best.safetensors beside it, or resume the run"
        )
    return _load_reference(path, content, model)


def _load_model_file(path: Path, content: bytes) -> Classifier:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {_one_line(error)}") from error
    if metadata.get("format") != MODEL_FORMAT:
        raise CheckpointError(
            f"{path} has format {metadata.get('format')!r}, expected {MODEL_FORMAT!r}: it is no model file of budgetnet"
        )
    if metadata.get("sha256") != _digest(tensors):
        raise CheckpointError(f"{path} is damaged: the checksum over its weights does not hold")
    try:
        model = configuration.model_from_dict(json.loads(metadata["model"]))
        classes = tuple(str(name) for name in json.loads(metadata["classes"]))
        mean = tuple(float(x) for x in json.loads(metadata["mean"]))
        std = tuple(float(x) for x in json.loads(metadata["std"]))
        image_size = int(json.loads(metadata["image_size"]))
        provenance = dict(json.loads(metadata["provenance"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has unreadable metadata: {_one_line(error)}") from error
    network = models.build(model, len(classes), image_size)
    load_strictly(network, tensors, str(path), model.name)
    return Classifier(
        network=network.eval(),
        model=model,
        classes=classes,
        mean=mean,
        std=std,
        image_size=image_size,
        provenance=provenance,
    )


def _load_reference(path: Path, content: bytes, model: str | None) -> Classifier:
    state = _load_tensors(path, content)
    weights = state.get("net")
    if not isinstance(weights, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    ):
        raise CheckpointError(
            f"{path} has the entries {', '.join(map(str, state)) or 'none'}, expected net with the weights, as the "
            "reference project writes them"
        )
    if model is None:
        raise CheckpointError(f"{path} does not say which network it holds: give --model NAME (see budgetnet models)")
    # DataParallel wraps the network and prefixes each key.
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    chosen = ModelConfig(name=model)
    network = models.build(chosen, len(CIFAR10_CLASSES))
    load_strictly(network, weights, str(path), model)
    return Classifier(
        network=network.eval(),
        model=chosen,
        classes=CIFAR10_CLASSES,
        mean=REFERENCE_MEAN,
        std=REFERENCE_STD,
        image_size=32,
        provenance={key: state[key] for key in ("acc", "epoch") if isinstance(state.get(key), int | float)},
    )


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], source: str, name: str) -> None:
    """Load `weights` into `network`; each key must be there, with its shape, and no other.

    Raises:
        CheckpointError: names the first keys that are missing, extra, or of another shape.
    """
    own = network.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is extra" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} does not fit {name}: {'; '.join(problems[:3])}{more}")
    network.load_state_dict(dict(weights), strict=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _load_tensors(path: Path, content: bytes) -> dict[str, Any]:
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values, which is never loaded"
        ) from error
    # torch reports damage by whichever of these its zip and tensor readers meet first.
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        raise CheckpointError(f"{path} is no readable checkpoint: {_one_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected a dictionary")
    return state


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
