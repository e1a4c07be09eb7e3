"""Contestants that work in turn: each is a process of its own, which stands still outside its turns.

A process of its own, because allocator settings, threads and memory are the process's: no contestant profits or
suffers from what another sets. Standing still (SIGSTOP for the process and its workers), because workers that read
ahead during the turn of another would slow it down, and give their own side a start.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Turn:
    """What a contestant did in a turn."""

    images: int
    """Images, or units of work where these are none."""
    seconds: list[float]
    """Time of each unit of work: a step, a batch, a call."""
    memory: float
    """Peak memory of the process so far, with what its workers have for themselves, in MB; 0 where /proc is missing."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / sum(self.seconds)

    def milliseconds(self, quantile: float) -> float:
        """The time within which this share, in (0, 1], of the units was done."""
        return 1000 * sorted(self.seconds)[math.ceil(quantile * len(self.seconds)) - 1]


class _Over(BaseException):
    """There are no more turns."""


class Meter:
    """What a contestant calls after each unit of work: it takes the time, and waits between the turns.

    The first unit, with all that comes before it, is a turn of its own: it says that the contestant is ready.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._begin(0.0, 1)

    def _begin(self, seconds: float, units: int) -> None:
        self._least_seconds, self._least_units = seconds, units
        self._images = 0
        self._seconds: list[float] = []
        self._last = time.perf_counter()

    def __call__(self, images: int = 1) -> bool:
        """Note a unit of work on so many images; False, which tells `budgetnet.train.train` not to stop."""
        self._seconds.append(time.perf_counter() - self._last)
        self._images += images
        if sum(self._seconds) >= self._least_seconds and len(self._seconds) >= self._least_units:
            self._connection.send(Turn(self._images, self._seconds, _memory()))
            try:
                order = self._connection.recv()
            except EOFError:
                raise _Over from None
            self._begin(*order)
        self._last = time.perf_counter()
        return False


@dataclass(frozen=True)
class Contestant:
    """Who works, and how."""

    name: str
    work: Callable[..., None]
    """Called as work(meter, **arguments) in the contestant's process; works for ever, calling the meter."""
    arguments: dict[str, Any] = field(default_factory=dict)


def take_turns(
    contestants: Sequence[Contestant], rounds: int, seconds: float, units: int, say: Callable[[str], None]
) -> dict[str, tuple[Turn, list[Turn]]]:
    """Let contestants work in turn, A B C A B C, and one round before that does not count.

    Args:
        contestants: who takes part, under different names.
        rounds: turns of each that count, 1 or more.
        seconds: least length of a turn; it ends with the unit of work that reaches it.
        units: least number of units of work in a turn.
        say: told what goes on.

    Returns:
        For each name the first unit of work, with all that came before it, and the turns that count.

    Raises:
        RuntimeError: a contestant ended, after writing why to standard error.
    """
    players = [_Player(contestant) for contestant in contestants]
    try:
        say("starting " + ", ".join(player.name for player in players))
        first = {player.name: player.report() for player in players}  # all start at once, and stand still when ready
        turns: dict[str, list[Turn]] = {player.name: [] for player in players}
        for index in range(rounds + 1):
            say(f"round {index} of {rounds}" if index else "warming up")
            for player in players:
                turns[player.name].append(player.turn(seconds, units))
        return {name: (first[name], turns[name][1:]) for name in first}
    finally:
        for player in players:
            player.leave()
        for player in players:
            player.end()


def command(meter: Meter, arguments: list[str]) -> None:
    """A contestant that runs a command, again and again; its output is dropped."""
    while True:
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        meter()


class _Player:
    """A contestant's process, seen from outside."""

    def __init__(self, contestant: Contestant) -> None:
        self.name = contestant.name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_play, args=(theirs, contestant.work, contestant.arguments))
        self._process.start()
        assert self._process.pid is not None
        self._pid = self._process.pid
        theirs.close()  # so that the end of the process ends the connection

    def report(self) -> Turn:
        """Wait for the end of a turn, and make the process stand still."""
        try:
            turn = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"{self.name} ended before its turn did: its error stands above") from None
        self._signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):  # a signal is sent sooner than it is obeyed
            os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert isinstance(turn, Turn)
        return turn

    def turn(self, seconds: float, units: int) -> Turn:
        self._connection.send((seconds, units))
        self._signal(signal.SIGCONT)
        return self.report()

    def leave(self) -> None:
        """Tell the process to clear up and end."""
        self._connection.close()
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Wait until the process is gone, but not for long."""
        self._process.join(10)
        if self._process.is_alive():
            self._signal(signal.SIGKILL)
            self._process.join()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:  # it has not come to make its group, or is gone
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)


def _play(connection: Connection, work: Callable[..., None], arguments: dict[str, Any]) -> None:
    # A group, so that workers are stopped and ended too. In the same session: when the program that drives the turns
    # is killed, the kernel then ends groups that stand still, and the others find their connection closed.
    os.setpgid(0, 0)
    with contextlib.suppress(_Over):
        work(Meter(connection), **arguments)


def _memory() -> float:
    """MB: the largest resident size this process ever had, and what its workers now have that nobody shares."""
    try:
        kib = _sum_of_lines(Path("/proc/self/status"), ("VmHWM:",))
        for worker in multiprocessing.active_children():
            kib += _sum_of_lines(Path(f"/proc/{worker.pid}/smaps_rollup"), ("Private_Clean:", "Private_Dirty:"))
    except OSError:
        return 0.0
    return kib * 1024 / 1e6


def _sum_of_lines(path: Path, names: tuple[str, ...]) -> int:
    return sum(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(names))
