"""Whatever is public says what it is: ruff asks it of modules, classes and functions, and this of their fields."""

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "budgetnet"


def texts(node: ast.AST) -> str:
    """All that a class says in strings that stand alone, its own docstring and those of its fields."""
    return "\n".join(
        inner.value.value
        for inner in ast.iter_child_nodes(node)
        if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant) and isinstance(inner.value.value, str)
    )


def unexplained(code: str) -> list[str]:
    """Public fields of public classes with neither docstring nor description, and not named in another docstring."""
    found = []
    for kind in ast.walk(ast.parse(code)):
        if not isinstance(kind, ast.ClassDef) or kind.name.startswith("_"):
            continue
        said = texts(kind)
        for field, after in zip(kind.body, [*kind.body[1:], ast.Pass()], strict=True):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            name = field.target.id
            own = isinstance(after, ast.Expr) or "description=" in ast.unparse(field)
            if not (name.startswith("_") or own or re.search(rf"\b{name}\b", said)):
                found.append(f"{kind.name}.{name}")
    return found


def test_every_public_field_says_what_it_is():
    assert not [name for path in SOURCE.rglob("*.py") for name in unexplained(path.read_text())]


def test_a_field_without_a_word_would_be_noticed():
    code = '''
class A:
    """A thing of some weight."""

    weight: float
    height: float
    width: float
    """Across."""
    depth: float = Field(description="inwards")
    _place: int
'''
    assert unexplained(code) == ["A.height"]
