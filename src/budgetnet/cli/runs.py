"""`budgetnet report`, `compare`, `track` and `register`: what has been trained."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from budgetnet.cli.common import command_parser, json_text, path, warn
from budgetnet.errors import ConfigError
from budgetnet.runfiles import PICTURES, REPORT


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(
        commands, "report", _report, "write the page that shows what a run learnt and where it is wrong"
    )
    command.add_argument("folder", type=path, metavar="RUN", help="the run's folder, which gets report.html")
    command.add_argument("--data", type=path, metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, cache)")
    command.add_argument("--device", default="auto", help="where to compute: auto, cpu, cuda, cuda:N or mps")

    command = command_parser(
        commands, "compare", _compare, "compare runs: grouped by recipe, seed by seed, and by their cost"
    )
    command.add_argument("folders", type=path, metavar="RUN", nargs="*", help="run folders; the first is compared with")
    command.add_argument("--experiment", metavar="NAME", help="the runs of an MLflow experiment instead")
    command.add_argument("--output", type=path, metavar="FILE.html", help="write a page with curves and pictures too")

    command = command_parser(
        commands, "track", _track, "send a run's record to MLflow, completing what is there", json=False
    )
    command.add_argument("folder", type=path, metavar="RUN", help="the run's folder")

    command = command_parser(
        commands, "register", _register, "make a run a version of a model that others ask for by name"
    )
    command.add_argument("folder", type=path, metavar="RUN", help="the run's folder; it is finished and tracked")
    command.add_argument("--name", required=True, help="of the model, which others ask for as models:/NAME@ALIAS")
    command.add_argument("--alias", help="that this version gets, and any other loses, such as champion")


def _report(options: Namespace) -> int:
    from budgetnet import devices, report

    path = report.write(options.folder, data=options.data, device=devices.find(options.device))
    print(json_text({"report": str(path)}) if options.json else path)
    return 0


def _compare(options: Namespace) -> int:
    import tempfile

    from budgetnet import compare, compare_page, store

    if bool(options.folders) == bool(options.experiment):
        raise ConfigError("give run folders, or --experiment NAME, and not both")
    with tempfile.TemporaryDirectory() as folder:
        folders = options.folders
        if options.experiment:
            folders, without = store.fetch(options.experiment, Path(folder))
            if without:
                warn(f"{without} runs of {options.experiment} have no record in MLflow yet and are left out")
        comparison = compare.compare(folders, fetched=bool(options.experiment))
        if options.output:
            compare_page.write(comparison, options.output)
    if options.json:
        print(json_text(comparison.to_dict()))
    else:
        compare.show(comparison)
        if options.output:
            print(f"written to {options.output}")
    return 0


def _track(options: Namespace) -> int:
    import contextlib

    from budgetnet import album, checkpoint, folder, tracking

    # Held, as a run that is training sends its record itself, and would be said to have ended.
    there = options.folder.is_dir()
    with folder.hold(options.folder, warn) if there else contextlib.nullcontext():
        if (options.folder / REPORT).is_file() and not (options.folder / PICTURES).is_dir():
            album.for_tracking(options.folder, warn)  # trained without tracking, or interrupted before it drew them
        print(tracking.send(options.folder, load_classifier=checkpoint.load_classifier, warn=warn))
    return 0


def _register(options: Namespace) -> int:
    from budgetnet import registry

    found = registry.register(options.folder, options.name, options.alias)
    if options.json:
        print(json_text(found))
        return 0
    what = f"{found['name']} version {found['version']}"
    done = f"{what} is now {found['run']}" if found["new"] else f"{found['run']} is {what} already"
    print(done + (f", and {found['alias']}: models:/{found['name']}@{found['alias']}" if found["alias"] else ""))
    return 0
