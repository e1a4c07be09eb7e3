"""What a training leaves behind: its run folder, which is the source of truth, and the copy of it in MLflow.

The loop calls `checkpoint` within an epoch where one is due, after it `keep` where it is the best so far, and `epoch`.
Around the loop, `train` calls `begin` and `complete`, or `fail` where an error ends it.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from budgetnet import __version__, checkpoint, models
from budgetnet.classifier import Classifier
from budgetnet.config import to_yaml
from budgetnet.errors import Interrupted
from budgetnet.files import atomic_write, remove
from budgetnet.folder import RunFolder
from budgetnet.masking import masked
from budgetnet.metrics import Metrics, of_system
from budgetnet.runfiles import CONFIG, COPIED, METRICS, SUMMARY, SYSTEM, WEIGHTS
from budgetnet.state import state_of
from budgetnet.tracking import Tracker
from budgetnet.training import Training
from budgetnet.usage import Usage


class Recorder:
    """Writes a run down while it trains; of several processes the first alone has a folder, and the others nothing.

    Args:
        place: the run's folder, held by this process; None writes nothing.
        training: what is written down.
        tracker: the copy in MLflow.
    """

    def __init__(self, place: RunFolder | None, training: Training, tracker: Tracker) -> None:
        self._place, self._training, self._tracker = place, training, tracker
        if place:
            self._metrics, self._system = Metrics(place.path / METRICS), Metrics(place.path / SYSTEM, vary=True)
            self._usage = Usage(place.path, training.device)

    def begin(self) -> None:
        """Write the configuration, and drop what comes after the epoch that the training goes on from."""
        if self._place:
            run, config = self._place.path, self._training.config
            remove(run / SUMMARY)  # of fewer epochs than are asked for now
            atomic_write(run / CONFIG, to_yaml(config).encode())
            for file in (self._metrics, self._system):
                file.truncate(self._training.at.epoch)

    def checkpoint(self) -> None:
        """Save where the training stands."""
        if self._place:
            self._place.save(state_of(self._training))

    def keep(self, network: nn.Module) -> None:
        """Write the weights chosen so far, as a model file that stands alone."""
        if not self._place:
            return
        self._place.require_still_there()
        training, dataset = self._training, self._training.dataset
        config, at = training.config, training.at
        provenance: dict[str, Any] = {
            "config": masked(asdict(config)),
            "epoch": at.epoch,
            "weights": at.best_weights,
            "val_accuracy": at.best_accuracy if config.val_size else None,
            "data_checksum": dataset.checksum,
            "versions": versions(),
        }
        if training.start:
            provenance["start"] = training.start
        if training.teachers:
            provenance["teachers"] = training.teachers.digests
        checkpoint.save_classifier(
            self._place.path / WEIGHTS,
            Classifier(
                network=network,
                model=config.model,
                classes=dataset.classes,
                mean=dataset.mean,
                std=dataset.std,
                image_size=dataset.train.images.shape[-1],
                provenance=provenance,
            ),
        )

    def epoch(self, row: Mapping[str, float]) -> None:
        """Write a row of metrics.csv, what the epoch took of the machine, and the state after it."""
        if self._place:
            self._place.require_still_there()
            used = self._usage.read()
            self._metrics.append(row)
            self._system.append({"epoch": row["epoch"], **used})
            self.checkpoint()
            self._tracker.log_epoch(dict(row) | of_system(used))

    def complete(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: from here on, the run is finished."""
        if self._place:
            self._place.require_still_there()
            atomic_write(self._place.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())

    def fail(self, error: BaseException) -> None:
        """Say of the copy how the run ended."""
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        self._tracker.finish("KILLED" if stopped else "FAILED", [], None, {})


def send_results(tracker: Tracker, run: Path, summary: Mapping[str, Any]) -> None:
    """Give a finished run's files and model to MLflow."""
    files = [run / name for name in COPIED if (run / name).exists()]
    tracker.finish("FINISHED", files, checkpoint.load_classifier(run), summary["final"])


def tags(training: Training, val_images: int) -> dict[str, str]:
    """What a run is known by in MLflow and in its summary."""
    config, dataset = training.config, training.dataset
    images = {
        "train": len(training.indices),
        "val": val_images,
        "test": 0 if config.train_on_test else len(dataset.test),
    }
    found = {
        "dataset": dataset.name,
        "data_checksum": dataset.checksum,
        **{f"{name}_images": str(n) for name, n in images.items()},
        "model": config.model.name,
        "parameters": str(models.count_parameters(training.network)),
        "device": str(training.device),
        "git_commit": _git_commit(),
        "budgetnet": __version__,
    }
    if training.start:
        found["start"] = training.start["sha256"]
    if training.teachers:
        found["teachers"] = ", ".join(training.teachers.digests)
    return found


def versions() -> dict[str, str]:
    """Versions of budgetnet, Python and torch."""
    return {"budgetnet": __version__, "python": platform.python_version(), "torch": torch.__version__}


def _git_commit() -> str:
    """The commit of this source, with + when files differ from it; unknown where git does not track this source."""
    here = Path(__file__).parent
    try:
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        commit = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--match=", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip()
