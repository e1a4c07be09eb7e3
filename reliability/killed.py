"""budgetnet's command line, which kills itself (SIGKILL) at a chosen moment.

`python reliability/killed.py MOMENT N ARGUMENTS...` runs `budgetnet ARGUMENTS...` and dies at the N-th time that

    step       a training step is about to move the weights,
    half       half of a file, or of a row of metrics.csv, has been written,
    sync       a file is about to be synced, or the names in a folder,
    renamed    a file has just been renamed,
    file       a file or folder is about to be opened for writing, renamed, made or removed, here or below,
    sql        a statement that writes is about to be executed in MLflow's database

comes. With N = 0 it does not die, and ends with one line on standard error: how often each of them came, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

MOMENTS = ("step", "half", "sync", "renamed", "file", "sql")
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.copyfile")


def main() -> int:
    """Run the command line, perhaps not to its end."""
    moment, number, *arguments = sys.argv[1:]
    came: Counter[str] = Counter()

    def is_now(name: str) -> bool:
        """Count a moment, and say whether it is the one to die at."""
        came[name] += 1
        return name == moment and came[name] == int(number)

    def pass_by(name: str) -> None:
        if is_now(name):
            os.kill(os.getpid(), signal.SIGKILL)

    watch_files(is_now, pass_by)
    if moment == "sql" or number == "0":
        watch_sql(pass_by)
    watch_steps(pass_by)

    from budgetnet.cli import main as run

    code = run(arguments)
    if number == "0":
        print(json.dumps({name: came[name] for name in MOMENTS}), file=sys.stderr)
    return code


def watch_files(is_now: Any, pass_by: Any) -> None:
    """Come by at what is done to files, by us or by anybody, MLflow included."""
    from budgetnet import files

    sync, replace, rename, write, append = os.fsync, os.replace, os.rename, Path.write_bytes, files.append

    def synced(handle: int) -> None:
        pass_by("sync")
        sync(handle)

    def replaced(*arguments: Any, **options: Any) -> None:
        replace(*arguments, **options)
        pass_by("renamed")

    def renamed(*arguments: Any, **options: Any) -> None:
        rename(*arguments, **options)
        pass_by("renamed")

    def half(how: Any, path: Path, data: bytes) -> Any:
        if is_now("half"):
            how(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return how(path, data)

    os.fsync, os.replace, os.rename = synced, replaced, renamed
    Path.write_bytes = lambda path, data: half(write, path, data)  # type: ignore[method-assign,assignment]
    files.append = lambda path, data: half(append, path, data)
    here = os.getcwd()

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in _CHANGES:
            return
        name = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        if name and (name.startswith(here) or not os.path.isabs(name)) and "__pycache__" not in name:
            pass_by("file")

    sys.addaudithook(heard)


def watch_sql(pass_by: Any) -> None:
    """Come by at each statement that writes to a database."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "before_cursor_execute")
    def execute(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.lstrip().split(maxsplit=1)[0].upper() not in ("SELECT", "PRAGMA"):
            pass_by("sql")


def watch_steps(pass_by: Any) -> None:
    """Come by at each training step."""
    from budgetnet.training import Training

    update = Training.update

    def updated(*arguments: Any, **options: Any) -> None:
        pass_by("step")
        update(*arguments, **options)

    Training.update = updated  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
