"""`budgetnet ablate`."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from budgetnet.cli.common import command_parser, json_text, leave_options, path
from budgetnet.errors import ConfigError


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(commands, "ablate", _ablate, "tell what options of a recipe are worth, by several seeds")
    leave_options(command, "ablate RECIPE --vary KEY=VALUE,VALUE")
    command.add_argument("recipe", type=path, metavar="RECIPE", help="a recipe, or a file of named variants of one")
    command.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=V,V",
        help="values to try instead of the recipe's, repeatable",
    )
    command.add_argument("--grid", action="store_true", help="every value with every other, not one at a time")
    command.add_argument("--seeds", type=int, default=3, help="trainings of each variant (default 3)")
    command.add_argument("--shift", type=int, metavar="N", help="also judge by N held-out images under corruption")
    command.add_argument("--jobs", type=int, default=1, help="trainings at a time (default 1)")
    command.add_argument("--output", type=path, metavar="DIR", help="keep the runs there (default runs/ablate-RECIPE)")
    command.add_argument("--record", type=path, metavar="FILE", help="of all runs (default study.json beside them)")
    command.add_argument("--data", type=path, metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, cache)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default auto)")
    command.add_argument("--threads", type=int, default=0, help="of each training; 0 is one a core, shared by the jobs")


def _ablate(options: Namespace) -> int:
    from dataclasses import replace

    from budgetnet import ablate

    study = ablate.read_study(options.recipe)
    vary = ablate.parse_vary(options.vary)
    if study and (vary or options.grid):
        raise ConfigError(f"{options.recipe} names its variants: leave --vary and --grid out, or give a recipe")
    if study is None:
        variants = (ablate.grid if options.grid else ablate.one_at_a_time)(vary)
        study = ablate.Study(recipe=options.recipe, variants=variants)
    study = replace(study, always=[*study.always, *options.further], seeds=options.seeds)
    if options.shift is not None:
        study = replace(study, shift=options.shift)
    runs = options.output or Path("runs") / f"ablate-{options.recipe.stem}"
    try:
        record = ablate.carry_out(
            study,
            runs,
            folder=options.data,
            device=options.device,
            threads=options.threads,
            jobs=options.jobs,
            say=lambda text: print(text, file=sys.stderr, flush=True),
            record=options.record or runs / "study.json",
        )
    except KeyboardInterrupt:
        print("the same command goes on from here", file=sys.stderr)
        raise
    if options.json:
        compared = {"comparison": ablate.compare(record)}
        if study.shift:
            compared["corruption_comparison"] = ablate.compare(record, "corruption_accuracy")
        print(json_text(record | compared))
    else:
        print(ablate.render(record))
    return 0
