"""YAML of strangers: plain values only, of a bounded size and depth, with no way to name a class or to grow.

Recipes, studies and the files of runs are read here, and nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from budgetnet.errors import ConfigError

_LONGEST = 1 << 16  # characters of a YAML file, or of a value
_DEEPEST = 20
# What PyYAML raises on what is no YAML, or has a tag that does not fit it: `!!bool maybe`, `!!int ""`.
_BROKEN = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def read_yaml(path: Path) -> Any:
    """What a YAML file of at most 65,536 characters holds, as plain values; dates are strings.

    Raises:
        ConfigError: it cannot be read, is not YAML, is longer, has aliases, or is nested more than 20 deep.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = parse_yaml(file.read(_LONGEST + 1))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    require_plain(content, str(path))
    return content


def parse_yaml(text: str) -> Any:
    """What YAML holds, as `read_yaml` reads it.

    Raises:
        ValueError: it is none, or more than a recipe needs.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST:,} characters, where a recipe has a few thousand")
    try:
        return _Loader(text).get_single_data()
    except _BROKEN as error:
        raise ValueError(" ".join(str(error).split())) from error


def require_plain(value: Any, source: str) -> None:
    """Refuse texts that would be YAML of the forbidden kinds when the parser of options looks into them, as it does.

    Raises:
        ConfigError: one is in `value`, at whatever depth; `source` names the file.
    """
    if isinstance(value, dict | list):
        for entry in value.items() if isinstance(value, dict) else value:
            require_plain(list(entry) if isinstance(entry, tuple) else entry, source)
    elif isinstance(value, str):
        if len(value) > _LONGEST:
            raise ConfigError(f"{source}: a value has more than {_LONGEST:,} characters: {value[:40]!r}...")
        try:
            inner = _Loader(value).get_single_data()
        except _BROKEN as error:
            if isinstance(error, yaml.YAMLError) and not isinstance(error, _ExcessError):
                return  # so it is a text and no more
            why = " ".join(str(error).split())
            raise ConfigError(f"{source}: {value[:40]!r} cannot be a value: {why}") from error
        if inner != value:
            require_plain(inner, source)


class _Loader(yaml.SafeLoader):
    """YAML without dates, without what a short text can grow by (aliases and depth), and without what misleads."""

    yaml_implicit_resolvers = {  # noqa: RUF012  typed in the base class
        first: [(tag, pattern) for tag, pattern in patterns if not tag.endswith(":timestamp")]
        for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _ExcessError("it has an alias (*name), expected the value itself")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _ExcessError(f"it is nested more than {_DEEPEST} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise _ExcessError(f"it has {twice[0]} twice")
        return super().construct_mapping(node, deep)


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if value.bit_length() > 128:  # which Python may refuse to print
        raise _ExcessError("a number of more than 128 bits")
    _require_decimal(node.value, value)
    return value


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    value: float = loader.construct_yaml_float(node)
    _require_decimal(node.value, value)
    return value


def _require_decimal(text: str, value: float) -> None:
    """Refuse what YAML 1.1 reads to base 60 or 8: 1:30 and 010."""
    if re.fullmatch("[-+]?(.*:.*|0[0-7_]+)", text):
        raise _ExcessError(f"{text[:40]} means {value} in YAML: write that, or another text")


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


class _ExcessError(yaml.YAMLError):
    """Of a text that is YAML, but more than a recipe needs."""
