"""A run folder as it is read afterwards: what the run said of itself, whichever version wrote it."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from budgetnet.checkpoint import load_classifier
from budgetnet.classifier import Classifier
from budgetnet.config import Config
from budgetnet.errors import BudgetnetError, DataError, one_line
from budgetnet.evaluate import Scores, score
from budgetnet.files import atomic_write
from budgetnet.masking import mask
from budgetnet.metrics import read_metrics
from budgetnet.plainyaml import parse_yaml
from budgetnet.runfiles import CONFIG, METRICS, PREDICTIONS, SUMMARY

T = TypeVar("T")

_MOST_NUMBERS = 2**22  # of logits that are kept: 16 MB, 40,000 images of a hundred classes


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder says. What an older version did not write, or a run not reached yet, is None."""

    folder: Path
    config: Mapping[str, Any]
    """The resolved recipe, as plain values."""
    rows: list[dict[str, float]]
    """Of metrics.csv, one an epoch."""
    summary: Mapping[str, Any]
    """Of summary.json; empty of a run that has not ended."""

    def find(self, path: str, kind: type[T]) -> T | None:
        """A value of the summary, such as `final.test_accuracy`, or None where there is none.

        Raises:
            DataError: it is of another kind.
        """
        return _find(self.summary, path, kind, self.folder / SUMMARY)

    def option(self, path: str, kind: type[T]) -> T | None:
        """An option of the recipe, such as `optimizer.lr`, or None where the recipe does not know it, or has null.

        Raises:
            DataError: it is of another kind.
        """
        return _find(self.config, path, kind, self.folder / CONFIG)

    @property
    def name(self) -> str:
        """The name of the run, else of its folder."""
        return self.find("name", str) or self.folder.resolve().name

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return bool(self.summary)

    @property
    def chosen_epoch(self) -> int | None:
        """The epoch whose weights are the result; of a run that goes on, the best so far by validation accuracy."""
        if self.finished:
            epoch = self.find("final.best_epoch", float)
            return None if epoch is None else int(epoch)
        validated = [row for row in self.rows if "val_accuracy" in row]
        return int(max(validated, key=lambda row: row["val_accuracy"])["epoch"]) if validated else None

    @property
    def views(self) -> str:
        """The views that the recipe averages: none, flip, flip-shift or crops."""
        return self.find("tta", str) or "none"

    @cached_property
    def tests(self) -> dict[str, Scores]:
        """The scores on the test images by the views that were averaged; none of a run that was not tested.

        Raises:
            DataError: the summary has something else there.
        """
        found = self.find("test", dict) or {}
        return {str(tta): _scores(scores, self.folder / SUMMARY) for tta, scores in found.items()}

    @property
    def test(self) -> Scores | None:
        """The scores on the test images, averaged over the views of the recipe."""
        return self.tests.get(self.views, self.tests.get("none"))

    @property
    def checksum(self) -> str | None:
        """Of the data that the run was trained on."""
        return self.find("tags.data_checksum", str)

    @cached_property
    def classifier(self) -> Classifier:
        """The network with the weights that were kept, on the CPU.

        Raises:
            CheckpointError: there are none yet, or the file is damaged.
        """
        return load_classifier(self.folder)

    def predictions(self) -> tuple[Tensor, Tensor] | None:
        """What `keep_predictions` kept of the test: logits, float32 (n, classes), and labels, int64 (n,).

        None where it kept nothing, or where what it kept does not give the scores of the summary to the last digit, as
        the run went on since.

        Raises:
            DataError: the file is damaged.
        """
        path = self.folder / PREDICTIONS
        if self.test is None or not path.is_file():
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            kept = load_file(path)
            logits, labels = kept["logits"], kept["labels"]
            found = score(logits, labels)
            # Not all fields: runs may be older than a metric.
            same = (found.confusion, found.loss) == (self.test.confusion, self.test.loss)
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, BudgetnetError) as error:
            raise DataError(f"{path} is damaged ({one_line(error)}): remove it") from error
        return (logits, labels) if same else None

    @cached_property
    def right(self) -> Tensor | None:
        """Which test images are classified right, bool (n,); None and errors as `predictions`."""
        found = self.predictions()
        return None if found is None else found[0].argmax(1) == found[1]


def read(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        DataError: it is no run folder, or one of its files is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        found = "is not there" if not folder.exists() else f"holds no {CONFIG}"
        raise DataError(f"{folder} {found}: expected a run folder that `budgetnet train` wrote")
    config = read_mapping(path, parse_yaml)
    summary = read_summary(folder) if (folder / SUMMARY).is_file() else {}
    run = Run(folder=folder, config=config, rows=read_metrics(folder / METRICS), summary=summary)
    if any("epoch" not in row for row in run.rows):
        raise DataError(f"{folder / METRICS} has no column epoch: it is not what `budgetnet train` wrote")
    return run


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary.json, which sums up a finished run.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    path = folder / SUMMARY
    found = read_mapping(path, json.loads)
    for key in ("final", "test", "tags", "hardware"):
        if not isinstance(found.get(key, {}), dict):
            raise DataError(f"{path} is damaged: {key} is {reprlib.repr(found[key])}, expected a mapping")
    return found


def read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A file of a run folder that holds a mapping.

    Args:
        path: the file.
        parse: from its text to what it holds; raises ValueError.

    Raises:
        DataError: it is missing, damaged or something else.
    """
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}; expected a run folder that `budgetnet train` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {mask(one_line(error))}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}, expected a mapping")
    return found


def keep_predictions(folder: Path, logits: Tensor, labels: Tensor) -> None:
    """Keep what the chosen network said of the test images, so that nobody need ask it again; too much is left out.

    Args:
        folder: the run's.
        logits: float32 (n, classes), averaged over the views of the recipe.
        labels: int64 (n,).
    """
    from safetensors.torch import save

    if logits.numel() <= _MOST_NUMBERS:
        tensors = {"logits": logits.cpu().contiguous(), "labels": labels.cpu().contiguous()}
        atomic_write(folder / PREDICTIONS, save(tensors))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as dotted names (`optimizer.lr`, `model.stages.0.width`) and texts as a recipe has them."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def defaults() -> dict[str, str]:
    """What `flat` makes of a recipe that says nothing."""
    return flat(asdict(Config()))


def _find(values: Mapping[str, Any], path: str, kind: type[T], file: Path) -> T | None:
    found: Any = values
    for key in path.split("."):
        if not isinstance(found, Mapping):
            raise DataError(f"{file}: {path} has {reprlib.repr(found)} on its way, expected a mapping")
        found = found.get(key)
        if found is None:
            return None
    right = isinstance(found, int | float if kind is float else kind)
    if not right or (isinstance(found, bool) and kind is not bool):
        raise DataError(f"{file}: {path} is {reprlib.repr(found)}, expected a {kind.__name__}")
    return found  # type: ignore[no-any-return]


def _scores(found: Any, file: Path) -> Scores:
    """The scores of a file that may say anything."""
    try:
        return Scores.from_dict(found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: test is damaged ({type(error).__name__}: {error}), expected scores") from error
