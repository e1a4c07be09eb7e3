"""Damaged and hostile files: every reader of budgetnet against mutations of sound files.

    python reliability/hostile.py --mutations 100000 --seed 0
    python reliability/hostile.py --only recipes --only archives --mutations 2000

A mutation is a function of (seed, reader, number). It survives when the file is read or refused by an exception of
`budgetnet.errors` in one printable line, within two seconds of CPU time and the reader's memory, while nothing was
executed, imported, connected to, or written outside the folder. Each reader works in a process of its own, whose death
is a failure like any other. The smallest input of every failure is made smaller, printed and saved under
build/hostile. Each reader that has been tried leaves a record of its own.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import resource
import shlex
import signal
import struct
import sys
import tempfile
import time
import traceback
import typing
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import data_files
import faults
import run_files
from trials import Trial

from budgetnet.errors import BudgetnetError

READERS = data_files.READERS | run_files.READERS
KEPT = Path("build") / "hostile"
HELD = (
    "read, or refused by an exception of ours in one line, within 2 s and bounded memory; nothing executed, nothing "
    "written elsewhere"
)
MUTATIONS = 100_000
_SECONDS = 2.0
"""CPU time of a reading."""
_SILENCE = 120.0
"""Time without progress after which a process is taken to hang: other work may share the machine."""
_LONGEST = 2_500
"""Characters of a message: ours, and the path."""
_REDUCTIONS = 300
_WARMING = 50
"""Mutations that come before, as errors import what they need."""
_NUMBER = struct.Struct("<q")


@dataclass(frozen=True)
class Failure:
    """What came of one mutation."""

    what: str
    """In short; failures that agree in it are one."""
    number: int
    """Of the mutation."""
    size: int
    """Of the smallest input, in bytes."""
    path: str
    """Where that is kept."""


@dataclass(frozen=True)
class Outcome:
    """What came of all mutations of a reader."""

    tried: int
    survived: int
    failures: list[Failure]


class Watch:
    """Sees, by Python's audit events, what a reading does besides reading; there is one in a process, for good.

    Args:
        folder: where it may write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.realpath(folder)
        self._known = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
        self._known -= {"this", "antigravity"}
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False  # not what looking does
        try:
            if found := self._found(event, arguments):
                self.seen.append(found)
        finally:
            self.on = True

    def _found(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event.startswith(("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.")):
            return f"executed: {event}"
        if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.")):
            return f"connected: {event}"
        if event in ("ctypes.dlopen", "ctypes.dlsym", "code.__new__", "pickle.find_class"):
            return f"executed: {event}"
        if event == "exec" and not os.path.isabs(getattr(arguments[0], "co_filename", "")):
            name, frame = arguments[0].co_filename, sys._getframe(2)
            # Annotations of ours are text, which typing evaluates; modules of Python's own are frozen.
            ours = name.startswith("<frozen ") or frame.f_code.co_filename == typing.__file__
            return "" if ours else f"executed: code of {name}"
        if event == "import" and str(arguments[0]).partition(".")[0] not in self._known:
            return f"imported: {arguments[0]}"
        if event == "open":
            path, mode, flags = arguments
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            written = [path] if set(mode or "") & set("wax+") or (flags or 0) & writes else []
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.truncate", "os.utime"):
            written = [arguments[0]]
        elif event == "os.rename":
            written = list(arguments[:2])
        elif event in ("os.link", "os.symlink"):
            written = [arguments[1]]
        else:
            return ""
        # Names within a folder that is open, as shutil.rmtree has them; -1 is none.
        within = event != "open" and type(arguments[-1]) is int and arguments[-1] != -1
        for path in written:
            if not isinstance(path, int) and not within and not self._inside(os.fsdecode(path), event == "open"):
                return f"written elsewhere: {event}"
        return ""

    def _inside(self, path: str, followed: bool) -> bool:
        """Whether a path is in the folder: what it leads to, or, as for a link that is removed, the name itself."""
        folder, name = os.path.split(path)
        real = os.path.realpath(path) if followed else os.path.join(os.path.realpath(folder), name)
        return real == os.devnull or os.path.commonpath([real, self._folder]) == self._folder


def attempt(trial: Trial, content: bytes, watch: Watch) -> str:
    """Try one file.

    Returns:
        What is wrong, in short; nothing where it survived.
    """
    with open(trial.place, "wb") as file:
        file.write(content)
    watch.seen.clear()
    started = time.process_time()
    wrong = ""
    watch.on = True
    try:
        trial.read()
    except BudgetnetError as error:
        watch.on = False
        message = str(error)
        if not message.isprintable() or len(message) > _LONGEST:
            wrong = "a message that is no printable line"
        elif _asks_for_memory(error):
            wrong = f"asked for more than {trial.memory >> 20} MiB"
    except BaseException as error:
        watch.on = False
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [
            step for step in traceback.extract_tb(error.__traceback__) if f"{os.sep}budgetnet{os.sep}" in step.filename
        ]
        place = ours[-1] if ours else place
        wrong = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
    watch.on = False
    if watch.seen:
        return watch.seen[0]
    if not wrong and time.process_time() - started > _SECONDS:
        return f"more than {_SECONDS:g} s"
    return wrong


def _asks_for_memory(error: BaseException | None) -> bool:
    """Whether something behind an error was that there is no such memory: with more of it, it would have been taken."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "allocate memory" in text or "not enough memory" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def _limit_memory(more: int) -> None:
    """Bound what this process may have: what it has now, and so many bytes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * os.sysconf("SC_PAGE_SIZE") + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _work(name: str, numbers: range, seed: int, folder: Path, at: mmap.mmap, said: Path) -> None:
    """In a process of its own: try mutations, and write down what failed."""
    room = folder / "room"
    room.mkdir()
    trial = READERS[name](room)
    watch = Watch(folder)
    warnings.simplefilter("ignore" if name == "images" else "error")  # Pillow warns of what it then reads
    for content in trial.sound:  # which imports what it needs
        trial.place.write_bytes(content)
        trial.read()
    for content in trial.sound:
        if wrong := attempt(trial, content, watch):
            raise AssertionError(f"{name}: a sound file is not read: {wrong}")
    for number in range(_WARMING):
        attempt(trial, trial.damaged(Random(f"{name} warms up {number}")), watch)
    _limit_memory(trial.memory)
    sys.stderr.flush()
    shown = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # on which libtiff says what it thinks of each file
    smallest: dict[str, tuple[int, bytes]] = {}
    failed = 0
    try:
        for number in numbers:
            at[: _NUMBER.size] = _NUMBER.pack(number)
            content = trial.damaged(Random(f"{seed} {name} {number}"))
            if wrong := attempt(trial, content, watch):
                failed += 1
                if wrong not in smallest or len(content) < len(smallest[wrong][1]):
                    smallest[wrong] = number, content
                with said.open("a") as file:
                    file.write(json.dumps([number, wrong]) + "\n")
    finally:
        os.dup2(shown, 2)  # also for the traceback of a campaign that fails itself
    at[: _NUMBER.size] = _NUMBER.pack(numbers.stop)
    for wrong, (number, content) in smallest.items():
        content = reduced(content, lambda one, wrong=wrong: attempt(trial, one, watch) == wrong)
        path = folder / f"{number}.bin"
        path.write_bytes(content)
        with said.open("a") as file:
            file.write(json.dumps([number, wrong, len(content), str(path)]) + "\n")


def reduced(content: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """An input that fails in the same way, with parts left out, in at most a few hundred attempts."""
    left, step = _REDUCTIONS, max(1, len(content) // 2)
    while left:
        at, changed = 0, False
        while at < len(content) and left:
            shorter = content[:at] + content[at + step :]
            left -= 1
            if fails(shorter):
                content, changed = shorter, True
            else:
                at += step
        if step == 1 and not changed:
            break
        step = max(1, step // 2)
    return content


def campaign(name: str, mutations: int, seed: int, first: int = 0) -> Outcome:
    """Try a reader with mutations `first` to `first + mutations - 1`, in processes that may die."""
    start, stop = first, first + mutations
    fallen: list[tuple[int, str]] = []
    noted: list[list[Any]] = []
    kept: list[Failure] = []
    while start < stop:
        with tempfile.TemporaryDirectory(prefix="hostile-") as temporary, mmap.mmap(-1, 64) as at:
            folder, said = Path(temporary), Path(temporary) / "said"
            at[: _NUMBER.size] = _NUMBER.pack(-1)
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    _work(name, range(start, stop), seed, folder, at, said)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            ended = _waited(pid, at)
            lines = [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []
            noted += [line for line in lines if len(line) == 2]
            kept += [_kept(name, seed, Failure(line[1], line[0], line[2], line[3])) for line in lines if len(line) == 4]
            reached = _NUMBER.unpack(at[: _NUMBER.size])[0]
            if ended == "exit 0":
                break
            if ended.startswith("exit") or not start <= reached < stop:
                raise RuntimeError(f"{name}: the campaign itself failed ({ended}) around mutation {reached}")
            fallen.append((reached, ended))
            start = reached + 1
    for number, ended in fallen:
        with tempfile.TemporaryDirectory() as temporary:
            content = READERS[name](Path(temporary)).damaged(Random(f"{seed} {name} {number}"))
            path = Path(temporary) / "fallen"
            path.write_bytes(content)
            kept.append(_kept(name, seed, Failure(ended, number, len(content), str(path))))
    return Outcome(mutations, mutations - len(noted) - len(fallen), kept)


def _waited(pid: int, at: mmap.mmap) -> str:
    """How a process ended; it is ended here when its number stays the same for too long."""
    last, since = b"", time.monotonic()
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        now = at[: _NUMBER.size]
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > _SILENCE:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"no end after {_SILENCE:g} s"
        time.sleep(0.02)


def _kept(name: str, seed: int, failure: Failure) -> Failure:
    """Copy an input to where it stays."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{name.replace(' ', '-')}-{seed}-{failure.number}.bin"
    path.write_bytes(Path(failure.path).read_bytes())
    return Failure(failure.what, failure.number, path.stat().st_size, str(path))


def main() -> int:
    """Run the campaign; the exit code says whether everything survived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=MUTATIONS, help="of each reader (100,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first mutation, to repeat one of them; writes no record"
    )
    parser.add_argument("--only", action="append", choices=READERS, help="a reader; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON; writes no record")
    options = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    for name in options.only or READERS:
        started = time.monotonic()
        outcomes[name] = found = campaign(name, options.mutations, options.seed, options.first)
        seconds = time.monotonic() - started
        print(f"{name}: {found.survived:,} of {found.tried:,} survived in {seconds:.0f} s", file=sys.stderr)
        for failure in found.failures:
            print(f"  {failure.what}: mutation {failure.number}, {failure.size} bytes, {failure.path}", file=sys.stderr)
            print(f"    {Path(failure.path).read_bytes()[:200]!r}", file=sys.stderr)
        if not options.json and not options.first:
            row = faults.Fault(
                fault=f"a damaged or hostile file: {name}", held=HELD, tried=found.tried, survived=found.survived
            )
            command = f"python reliability/hostile.py --only {shlex.quote(name)}"
            command += f" --mutations {options.mutations}" if options.mutations != MUTATIONS else ""
            command += f" --seed {options.seed}" if options.seed else ""
            slug = re.sub(r"\W+", "-", name.lower())
            print(faults.write(f"hostile-{slug}", command, [row], seconds), file=sys.stderr)
    if options.json:
        print(json.dumps({name: asdict(found) for name, found in outcomes.items()}))
    return int(any(found.survived < found.tried for found in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
