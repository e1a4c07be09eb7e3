"""`budgetnet fit`."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from budgetnet.cli.common import command_parser, count, json_text, path, progress_on, set_threads


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(commands, "fit", _fit, "find the network that makes the most of a budget")
    command.add_argument("--budget", type=count, required=True, metavar="N", help="trainable parameters, such as 5e6")
    command.add_argument("--flops", type=count, metavar="N", help="most multiply-adds an image, such as 300e6")
    command.add_argument("--latency", type=float, metavar="MS", help="most milliseconds for one image on this CPU")
    command.add_argument("--families", nargs="+", default=(), metavar="NAME", help="such as preact shake (default all)")
    command.add_argument("--recipe", type=path, metavar="FILE", help="how to train (default: one of its own)")
    command.add_argument(
        "--dataset", choices=("cifar10", "cifar100", "folder", "digits"), help="default: the recipe's, else cifar10"
    )
    command.add_argument("--data", type=path, metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, cache)")
    command.add_argument(
        "--epochs",
        type=int,
        default=4,
        help="of each network at first; the better half goes on to twice as many, and so on; 0 trains none (default 4)",
    )
    command.add_argument("--minutes", type=float, metavar="M", help="at first, instead of as many epochs for each")
    command.add_argument("--seed", type=int, help="default: the recipe's, else 0")
    command.add_argument("--device", default="auto", help="where to train: auto, cpu, cuda, cuda:N or mps")
    command.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is one a core")
    command.add_argument("--output", type=path, metavar="DIR", help="keep runs, table, picture and the winner's recipe")


def _fit(options: Namespace) -> int:
    from dataclasses import replace

    from budgetnet import devices, fit
    from budgetnet.candidates import Request, default_recipe
    from budgetnet.recipe import load_recipe

    set_threads(options.threads)
    recipe = load_recipe(options.recipe) if options.recipe else default_recipe(options.dataset or "cifar10")
    dataset = options.dataset or recipe.dataset
    seed = recipe.seed if options.seed is None else options.seed
    request = Request(
        budget=options.budget,
        recipe=replace(recipe, dataset=dataset, seed=seed),
        families=tuple(options.families),
        multiply_adds=options.flops,
        latency_ms=options.latency,
        epochs=options.epochs,
        minutes=options.minutes,
    )
    progress = progress_on(False, sys.stderr if options.json else sys.stdout)
    device = devices.find(options.device)
    try:
        result = fit.fit(request, folder=options.data, output=options.output, device=device, progress=progress)
    except KeyboardInterrupt:
        if options.output:
            print("the same command goes on from here", file=sys.stderr)
        raise
    finally:
        progress.end()
    print(json_text(result) if options.json else f"\n{fit.render(result)}")
    if options.output and "winner" in result and not options.json:
        print(f"\nthe winner's recipe: {options.output / 'winner.yaml'}")
    return 0
