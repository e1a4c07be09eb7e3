"""A trained network made smaller: fewer channels, lower ranks, or another network that learns from it.

`plan` says what will be trained, `compress` trains it as `train` does and measures both, in turn. What is left of a
network is part of its configuration (`models.shrink`), so that the result is a run like any other.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet import api, checkpoint, data, devices, evaluate, models, origin, runs, splits, start
from budgetnet.classifier import Classifier
from budgetnet.config import Config, DistillConfig, ModelConfig
from budgetnet.errors import ConfigError
from budgetnet.files import atomic_write
from budgetnet.logits import predict_logits
from budgetnet.models import shrink
from budgetnet.progress import Progress
from budgetnet.recipe import config_from_record, load_recipe
from budgetnet.runfiles import CONFIG, SUMMARY, WEIGHTS

RECORD = "compressed.json"
BATCHES = {1: 100, 64: 15}
"""Images at a time that are timed, and how often, the original and the smaller one in turn."""
_WARM_UP = 2
_SHARE = 4  # of the original's epochs, one in so many
_RATE = 1 / 3  # of its learning rate: less is unlearnt of what is there already
_OWN = ("start", "model")  # options that are this command's to set
_DATA = ("dataset", "image_size", "val_size", "split_seed", "train_size", "train_on_test")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for."""

    model: Path
    """A run folder or a model file, which says how it was trained."""
    sparsity: float | None = None
    """The share of the channels inside blocks that go, in [0, 1)."""
    rank: float | None = None
    """The rank of convolutions as a share of the full one, in (0, 1]; after the channels have gone."""
    student: Path | None = None
    """Instead: a recipe, whose network learns from the model."""
    options: Sequence[str] = field(default_factory=list)
    """Further options of the recipe, as the command line has them."""

    def __post_init__(self) -> None:
        smaller = self.sparsity is not None or self.rank is not None
        if self.student is not None and smaller:
            raise ConfigError(
                "--distill-into trains another network, --sparsity and --rank make this one smaller: give the one or "
                "the others (which learn from the model too with --distill.teachers)"
            )
        if self.student is None and not smaller:
            raise ConfigError(
                f"what shall become of {self.model}? give --sparsity or --rank, or both, or --distill-into RECIPE"
            )
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ConfigError(f"sparsity is {self.sparsity:g}, expected a share of the channels in [0, 1)")
        if self.rank is not None and not 0 < self.rank <= 1:
            raise ConfigError(f"rank is {self.rank:g}, expected a share of the full rank in (0, 1]")


def plan(request: Request) -> tuple[Classifier, Config]:
    """The original, and what is to be trained.

    A smaller network is trained by the recipe of the original, for a quarter of its epochs at a third of its learning
    rate, its schedule squeezed, unless options say otherwise; a student by its own recipe. Both hold out the images
    that the original did.

    Raises:
        CheckpointError: the model is missing or damaged.
        ConfigError: it does not say how it was trained, cannot be made smaller in this way, or would not be smaller;
            or options that do not go together.
    """
    place = checkpoint.located(request.model)
    path = checkpoint.weights_file(place)
    original = checkpoint.load_classifier(path)
    trained, recipe = origin.trained_on(path, original), original.provenance.get("config")
    if not trained or not isinstance(recipe, dict):
        raise ConfigError(f"{request.model} does not say how it was trained: give a finished run")
    given = {option[2:].partition("=")[0].replace("-", "_") for option in request.options if option.startswith("--")}
    name = str(place if path.name == WEIGHTS else path)
    if request.student is None:
        if own := sorted(key for key in given if key.partition(".")[0] in _OWN):
            raise ConfigError(f"--{own[0]} is given, but the network and its weights are those of {request.model}")
        before, config = (config_from_record(recipe, str(path), more) for more in ((), request.options))
        config = _for_less_time(config, before, given, name)
        config = replace(config, model=_smaller(request, original))
    else:
        if "distill.teachers" in given or "distill" in given:
            raise ConfigError(f"--distill-into makes {request.model} the teacher: leave out --distill.teachers")
        known = {key: recipe[key] for key in _DATA if key in recipe and key not in given}
        same = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in known.items()]
        teacher = f"--distill.teachers={json.dumps([name])}"
        config = load_recipe(request.student, [*same, teacher, *request.options])
    model = models.check_budget(
        config.model, len(original.classes), budget=config.budget, image_size=original.image_size
    )
    with torch.device("meta"):
        count = models.count_parameters(models.build(model, len(original.classes), image_size=original.image_size))
    if count >= original.parameters:
        raise ConfigError(
            f"{request.model} has {original.parameters:,} parameters, and {count:,} would be no fewer: "
            + ("choose a smaller network" if request.student else "give more --sparsity, or less --rank")
        )
    return original, replace(config, model=model)


def _for_less_time(config: Config, before: Config, given: set[str], name: str) -> Config:
    """The recipe for weights that are trained already, but for what the options say."""
    epochs = config.epochs if "epochs" in given else max(1, math.ceil(before.epochs / _SHARE))
    share, schedule, optimizer = epochs / before.epochs, config.schedule, config.optimizer
    if not any(key.startswith("schedule") for key in given):
        times = {key: share * getattr(schedule, key) for key in ("warmup", "period")}
        schedule = replace(schedule, **times, milestones=[share * epoch for epoch in schedule.milestones])
    if "optimizer.lr" not in given and "optimizer" not in given:
        optimizer = replace(optimizer, lr=_RATE * optimizer.lr)
    # Whoever taught the original may be gone.
    distill = config.distill if any(key.startswith("distill") for key in given) else DistillConfig()
    return replace(config, epochs=epochs, schedule=schedule, optimizer=optimizer, distill=distill, start=name)


def _smaller(request: Request, original: Classifier) -> ModelConfig:
    """The configuration of what is left of the original."""
    config, network = original.model, original.network
    if shrink.is_factored(network):
        raise ConfigError(
            f"{request.model} is factored already (--rank): give what it was made from, and both --sparsity and --rank"
        )
    if request.sparsity is not None:
        if not shrink.places(network):
            raise ConfigError(
                f"{config.name} has no channels that could go alone, without those of other layers: try --rank, or "
                "--distill-into RECIPE"
            )
        config = replace(config, channels=shrink.fewer_channels(network, request.sparsity))
    if request.rank is not None:
        with torch.device("meta"):
            narrowed = models.build(config, len(original.classes), image_size=original.image_size)
        ranks = shrink.lower_ranks(narrowed, request.rank)
        if not ranks:
            raise ConfigError(f"{config.name} has no convolutions that could be factored: try --distill-into RECIPE")
        config = replace(config, ranks=ranks)
    return config


def compress(
    request: Request,
    run: Path,
    *,
    folder: Path | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
    track: bool = True,
    report: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Make a model smaller, train it, and compare the two.

    Args:
        request: what is asked for.
        run: the run's folder, made here; one that the same request has begun goes on.
        folder: where the data is; None is `data.default_folder()`.
        device: where to train; None is the CPU, where times are measured in any case.
        progress: told of every step and epoch; None is silence.
        track: copy the record to MLflow, where that is installed.
        report: write report.html at the end.
        stop: asked after every step whether to save and leave.

    Returns:
        What compressed.json in the run's folder holds: `original` and `compressed` with their costs and scores,
        `latency`, and what was asked for.

    Raises:
        BudgetnetError: as `plan` and `train`.
    """
    device, progress = device or torch.device("cpu"), progress or Progress()
    original, config = plan(request)
    untrained = _untrained_accuracy(request, config, folder, progress)
    api.run_training(
        config,
        run,
        folder=folder,
        device=device,
        progress=progress,
        track=track,
        resume=(run / CONFIG).is_file(),
        report_wanted=report,
        stop=stop,
    )
    smaller = checkpoint.load(run, device="cpu")
    source = checkpoint.located(request.model)
    result = {
        "asked": {"sparsity": request.sparsity, "rank": request.rank, "distill_into": _text(request.student)},
        "options": [*request.options],
        "epochs": config.epochs,
        "original": {"model": str(source), **_described(source, original)},
        "compressed": {"model": str(run), **_described(run, smaller), "val_accuracy_untrained": untrained},
        "latency": latency(original, smaller),
        "hardware": devices.hardware(torch.device("cpu")),
    }
    atomic_write(run / RECORD, (json.dumps(result, indent=2) + "\n").encode())
    return result


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _untrained_accuracy(request: Request, config: Config, folder: Path | None, progress: Progress) -> float | None:
    """Validation accuracy of the smaller network as training finds it, where it has weights and images are held out."""
    if request.student is not None or not config.val_size:
        return None
    dataset = data.load(config.dataset, folder, config.image_size, progress=progress.download, decoding=progress.decode)
    network = models.build(config.model, len(dataset.classes), image_size=config.image_size)
    labels = dataset.train.targets
    indices, held_out = splits.split(labels, config.val_size, config.split_seed, config.train_size)
    start.load(network, config, dataset, indices)
    logits = predict_logits(network.eval(), dataset.train.images[held_out], dataset.mean, dataset.std)
    return evaluate.score(logits, labels[held_out]).accuracy


def _described(path: Path, classifier: Classifier) -> dict[str, Any]:
    """What a network costs, and what its training said of its scores: no test image is looked at for it."""
    test = None
    if path.is_dir() and (path / SUMMARY).is_file():
        test = runs.read(path).find("final.test_accuracy", float)
    accuracy = classifier.provenance.get("val_accuracy")
    return {
        "network": classifier.model.name,
        "parameters": classifier.parameters,
        "multiply_adds": models.multiply_adds(classifier.network, classifier.image_size),
        "bytes": checkpoint.weights_file(path).stat().st_size,
        "val_accuracy": accuracy if isinstance(accuracy, float) else None,
        "test_accuracy": test,
    }


def latency(original: Classifier, smaller: Classifier) -> dict[str, dict[str, float]]:
    """Milliseconds on this CPU, by the engine that `predict` uses there, for each of `BATCHES`.

    Original and smaller one are timed in turn, and of each its fastest call counts, as whatever else the machine does
    only adds; `times_as_fast` is their ratio.
    """
    found = {}
    for batch, rounds in BATCHES.items():
        images = torch.randn((batch, *original.image_shape), generator=torch.Generator().manual_seed(0))
        times = [
            [_milliseconds(each.computer, images) for each in (original, smaller)] for _ in range(_WARM_UP + rounds)
        ]
        before, after = (min(column) for column in zip(*times, strict=True))
        found[str(batch)] = {"original": before, "compressed": after, "times_as_fast": before / after}
    return found


@torch.no_grad()
def _milliseconds(compute: Callable[[Tensor], Tensor] | nn.Module, images: Tensor) -> float:
    started = time.perf_counter()
    compute(images)
    return 1000 * (time.perf_counter() - started)


def render(result: Mapping[str, Any]) -> str:
    """The comparison as a table of at most 80 columns."""
    before, after = result["original"], result["compressed"]
    costs = (
        ("parameters", "parameters", 1, ",.0f"),
        ("million mult-adds", "multiply_adds", 1e6, ",.1f"),
        ("file in MB", "bytes", 1e6, ".2f"),
    )
    rows = [
        (label, *(f"{of[key] / unit:{form}}" for of in (before, after)), f"{after[key] / before[key]:.1%}")
        for label, key, unit, form in costs
    ]
    bits = [16 if of["bytes"] < 3 * of["parameters"] else 32 for of in (before, after)]
    if bits[0] != bits[1]:  # so that their ratio says nothing of the networks
        rows[-1] = (*rows[-1][:3], f"in {bits[0]} and in {bits[1]} bits")
    for split in ("val", "test"):
        was, now = before[f"{split}_accuracy"], after[f"{split}_accuracy"]
        said = f"{100 * (now - was):+.2f} points" if was is not None and now is not None else ""
        if split == "val" and after["val_accuracy_untrained"] is not None:
            said += f" (at first {after['val_accuracy_untrained']:.2%})"
        name = {"val": "validation", "test": "test"}[split]
        rows.append((f"{name} accuracy", *("-" if of is None else f"{of:.2%}" for of in (was, now)), said))
    for batch, took in result["latency"].items():
        times = (f"{took[key]:.2f}" for key in ("original", "compressed"))
        name = "ms, 1 image" if batch == "1" else f"ms, {batch} images"
        rows.append((name, *times, f"{took['times_as_fast']:.1f} times as fast"))
    widths = [max(len(row[i]) for row in [*rows, ("", "original", "compressed", "")]) for i in range(3)]
    lines = [f"{'':<{widths[0]}}  {'original':>{widths[1]}}  {'compressed':>{widths[2]}}"]
    lines += [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    return "\n".join(lines)
