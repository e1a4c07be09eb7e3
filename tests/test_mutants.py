"""Mutants are found where tests are weak, and nowhere else (`make mutants`)."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from changes import changes

RELIABILITY = Path(__file__).parent.parent / "reliability"
MODULE = '''
def grade(points):
    """Weakly tested."""
    if points >= 50:
        return "pass"
    return "fail"

def clipped(x):
    """Well tested."""
    if x < 0:
        return 0
    return x

def counted(n):
    """May never end."""
    while n:
        n -= 1
    return n
'''
TESTS = """
from planted import clipped, counted, grade

def test_grade():
    assert grade(80) == "pass"
    assert grade(10) == "fail"

def test_clipped():
    assert [clipped(x) for x in (-2, -1, 0.5, 1)] == [0, 0, 0.5, 1]

def test_counted():
    assert counted(3) == 0
"""
DRIVER = """
import os, time
from pathlib import Path
import planted  # as what writes a record needs some of the package itself
from changes import changes
from mutants import Trial, forked

path = Path("planted.py").resolve()
trial = Trial("planted", path, [Path("test_planted.py").resolve()], Path.cwd(), patience=1)
for change, tree in changes(path.read_text()):
    if not trial.notices(change, tree):
        print(change.code, "|", change.change)
print(forked(lambda: 3, 60), forked(lambda: 1 / 0, 60), forked(lambda: time.sleep(60), 0.1), forked(os.abort, 60))
"""


def test_what_survives_is_what_the_tests_leave_open_and_what_means_the_same(tmp_path):
    (tmp_path / "planted.py").write_text(MODULE)
    (tmp_path / "test_planted.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    path = os.pathsep.join([str(RELIABILITY), str(tmp_path), os.environ["PYTHONPATH"]])
    run = [sys.executable, "-c", DRIVER]
    done = subprocess.run(run, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "if points >= 50: | points >= 50 -> points > 50",
        "if points >= 50: | 50 -> 51",
        "if points >= 50: | 50 -> 49",
        "if x < 0: | x < 0 -> x <= 0",
        "3 99 None -6",
    ], done.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("a < b", ["a <= b", "a >= b"]),
        ("a == b is c", ["a != b is c", "a == b is not c"]),
        ("a and b", ["a or b", "b", "a"]),
        ("not a", ["a"]),
        ("a + b", ["a - b"]),
        ("a if b else c", ["a", "c"]),
        ("a[b:c]", [":c", "b:"]),
        ("a(b=c, d=e)", ["a(d=e)", "a(b=c)"]),
        ("zip(a, 1, strict=True)", ["2", "0"]),
        ("require(a, 'option', 'expected')", ["'option?'"]),
        ("3", ["4", "2"]),
        ("0.5", ["1.5"]),
        ("True", ["False"]),
        ("'a'", ["'a?'"]),
        ("[a for a in b if c]", ["for a in b"]),
        ("lambda: a", []),
    ],
)
def test_an_expression_is_changed_in_each_of_these_ways(code, expected):
    found = [change.change.split(" -> ")[1] for change, _ in changes(f"x[{code}]")]
    assert [one.strip() for one in found if one != "pass"] == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("return a", ["return"]),
        ("return None", []),
        ("a = b", ["pass"]),
        ("a += b", ["pass"]),
        ("raise E('message', 1)", ["pass"]),
        ("assert a, 'message'", ["pass"]),
        ("'docstring'", []),
        ("a: int", []),
        ("if a:\n  pass", ["if not a:"]),
        ("with a, b as c:\n  pass", ["with b as c:"]),
        ("with a:\n  pass", ["if True:"]),
        ("try:\n  pass\nexcept (A, B):\n  pass", ["except (B,):", "except (A,):"]),
        ("@a\ndef f(x: 'int') -> 'str':\n  pass", ["def f(x: 'int') -> 'str':"]),
        ("if TYPE_CHECKING:\n  a = 1", []),
        ("__all__ = ['a']", []),
    ],
)
def test_a_statement_is_changed_in_each_of_these_ways(code, expected):
    assert [change.change.split(" -> ", 1)[1] for change, _ in changes(code)] == expected


def test_every_change_is_another_program_and_the_last_is_taken_back():
    source = (RELIABILITY / "changes.py").read_text()
    whole, seen = ast.dump(ast.parse(source)), set()
    for change, tree in changes(source):
        compile(tree, "changed", "exec")
        assert source.splitlines()[change.line - 1].strip() == change.code
        seen.add(ast.dump(tree))
    assert whole not in seen
    assert len(seen) > 100
    assert ast.dump(tree) == whole


def test_each_change_that_is_explained_can_still_be_made():
    explained = yaml.safe_load((RELIABILITY / "equivalent.yaml").read_text())
    for module, entries in explained.items():
        source = (RELIABILITY.parent / "src" / "budgetnet" / f"{module.replace('.', '/')}.py").read_text()
        made = {change.name for change, _ in changes(source)}
        named = {(entry["code"], change) for entry in entries for change in entry["changes"]}
        assert named <= made, module
