"""Files that hold weights: a run's `last.ckpt`, a model's `best.safetensors`, and the reference project's checkpoints.

All are read as data: nothing that a file brings is ever executed. All are written beside and renamed.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import reprlib
import types
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from budgetnet import devices, models
from budgetnet.cifar import CIFAR10_CLASSES
from budgetnet.classifier import Classifier
from budgetnet.config import ModelConfig, model_from_dict
from budgetnet.errors import CheckpointError, ConfigError, DamagedError, DataError, first_line
from budgetnet.files import atomic_write
from budgetnet.pickles import rehearse
from budgetnet.recipe import RUNS
from budgetnet.runfiles import NEEDED, WEIGHTS

STATE_FORMAT = 1
MODEL_FORMAT = "budgetnet 2"  # 1 had no checksum over the metadata
METADATA = ("model", "classes", "mean", "std", "image_size", "provenance")
_LEGACY_PICKLES = 5  # of a checkpoint that is no archive: magic, version, machine, content, and which tensors follow
CHANNELS = 3
IMAGE_SIZES = range(8, 10_001)  # what a recipe allows, up to what a hostile file shall not exceed

HUB_WEIGHTS = "model.safetensors"  # of a folder in Hugging Face's layout
_CHECKPOINTS = (".ckpt", ".pth", ".pt")  # suffixes of what torch.save writes

BOX = "box"
"""The name of the model that budgetnet brings; `box` says where it is."""

# What the reference project's networks were trained with (its stds are averages of per-image stds).
REFERENCE_MEAN = (0.4914, 0.4822, 0.4465)
REFERENCE_STD = (0.2023, 0.1994, 0.2010)


def save_state(path: Path, state: Mapping[str, Any], *, keep: str | None = None) -> None:
    """Write the state of a training, tensors and plain values only, followed by its SHA-256.

    Args:
        path: the file.
        state: what to write.
        keep: the name, in the same folder, under which the file that was there stays.

    Raises:
        BudgetnetError: the file cannot be written; what was there before is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": STATE_FORMAT, **state}, buffer)
    content = buffer.getbuffer()
    atomic_write(path, bytes(content) + hashlib.sha256(content).digest(), keep=keep)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, onto the CPU.

    Raises:
        DamagedError: its checksum does not hold.
        CheckpointError: the file is missing, cannot be read, or is of another format.
    """
    content = _read(path)
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise DamagedError(f"{path} is damaged or no state of a budgetnet run: its checksum does not hold")
    state = _load_tensors(path, content[:-32])
    if state.get("format") != STATE_FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')!r}, expected {STATE_FORMAT}: it was written by another version"
        )
    return state


def save_classifier(path: Path, classifier: Classifier, *, narrow: bool = False) -> None:
    """Write a model file that alone rebuilds the classifier.

    Args:
        path: the file.
        classifier: what to write.
        narrow: keep weights in 16 bits, but for those of norms and biases, which are few, and large or small.

    Raises:
        BudgetnetError: the file cannot be written; what was there before is untouched.
    """
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous() for key, value in classifier.network.state_dict().items()}
    if narrow:
        tensors = {key: value.half() if is_narrowed(value) else value for key, value in tensors.items()}
    metadata = {
        "format": MODEL_FORMAT,
        "model": json.dumps(asdict(classifier.model)),
        "classes": json.dumps(classifier.classes),
        "mean": json.dumps(classifier.mean),
        "std": json.dumps(classifier.std),
        "image_size": json.dumps(classifier.image_size),
        "provenance": json.dumps(classifier.provenance),
    }
    atomic_write(path, save(tensors, metadata | {"sha256": digest(metadata, tensors)}))


def load(path_or_name: str | Path | None = None, *, model: str | None = None, device: str = "auto") -> Classifier:
    """A trained classifier, ready to be asked.

    Args:
        path_or_name: a run folder, a model file, a folder of `budgetnet export --format hub`, or a checkpoint of the
            reference project; else the name of a run in `runs`; else `box`, the model that budgetnet brings, which
            is also what nothing means.
        model: the network's name, needed for (and only for) a checkpoint of the reference project.
        device: auto (the fastest there is), cpu, cuda, cuda:N or mps.

    Raises:
        CheckpointError: there is no such file or run, or it is damaged, or of an unknown kind.
        ConfigError: this machine has no such device.

    >>> import budgetnet
    >>> model = budgetnet.load("first")
    >>> model
    Classifier of 10 classes by residual, 5,478 parameters, images of 32x32 pixels
    >>> len(model.predict("photo.png"))
    1
    """
    path = box() if path_or_name is None else located(path_or_name)
    where = devices.find(device)
    classifier = load_classifier(path, model)
    classifier.network.to(where)
    return classifier


def box() -> Path:
    """The folder, in Hugging Face's layout, of the model that budgetnet brings.

    Raises:
        CheckpointError: this copy brings none.
    """
    folder = Path(__file__).parent / BOX
    if not (folder / HUB_WEIGHTS).is_file():
        raise CheckpointError(
            f"this copy of budgetnet brings no model ({folder} holds none): name one, which `budgetnet train` makes"
        )
    return folder


def is_box(path_or_name: str | Path) -> bool:
    """Whether this means the model that budgetnet brings, which is there."""
    return found(path_or_name) == Path(__file__).parent / BOX


def found(path_or_name: str | Path) -> Path | None:
    """The file or folder, else that of the run of this name in `runs`, else of the model called `box`, else None.

    Raises:
        CheckpointError: it can be none but `box`, and this copy brings none.
    """
    path = Path(path_or_name)
    for place in (path, RUNS / path):
        if place.exists():
            return place
    return box() if str(path) == BOX else None


def located(path_or_name: str | Path) -> Path:
    """What `found` finds.

    Raises:
        CheckpointError: that is nothing.
    """
    place = found(path_or_name)
    if place is not None:
        return place
    raise CheckpointError(
        f"{path_or_name} cannot be read: No such file or directory, nor is there {RUNS / path_or_name}: give a model "
        "file or a run's folder"
    )


def files_of(path_or_name: str | Path) -> list[Path]:
    """Where the files of a model would be, there or not: that which `load` reads, and those that a run's folder holds
    besides. Nothing of what is no file, folder or run here.

    Raises:
        CheckpointError: as `found` does.
    """
    place = found(path_or_name)
    return [] if place is None else [place, *(place / name for name in (*NEEDED, HUB_WEIGHTS))]


def is_model(path_or_name: str | Path) -> bool:
    """Whether this names a model, by its looks, and nothing that a model could be asked about."""
    path = Path(path_or_name)
    if path.exists():
        return _weights_in(path) is not None or path.suffix in (".safetensors", *_CHECKPOINTS)
    return str(path) == BOX or (RUNS / path).exists()


def weights_file(path: Path) -> Path:
    """The model file of a run folder, or of one in Hugging Face's layout, or itself.

    Raises:
        CheckpointError: it is none of these.
    """
    path = _weights_in(path) or path
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is no run folder and no .safetensors file: give a finished run")
    return path


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in (WEIGHTS, HUB_WEIGHTS) if (folder / name).is_file()), None)


def is_narrowed(weight: Tensor) -> bool:
    """Whether a weight is kept in 16 bits where weights are: those in float32 with two dimensions or more."""
    return weight.dtype == torch.float32 and weight.ndim > 1


def load_classifier(path: Path, model: str | None = None) -> Classifier:
    """Read a classifier, on the CPU and in evaluation mode, from any file that holds one.

    Args:
        path: a model file, a run folder, a folder in Hugging Face's layout, or a checkpoint of the reference project.
        model: the network's name, needed for (and only for) a checkpoint of the reference project.

    Raises:
        CheckpointError: the file is missing, damaged, an export for other programs, of an unknown kind, or does not fit
            the network; keys that are missing, extra or of another shape are named.
    """
    if path.is_dir():
        file = _weights_in(path)
        if file is None:
            raise CheckpointError(f"{path} holds no {WEIGHTS}: give a finished run's folder or a model file")
        path = file
    content = _read(path)
    if path.suffix in (".onnx", ".pt2", ".xml"):
        raise CheckpointError(f"{path} is for other programs: give the run that it was exported from")
    if path.suffix == ".safetensors":
        if model is not None:
            raise CheckpointError(f"{path} says itself which network it holds: leave out --model {model}")
        return _load_model_file(path, content)
    if hashlib.sha256(content[:-32]).digest() == content[-32:]:
        raise CheckpointError(
            f"{path} is the state of a training, not a model: use {WEIGHTS} beside it, or resume the run"
        )
    # An archive, or a pickle as torch.save wrote it before version 1.6.
    if path.suffix not in _CHECKPOINTS and not content.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path} is no model: give a run's folder, or a file (.safetensors, .pth, .pt or .ckpt)")
    return _load_reference(path, content, model)


def _load_model_file(path: Path, content: bytes) -> Classifier:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}
    # KeyError: a type that torch has not. TypeError, RuntimeError: a shape that torch cannot have.
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {first_line(error)}") from error
    if metadata.get("format") != MODEL_FORMAT:
        raise CheckpointError(
            f"{path} has format {reprlib.repr(metadata.get('format'))}, expected {MODEL_FORMAT!r}: it is no model "
            "file of this version of budgetnet"
        )
    if metadata.pop("sha256", None) != digest(metadata, tensors):
        raise CheckpointError(f"{path} is damaged: the checksum over its weights and metadata does not hold")
    wide = {key: value.float() if value.dtype == torch.float16 else value for key, value in tensors.items()}
    return _classifier(path, {key: _parse(path, key, metadata) for key in METADATA}, wide)


def _parse(path: Path, key: str, metadata: Mapping[str, str]) -> Any:
    try:
        return json.loads(metadata[key])
    except KeyError as error:
        raise CheckpointError(f"{path} has no {key} in its metadata: write it with budgetnet train") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has unreadable metadata: {key} is no JSON: {first_line(error)}") from error


def _classifier(path: Path, found: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Classifier:
    """Check what a model file says, which may be anything, and build from it."""

    def require(holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise CheckpointError(
                f"{path} has unusable metadata: {key} is {reprlib.repr(found[key])}, expected {expected}"
            )

    classes, mean, std, size = found["classes"], found["mean"], found["std"], found["image_size"]
    require(has_type(classes, list[str]), "classes", "a list of names")
    require(has_type(mean, list[float]) and len(mean) == CHANNELS, "mean", f"{CHANNELS} finite numbers")
    require(
        has_type(std, list[float]) and len(std) == CHANNELS and min(std) > 0,
        "std",
        f"{CHANNELS} finite numbers above 0",
    )
    require(
        has_type(size, int) and size in IMAGE_SIZES, "image_size", f"pixels from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}"
    )
    require(isinstance(found["provenance"], dict), "provenance", "a dictionary")
    require(isinstance(found["model"], dict), "model", "the options of a network")
    try:
        model = model_from_dict(found["model"])
    except (ConfigError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has unusable metadata: {first_line(error)}") from error
    require(has_type(model, ModelConfig), "model", "options of the types that a recipe has")
    return Classifier(
        network=_rebuild(path, model, len(classes), size, tensors),
        model=model,
        classes=tuple(classes),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        image_size=size,
        provenance=found["provenance"],
    )


@functools.cache  # as annotations are evaluated each time: a long file would take seconds
def _types(hint: Any) -> dict[str, Any] | None:
    """The types of a dataclass's fields; None of what is none."""
    return get_type_hints(hint) if is_dataclass(hint) else None


def has_type(value: Any, hint: Any) -> bool:
    """Whether `value` is what the annotation `hint` of a configuration says; a number must be finite."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(has_type(value, choice) for choice in arguments)
    if origin is list:
        return isinstance(value, list) and all(has_type(entry, *arguments) for entry in value)
    if (kinds := _types(hint)) is not None:
        return type(value) is hint and all(has_type(getattr(value, name), kind) for name, kind in kinds.items())
    if hint is float:
        return type(value) in (int, float) and abs(value) < 2**53
    return type(value) is hint


def _rebuild(
    path: Path, model: ModelConfig, num_classes: int, image_size: int, weights: Mapping[str, Tensor]
) -> nn.Module:
    """The network with its weights, in evaluation mode; a size or depth that is a lie costs no memory and no time."""
    named = re.match(r"wrn[-_](\d+)", model.name)
    depth = float(named[1]) if named else sum(stage.depth for stage in model.stages or ())
    if depth > len(weights):
        raise CheckpointError(
            f"{path} does not fit {model.name[:80]}: it holds {len(weights)} tensors, expected one a layer or more"
        )
    try:
        with torch.device("meta"):
            network = models.build(model, num_classes, image_size=image_size)
    # Besides ConfigError, what Python and torch say of sizes that no memory has.
    except (ConfigError, RuntimeError, OverflowError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} says of its network what cannot be built: {first_line(error)}") from error
    _require_fit(network, weights, str(path), model.name)
    network.to_empty(device="cpu")
    network.load_state_dict(dict(weights), strict=True)
    return network.eval()


def _load_reference(path: Path, content: bytes, model: str | None) -> Classifier:
    state = _load_tensors(path, content)
    weights = state.get("net")
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise CheckpointError(
            f"{path} has the entries {', '.join(map(str, state)) or 'none'}, expected net with the weights, as the "
            "reference project writes them"
        )
    if model is None:
        raise CheckpointError(f"{path} does not say which network it holds: give --model NAME (see budgetnet models)")
    if all(key.startswith("module.") for key in weights):  # DataParallel wraps the network and prefixes every key
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    try:
        chosen = ModelConfig(name=model)
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be read as --model {model}: {error}") from error
    return Classifier(
        network=_rebuild(path, chosen, len(CIFAR10_CLASSES), 32, weights),
        model=chosen,
        classes=CIFAR10_CLASSES,
        mean=REFERENCE_MEAN,
        std=REFERENCE_STD,
        image_size=32,
        provenance={key: state[key] for key in ("acc", "epoch") if isinstance(state.get(key), int | float)},
    )


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], source: str, name: str) -> None:
    """Copy `weights` into `network`; each key must be there, with its shape and type, and no other.

    Raises:
        CheckpointError: names the first keys that are missing, extra, or of another shape or type.
    """
    _require_fit(network, weights, source, name)
    network.load_state_dict(dict(weights), strict=True)


def _require_fit(network: nn.Module, weights: Mapping[str, Tensor], source: str, name: str) -> None:
    own = network.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is extra" for key in weights if key not in own]
    for key, mine in own.items():
        theirs = weights.get(key, mine)
        if theirs.shape != mine.shape:
            problems.append(f"{key} is {tuple(theirs.shape)}, expected {tuple(mine.shape)}")
        elif theirs.dtype != mine.dtype:
            problems.append(f"{key} is of {theirs.dtype}, expected {mine.dtype}")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} does not fit {name}: {'; '.join(problems[:3])}{more}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _load_tensors(path: Path, content: bytes) -> dict[str, Any]:
    """What torch.save wrote of plain values and tensors, rehearsed before torch sees it: see `pickles.rehearse`.

    Raises:
        CheckpointError: it is damaged, or holds or claims anything else.
    """
    try:
        if content.startswith(b"PK"):
            content = _repacked(content)
        else:
            at = 0
            for _ in range(_LEGACY_PICKLES):
                at = rehearse(content, at, len(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what it may fail to read; then it fails, and that is told
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except DataError as error:
        raise CheckpointError(
            f"{path} holds {error}, which is never loaded: only tensors, plain numbers, strings and containers are"
        ) from error
    except Exception as error:  # torch reports damage by whatever its zip, pickle and tensor readers meet first
        raise CheckpointError(f"{path} is no readable checkpoint: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected a dictionary")
    return state


def _repacked(content: bytes) -> bytes:
    """A checkpoint's archive, its pickle rehearsed, written anew: two readers can find different files in one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(packed, "w") as anew:
        entries = archive.infolist()
        # What is compressed may unpack to more than it says, all at once.
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries
        ):
            raise ValueError("a compressed archive, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > len(content) or len(set(archive.namelist())) < len(entries):
            raise ValueError("an archive whose parts overlap")
        for entry in entries:
            data = archive.read(entry)
            if entry.filename.endswith(".pkl"):
                rehearse(data, 0, len(content))
            anew.writestr(zipfile.ZipInfo(entry.filename), data)
    return packed.getvalue()


def digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, as 64 hexadecimal digits, over all that a model file means, however it is laid out.

    Args:
        metadata: texts by name.
        tensors: by key, of any shape, dtype and device; dtypes and shapes count too.
    """
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode() + b"\n")
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
