"""Commands, options and recipes, as the code and the recipes have them, in Markdown."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from unittest import mock

from prose import markdown

from budgetnet import cli
from budgetnet.cli.common import EXAMPLES
from budgetnet.options import Section, sections

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
    """Every key of a recipe with what it may be, its default and what it means; a heading for each section."""
    return "\n".join(_section(section) for section in sections())


def _section(section: Section) -> str:
    stage = section.name == "model.stages"
    title = "model.stages, each" if stage else section.name or "The run"
    lines = [f"## {title}\n", markdown(section.meaning), ""]
    for option in section.options:
        dotted = section.dotted(option)
        lines += [
            f"### `{option.name if stage else dotted}` {{ #{dotted} .option }}\n",
            f"{markdown(option.values)}; default `{option.default}`" + "\n{ .kind }\n",
            markdown(option.meaning) + "\n",
        ]
    return "\n".join(lines)


def recipes() -> str:
    """Every recipe, whole, under its name."""
    files = sorted(RECIPES.rglob("*.yaml"), key=lambda file: (file.parent != RECIPES, file.name))
    names = [file.relative_to(RECIPES).with_suffix("").as_posix() for file in files]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return "\n".join(
        f"## {name} {{ #{name} }}\n\n```yaml\n{text}```\n" for name, text in zip(names, texts, strict=True)
    )
