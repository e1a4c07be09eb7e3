"""The report of a run: one page that says how good the network is, where it is wrong, and where it came from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from budgetnet import charts, checkpoint, evaluate, gallery, models, page, pictures, runs
from budgetnet.classifier import Classifier
from budgetnet.data import Dataset
from budgetnet.errors import DataError, one_line
from budgetnet.evaluate import Scores
from budgetnet.evidence import Evidence
from budgetnet.markup import Html, brief_percent, join, percent, shortened, tag
from budgetnet.progress import duration
from budgetnet.runfiles import REPORT, SHIFT
from budgetnet.runs import Run
from budgetnet.words import VIEWS, chosen, same_machine, untested, validation, where

_COLOURS = {"stem": 7, "block": 0, "shortcut": 4, "head": 2}
_CLASSES = 20  # that are drawn; of more, those with the lowest share

_Section = tuple[str, str, Html]


def write(
    folder: Path, *, data: Path | None = None, dataset: Dataset | None = None, device: torch.device | None = None
) -> Path:
    """Write the report of a run, finished or not, into its folder; it says itself what it leaves out, and why.

    Args:
        folder: the run's.
        data: where its data is; None is `data.default_folder()`. Nothing is downloaded.
        dataset: the data itself, where it is loaded already.
        device: where to compute; None is the CPU.

    Returns:
        The page.

    Raises:
        DataError: it is no run folder, a file of it is damaged, or the page cannot be written.
    """
    run = runs.read(folder)
    evidence = Evidence(run, data, dataset, device or torch.device("cpu"))
    made = (
        _curves(run),
        _errors(evidence),
        _calibration(evidence),
        _pictures(evidence),
        _looks(evidence),
        _network(evidence),
        _shift(evidence),
        _recipe(run),
        _origin(run, data),
    )
    sections = [section for section in made if section is not None]
    page.write(folder / REPORT, page.document(f"{run.name}: report", _verdict(evidence), sections))
    return folder / REPORT


def after_training(folder: Path, dataset: Dataset, device: torch.device, warn: Callable[[str], None]) -> None:
    """Write the report of a run that has just ended; whatever goes wrong is one line for `warn`, and no failure."""
    try:
        write(folder, dataset=dataset, device=device)
    except Exception as error:  # no picture is worth a training
        again = shlex.join(["budgetnet", "report", str(folder)])
        warn(f"no {REPORT} ({one_line(error)}): the run is complete without it, and `{again}` makes it")


def _verdict(evidence: Evidence) -> Html:
    run, test = evidence.run, evidence.run.test
    parts: list[Html] = []
    if test is not None:
        low, high = test.accuracy_interval
        parts.append(tag("div", percent(test.accuracy), class_="big"))
        parts.append(
            tag(
                "p",
                f"of {test.n:,} test images are classified right, {VIEWS.get(run.views, run.views)}; "
                f"95 % interval {percent(low)} to {percent(high)}.",
            )
        )
        plain = run.tests.get("none")
        if run.views != "none" and plain is not None:
            low, high = plain.accuracy_interval
            parts.append(page.soft(f"Each as it is: {percent(plain.accuracy)} ({percent(low)} to {percent(high)})."))
    else:
        validated = validation(run)
        if validated is not None:
            accuracy, n = validated
            low, high = evaluate.wilson(round(accuracy * n), n)
            parts.append(tag("div", percent(accuracy), class_="big"))
            parts.append(
                tag(
                    "p",
                    f"of {n:,} validation images are classified right; 95 % interval {percent(low)} to {percent(high)}."
                    " The weights were chosen by these images, so other images do rather worse.",
                )
            )
        parts.append(tag("p", tag("b", untested(run))))
    parts.append(page.facts(_cards(evidence)))
    parts.append(tag("p", _sentence(evidence)))
    return join(parts)


def _cards(evidence: Evidence) -> list[tuple[str, object, object]]:
    run, classifier, dataset = evidence.run, evidence.classifier, evidence.dataset
    cards: list[tuple[str, object, object]] = []
    parameters, budget = run.find("parameters", int), run.option("budget", int)
    if parameters is None and isinstance(classifier, Classifier):
        parameters = models.count_parameters(classifier.network)
    if parameters is not None:
        remark: object = "no budget"
        if budget:
            share = parameters / budget
            meter = tag("div", tag("div", style=f"width: {min(100.0, 100 * share):.1f}%"), class_="meter")
            remark = join((meter, f"{percent(share, 1)} of the budget of {budget:,}"))
        cards.append(("Parameters", f"{parameters:,}", remark))
    if isinstance(classifier, Classifier):
        channels = len(classifier.mean)
        cost = models.multiply_adds(classifier.network, classifier.image_size, channels)
        side = classifier.image_size
        cards.append(("Multiply-adds", f"{cost / 1e6:,.1f} million", f"for an image of {channels} x {side} x {side}"))
    minutes = run.find("final.minutes", float)
    seconds = minutes * 60 if minutes is not None else run.rows[-1].get("seconds") if run.rows else None
    if seconds is not None:
        cards.append(("Training time", duration(seconds), where(run)))
    name = run.option("dataset", str) or "unknown"
    if isinstance(dataset, Dataset):
        remark = (
            f"{_trained_images(run, dataset):,} trained on, {run.option('val_size', int) or 0:,} held out to choose by"
        )
        cards.append(("Data", name, remark))
    else:
        cards.append(("Data", name, f"{run.option('val_size', int) or 0:,} training images held out to choose by"))
    cards.append(("Weights", *chosen(run)))
    return cards


def _trained_images(run: Run, dataset: Dataset) -> int:
    if trained := run.find("tags.train_images", str):
        return int(trained)
    everything = run.option("train_size", int) or len(dataset.train) - (run.option("val_size", int) or 0)
    return everything + (len(dataset.test) if run.option("train_on_test", bool) else 0)


def _sentence(evidence: Evidence) -> str:
    """The run in words."""
    run, scores, classes = evidence.run, evidence.scores, evidence.classes
    name = run.option("model.name", str) or "The network"
    text = f"In words: {name}, trained for {len(run.rows)} epochs on {run.option('dataset', str) or 'unknown data'}"
    if not isinstance(scores, Scores):
        return f"{text}."
    known = [(recall, i) for i, recall in enumerate(scores.recall) if recall is not None]
    worst, i = min(known)
    wrong = scores.n - sum(row[i] for i, row in enumerate(scores.confusion))
    text += f", takes {wrong:,} of the {scores.n:,} {evidence.split} images for something else"
    if not wrong:
        return f"{text}."
    row = scores.confusion[i]
    count, j = max((count, j) for j, count in enumerate(row) if j != i)
    text += f". Its weakest class is {classes[i]}: {percent(worst, 1)} of {sum(row):,} "
    taken = f", and {count:,} {'is' if count == 1 else 'are'} taken for {classes[j]}" if count else ""
    return f"{text}are found{taken}."


def _curves(run: Run) -> _Section:
    if not run.rows:
        return "curves", "Learning curves", page.soft("No epoch has ended yet.")
    mark = run.chosen_epoch

    def line(name: str, column: str, colour: int, dashed: bool = False) -> charts.Line:
        points = [(row["epoch"], row[column]) for row in run.rows if column in row]
        return charts.Line(name=name, points=points, colour=colour, dashed=dashed)

    wanted = (
        ("Loss (nats)", [line("training", "train_loss", 0), line("validation", "val_loss", 1)], "{:.4g}".format),
        (
            "Accuracy",
            [
                line("training", "train_accuracy", 0),
                line("validation", "val_accuracy", 1),
                line("validation, raw weights", "val_accuracy_raw", 3, True),
                line("validation, averaged weights", "val_accuracy_average", 4, True),
            ],
            brief_percent,
        ),
        ("Learning rate", [line("learning rate", "lr", 2)], "{:.3g}".format),
        ("Images a second", [line("images a second", "images_per_second", 5)], "{:,.0f}".format),
    )
    drawn = []
    for title, series, show in wanted:
        series = charts.drawable(series)
        if series:
            drawn.append(charts.lines(title, series, show, mark=mark))
    remark = (
        "Training figures are of the images as they are augmented (and mixed, where the recipe does), in the middle of "
        "learning, validation figures of plain images after the epoch; the learning rate is that of its last step"
    )
    marked = f"; the dashed line is epoch {mark}, whose weights are the result" if mark is not None else ""
    return "curves", "Learning curves", join((page.soft(f"{remark}{marked}."), tag("div", *drawn, class_="charts")))


def _errors(evidence: Evidence) -> _Section:
    anchor, heading = "errors", "Where it is wrong"
    scores, classes = evidence.scores, evidence.classes
    if isinstance(scores, str):
        return anchor, heading, page.soft(f"Left out: {scores}.")
    pairs = sorted(
        ((count, i, j) for i, row in enumerate(scores.confusion) for j, count in enumerate(row) if count and i != j),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    drawn = [_classes(scores, classes, evidence.split)]
    if len(classes) <= _CLASSES:
        most = max((count for count, _, _ in pairs), default=1)
        cells = [
            [
                charts.Cell(
                    text=f"{count:,}" if count else "",
                    strength=count / max(1, sum(row)) if i == j else (count / most) ** 0.5,
                    colour=0 if i == j else 1,
                    tip=f"{classes[i]}, taken for {classes[j]}: {count:,} of {sum(row):,} images",
                    key=f"{i}-{j}" if count and i != j else None,
                )
                for j, count in enumerate(row)
            ]
            for i, row in enumerate(scores.confusion)
        ]
        width = 12 + 6.6 * max(len(cell.text) for row in cells for cell in row)
        title = f"Images by true class (rows) and predicted class (columns), {evidence.split} split"
        cell_width = max(26.0, width)
        names = {"row_name": "is", "column_name": "taken for"}
        drawn.insert(0, charts.heat(title, classes, classes, cells, cell_width=cell_width, **names))
    parts = [page.soft(evidence.said), tag("div", *drawn, class_="charts")]
    if pairs:
        rows = [
            (f"{count:,}", classes[i], classes[j], percent(count / sum(scores.confusion[i]), 1))
            for count, i, j in pairs[:8]
        ]
        parts.append(tag("h3", "Most frequent confusions"))
        parts.append(page.table(("images", "is", "taken for", "of the class"), rows, numbers=(0, 3)))
    return anchor, heading, join(parts)


def _classes(scores: Scores, classes: Sequence[str], split: str) -> Html:
    bars = []
    for i, row in enumerate(scores.confusion):
        recall = scores.recall[i]
        if recall is not None:
            low, high = evaluate.wilson(row[i], sum(row))
            found = f"{classes[i]}: {percent(recall)} of {sum(row):,} images found ({percent(low)} to {percent(high)})"
            right = f"{percent(scores.precision[i])} of those taken for it are it"
            bars.append(charts.Bar(label=classes[i], value=recall, low=low, high=high, tip=f"{found}; {right}"))
    some = sorted(bars, key=lambda bar: bar.value)[:_CLASSES] if len(bars) > _CLASSES else bars
    which = f"the {_CLASSES} of {len(bars)} classes that are found least, " if len(bars) > _CLASSES else ""
    return charts.bars(f"Share of each class that is found: {which}95 % intervals, {split} split", some)


def _calibration(evidence: Evidence) -> _Section | None:
    scores, logits = evidence.scores, evidence.logits
    if isinstance(scores, str):
        return None
    heading = "Calibration"
    lead = (
        f"{evidence.said} The expected calibration error is {percent(scores.ece)}: so far, on average, is the "
        "probability given to the predicted class from the share that is right."
    )
    if isinstance(logits, str):
        return "calibration", heading, page.soft(f"{lead} The diagram is left out: {logits}.")
    bins = [(b.low, b.high, b.images, b.confidence, b.accuracy) for b in evaluate.reliability(*logits)]
    chart = charts.reliability(f"Probability given and share right, {evidence.split} split", bins)
    return "calibration", heading, join((page.soft(lead), chart))


def _pictures(evidence: Evidence) -> _Section:
    anchor, heading, judged = "mistakes", "Mistakes", evidence.judged
    if isinstance(judged, str):
        return anchor, heading, page.soft(f"The images are left out: {judged}.")
    first, kept = gallery.mistakes(judged)
    wrong = int((judged.probabilities.argmax(1) != judged.labels).sum())
    parts = [page.soft(f"{evidence.said} To look at, not to choose by.")]
    if first:
        predicted = judged.probabilities.argmax(1)
        pairs: dict[tuple[int, int], int] = {}
        for i in kept:
            pair = int(judged.labels[i]), int(predicted[i])
            pairs[pair] = pairs.get(pair, 0) + 1
        options = [tag("option", f"all classes: the {len(first)} most confident", value="")]
        for (true, taken), count in sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0])):
            text = f"{judged.classes[true]}, taken for {judged.classes[taken]} ({count})"
            options.append(tag("option", shortened(text, 80), value=f"{true}-{taken}"))
        choice = tag("label", "show ", tag("select", *options, id="pairs"))
        parts += [
            tag("h3", f"The most confident of {wrong:,} mistakes"),
            tag("div", choice, class_="controls", hidden=True),
            gallery.grid(judged, kept, first=first, id_="wrong"),
        ]
    else:
        parts.append(tag("p", "There is no mistake to show."))
    near = gallery.least_certain(judged)
    if near:
        parts += [tag("h3", "Right, and least certain of it"), gallery.grid(judged, near)]
    return anchor, heading, join(parts)


def _looks(evidence: Evidence) -> _Section | None:
    judged = evidence.judged
    if isinstance(judged, str) or isinstance(evidence.classifier, str):
        return None
    remark = (
        f"Some {evidence.split} images, four of the mistakes above first, and what a grey window over a part takes "
        "from the probability of the class predicted for the image as it is: orange speaks for it, blue against it "
        "(occlusion, Zeiler and Fergus 2013)."
    )
    looks = gallery.looks(judged, lambda images: torch.softmax(evidence.predict(images), 1))
    return "looks", "Where it looks", join((page.soft(remark), looks))


def _network(evidence: Evidence) -> _Section:
    anchor, heading, classifier = "network", "The network", evidence.classifier
    if isinstance(classifier, str):
        return anchor, heading, page.soft(f"Left out: {classifier}.")
    rows = models.summarize(classifier.network, classifier.image_size, len(classifier.mean))
    stages = []
    for panel in pictures.stages(rows):
        boxes = [
            tag(
                "div",
                tag("b", box.lines[0]),
                *(tag("span", text) for text in box.lines[1:]),
                class_=f"block c{_COLOURS.get(box.colour, 7)}",
            )
            for box in panel.boxes
        ]
        foot = tag("div", *(tag("div", text) for text in panel.footer), class_="foot")
        stages.append(tag("li", tag("b", panel.title), *boxes, foot))
    total = sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)
    table = [
        (row.name, " x ".join(map(str, row.output_shape)), f"{row.parameters:,}", f"{row.multiply_adds:,}", row.kind)
        for row in rows
    ]
    table.append(("total", "", f"{total[0]:,}", f"{total[1]:,}", ""))
    head = ("layer", "output", "parameters", "multiply-adds", "kind")
    parts = [
        page.soft("From the image to the logits; what a stage puts out is channels x height x width."),
        tag("ol", *stages, class_="network"),
        page.unfolding(f"All {len(rows)} layers and blocks", page.table(head, table, numbers=(1, 2, 3))),
    ]
    filters = gallery.filters(classifier.network)
    if filters is not None:
        parts += [
            tag("h3", "First layer"),
            page.soft(f"{filters[1]}, each scaled by its own largest weight."),
            filters[0],
        ]
    return anchor, heading, join(parts)


def _shift(evidence: Evidence) -> _Section | None:
    path = evidence.run.folder / SHIFT
    if not path.is_file():
        return None
    heading = "Under corruption"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        clean = float(found["clean"]["accuracy"])
        accuracies = {
            str(name): {str(severity): float(cell["accuracy"]) for severity, cell in row.items()}
            for name, row in found["corruptions"].items()
        }
        images, split, source, weights = (found[key] for key in ("images", "split", "source", "weights"))
        mean = found["mean_corruption"] and float(found["mean_corruption"]["accuracy"])
        how = [VIEWS.get(found["tta"], found["tta"]), *(f"with {each['remedy']}" for each in found.get("remedies", ()))]
        how += ["in int8"] if found["arithmetic"] == "int8" else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not what `budgetnet evaluate --shift all --output {SHIFT}` wrote ({error!r}): remove it"
        ) from error
    classifier = evidence.classifier
    if isinstance(classifier, Classifier) and weights != checkpoint.digest({}, classifier.network.state_dict()):
        return "shift", heading, page.soft(f"Left out: {SHIFT} was measured with other weights; measure it again.")
    severities = list(dict.fromkeys(severity for row in accuracies.values() for severity in row))
    cells: list[list[charts.Cell | None]] = []
    for name, row in accuracies.items():
        values = [*(row.get(severity) for severity in severities), sum(row.values()) / len(row)]
        titles = [*(f"severity {severity}" for severity in severities), "mean"]
        cells.append(
            [
                None
                if value is None
                else charts.Cell(
                    text=f"{100 * value:.1f}",
                    strength=(clean - value) / clean if clean else 0,
                    colour=1,
                    tip=f"{name}, {title}: {percent(value)} right, {percent(clean)} without corruption",
                )
                for title, value in zip(titles, values, strict=True)
            ]
        )
    title = f"Accuracy in % by severity, {split} split; the more is lost, the deeper"
    lead = f"On {images:,} {split} images ({source}), {', '.join(how)}; without corruption {percent(clean)} are right"
    lead += f", over the 15 common corruptions {percent(mean)}." if mean else "."
    chart = charts.heat(title, list(accuracies), [*severities, "mean"], cells, column_name="severity", cell_width=42.0)
    return "shift", heading, join((page.soft(lead), chart))


def _recipe(run: Run) -> _Section:
    import yaml

    usual = runs.defaults()
    set_ = {key: value for key, value in runs.flat(run.config).items() if usual.get(key) != value}
    whole = page.code(yaml.safe_dump(dict(run.config), sort_keys=False, width=100))
    content = join(
        (
            page.soft("What differs from the defaults; the rest is below."),
            page.pairs(set_),
            page.unfolding("The whole recipe, resolved", whole),
        )
    )
    return "recipe", "The recipe", content


def _origin(run: Run, data: Path | None) -> _Section:
    said: dict[str, object] = {}
    for group in ("tags", "versions", "hardware"):
        said |= {str(key).replace("_", " "): value for key, value in (run.find(group, dict) or {}).items()}
    folder, at, on = str(run.folder), ["--data", str(data)] if data else [], same_machine(run)
    again = ["budgetnet", "train", f"{folder}/config.yaml", *at, *on, "--output", f"{folder}-again"]
    further = ["budgetnet", "train", "--resume", "--output", folder, *at, *on]
    epochs = run.option("epochs", int) or 0
    commands: list[tuple[str, list[str]]] = [("Train it again", again)]
    if run.finished:
        commands.append(("Train it for longer", [*further, "--epochs", str(2 * epochs)]))
    else:
        commands.append(("Go on where it stopped", further))
    commands.append(("Score it again", ["budgetnet", "evaluate", folder, *at]))
    commands.append(("Classify images", ["budgetnet", "predict", folder, "IMAGES"]))
    commit = run.find("tags.git_commit", str)
    source = f" of commit {commit}" if commit and commit != "unknown" else ""
    source += ", with files that differ from it" if source.endswith("+") else ""
    parts = [page.pairs(said) if said else page.soft("Nothing is recorded yet: it is when the run ends.")]
    for name, command in commands:
        parts += [tag("h3", name), page.code(shlex.join(command))]
    parts.append(
        page.soft(
            f"With budgetnet{source}. On the CPU, the same versions, data, machine and number of threads give the same "
            "weights, bit for bit."
        )
    )
    return "origin", "Where it comes from", join(parts)
