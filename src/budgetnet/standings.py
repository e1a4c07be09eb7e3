"""What a sweep has found: its trials, what mattered, and what each costs; as a table, a picture and a recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from budgetnet import charts, devices, page
from budgetnet.charts import Bar, Point
from budgetnet.compare import COSTS, front
from budgetnet.config import Config, to_yaml
from budgetnet.files import atomic_write
from budgetnet.markup import Html, percent, tag
from budgetnet.terminal import wrapped

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

FILES = ("sweep.json", "best.yaml", "sweep.svg")
"""The record, the best trial as a recipe, and the picture."""

_ENOUGH = 4
"""Trials that have come to their end, before it is said what mattered."""
_SHOWN = 10


def summarize(study: Study, trials: Sequence[FrozenTrial], device: torch.device) -> dict[str, Any]:
    """The trials in the order of their places, the best, the importances, and where this worker computes.

    An importance is an option's share of what tells the better trials from the others (PED-ANOVA, Watanabe et al. 2023,
    arXiv:2304.10255); there is none of fewer than four that have come to their end.
    """
    rows: dict[int, dict[str, Any]] = {}
    for trial in trials:
        said = trial.user_attrs
        known = said.get("drawn", {}) | said.get("ended", {})
        outcome = known.get("outcome")
        if outcome is None or (outcome == "finished" and trial.value is None):  # its value comes a moment after
            outcome = "stopped" if trial.state.is_finished() else "running"
        if "trial" in said and outcome != "surplus":  # of one that was put back, the last time counts
            rows[said["trial"]] = {
                "trial": said["trial"],
                "outcome": outcome,
                "val_accuracy": trial.value,
                "options": known.get("options", {}),
                **{key: known.get(key) for key in ("epochs", "minutes", "parameters", "multiply_adds", "why")},
                "deaths": said.get("tries", 0),
                "fronts": [],
            }
    found = [rows[index] for index in sorted(rows)]
    finished = [row for row in found if row["outcome"] == "finished"]
    for cost in COSTS:
        flags = front([(row[cost], row["val_accuracy"]) for row in finished])
        for row, on_front in zip(finished, flags, strict=True):
            if on_front:
                row["fronts"].append(cost)
    best = max(finished, key=lambda row: row["val_accuracy"], default=None)
    return {
        "hardware": devices.hardware(device),
        "best": best,
        "importances": _importances(study, finished),
        "trials": found,
    }


def _importances(study: Study, finished: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    import optuna

    if len(finished) < _ENOUGH or len({row["val_accuracy"] for row in finished}) < 2:
        return {}
    return {name: float(share) for name, share in optuna.importance.get_param_importances(study).items()}


def write(output: Path, result: Mapping[str, Any], recipe: str, config: Config | None) -> None:
    """Write `FILES` into a folder; the recipe and the picture once there is a best trial.

    Args:
        output: the folder.
        result: as `summarize` and the study have it.
        recipe: name of the recipe that was searched around.
        config: of the best trial.
    """
    atomic_write(output / "sweep.json", (json.dumps(result, indent=1) + "\n").encode())
    if config is None:
        return
    best, counts = result["best"], _counts(result["trials"])
    atomic_write(
        output / "best.yaml",
        f"""\
# The best of {counts} around {recipe} (budgetnet sweep), trial {best["trial"]}:
# {shown(best["options"])}
#
#   budgetnet train best.yaml
#
# {best["parameters"]:,} parameters, {best["multiply_adds"] / 1e6:,.1f} million multiply-adds; validation accuracy
# {best["val_accuracy"]:.2%} after {best["epochs"]} epochs (1 seed, chosen by it). On test images: not measured yet.
{to_yaml(config)}""".encode(),
    )
    atomic_write(output / "sweep.svg", draw(result).encode())


def _counts(rows: Sequence[Mapping[str, Any]]) -> str:
    trained = [row["outcome"] for row in rows if row["outcome"] != "refused"]
    parts = [f"{trained.count(name)} {name}" for name in ("pruned", "failed", "running", "stopped") if name in trained]
    return f"{len(trained)} trials" + (f" ({', '.join(parts)})" if parts else "")


def shown(values: Mapping[str, str]) -> str:
    """Options in a line, numbers by four digits."""
    return ", ".join(f"{name} {_brief(value)}" for name, value in values.items())


def _brief(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def render(result: Mapping[str, Any]) -> str:
    """The best trials, what mattered, and how many there are, in at most 80 columns."""
    finished = [row for row in result["trials"] if row["outcome"] == "finished"]
    ranked = sorted(finished, key=lambda row: -row["val_accuracy"])[:_SHOWN]
    lines = [
        f"{'trial':>5}  {'val acc':>7}  {'epochs':>6}  {'minutes':>7}  {'parameters':>10}  {'M mult-adds':>11}  front"
    ]
    for row in ranked:
        lines.append(
            f"{row['trial']:>5}  {row['val_accuracy']:>7.2%}  {row['epochs']:>6.0f}  {row['minutes']:>7.1f}  "
            f"{row['parameters']:>10,}  {row['multiply_adds'] / 1e6:>11,.1f}  "
            f"{' '.join(_LETTERS[cost] for cost in row['fronts'])}".rstrip()
        )
        lines += wrapped(" " * 7 + shown(row["options"]), 80, 7)
    refused = sum(row["outcome"] == "refused" for row in result["trials"])
    counts = _counts(result["trials"]) + (f", and {refused} refused before training" if refused else "")
    lines += ["", *wrapped(counts + (f"; the best {_SHOWN} are shown" if len(finished) > _SHOWN else ""), 80)]
    lines.append("front: no other is as good for as few (p)arameters, (m)ultiply-adds, minu(t)es")
    if result["importances"]:
        parts = ", ".join(f"{name} {share:.0%}" for name, share in result["importances"].items())
        lines += wrapped(f"what mattered, of {len(finished)} that came to their end: {parts}", 80)
    return "\n".join(lines)


_LETTERS = {"parameters": "p", "multiply_adds": "m", "minutes": "t"}


def draw(result: Mapping[str, Any]) -> str:
    """A picture (SVG) of a sweep with a trial that has come to its end: accuracy against costs, and what mattered."""
    finished = [row for row in result["trials"] if row["outcome"] == "finished"]
    panels: list[tuple[str, Html]] = []
    for cost, title in COSTS.items():
        if cost != "minutes" and len({row[cost] for row in finished}) == 1:
            continue  # which the options have no part in
        points = [
            Point(
                label=str(row["trial"]) if cost in row["fronts"] else "",
                x=row[cost],
                y=row["val_accuracy"],
                front=cost in row["fronts"],
                tip=f"trial {row['trial']}: {percent(row['val_accuracy'])}, {_quantity(row[cost])}; "
                f"{shown(row['options'])}",
            )
            for row in finished
        ]
        panels.append((f"validation accuracy, by {title}", charts.scatter(title, points, _quantity, title)))
    if result["importances"]:
        bars = [
            Bar(label=_label(name), value=share, low=share, high=share, tip=f"{name}: {percent(share, 1)}")
            for name, share in result["importances"].items()
        ]
        panels.append((f"what mattered, of {len(finished)} trials", charts.bars("what mattered", bars)))
    return _sheet(f"{result['study']}: {_counts(result['trials'])}", panels)


def _label(name: str) -> str:
    """An option's name, or its last part where there is no room for all."""
    return name if len(name) < 16 else name.rpartition(".")[2]


def _quantity(value: float) -> str:
    """A count or a time, by three digits and a letter for thousands, millions and more."""
    power = 0 if value == 0 else max(0, min(3, math.floor(math.log10(abs(value)) / 3 + 1e-9)))
    return f"{value / 1000**power:.3g}{' kMG'[power].strip()}"


def _sheet(title: str, panels: Sequence[tuple[str, Html]]) -> str:
    """Charts as one file that stands alone, two beside each other, each under its heading."""
    wide, high, columns = 430.0, 282.0, 2
    width, height = columns * wide + 10, 40 + math.ceil(len(panels) / columns) * high
    parts = [tag("text", title, class_="heading", x=15, y=26)]
    for place, (heading, figure) in enumerate(panels):
        x, y = 15 + place % columns * wide, 40 + place // columns * high
        # Of a figure for a page, the drawing: it has but one.
        drawing = figure[figure.index("<svg") : figure.rindex("</svg>") + len("</svg>")]
        placed = drawing.replace("<svg", f'<svg x="{x}" y="{y + 24}" width="400" height="{high - 40}"', 1)
        placed = placed.replace("<svg", '<svg preserveAspectRatio="xMinYMin meet"', 1)
        parts += [tag("text", heading, class_="panel", x=x, y=y + 14), Html(placed)]
    own = (
        'svg { font: 11px system-ui, "DejaVu Sans", sans-serif; fill: currentColor; color: var(--text); } '
        ".heading { font-size: 17px; font-weight: 700; } .panel { font-size: 13px; font-weight: 600; } "
        ".ground { fill: var(--page); }"
    )
    ground = tag("rect", class_="ground", x=0, y=0, width=width, height=height)
    root = tag(
        "svg",
        tag("style", Html(page.STYLE + own)),
        ground,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=width,
        height=height,
    )
    return f"{root}\n"
