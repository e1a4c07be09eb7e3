"""Which network for a budget: candidates that fill it, halved again and again by validation accuracy.

`fit` drops those of `candidates.propose` that are too dear, trains the others briefly, keeps the better half for twice
as long, and so on (successive halving, Jamieson and Talwalkar 2016, arXiv:1502.07943). No test image is looked at.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from budgetnet import data, devices
from budgetnet.candidates import FAMILIES, Candidate, Request, measure_latency, measure_speed, propose
from budgetnet.checkpoint import has_type
from budgetnet.config import model_from_dict, to_yaml
from budgetnet.errors import ConfigError, FolderError, TrainingError
from budgetnet.files import atomic_write, replacing
from budgetnet.progress import Progress, duration
from budgetnet.runfiles import CONFIG
from budgetnet.train import train

T = TypeVar("T")


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
        resume, began = (run / CONFIG).is_file(), time.monotonic()
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
