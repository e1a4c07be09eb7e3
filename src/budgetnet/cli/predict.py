"""`budgetnet predict`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.cli.common import command_parser
from budgetnet.cli.model import (
    CHECKPOINT,
    Prepared,
    add_data,
    add_device,
    add_engine,
    add_remedies,
    check_remedies,
    classifier_of,
    computed_by,
    dataset_of,
    fits,
    int8_cost,
    int8_line,
    logits_of,
    prepare,
)
from budgetnet.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from budgetnet.checkpoint import Classifier
    from budgetnet.data import Dataset


_SHOWN, _WORTH_SHOWING = 5, 0.005  # of the classes of a single image: so many, and down to that probability
COST_IMAGES = 5000  # by which the cost of int8 is told where there is no validation split


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(commands, "predict", _predict, "classify images, and write a submission")
    command.set_defaults(further=[])  # an input that options part from the model
    command.add_argument("checkpoint", type=Path, nargs="?", help=f"{CHECKPOINT} (which nothing means too)")
    add_device(command)
    add_data(command)
    add_engine(command)
    command.add_argument("input", type=Path, help="contest pickle, folder of images, single image, or .npy")
    command.add_argument("--output", type=Path, metavar="FILE.csv", help="write a submission: ID,Labels")
    command.add_argument(
        "--probabilities", action="store_true", help="write FILE.probabilities.csv too, a column a class"
    )
    command.add_argument("--labels", type=Path, metavar="FILE", help="score the predictions against known ID,Labels")
    add_remedies(command)


def _predict(options: Namespace) -> int:
    import torch

    from budgetnet import checkpoint, data, evaluate, origin, predict
    from budgetnet.remedies import render_predicted

    _name_the_model(options)
    if options.output is None and (options.probabilities or options.labels):
        raise ConfigError("--probabilities and --labels need a submission: give --output FILE.csv too")
    if options.precision != "int8" and not fits(options) and (options.data or options.dataset):
        raise ConfigError(
            "--data and --dataset name what --precision int8 is calibrated on, and --temperature fit and "
            "--view-weights fit are fitted on: leave them out"
        )
    check_remedies(options)
    classifier = classifier_of(options)
    images = data.read_images(options.input, classifier.image_size)
    trained = origin.trained_on(options.checkpoint, classifier)
    dataset = _data_to_fit(options, classifier, trained)
    ready = prepare(options, classifier, dataset, trained)
    remedies = ready.remedies
    stages = ready.classify(images.images)
    logits = stages[-1]
    for remedy, before, after in zip(remedies, stages, stages[1:], strict=False):
        remedy["predictions_changed"] = (before.argmax(1) != after.argmax(1)).double().mean().item()
    probabilities = torch.softmax(logits, 1)
    labels = logits.argmax(1).tolist()
    ids = list(range(len(labels))) if images.ids is None else images.ids.tolist()
    result: dict[str, Any] = {
        "checkpoint": str(options.checkpoint),
        "input": str(options.input),
        "images": len(ids),
        **computed_by(ready.network),
        "tta": options.tta,
    }
    if options.precision == "int8":
        assert dataset is not None
        result["int8"] = _cost_of_int8(options, classifier, ready, dataset, trained)
    if remedies:
        result["remedies"] = remedies
    if options.output:
        # What can be refused comes first, so that a mistake leaves nothing behind.
        if options.labels:
            every = [
                predict.score_predictions(ids, stage.argmax(1).tolist(), options.labels, len(classifier.classes))
                for stage in stages
            ]
            scores = every[-1]
            result["scores"] = scores.to_dict()
            for remedy, one, other in zip(remedies, every, every[1:], strict=False):
                remedy |= {"accuracy_before": one.accuracy, "accuracy_after": other.accuracy}
        if options.probabilities:
            beside = options.output.with_suffix(".probabilities.csv")
            predict.write_probabilities(beside, ids, probabilities, classifier.classes, files=images.names)
            result["probabilities"] = str(beside)
        predict.write_submission(options.output, ids, labels, len(classifier.classes))
        result["output"] = str(options.output)
    else:
        result["predictions"] = [
            {"ID": i, "label": label, "class": classifier.classes[label], "probability": p[label].item()}
            for i, label, p in zip(ids, labels, probabilities, strict=True)
        ]
        for entry, file in zip(result["predictions"], images.names or (), strict=False):
            entry["file"] = file
    if options.json:
        print(json.dumps(result))
        return 0
    if "predictions" in result:
        rows = result["predictions"]
        for line in _table(_classes(rows[0], probabilities[0], classifier) if len(rows) == 1 else rows):
            print(line)
    for key in ("output", "probabilities"):
        if key in result:
            print(f"{result[key]}: {len(ids):,} rows")
    if options.labels:
        print(f"against {options.labels}:")
        print(evaluate.render(scores, classifier.classes))
    for remedy in remedies:
        print(render_predicted(remedy))
    if options.precision == "int8":
        print(int8_line(result["int8"]))
    if checkpoint.is_box(options.checkpoint):
        print("\n".join(("", *_about_the_box(classifier))), file=sys.stderr)
    return 0


def _name_the_model(options: Namespace) -> None:
    """Put model and input into their places: one alone is an input, for the model that budgetnet brings.

    Raises:
        ConfigError: there is more, or a model and no input.
        CheckpointError: this copy of budgetnet brings no model.
    """
    from budgetnet import checkpoint, registry

    further = options.further
    if options.checkpoint is None and len(further) == 1 and not further[0].startswith("-"):
        options.checkpoint, options.input = options.input, Path(further.pop())
    if further:
        raise ConfigError(f"unrecognized arguments: {' '.join(further)} (see budgetnet predict --help)")
    if options.checkpoint is not None:
        return
    what = options.input
    if registry.is_registered(what) or checkpoint.is_model(what):
        raise ConfigError(f"{what} is a model: say what it shall classify, `budgetnet predict {what} photo.jpg`")
    options.checkpoint = checkpoint.box()


def _classes(row: dict[str, Any], probabilities: torch.Tensor, classifier: Classifier) -> list[dict[str, Any]]:
    """Rows for the most probable classes of a single image, and one for all others together."""
    shares, order = probabilities.sort(descending=True)
    shown = max(1, min(_SHOWN, int((shares >= _WORTH_SHOWING).sum())))
    found = [(classifier.classes[i], share) for i, share in zip(order[:shown].tolist(), shares.tolist(), strict=False)]
    left = len(shares) - shown
    if left:
        others = classifier.classes[int(order[-1])] if left == 1 else f"{left} others"
        found.append((others, shares[shown:].sum().item()))
    first, *rest = [row | {"class": name, "probability": share} for name, share in found]
    return [first, *(each | {"ID": ""} | ({"file": ""} if "file" in row else {}) for each in rest)]


def _about_the_box(classifier: Classifier) -> list[str]:
    """What the model that budgetnet brings is, and what it can not say."""
    from budgetnet import hub
    from budgetnet.terminal import columns, wrapped

    test = hub.box_record()["test"]["none"]
    *classes, last = classifier.classes
    text = (
        f"By the model that budgetnet brings: {classifier.model.name}, {classifier.parameters:,} parameters, right on "
        f"{test['accuracy']:.1%} of the {test['n']:,} test images of CIFAR-10. It looks at {classifier.image_size}x"
        f"{classifier.image_size} pixels, and knows {', '.join(classes)} and {last}: whatever else a picture shows, it "
        "calls one of these."
    )
    return wrapped(text, columns())


def _table(predictions: list[dict[str, Any]]) -> Iterator[str]:
    """A line an image: its file or ID, class and probability, in columns."""
    from budgetnet.markup import visible
    from budgetnet.terminal import cell_len, columns, fitted

    classes = [visible(row["class"]) for row in predictions]
    if "file" in predictions[0]:
        names = [visible(row["file"]) for row in predictions]
    else:
        digits = max(len(str(row["ID"])) for row in predictions)
        names = [f"{row['ID']:>{digits}}" for row in predictions]
    shares = [f"{row['probability']:.1%}" for row in predictions]
    share_width = max(map(len, shares))
    room = columns() - share_width - 4
    class_width = min(max(map(cell_len, classes)), room // 2)
    name_width = min(max(map(cell_len, names)), room - class_width)
    for name, label, share in zip(names, classes, shares, strict=True):
        yield f"{fitted(name, name_width)}  {fitted(label, class_width)}  {share:>{share_width}}"


def _data_to_fit(options: Namespace, classifier: Classifier, trained: dict[str, Any]) -> Dataset | None:
    """The data that a prediction is prepared by, where it is."""
    if options.precision == "int8":
        what = "--precision int8 is calibrated on training images"
    elif fits(options):
        named = "temperature" if options.temperature == "fit" else "view-weights"
        what = f"--{named} fit is fitted on validation images"
    else:
        return None
    try:
        return dataset_of(options, classifier, trained)
    except DataError as error:
        raise DataError(f"{what}, named by --data: {error}") from error


def _cost_of_int8(
    options: Namespace, classifier: Classifier, ready: Prepared, dataset: Dataset, trained: dict[str, Any]
) -> dict[str, Any]:
    """What int8 costs on the images that the model was chosen by, else was trained on."""
    from budgetnet import origin

    training, validation = origin.known_split(dataset, trained)
    split, chosen = ("val", validation) if len(validation) else ("train", origin.some_of(training, COST_IMAGES))
    pixels = dataset.train.images[chosen]
    before, after = (logits_of(each, classifier, pixels, options) for each in (ready.exact, ready.network))
    return int8_cost(before, after, dataset.train.targets[chosen], split)
