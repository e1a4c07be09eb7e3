"""Imports follow the data and are made when needed, what is long says why, no module has state, a flag one reader."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from budgetnet.config import Config

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "images"))
import architecture  # noqa: E402
from architecture import ORDER, SOURCE, imports, room  # noqa: E402

LAZY = {
    "mlflow",
    "optuna",
    "sqlalchemy",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "sklearn",
    "scipy",
    "PIL",
    "pyarrow",
    "jsonargparse",
    "safetensors",
    "openvino",
    "timm",
}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_what_stands_before_it_and_nothing_heavy_at_the_top(path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for name, at_import in imports(path):
        other = room(name)
        assert not other or other == own or ORDER.index(other) < ORDER.index(own), f"{own} imports {name}"
        assert not at_import or name.split(".")[0] not in LAZY, f"{own} imports {name} at the top"


def test_every_module_has_its_place_in_the_order():
    modules = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("[!_]*.py")}
    assert modules - {"py"} == {*ORDER}


def test_the_picture_of_the_modules_is_that_of_todays_imports():
    picture = architecture.PICTURE.read_text(encoding="utf-8")
    assert picture == architecture.picture(), "run python docs/images/architecture.py, and look at the picture"
    for module in ORDER:
        assert f">{module}<" in picture or f">{module}/<" in picture
    assert "href" not in picture
    assert "url(" not in picture


def test_an_arrow_that_others_imply_is_left_out():
    shown = {(before.title, after.title) for before, after in architecture.arrows()}
    for one, other in shown:
        reached = {one}
        for group in architecture.GROUPS:
            if any((before, group.title) in shown - {(one, other)} for before in reached):
                reached.add(group.title)
        assert other not in reached, f"{one} leads to {other} anyway"
    assert {after for _, after in shown} == {group.title for group in architecture.GROUPS[1:]}


MODULE, FUNCTION = 500, 60  # lines at most


def too_long(text: str) -> list[str]:
    """What of a file has too many lines, a function's docstring not counted, and does not say why: `# long: REASON`."""
    lines = text.splitlines()
    found = [f"the module has {len(lines)} lines"] if len(lines) > MODULE and not excused(lines[0]) else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            length = extent(node) - (extent(docstring) if docstring else 0)
            if length > FUNCTION and not excused(lines[node.lineno - 1]):
                found.append(f"{node.name} has {length} lines")
    return found


def extent(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def excused(line: str) -> bool:
    return re.search(r"# long: \S", line) is not None


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_and_a_function_are_short_or_say_why_not(path):
    assert too_long(path.read_text()) == []


def test_what_is_too_long_would_be_noticed():
    body = '    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * 59
    assert too_long(f"def f():\n{body}") == []
    assert too_long(f"def f():\n{body}    x = 1\n") == ["f has 61 lines"]
    assert too_long(f"def f():  # long: a table\n{body}    x = 1\n") == []
    assert too_long(f"def f():  # long:\n{body}    x = 1\n") == ["f has 61 lines"]
    assert too_long("x = 1\n" * 500) == []
    assert too_long("x = 1\n" * 501) == ["the module has 501 lines"]
    assert too_long("# long: a table\n" + "x = 1\n" * 500) == []


# ---------------------------------------------------------------------------------------------------- state and flags


def globals_changed(text: str) -> list[str]:
    """Where a function changes what belongs to its module: `global`, an item, an attribute, a method that changes."""
    tree = ast.parse(text)
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    own = {target.id for target in targets if isinstance(target, ast.Name)}
    changing = {name for kind in (list, dict, set) for name in dir(kind) if name[0] != "_"} - {
        name for kind in (tuple, frozenset) for name in dir(kind)
    }
    changing -= {"get", "items", "keys", "values", "fromkeys"}

    def changes(node: ast.AST) -> bool:
        if isinstance(node, ast.Global):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in changing:
            changed = node.func.value
        elif isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            changed = node.value
        else:
            return False
        return isinstance(changed, ast.Name) and changed.id in own

    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [ast.unparse(node) for function in functions for node in ast.walk(function) if changes(node)]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_function_changes_what_belongs_to_its_module(path):
    assert globals_changed(path.read_text()) == []


def test_a_changed_global_would_be_noticed():
    before = "KNOWN: dict[str, int] = {}\nORDER = []\n"
    for line in ("KNOWN['a'] = 1", "del KNOWN['a']", "KNOWN.clear()", "ORDER.append(1)", "ORDER.last = 1"):
        assert len(globals_changed(f"{before}def f():\n    {line}\n")) == 1
    assert globals_changed(f"{before}def f():\n    global ORDER\n    ORDER = []\n") == ["global ORDER"]
    for line in ("return KNOWN['a']", "own = []\n    own.append(1)", "return KNOWN.get('a')", "return ORDER.index(1)"):
        assert globals_changed(f"{before}def f():\n    {line}\n") == []


def flags(kind: type) -> Iterator[str]:
    """The options of a recipe that are yes or no."""
    for name, hint in get_type_hints(kind).items():
        if hint is bool:
            yield name
        if is_dataclass(hint):
            yield from flags(hint)


def test_a_flag_of_a_recipe_is_read_in_one_module():
    checked_in = {SOURCE / "config.py", SOURCE / "sections.py"}
    read = {flag: set() for flag in flags(Config)}
    for path in {*SOURCE.rglob("*.py")} - checked_in:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in read):
                continue
            # The first two have a `compile` of their own; the last is what blocks are told, as that module has read it.
            if ast.unparse(node.value) not in ("re", "torch", "self.options"):
                read[node.attr].add(path.name)
    # Whether there is a test, what may start from it and teach it, and what is said of it: not one decision.
    assert read.pop("train_on_test") == {"train.py", "origin.py", "recorder.py", "progress.py"}
    assert {flag: len(modules) for flag, modules in read.items()} == dict.fromkeys(read, 1)
