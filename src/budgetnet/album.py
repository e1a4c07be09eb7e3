"""Pictures of a run beside its report, for where a page does not fit: MLflow's artifacts, slides, messages."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from budgetnet import gallery, pictures
from budgetnet.classifier import Classifier
from budgetnet.data import Dataset
from budgetnet.errors import one_line
from budgetnet.evaluate import Scores
from budgetnet.evidence import Evidence
from budgetnet.files import remove
from budgetnet.gallery import Judged
from budgetnet.markup import percent, visible
from budgetnet.runfiles import PICTURES
from budgetnet.runs import read


def write(
    folder: Path, *, data: Path | None = None, dataset: Dataset | None = None, device: torch.device | None = None
) -> list[Path]:
    """Draw what there is to show of a run into its folder: the confusion matrix, mistakes and the network.

    Args:
        folder: the run's.
        data: where its data is; None is `data.default_folder()`. Nothing is downloaded.
        dataset: the data itself, where it is loaded already.
        device: where to compute; None is the CPU.

    Returns:
        The pictures, PNG files in RUN/pictures; what cannot be shown is left out, and not there.

    Raises:
        DataError: it is no run folder, or a file of it is damaged.
        BudgetnetError: matplotlib is not installed, or a picture cannot be written.
    """
    run = read(folder)
    evidence = Evidence(run, data, dataset, device or torch.device("cpu"))
    (folder / PICTURES).mkdir(exist_ok=True)
    drawn: dict[str, Callable[[Path], None]] = {}
    scores, judged, classifier = evidence.scores, evidence.judged, evidence.classifier
    if isinstance(scores, Scores):
        text = f"{run.name}: {percent(scores.accuracy)} of {scores.n:,} {evidence.split} images"
        counts, classes = scores.confusion, evidence.classes
        drawn["confusion"] = lambda path: pictures.draw_confusion(counts, classes, path, visible(text))
    if isinstance(judged, Judged):
        first, _ = gallery.mistakes(judged)
        if first:
            title = f"{run.name}: the most confident mistakes on {evidence.split} images"
            captions = [_caption(judged, i) for i in first]
            drawn["mistakes"] = lambda path: pictures.draw_grid(judged.images[first], captions, path, visible(title))
    if isinstance(classifier, Classifier):
        side, name = classifier.image_size, f"{run.name}: {classifier.model.name}"
        drawn["network"] = lambda path: pictures.draw_network(classifier.network, path, visible(name), side)
    for name in ("confusion", "mistakes", "network"):
        path = folder / PICTURES / f"{name}.png"
        if name in drawn:
            drawn[name](path)
        else:
            remove(path)  # of the weights before
    return [folder / PICTURES / f"{name}.png" for name in drawn]


def for_tracking(
    folder: Path, warn: Callable[[str], None], *, dataset: Dataset | None = None, device: torch.device | None = None
) -> None:
    """Draw the pictures of a run that has ended; whatever goes wrong is one line for `warn`, and no failure."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of classes in other scripts
            write(folder, dataset=dataset, device=device)
    except Exception as error:  # no picture is worth a training
        warn(f"no {PICTURES} ({one_line(error)}): the run is complete without them")


def _caption(judged: Judged, i: int) -> tuple[str, str]:
    """What an image was taken for, and what it is."""
    probabilities = judged.probabilities[i]
    label, predicted = int(judged.labels[i]), int(probabilities.argmax())
    return tuple(  # type: ignore[return-value]
        f"{word}{visible(judged.classes[c])} {percent(float(probabilities[c]), 0)}"
        for word, c in (("", predicted), ("is ", label))
    )
