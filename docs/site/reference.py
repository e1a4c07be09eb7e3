"""Commands, options and recipes, as the code and the recipes have them, in Markdown."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import itertools
import os
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest import mock

from prose import markdown

from budgetnet import cli
from budgetnet.cli.common import EXAMPLES
from budgetnet.config import Config, StageConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def commands() -> str:
    """`--help` of every command, each under a heading of its name."""
    return "\n".join(f"## {name}\n\n```text\n{_help(name)}```\n" for name in EXAMPLES)


def _help(command: str) -> str:
    printed = io.StringIO()
    plain = mock.patch.dict(os.environ, COLUMNS="84", NO_COLOR="1")
    with plain, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([*command.split(), "--help"])
    return printed.getvalue()


def options() -> str:
    """Every key of a recipe with its type, its default and what the code says of it; a heading for each section."""
    sections: list[tuple[str, type]] = [("", Config)]
    sections += [(f"{name}.", kind) for name, kind in get_type_hints(Config).items() if is_dataclass(kind)]
    sections += [("model.stages, each: ", StageConfig)]
    return "\n".join(_section(prefix, kind) for prefix, kind in sections)


def _section(prefix: str, kind: Any) -> str:
    dotted = prefix if prefix.endswith(".") else ""
    title = prefix.rstrip(".: ") or "The run"
    hints = get_type_hints(kind)
    (defined,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(defined, ast.ClassDef)
    said = field_texts(defined)
    lines = [f"## {title}\n", markdown(inspect.getdoc(kind) or ""), ""]
    for one in fields(kind):
        if is_dataclass(hints[one.name]):
            continue
        anchor = option_anchor(kind.__name__, one.name)
        default = _default(one)
        lines += [
            f"### `{dotted}{one.name}` {{ #{anchor} .option }}\n",
            f"{markdown(_named(hints[one.name]))}; {default}" + "\n{ .kind }\n",
            markdown(said.get(one.name, "")) + "\n",
        ]
    return "\n".join(lines)


def option_anchor(section: str, name: str) -> str:
    """The heading's id of an option in the page of options: `OptimizerConfig`, `lr` is `optimizer.lr`."""
    prefixes = {"Config": "", "StageConfig": "model.stages."}
    prefixes |= {kind.__name__: f"{key}." for key, kind in get_type_hints(Config).items() if is_dataclass(kind)}
    return prefixes[section] + name


def field_texts(kind: ast.ClassDef) -> dict[str, str]:
    """The strings that stand under the fields of a class, by field."""
    return {
        before.target.id: inspect.cleandoc(after.value.value)
        for before, after in itertools.pairwise(kind.body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }


def _named(hint: Any) -> str:
    """A type in the words of a recipe: `int or null`, `sgd, adam or muon`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_named(one) for one in inner)
    if origin is list:
        return f"a list of {_named(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} of {_named(inner[0])}"
    words = {int: "whole number", float: "number", bool: "`true` | `false`", str: "text", NoneType: "`null`"}
    return words.get(hint, "stages" if hint is StageConfig else getattr(hint, "__name__", str(hint)))


def _default(one: Field[Any]) -> str:
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if isinstance(value, tuple | list):
        shown = f"[{', '.join(f'{entry:g}' for entry in value)}]"
    elif value is None or isinstance(value, bool):
        shown = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, int) and value >= 10_000:
        shown = f"{value:_}"
    else:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"default `{shown}`"


def recipes() -> str:
    """Every recipe, whole, under its name."""
    files = sorted(RECIPES.rglob("*.yaml"), key=lambda file: (file.parent != RECIPES, file.name))
    names = [file.relative_to(RECIPES).with_suffix("").as_posix() for file in files]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return "\n".join(
        f"## {name} {{ #{name} }}\n\n```yaml\n{text}```\n" for name, text in zip(names, texts, strict=True)
    )
