"""What every command shares: its parser, its progress, its warnings."""

from __future__ import annotations

import math
import os
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from budgetnet.progress import Progress


EXAMPLES = {
    "train": "budgetnet train recipes/quick.yaml --data ~/cifar --output runs/first --optimizer.lr 0.2",
    "evaluate": "budgetnet evaluate runs/first --shift all --split val --limit 1000",
    "predict": "budgetnet predict runs/first cifar_test_nolabel.pkl --output submission.csv",
    "models": "budgetnet models --budget 5000000",
    "inspect": "budgetnet inspect enhanced --picture enhanced.svg",
    "ablate": "budgetnet ablate recipes/quick.yaml --vary optimizer.lr=0.2,0.75 --epochs 4 --jobs 2",
    "fit": "budgetnet fit --budget 1e6 --latency 5 --epochs 4 --output runs/fit",
    "sweep": "budgetnet sweep recipes/quick.yaml --space examples/spaces/quick.yaml --trials 40 --epochs 8",
    "compress": "budgetnet compress runs/first --sparsity 0.5 --epochs 4 --data ~/cifar --output runs/small",
    "export": "budgetnet export runs/first --data ~/cifar --precision int8 --output first.onnx",
    "serve": "budgetnet serve runs/first --data ~/cifar",
    "ui": "budgetnet ui --store runs/mlflow.db --port 5001",
    "report": "budgetnet report runs/first --data ~/cifar",
    "compare": "budgetnet compare runs/a-0 runs/a-1 runs/b-0 runs/b-1 --output compare.html",
    "track": "budgetnet track runs/first",
    "register": "budgetnet register runs/first --name cifar --alias champion",
    "data verify": "budgetnet data verify ~/cifar",
    "data stats": "budgetnet data stats ~/cifar",
    "data download": "budgetnet data download cifar10 --data ~/cifar",
}


def command_parser(
    commands: Any,
    name: str,
    run: Callable[[Namespace], int],
    summary: str,
    *,
    json: bool = True,
    parent: str = "",
) -> ArgumentParser:
    """A subcommand with the options that all share."""
    command: ArgumentParser = commands.add_parser(
        name, help=summary, description=summary.capitalize() + ".", epilog=f"example: {EXAMPLES[parent + name]}"
    )
    command.set_defaults(run=run)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if json:
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return command


def leave_options(command: ArgumentParser, usage: str) -> None:
    """Leave what a command does not know in `further`: options of the recipe, as `train` has them."""
    command.allow_abbrev = False
    command.set_defaults(further=[])
    command.usage = f"budgetnet {usage} [options]"


def add_training(command: ArgumentParser) -> None:
    """Where a command that trains finds its data, and what it trains on."""
    command.add_argument("--data", type=path, metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, cache)")
    command.add_argument("--device", default="auto", help="where to train: auto, cpu, cuda, cuda:N or mps")
    command.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is one a core")


def path(text: str) -> Path:
    """A file or folder; an empty text, as of a variable that is not set, is none."""
    if not text:
        raise ArgumentTypeError("found nothing, expected the name of a file or folder")
    return Path(text)


def count(text: str) -> int:
    """A whole number above 0, also as 5e6 or 5_000_000."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if number < 1 or not number.is_integer():
        raise ArgumentTypeError(f"found {text!r}, expected a whole number above 0, such as 5e6")
    return int(number)


def progress_on(silent: bool, out: TextIO) -> Progress:
    """Where a command's progress goes: a live line on a terminal that can redraw it, lines elsewhere, or nowhere."""
    from budgetnet import progress

    if silent:
        return progress.Progress()
    redraws = out.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return progress.LiveProgress(out) if redraws else progress.PlainProgress(out)


class Stop:
    """Whether a signal has asked to stop; training asks after every step.

    That it was heard is told then: a signal may come in the middle of a line, which its handler cannot write into.
    """

    def __init__(self, progress: Progress) -> None:
        self.number: int | None = None
        self._progress, self._told = progress, False

    def __call__(self) -> bool:
        """Whether to stop; the first time that it is so, the progress says it."""
        if self.number is not None and not self._told:
            self._told = True
            self._progress.say("stopping after this step")
        return self.number is not None


@contextmanager
def stop_by_signal(
    progress: Progress, *, alone: bool = True, at_once: Callable[[], bool] = lambda: False
) -> Iterator[Stop]:
    """Have the first SIGINT or SIGTERM within the block ask to stop, and a second one end the program as ever.

    Args:
        progress: what is told.
        alone: whether the second does; of several processes, who started them sees to that.
        at_once: whether there is nothing yet to save, so that the first one ends the program already.
    """
    stop = Stop(progress)

    def note(number: int, frame: FrameType | None) -> None:
        now = at_once()
        if alone or now:
            signal.signal(number, before[signal.Signals(number)])
        if now:
            signal.raise_signal(number)
        stop.number = number if stop.number is None else stop.number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def set_threads(threads: int) -> None:
    """Compute with so many CPU threads; 0 is one a core.

    Raises:
        ConfigError: fewer, or far more than there are cores.
    """
    from budgetnet import devices, distributed

    devices.require_threads(threads)
    distributed.set_threads(threads)


def warn(text: str) -> None:
    """Tell the user on standard error."""
    print(f"budgetnet: warning: {text}", file=sys.stderr)


def json_text(result: Any) -> str:
    """What `--json` prints, in one line; a number that is not finite is null, as JSON has none."""
    return dumps(_finite(result), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
