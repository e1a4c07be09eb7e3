"""What help and the reference say of each option of a recipe: what it may be, its default, and what it means."""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from budgetnet.config import Config, StageConfig


@dataclass(frozen=True)
class Option:
    """A key of a recipe."""

    name: str
    """Its name within its section."""
    values: str
    """What it may be, in the words of a recipe: `whole number or null`; words to be written as they stand are between
    backticks."""
    default: str
    """Its default, as a recipe has it."""
    meaning: str
    """The string under its field."""


@dataclass(frozen=True)
class Section:
    """Keys of a recipe that belong together."""

    name: str
    """Its key: `optimizer`; nothing for the keys of the run itself; `model.stages` for those that each stage has."""
    meaning: str
    """The docstring of its class."""
    options: list[Option]
    """Its keys, but those that are sections."""

    def dotted(self, option: Option) -> str:
        """The whole name of one of its options, such as `optimizer.lr`."""
        return f"{self.name}.{option.name}" if self.name else option.name


def sections() -> list[Section]:
    """All sections, the run itself first and the stages of a network last."""
    hints = get_type_hints(Config).items()
    kinds = {"": Config, **{name: kind for name, kind in hints if is_dataclass(kind)}, "model.stages": StageConfig}
    return [_section(name, kind) for name, kind in kinds.items()]


def _section(name: str, kind: Any) -> Section:
    hints, meanings = get_type_hints(kind), _strings_under_fields(kind)
    options = [
        Option(one.name, _values(hints[one.name]), _default(one), meanings.get(one.name, ""))
        for one in fields(kind)
        if not is_dataclass(hints[one.name])
    ]
    return Section(name, inspect.getdoc(kind) or "", options)


def _strings_under_fields(kind: type) -> dict[str, str]:
    defined = _classes(kind.__module__)[kind.__name__]
    return {
        before.target.id: inspect.cleandoc(after.value.value)
        for before, after in itertools.pairwise(defined.body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


@cache  # inspect finds the source of a class by parsing that of its module, again for each
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _values(hint: Any) -> str:
    """A type in the words of a recipe."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_values(one) for one in inner)
    if origin is list:
        return f"a list of {_values(inner[0])}s"
    if origin is tuple:
        return f"{len(inner)} {_values(inner[0])}s"
    words = {int: "whole number", float: "number", bool: "`true` | `false`", str: "text", NoneType: "`null`"}
    return words.get(hint, "stage" if hint is StageConfig else getattr(hint, "__name__", str(hint)))


def _default(one: Field[Any]) -> str:
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if isinstance(value, tuple | list):
        return f"[{', '.join(f'{entry:g}' for entry in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value >= 10_000:
        return f"{value:_}"
    return f"{value:g}" if isinstance(value, float) else str(value)
