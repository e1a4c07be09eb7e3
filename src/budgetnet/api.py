"""Training by a recipe from first to last, for Python programs (`budgetnet.train`) and for the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from budgetnet import album, devices, progress, report, runs
from budgetnet.config import Config
from budgetnet.data import Dataset
from budgetnet.distributed import Group
from budgetnet.errors import ConfigError
from budgetnet.progress import Progress
from budgetnet.recipe import load_recipe, run_folder
from budgetnet.runs import Run
from budgetnet.train import train as _train


def train(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    track: bool = True,
    report: bool = True,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Train by a recipe, as `budgetnet train` does, and return the run.

    Args:
        recipe: a YAML file (see recipes/).
        output: the run's folder; None is runs/RECIPE-TIME.
        data: where the data is; None is $BUDGETNET_DATA, else the cache folder.
        device: auto (the fastest there is), cpu, cuda, cuda:N or mps.
        resume: continue the run in `output` exactly where it stopped.
        track: copy the record to MLflow, where that is installed.
        report: write report.html at the end.
        quiet: print nothing.
        overrides: options of the recipe; those of a section as a dictionary (`optimizer={"lr": 0.1}`).

    Returns:
        The finished run: `run.classifier`, `run.test`, `run.summary`, `run.folder`.

    Raises:
        ConfigError: an unknown option (with the nearest right one), a wrong type, a value out of range, a mix that
            makes no sense; or `resume` without `output`.
        BudgetnetError: as `budgetnet.train.train`, and whatever else the command would refuse.

    >>> import budgetnet
    >>> run = budgetnet.train("smoke.yaml", output="runs/second", epochs=1, optimizer={"lr": 0.1}, quiet=True)
    >>> run.name, run.option("epochs", int), run.test.n
    ('second', 1, 359)
    >>> run.classifier.predict("photo.png").shape
    (1,)
    """
    if resume and output is None:
        raise ConfigError("resume needs output, the folder of the run to continue")
    texts = [f"--{key}={value}" for key, value in _flat(overrides)]
    folder = Path(output) if output else run_folder(Path(recipe))
    run_training(
        load_recipe(Path(recipe), texts),
        folder,
        folder=Path(data).expanduser() if data else None,
        device=devices.find(device),
        progress=progress.Progress() if quiet else progress.PlainProgress(sys.stdout),
        track=track,
        resume=resume,
        report_wanted=report,
    )
    return runs.read(folder)


def run_training(
    config: Config,
    run: Path,
    *,
    folder: Path | None,
    device: torch.device,
    progress: Progress,
    track: bool,
    resume: bool,
    report_wanted: bool,
    fit_memory: bool = False,
    group: Group | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """`budgetnet.train.train`, with a report at the end where it is wanted."""

    def write_report(dataset: Dataset) -> None:
        if report_wanted:
            report.after_training(run, dataset, device, progress.warn)
            if track:
                album.for_tracking(run, progress.warn, dataset=dataset, device=device)

    return _train(
        config,
        run,
        folder=folder,
        device=device,
        progress=progress,
        track=track,
        resume=resume,
        fit_memory=fit_memory,
        group=group,
        stop=stop,
        report=write_report,
    )


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Options as the command line has them: dotted names and texts."""
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, str | Path) else json.dumps(value)
