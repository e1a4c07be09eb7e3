"""`budgetnet predict`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.cli.common import command_parser, json_text, path
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

    from budgetnet.classifier import Classifier
    from budgetnet.data import Dataset
    from budgetnet.evaluate import LabelScores
    from budgetnet.images import Images


_SHOWN, _WORTH_SHOWING = 5, 0.005  # of the classes of a single image: so many, and down to that probability
COST_IMAGES = 5000  # by which the cost of int8 is told where there is no validation split


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(commands, "predict", _predict, "classify images, and write a submission")
    command.set_defaults(further=[])  # an input that options part from the model
    command.add_argument("checkpoint", type=path, nargs="?", help=f"{CHECKPOINT} (which nothing means too)")
    add_device(command)
    add_data(command)
    add_engine(command)
    command.add_argument("input", type=path, help="contest pickle, folder of images, single image, or .npy")
    command.add_argument("--output", type=path, metavar="FILE.csv", help="write a submission: ID,Labels")
    command.add_argument(
        "--probabilities", action="store_true", help="write FILE.probabilities.csv too, a column a class"
    )
    command.add_argument("--labels", type=path, metavar="FILE", help="score the predictions against known ID,Labels")
    add_remedies(command)


def _predict(options: Namespace) -> int:
    from budgetnet import checkpoint, data, origin

    _name_the_model(options)
    _check(options)
    classifier = classifier_of(options)
    images = data.read_images(options.input, classifier.image_size)
    trained = origin.trained_on(options.checkpoint, classifier)
    dataset = _data_to_fit(options, classifier, trained)
    ready = prepare(options, classifier, dataset, trained)
    remedies = ready.remedies
    stages = ready.classify(images.images)
    for remedy, before, after in zip(remedies, stages, stages[1:], strict=False):
        remedy["predictions_changed"] = (before.argmax(1) != after.argmax(1)).double().mean().item()
    predictions = _Predictions(images, stages[-1], classifier.classes)
    result: dict[str, Any] = {
        "checkpoint": str(options.checkpoint),
        "input": str(options.input),
        "images": len(images),
        **computed_by(ready.network),
        "tta": options.tta,
    }
    if options.precision == "int8":
        assert dataset is not None
        result["int8"] = _cost_of_int8(options, classifier, ready, dataset, trained)
    if remedies:
        result["remedies"] = remedies
    # What can be refused comes first, so that a mistake leaves nothing behind.
    scores = _score(predictions.ids, stages, options.labels, len(classifier.classes), remedies)
    if scores:
        result["scores"] = scores.to_dict()
    if options.output:
        result |= _write(predictions, options.output, probabilities=options.probabilities)
    else:
        result["predictions"] = predictions.rows()
    if options.json:
        print(json_text(result))
        return 0
    for line in _told(result, predictions, scores, options.labels):
        print(line)
    if checkpoint.is_box(options.checkpoint):
        print("\n".join(("", *_about_the_box(classifier))), file=sys.stderr)
    return 0


def _check(options: Namespace) -> None:
    """Refuse options that make no sense together, and to write over what is read."""
    from budgetnet import checkpoint, files

    if options.output is None and (options.probabilities or options.labels):
        raise ConfigError("--probabilities and --labels need a submission: give --output FILE.csv too")
    if options.precision != "int8" and not fits(options) and (options.data or options.dataset):
        raise ConfigError(
            "--data and --dataset name what --precision int8 is calibrated on, and --temperature fit and "
            "--view-weights fit are fitted on: leave them out"
        )
    check_remedies(options)
    if options.output is None:
        return
    read = [options.input, *checkpoint.files_of(options.checkpoint), *filter(None, [options.labels])]
    files.require_apart([options.output, *([_beside(options.output)] if options.probabilities else [])], read)
    if options.output.suffix.lower() != ".csv":
        raise ConfigError(f"--output is {options.output}, expected a name that ends in .csv")


def _beside(output: Path) -> Path:
    """The file of probabilities that goes with a submission."""
    return output.with_suffix(".probabilities.csv")


class _Predictions:
    """What is said of each image, in their order: `ids`, `labels`, and `probabilities` (n, classes)."""

    def __init__(self, images: Images, logits: torch.Tensor, classes: tuple[str, ...]) -> None:
        self.ids: list[int] = list(range(len(images))) if images.ids is None else images.ids.tolist()
        self.files, self.classes = images.names, classes
        self.labels: list[int] = logits.argmax(1).tolist()
        self.probabilities = logits.softmax(1)

    def rows(self) -> list[dict[str, Any]]:
        """One for each image."""
        rows: list[dict[str, Any]] = [
            {"ID": i, "label": label, "class": self.classes[label], "probability": p[label].item()}
            for i, label, p in zip(self.ids, self.labels, self.probabilities, strict=True)
        ]
        for row, file in zip(rows, self.files or (), strict=False):
            row["file"] = file
        return rows


def _score(
    ids: list[int], stages: list[torch.Tensor], labels: Path | None, classes: int, remedies: list[dict[str, Any]]
) -> LabelScores | None:
    """The scores against known labels, where there are some; `remedies` are told what each did for the accuracy."""
    from budgetnet import evaluate, predict
    from budgetnet.remedies import gain

    if labels is None:
        return None
    true = predict.true_labels(ids, labels, classes)
    predicted = [logits.argmax(1).cpu() for logits in stages]
    scores = [evaluate.score_labels(each, true, classes) for each in predicted]
    for i, remedy in enumerate(remedies):
        remedy |= {"accuracy_before": scores[i].accuracy, "accuracy_after": scores[i + 1].accuracy}
        remedy["gain"] = gain(predicted[i] == true, predicted[i + 1] == true)
    return scores[-1]


def _write(predictions: _Predictions, output: Path, *, probabilities: bool) -> dict[str, str]:
    """Write a submission, and with `probabilities` a file of these beside it; where they are."""
    from budgetnet import predict

    written = {}
    ids, classes = predictions.ids, predictions.classes
    if probabilities:
        beside = _beside(output)
        predict.write_probabilities(beside, ids, predictions.probabilities, classes, files=predictions.files)
        written["probabilities"] = str(beside)
    predict.write_submission(output, ids, predictions.labels, len(classes))
    return written | {"output": str(output)}


def _told(
    result: dict[str, Any], predictions: _Predictions, scores: LabelScores | None, labels: Path | None
) -> Iterator[str]:
    """The result, for people."""
    from budgetnet import evaluate
    from budgetnet.remedies import render_predicted

    if "predictions" in result:
        rows = result["predictions"]
        yield from _table(_classes(rows[0], predictions) if len(rows) == 1 else rows)
    for key in ("output", "probabilities"):
        if key in result:
            yield f"{result[key]}: {result['images']:,} rows"
    if scores:
        yield f"against {labels}:"
        yield evaluate.render(scores, predictions.classes)
    yield from map(render_predicted, result.get("remedies", ()))
    if "int8" in result:
        yield int8_line(result["int8"])


def _name_the_model(options: Namespace) -> None:
    """Put model and input into their places: one alone is an input, for the model that budgetnet brings.

    Raises:
        ConfigError: there is more, or a model and no input, or a model where the input stands.
        CheckpointError: this copy of budgetnet brings no model.
    """
    from budgetnet import checkpoint, registry

    further = options.further
    if options.checkpoint is None and len(further) == 1 and not further[0].startswith("-"):
        options.checkpoint, options.input = options.input, Path(further.pop())
    if further:
        raise ConfigError(f"unrecognized arguments: {' '.join(further)} (see budgetnet predict --help)")
    what, model = options.input, options.checkpoint
    if model is not None:
        if checkpoint.is_model(what) and not registry.is_registered(model) and not checkpoint.is_model(model):
            raise ConfigError(f"{what} is a model, and {model} is none: name the model first, then the images")
        return
    if registry.is_registered(what) or checkpoint.is_model(what):
        raise ConfigError(f"{what} is a model: say what it shall classify, `budgetnet predict {what} photo.jpg`")
    options.checkpoint = checkpoint.box()


def _classes(row: dict[str, Any], predictions: _Predictions) -> list[dict[str, Any]]:
    """Rows for the most probable classes of a single image, and one for all others together."""
    classes = predictions.classes
    shares, order = predictions.probabilities[0].sort(descending=True)
    shown = max(1, min(_SHOWN, int((shares >= _WORTH_SHOWING).sum())))
    found = [(classes[i], share) for i, share in zip(order[:shown].tolist(), shares.tolist(), strict=False)]
    left = len(shares) - shown
    if left:
        others = classes[int(order[-1])] if left == 1 else f"{left} others"
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
