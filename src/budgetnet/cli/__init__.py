"""The command line: what a user types, mapped onto the library; nothing is computed here.

Results go to standard output, everything else to standard error. Exit codes: 0 success, 1 a mistake of the user's (one
line says which), 130 and 143 a run that was stopped and can go on. Each group of commands has a file here; its `add`
says what they take.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from argparse import Action, ArgumentParser
from collections.abc import Sequence
from typing import Any, NoReturn

from budgetnet.cli import (
    ablate,
    compress,
    data,
    evaluate,
    export,
    fit,
    networks,
    predict,
    runs,
    serve,
    sweep,
    train,
    ui,
)
from budgetnet.errors import BudgetnetError, ConfigError
from budgetnet.masking import mask

__all__ = ["main"]


class _Parser(ArgumentParser):
    """A parser whose complaints are errors like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


class _Version(Action):
    """Print the version, which is looked up for nothing else here."""

    def __call__(self, parser: ArgumentParser, *given: Any, **named: Any) -> NoReturn:
        from budgetnet import __version__

        print(f"budgetnet {__version__}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A shell may have closed one of them.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file and class names may be in no encoding at all
    try:
        if arguments[:1] == ["train"]:
            code: int = train.run(arguments[1:])
            sys.stdout.flush()
            return code
        parser = _parser()
        parsed, further = parser.parse_known_args(arguments)
        if "further" in parsed:
            parsed.further = further
        elif further:
            parser.error(f"unrecognized arguments: {' '.join(further)}")
        code = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except BudgetnetError as error:
        return _failed(str(error), arguments)
    except KeyboardInterrupt:
        print("budgetnet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _leave_output()  # whoever read it has left
        if arguments[:1] == ["train"]:
            return _failed("nobody reads the output any more: the run has stopped; go on by --resume", arguments)
        return 1
    except OSError as error:
        if error.filename is not None:
            return _failed(f"{error.filename}: {error.strerror}", arguments)
        try:
            print(flush=True)  # where nothing is buffered, a flush alone would tell nothing
        except OSError:  # so that was it
            _leave_output()
            what = f"cannot write the output: {error.strerror}; free some space where it goes"
            return _failed(what + (", then go on by --resume" if arguments[:1] == ["train"] else ""), arguments)
        raise


def _leave_output() -> None:
    """Write nothing more to standard output: Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(message: str, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        print(mask(traceback.format_exc()), end="", file=sys.stderr)
    print(f"budgetnet: error: {mask(message)}", file=sys.stderr)
    return 1


def _parser() -> ArgumentParser:
    """All commands but `train`, whose options come from the configuration."""
    parser = _Parser(
        prog="budgetnet",
        description="Train the best image classifier that fits a parameter budget.",
        epilog="`budgetnet COMMAND --help` says more, with an example.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("train", help="train a network by a recipe", add_help=False)
    for group in (evaluate, predict, networks, ablate, fit, sweep, compress, export, serve, ui, runs, data):
        group.add(commands)
    return parser
