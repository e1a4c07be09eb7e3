"""The changes that make mutants of a module: its syntax tree with another node in the place of one.

Comparisons are turned round or moved by their boundary, conditions negated, dropped or joined otherwise, arithmetic and
constants changed, and arguments, statements and what is returned left out. Messages of errors, docstrings, types and
`__all__` stay as they are.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

A: Any = ast
COMPARISONS = {
    A.Lt: [A.LtE, A.GtE],
    A.LtE: [A.Lt, A.Gt],
    A.Gt: [A.GtE, A.LtE],
    A.GtE: [A.Gt, A.Lt],
    A.Eq: [A.NotEq],
    A.NotEq: [A.Eq],
    A.Is: [A.IsNot],
    A.IsNot: [A.Is],
    A.In: [A.NotIn],
    A.NotIn: [A.In],
}
ARITHMETIC = {A.Add: A.Sub, A.Sub: A.Add, A.Mult: A.Div, A.Div: A.Mult, A.FloorDiv: A.Div, A.Mod: A.Mult, A.Pow: A.Mult}
UNCHANGED = {"annotation", "returns", "decorator_list", "exc", "cause", "msg", "ops", "op", "ctx", "names"}


@dataclass(frozen=True)
class Change:
    """One change of a module."""

    line: int
    code: str
    """The line as it stands in the source, without its indentation."""
    change: str
    """The changed part, before and after."""
    lines: range | None
    """Of the statement that is changed; None if it runs as the module is imported."""

    @property
    def name(self) -> tuple[str, str]:
        """What stays as it is when other lines of the module change."""
        return self.code, self.change


def changes(source: str) -> Iterator[tuple[Change, ast.Module]]:
    """Each change with the tree that has it, until the next is asked for."""
    tree, code = ast.parse(source), source.splitlines()
    for parent, field, at, node, line, lines in list(_places(tree, 0, None, False)):
        for new in _instead(node):
            ast.copy_location(new, node)
            _put(parent, field, at, ast.fix_missing_locations(new))
            yield Change(line, code[line - 1].strip(), f"{_text(node)} -> {_text(new)}", lines), tree
        _put(parent, field, at, node)


def _put(parent: Any, field: str, at: int | None, node: ast.AST) -> None:
    if at is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[at] = node


def _text(node: ast.AST) -> str:
    line = ast.unparse(node).strip().splitlines()[0] if not isinstance(node, ast.Slice) else ast.unparse(node)
    return line if len(line) <= 100 else line[:97] + "..."


def _places(parent: Any, line: int, lines: range | None, inside: bool) -> Iterator[tuple[Any, ...]]:
    """Every node with where it hangs, its line, and the lines of its statement."""
    for field, value in ast.iter_fields(parent):
        if field in UNCHANGED or (_is_call(parent, "zip") and field == "keywords"):  # strict asserts what always holds
            continue
        for at, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if field == "args" and _is_call(parent, "require") and node is value[-1]:
                continue  # of the message
            if not isinstance(node, ast.AST) or _is_text(node) or _is_for_readers(node):
                continue
            own = getattr(node, "lineno", getattr(getattr(node, "pattern", None), "lineno", line))
            within, function = lines, isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function:
                within = range(own, node.end_lineno + 1)  # a default counts wherever the function runs
            elif inside and isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
                end = max(own, node.body[0].lineno - 1) if hasattr(node, "body") else node.end_lineno
                within = range(own, end + 1)
            yield parent, field, at, node, own, within
            yield from _places(node, own, within, inside or function)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_readers(node: ast.AST) -> bool:
    """Whether it is what type checkers, linters and documentation alone look at."""
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__"
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == name


def _without(node: Any, field: str) -> Iterator[Any]:
    """The node without one element of a field, for each of them."""
    values = getattr(node, field)
    rest = {name: getattr(node, name) for name in node._fields}
    for i in range(len(values)):
        yield type(node)(**rest | {field: values[:i] + values[i + 1 :]})


def _instead(node: Any) -> Iterator[Any]:
    """What may stand in the place of a node."""
    match node:
        case ast.Compare(left, ops, others):
            for i, op in enumerate(ops):
                yield from (A.Compare(left, [*ops[:i], new(), *ops[i + 1 :]], others) for new in COMPARISONS[type(op)])
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            yield from (fewer if len(values) > 2 else fewer.values[0] for fewer in _without(node, "values"))
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.IfExp(_, body, orelse):
            yield from (body, orelse)
        case ast.Slice(lower, upper, step):
            yield from [ast.Slice(None, upper, step)] * bool(lower) + [ast.Slice(lower, None, step)] * bool(upper)
        case ast.Call() if not _is_call(node, "zip"):
            yield from _without(node, "keywords")
        case ast.comprehension():
            yield from _without(node, "ifs")
        case ast.ExceptHandler(type=ast.Tuple() as kinds):
            yield from (ast.ExceptHandler(fewer, node.name, node.body) for fewer in _without(kinds, "elts"))
        case ast.With(items=items):
            for item, fewer in zip(items, _without(node, "items"), strict=True):
                if item.optional_vars is None:
                    yield fewer if fewer.items else ast.If(ast.Constant(True), node.body, [])
        case ast.FunctionDef():
            yield from _without(node, "decorator_list")
        case ast.If(test, body, orelse) | ast.While(test, body, orelse) if not isinstance(test, ast.Compare):
            yield type(node)(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(float() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(str() as value):
            yield ast.Constant(value + "?")
        case ast.Return(value) if value is not None and ast.unparse(value) != "None":
            yield ast.Return(None)
        case ast.Assign() | ast.AugAssign() | ast.Expr() | ast.Raise() | ast.Continue() | ast.Break() | ast.Assert():
            yield ast.Pass()
