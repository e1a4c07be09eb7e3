"""`budgetnet predict`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.cli.common import command_parser
from budgetnet.cli.model import (
    add_data,
    add_engine,
    add_model,
    add_remedies,
    check_remedies,
    classifier_of,
    computed_by,
    computing_network,
    dataset_of,
    fits,
    int8_cost,
    int8_line,
    logits_of,
    remedied,
)
from budgetnet.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from budgetnet.checkpoint import Classifier
    from budgetnet.data import Dataset
    from budgetnet.engine import Engine


COST_IMAGES = 5000  # by which the cost of int8 is told where there is no validation split


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(commands, "predict", _predict, "classify images, and write a submission")
    add_model(command)
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

    from budgetnet import data, evaluate, origin, predict
    from budgetnet.remedies import render_predicted

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
    network = computing_network(options, classifier)
    trained = origin.trained_on(options.checkpoint, classifier)
    dataset = _data_to_fit(options, classifier, trained)
    if options.precision == "int8":
        assert dataset is not None
        network, cost = _quantized_for_prediction(options, classifier, network, dataset, trained)
    remedies, classify = remedied(options, classifier, network, dataset, trained)
    stages = classify(images.images)
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
        **computed_by(network),
        "tta": options.tta,
    }
    if options.precision == "int8":
        result["int8"] = cost
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
        for line in _table(result["predictions"]):
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
        print(int8_line(cost))
    return 0


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


def _quantized_for_prediction(
    options: Namespace,
    classifier: Classifier,
    exact: torch.nn.Module | Engine,
    dataset: Dataset,
    trained: dict[str, Any],
) -> tuple[Engine, dict[str, Any]]:
    """The network in int8, and what that costs on the images that the model was chosen by, else was trained on."""
    from budgetnet import origin

    labels = dataset.train.labels
    assert labels is not None
    training, validation = origin.known_split(dataset, trained)
    split, chosen = ("val", validation) if len(validation) else ("train", origin.some_of(training, COST_IMAGES))
    quantized = origin.quantize(classifier, dataset, trained)
    pixels = dataset.train.images[chosen]
    before, after = (logits_of(network, classifier, pixels, options) for network in (exact, quantized))
    return quantized, int8_cost(before, after, labels[chosen], split)
