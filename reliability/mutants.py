"""Changes a module of budgetnet in one place at a time, and finds the changes that none of its tests notices.

`make mutants MODULE=optim` does so to optim.py by tests/test_optim.py. A mutant that survives asks for a test, or shows
code that nothing needs; for one that means the same as the original `equivalent.yaml` says why.

The tests that run the changed statement are tried until one fails, the quickest first; if none does, all are. What is
heavy is imported once: each mutant is a fork of that process, in which budgetnet is imported anew. A command that a
test starts runs the module as it is. Tests that take ten times as long as they should have noticed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import yaml
from changes import Change, changes

ROOT = Path(__file__).parent.parent
EQUIVALENT = Path(__file__).parent / "equivalent.yaml"
MEMORY = 16 << 30  # bytes of addresses: where a size is no longer checked, the machine must not suffer
NOTHING_FAILED = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


class Changed(SourceFileLoader):
    """Imports one module from a syntax tree instead of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        super().__init__(name, str(path))
        self.tree = tree

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As of a finder in `sys.meta_path`."""
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        """Compile the tree."""
        return compile(self.tree, self.path, "exec", dont_inherit=True)


class Reached:
    """A plugin that notes of each test how long it takes, and which lines of a file it runs when it runs alone."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.tests: dict[str, tuple[float, list[int]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Around a test and the fixtures that it is the first to need."""
        lines: set[int] = set()

        def trace(frame: Any, event: str, _: object) -> Any:
            if frame.f_code.co_filename != self.path:
                return None
            lines.add(frame.f_lineno)
            return trace

        for module in [module for name, module in sys.modules.items() if name.startswith(("budgetnet.", "test_"))]:
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()  # or only the first test would be seen to run what is behind it
        began = time.monotonic()
        sys.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.tests[item.nodeid] = time.monotonic() - began, sorted(lines)


@dataclass
class Chosen:
    """A plugin that keeps some tests, in an order of its own."""

    tests: Sequence[str]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """As pytest calls it."""
        place = {name: i for i, name in enumerate(self.tests)}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])


def forked(work: Callable[[], int], seconds: float) -> int | None:
    """What `work` says in a process of its own, below 0 if it was killed, or None if it was not done in time."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os._exit(work())
        os._exit(99)
    end, status = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


class Trial:
    """A module and its tests, ready to be tried.

    Args:
        name: dotted, of the module.
        path: its file.
        tests: files of tests.
        root: where pytest's configuration is.
    """

    def __init__(self, name: str, path: Path, tests: Sequence[Path], root: Path = ROOT) -> None:
        self.name, self.path, self.files, self.root = name, path, tests, root
        with tempfile.TemporaryDirectory() as folder:
            note, reached = Path(folder) / "note.json", Reached(path)

            def trace() -> int:
                code = self._pytest(ast.parse(path.read_text()), reached)
                note.write_text(json.dumps([reached.tests, sorted(sys.modules)]))
                return code

            if code := forked(trace, 3600):
                raise SystemExit(f"the tests of {name} fail without any change (pytest ends with {code})")
            self.tests, modules = json.loads(note.read_text())
        for module in modules:
            with contextlib.suppress(Exception):
                found = None if module.split(".")[0] == name.split(".")[0] else importlib.util.find_spec(module)
                if found and found.origin and found.origin.startswith((sys.prefix, sys.base_prefix)):
                    importlib.import_module(module)  # once, here, where all mutants have it

    def _pytest(self, tree: ast.Module, plugin: object) -> int:
        sys.meta_path.insert(0, Changed(self.name, self.path, tree))  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
            return pytest.main([f"--rootdir={self.root}", *options, *map(str, self.files)], [plugin])

    def notices(self, change: Change, tree: ast.Module) -> bool:
        """Whether a test fails, or nothing ends."""
        every = sorted(self.tests, key=lambda test: self.tests[test][0])
        reaching = [test for test in every if change.lines is None or {*change.lines} & {*self.tests[test][1]}]
        for tests in [reaching, every] if len(reaching) < len(every) else [every]:
            limit = 20 + 10 * sum(self.tests[test][0] for test in tests)
            if tests and forked(lambda tests=tests: self._pytest(tree, Chosen(tests)), limit) not in NOTHING_FAILED:
                return True
        return False


def main() -> None:
    """Try a module's mutants and write their record."""
    import faults

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", help="its name in budgetnet")
    parser.add_argument("--tests", nargs="+", help="files of tests (default tests/test_MODULE.py)")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn by chance (default all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    options = parser.parse_args()
    source = ROOT / "src" / "budgetnet" / f"{options.module.replace('.', '/')}.py"
    tests = options.tests or [f"tests/test_{options.module}.py"]
    command = " ".join(["python reliability/mutants.py", *sys.argv[1:]])
    began = time.monotonic()
    total = sum(1 for _ in changes(source.read_text()))
    chosen = {*random.Random(options.seed).sample(range(total), min(total, options.sample or total))}
    trial = Trial(f"budgetnet.{options.module}", source, [ROOT / test for test in tests])
    print(f"{len(chosen)} of {total} mutants, {len(trial.tests)} tests", flush=True)
    known = yaml.safe_load(EQUIVALENT.read_text())
    why = {(one["code"], one["change"]): one["why"] for one in known.get(options.module) or []}
    survivors = []
    for number, (change, tree) in enumerate(changes(source.read_text())):
        if number in chosen and not trial.notices(change, tree):
            reason = why.get((change.code, change.change))
            survivors.append({"line": change.line, "code": change.code, "change": change.change, "equivalent": reason})
            print(f"{source.name}:{change.line}: {change.code}\n    {change.change}", flush=True)
            print(f"    the same: {reason}" if reason else "", flush=True)
    open_ones = sum(one["equivalent"] is None for one in survivors)
    some = f" ({len(chosen)} of {total} changes, drawn by chance)" if options.sample else ""
    fault = faults.Fault(
        fault=f"a change of {source.name} in one place{some}",
        held=f"a test of {' or '.join(Path(test).name for test in tests)} fails, or the change means the same",
        tried=len(chosen),
        survived=len(chosen) - open_ones,
    )
    figures = {"killed": f"{len(chosen) - len(survivors):,}", "the same": f"{len(survivors) - open_ones:,}"}
    seconds = time.monotonic() - began
    print(faults.write(f"mutants-{options.module}", command, [fault], seconds, figures, survivors=survivors))
    sys.exit(open_ones > 0)


if __name__ == "__main__":
    main()
