"""`budgetnet train`."""

from __future__ import annotations

import shlex
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from budgetnet import launcher
from budgetnet.cli.common import EXAMPLES, json_text, progress_on, stop_by_signal
from budgetnet.errors import ConfigError, Interrupted
from budgetnet.runfiles import CONFIG, LAST

if TYPE_CHECKING:
    from argparse import Namespace

    import jsonargparse

    from budgetnet.config import Config
    from budgetnet.progress import Progress


def run(arguments: list[str]) -> int:
    """Train by a recipe, or go on with a run; the arguments are those after `train`."""
    try:
        ready = _prepare(arguments)
    except ConfigError:
        if launcher.rank():  # the first process says the same
            return 1
        raise
    try:
        return ready()
    except KeyboardInterrupt:
        if launcher.rank():
            return 130
        raise


def _prepare(arguments: list[str]) -> Callable[[], int]:
    """Read the options; what is to be done then."""
    if "--help" in arguments or "-h" in arguments:
        _help().print_help()
        return lambda: 0
    from budgetnet.config import to_yaml
    from budgetnet.masking import masked
    from budgetnet.recipe import run_folder

    arguments, fit_memory = without_auto_batch(arguments)
    config, options = _parse(_parser(), arguments)
    if options.print_config:
        print(json_text(masked(asdict(config))) if options.json else to_yaml(config).rstrip("\n"))
        return lambda: 0
    if not options.output and launcher.restarts()[1]:
        raise ConfigError("torchrun --max-restarts needs --output RUN, for restarted processes to find the run")
    if options.devices > 1 and fit_memory:
        raise ConfigError("--batch-size auto is of one process: give a number, or leave out --devices")
    run = Path(options.output) if options.output else run_folder(Path(options.recipe_file))
    if options.devices > 1:
        command = ["train", *arguments, "--devices", "1", "--output", str(run)]
        return partial(launcher.launch, command, options.devices)
    progress = progress_on(options.json or options.quiet, sys.stdout)
    return partial(_run_training, config, options, run, progress, fit_memory)


@cache  # it keeps nothing of what it parses, and making it takes half a second
def _parser() -> jsonargparse.ArgumentParser:
    """The options of `train`: its own, and every key of a recipe."""
    import jsonargparse

    from budgetnet.recipe import add_options

    parser = jsonargparse.ArgumentParser(exit_on_error=False, print_config=None)
    _add_own_options(parser, "_")  # as what it parses is written
    add_options(parser)
    return parser


def _parse(parser: jsonargparse.ArgumentParser, arguments: list[str]) -> tuple[Config, Namespace]:
    """The recipe, or that of the run that is resumed, under the options of a command line.

    Raises:
        ConfigError: there is no recipe, no run, or an option is out of range.
    """
    from budgetnet import devices
    from budgetnet.recipe import parse_options

    config, options = parse_options(parser, arguments)
    for name in ("output", "data"):
        if getattr(options, name) == "":
            raise ConfigError(f"--{name} is empty, expected a folder: give one, or leave --{name} out")
    run = Path(options.output) if options.output else None
    if options.resume and run is None:
        raise ConfigError("--resume needs --output RUN, the folder of the run to continue")
    if options.recipe_file is None:
        if not options.resume or run is None:
            raise ConfigError("which recipe? give a YAML file, or a name, such as quick")
        if not (run / CONFIG).is_file():
            raise ConfigError(f"{run} holds no {CONFIG}: there is nothing to resume")
        config, options = parse_options(parser, [str(run / CONFIG), *arguments])
    devices.require_threads(options.threads)
    if options.devices < 1:
        raise ConfigError(f"devices is {options.devices}, expected 1 or more processes")
    return config, options


def _help() -> ArgumentParser:
    """A parser for no more than its help, made in a small part of the time that the one which knows types takes."""
    from budgetnet import options

    parser = ArgumentParser(
        prog="budgetnet train",
        usage="budgetnet train [RECIPE] [options]",
        description="Train a network by a recipe; any key of it is an option too (label_smoothing: --label-smoothing).",
        epilog=f"example: {EXAMPLES['train']}",
    )
    _add_own_options(parser, "-")
    for section in options.sections():
        stage = section.name == "model.stages"  # whose keys are no options
        title = "each of model.stages" if stage else section.name or "the run"
        group = parser.add_argument_group(title, section.meaning.replace("%", "%%"))
        if section.name and not stage:
            group.add_argument(f"--{section.name}", metavar="FILE", help="the options below, from a file")
        for option in section.options:
            said = f"{option.meaning} ({option.values.replace('`', '')}; default {option.default})".replace("%", "%%")
            if stage:
                group.add_argument(option.name, help=said)
            else:
                name = section.dotted(option).replace("_", "-")
                group.add_argument(f"--{name}", metavar=option.name.upper(), help=said)
    return parser


def _add_own_options(parser: ArgumentParser, between: str) -> None:
    """What `train` takes besides the keys of a recipe, with that between the words of a name."""
    add = parser.add_argument
    add("recipe_file", metavar="RECIPE", nargs="?", help="a YAML file, or the name of one of recipes/")
    add("--data", metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, else the cache folder)")
    add("--output", metavar="RUN", help="the run's folder (default: runs/RECIPE-TIME)")
    add("--resume", action="store_true", help="continue the run in RUN where it stopped, exactly; without RECIPE")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default auto)")
    devices = "processes that share each batch, on a GPU of this machine each, or its CPU (default 1)"
    add("--devices", type=int, default=1, help=devices)
    add("--threads", type=int, default=0, help="CPU threads of all processes together; 0 is one a core (default 0)")
    add(f"--no{between}track", action="store_true", help="leave MLflow out")
    add(f"--no{between}report", action="store_true", help="write no report.html at the end")
    add(f"--print{between}config", action="store_true", help="print the resolved recipe and stop")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")
    add("--json", action="store_true", help="print the summary (or the recipe) as one JSON object and nothing else")
    add("--debug", action="store_true", help="show the traceback of an error")


def without_auto_batch(arguments: list[str]) -> tuple[list[str], bool]:
    """A command line without `--batch-size auto`, and whether that was there: then the recipe's is the most."""
    names = ("--batch-size", "--batch_size")
    for place, argument in enumerate(arguments):
        if argument in [f"{name}=auto" for name in names]:
            return [*arguments[:place], *arguments[place + 1 :]], True
        if argument in names and arguments[place + 1 : place + 2] == ["auto"]:
            return [*arguments[:place], *arguments[place + 2 :]], True
    return arguments, False


def _run_training(config: Config, options: Namespace, run: Path, progress: Progress, fit_memory: bool) -> int:
    from budgetnet import api, distributed
    from budgetnet.progress import Mute, summary_lines

    leader, alone = launcher.rank() == 0, launcher.size() == 1
    if not leader:
        progress = Mute()
    distributed.set_threads(options.threads)
    try:
        with stop_by_signal(progress, alone=alone, at_once=lambda: not progress.begun) as stop:
            device = distributed.device(options.device)
            with distributed.join(device) as group:
                run = group.lead(lambda: run)  # whose name is a time, unless it was given
                restarted = group.lead(lambda: launcher.restarts()[0] > 0 and (run / CONFIG).is_file())
                summary = api.run_training(
                    config,
                    run,
                    folder=Path(options.data) if options.data else None,
                    device=device,
                    progress=progress,
                    track=not options.no_track,
                    resume=options.resume or restarted,
                    report_wanted=not options.no_report,
                    fit_memory=fit_memory,
                    group=group,
                    stop=stop,
                )
    except Interrupted:
        if leader:
            print(f"saved; to go on: {_resume_command(run, options)}", file=sys.stderr)
        return 128 + (stop.number or signal.SIGTERM)  # another process was told
    except KeyboardInterrupt:
        if leader and (run / LAST).is_file():
            print(f"to go on from {run / LAST}: {_resume_command(run, options)}", file=sys.stderr)
        raise
    finally:
        progress.end()
    if options.json and leader:
        print(json_text(summary))
    for line in summary_lines(summary, run):
        progress.say(line)
    return 0


def _resume_command(run: Path, options: Namespace) -> str:
    here = launcher.local_size() == launcher.size()  # else each machine has a command of its own
    again = [*([] if here else ["torchrun", "...", "-m"]), "budgetnet", "train", "--resume", "--output", str(run)]
    again += ["--data", options.data] if options.data else []
    again += ["--device", options.device] if options.device != "auto" else []
    again += ["--devices", str(launcher.size())] if here and launcher.size() > 1 else []
    again += ["--threads", str(options.threads)] if options.threads else []
    again += ["--no-track"] if options.no_track else []
    again += ["--no-report"] if options.no_report else []
    return shlex.join(again)
