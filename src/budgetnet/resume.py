"""Whether a run can begin, or go on, and what is left to do of one that has ended."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from budgetnet import runs
from budgetnet.config import Config
from budgetnet.errors import CheckpointError, ConfigError, DataError, FolderError, TrainingError
from budgetnet.folder import hold, is_empty
from budgetnet.masking import masked
from budgetnet.progress import Progress
from budgetnet.recipe import load_recipe
from budgetnet.recorder import send_results
from budgetnet.runfiles import CONFIG, SUMMARY
from budgetnet.tracking import Tracker, is_unsent


def require_new(run: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        TrainingError: it does.
    """
    if run.exists() and (not run.is_dir() or not is_empty(run)):
        raise TrainingError(f"{run} exists: choose another --output, or continue that run with --resume")


def require_resumable(config: Config, run: Path) -> None:
    """Refuse to resume what is not there, or under other options.

    Raises:
        CheckpointError: there is no run.
        ConfigError: an option other than `epochs` differs.
    """
    if not (run / CONFIG).is_file():
        raise CheckpointError(f"{run} holds no {CONFIG}: there is nothing to resume; leave out --resume to begin")
    before = replace(load_recipe(run / CONFIG), epochs=config.epochs)
    for key, old, new in _differences(_plain(before), _plain(config)):
        raise ConfigError(f"{key} is {new!r}, but the run in {run} has {old!r}: a resumed run keeps its options")


def finished(config: Config, run: Path, test: bool) -> dict[str, Any] | None:
    """The summary of a run that ended, and was tested where that is wanted, after as many epochs as are asked for now.

    One that is damaged is as good as none: it is made again from what it sums up.
    """
    if not (run / SUMMARY).is_file() or load_recipe(run / CONFIG).epochs != config.epochs:
        return None
    with contextlib.suppress(DataError, KeyError):
        summary = runs.read_summary(run)
        told = {"chosen_by", "tta", "parameters", "tags"} <= summary.keys()
        if told and {"best_epoch", "minutes"} <= summary["final"].keys() and (summary["test"] or not test):
            return summary
    return None


def tidy_up(config: Config, run: Path, summary: Mapping[str, Any], track: bool, progress: Progress) -> None:
    """Remove what a finished run that was killed in its last moments has left, and send to MLflow what it has not."""
    unsent = track and is_unsent(run)
    try:
        with hold(run, progress.warn):
            if unsent:
                tracker = Tracker(run, experiment=config.experiment, warn=progress.warn)
                tracker.start(run.resolve().name, asdict(config), summary["tags"])
                send_results(tracker, run, summary)
    except FolderError as error:  # such as one that is read-only by now, which is no harm else
        if unsent:
            progress.warn(f"MLflow may lack the end of this run: {error}")


def _plain(config: Config) -> dict[str, Any]:
    """As a file holds it: with lists for tuples, and no secrets."""
    plain: dict[str, Any] = json.loads(json.dumps(masked(asdict(config))))
    return plain


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in before:
        if isinstance(before[key], dict):
            found += _differences(before[key], now[key], f"{prefix}{key}.")
        elif before[key] != now[key]:
            found.append((prefix + key, before[key], now[key]))
    return found
