"""A folder in Hugging Face's layout: the model file, its configuration, and a card with what was measured.

The model that budgetnet brings is such a folder too, with a record beside the card.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from budgetnet import __version__, checkpoint, runfiles, runs
from budgetnet.checkpoint import HUB_WEIGHTS
from budgetnet.classifier import Classifier
from budgetnet.files import atomic_write
from budgetnet.masking import masked

CARD, CONFIG = "README.md", "config.json"
RECORD = "record.json"
"""Of the box alone: how it was trained, chosen and measured, written by the program that did."""

Row = tuple[str, str, float, str]
"""A figure, its kind as the hub calls it, its value, and how it is shown."""

_UPLOADED = (
    "import budgetnet",
    "from huggingface_hub import snapshot_download",
    "",
    'model = budgetnet.load(snapshot_download("OWNER/NAME"))',
    'model.predict_proba("photo.jpg")',
)
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits (scikit-learn)", "folder": "own images"}


def write(folder: Path, classifier: Classifier, source: Path, *, narrow: bool = False) -> None:
    """Write model.safetensors, config.json and README.md, which `huggingface_hub.upload_folder` takes as they are.

    The model file alone rebuilds the classifier; config.json says the same for people and for the hub's pages. The
    card's figures are those of the run's own test and validation; a model that was not tested has none.

    Args:
        folder: where, and it exists.
        classifier: what is written.
        source: where it was read from: a run folder has the figures.
        narrow: keep weights in 16 bits.

    Raises:
        BudgetnetError: a file cannot be written, or the run folder is damaged.
    """
    run = runs.read(source) if (source / runfiles.CONFIG).is_file() else None
    name = run.name if run else source.stem
    accuracy = classifier.provenance.get("val_accuracy")
    measured = figures(
        {views: test.to_dict() for views, test in run.tests.items()} if run else {},
        accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 1 else None,
    )
    checkpoint.save_classifier(folder / HUB_WEIGHTS, classifier, narrow=narrow)
    config = {
        "library_name": "budgetnet",
        "budgetnet_version": __version__,
        "architectures": [classifier.model.name],
        "model": asdict(classifier.model),
        "id2label": dict(enumerate(classifier.classes)),
        "label2id": {label: i for i, label in enumerate(classifier.classes)},
        "image_size": classifier.image_size,
        "image_mean": classifier.mean,
        "image_std": classifier.std,
        "num_parameters": classifier.parameters,
        "torch_dtype": "float16" if narrow else "float32",
    }
    atomic_write(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    atomic_write(folder / CARD, card(name, classifier, measured).encode("utf-8", "replace"))


def card(
    name: str,
    classifier: Classifier,
    measured: Mapping[str, Sequence[Row]],
    *,
    licence: str | None = None,
    use: Sequence[str] = _UPLOADED,
    sections: Sequence[str] = (),
) -> str:
    """The card: metadata in YAML as the hub reads it, then what a person wants to know, in Markdown.

    Args:
        name: of the model.
        classifier: the model.
        measured: its figures by split, as `figures` gives them.
        licence: of the weights, where whoever publishes them has chosen one.
        use: lines that load the model and ask it, in Python.
        sections: further lines, after the figures.
    """
    recipe = classifier.provenance.get("config")
    recipe = recipe if isinstance(recipe, dict) else {}
    dataset = recipe.get("dataset") if recipe.get("dataset") in _TITLES else None
    limits = _LIMITS.format(data=_TITLES.get(str(dataset), "images that the file does not name"))
    lines = [
        "---",
        _yaml(_metadata(name, classifier, dataset, measured, licence)).rstrip(),
        "---",
        "",
        f"# {_plain(name)}",
        "",
        f"A network of {classifier.parameters:,} trainable parameters (`{classifier.model.name}`) that puts images "
        f"into {len(classifier.classes)} classes. It sees them as {classifier.image_size}x{classifier.image_size} "
        "pixels." + _made_from(classifier),
        "",
        "```python",
        *use,
        "```",
        "",
        "Nothing in `model.safetensors` is code; `budgetnet.load` checks its checksum.",
        "",
        "## Measured",
        "",
        *_measured(measured),
    ]
    if recipe.get("train_on_test"):
        lines += ["", "It was trained on the test images too, and so has no test score."]
    lines += ["", *sections] if sections else []
    lines += ["", "## Classes", "", ", ".join(map(_plain, classifier.classes)), ""]
    lines += ["## Limits", "", limits + ("" if licence else _UNLICENSED), ""]
    if recipe:
        text = textwrap.indent(_yaml(masked(recipe)), "    ")
        lines += ["<details><summary>Recipe</summary>", "", text, "</details>", ""]
    checksum = classifier.provenance.get("data_checksum")
    if isinstance(checksum, str):
        lines += [f"Data: SHA-256 `{checksum}`.", ""]
    return "\n".join(lines)


def _metadata(
    name: str, classifier: Classifier, dataset: str | None, measured: Mapping[str, Sequence[Row]], licence: str | None
) -> dict[str, Any]:
    """What the hub finds a model by, and shows in its tables of results."""
    metadata: dict[str, Any] = {
        **({"license": licence} if licence else {}),
        "library_name": "budgetnet",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "budgetnet", "pytorch", classifier.model.name],
        "metrics": ["accuracy"],
    }
    if dataset in ("cifar10", "cifar100"):
        metadata["datasets"] = [dataset]
    if measured:
        of: dict[str, Any] = {"name": _TITLES.get(str(dataset), "unknown"), "type": str(dataset or "unknown")}
        results = [
            {
                "task": {"type": "image-classification", "name": "Image classification"},
                "dataset": of | {"split": split},
                "metrics": [{"type": kind, "name": label, "value": value} for label, kind, value, _ in rows],
            }
            for split, rows in measured.items()
        ]
        metadata["model-index"] = [{"name": name, "results": results}]
    return metadata


def _measured(measured: Mapping[str, Sequence[Row]]) -> list[str]:
    """The figures as a table, and how far each split's are to be believed."""
    if not measured:
        return ["Nothing: the file says of no measurement."]
    lines = ["| images | figure | value |", "|---|---|--:|"]
    lines += [f"| {split} | {label} | {shown} |" for split, rows in measured.items() for label, _, _, shown in rows]
    if "test" in measured:
        lines += ["", "The test images were looked at once, when the training was over."]
    if "validation" in measured:
        lines += ["", "The weights were chosen by the validation images, so other images do rather worse."]
    return lines


def _yaml(content: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def _made_from(classifier: Classifier) -> str:
    """A sentence, after a space, on the networks that this one was made from or learnt from, where there are such."""
    start, teachers = (classifier.provenance.get(key) for key in ("start", "teachers"))
    text = ""
    if isinstance(start, dict) and isinstance(start.get("parameters"), int):
        how = [
            name
            for numbers, name in (
                (classifier.model.channels, "by taking channels out"),
                (classifier.model.ranks, "by lowering the rank of convolutions"),
            )
            if numbers
        ]
        made = " and ".join(how) or "by further training"
        text += f" It was made from one of {start['parameters']:,} parameters, {made}."
    if isinstance(teachers, list) and teachers:
        several = "another network" if len(teachers) == 1 else f"{len(teachers)} other networks"
        text += f" It learnt from what {several} said of the training images, besides the labels."
    return text


_LIMITS = (
    "Trained on {data}, it knows no other classes and puts every image into one of these, whatever it shows. Its "
    "probabilities are as good as a calibration error on images like those says; shifted ones (noise, blur, other "
    "light) do worse, which `budgetnet evaluate --shift all` measures."
)
_UNLICENSED = " The licence of the weights is for whoever publishes them to choose: add `license` to the metadata."


def figures(tests: Mapping[str, Mapping[str, Any]], val_accuracy: float | None) -> dict[str, list[Row]]:
    """What a card shows of scores on the test images, by the views that were averaged, and of the validation score.

    Args:
        tests: what `evaluate.Scores.to_dict` gives, by views.
        val_accuracy: in [0, 1], where it is known.
    """
    found: dict[str, list[Row]] = {}
    for views, test in tests.items():
        low, high = (f"{100 * end:.2f}" for end in test["accuracy_interval"])
        rows: list[Row] = [
            (
                "accuracy",
                "accuracy",
                test["accuracy"],
                f"{100 * test['accuracy']:.2f} % of {test['n']:,} ({low} to {high})",
            ),
            ("cross-entropy", "loss", test["loss"], f"{test['loss']:.4f} nats"),
            ("calibration error", "ece", test["ece"], f"{100 * test['ece']:.2f} %"),
        ]
        averaged = "" if views == "none" else f", views averaged ({views})"
        found.setdefault("test", []).extend(
            (f"{label}{averaged}", kind, value, shown) for label, kind, value, shown in rows
        )
    if val_accuracy is not None:
        found["validation"] = [("accuracy", "accuracy", val_accuracy, f"{100 * val_accuracy:.2f} %")]
    return found


def box_record() -> dict[str, Any]:
    """What the record of the box says.

    Raises:
        BudgetnetError: this copy of budgetnet brings no model, or the record is damaged.
    """
    return runs.read_mapping(checkpoint.box() / RECORD, json.loads)


def _plain(name: str) -> str:
    """A name in Markdown, where it shall mean nothing."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-!|" else c if c.isprintable() else "?" for c in name)
