"""Changes a module of budgetnet in one place at a time, and finds the changes that none of its tests notices.

`make mutants MODULE=optim` does so to optim.py by tests/test_optim.py. A mutant that survives asks for a test, or shows
code that nothing needs; for one that means the same as the original `equivalent.yaml` says why.

The tests that run the changed statement are tried until one fails, the quickest first. What is heavy is imported once:
each mutant is a fork of that process, in which budgetnet is imported anew. A command that a test starts runs the module
as it is. A test that computes three times as long as it should has noticed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import yaml
from changes import Change, changes
from hypothesis import Phase, settings

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
    """A plugin that notes of each test how long it computes, and which lines of a file it runs when it runs alone."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.tests: dict[str, tuple[float, list[int]]] = {}
        self.lines: set[int] = set()
        self.shared: set[int] = set()  # by fixtures of several tests

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Around a test and the fixtures that it is the first to need."""

        def trace(frame: Any, event: str, _: object) -> Any:
            if frame.f_code.co_filename != self.path:
                return None
            self.lines.add(frame.f_lineno)
            return trace

        for module in [module for name, module in sys.modules.items() if name.startswith(("budgetnet.", "test_"))]:
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()  # or only the first test would be seen to run what is behind it
        began, self.lines = time.process_time(), set()
        sys.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.tests[item.nodeid] = time.process_time() - began, sorted(self.lines)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Around a fixture's first part."""
        own = self.lines
        self.lines = own if fixturedef.scope == "function" else self.shared
        try:
            return (yield)
        finally:
            self.lines = own


@dataclass
class Chosen:
    """A plugin that keeps some tests, in an order of its own, and dies of one that computes for too long."""

    tests: Mapping[str, float]
    """Their names, and how many seconds each may compute."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """As pytest calls it."""
        place = {name: i for i, name in enumerate(self.tests)}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """As pytest calls it; the seconds are those of this process alone, whatever else the machine does."""
        signal.setitimer(signal.ITIMER_PROF, self.tests[nodeid])


def forked(work: Callable[[], int], seconds: float) -> int | None:
    """What `work` says in a process of its own, below 0 if that died, or None if it was not done in time."""
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
        patience: seconds of computing that are no sign of anything.
    """

    def __init__(self, name: str, path: Path, tests: Sequence[Path], root: Path = ROOT, patience: float = 10) -> None:
        self.patience = patience
        self.name, self.path, self.files, self.root = name, path, tests, root
        with tempfile.TemporaryDirectory() as folder:
            note, reached = Path(folder) / "note.json", Reached(path)

            def trace() -> int:
                code = self._pytest(ast.parse(path.read_text()), reached)
                note.write_text(json.dumps([reached.tests, sorted(reached.shared), sorted(sys.modules)]))
                return code

            if code := forked(trace, 3600):
                raise SystemExit(f"the tests of {name} fail without any change (pytest ends with {code})")
            self.tests, shared, modules = json.loads(note.read_text())
        for module in modules:
            with contextlib.suppress(Exception):
                found = None if module.split(".")[0] == name.split(".")[0] else importlib.util.find_spec(module)
                if found and found.origin and found.origin.startswith((sys.prefix, sys.base_prefix)):
                    importlib.import_module(module)  # once, here, where all mutants have it
        self.shared = {*shared}
        gc.freeze()  # or pytest, which collects garbage, would go through all of it in each

    def _pytest(self, tree: ast.Module, plugin: object) -> int:
        settings.register_profile("fast", phases=[Phase.explicit, Phase.generate])  # a failure as found is enough
        settings.load_profile("fast")
        for module in [module for module in sys.modules if module.split(".")[0] == self.name.split(".")[0]]:
            del sys.modules[module]  # this program has imported what it needs of them itself, unchanged
        sys.meta_path.insert(0, Changed(self.name, self.path, tree))  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
            return pytest.main([f"--rootdir={self.root}", *options, *map(str, self.files)], [plugin])

    def notices(self, change: Change, tree: ast.Module) -> bool:
        """Whether a test fails, or nothing ends."""
        of_all = change.lines is None or self.shared.intersection(change.lines)
        found = [
            (seconds, test)
            for test, (seconds, lines) in self.tests.items()
            if of_all or {*change.lines}.intersection(lines)
        ]
        chosen = Chosen({test: self.patience + 3 * seconds for seconds, test in sorted(found)})
        limit = 60 + 10 * sum(chosen.tests.values())  # for tests that wait
        return bool(found) and forked(lambda: self._pytest(tree, chosen), limit) not in NOTHING_FAILED


def main() -> None:
    """Try a module's mutants and write their record."""
    import faults

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", help="its name in budgetnet")
    parser.add_argument("--tests", nargs="+", help="files of tests (default tests/test_MODULE.py)")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn by chance (default all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument("--again", action="store_true", help="only what the record says survived: tests were added")
    options = parser.parse_args()
    source = ROOT / "src" / "budgetnet" / f"{options.module.replace('.', '/')}.py"
    files = options.tests or [f"tests/test_{options.module}.py"]
    record, began = faults.RECORDS / f"mutants-{options.module}.json", time.monotonic()
    all_changes = [change for change, _ in changes(source.read_text())]
    if options.again:
        before = json.loads(record.read_text())
        names = {(one["code"], one["change"]) for one in before["survivors"]}
        chosen = {number for number, change in enumerate(all_changes) if change.name in names}
        command, (fault,), began = before["command"], before["faults"], began - before["seconds"]
        tried, what = fault["tried"], fault["fault"]
    else:
        tried = min(len(all_changes), options.sample or len(all_changes))
        chosen = {*random.Random(options.seed).sample(range(len(all_changes)), tried)}
        some = "" if tried == len(all_changes) else f" of {len(all_changes)}, drawn by chance"
        command, what = (
            " ".join(["python reliability/mutants.py", *sys.argv[1:]]),
            f"{source.name} changed in one place{some}",
        )
    trial = Trial(f"budgetnet.{options.module}", source, [ROOT / file for file in files])
    print(f"{len(chosen)} of {len(all_changes)} changes, {len(trial.tests)} tests", flush=True)
    known = yaml.safe_load(EQUIVALENT.read_text()).get(options.module) or []
    why = {(one["code"], change): one["why"] for one in known for change in one["changes"]}
    survivors = []
    for number, (change, tree) in enumerate(changes(source.read_text())):
        if number in chosen and not trial.notices(change, tree):
            place = {"line": change.line, "code": change.code, "change": change.change}
            survivors.append({**place, "equivalent": why.get(change.name)})
            print(f"{source.name}:{change.line}: {change.code}\n    {change.change}", flush=True)
            print(f"    means the same: {why[change.name]}" if change.name in why else "", flush=True)
        print(f"\r{number + 1}", end="\r", file=sys.stderr, flush=True)
    unexplained = sum(one["equivalent"] is None for one in survivors)
    held = f"a test of {' or '.join(Path(file).name for file in files)} fails, or the change means the same"
    fault = faults.Fault(fault=what, held=held, tried=tried, survived=tried - unexplained)
    figures = {"means the same": f"{len(survivors) - unexplained:,}", "not noticed": f"{unexplained:,}"}
    seconds = time.monotonic() - began
    print(faults.write(record.stem, command, [fault], seconds, figures, survivors=survivors))
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
