"""A classifier as a file for elsewhere, which is loaded again and compared with the original before it is kept."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetnet import browser, checkpoint, deployed, files, hub, origin
from budgetnet.classifier import Classifier
from budgetnet.data import Dataset
from budgetnet.deployed import Format, Function, Precision
from budgetnet.errors import BudgetnetError, ConfigError, WriteError, first_line, reason

PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "torch": ("fp32", "fp16"),
    "safetensors": ("fp32", "fp16"),
    "openvino": ("fp32", "fp16", "int8"),
    "hub": ("fp32", "fp16"),
}
"""What each format is written in."""
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "openvino": ".xml", "hub": ""}
_NEEDED = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "onnxruntime", "openvino")}

BATCHES = (1, 7)
"""Images at a time that a file is tried with: one, and more than one, that fill no vector evenly."""
_ALONE = 70  # images that are given one at a time too
_ROUNDS = 15  # of timing, each of the original and the file in turn
# Of a probability. Sums in another order make some 1e-6; weights of 11 bits were seen to make 2e-3.
_CLOSE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.05, "int8": 1.0}
_LEAST_AGREEMENT: dict[Precision, float] = {"fp32": 0.99, "fp16": 0.98, "int8": 0.9}
PAGE = "index.html"
PAGE_HINT = f"to see {{folder}}/{PAGE}: cd {{folder}} && npm install {browser.RUNTIME} && python -m http.server"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Medians of so many rounds, original and file in turn; milliseconds a call, and the ratio within a round."""

    original: float
    """Of PyTorch."""
    exported: float
    """Of the file."""
    times_as_fast: float
    """The original's time over the file's."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A file of some format, as it was loaded again, beside the original as PyTorch computes it in float32."""

    format: Format
    precision: Precision
    """Of its weights; see `export`."""
    images: int
    """Real images that both were asked about."""
    split: str
    """Which: val or test."""
    largest_difference: dict[int, float]
    """Of any probability, by the images at a time."""
    agreement: float
    """Share of the images that both put into the same class."""
    original_accuracy: float
    """Share of the images that the original classifies right."""
    accuracy: float
    """The same of the file."""
    points_lost: float
    """Percentage points of accuracy that the file is worse by; below 0 where it is better."""
    original_bytes: int
    """Of the weights in float32."""
    bytes: int
    """Of all files together."""
    latency: dict[int, Latency]
    """By the images at a time."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


def export(
    classifier: Classifier,
    source: Path,
    output: Path,
    dataset: Dataset,
    *,
    form: Format = "onnx",
    precision: Precision = "fp32",
    split: str | None = None,
    limit: int | None = 1000,
    most_lost: float = 1.0,
    page: bool = False,
) -> Comparison:
    """Write a classifier in a format that others load, and keep it only if it says what the original says.

    The files are written beside their place, loaded again and compared with the original on real images, some one and
    all seven at a time; only then they take their place. After a failure nothing is left, and what was there before
    stays.

    - onnx: uint8 `images` (n, side, side, 3) -> float32 `probabilities` (n, classes), any n. Metadata has `classes`.
    - torch: the same function as a program of `torch.export` (.pt2); `about.json` in it has the classes.
    - safetensors: a model file, which `budgetnet.load` reads.
    - openvino: the same function as OpenVINO's .xml and .bin; the runtime information has the classes.
    - hub: a folder that huggingface_hub can upload: a model file, its configuration, a card.

    fp16 keeps weights in 16 bits and computes in 32. int8 computes convolutions in 8-bit integers, calibrated on
    training images: see `engine.compile_network`.

    Args:
        classifier: what is written; on the CPU.
        source: where it was read from, for messages and for the figures on the card.
        output: the file, or the new or empty folder for hub.
        dataset: of the classes that the classifier knows: images to calibrate on and to compare with.
        form: the format.
        precision: of weights and arithmetic; not every format has every one.
        split: val or test, whose images are compared; None is val where the model was chosen by some, else test.
        limit: of so many of them, each class in its share; None is all.
        most_lost: percentage points of accuracy, 0 or more, that the file may be worse by.
        page: for onnx: write index.html beside the file, which classifies pictures in the browser by it.

    Raises:
        BudgetnetError: the file differs from the original by more than it may, or cannot be written.
        ConfigError: options that make no sense together, or a package that is missing.
        DataError: the data has other classes.
    """
    check(form, precision, source, output, most_lost, page)
    origin.require_classes(source, classifier, dataset)
    trained = origin.trained_on(source, classifier)
    pixels, labels, split = _chosen(source, dataset, trained, split, limit)
    calibration = origin.calibration_images(classifier, dataset, trained).numpy() if precision == "int8" else None
    if not output.parent.is_dir():
        raise WriteError(f"cannot write {output}: there is no folder {output.parent}; create it or choose another")
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".") as folder:
        written = Path(folder) / (output.name if form != "hub" else "hub")
        try:
            load = _write(written, classifier, source, form, precision, calibration)
            if page:
                browser.write(Path(folder) / PAGE, output.name, classifier)
            exported = load(written)
        except BudgetnetError:
            raise
        except OSError as error:
            raise WriteError(f"cannot write {output}: {reason(error)}") from error
        except Exception as error:  # exporters raise whatever they meet first
            raise BudgetnetError(
                f"{output} is not written: {form} cannot hold this network ({first_line(error)})"
            ) from error
        parts = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in parts if path.name != PAGE)
        compared = compare(classifier, exported, pixels, labels, form=form, precision=precision, split=split, size=size)
        require_likeness(compared, output, most_lost)
        place = output.parent
        if form == "hub":
            place = output
            files.make_folder(place)
        for path in parts:
            with files.replacing(place / path.name) as part:
                shutil.copyfile(path, part)
    return compared


def check(form: Format, precision: Precision, source: Path, output: Path, most_lost: float, page: bool) -> None:
    """Refuse what makes no sense, before any work.

    Raises:
        ConfigError: options that exclude each other, a package that is missing, a name that says something else or is
            that of the model itself.
    """
    if precision not in PRECISIONS[form]:
        raise ConfigError(f"--format {form} is written in {' or '.join(PRECISIONS[form])}, not in {precision}")
    if missing := [package for package in _NEEDED.get(form, ()) if find_spec(package) is None]:
        raise ConfigError(f"--format {form} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if not most_lost >= 0:
        raise ConfigError(f"--max-loss is {most_lost:g}, expected 0 or more percentage points")
    if page and form != "onnx":
        raise ConfigError(f"--page shows a file of --format onnx, not of {form}: leave out --page")
    if form == "hub":
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ConfigError(f"{output} is there and not an empty folder: choose another --output")
    elif output.suffix != _SUFFIXES[form]:
        raise ConfigError(f"--output is {output}, expected a name that ends in {_SUFFIXES[form]} for --format {form}")
    beside = [output.with_suffix(".bin")] if form == "openvino" else [output.parent / PAGE] if page else []
    files.require_apart([output, *beside], checkpoint.files_of(source))


def _chosen(
    source: Path, dataset: Dataset, trained: dict[str, Any], split: str | None, limit: int | None
) -> tuple[Tensor, Tensor, str]:
    """The images to compare with, uint8 (n, c, h, w), their labels, and of which split they are."""
    from budgetnet import splits

    _, validation = origin.known_split(dataset, trained)
    split = split or ("val" if len(validation) else "test")
    if split == "val" and not len(validation):
        raise ConfigError(f"no validation images of {source} are known in these data: give --split test")
    images = dataset.test if split == "test" else dataset.train
    indices = torch.arange(len(images)) if split == "test" else validation
    if limit is not None and limit < len(indices):
        if limit < 1:
            raise ConfigError(f"--limit is {limit}, expected 1 or more images")
        indices = indices[splits.split(images.targets[indices], limit, 0)[1]]
    return images.images[indices], images.targets[indices], split


def _write(
    path: Path,
    classifier: Classifier,
    source: Path,
    form: Format,
    precision: Precision,
    calibration: NDArray[np.float32] | None,
) -> Callable[[Path], Function]:
    """Write the file, and say what loads it."""
    if form == "torch":
        deployed.save_torch(path, classifier, precision)
        return deployed.load_torch
    if form == "onnx":
        path.write_bytes(deployed.to_onnx(classifier, precision, calibration))
        return deployed.load_onnx
    if form == "openvino":  # which narrows weights itself
        model = deployed.to_onnx(classifier, "int8" if precision == "int8" else "fp32", calibration)
        deployed.save_openvino(path, classifier, model, precision)
        return deployed.load_openvino
    if form == "hub":
        path.mkdir()
        hub.write(path, classifier, source, narrow=precision == "fp16")
    else:
        checkpoint.save_classifier(path, classifier, narrow=precision == "fp16")
    return deployed.load_safetensors


def compare(
    classifier: Classifier,
    exported: Function,
    pixels: Tensor,
    labels: Tensor,
    *,
    form: Format,
    precision: Precision,
    split: str,
    size: int,
) -> Comparison:
    """Ask the original and a file about the same images.

    Args:
        classifier: the original.
        exported: the file, loaded.
        pixels: uint8 (n, c, h, w), n >= 1.
        labels: int64 (n,).
        form: of the file.
        precision: of the file.
        split: of the images.
        size: of the file, in bytes.
    """
    images = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    original = deployed.computed_by_torch(classifier)
    expected = _in_batches(original, images, 64)
    seven, alone = _in_batches(exported, images, BATCHES[1]), _in_batches(exported, images[:_ALONE], BATCHES[0])
    right = [(said.argmax(1) == labels.numpy()).mean() for said in (expected, seven)]
    return Comparison(
        format=form,
        precision=precision,
        images=len(images),
        split=split,
        largest_difference={
            BATCHES[0]: float(abs(alone - expected[: len(alone)]).max()),
            BATCHES[1]: float(abs(seven - expected).max()),
        },
        agreement=float((seven.argmax(1) == expected.argmax(1)).mean()),
        original_accuracy=float(right[0]),
        accuracy=float(right[1]),
        points_lost=round(100 * float(right[0] - right[1]), 9),
        original_bytes=sum(value.nbytes for value in classifier.network.state_dict().values()),
        bytes=size,
        latency={batch: _latency(original, exported, images[:batch]) for batch in BATCHES},
    )


def _in_batches(function: Function, images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    return np.concatenate([function(images[start : start + size]) for start in range(0, len(images), size)])


def _latency(original: Function, exported: Function, images: NDArray[np.uint8]) -> Latency:
    """In turn, so that whatever else the machine does meets both."""
    times: list[tuple[float, float]] = []
    for _ in range(2 + _ROUNDS):
        before = time.perf_counter()
        original(images)
        between = time.perf_counter()
        exported(images)
        times.append((1000 * (between - before), 1000 * (time.perf_counter() - between)))
    measured = times[2:]  # the first ones warm up
    return Latency(
        original=statistics.median(a for a, _ in measured),
        exported=statistics.median(b for _, b in measured),
        times_as_fast=statistics.median(a / b for a, b in measured),
    )


def require_likeness(compared: Comparison, output: Path, most_lost: float) -> None:
    """Refuse a file that is not what it was made from.

    Raises:
        BudgetnetError: says by how much it differs, and by how much it may.
    """
    precision, largest = compared.precision, float(np.max([*compared.largest_difference.values()]))
    wrong = ""
    if not largest <= _CLOSE[precision]:  # NaN neither
        wrong = f"a probability differs by {largest:.3g}, expected at most {_CLOSE[precision]:g}"
    elif compared.agreement < _LEAST_AGREEMENT[precision]:
        least = _LEAST_AGREEMENT[precision]
        wrong = f"{compared.agreement:.2%} of the images are of the same class, expected {least:.0%} or more"
    elif compared.points_lost > most_lost:
        wrong = (
            f"it loses {compared.points_lost:.2f} points of accuracy ({compared.original_accuracy:.2%} -> "
            f"{compared.accuracy:.2%}), expected at most {most_lost:g}"
        )
    if wrong:
        raise BudgetnetError(
            f"{output} is not written: loaded again, on {compared.images:,} images of the {compared.split} split, "
            f"{wrong}; choose another --precision{', or --max-loss' if 'loses' in wrong else ''}"
        )


def render(compared: Comparison, output: Path) -> str:
    """A comparison for people."""
    lines = [
        f"{output}: {compared.format}, {compared.precision}, {compared.bytes / 1e6:.2f} MB "
        f"(float32 weights: {compared.original_bytes / 1e6:.2f})",
        f"loaded again, on {compared.images:,} images of the {compared.split} split:",
        f"  accuracy {compared.original_accuracy:.2%} -> {compared.accuracy:.2%} "
        f"({0 - compared.points_lost:+.2f} points), {compared.agreement:.2%} in the same class",
    ]
    for batch in BATCHES:
        took = compared.latency[batch]
        lines.append(
            f"  {batch} image{'s' if batch > 1 else ' '} at a time   probabilities differ by up to "
            f"{compared.largest_difference[batch]:.1e}; {took.exported:.2f} ms, PyTorch {took.original:.2f} ms "
            f"({took.times_as_fast:.1f} times as fast)"
        )
    return "\n".join(lines)
