"""Bad disks: power cuts, damaged checkpoints, full disks, a folder that goes away, and two trainings in one folder.

`python reliability/storage.py` tries each and writes results/reliability/storage.json. Full disks are small ones in
memory (tmpfs), which root alone can mount; elsewhere a limit on the size of files stands in for them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import death
import faults
import torch
from powercut import Disk, restore

from budgetnet import checkpoint
from budgetnet.config import Config, ModelConfig, OptimizerConfig, StageConfig, to_yaml
from budgetnet.errors import BudgetnetError, FolderError, WriteError
from budgetnet.files import atomic_write
from budgetnet.folder import RunFolder
from budgetnet.metrics import Metrics, read_metrics
from budgetnet.predict import write_submission
from budgetnet.progress import Progress
from budgetnet.train import Interrupted, train

SMALL = Config(
    dataset="digits",
    val_size=1200,
    model=ModelConfig(name="residual", stages=[StageConfig(width=4, depth=1, stride=4)]),
    epochs=2,
    batch_size=64,
    optimizer=OptimizerConfig(lr=0.05),
    ema=0.9,
    checkpoint_steps=2,
    checkpoint_minutes=None,
)
MOST = 80 * 1024  # bytes; a run needs some more
LAST_GOOD = "the state before is whole, one line says what to do, and the resumed run equals an undisturbed one"


class Quiet(Progress):
    """Keeps what a run warns of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)


def run(place: Path, *, resume: bool = False, progress: Progress | None = None, **options: Any) -> None:
    """Train, or go on; a run that died before its configuration was written begins."""
    resume = resume and (place / "config.yaml").is_file()
    train(SMALL, place, track=False, resume=resume, progress=progress or Quiet(), **options)


def is_same(place: Path, whole: Path) -> bool:
    """Whether a run is as the undisturbed one, clocks apart."""
    return not death.differences(death.Chain(place.parent, track=False), whole.parent)


# ------------------------------------------------------------------------------------------------------ power cuts


def power_cuts(place: Path) -> Disk:
    """All that power cuts could leave of a run's folder, with the step that the last finished save was of.

    The run is stopped once and resumed, and writes what MLflow's record would be.
    """
    saved = [(0, 0)]
    save = RunFolder.save

    def noted(self: RunFolder, state: Any) -> None:
        save(self, state)
        saved.append((state["position"]["epoch"], state["position"]["step"]))

    class Recording(Progress):
        def step(self, at: Any, steps: int, lr: float) -> None:
            atomic_write(place / "mlflow.json", b'{"experiment": "%d"}\n' % at.step)

    place.mkdir()
    disk = Disk(place, lambda: saved[-1])
    stops = iter([False] * 5 + [True])
    RunFolder.save = noted  # type: ignore[method-assign]
    try:
        with disk.listening():
            with contextlib.suppress(Interrupted):
                run(place, stop=lambda: next(stops), progress=Recording())
            run(place, resume=True, progress=Recording())
    finally:
        RunFolder.save = save  # type: ignore[method-assign]
    return disk


def lost(place: Path, saved: tuple[int, int]) -> str:
    """What a power cut has cost that had been saved; nothing where all is well."""
    try:
        found = RunFolder(place).load(lambda text: None)
        at = found[0]["position"] if found else {"epoch": 0, "step": 0, "best_epoch": 0}
        if (at["epoch"], at["step"]) < saved:
            return f"{saved} was saved, and {at} is left"
        if found is None and not (place / "config.yaml").is_file():
            return ""
        if (place / "config.yaml").read_text() != to_yaml(SMALL):
            return "config.yaml is torn"
        Metrics(place / "metrics.csv").truncate(at["epoch"])
        if [row["epoch"] for row in read_metrics(place / "metrics.csv")] != list(range(1, at["epoch"] + 1)):
            return f"{at['epoch']} epochs are done, and metrics.csv lacks some"
        if at["best_epoch"] and checkpoint.load_classifier(place).provenance["epoch"] < at["best_epoch"]:
            return "best.safetensors is too old"
        for name in ("mlflow.json", "summary.json"):
            if (place / name).is_file() and not (place / name).read_text().endswith("}\n"):
                return f"{name} is torn"
    except BudgetnetError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------------------------------------------- damage


def damage(content: bytes, rng: random.Random) -> bytes:
    """A file as a bad disk gives it back: bits turned, cut short, or sectors of zeros."""
    kind, place = rng.choice(["bits", "cut", "zeros", "empty"]), rng.randrange(len(content))
    if kind == "bits":
        return content[:place] + bytes([content[place] ^ rng.randint(1, 255)]) + content[place + 1 :]
    if kind == "zeros" and any(content[place : place + 512]):
        return content[:place] + bytes(len(content[place : place + 512])) + content[place + 512 :]
    return content[:place] if kind == "cut" else b""


def stopped(place: Path, after: int) -> None:
    """Train some steps."""
    steps = iter(range(1, after + 1))
    with contextlib.suppress(Interrupted):
        run(place, stop=lambda: next(steps) == after)


def survives_damage(place: Path, whole: Path, rng: random.Random) -> bool:
    """Damage the last checkpoint of a run that stopped anywhere, and go on."""
    stopped(place, rng.randint(3, 7))
    last = place / "last.ckpt"
    last.write_bytes(damage(last.read_bytes(), rng))
    quiet = Quiet()
    run(place, resume=True, progress=quiet)
    named = len(quiet.warnings) == 1 and str(last) in quiet.warnings[0] and "previous.ckpt" in quiet.warnings[0]
    (place / "damaged.ckpt").unlink()
    return named and is_same(place, whole)


# ------------------------------------------------------------------------------------------------------ full disks


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], object]]:
    """Make a folder with room for so many bytes, and yield what gives it more.

    It is a disk in memory; where that cannot be mounted, this process may write no file that is longer.
    """
    folder.mkdir(parents=True)
    if not can_mount():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    mount(folder, f"size={size}")
    try:
        yield lambda: mount(folder, "remount,size=8m")
    finally:
        subprocess.run(["umount", folder], check=True)


def mount(folder: Path, options: str) -> None:
    """Mount a disk in memory, or change it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True, capture_output=True)


@functools.cache
def can_mount() -> bool:
    """Whether this process may mount disks."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            mount(Path(folder), "size=4k")
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def survives_full_disk(place: Path, whole: Path, size: int) -> bool:
    """Train where so little fits, make room, and go on."""
    with small_disk(place, size) as make_room:
        try:
            run(place / "run")
            return False
        except (FolderError, WriteError) as error:
            said = str(error)
        make_room()
        run(place / "run", resume=True)
        advised = "free some space" in said or "raise the limit" in said
        return advised and "\n" not in said and f"{place}/run" in said and is_same(place / "run", whole)


def survives_full_export(place: Path, size: int) -> bool:
    """Write a submission over another one where there is no room for it."""
    with small_disk(place, size):
        target = place / "submission.csv"
        target.write_bytes(b"old")
        try:
            write_submission(target, range(100_000), [0] * 100_000, 10)
        except WriteError as error:
            said = str(error)
            return target.read_bytes() == b"old" and str(target) in said and "\n" not in said
        return False


# --------------------------------------------------------------------------------------------------------- folders


def survives_removal(place: Path, after: int) -> bool:
    """Remove the folder in the middle of a run, or put another in its place: it says so, and writes nothing there."""
    replaced = after % 2 == 0

    class Removing(Quiet):
        steps = 0

        def step(self, at: Any, steps: int, lr: float) -> None:
            self.steps += 1
            if self.steps == after:
                shutil.rmtree(place)
                if replaced:
                    place.mkdir()

    try:
        run(place, progress=Removing())
    except FolderError as error:
        nothing = not any(place.iterdir()) if replaced else not place.exists()
        return "was removed during the run" in str(error) and nothing
    return False


OWNER = """
import sys
from pathlib import Path
from budgetnet.folder import hold
with hold(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def refuses_a_second(place: Path) -> bool:
    """Go on with a run that another process has: it is refused, until that one is killed."""
    stopped(place, 3)
    command = [sys.executable, "-c", OWNER, str(place)]
    environment = {**os.environ, "PYTHONPATH": str(death.ROOT / "src")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        before = {path.name: path.read_bytes() for path in place.iterdir()}
        refused = False
        try:
            run(place, resume=True)
        except FolderError as error:
            refused = f"process {owner.pid}" in str(error)
        same = before == {path.name: path.read_bytes() for path in place.iterdir()}
        owner.kill()
    run(place, resume=True)
    return refused and same


def main() -> None:
    """Run the campaign and write its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=200, help="of the most frequent faults (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, began = random.Random(options.seed), time.monotonic()
    done: list[faults.Fault] = []

    def tell(fault: str, held: str, outcomes: Iterable[bool]) -> None:
        outcomes = list(outcomes)
        done.append(faults.Fault(fault=fault, held=held, tried=len(outcomes), survived=sum(outcomes)))
        print(f"{fault}: {sum(outcomes)} of {len(outcomes)}", flush=True)

    with tempfile.TemporaryDirectory(prefix="budgetnet-storage-") as temporary:
        folder = Path(temporary)
        whole = folder / "whole" / "run"
        run(whole)
        places = (folder / str(number) / "run" for number in itertools.count())

        def place() -> Path:
            """Where no run was yet; what was tried before is removed."""
            now = next(places)
            shutil.rmtree(folder / str(int(now.parent.name) - 1), ignore_errors=True)
            now.parent.mkdir()
            return now

        states = list(power_cuts(place()).states.items())
        what = "power cut: what a folder may hold of what was not synced"
        tell(what, "all that had been saved is there", (not lost(restore(s, place()), saved) for s, saved in states))

        def goes_on(state: Any) -> bool:
            found = restore(state, place())
            run(found, resume=True)
            return is_same(found, whole)

        chosen = rng.sample(states, min(options.tries, len(states)))
        tell(f"{what}, some of them", "the resumed run equals an undisturbed one", (goes_on(s) for s, _ in chosen))
        tell(
            "last.ckpt damaged: a byte, a sector of zeros, cut short, emptied",
            "the file is named, and the run resumed from the one before equals an undisturbed one",
            (survives_damage(place(), whole, rng) for _ in range(options.tries)),
        )
        full = "a tmpfs of random size" if can_mount() else "stood in for by RLIMIT_FSIZE"
        sizes = [4096 * rng.randint(1, MOST // 4096) for _ in range(options.tries)]
        tell(f"disk full while training ({full})", LAST_GOOD, (survives_full_disk(place(), whole, n) for n in sizes))
        tell(
            f"disk full while a submission is written ({full})",
            "the old file is whole, and one line names it",
            (survives_full_export(place(), n) for n in sizes[::10]),
        )
        tell(
            "run folder removed, or replaced by another, during the run",
            "one line says so, and nothing is written there",
            (survives_removal(place(), rng.randint(1, 7)) for _ in range(options.tries // 10)),
        )
        tell(
            "a second process resumes a run that one is training; then that one is killed",
            "the second is refused and changes nothing; afterwards it may",
            (refuses_a_second(place()) for _ in range(options.tries // 20)),
        )
    command = "python reliability/storage.py" + (
        f" --tries {options.tries} --seed {options.seed}" if (options.tries, options.seed) != (200, 0) else ""
    )
    print(faults.write("storage", command, done, time.monotonic() - began))


if __name__ == "__main__":
    main()
