"""Runs side by side: grouped by recipe, compared seed by seed, and by what they cost; as a table and as a page."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from budgetnet import models, runs, seeds
from budgetnet.config import model_from_dict
from budgetnet.errors import BudgetnetError, ConfigError
from budgetnet.markup import visible
from budgetnet.progress import duration
from budgetnet.runs import Run
from budgetnet.terminal import cell_len, columns
from budgetnet.words import validation

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

# What changes nothing of what is computed, or is what a recipe's runs differ in.
_ASIDE = ("seed", "experiment", "checkpoint_steps", "checkpoint_minutes")
MEASURES = {"val_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
_FRONTS = {"parameters": "parameters", "multiply_adds": "mult-adds", "minutes": "time"}
_GAP = 3 * " "  # between the columns of a table
COSTS = {"parameters": "parameters", "multiply_adds": "multiply-adds for an image", "minutes": "minutes of training"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run in a comparison, with its seed, trainable parameters and minutes of training; what it has not, is None."""

    run: Run
    place: str
    """The run's folder; the name of a run that was fetched, whose folder is soon gone."""
    seed: int
    val_accuracy: float | None
    """Of the chosen weights; None of a run that has not ended, as one that goes on is no result."""
    test_accuracy: float | None
    """As the recipe classifies, with its test-time augmentation."""
    parameters: int | None
    multiply_adds: int | None
    """For one image."""
    minutes: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        said = {key: value for key, value in vars(self).items() if key not in ("run", "place")}
        epochs = int(self.run.rows[-1]["epoch"]) if self.run.rows else 0
        folder = {"name": self.run.name, "folder": self.place, "finished": self.run.finished}
        return folder | {"epochs": epochs} | said


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs (`entries`) of the same recipe on the same data, which differ in their seeds alone."""

    letter: str
    """By which charts and tables refer to it."""
    name: str
    """What the names of its runs have in common."""
    entries: list[Entry]
    options: Mapping[str, str]
    """In which the groups differ."""
    val_accuracy: Mapping[str, Any] | None
    """Mean, standard deviation and number of seeds (`seeds.spread`), as `test_accuracy` and `minutes`."""
    test_accuracy: Mapping[str, Any] | None
    minutes: Mapping[str, Any] | None
    against: Mapping[str, Mapping[str, Any]]
    """By measure, what `seeds.difference` says of this group less the first, and the shared `seeds`."""
    fronts: Sequence[str]
    """The costs by which no other group is as cheap and as accurate, and better in one of them."""

    def cost(self, name: str) -> float | None:
        """Parameters, multiply-adds, or minutes on average."""
        if name == "minutes":
            return None if self.minutes is None else float(self.minutes["mean"])
        found = getattr(self.entries[0], name)
        return None if found is None else float(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return vars(self) | {"entries": [entry.to_dict() for entry in self.entries]}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All `groups` of runs, the first being the one that the others are compared with."""

    groups: list[Group]
    measure: str | None
    """What groups are judged by: val_accuracy where all have it, else test_accuracy, else nothing."""
    remarks: list[str]
    """What is to be known before figures are compared."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return vars(self) | {"groups": [group.to_dict() for group in self.groups]}


@dataclass
class _Draft:
    """A group while it is gathered."""

    recipe: dict[str, str]
    checksum: str | None
    """Of the data; None where no run of it says."""
    entries: list[Entry]

    def takes(self, other: _Draft) -> bool:
        """Whether the other's runs belong here; a run that has not ended does not say what data it has."""
        known = {self.checksum, other.checksum} - {None}
        return self.recipe == other.recipe and len(known) < 2


def compare(folders: Sequence[Path], *, fetched: bool = False) -> Comparison:
    """Read some runs, group them by recipe in the order in which they are given, and compare the groups.

    Args:
        folders: of the runs.
        fetched: they are copies (`store.fetch`): the runs are shown by their names.

    Raises:
        ConfigError: fewer than two runs, or one twice.
        DataError: one is no run folder, or damaged.
    """
    if len(folders) < 2:
        raise ConfigError(f"found {len(folders)} run{'s'[: len(folders) != 1]} to compare, expected two or more")
    real = [os.path.realpath(folder) for folder in folders]
    if twice := [folder for i, folder in enumerate(folders) if real[i] in real[:i]]:
        raise ConfigError(f"{twice[0]} is given twice: leave it out once")
    drafts: list[_Draft] = []
    usual = runs.defaults()
    for folder in folders:
        run = runs.read(folder)
        recipe = usual | runs.flat(run.config)  # an older recipe does not know the options of later versions
        draft = _Draft({name: value for name, value in recipe.items() if name not in _ASIDE}, run.checksum, [])
        same = next((other for other in drafts if other.takes(draft)), None)
        if same is None:
            drafts.append(same := draft)
        same.checksum = same.checksum or draft.checksum
        same.entries.append(_entry(run, run.name if fetched else str(folder)))
    names = sorted({name for draft in drafts for name in draft.recipe})
    differ = [name for name in names if len({draft.recipe.get(name) for draft in drafts}) > 1]
    others = len({draft.checksum for draft in drafts}) > 1
    measure = next((name for name in MEASURES if all(_values(draft.entries, name) for draft in drafts)), None)
    groups: list[Group] = []
    for i, draft in enumerate(drafts):
        options = {name: draft.recipe.get(name, "") for name in differ}
        if others:
            options["data checksum"] = (draft.checksum or "unknown")[:12]
        found = {which: _against(drafts[0], draft, which) for which in MEASURES if i}
        groups.append(
            Group(
                letter=_letter(i),
                name=_name(draft.entries),
                entries=draft.entries,
                options=options,
                val_accuracy=_spread(draft.entries, "val_accuracy"),
                test_accuracy=_spread(draft.entries, "test_accuracy"),
                minutes=_spread(draft.entries, "minutes"),
                against={which: apart for which, apart in found.items() if apart is not None},
                fronts=(),
            )
        )
    groups = _with_fronts(groups, measure)
    return Comparison(groups=groups, measure=measure, remarks=_remarks(groups, measure))


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, value), whether no other costs as little and is worth as much, one of them better."""

    def beaten(mine: tuple[float, float], other: tuple[float, float]) -> bool:
        return other[0] <= mine[0] and other[1] >= mine[1] and other != mine

    return [not any(beaten(point, other) for other in points) for point in points]


def _entry(run: Run, place: str) -> Entry:
    validated = validation(run)
    return Entry(
        run=run,
        place=place,
        seed=run.option("seed", int) or 0,
        val_accuracy=validated[0] if run.finished and validated else None,
        test_accuracy=run.test.accuracy if run.test is not None else None,
        parameters=run.find("parameters", int),
        multiply_adds=_multiply_adds(run),
        minutes=run.find("final.minutes", float),
    )


def _multiply_adds(run: Run) -> int | None:
    """Of the network in the recipe; None where this version cannot build it, or its classes are not known."""
    known = {"cifar10": 10, "cifar100": 100, "digits": 10}
    classes = len(run.test.confusion) if run.test is not None else known.get(run.option("dataset", str) or "")
    model = run.option("model", dict)
    if classes is None or model is None:
        return None
    return _cost_of(json.dumps(model), classes, run.option("image_size", int) or 32)


@functools.cache
def _cost_of(model: str, classes: int, size: int) -> int | None:
    """Multiply-adds of the network that some JSON describes; once for all runs of it."""
    import torch

    try:
        with torch.device("meta"):
            network = models.build(model_from_dict(json.loads(model)), classes, image_size=size)
    except (BudgetnetError, TypeError, ValueError, RuntimeError):  # of an older version, or too large for this one
        return None
    return models.multiply_adds(network, size)


def _letter(i: int) -> str:
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def _name(entries: Sequence[Entry]) -> str:
    """What the names of the runs have in common."""
    names = [entry.run.name for entry in entries]
    if len(names) == 1:
        return names[0]
    first, last = min(names), max(names)
    common = first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
    return re.sub(r"[-_. ]?\d*$", "", common) or names[0]


def _values(entries: Sequence[Entry], measure: str) -> dict[int, float]:
    """By seed; runs of the same seed are averaged, as they are no further seeds."""
    found: dict[int, list[float]] = {}
    for entry in entries:
        value = getattr(entry, measure)
        if value is not None:
            found.setdefault(entry.seed, []).append(float(value))
    return {seed: sum(values) / len(values) for seed, values in found.items()}


def _spread(entries: Sequence[Entry], measure: str) -> dict[str, Any] | None:
    values = _values(entries, measure)
    return seeds.spread(list(values.values())) if values else None


def _against(first: _Draft, other: _Draft, measure: str) -> dict[str, Any] | None:
    """The other less the first over the seeds that both have; None without such, or with other images to judge by."""
    judged = [_judged_by(draft, measure) for draft in (first, other)]
    mine, theirs = _values(first.entries, measure), _values(other.entries, measure)
    shared = sorted(mine.keys() & theirs.keys())
    if not shared or judged[0] is None or judged[0] != judged[1]:
        return None
    accuracy, images = sum(theirs[seed] for seed in shared) / len(shared), judged[0][0]
    each = _on_each_image(first, other, shared) if measure == "test_accuracy" else None
    noise = seeds.accuracy_noise(accuracy, images) if each is None else seeds.paired_noise(each)
    apart = seeds.difference([theirs[seed] - mine[seed] for seed in shared], noise)
    return {**apart, "seeds": shared}


def _on_each_image(first: _Draft, other: _Draft, shared: Sequence[int]) -> list[float] | None:
    """For each test image, the other's accuracy on it less the first's, averaged over seeds.

    None where a run did not keep what it said of each image.
    """
    import torch

    def on_each(draft: _Draft, seed: int) -> Tensor | None:
        """The share of the seed's runs that are right; runs of the same seed are averaged, as in `_values`."""
        tested = [entry.run for entry in draft.entries if entry.seed == seed and entry.test_accuracy is not None]
        kept = [run.right for run in tested if run.right is not None]
        return torch.stack(kept).double().mean(0) if len(kept) == len(tested) else None

    each = []
    for seed in shared:
        theirs, mine = on_each(other, seed), on_each(first, seed)
        if theirs is None or mine is None:
            return None
        each.append(theirs - mine)
    differences: list[float] = torch.stack(each).mean(0).tolist()
    return differences


def _judged_by(draft: _Draft, measure: str) -> tuple[int, tuple[object, ...]] | None:
    """By how many images a group is judged, and by which; None where nobody knows."""
    run = next((entry.run for entry in draft.entries if getattr(entry, measure) is not None), None)
    if run is None or draft.checksum is None:
        return None
    if measure == "test_accuracy":
        return (run.test.n, (draft.checksum,)) if run.test is not None else None
    held = run.option("val_size", int)
    return (held, (draft.checksum, run.option("split_seed", int) or 0)) if held else None


def _with_fronts(groups: list[Group], measure: str | None) -> list[Group]:
    if measure is None:
        return groups
    found: dict[str, list[str]] = {group.letter: [] for group in groups}
    for cost in COSTS:
        able = [(group.letter, group.cost(cost), getattr(group, measure)["mean"]) for group in groups]
        points = [(letter, spent, value) for letter, spent, value in able if spent is not None]
        for (letter, _, _), best in zip(points, front([(spent, value) for _, spent, value in points]), strict=True):
            if best:
                found[letter].append(cost)
    return [replace(group, fronts=found[group.letter]) for group in groups]


def _remarks(groups: Sequence[Group], measure: str | None) -> list[str]:
    entries = [entry for group in groups for entry in group.entries]
    said = []
    if measure is None:
        said.append("The runs have no measure in common: some have no validation images and others no test score.")
    if measure == "test_accuracy":
        said.append(
            "Judged by test accuracy, as not all have validation images: to report, not to choose by. The best of "
            "several looks better than it is."
        )
    if measure == "val_accuracy":
        said.append(
            "Judged by the validation accuracy of the chosen epoch, which the choice itself favours, most where there "
            "are many epochs."
        )
    if going := [entry.run.name for entry in entries if not entry.run.finished]:
        said.append(f"Not ended, and so only in the curves: {', '.join(going)}.")
    if trained := [entry.run.name for entry in entries if entry.run.option("train_on_test", bool)]:
        said.append(f"Trained on the test images too, and so without a test score: {', '.join(trained)}.")
    if any("data checksum" in group.options for group in groups):
        said.append("The groups were trained on different data: their accuracies are not compared.")
    machines = {
        str(sorted((entry.run.find("hardware", dict) or {}).items())) for entry in entries if entry.run.finished
    }
    if len(machines) > 1:
        said.append("The runs were trained on different machines or numbers of threads: their minutes do not compare.")
    several = [
        entry.run.name for g in groups for entry in g.entries if len(g.entries) > len({e.seed for e in g.entries})
    ]
    if several:
        said.append(f"Some runs of a group have the same seed and count as one: {', '.join(several)}.")
    return said


def plus_minus(spread: Mapping[str, Any] | None) -> str:
    """Mean and standard deviation of accuracies, in per cent."""
    if spread is None:
        return "\N{EN DASH}"
    text = f"{100 * spread['mean']:.2f}"
    return text if spread["std"] is None else f"{text} \N{PLUS-MINUS SIGN} {100 * spread['std']:.2f}"


def points(apart: Mapping[str, Any] | None) -> str:
    """A difference with its interval, in points, starred where it is beyond noise."""
    if apart is None:
        return ""
    text = f"{100 * apart['difference']:+.2f}"
    text += "" if apart["interval"] is None else f" \N{PLUS-MINUS SIGN} {100 * apart['interval']:.2f}"
    return text + (" *" if apart["verdict"] == "beyond noise" else "")


def _minutes(group: Group) -> str:
    return "\N{EN DASH}" if group.minutes is None else duration(60 * group.minutes["mean"])


def _cost(group: Group, name: str, unit: float = 1) -> str:
    value = group.cost(name)
    return "\N{EN DASH}" if value is None else f"{value / unit:,.{0 if unit == 1 else 1}f}"


def verdict(comparison: Comparison) -> str:
    """The outcome in a sentence or two."""
    measure, groups = comparison.measure, comparison.groups
    if measure is None:
        return "There is nothing by which all of these runs can be compared."
    if len(groups) == 1:
        found = getattr(groups[0], measure)
        text = f"{len(groups[0].entries)} runs of one recipe: {MEASURES[measure]} {plus_minus(found)} %"
        return f"{text} over {found['seeds']} seed{'s'[: found['seeds'] != 1]}."
    best = max(groups, key=lambda group: getattr(group, measure)["mean"])
    found = getattr(best, measure)
    over = f"over {found['seeds']} seed{'s'[: found['seeds'] != 1]}"
    text = f"Highest mean {MEASURES[measure]}: {best.letter} ({best.name}) with {plus_minus(found)} % {over}."
    apart = best.against.get(measure)
    if best is groups[0]:
        return f"{text} It is the one that the others are compared with."
    if apart is None:
        return f"{text} It shares no seed with A on the same images, so how far it is ahead is not known."
    if apart["interval"] is None:
        return f"{text} Against A, {points(apart)} points by one seed: whether that is noise is not known."
    return f"{text} Against A, {points(apart).rstrip(' *')} points: {apart['verdict']}."


def show(comparison: Comparison) -> None:
    """Print the comparison for people, as wide as the terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, width=columns())
    for table in _tables(comparison):
        console.print(table)
        console.print()
    for line in (verdict(comparison), *comparison.remarks):
        console.print(Text(visible(line)))


@dataclass(frozen=True)
class _Column:
    """A column of a table for the terminal."""

    head: str
    cells: Sequence[str]
    gives_way: int = 0
    """Its place among those that a narrow terminal does without, the first first; 0 stays."""
    folds: int = 0
    """Of texts: the least width that they are folded into; 0 folds nothing, as numbers must not be."""

    def least(self) -> int:
        """The least width that it needs."""
        widest = max(map(cell_len, (self.head, *self.cells)))
        return min(widest, self.folds) if self.folds else widest


def _tables(comparison: Comparison) -> Iterator[RenderableType]:
    from rich.console import Group as Together
    from rich.text import Text

    groups = comparison.groups
    letters = _Column("", [group.letter for group in groups])
    scores = [letters, _Column("runs", [visible(group.name) for group in groups], folds=10)]
    for measure, head in (("val_accuracy", "validation %"), ("test_accuracy", "test %")):
        aside = measure != (comparison.measure or "val_accuracy")  # not what groups are judged by
        means = _aligned([plus_minus(getattr(group, measure)) for group in groups])
        apart = _aligned([points(group.against.get(measure)) for group in groups])
        scores += [_Column(head, means, gives_way=2 * aside), _Column("less A", apart, gives_way=1 if aside else 3)]
    caption = "mean and standard deviation over seeds; less A: points, seed by seed, with 95 % interval; * beyond noise"
    yield Together(_table(scores), Text(caption, style="dim"))

    fronts = [", ".join(_FRONTS[name] for name in group.fronts) for group in groups]
    costs = [
        letters,
        _Column("seeds", [str(len({entry.seed for entry in group.entries})) for group in groups], gives_way=1),
        _Column("parameters", [_cost(group, "parameters") for group in groups], gives_way=3),
        _Column("M mult-adds", [_cost(group, "multiply_adds", 1e6) for group in groups], gives_way=2),
        _Column("time", [_minutes(group) for group in groups]),
        _Column("on the front by", fronts, folds=len("parameters,")),
    ]
    yield _table(costs, right=True)

    names = list(groups[0].options)
    room = columns() - max(map(len, names), default=0)
    for some in _that_fit(groups, room) if names else ():
        values = [_Column(group.letter, [visible(group.options[name]) for name in names], folds=1) for group in some]
        yield _table([_Column("differs", [visible(name) for name in names], folds=1), *values])


def _table(whole: Sequence[_Column], *, right: bool = False) -> RenderableType:
    """The columns that there is room for, and a line on those that give way; numbers to the right where asked."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group as Together
    from rich.table import Table
    from rich.text import Text

    shown = list(whole)
    for column in sorted((one for one in whole if one.gives_way), key=lambda one: one.gives_way):
        if sum(one.least() + len(_GAP) for one in shown) - len(_GAP) <= columns():
            break
        shown.remove(column)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for one in shown:
        justify: Literal["left", "right"] = "right" if right and not one.folds else "left"
        table.add_column(one.head, justify=justify, overflow="fold", no_wrap=not one.folds)
    for cells in zip(*(one.cells for one in shown), strict=True):
        table.add_row(*map(Text, cells))  # names are no markup
    if len(shown) == len(whole):
        return table
    hidden = ", ".join(one.head for one in whole if one not in shown)
    return Together(table, Text(f"no room for: {hidden} (wider terminals and --json have all)", style="dim"))


def _aligned(texts: Sequence[str]) -> list[str]:
    """Numbers with what follows them, the numbers one below the other."""
    parts = [text.partition(" ") for text in texts]
    most, further = max(len(number) for number, _, _ in parts), max(len(text) for _, _, text in parts)
    return [f"{number:>{most}}{space or ' '}{text:<{further}}".rstrip() for number, space, text in parts]


def _that_fit(groups: Sequence[Group], room: int) -> list[list[Group]]:
    """The groups in as many parts as are needed for the columns of each to stand side by side."""
    parts: list[list[Group]] = [[]]
    left = room
    for group in groups:
        width = 3 + max(map(cell_len, group.options.values()))
        if parts[-1] and width > left:
            parts.append([])
            left = room
        parts[-1].append(group)
        left -= width
    return parts
