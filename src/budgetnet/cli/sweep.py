"""`budgetnet sweep`."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from budgetnet.cli.common import (
    add_training,
    command_parser,
    json_text,
    leave_options,
    path,
    progress_on,
    set_threads,
    stop_by_signal,
)
from budgetnet.errors import Interrupted


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(
        commands, "sweep", _sweep, "search for the best options of a recipe, with any number of workers"
    )
    leave_options(command, "sweep RECIPE --space FILE --trials N")
    command.add_argument("recipe", type=path, metavar="RECIPE", help="what all trials have in common")
    command.add_argument("--space", type=path, required=True, metavar="FILE", help="which options vary, between what")
    command.add_argument("--trials", type=int, required=True, metavar="N", help="in all, of all workers")
    command.add_argument(
        "--pruner",
        choices=("median", "halving", "none"),
        default="median",
        help="stops trials that do worse than others at the same epoch (default median)",
    )
    command.add_argument(
        "--output", type=path, metavar="DIR", help="keep runs and results there (default runs/sweep-RECIPE)"
    )
    command.add_argument(
        "--storage",
        metavar="URI",
        help="what the workers share: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE (default: "
        "$BUDGETNET_STORAGE, else study.db in the output)",
    )
    command.add_argument("--study", metavar="NAME", help="its name there (default: that of the output)")
    add_training(command)
    command.add_argument("--no-track", action="store_true", help="leave MLflow out")


def _sweep(options: Namespace) -> int:
    from budgetnet import devices, standings, sweep
    from budgetnet.space import read_space

    set_threads(options.threads)
    asked = sweep.Sweep(
        recipe=options.recipe,
        space=read_space(options.space),
        trials=options.trials,
        always=options.further,
        pruner=options.pruner,
    )
    output = options.output or Path("runs") / f"sweep-{options.recipe.stem}"
    progress = progress_on(False, sys.stderr if options.json else sys.stdout)
    try:
        with stop_by_signal(progress) as stop:
            result = sweep.carry_out(
                asked,
                output,
                storage=options.storage or os.environ.get("BUDGETNET_STORAGE"),
                name=options.study,
                folder=options.data,
                device=devices.find(options.device),
                progress=progress,
                track=not options.no_track,
                stop=stop,
            )
    except Interrupted:
        print("saved; the same command goes on from here", file=sys.stderr)
        return 128 + (stop.number or signal.SIGTERM)
    except KeyboardInterrupt:
        print("the same command goes on from here", file=sys.stderr)
        raise
    finally:
        progress.end()
    print(json_text(result) if options.json else f"\n{standings.render(result)}")
    if not options.json:
        print(f"\nthe best as a recipe: {output / 'best.yaml'}; picture: {output / 'sweep.svg'}")
    return 0
