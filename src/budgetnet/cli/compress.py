"""`budgetnet compress`."""

from __future__ import annotations

import shlex
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


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(
        commands, "compress", _compress, "make a trained network smaller and faster, and train it further"
    )
    leave_options(command, "compress MODEL (--sparsity S | --rank R | --distill-into RECIPE)")
    command.add_argument("model", type=path, metavar="MODEL", help="a finished run, or a model file")
    command.add_argument("--sparsity", type=float, metavar="S", help="share of the channels inside blocks to take out")
    command.add_argument("--rank", type=float, metavar="R", help="rank of convolutions, as a share of the full one")
    command.add_argument("--distill-into", type=path, metavar="RECIPE", help="whose network learns from MODEL instead")
    command.add_argument("--output", type=path, metavar="RUN", help="the new run's folder (default runs/MODEL-TIME)")
    add_training(command)
    command.add_argument("--no-track", action="store_true", help="leave MLflow out")
    command.add_argument("--no-report", action="store_true", help="write no report.html at the end")


def _compress(options: Namespace) -> int:
    from budgetnet import compress, devices
    from budgetnet.errors import Interrupted
    from budgetnet.recipe import run_folder

    set_threads(options.threads)
    request = compress.Request(
        model=options.model,
        sparsity=options.sparsity,
        rank=options.rank,
        student=options.distill_into,
        options=options.further,
    )
    run = options.output or run_folder(Path(options.model.resolve().name))
    progress = progress_on(False, sys.stderr if options.json else sys.stdout)
    try:
        with stop_by_signal(progress, at_once=lambda: not progress.begun) as stop:
            result = compress.compress(
                request,
                run,
                folder=options.data,
                device=devices.find(options.device),
                progress=progress,
                track=not options.no_track,
                report=not options.no_report,
                stop=stop,
            )
    except Interrupted:
        print(f"saved; to go on: the same command with --output {shlex.quote(str(run))}", file=sys.stderr)
        return 128 + (stop.number or signal.SIGTERM)
    finally:
        progress.end()
    if options.json:
        print(json_text(result))
        return 0
    print(f"\n{compress.render(result)}\n\neverything is in {run}")
    return 0
