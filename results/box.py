"""The model that budgetnet brings, in src/budgetnet/box: replaced by a better one, which is measured first.

    python results/box.py RUN [RUN ...] [--data DIR] [--limit N]

Of several runs, that of the highest validation accuracy is taken, and the record says of how many. A run is refused
where it is not of CIFAR-10 as it should be, or no better than the model that is there: on validation images, as whoever
chooses by test images can no longer test. Weights are kept in 16 bits; those of the last layer are divided by the
temperature that fits the validation images, so that probabilities mean what they say and answers stay the same.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet import __version__ as version
from budgetnet import checkpoint, data, devices, evaluate, export, hub, masking, origin, robustness, runs, shift, splits
from budgetnet.classifier import Classifier
from budgetnet.data import Dataset
from budgetnet.errors import BudgetnetError
from budgetnet.logits import predict_logits
from budgetnet.progress import PlainProgress
from budgetnet.recipe import load_recipe
from budgetnet.runs import Run

ROOT = Path(__file__).parent.parent
BOX = ROOT / "src" / "budgetnet" / checkpoint.BOX
COMPARED = 2000  # validation images by which the weights in 16 bits are compared with the original
SHIFT_SEED = 0  # as `budgetnet evaluate --shift` has it
LICENCE = "mit"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a run must be of to come into the box."""

    dataset: str = "cifar10"
    checksum: str = "a73f4fa489227624aa514a22c7d70708d6a343c13c834e34221872c9ad4a9f5a"  # of the official files
    val_size: int = 5000
    split_seed: int = 0
    budget: int = 5_000_000


def require_fit(run: Run, rules: Rules) -> None:
    """Refuse a run that has no place in the box, whatever it reached.

    Raises:
        BudgetnetError: says why.
    """
    parameters = run.find("parameters", int) or 0
    split = run.option("val_size", int), run.option("split_seed", int), run.option("train_size", int)
    why = ""
    if not run.finished:
        why = f"has not finished: go on by `budgetnet train --resume --output {run.folder}`"
    elif run.option("train_on_test", bool) or run.find("trained_on_test", bool):
        why = "was trained on the test images too, so that nothing can test it"
    elif run.option("dataset", str) != rules.dataset:
        why = f"is of {run.option('dataset', str)}, expected {rules.dataset}"
    elif run.checksum != rules.checksum:
        why = f"was trained on other data than the official ones (checksum {run.checksum}, expected {rules.checksum})"
    elif split != (rules.val_size, rules.split_seed, None):
        why = (
            f"has val_size, split_seed and train_size {split}, expected {(rules.val_size, rules.split_seed, None)}: "
            "models are compared on the same validation images"
        )
    elif not 0 < parameters <= rules.budget:
        why = f"has {parameters:,} parameters, expected at most {rules.budget:,}"
    elif run.find("final.val_accuracy", float) is None:
        why = "says of no validation accuracy in its summary.json"
    if why:
        raise BudgetnetError(f"{run.folder} {why}")


def val_accuracy(run: Run) -> float:
    """By which runs are compared."""
    found = run.find("final.val_accuracy", float)
    assert found is not None, "runs that fit have one"
    return found


def choose(folders: Sequence[Path], rules: Rules, box: Path) -> tuple[Run, list[Run]]:
    """The run to take, and all that it was chosen from.

    Raises:
        BudgetnetError: a run does not fit, or none is better than what is there.
    """
    found = [runs.read(folder) for folder in folders]
    for run in found:
        require_fit(run, rules)
    best = max(found, key=val_accuracy)
    if (box / hub.RECORD).is_file():
        there = runs.read_mapping(box / hub.RECORD, json.loads)
        least = there["validation"]["accuracy"]
        if val_accuracy(best) <= least:
            raise BudgetnetError(
                f"{best.folder} is right on {val_accuracy(best):.2%} of the validation images, and the model in the "
                f"box ({there['run']}) on {least:.2%}: it stays"
            )
    return best, found


def calibrated(classifier: Classifier, pixels: Tensor, labels: Tensor) -> tuple[Classifier, float]:
    """The classifier with its last layer divided by the temperature that fits these images, and the temperature.

    Raises:
        BudgetnetError: the last linear layer is not what gives this network's logits.
    """
    from budgetnet.remedies import fit_temperature

    def logits(of: Classifier, some: Tensor) -> Tensor:
        return predict_logits(of.computer, some, of.mean, of.std)

    temperature = fit_temperature(logits(classifier, pixels), labels)
    network = copy.deepcopy(classifier.network)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for parameter in layers[-1].parameters() if layers else ():
            parameter /= temperature
    found = replace(
        classifier, network=network, provenance=classifier.provenance | {"temperature": round(temperature, 6)}
    )
    few = pixels[:64]
    expected = logits(classifier, few) / temperature
    if not torch.allclose(logits(found, few), expected, rtol=1e-3, atol=1e-3):
        raise BudgetnetError(f"the last linear layer of {classifier.model.name} does not give its logits alone")
    return found, temperature


def command(config: Mapping[str, Any]) -> str:
    """The command line that trains by this configuration, from the recipe that is nearest to it."""
    own = runs.flat(config)
    best: list[str] | None = None
    for recipe in sorted((ROOT / "recipes").glob("*.yaml")):
        theirs = runs.flat(asdict(load_recipe(recipe)))
        options = [
            part
            for name, value in own.items()
            if theirs.get(name) != value
            for part in (f"--{name.replace('_', '-')}", value)
        ]
        if best is None or len(options) < len(best) - 1:
            best = [f"recipes/{recipe.name}", *options]
    assert best is not None, "there are recipes"
    return shlex.join(["budgetnet", "train", *best])


def test_scores(classifier: Classifier, dataset: Dataset, views: Sequence[str], limit: int | None) -> Any:
    """What `evaluate.Scores.to_dict` gives of the test images, by views that are averaged."""
    pixels, labels, _ = some_test_images(dataset, limit)
    found = {}
    for tta in views:
        logits = predict_logits(classifier.computer, pixels, classifier.mean, classifier.std, tta=tta)
        found[tta] = evaluate.score(logits, labels).to_dict()
    return found


def some_test_images(dataset: Dataset, limit: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, labels and places of test images, as `budgetnet evaluate --limit` takes them."""
    labels = dataset.test.labels
    assert labels is not None
    chosen = torch.arange(len(labels))
    if limit is not None and limit < len(labels):
        _, chosen = splits.split(labels, limit, 0)
    return dataset.test.images[chosen], labels[chosen], chosen


def shift_scores(classifier: Classifier, dataset: Dataset, limit: int | None) -> dict[str, Any]:
    """What the 15 common corruptions, of five severities each, leave of the accuracy."""
    pixels, labels, ids = some_test_images(dataset, limit)

    def classify(images: Tensor) -> list[Tensor]:
        return [predict_logits(classifier.computer, images, classifier.mean, classifier.std)]

    def corrupted(name: str, severity: int) -> Tensor:
        return shift.corrupt(pixels, name, severity, indices=ids, seed=SHIFT_SEED)

    progress = PlainProgress(sys.stderr)
    (found,) = robustness.measure(classify, pixels, labels, corrupted, shift.COMMON, shift.SEVERITIES, progress.score)
    return {"images": len(labels), "seed": SHIFT_SEED, "views": "none", **found.to_dict()}


def build(run: Run, all_runs: Sequence[Run], dataset: Dataset, folder: Path, limit: int | None) -> dict[str, Any]:
    """Write the new box into a folder that is not there yet, and return its record.

    Raises:
        BudgetnetError: the model is not what its run says, or 16 bits are too few for it.
    """
    import onnxruntime

    classifier = run.classifier
    trained = origin.trained_on(run.folder, classifier)
    if dataset.checksum != trained["data_checksum"]:
        raise BudgetnetError(
            f"the data have the checksum {dataset.checksum}, expected that of {run.folder}, {trained['data_checksum']}"
        )
    assert dataset.train.labels is not None
    _, validation = origin.known_split(dataset, trained)
    pixels, labels = dataset.train.images[validation], dataset.train.labels[validation]
    classifier, temperature = calibrated(classifier, pixels, labels)
    compared = export.export(
        classifier, run.folder, folder, dataset, form="hub", precision="fp16", split="val", limit=COMPARED
    )
    boxed = checkpoint.load_classifier(folder)
    logits = predict_logits(boxed.computer, pixels, boxed.mean, boxed.std)
    validated = evaluate.score(logits, labels)
    if abs(validated.accuracy - val_accuracy(run)) > 0.005:
        raise BudgetnetError(
            f"{run.folder} says of {val_accuracy(run):.2%} on validation images, and its weights reach "
            f"{validated.accuracy:.2%}: it is not what its summary.json sums up"
        )
    views = ["none", *({run.views} - {"none"})]
    config = masking.masked(dict(run.config))
    record = {
        "run": run.name,
        "picked_from": [{"run": each.name, "val_accuracy": val_accuracy(each)} for each in all_runs],
        "command": command(config),
        "config": config,
        "seed": run.option("seed", int),
        "epochs": run.find("final.epochs", float),
        "best_epoch": run.find("final.best_epoch", float),
        "minutes": run.find("final.minutes", float),
        "hardware": run.find("hardware", dict),
        "versions": run.find("versions", dict),
        "git_commit": run.find("tags.git_commit", str),
        "data_checksum": run.checksum,
        "parameters": boxed.parameters,
        "sha256": digest(folder),
        "validation": {
            "images": len(labels),
            "accuracy": val_accuracy(run),
            "accuracy_in_the_box": validated.accuracy,
            "ece": validated.ece,
        },
        "temperature": temperature,
        "float16": {
            "images": compared.images,
            "largest_difference": max(compared.largest_difference.values()),
            "agreement": compared.agreement,
            "points_lost": compared.points_lost,
            "bytes": (folder / checkpoint.HUB_WEIGHTS).stat().st_size,
        },
        "test": test_scores(boxed, dataset, views, None),
        "test_of_the_run": {views: test.to_dict() for views, test in run.tests.items()},
        "shift": shift_scores(boxed, dataset, limit),
        "measured_by": {
            "budgetnet": version,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "hardware": devices.hardware(torch.device("cpu")),
        },
    }
    (folder / hub.RECORD).write_text(json.dumps(record, indent=1) + "\n")
    (folder / hub.CARD).write_text(card(boxed, record))
    return record


def digest(folder: Path) -> str:
    """SHA-256 of the weights' file."""
    return hashlib.sha256((folder / checkpoint.HUB_WEIGHTS).read_bytes()).hexdigest()


def card(classifier: Classifier, record: Mapping[str, Any]) -> str:
    """The model card, all of whose figures are the record's."""
    shifted, mean, clean = (record["shift"], *(record["shift"][key] for key in ("mean_corruption", "clean")))
    lines = [
        "## Under shift",
        "",
        f"The 15 corruptions of CIFAR-10-C at five severities, generated with seed {shifted['seed']} (`budgetnet "
        f"evaluate box --shift all`), on {shifted['images']:,} test images, without averaged views. Frost is a "
        "stand-in for the photographs that CIFAR-10-C shows.",
        "",
        "| accuracy in % at severity | 1 | 2 | 3 | 4 | 5 | mean | calibration error |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in shifted["corruptions"].items():
        cells = [100 * cell["accuracy"] for cell in row.values()]
        ece = 100 * sum(cell["ece"] for cell in row.values()) / len(row)
        shown = " | ".join(f"{cell:.1f}" for cell in [*cells, sum(cells) / len(cells)])
        lines.append(f"| {name.replace('_', ' ')} | {shown} | {ece:.1f} |")
    for name, cell in (("**mean**", mean), ("clean", clean)):
        lines.append(f"| {name} | | | | | | {100 * cell['accuracy']:.1f} | {100 * cell['ece']:.1f} |")
    lines += ["", "## How it was made", "", "```sh", record["command"], "```", ""]
    lines += [f"- {line}" for line in _making(record)]
    use = ("import budgetnet", "", 'model = budgetnet.load()  # or budgetnet.load("box")')
    return hub.card(
        f"{checkpoint.BOX}: {record['run']}",
        classifier,
        hub.figures(record["test"], record["validation"]["accuracy"]),
        licence=LICENCE,
        use=(*use, 'model.predict_proba("photo.jpg")'),
        sections=lines,
    )


def _making(record: Mapping[str, Any]) -> list[str]:
    """How the model came to be, in sentences."""
    picked, hardware, validation, half = (record[key] for key in ("picked_from", "hardware", "validation", "float16"))
    of = "One run, the only one" if len(picked) == 1 else f"The best of {len(picked)} runs by validation accuracy"
    now = record["test"]["none"]["ece"]
    before = record["test_of_the_run"].get("none", {}).get("ece")
    return [
        f"{of}, of one seed ({record['seed']}): how much another seed differs is not in these figures. The intervals "
        "are of the test images alone, 95 %.",
        f"{record['epochs']:.0f} epochs in {record['minutes']:.0f} minutes on "
        f"{hardware.get('gpu') or hardware.get('cpu')}, {hardware.get('threads')} threads at most, torch "
        f"{record['versions']['torch']}, commit `{record['git_commit'][:12]}`.",
        f"Epoch {record['best_epoch']:.0f} was chosen by {validation['images']:,} images that were held out of the "
        f"training set, of which {validation['accuracy']:.2%} were right.",
        f"Weights are in 16 bits ({half['bytes'] / 1e6:.1f} MB): of {half['images']:,} validation images "
        f"{half['agreement']:.2%} got the class that 32 bits give, and no probability moved by more than "
        f"{half['largest_difference']:.1e}.",
        f"The last layer is divided by a temperature of {record['temperature']:.3f}, fitted on the validation images, "
        "which changes probabilities and no answer"
        + (f": the calibration error on the test images was {before:.1%}, and is {now:.1%}." if before else "."),
        "`record.json` has every figure, and of each test the confusion matrix.",
        'Data: CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"), pictures collected '
        "from the web; none of them is part of budgetnet.",
        "Licence of the weights: MIT, as of budgetnet.",
        "A photograph of any size is squeezed into the few pixels that the network sees, whatever its shape. It is "
        "here so that every command can be tried at once: do not let it decide about people.",
    ]


def put(folder: Path, box: Path) -> None:
    """Put a finished folder into the place of the box; what was there goes, or stays if that fails."""
    old = folder.with_name("old")
    if box.exists():
        os.rename(box, old)
    try:
        os.rename(folder, box)
    except OSError:
        if old.exists():
            os.rename(old, box)
        raise


def replace_box(
    folders: Sequence[Path], dataset_folder: Path | None, limit: int | None, rules: Rules | None = None, box: Path = BOX
) -> dict[str, Any]:
    """Choose, measure and put into its place; the box is the old one until all is done. Returns the record.

    Raises:
        BudgetnetError: a run is refused, or the data are others.
    """
    rules = rules or Rules()
    best, found = choose(folders, rules, box)
    dataset = data.load(rules.dataset, dataset_folder, 32)
    temporary = Path(tempfile.mkdtemp(prefix=".box-", dir=box.parent))
    try:
        record = build(best, found, dataset, temporary / "new", limit)
        put(temporary / "new", box)
    finally:
        shutil.rmtree(temporary)
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = ArgumentParser(description="Replace the model that budgetnet brings by a better one.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data", type=Path, metavar="DIR", help="of CIFAR-10 (default: $BUDGETNET_DATA, cache)")
    parser.add_argument("--limit", type=int, metavar="N", help="corrupt only N test images (default: all)")
    options = parser.parse_args(arguments)
    try:
        record = replace_box(options.runs, options.data, options.limit)
    except BudgetnetError as error:
        sys.exit(f"box: {error}")
    print(f"{BOX}: {record['run']}, {record['parameters']:,} parameters")
    for views, test in record["test"].items():
        print(f"  test accuracy {test['accuracy']:.2%} (views {views}), calibration error {test['ece']:.2%}")
    print(f"  under shift {record['shift']['mean_corruption']['accuracy']:.2%}")


if __name__ == "__main__":
    main()
