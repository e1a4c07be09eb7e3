"""Recipes and command lines: a YAML file over the configuration, any key of which is an option too (`--optimizer.lr`).

Unknown keys, wrong types and impossible mixes are refused in one line, in the words of a recipe.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import yaml

from budgetnet.config import Config, StageConfig, nearest
from budgetnet.errors import ConfigError
from budgetnet.plainyaml import read_yaml, require_plain
from budgetnet.runfiles import CONFIG

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

RUNS = Path("runs")
"""Where runs are that were given no other folder."""
BROUGHT = Path(__file__).parent / "recipes"
"""The recipes that are part of the package; in a checkout, a link to those at its top."""

_TAKEN_OUT: dict[str, Any] = {
    "optimizer.lookahead_steps": 0,
    "optimizer.lookahead_alpha": 0.5,
    "model.zero_init": False,
}
"""Options that are no more, with the value that meant none of it, as older runs and model files hold it."""


def find_recipe(recipe: Path) -> Path:
    """The file of a recipe: one of this name, or one that budgetnet brings, of which `quick` is name enough.

    Raises:
        ConfigError: it lies elsewhere, and budgetnet brings one of its name, or of nearly its name alone; or it is a
            folder.
    """
    name = recipe.stem
    brought = BROUGHT / f"{name}.yaml"
    alone = recipe in (Path(name), Path(brought.name))
    if recipe.exists() and not recipe.is_dir():
        return recipe
    if brought.is_file() and alone:
        return brought
    if (recipe / CONFIG).is_file():
        raise ConfigError(
            f"{recipe} is the folder of a run: `budgetnet train --resume --output {shlex.quote(str(recipe))}` "
            f"continues it, and its recipe is {recipe / CONFIG}"
        )
    if recipe.is_dir():
        raise ConfigError(f"{recipe} is a folder, expected a recipe: a YAML file, or a name, such as quick")
    if brought.is_file():
        raise ConfigError(f"{recipe} is not there; `{name}` alone is the recipe of that name that budgetnet brings")
    if alone and (hint := nearest(name, [path.stem for path in BROUGHT.glob("*.yaml")])):
        raise ConfigError(f"{recipe} is not there, nor a recipe that budgetnet brings{hint}")
    return recipe


def run_folder(recipe: Path) -> Path:
    """The folder of a run by that recipe which was given no other."""
    return RUNS / f"{recipe.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def load_recipe(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a recipe, with command-line style overrides such as `["--optimizer.lr", "0.1"]`.

    Raises:
        ConfigError: as `parse_options`; the recipe cannot be read or is not YAML.
    """
    return recipe_loader(recipe)(overrides)


def recipe_loader(recipe: Path) -> Callable[[Sequence[str]], Config]:
    """`load_recipe` for many overrides of one recipe, which is read once.

    Raises:
        ConfigError: the recipe cannot be read or is not YAML.
    """
    arguments = _recipe_arguments(recipe)
    return lambda overrides: parse_options(_parser(), [*arguments, *overrides])[0]


def config_from_record(record: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a file holds as plain values (`asdict`), with overrides as of `load_recipe`.

    Raises:
        ConfigError: as `load_recipe`; `source` names the file.
    """
    require_plain(record, source)
    for section in _sections():  # which in a recipe may be a file's name
        if not isinstance(record.get(section, {}), dict):
            raise ConfigError(f"{source}: {section} is {record[section]!r}, expected options of its own")
    arguments = _content_arguments(record, source, Path())
    return parse_options(_parser(), [*arguments, *overrides])[0]


def add_options(parser: ArgumentParser) -> None:
    """Give `parser` an option for every key of a recipe, dotted (`--optimizer.lr`), and `--recipe FILE` under them.

    Their help is elsewhere (`options`), as this parser takes longer to make than help may.
    """
    import jsonargparse

    # A value may be written as the name of a class, whose module is imported before anyone asks whether it belongs
    # there: none is, but for stages.
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[f"{StageConfig.__module__}.{StageConfig.__name__}"],
    )
    action = jsonargparse.ActionConfigFile  # type: ignore[attr-defined]
    parser.add_argument("--recipe", action=action)
    parser.add_class_arguments(Config)


def parse_options(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Config, Namespace]:
    """Parse a command line whose parser has the options of `add_options`, and perhaps others.

    Args:
        parser: made with exit_on_error=False and print_config=None; a positional called `recipe_file`, where it has
            one, names the recipe.
        arguments: the command line; dashes inside option names mean underscores.

    Returns:
        The checked configuration (recipe, then options), and whatever else was parsed.

    Raises:
        ConfigError: an unknown key (with the nearest right one), a wrong type, a value out of range, an impossible mix.
    """
    arguments = [_underscored(argument) for argument in arguments]
    defaults = _defaults(parser)
    options = {*defaults.keys(), "help"}
    for argument in arguments:
        name = argument[2:].partition("=")[0]
        if argument.startswith("--") and not any(option == name or option.startswith(name + ".") for option in options):
            hint = nearest(name, options, "--").replace("_", "-")
            raise ConfigError(f"--{name.replace('_', '-')} is not an option{hint}")
    values = [argument.partition("=")[2] if argument.startswith("--") else argument for argument in arguments]
    require_plain(values, "the command line")
    arguments = _for_parser(arguments)
    try:
        # Without defaults, which Config has itself: to check them again each time takes most of the time.
        parsed = parser.parse_args(arguments, defaults=False)
        recipe = parsed.get("recipe_file")
        if recipe is not None:
            parsed = parser.parse_args([*_recipe_arguments(Path(recipe)), *arguments], defaults=False)
        made = parser.instantiate(parsed)
    # Besides its own, what the parser meets in values of lists, at which it looks no closer.
    except (argparse.ArgumentError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ConfigError(_readable(str(error))) from error
    found = {**vars(defaults), **vars(made)}
    names = {f.name for f in fields(Config)}
    return (
        Config(**{name: made[name] for name in names if name in made}),
        Namespace(**{key: value for key, value in found.items() if key not in names and key != "recipe"}),
    )


def require_option(name: str, source: str) -> None:
    """Make sure that a name is that of a single option of a recipe.

    Raises:
        ConfigError: there is none of this name (the nearest right one is said), or it has options of its own.
    """
    options = _options()
    if name not in options:
        raise ConfigError(f"{source}: {name} is not an option{nearest(name, options)}")
    if is_dataclass(kind := options[name]):
        raise ConfigError(
            f"{source}: {name} has options of its own: name one of them, as {name}.{fields(kind)[0].name}"
        )


@cache  # it keeps nothing of what it parses, and making it takes most of the time
def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, print_config=None)
    add_options(parser)
    return parser


@cache
def _defaults(parser: ArgumentParser) -> Any:
    """The options that a parser knows, dotted, with what each is if nobody says."""
    return parser.get_defaults()


def _recipe_arguments(path: Path) -> list[str]:
    """The options that read a recipe; what cannot be one is refused, naming unknown keys better than the parser."""
    path = find_recipe(path)
    content = read_yaml(path)
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected the options of a recipe, one a line")
    return _content_arguments(content, str(path), path.parent)


def _content_arguments(content: dict[str, Any], source: str, folder: Path) -> list[str]:
    """The options that read what a recipe holds; sections may be files in `folder`."""
    options = _options()
    for section, kind in _sections().items():
        if section not in content:
            continue
        value = content[section]
        if isinstance(value, str) and os.path.isfile(folder / value):
            # Read here: the parser would take `section.yaml` for the name yaml in a module.
            content[section] = value = read_yaml(folder / value)
        if not isinstance(value, dict):
            expected = f"options of its own, such as {section}.{fields(kind)[0].name}, or a file that holds them"
            raise ConfigError(f"{source}: {section} is {value!r}, expected {expected}")
    for name, value in _entries(content):
        if name in _TAKEN_OUT:
            if value != _TAKEN_OUT[name]:
                raise ConfigError(f"{source}: {name} is {value!r}, but is no option any more: train without it")
            continue
        if name not in options:
            raise ConfigError(f"{source}: {name} is not an option{nearest(name, options)}")
        if value is None and type(None) not in get_args(options[name]):  # which the parser lets pass
            raise ConfigError(f"{source}: {name} is null, expected a value, or no such line")
    return ["--recipe", yaml.dump(_digits(content), Dumper=_Quoting)]


class _Quoting(yaml.SafeDumper):
    """Texts in quotes: the parser reads a newer YAML, in which 1e3 is a number."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _digits(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a recipe holds, whole numbers in digits, without what was taken out."""
    return {
        key: _digits(value, f"{prefix}{key}.") if isinstance(value, dict) else _in_digits(prefix + key, value)
        for key, value in content.items()
        if prefix + key not in _TAKEN_OUT
    }


def _in_digits(option: str, value: Any) -> Any:
    """A whole number that is written as 1e6 or 1.0e6, which the parser takes for a fraction; all else as it is."""
    if option not in _whole():
        return value
    written = isinstance(value, str) and re.fullmatch(r"[\d_.]+[eE]\+?\d{1,2}", value)
    try:
        number = float(value) if written or isinstance(value, float) else math.nan
    except ValueError:
        return value
    return int(number) if number.is_integer() else value


def _for_parser(arguments: Sequence[str]) -> list[str]:
    """Arguments as the parser needs them: files of sections as recipes of these alone, and whole numbers in digits."""
    found: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        option = (name or (found[-1] if found else "")).removeprefix("--")
        if option in _sections() and os.path.isfile(value):
            if not name:
                found.pop()  # the option, whose value this is
            found += _content_arguments({option: value}, value, Path())
        else:
            found.append(name + equals + str(_in_digits(option, value)))
    return found


@cache  # Python looks up again, each time, what the names in annotations mean
def _options() -> dict[str, Any]:
    """The options of a recipe, of its sections too, with their types."""

    def within(kind: type, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, hint in get_type_hints(kind).items():
            yield prefix + name, hint
            if is_dataclass(hint):
                yield from within(hint, f"{prefix}{name}.")  # type: ignore[arg-type]

    return dict(within(Config, ""))


@cache
def _whole() -> set[str]:
    """The options that are whole numbers, or something else too."""
    return {name for name, hint in _options().items() if int in (hint, *get_args(hint))}


def _sections() -> dict[str, Any]:
    """The options of a recipe that have options of their own, with their types."""
    return {name: kind for name, kind in _options().items() if is_dataclass(kind)}


def _entries(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _entries(value, f"{prefix}{key}.")


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _readable(message: str) -> str:
    """The parser's message as one line in the words of a recipe."""
    message = " ".join(message.split())
    message = re.sub(r"(?:Parser key|Problem with given class_path) \"([\w.]+)\":?", r"\1:", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    message = re.sub(r"typing\.Literal\[([^\]]*)\]", lambda m: "one of " + m[1].replace("'", ""), message)
    stage = re.match(r"Does not validate .*? Errors: - (model\.stages.*) - Expected a NoneType", message)
    if stage:
        return stage[1]
    unread = re.match(r"([\w.]+): (?:Unable to load config|Importing) '(.*?)'", message)
    if unread:
        return f"{unread[1]} is {unread[2]!r}, expected options of its own, or a file that holds them"
    found = re.fullmatch(r"([\w.]+): Expected an? (.*?)\. Got value: (.*)", message)
    if found:
        return f"{found[1]} is {found[3]!r}, expected {found[2]}"
    union = re.match(
        r"([\w.]+): Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: (.*)", message
    )
    if union:
        inner = re.search(r"Option '\w+' is not accepted", union[3])
        value = union[3].rpartition("Given value: ")[2]
        expected = union[2].replace(f"{StageConfig.__module__}.", "").replace("NoneType", "null")
        return f"{union[1]} is {value!r}, expected one of: {expected}" + (f"; {inner[0]}" if inner else "")
    return message
