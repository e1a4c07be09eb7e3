"""The page of a comparison: who is ahead and by how much, at what cost, how they learnt, and in what they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from budgetnet import charts, page
from budgetnet.compare import COSTS, MEASURES, Comparison, Group, plus_minus, points, verdict
from budgetnet.errors import ConfigError
from budgetnet.markup import NBSP, Html, brief_percent, join, percent, tag
from budgetnet.progress import duration

_CURVES = (
    ("Validation accuracy", "val_accuracy"),
    ("Training accuracy", "train_accuracy"),
    ("Validation loss (nats)", "val_loss"),
    ("Training loss (nats)", "train_loss"),
)

_Section = tuple[str, str, Html]


def write(comparison: Comparison, path: Path) -> None:
    """Write a comparison as a page.

    Raises:
        ConfigError: `path` does not end in .html.
        DataError: it cannot be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"the page {path} ends in {path.suffix or 'nothing'!r}, expected .html")
    groups = comparison.groups
    header = join(
        (
            tag("p", tag("b", verdict(comparison))),
            _accuracies(comparison),
            *(page.soft(remark) for remark in comparison.remarks),
        )
    )
    sections = [
        _differences(comparison),
        _fronts(comparison),
        _curves(groups),
        _options(groups),
        _every_run(groups),
    ]
    title = f"Comparison of {sum(len(group.entries) for group in groups)} runs"
    page.write(path, page.document(title, header, [section for section in sections if section is not None]))


def _marked(i: int, group: Group) -> Html:
    return tag("span", group.letter, class_=f"letter c{i % charts.COLOURS}")


def _accuracies(comparison: Comparison) -> Html:
    head = ("", "runs", "seeds", "validation, %", "less A, points", "test, %", "less A, points")
    rows = []
    for i, group in enumerate(comparison.groups):
        against = [points(group.against.get(measure)) for measure in MEASURES]
        count = len({entry.seed for entry in group.entries})
        accuracy = (plus_minus(group.val_accuracy), against[0], plus_minus(group.test_accuracy), against[1])
        rows.append((_marked(i, group), group.name, count, *accuracy))
    remark = (
        "Mean and standard deviation over seeds. Differences are taken seed by seed, with Student's 95 % interval; * "
        "marks those beyond the noise of the seeds and of so many images."
    )
    return join((page.table(head, rows, numbers=(2, 3, 4, 5, 6)), page.soft(remark)))


def _differences(comparison: Comparison) -> _Section | None:
    drawn = []
    for measure, name in MEASURES.items():
        items = [
            charts.Difference(
                label=f"{group.letter} {group.name}",
                value=100 * apart["difference"],
                interval=None if apart["interval"] is None else 100 * apart["interval"],
                colour=i,
                tip=f"{group.name}: {points(apart).rstrip(' *')} points over the seeds "
                f"{', '.join(map(str, apart['seeds']))}; {apart['verdict']}",
            )
            for i, group in enumerate(comparison.groups)
            if (apart := group.against.get(measure)) is not None
        ]
        if items:
            drawn.append(charts.differences(f"{name.capitalize()} less that of A, points", items, "{:+.2f}".format))
    if not drawn:
        return None
    return "differences", "Differences", tag("div", *drawn, class_="charts")


def _count(value: float) -> str:
    size, letter = next(
        ((size, letter) for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= size), (1, "")
    )
    return f"{value / size:.3g}{NBSP}{letter}".strip()


def _fronts(comparison: Comparison) -> _Section | None:
    measure = comparison.measure
    if measure is None:
        return None
    shows: dict[str, Callable[[float], str]] = {
        "parameters": _count,
        "multiply_adds": _count,
        "minutes": "{:.3g}".format,
    }
    drawn = []
    for cost, name in COSTS.items():
        points = [
            charts.Point(
                label=f"{group.letter} {group.name}",
                x=spent,
                y=getattr(group, measure)["mean"],
                spread=getattr(group, measure)["std"],
                front=cost in group.fronts,
                colour=i,
                tip=f"{group.name}: {plus_minus(getattr(group, measure))} %, {shows[cost](spent)} {name}",
            )
            for i, group in enumerate(comparison.groups)
            if (spent := group.cost(cost)) is not None
        ]
        if points:
            drawn.append(charts.scatter(f"By {name}", points, shows[cost], name))
    remark = (
        f"Mean {MEASURES[measure]}, with its standard deviation over seeds, against what it costs. Filled points are "
        "on the front: none is as cheap and as accurate, and better in one of them."
    )
    return "costs", "What it costs", join((page.soft(remark), tag("div", *drawn, class_="charts")))


def _curves(groups: Sequence[Group]) -> _Section | None:
    drawn = []
    for title, column in _CURVES:
        series = []
        for i, group in enumerate(groups):
            tables = [{row["epoch"]: row[column] for row in e.run.rows if column in row} for e in group.entries]
            tables = [table for table in tables if table]
            if not tables:
                continue
            epochs = sorted(set.intersection(*(set(table) for table in tables)))
            columns = [(epoch, [table[epoch] for table in tables]) for epoch in epochs]
            if epochs:
                series.append(
                    charts.Line(
                        name=f"{group.letter} {group.name}",
                        points=[(epoch, sum(values) / len(values)) for epoch, values in columns],
                        colour=i,
                        band=[(x, min(values), max(values)) for x, values in columns] if len(tables) > 1 else (),
                    )
                )
        series = charts.drawable(series)
        if series:
            show: Callable[[float], str] = brief_percent if "accuracy" in column else "{:.4g}".format
            drawn.append(charts.lines(title, series, show))
    if not drawn:
        return None
    remark = (
        "The mean over the runs of a group, over the epochs that all of them have, and between the lowest and highest."
    )
    return "curves", "Learning curves", join((page.soft(remark), tag("div", *drawn, class_="charts")))


def _options(groups: Sequence[Group]) -> _Section | None:
    if not groups[0].options:
        return None
    head = ("option", *(_marked(i, group) for i, group in enumerate(groups)))
    rows = [(tag("b", name), *(group.options[name] for group in groups)) for name in groups[0].options]
    return "options", "What differs", join((page.soft("All other options are the same."), page.table(head, rows)))


def _every_run(groups: Sequence[Group]) -> _Section:
    head = ("", "run", "seed", "epochs", "validation, %", "test, %", "parameters", "multiply-adds", "time", "folder")
    rows = []
    for i, group in enumerate(groups):
        for entry in group.entries:
            said = entry.to_dict()
            shares = [percent(said[measure]).replace(f"{NBSP}%", "") for measure in MEASURES]
            counts = [f"{said[cost]:,}" if said[cost] is not None else "" for cost in ("parameters", "multiply_adds")]
            time = duration(60 * entry.minutes) if entry.minutes is not None else "not ended"
            rows.append(
                (_marked(i, group), said["name"], entry.seed, said["epochs"], *shares, *counts, time, said["folder"])
            )
    return "runs", "Every run", page.table(head, rows, numbers=(2, 3, 4, 5, 6, 7, 8))
