"""The processes of one training on one machine: started together, and ended together.

It says by the environment variables of torchrun (RANK, WORLD_SIZE, ...) which process is which, so that a process need
not know who started it. Nothing heavy is imported: the launcher only waits.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from budgetnet.errors import ConfigError

_GRACE = 30.0  # seconds from the first signal to the last, as torchrun gives
_BY_THEMSELVES = 5.0  # seconds in which processes notice by themselves that another has failed


def size() -> int:
    """How many processes train together with this one, itself included."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def rank() -> int:
    """Which of them this is; 0 alone writes and speaks."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine this is."""
    return int(os.environ.get("LOCAL_RANK", rank())) if size() > 1 else 0


def local_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size())) if size() > 1 else 1


def restarts() -> tuple[int, int]:
    """How often torchrun has restarted this training, and how often it may."""
    return tuple(int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))  # type: ignore[return-value]


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `budgetnet ARGUMENTS` in so many processes at once, and return the exit code of all of them.

    The first SIGINT or SIGTERM is passed on, for the processes to save and end; a second one kills them. When one
    fails, the others are given a moment to notice, told to end, and killed in the end.

    Args:
        arguments: of the command line, from the command on.
        processes: 2 or more.

    Returns:
        0 if all succeed, 128 and the signal that was passed on, else that of the first that failed.

    Raises:
        ConfigError: this process is itself one of several.
    """
    if size() > 1:
        raise ConfigError("--devices is given within a process of torchrun, which has started them: leave it out")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    # Between processes of one machine: its name may lead elsewhere, or nowhere.
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    own = {"GLOO_SOCKET_IFNAME": loopback} if loopback else {}
    own |= {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # how a process sees another's end is said in a line of ours
    children: list[subprocess.Popen[bytes]] = []
    caught: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for child in children:
            child.send_signal(number if len(caught) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for place in range(processes):
            environment = own | os.environ | shared | {"RANK": str(place), "LOCAL_RANK": str(place)}
            command = [sys.executable, "-m", "budgetnet", *arguments]
            children.append(
                subprocess.Popen(command, env=environment, stdin=None if place == 0 else subprocess.DEVNULL)
            )
        return _wait(children, caught)
    finally:
        for child in children:
            child.kill()  # no harm to those that have ended
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]], caught: Sequence[int]) -> int:
    """Until all have ended; see `launch`."""
    failed: tuple[int, int] | None = None  # who, and how
    since, told = 0.0, 0
    while any(child.poll() is None for child in children):
        if failed is None:
            failed = next(((place, code) for place, child in enumerate(children) if (code := child.poll())), None)
            since = time.monotonic()
        for stage, (after, number) in enumerate(((_BY_THEMSELVES, signal.SIGTERM), (_GRACE, signal.SIGKILL)), 1):
            if failed and told < stage and time.monotonic() - since >= after:
                told = stage
                for child in children:
                    child.send_signal(number)
        time.sleep(0.05)
    codes = [child.returncode for child in children]
    if not any(codes):
        return 0
    if caught:
        return 128 + caught[0]
    place, code = failed or next((place, code) for place, code in enumerate(codes) if code)
    if code < 0:
        name = signal.Signals(-code).name
        print(f"budgetnet: error: process {place} was ended by {name}, and the training with it", file=sys.stderr)
    return code if code > 0 else 1
