"""`budgetnet models` and `budgetnet inspect`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.cli.common import command_parser, count, json_text, path
from budgetnet.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from budgetnet.models import Row


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(commands, "models", _models, "list the networks, their size and whether they fit a budget")
    command.add_argument("--budget", type=count, default=5_000_000, help="trainable parameters (default 5e6)")
    command.add_argument("--classes", type=int, default=10, help="number of classes (default 10)")

    command = command_parser(commands, "inspect", _inspect, "show a network's layers, or what a checkpoint holds")
    command.add_argument("what", metavar="MODEL_OR_CHECKPOINT", help="a listed name, a recipe, a run, weights, or box")
    command.add_argument("--model", metavar="NAME", help="network of a checkpoint of the reference project")
    command.add_argument("--width", type=int, help="width of a network given by name")
    command.add_argument("--classes", type=int, help="classes of a named network (default 10) or a recipe (its data's)")
    command.add_argument("--picture", type=path, metavar="FILE.svg|png", help="draw the stages with their shapes")


def _models(options: Namespace) -> int:
    import torch

    from budgetnet import models
    from budgetnet.config import ModelConfig

    rows = []
    for name in models.names():
        with torch.device("meta"):
            network = models.build(ModelConfig(name=name), options.classes)
        parameters, macs = models.count_parameters(network), models.multiply_adds(network, 32)
        rows.append(
            {"name": name, "parameters": parameters, "multiply_adds": macs, "fits": parameters <= options.budget}
        )
    if options.json:
        print(json_text({"budget": options.budget, "models": rows}))
        return 0
    print(f"{'network':<20}  {'parameters':>11}  {'M mult-adds':>11}  fits {options.budget:,}")
    for row in rows:
        cost = f"{row['parameters']:>11,}  {row['multiply_adds'] / 1e6:>11,.1f}"
        print(f"{row['name']:<20}  {cost}  {'yes' if row['fits'] else 'no'}")
    return 0


def _inspect(options: Namespace) -> int:
    import torch

    from budgetnet import checkpoint, data, models, pictures, registry
    from budgetnet.cli.model import load_model
    from budgetnet.config import ModelConfig
    from budgetnet.markup import visible
    from budgetnet.recipe import find_recipe, load_recipe
    from budgetnet.terminal import columns, wrapped

    provenance: dict[str, Any] = {}
    known = options.what in models.names()
    held = not known and (registry.is_registered(options.what) or checkpoint.found(options.what))
    path = Path(options.what)
    if not (known or held) and path == Path(path.name):
        path = find_recipe(path)
    by_recipe = path.suffix in (".yaml", ".yml")
    named = not (held or by_recipe)
    _refuse_out_of_place(options, named=named, by_recipe=by_recipe)
    if by_recipe:
        recipe = load_recipe(path)
        size, title = recipe.image_size, recipe.model.name
        classes = data.num_classes(recipe.dataset, None) if options.classes is None else options.classes
        with torch.device("meta"):  # where it may be of any size
            network = models.build(recipe.model, classes, image_size=size, budget=recipe.budget)
    elif named:
        if "/" in options.what or path.suffix:
            raise CheckpointError(f"{options.what} is not there: give a name that `budgetnet models` lists, or a file")
        config, size = ModelConfig(name=options.what, width=options.width), 32
        with torch.device("meta"):
            network = models.build(config, 10 if options.classes is None else options.classes)
        title = options.what
    else:
        classifier = load_model(path, options.model)
        network, size, title = classifier.network, classifier.image_size, classifier.model.name
        provenance = {"classes": classifier.classes, "mean": classifier.mean, "std": classifier.std}
        provenance |= classifier.provenance
    rows = models.summarize(network, size)
    if options.picture:
        pictures.draw_network(network, options.picture, title, size)
    if options.json:
        layers = [vars(row) for row in rows]
        print(json_text({"model": title, "layers": layers, "provenance": provenance}))
        return 0
    print(f"{title}, {size}x{size} images")
    for line in _table(rows, columns()):
        print(line)
    for key, value in provenance.items():
        if key != "config":
            print("\n".join(wrapped(f"{visible(key)}: {_said(value)}", columns(), 2, chop=True)))
    if options.picture:
        print(f"drawn to {options.picture}")
    return 0


def _refuse_out_of_place(options: Namespace, *, named: bool, by_recipe: bool) -> None:
    """Refuse what is not for a network by its name, or by a recipe; neither is one of a file."""
    what = options.what
    if options.width is not None and not named:
        raise ConfigError(f"--width is for a network given by name, and {what} has its own: leave it out")
    if options.model is not None and (named or by_recipe):
        raise ConfigError(f"--model is for a checkpoint of the reference project, not for {what}: leave it out")
    if options.classes is not None and not (named or by_recipe):
        raise ConfigError(f"--classes is for a name or a recipe, and {what} has its own: leave it out")


def _table(rows: Sequence[Row], width: int) -> Iterator[str]:
    """The layers and their sum in columns, of which the last goes on in further lines."""
    from budgetnet.terminal import wrapped

    heads = ("layer", "output", "parameters", "mult-adds")
    cells = [
        (row.name, "x".join(map(str, row.output_shape)), f"{row.parameters:,}", f"{row.multiply_adds:,}")
        for row in rows
    ]
    total = f"{sum(row.parameters for row in rows):,}", f"{sum(row.multiply_adds for row in rows):,}"
    widths = [max(map(len, column)) for column in zip(heads, ("total", "", *total), *cells, strict=True)]

    def line(name: str, *numbers: str) -> str:
        return "  ".join([f"{name:<{widths[0]}}", *map(str.rjust, numbers, widths[1:])])

    yield f"{line(*heads)}  kind"
    before = sum(widths) + 2 * len(widths)
    for row, texts in zip(rows, cells, strict=True):
        first, *rest = wrapped(row.kind, max(24, width - before))
        yield f"{line(*texts)}  {first}"
        yield from (" " * before + further for further in rest)
    yield line("total", "", *total)


def _said(value: Any) -> str:
    """A value of a file's metadata as text."""
    from budgetnet.markup import visible

    if isinstance(value, Mapping):
        return ", ".join(f"{visible(str(key))} {_said(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    return visible(f"{value:.6g}" if isinstance(value, float) else str(value))
