"""Networks, functions and papers, by the docstrings of the code, in Markdown."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from prose import REFERENCE, address, markdown

from budgetnet import models
from budgetnet.config import ModelConfig
from budgetnet.models import named
from budgetnet.options import sections

DOCS = Path(__file__).resolve().parents[1]
SOURCE = DOCS.parent / "src" / "budgetnet"
_LONGEST = 90  # characters of a signature on one line

# Whom a docstring names before a paper: "Han et al. 2017, arXiv:1610.02915", perhaps with a title between.
_NAME = r"[A-Z][\w'-]+"
_CITED = re.compile(
    rf'({_NAME}(?:(?:,| and) {_NAME})*(?: et al\.)? \d{{4}}),?(?: "[^"]+")?,? \(?((?:arXiv|doi):[\w./-]*\w)'
)

Definition = ast.FunctionDef | ast.ClassDef


def networks() -> str:
    """A table of the registry: what each network costs, and what the function that builds it says."""
    rows = [
        "| network | parameters | multiply-adds | what it is |",
        "|---|--:|--:|---|",
    ]
    builders = _builders()
    for name in models.names():
        with torch.device("meta"):
            network = models.build(ModelConfig(name=name), 10)
        said = markdown(inspect.getdoc(getattr(named, builders[name])) or "").split("\n\n")[0].replace("\n", " ")
        millions = models.multiply_adds(network, 32) / 1e6
        rows.append(f"| `{name}` | {models.count_parameters(network):,} | {millions:,.0f} M | {said} |")
    return "\n".join(rows) + "\n"


def _builders() -> dict[str, str]:
    """For each network of the registry, the name of what is called there to describe it."""
    assigned = [node for node in _parsed("models.named").body if isinstance(node, ast.AnnAssign)]
    (registry,) = (node.value for node in assigned if ast.unparse(node.target) == "NETWORKS")
    assert isinstance(registry, ast.Dict)
    found = {}
    for key, value in zip(registry.keys, registry.values, strict=True):
        assert isinstance(key, ast.Constant)
        assert isinstance(value, ast.Call)
        found[str(key.value)] = ast.unparse(value.func)
    return found


def about(name: str) -> str:
    """What a module says of itself."""
    return markdown(ast.get_docstring(_parsed(name)) or "") + "\n"


def module(name: str) -> str:
    """What a module says of itself and of each public function and class, with signatures, in the order of its file."""
    return "\n".join([about(name), *(_described(name, node) for node in _public(_parsed(name)))])


def _parsed(name: str) -> ast.Module:
    path = SOURCE.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _public(tree: ast.Module) -> Iterator[Definition]:
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_") and ast.get_docstring(node):
            yield node


def _described(name: str, node: Definition) -> str:
    lines = [f"### `{node.name}` {{ #{name}.{node.name} .option }}\n", _signature(node)]
    lines.append(markdown(ast.get_docstring(node) or "") + "\n")
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            said = isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
            if isinstance(method, ast.FunctionDef) and said and method.name[0] != "_":
                first = markdown(said.split("\n\n")[0]).replace("\n", " ")
                lines.append(f"- `{method.name}({_arguments(method.args)})`: {first}")
    return "\n".join(lines) + "\n"


def _signature(node: Definition) -> str:
    """How it is called; nothing for a class whose fields or parent say that."""
    if isinstance(node, ast.ClassDef):
        made = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"]
        if not made:
            return ""
        arguments, returned = made[0].args, ""
    else:
        arguments = node.args
        returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({_arguments(arguments)}){returned}"
    if len(line) > _LONGEST:
        split = ",\n    ".join(_arguments_list(arguments))
        line = f"{node.name}(\n    {split},\n){returned}"
    return f"```python\n{line}\n```\n"


def _arguments(arguments: ast.arguments) -> str:
    return ", ".join(_arguments_list(arguments))


def _arguments_list(arguments: ast.arguments) -> list[str]:
    """Each argument with its type and default; `self` is left out, and stars stand where they must."""
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + [*arguments.defaults]
    shown = [_argument(one, default) for one, default in zip(plain, defaults, strict=True) if one.arg != "self"]
    if arguments.vararg:
        shown.append(f"*{_argument(arguments.vararg)}")
    elif arguments.kwonlyargs:
        shown.append("*")
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    shown += [_argument(one, default) for one, default in keywords]
    return shown + ([f"**{_argument(arguments.kwarg)}"] if arguments.kwarg else [])


def _argument(one: ast.arg, default: ast.expr | None = None) -> str:
    typed = f"{one.arg}: {ast.unparse(one.annotation)}" if one.annotation else one.arg
    return typed + (f" = {ast.unparse(default)}" if default else "")


@dataclass(frozen=True)
class _Place:
    """A docstring: what it is of, and where the site shows it, if it does."""

    name: str
    text: str
    link: str | None


def sources() -> str:
    """A table of every paper that a docstring names, oldest first, and what rests on it."""
    who: dict[str, str] = {}
    used: dict[str, list[str]] = {}
    for place in _docstrings():
        text = " ".join(place.text.split())
        for cited, reference in _CITED.findall(text):
            # The longest is the fullest: options say "Han 2017", functions "Han et al. 2017".
            who[reference] = max(who.get(reference, ""), cited, key=len)
        shown = f"[`{place.name}`]({place.link})" if place.link else f"`{place.name}`"
        for match in REFERENCE.finditer(text):
            entries = used.setdefault(match[0], [])
            if shown not in entries:
                entries.append(shown)
    rows = ["| paper | used by |", "|---|---|"]
    for reference in sorted(used, key=lambda one: (who.get(one, "")[-4:], who.get(one, ""), one)):
        kind, number = reference.split(":", 1)
        linked = f"[{reference}]({address(kind, number)})"
        rows.append(f"| {who.get(reference, '')} {linked} | {', '.join(used[reference])} |")
    return "\n".join(rows) + "\n"


def _docstrings() -> Iterator[_Place]:
    """The strings under the options of a recipe, and every other docstring of the package."""
    for section in sections():
        yield _Place(section.name, section.meaning, "../reference/options.md")
        for option in section.options:
            dotted = section.dotted(option)
            yield _Place(dotted, option.meaning, f"../reference/options.md#{dotted}")
    shown = _shown()
    for file in sorted(SOURCE.rglob("*.py")):
        name = ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if text := ast.get_docstring(tree):
            yield _Place(name, text, shown.get(name))
        for node in tree.body:
            if isinstance(node, Definition) and name not in ("sections", "config"):
                yield from _of(name, node, shown.get(name))


def _of(name: str, node: Definition, page: str | None) -> Iterator[_Place]:
    inner = [one for one in ast.walk(node) if isinstance(one, Definition)]
    text = "\n".join(found for one in inner if (found := ast.get_docstring(one)))
    built = (
        [network for network, builder in _builders().items() if builder == node.name] if name == "models.named" else []
    )
    for network in built:
        yield _Place(network, text, "networks.md")
    if not built:
        shown = page and not node.name.startswith("_")
        yield _Place(f"{name}.{node.name}", text, f"{page}#{name}.{node.name}" if shown else None)


def _shown() -> dict[str, str]:
    """For each module that a page of methods shows, that page."""
    return {
        name: page.name
        for page in sorted((DOCS / "methods").glob("*.md"))
        for name in re.findall(
            r"^<!-- made: (?:module|about) (\S+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
