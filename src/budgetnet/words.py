"""A run in words: how good it is, how its weights were chosen, what it took; for its report, and its page in MLflow."""

from __future__ import annotations

import re
import shlex

from budgetnet.evaluate import wilson
from budgetnet.markup import percent, visible
from budgetnet.masking import mask
from budgetnet.metrics import read_epochs
from budgetnet.progress import duration
from budgetnet.runfiles import CONFIG
from budgetnet.runs import Run
from budgetnet.usage import NAMES

VIEWS = {
    "none": "each as it is",
    "flip": "each averaged with its mirror image",
    "flip-shift": "each averaged over 6 views (flip-shift)",
    "crops": "each averaged over 18 views (crops)",
}
METRICS = {
    "train_loss": "nats an image, as augmented and mixed, while it learns",
    "train_accuracy": "share (0 to 1) of the same images",
    "val_loss": "nats an image of the validation split, after the epoch",
    "val_accuracy": "share (0 to 1) of the validation split, after the epoch",
    "val_accuracy_raw": "the same by the weights as they are",
    "val_accuracy_average": "the same by their average over the run",
    "lr": "learning rate of the epoch's last step",
    "images_per_second": "images trained on a second, without validation",
    "seconds": "time of training so far",
    "final/test_accuracy": "share (0 to 1) of the test images, each as it is",
    "final/test_accuracy_tta": "the same, averaged over the views of the recipe",
    "final/test_loss": "nats a test image",
    "final/test_ece": "expected calibration error (0 to 1) on the test images",
    "final/val_accuracy": "validation accuracy of the weights that were chosen",
    "final/best_epoch": "the epoch that they are of",
    "final/epochs": "epochs trained",
    "final/minutes": "time of training",
    **{f"system/{name}": meaning for name, meaning in NAMES.items()},
}
"""Metrics as MLflow has them: what they are and in which unit; the step is the epoch."""


def untested(run: Run) -> str:
    """Why a run has no test score, as a sentence or two."""
    if not run.finished:
        done, of = len(run.rows), run.option("epochs", int)
        return f"This run has not ended: {done} of {of} epochs are done. It has no test score."
    if run.find("trained_on_test", bool) or run.option("train_on_test", bool):
        return "The test images were trained on too, so this run has no test score."
    return "This run was not tested."


def validation(run: Run) -> tuple[float, int] | None:
    """The validation accuracy of the chosen weights, and of how many images."""
    n, epoch = run.option("val_size", int), run.chosen_epoch
    found = [row["val_accuracy"] for row in run.rows if row["epoch"] == epoch and "val_accuracy" in row]
    return (found[0], n) if found and n else None


def chosen(run: Run) -> tuple[str, str]:
    """Which epoch's weights are the result, and how they were chosen."""
    epoch, epochs = run.chosen_epoch, run.find("final.epochs", float) or run.option("epochs", int)
    if epoch is None:
        return "none chosen yet", "no epoch has been validated"
    how = run.find("chosen_by", str) or ("validation accuracy so far" if not run.finished else "unknown")
    validated = validation(run)
    averaged = "average over the run, " if run.find("weights", str) == "average" else ""
    accuracy = f" ({percent(validated[0])})" if validated and "validation" in how else ""
    by = "the last ones: nothing was held out to choose by" if how == "last epoch" else f"chosen by {how}{accuracy}"
    return f"epoch {epoch} of {epochs:.0f}", averaged + by


def where(run: Run) -> str:
    """What it was trained on: the accelerator or the processor, with its threads."""
    hardware = run.find("hardware", dict) or {}
    found = str(hardware.get("gpu") or hardware.get("cpu") or run.find("tags.device", str) or "")
    threads = hardware.get("threads") if hardware.get("device") == "cpu" else None
    return found + (f", {threads} thread{'s'[: threads != 1]}" if threads else "")


def same_machine(run: Run) -> list[str]:
    """Options that have a command compute as the run did."""
    threads, device = run.find("hardware.threads", int), run.find("hardware.device", str)
    return [
        *(["--device", device] if device else []),
        *(["--threads", str(threads)] if threads and device == "cpu" else []),
    ]


def note(run: Run) -> str:
    """What MLflow says on top of the run's page: Markdown, a function of what the folder holds.

    While the run goes on, it does not say how far it is, so that nothing need be sent again with every epoch.
    """
    facts = {
        "Network": _network(run),
        "Data": _data(run),
        "Weights": ": ".join(chosen(run)) if run.finished else "chosen when the run has ended",
        "Training": _training(run),
        "Source": _source(run),
    }
    again = ["budgetnet", "train", CONFIG, *same_machine(run), "--output", "runs/again"]
    further = ["budgetnet", "train", "--resume", "--output", f"runs/{run.name}", *same_machine(run)]
    known = {name for row in read_epochs(run.folder) for name in row}
    known |= {f"final/{name}" for name in run.find("final", dict) or {}}
    told = {name: text for name, text in METRICS.items() if name in known or not run.finished}
    lines = [
        _verdict(run),
        "",
        *(f"- **{name}**: {_plain(text)}" for name, text in facts.items() if text),
        "",
        "The report and pictures are among the artifacts. To train it again, with `config.yaml` from there; "
        "to go on, in its folder:",
        "",
        *(f"    {visible(shlex.join(command))}" for command in (again, further)),
        "",
        "The metrics, with their units; the step is the epoch:",
        "",
        *(f"- `{name}`: {text}" for name, text in told.items()),
        "",
    ]
    return mask("\n".join(lines))


def _verdict(run: Run) -> str:
    test = run.test
    if test is not None:
        low, high = test.accuracy_interval
        text = f"**{percent(test.accuracy)}** of {test.n:,} test images are classified right"
        return f"{text} ({VIEWS.get(run.views, run.views)}; 95 % interval {percent(low)} to {percent(high)})."
    if not run.finished:
        return "This run has not ended, and has no test score."
    validated, text = validation(run), untested(run)
    if validated is None:
        return text
    accuracy, n = validated
    low, high = wilson(round(accuracy * n), n)
    return (
        f"**{percent(accuracy)}** of {n:,} validation images are classified right (95 % interval {percent(low)} to "
        f"{percent(high)}); the weights were chosen by these images, so others do rather worse. {text}"
    )


def _network(run: Run) -> str:
    parameters, budget = run.find("parameters", int), run.option("budget", int)
    text = run.option("model.name", str) or ""
    if parameters is None:
        return text
    share = f" ({percent(parameters / budget, 1)} of the budget of {budget:,})" if budget else " (no budget)"
    return f"{text}, {parameters:,} trainable parameters{share}"


def _data(run: Run) -> str:
    name, held = run.option("dataset", str) or "unknown", run.option("val_size", int) or 0
    trained = run.find("tags.train_images", str)
    return (
        f"{name}: " + (f"{int(trained):,} images trained on, " if trained else "") + f"{held:,} held out to choose by"
    )


def _training(run: Run) -> str:
    minutes = run.find("final.minutes", float)
    return "" if minutes is None else ", ".join(filter(None, (duration(60 * minutes), where(run))))


def _source(run: Run) -> str:
    version, commit = run.find("versions.budgetnet", str), run.find("tags.git_commit", str)
    if not version:
        return ""
    return f"budgetnet {version}" + (f", commit {commit[:12]}" if commit and commit != "unknown" else "")


def _plain(text: str) -> str:
    """A text in Markdown, as it is: names may hold what would be markup."""
    return re.sub(r"([\\*_`<>\[\]&])", r"\\\1", visible(text))
