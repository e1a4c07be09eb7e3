"""Which network for a budget: candidates that fill it, halved again and again by validation accuracy.

`propose` lists networks (family x depth x groups, each as wide as the budget allows), `fit` drops those that are too
dear, trains the others briefly, keeps the better half for twice as long, and so on (successive halving, Jamieson and
Talwalkar 2016, arXiv:1502.07943). No test image is looked at.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from budgetnet import data, devices, engine, models, splits
from budgetnet.checkpoint import has_type
from budgetnet.config import (
    AugmentConfig,
    Config,
    DatasetName,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    model_from_dict,
    to_yaml,
)
from budgetnet.errors import ConfigError, FolderError, TrainingError
from budgetnet.files import atomic_write, replacing
from budgetnet.models.residual import ResidualArchitecture, uniform
from budgetnet.progress import Progress, duration
from budgetnet.train import train
from budgetnet.training import Training

T = TypeVar("T")

FULL = 0.75
"""A candidate uses at least this share of the budget: groups may be too coarse to use more."""

_WARM_UP, _RUNS = 5, 25  # of one image, for a latency


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for."""

    budget: int
    """Largest number of trainable parameters."""
    recipe: Config
    """How to train: all but the network, the budget and the epochs."""
    families: tuple[str, ...] = ()
    """Names out of `FAMILIES`; none is all."""
    multiply_adds: float | None = None
    """Most multiply-adds for one image."""
    latency_ms: float | None = None
    """Most milliseconds for one image, as `measure_latency` measures them."""
    epochs: int = 4
    """Epochs of every candidate in the first rung; 0 is no training."""
    minutes: float | None = None
    """Instead of equal epochs: minutes of training for every candidate in the first rung."""

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                raise ConfigError(f"{name} is not a family of networks, expected some of {', '.join(FAMILIES)}")
        for name, value in (("budget", self.budget), ("flops", self.multiply_adds), ("latency", self.latency_ms)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value:g}, expected a number above 0")
        if self.epochs < 0 or (self.minutes is not None and not self.minutes > 0):
            raise ConfigError(f"epochs is {self.epochs} and minutes {self.minutes}, expected 0 or more, and above 0")
        if self.recipe.val_size == 0 and self.epochs:
            raise ConfigError("val_size is 0, but networks are chosen by validation accuracy: hold out some images")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network that fills the budget."""

    name: str
    """Family, depths, groups and width, in short."""
    family: str
    """Its family."""
    model: ModelConfig
    """The network, as wide as that makes it."""
    parameters: int
    """Trainable parameters."""
    multiply_adds: int
    """Multiply-adds for one image."""
    latency_ms: float = 0.0
    """Median time of one image in milliseconds."""
    images_per_second: float | None = None
    """Speed of training, where that decides how many epochs it gets."""

    def epochs(self, request: Request, rung: int, images: int) -> int:
        """Its epochs in a rung (from 0), where the training set has so many images: each rung is twice the last."""
        if request.minutes is None or self.images_per_second is None:
            return int(request.epochs * 2**rung)
        return max(1, int(60 * request.minutes * 2**rung * self.images_per_second / images))


def _residual(block: str, depth: int, width: int, groups: int = 1, expansion: int = 1, **more: Any) -> ModelConfig:
    switches = {name: (value,) * 3 for name, value in {"groups": groups, **more}.items()}
    stages = uniform(block, (depth,) * 3, width, expansion, **switches)
    return ModelConfig(name="residual", stages=list(stages))


def _pyramid(depth: int) -> ModelConfig:
    # Six times as wide at the end as at the beginning, as with 84 channels added to 16.
    stages = _residual("pyramid", depth, 16).stages or []
    return ModelConfig(
        name="residual", stages=[replace(stage, width=16 + 28 * i, widen=28) for i, stage in enumerate(stages)]
    )


FAMILIES: dict[str, dict[str, ModelConfig]] = {
    "preact": {f"preact {n}-{n}-{n}": _residual("preact", n, 64) for n in (2, 3, 4, 6)},
    "bottleneck": {f"bottleneck {n}-{n}-{n}": _residual("bottleneck", n, 64, expansion=4) for n in (3, 6)},
    "resnext": {
        f"resnext {n}-{n}-{n} g{g}": _residual("bottleneck", n, 64, groups=g, expansion=4)
        for n in (3, 6)
        for g in (4, 16)
    },
    "pyramid": {f"pyramid {n}-{n}-{n}": _pyramid(n) for n in (6, 12, 18)},
    "shake": {f"shake {n}-{n}-{n}": _residual("shake", n, 32) for n in (2, 4)},
    "inverted": {f"inverted {n}-{n}-{n}": _residual("inverted", n, 64, expansion=6, se=24) for n in (2, 4)},
    "convnext": {f"convnext {n}-{n}-{n}": _residual("convnext", n, 64, expansion=4, activation="gelu") for n in (2, 4)},
    "enhanced": {"enhanced": ModelConfig(name="enhanced")},
    "whitened": {name: ModelConfig(name=name) for name in ("whitened_cnn", "whitened_cnn_large")},
}
"""By family: networks by their names, at widths that do not matter."""


def default_recipe(dataset: DatasetName, seed: int = 0) -> Config:
    """How candidates are trained unless told otherwise: one cycle of the learning rate, shifts, and mirror images.

    Raises:
        ConfigError: `dataset` is folder, of which nobody knows how large its images should be.
    """
    if dataset == "folder":
        raise ConfigError("the dataset folder needs a recipe with its image_size and val_size: give --recipe")
    digits = dataset == "digits"
    return Config(
        dataset=dataset,
        val_size=200 if digits else 5000,
        batch_size=64 if digits else 128,
        augment=AugmentConfig(crop_padding=3 if digits else 4, flip="none" if digits else "random"),
        optimizer=OptimizerConfig(lr=0.1, nesterov=True, decay_norms=False),
        schedule=ScheduleConfig(name="onecycle", peak=0.25),
        label_smoothing=0.1,
        precision="auto",
        seed=seed,
    )


def propose(request: Request, num_classes: int) -> list[Candidate]:
    """Networks that use the budget, by family and depth, each as wide as it allows, within the multiply-adds.

    Their latencies are not measured yet.

    Raises:
        ConfigError: there is none.
    """
    size, channels = request.recipe.image_size, 3
    smallest = request.recipe.progressive.size or size
    found: list[Candidate] = []
    cheapest = None
    for family in request.families or FAMILIES:
        for name, model in FAMILIES[family].items():
            width = models.largest_width(model, num_classes, request.budget, smallest, channels)
            if width is None:
                continue
            model = _at_width(model, width)
            with torch.device("meta"):
                network = models.build(model, num_classes, size, channels=channels)
            parameters, cost = models.count_parameters(network), models.multiply_adds(network, size, channels)
            if parameters < FULL * request.budget:
                continue
            cheapest = min(cost, cheapest or cost)
            if request.multiply_adds is None or cost <= request.multiply_adds:
                found.append(
                    Candidate(
                        name=f"{name} w{width}",
                        family=family,
                        model=model,
                        parameters=parameters,
                        multiply_adds=cost,
                    )
                )
    if not found and cheapest:
        raise ConfigError(
            f"no network that fills {request.budget:,} parameters makes at most {request.multiply_adds:,.0f} "
            f"multiply-adds, the cheapest {cheapest:,}: raise --flops or lower --budget"
        )
    if not found:
        raise ConfigError(f"no network of these families fills {request.budget:,} parameters: raise --budget")
    return found


def _at_width(model: ModelConfig, width: int) -> ModelConfig:
    """The network so wide, its stages with the widths that they then have, as somebody would write them down."""
    if model.stages is None:
        return replace(model, width=width)
    described = ResidualArchitecture(stages=tuple(model.stages), stem_width=model.stages[0].width)
    return replace(model, stages=list(described.scaled(width).stages))


def measure_latency(model: ModelConfig, num_classes: int, image_size: int) -> float:
    """Median milliseconds that one image takes on this machine's CPU, by the engine that `predict` uses there.

    With random weights, and as many threads as `torch.get_num_threads()` says.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.build(model, num_classes, image_size).eval()
        image = torch.randn(1, 3, image_size, image_size)
    run: Callable[[torch.Tensor], torch.Tensor] = network
    if engine.available():
        run = engine.compile_network(network, image.shape[1:])
    times = []
    with torch.no_grad():
        for _ in range(_WARM_UP + _RUNS):
            started = time.perf_counter()
            run(image)
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[_WARM_UP:])


def measure_speed(config: Config, dataset: data.Dataset, device: torch.device, steps: int = 3) -> float:
    """Images a second of training, from a few steps after two that warm up."""
    labels = dataset.train.labels
    assert labels is not None
    indices, _ = splits.split(labels, config.val_size, config.split_seed, config.train_size)
    training = Training(
        replace(config, precision=devices.precision(config.precision, device)), dataset, indices, device
    )
    batch = indices[: config.batch_size].to(device)
    started = 0.0
    for step in range(2 + steps):
        if step == 2:
            started = time.perf_counter()
        loss, _ = training.gradient(batch, step, dataset.train.images.shape[-1])
        training.update(config.optimizer.lr / 1000)
        loss.item()  # waits for the device
    return steps * len(batch) / (time.perf_counter() - started)


def halve(
    entrants: Sequence[T], scores: Callable[[list[T], int], list[float | None]]
) -> list[list[tuple[T, float | None]]]:
    """Successive halving: score all, keep the better half (rounded down, at least one), and so on until one is left.

    Args:
        entrants: one or more; of equal scores the earlier is the better.
        scores: of the entrants of a rung (from 0), in their order; larger is better, None is worse than any.

    Returns:
        Each rung's entrants with their scores, best first: the winner is the first of the last rung.
    """
    rungs: list[list[tuple[T, float | None]]] = []
    remaining = list(entrants)
    while True:
        rung = list(zip(remaining, scores(remaining, len(rungs)), strict=True))
        rung.sort(key=lambda pair: (pair[1] is None, -(pair[1] or 0.0)))
        rungs.append(rung)
        remaining = [entrant for entrant, _ in rung[: max(1, len(rung) // 2)]]
        if len(remaining) == 1:
            return rungs


def front(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the rows that no other beats: as few parameters and multiply-adds, as fast and as accurate, one better.

    Accuracies of two rows are compared in the last rung that both were trained in, so after training that cost as much.

    Args:
        rows: `name`, `parameters`, `multiply_adds`, `latency_ms`, and `accuracies`, one a rung, None where the training
            failed; a row that ends so is on no front.
    """

    def beaten(row: dict[str, Any], other: dict[str, Any]) -> bool:
        rung = min(len(row["accuracies"]), len(other["accuracies"])) - 1
        theirs, mine = other["accuracies"][rung], row["accuracies"][rung]
        if theirs is None:
            return False
        costs = [(other[key], row[key]) for key in ("parameters", "multiply_adds", "latency_ms")] + [(-theirs, -mine)]
        return all(a <= b for a, b in costs) and any(a < b for a, b in costs)

    able = [row for row in rows if row["accuracies"][-1] is not None]
    return [row["name"] for row in able if not any(beaten(row, other) for other in able)]


def fit(
    request: Request,
    *,
    folder: Path | None = None,
    output: Path | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Propose networks, train them by successive halving, and report what each costs and reaches.

    Args:
        request: what is asked for.
        folder: where the data is; None is `data.default_folder()`.
        output: a folder for everything: fit.json, front.png, winner.yaml, and a run for each training, which is taken
            as it is where it is there already; None keeps nothing.
        device: where to train; None is the CPU.
        progress: told of every rung and training.

    Returns:
        What fit.json holds: the request, a row for each candidate (best first), their front, and the winner's name.

    Raises:
        BudgetnetError: nothing can be proposed, `output` belongs to another request, the data is missing, or all
            trainings of a rung fail.
    """
    device, progress = device or torch.device("cpu"), progress or Progress()
    classes = data.num_classes(request.recipe.dataset, folder)
    asked = json.loads(json.dumps({**asdict(request), "classes": classes}))
    written = [] if output is None else _prepare(output, asked)
    candidates = written or _plan(request, classes, folder, device, progress)
    result: dict[str, Any] = {"request": asked, "hardware": devices.hardware(device)}
    result["candidates"] = [asdict(candidate) | {"accuracies": [], "epochs": 0} for candidate in candidates]
    if output is not None and not (output / "fit.json").is_file():
        _write(output, result)
    if not request.epochs:
        return result
    if output is None:
        with tempfile.TemporaryDirectory(prefix="budgetnet-fit-") as temporary:
            _compete(request, candidates, result, folder, Path(temporary), device, progress)
        return result
    _compete(request, candidates, result, folder, output, device, progress)
    _write(output, result)
    winner = result["candidates"][0]
    atomic_write(output / "winner.yaml", _recipe(request, winner, len(candidates)).encode())
    try:
        draw(result, output / "front.png")
    except ImportError as error:
        progress.warn(f"no picture without matplotlib ({error}): pip install 'budgetnet[picture]', and run this again")
    return result


def _prepare(output: Path, asked: dict[str, Any]) -> list[Candidate]:
    """Make the folder, or see that what it holds was asked for; the candidates that an earlier call wrote down there.

    Raises:
        ConfigError: it holds something else, other candidates, or a damaged fit.json.
    """
    path = output / "fit.json"
    if not path.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ConfigError(f"{output} exists and holds no fit.json: choose another --output")
        output.mkdir(parents=True, exist_ok=True)
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, found = content["request"], [_candidate(row) for row in content["candidates"]]
        if not isinstance(before, dict) or not isinstance(before.get("recipe"), dict):
            raise ValueError("a request without a recipe")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{path} is not what an earlier call wrote ({error}): choose another --output") from error
    for key in asked:
        if before.get(key) != asked[key]:
            earlier, expected = before.get(key), asked[key]
            if key == "recipe":
                inner = before["recipe"]
                key = next((name for name in expected if inner.get(name) != expected[name]), "recipe")
                earlier, expected = inner.get(key), expected.get(key)
            raise ConfigError(
                f"{key} is {expected!r}, but {output} holds candidates for {earlier!r}: choose another --output"
            )
    order = [name for family in FAMILIES.values() for name in family]
    return sorted(found, key=lambda candidate: order.index(candidate.name.rpartition(" w")[0]))


def _candidate(row: Any) -> Candidate:
    """A candidate as fit.json has it, which may be anything: its name becomes that of a folder."""
    keys = [key for key in Candidate.__dataclass_fields__ if key != "model"]
    found = Candidate(model=model_from_dict(row["model"]), **{key: row[key] for key in keys})
    kind, _, width = str(found.name).rpartition(" w")
    if not has_type(found, Candidate) or kind not in FAMILIES.get(found.family, ()) or not width.isdecimal():
        raise ValueError("a candidate of another kind")
    return found


def _plan(
    request: Request, classes: int, folder: Path | None, device: torch.device, progress: Progress
) -> list[Candidate]:
    """Candidates that are cheap enough, their latency and perhaps their speed measured."""
    proposed = propose(request, classes)
    progress.say(f"{len(proposed)} networks fill {request.budget:,} parameters; measuring how fast they are")
    size = request.recipe.image_size
    measured = [replace(c, latency_ms=measure_latency(c.model, classes, size)) for c in proposed]
    limit = request.latency_ms
    candidates = [c for c in measured if limit is None or c.latency_ms <= limit]
    if not candidates:
        fastest = min(candidate.latency_ms for candidate in measured)
        raise ConfigError(
            f"none of {len(measured)} networks takes at most {limit:g} ms an image, the fastest {fastest:.2f} ms: "
            "raise --latency or lower --budget"
        )
    if limit is not None:
        progress.say(f"{len(candidates)} of them take at most {limit:g} ms an image")
    if request.minutes is None or not request.epochs:
        return candidates
    dataset = _load(request, folder, progress)
    return [
        replace(c, images_per_second=measure_speed(replace(request.recipe, model=c.model), dataset, device))
        for c in candidates
    ]


def _compete(
    request: Request,
    candidates: list[Candidate],
    result: dict[str, Any],
    folder: Path | None,
    output: Path,
    device: torch.device,
    progress: Progress,
) -> None:
    """Train by successive halving; fill in `accuracies` and `epochs`, put the best first, name front and winner."""
    images = request.recipe.train_size or len(_load(request, folder, progress).train.images) - request.recipe.val_size
    rows = {row["name"]: row for row in result["candidates"]}
    failures: list[TrainingError] = []

    def accuracy(candidate: Candidate, epochs: int) -> float | None:
        config = replace(
            request.recipe, model=candidate.model, budget=request.budget, epochs=epochs, patience=None, tta="none"
        )
        run = output / "runs" / f"{candidate.name.replace(' ', '_')}-{epochs}"
        resume, began = (run / "config.yaml").is_file(), time.monotonic()
        try:
            summary = train(config, run, folder=folder, device=device, track=False, resume=resume, test=False)
        except FolderError:
            raise  # says nothing about the network, and the next would fare no better
        except TrainingError as error:
            failures.append(error)
            progress.warn(f"{candidate.name}: {error}")
            return None
        found: float = summary["final"]["val_accuracy"]
        progress.say(f"  {candidate.name:<28} {found:>7.2%}  {duration(time.monotonic() - began):>7}")
        return found

    def accuracies(entrants: list[Candidate], rung: int) -> list[float | None]:
        epochs = [candidate.epochs(request, rung, images) for candidate in entrants]
        progress.say(_rung_line(rung, epochs))
        for candidate, number in zip(entrants, epochs, strict=True):
            row = rows[candidate.name]
            row["accuracies"].append(accuracy(candidate, number))
            row["epochs"] = number
        return [rows[candidate.name]["accuracies"][-1] for candidate in entrants]

    # Of networks that do equally well, the cheaper goes on: so no other beats the winner in everything.
    rungs = halve(sorted(candidates, key=lambda c: (c.multiply_adds, c.parameters, c.latency_ms, c.name)), accuracies)
    if rungs[-1][0][1] is None:
        raise failures[-1]
    places = {candidate.name: place for rung in rungs for place, (candidate, _) in enumerate(rung)}
    result["candidates"].sort(key=lambda row: (-len(row["accuracies"]), places[row["name"]]))
    result["front"] = front(result["candidates"])
    result["winner"] = result["candidates"][0]["name"]


def _rung_line(rung: int, epochs: list[int]) -> str:
    fewest, most = min(epochs), max(epochs)
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    networks, plural = "network" if len(epochs) == 1 else "networks", "" if most == 1 else "s"
    return f"rung {rung + 1}: {len(epochs)} {networks}, {span} epoch{plural} each"


def _load(request: Request, folder: Path | None, progress: Progress) -> data.Dataset:
    recipe = request.recipe
    return data.load(recipe.dataset, folder, recipe.image_size, progress=progress.download, decoding=progress.decode)


def _write(output: Path, result: dict[str, Any]) -> None:
    atomic_write(output / "fit.json", (json.dumps(result, indent=2) + "\n").encode())


def _recipe(request: Request, winner: dict[str, Any], number: int) -> str:
    """The winner as a recipe, with how it was found on top."""
    config = replace(request.recipe, model=model_from_dict(winner["model"]), budget=request.budget)
    return f"""\
# {winner["name"]}: the winner of {number} networks that fill {request.budget:,} parameters (budgetnet fit).
#
#   budgetnet train winner.yaml
#
# {winner["parameters"]:,} parameters, {winner["multiply_adds"] / 1e6:,.1f} million multiply-adds, \
{winner["latency_ms"]:.2f} ms an image; validation accuracy
# {winner["accuracies"][-1]:.2%} after {winner["epochs"]} epochs (1 seed, chosen by it). As below: not measured yet.
{to_yaml(config)}"""


def render(result: dict[str, Any]) -> str:
    """The candidates as a table of at most 80 columns, best first, the front marked."""
    trained = "winner" in result
    rows = result["candidates"]
    widest = max(len("network"), *(len(row["name"]) for row in rows))
    lines = [f"{'network':<{widest}}  {'parameters':>10}  {'M mult-adds':>11}  {'ms':>7}"]
    if trained:
        lines[0] += f"  {'epochs':>6}  {'val acc':>7}"
    for row in rows:
        line = (
            f"{row['name']:<{widest}}  {row['parameters']:>10,}  {row['multiply_adds'] / 1e6:>11,.1f}  "
            f"{row['latency_ms']:>7.2f}"
        )
        if trained:
            accuracy = row["accuracies"][-1]
            line += f"  {row['epochs']:>6}  {'failed' if accuracy is None else f'{accuracy:.2%}':>7}"
            line += "  *" if row["name"] in result["front"] else ""
        lines.append(line)
    lines += ["", "ms: one image on this CPU, as predict computes it"]
    if trained:
        lines.append("*: no other is as good in all columns; two are compared after equal training")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw validation accuracy against multiply-adds and against latency, a colour a family, the front filled.

    Args:
        result: what `fit` returned, with trainings.
        path: where to write, ending in .png or .svg; written over.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = [row for row in result["candidates"] if row["accuracies"][-1] is not None]
    families = list(dict.fromkeys(row["family"] for row in rows))
    colours = {family: f"C{i}" for i, family in enumerate(families)}
    most = max(len(row["accuracies"]) for row in rows)
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, unit, label in (
        (panels[0], "multiply_adds", 1e6, "million multiply-adds an image"),
        (panels[1], "latency_ms", 1, "milliseconds an image"),
    ):
        for row in rows:
            colour, on_front = colours[row["family"]], row["name"] in result["front"]
            x, y = row[key] / unit, 100 * row["accuracies"][-1]
            size = 30 + 90 * len(row["accuracies"]) / most
            axes.scatter(x, y, size, facecolors=colour if on_front else "none", edgecolors=colour, linewidths=1.4)
            if row["name"] == result["winner"]:
                left = row[key] < sum(other[key] for other in rows) / len(rows)  # the name reaches into the picture
                place, anchor = (9, "left") if left else (-9, "right")
                axes.annotate(row["name"], (x, y), (place, 6), textcoords="offset points", fontsize=9, ha=anchor)
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.margins(x=0.15, y=0.1)
    panels[0].set_ylabel("validation accuracy in %, after its last rung")
    handles = [Line2D([], [], marker="o", ls="", color=colours[family], label=family) for family in families]
    figure.legend(handles=handles, loc="outside right upper", title="family")
    figure.suptitle(
        f"{len(rows)} networks that fill {result['request']['budget']:,} parameters: filled on the front, larger after "
        "longer training"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=130)
