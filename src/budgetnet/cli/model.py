"""The model that a command is given: its options, its data, what computes it, and what is done at test time."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.cli.common import path, progress_on, warn
from budgetnet.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from budgetnet.classifier import Classifier
    from budgetnet.data import Dataset
    from budgetnet.engine import Engine
    from budgetnet.evaluate import Scores
    from budgetnet.robustness import Cell


CHECKPOINT = (
    "run folder, model file, models:/NAME@ALIAS or /VERSION (MLflow), checkpoint of the reference project, or box: the "
    "model that budgetnet brings"
)


def add_model(command: ArgumentParser) -> None:
    """The model, and where it runs."""
    command.add_argument("checkpoint", type=path, help=CHECKPOINT)
    add_device(command)


def add_device(command: ArgumentParser) -> None:
    """Where the model runs, and what its file may not say."""
    command.add_argument("--model", metavar="NAME", help="network of a checkpoint of the reference project")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default auto)")


def add_data(command: ArgumentParser) -> None:
    """The data."""
    command.add_argument("--data", type=path, metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, cache)")
    command.add_argument(
        "--dataset", choices=("cifar10", "cifar100", "folder", "digits"), help="default: what the model was trained on"
    )


def add_engine(command: ArgumentParser, *, precision: bool = True) -> None:
    """What computes, and with `precision` in which arithmetic."""
    command.add_argument(
        "--engine",
        choices=("auto", "onnx", "torch"),
        default="auto",
        help="what computes: ONNX Runtime (on the CPU) or PyTorch (default auto: the faster of those that are there)",
    )
    if not precision:
        command.set_defaults(precision="fp32")
        return
    command.add_argument(
        "--precision",
        choices=("fp32", "int8"),
        default="fp32",
        help="int8 is faster; it is calibrated on training images (--data), and what it costs in accuracy is told",
    )


def add_remedies(command: ArgumentParser) -> None:
    """What is done at test time."""
    command.add_argument(
        "--tta", choices=("none", "flip", "flip-shift", "crops"), default="none", help="views to average: 1, 2, 6 or 18"
    )
    command.add_argument(
        "--view-weights",
        type=_view_weights,
        metavar="fit|W,W",
        help="what groups of views count for (the image, then those moved), or what fits the validation split (--data)",
    )
    command.add_argument(
        "--norm-statistics",
        choices=("source", "target"),
        default="source",
        help="of batch norms: those that training left, or those of the images at hand, without labels",
    )
    command.add_argument(
        "--norm-prior", type=int, metavar="N", help="with target: training's statistics count as N images (default 0)"
    )
    command.add_argument(
        "--temperature",
        type=_temperature,
        metavar="fit|T",
        help="divide logits by T, 0.01 to 100, or by what fits the validation split best (--data)",
    )


def _temperature(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if text != "fit" and not 0.01 <= value <= 100:  # by less, logits become infinite, and probabilities no numbers
        raise ArgumentTypeError(f"found {text!r}, expected fit or a number from 0.01 to 100")
    return value or text


def _view_weights(text: str) -> list[float] | str:
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if text != "fit" and not (all(0 <= weight < float("inf") for weight in weights) and sum(weights) > 0):
        raise ArgumentTypeError(f"found {text!r}, expected fit, or numbers of 0 and above such as 1,3")
    return weights or text


def classifier_of(options: Namespace) -> Classifier:
    """The model, on the device that it shall run on.

    Raises:
        ConfigError: the engine, the precision and the device do not go together.
        CheckpointError: there is no such model, or it is damaged.
    """
    if options.precision == "int8" and options.engine == "torch":
        raise ConfigError("--precision int8 is computed by ONNX Runtime: leave out --engine torch")
    on_cpu = options.engine == "onnx" or options.precision == "int8"
    if on_cpu and options.device not in ("auto", "cpu"):
        raise ConfigError(f"ONNX Runtime, and so int8, computes on the CPU: leave out --device {options.device}")
    return load_model(options.checkpoint, options.model, "cpu" if on_cpu else options.device)


def load_model(what: Path, model: str | None, device: str = "cpu") -> Classifier:
    """The model that a run folder, a file or a name in MLflow's registry holds."""
    from budgetnet import checkpoint, registry

    if not registry.is_registered(what):
        return checkpoint.load(what, model=model, device=device)
    with registry.fetched(what) as path:
        return checkpoint.load(path, model=model, device=device)


def dataset_of(options: Namespace, classifier: Classifier, trained: dict[str, Any]) -> Dataset:
    """The data that the options name, else what the model was trained on, with the classes that it knows."""
    from budgetnet import data, origin

    progress = progress_on(options.json, sys.stderr)
    try:
        name = options.dataset or trained.get("dataset", "cifar10")
        dataset = data.load(
            name, options.data, classifier.image_size, progress=progress.download, decoding=progress.decode
        )
    finally:
        progress.end()
    origin.require_classes(options.checkpoint, classifier, dataset)
    return dataset


def computing_network(options: Namespace, classifier: Classifier, *, quiet: bool = False) -> torch.nn.Module | Engine:
    """What computes in fp32: an engine, or the network itself."""
    from budgetnet import engine

    if options.engine == "onnx" or options.precision == "int8":
        return engine.compile_network(classifier.network, classifier.image_shape)
    if options.engine == "torch":
        return classifier.network
    if classifier.device.type == "cpu" and not engine.available() and not quiet:
        warn("onnx and onnxruntime are not installed, so PyTorch computes, which takes several times as long")
    return classifier.computer


def computed_by(network: torch.nn.Module | Engine) -> dict[str, str]:
    """What the result says of its arithmetic."""
    from budgetnet.engine import Engine

    if isinstance(network, Engine):
        return {"engine": "onnx", "arithmetic": network.precision}
    return {"engine": "torch", "arithmetic": "fp32"}


def logits_of(
    network: torch.nn.Module | Engine,
    classifier: Classifier,
    pixels: torch.Tensor,
    options: Namespace,
    shares: Sequence[float] | None = None,
) -> torch.Tensor:
    """(n, classes) of uint8 pixels, by the views that were asked for."""
    from budgetnet.logits import predict_logits

    return predict_logits(network, pixels, classifier.mean, classifier.std, tta=options.tta, shares=shares)


def check_remedies(options: Namespace) -> None:
    """Refuse remedies that make no sense together.

    Raises:
        ConfigError: names the option that is out of place or out of range.
    """
    from budgetnet.logits import SHIFTS

    target = options.norm_statistics == "target"
    if options.norm_prior is not None and not target:
        raise ConfigError("--norm-prior is for --norm-statistics target: give both, or leave it out")
    if (options.norm_prior or 0) < 0:
        raise ConfigError(f"--norm-prior is {options.norm_prior}, expected 0 or more images")
    groups = len(SHIFTS.get(options.tta, []))
    if options.view_weights is not None and groups < 2:
        raise ConfigError("--view-weights are for --tta flip-shift or crops: give one of them, or leave them out")
    if isinstance(options.view_weights, list) and len(options.view_weights) != groups:
        raise ConfigError(
            f"--view-weights are {len(options.view_weights)} numbers, expected {groups}, one a group of views of "
            f"--tta {options.tta}"
        )
    if target and options.precision == "int8":
        raise ConfigError(
            "int8 is calibrated for the norm statistics that training left: leave out --precision int8 or "
            "--norm-statistics target"
        )


@dataclass(frozen=True)
class Prepared:
    """A model that is ready for images, in the arithmetic and with the remedies that were asked for."""

    exact: torch.nn.Module | Engine
    """What computes in fp32."""
    network: torch.nn.Module | Engine
    """What computes in the arithmetic asked for; the same, if that is fp32."""
    remedies: list[dict[str, Any]]
    """What is done at test time."""
    classify: Callable[[torch.Tensor], list[torch.Tensor]]
    """From uint8 pixels (n, c, h, w) to their logits (n, classes): without any remedy, and after each."""


def prepare(options: Namespace, classifier: Classifier, dataset: Dataset | None, trained: dict[str, Any]) -> Prepared:
    """Compile the network, quantise it and fit remedies, as the options say; `dataset` is there where that needs it."""
    from budgetnet import origin

    network = exact = computing_network(options, classifier)
    if options.precision == "int8":
        assert dataset is not None
        network = origin.quantize(classifier, dataset, trained)
    remedies, classify = _remedied(options, classifier, network, dataset, trained)
    return Prepared(exact, network, remedies, classify)


def _remedied(
    options: Namespace,
    classifier: Classifier,
    network: torch.nn.Module | Engine,
    dataset: Dataset | None,
    trained: dict[str, Any],
) -> tuple[list[dict[str, Any]], Callable[[torch.Tensor], list[torch.Tensor]]]:
    """The `remedies` and `classify` of what is prepared."""
    stages = _Stages(options, classifier, network)
    remedies: list[dict[str, Any]] = []
    if options.view_weights is not None:
        remedies.append(_weigh_views(stages, dataset, trained))
    if options.norm_statistics == "target":
        remedies.append({"remedy": "norm statistics", "prior": options.norm_prior or 0})
    if options.temperature is not None:
        remedies.append(_temper(stages, dataset, trained))
    return remedies, stages


@dataclass
class _Stages:
    """Of uint8 pixels, the logits (n, classes) without any remedy, and those after each."""

    options: Namespace
    classifier: Classifier
    network: torch.nn.Module | Engine
    shares: list[float] | None = None
    """What each group of views counts for, where that is one of the remedies."""
    temperature: float | None = None
    """What logits are divided by, likewise."""

    def __call__(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        options, classifier = self.options, self.classifier
        if self.shares:
            groups = self.groups(pixels)
            found = [self.usual(groups), _mixed(groups, self.shares)]
        else:
            found = [logits_of(self.network, classifier, pixels, options)]
        if options.norm_statistics == "target":
            found.append(self._by_own_statistics(pixels))
        if self.temperature is not None:
            found.append(found[-1] / self.temperature)
        return found

    def groups(self, pixels: torch.Tensor) -> torch.Tensor:
        """(groups, n, classes): the logits by each group of views alone, from which those by any shares follow."""
        import torch

        from budgetnet.logits import SHIFTS

        each = torch.eye(len(SHIFTS[self.options.tta])).tolist()
        return torch.stack([logits_of(self.network, self.classifier, pixels, self.options, alone) for alone in each])

    def usual(self, groups: torch.Tensor) -> torch.Tensor:
        """The logits by the shares that groups have unless told otherwise."""
        from budgetnet.logits import SHARES

        return _mixed(groups, SHARES[self.options.tta])

    def _by_own_statistics(self, pixels: torch.Tensor) -> torch.Tensor:
        from budgetnet.remedies import adapted

        options, classifier = self.options, self.classifier
        own = adapted(classifier.network, pixels, classifier.mean, classifier.std, options.norm_prior or 0)
        compiled = computing_network(options, replace(classifier, network=own), quiet=True)
        return logits_of(compiled, classifier, pixels, options, self.shares)


def _mixed(groups: torch.Tensor, shares: Sequence[float]) -> torch.Tensor:
    import torch

    found: torch.Tensor = torch.tensordot(torch.tensor(shares), groups, 1)
    return found


def _weigh_views(stages: _Stages, dataset: Dataset | None, trained: dict[str, Any]) -> dict[str, Any]:
    """Give the groups of views the shares that the options name, or that fit the validation split."""
    from budgetnet.remedies import fit_shares

    weights = stages.options.view_weights
    if weights != "fit":
        stages.shares = [weight / sum(weights) for weight in weights]
        return {"remedy": "views", "shares": stages.shares}
    pixels, labels = _to_fit("--view-weights", stages.options, dataset, trained)
    groups = stages.groups(pixels)
    stages.shares = fit_shares(groups, labels)
    told = _fitted(stages.usual(groups), _mixed(groups, stages.shares), labels)
    return {"remedy": "views", "shares": stages.shares, "fitted": told}


def _temper(stages: _Stages, dataset: Dataset | None, trained: dict[str, Any]) -> dict[str, Any]:
    """Divide the logits by what the options name, or by what fits the validation split."""
    from budgetnet.remedies import fit_temperature

    temperature = stages.options.temperature
    if temperature != "fit":
        stages.temperature = temperature
        return {"remedy": "temperature", "temperature": temperature}
    pixels, labels = _to_fit("--temperature", stages.options, dataset, trained)
    logits = stages(pixels)[-1]
    stages.temperature = fit_temperature(logits, labels)
    told = _fitted(logits, logits / stages.temperature, labels)
    return {"remedy": "temperature", "temperature": stages.temperature, "fitted": told}


def _fitted(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """What fitting a remedy did for the images that it was fitted on."""
    from budgetnet import evaluate

    one, other = (brief(evaluate.score(logits, labels)) for logits in (before, after))
    return {"split": "val", "images": len(labels), "before": one, "after": other}


def _to_fit(
    what: str, options: Namespace, dataset: Dataset | None, trained: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and labels of the images that the model was chosen by."""
    from budgetnet import origin

    assert dataset is not None
    _, validation = origin.known_split(dataset, trained)
    if not len(validation):
        raise ConfigError(
            f"{what} fit needs a validation split, and none of {options.checkpoint} is known in these data: give "
            "a number"
        )
    return dataset.train.images[validation], dataset.train.targets[validation]


def fits(options: Namespace) -> bool:
    """Whether something is fitted on validation images."""
    return "fit" in (options.temperature, options.view_weights)


def brief(scores: Scores | Cell) -> dict[str, float]:
    """Three figures of many."""
    return {"accuracy": scores.accuracy, "loss": scores.loss, "ece": scores.ece}


def int8_cost(exact: torch.Tensor, quantized: torch.Tensor, labels: torch.Tensor, split: str) -> dict[str, Any]:
    """What quantisation costs on these images.

    Args:
        exact: float (n, classes), logits in float32.
        quantized: the same in int8.
        labels: int64 (n,).
        split: where the images are from.

    Returns:
        Both accuracies in [0, 1], percentage points lost (below 0: won), and the share of predictions that changed.
    """
    from budgetnet import evaluate

    before, after = (evaluate.score(logits, labels).accuracy for logits in (exact, quantized))
    return {
        "split": split,
        "images": len(labels),
        "fp32_accuracy": before,
        "int8_accuracy": after,
        "points_lost": round(100 * (before - after), 9),  # the difference has digits that the two have not
        "predictions_changed": (exact.argmax(1) != quantized.argmax(1)).double().mean().item(),
    }


def int8_line(cost: dict[str, Any]) -> str:
    """What quantisation costs, as text for people, at most 80 columns wide."""
    before, after = cost["fp32_accuracy"], cost["int8_accuracy"]
    return (
        f"int8 instead of fp32 on {cost['images']:,} images of the {cost['split']} split:\n"
        f"  accuracy {before:.2%} -> {after:.2%} ({100 * (after - before):+.2f} points), "
        f"{cost['predictions_changed']:.2%} of predictions changed"
    )
