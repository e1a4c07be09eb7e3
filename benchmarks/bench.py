"""budgetnet's speed and memory against the plain PyTorch way, side by side.

    python benchmarks/bench.py                      everything, recorded; under 15 minutes on two cores
    python benchmarks/bench.py --quick              a look: few repetitions in small batches; recorded only by --record
    python benchmarks/bench.py --only train infer   some of it

Contestants work in turn within one run, A B A B, each in a process of its own (turns.py). A result is the median of the
rounds with the smallest and the largest, and so is each ratio, of two contestants in the same round. What is recorded
in results/benchmarks/cpu.json is shown in docs/speed.md and in README (figures.py).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pickle
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import figures
import numpy as np
import ours
import plain
import torch
from turns import Contestant, Turn, command, take_turns

from budgetnet import devices
from budgetnet.config import AugmentConfig, Config, ProgressiveConfig
from budgetnet.files import atomic_write
from budgetnet.recipe import load_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
PLAIN, OURS = "plain PyTorch", "budgetnet"


@dataclass(frozen=True)
class Row:
    """One figure to be had from a turn."""

    name: str
    title: str
    unit: str
    value: Callable[[Turn], float]


@dataclass(frozen=True)
class Group:
    """Contestants that are compared with the first of them."""

    kind: str
    contestants: list[Contestant]
    rows: list[Row]
    seconds: float
    """Least length of a turn."""
    units: int = 1
    """Least units of work in a turn."""


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    seconds: float
    """Least length of a turn of training."""
    calls: int
    """Least number of single images classified in a turn."""
    smaller: int
    """Training batches are those of the recipes divided by this."""


FULL = Effort(rounds=5, seconds=2.5, calls=200, smaller=1)
QUICK = Effort(rounds=2, seconds=0.3, calls=30, smaller=4)


def groups(effort: Effort, folder: Path, threads: int) -> Iterator[Group]:
    """All that is measured, what fails soonest first.

    Args:
        effort: how long to measure.
        folder: holds images in the form of CIFAR-10, and takes what the contestants write.
        threads: of each contestant, and worker processes of the plain way.
    """
    configs = _configs()
    python = [sys.executable, "-c"]
    yield Group(
        "startup",
        [
            Contestant("`import torch`", command, {"arguments": [*python, "import torch"]}),
            Contestant("`budgetnet --help`", command, {"arguments": [sys.executable, "-m", "budgetnet", "--help"]}),
            Contestant("`import budgetnet`", command, {"arguments": [*python, "import budgetnet"]}),
            Contestant("Python alone", command, {"arguments": [*python, "pass"]}),
        ],
        [Row("startup", "start-up", "ms", partial(Turn.milliseconds, quantile=0.5))],
        seconds=0,
        units=3 if effort is FULL else 1,
    )
    yield Group(
        "load",
        [Contestant(PLAIN, plain.loading, {"folder": folder}), Contestant(OURS, ours.loading, {"folder": folder})],
        [Row("load", "loading CIFAR-10", "ms", partial(Turn.milliseconds, quantile=0.5))],
        seconds=0,
    )
    for name, config in (("reference", configs["resnet_leaky"]), ("speedrun", configs["speedrun"])):
        common = {"config": config, "folder": folder, "threads": threads}
        yield Group(
            "augment",
            [Contestant(PLAIN, plain.augmentation, common), Contestant(OURS, ours.augmentation, common)],
            [Row(f"augment-{name}", f"augmentation, {_steps_of(config.augment)}", "images/s", _rate)],
            seconds=effort.seconds / 2,
        )
    for name in ("resnet_leaky", "speedrun"):
        for batch in (1, 256):
            yield _inference(name, configs[name], batch, effort, threads)
    for name in ("resnet_leaky", "enhanced", "speedrun"):
        config = replace(configs[name], batch_size=configs[name].batch_size // effort.smaller)
        yield _training(name, config, effort, folder, threads)
        yield _training(name, config, effort, folder, threads, alone=True)
    yield _norms("tiny", configs["tiny"], effort, folder, threads)
    yield _compiled("resnet_leaky", configs["resnet_leaky"], effort, folder, threads)


def _configs() -> dict[str, Config]:
    """What is trained: the reference project's network, ours, the one that is fastest to learn, and a narrow one."""
    reference = load_recipe(RECIPES / "reference.yaml")
    found = {
        "resnet_leaky": reference,
        "enhanced": replace(reference, model=replace(reference.model, name="enhanced")),
        "speedrun": load_recipe(RECIPES / "speedrun.yaml"),
        "tiny": load_recipe(RECIPES / "tiny.yaml", ["--model.width", "12"]),  # what auto comes to
    }
    return {
        name: replace(
            config,
            progressive=ProgressiveConfig(),  # smaller images would be less work than the other side's
            optimizer=replace(config.optimizer, lr=1e-4),  # noise is not to be learned, and must not diverge
        )
        for name, config in found.items()
    }


def _training(name: str, config: Config, effort: Effort, folder: Path, threads: int, alone: bool = False) -> Group:
    """The whole loop with the recipe's augmentation, or steps alone."""
    title = f"training `{config.model.name}`"
    if alone:
        config = replace(config, augment=AugmentConfig())
        rows = [Row(f"step-{name}", f"{title}, steps alone", "images/s", _rate)]
        first = Contestant(PLAIN, plain.steps, {"config": config, "threads": threads})
    else:
        rows = [
            Row(f"train-{name}", title, "images/s", _rate),
            Row(f"memory-{name}", f"peak memory of {title}", "MB", lambda turn: turn.memory),
        ]
        first = Contestant(PLAIN, plain.training, {"config": config, "folder": folder, "threads": threads})
    contestants = [first, _ours(OURS, config, folder, threads)]
    if effort is FULL and devices.precision(config.precision, torch.device("cpu")) != "fp32":
        contestants.append(_ours(f"{OURS}, float32", replace(config, precision="fp32"), folder, threads))
    return Group("step" if alone else "train", contestants, rows, effort.seconds)


def _norms(name: str, config: Config, effort: Effort, folder: Path, threads: int) -> Group:
    """What the norms of narrow networks are worth: against budgetnet with torch's own."""
    title = f"training `{config.model.name}` under {config.budget:,} parameters, against torch's norms"
    theirs = _ours(f"{OURS}, torch's norms", config, folder, threads)
    return Group(
        "norms",
        [replace(theirs, arguments=theirs.arguments | {"norms": False}), _ours(OURS, config, folder, threads)],
        [Row(f"norms-{name}", title, "images/s", _rate)],
        effort.seconds,
    )


def _compiled(name: str, config: Config, effort: Effort, folder: Path, threads: int) -> Group:
    """Whether torch.compile is worth it: against budgetnet itself."""
    title = f"compiled training of `{config.model.name}`, against budgetnet"
    return Group(
        "compile",
        [
            _ours(OURS, config, folder, threads),
            _ours(f"{OURS}, compiled", replace(config, compile=True), folder, threads),
        ],
        [Row(f"compile-{name}", title, "images/s", _rate)],
        effort.seconds,
    )


def _ours(name: str, config: Config, folder: Path, threads: int) -> Contestant:
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    return Contestant(name, ours.training, {"config": config, "folder": folder, "threads": threads, "run": run})


def _inference(name: str, config: Config, batch: int, effort: Effort, threads: int) -> Group:
    common = {"config": config, "batch": batch, "threads": threads}
    contestants = [
        Contestant(PLAIN, plain.inference, common),
        Contestant(OURS, ours.inference, common | {"precision": "fp32"}),
        Contestant(f"{OURS}, int8", ours.inference, common | {"precision": "int8"}),
    ]
    title = f"inference of `{config.model.name}`"
    if batch > 1:
        rows = [Row(f"infer-{batch}-{name}", f"{title}, {batch} images at a time", "images/s", _rate)]
        return Group("infer", contestants, rows, effort.seconds / 2)
    rows = [
        Row(f"latency-{percent}-{name}", f"{title}, one image, {what}", "ms", partial(Turn.milliseconds, quantile=q))
        for percent, what, q in (("p50", "median", 0.5), ("p99", "99 % within", 0.99))
    ]
    return Group("infer", contestants, rows, seconds=0, units=effort.calls)


def _rate(turn: Turn) -> float:
    return turn.rate


def _steps_of(config: AugmentConfig) -> str:
    """The steps of a chain, in words."""
    steps = {
        "crop": config.crop_padding,
        "flip": config.flip != "none",
        "rotation": config.rotation,
        "colour": config.brightness or config.contrast or config.saturation or config.hue,
        "erasing": config.erase_p,
        "cutout": config.cutout,
    }
    return ", ".join(name for name, strength in steps.items() if strength)


def measure(group: Group, effort: Effort, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run a group, and sum up each of its rows."""
    results = take_turns(group.contestants, effort.rounds, group.seconds, group.units, say)
    measurements = []
    for row in group.rows:
        values = {name: [row.value(turn) for turn in turns] for name, (_, turns) in results.items()}
        if row.unit == "MB":  # a peak so far: that of the last turn is that of the run
            values = {name: found[-1:] for name, found in values.items()}
        base = values[group.contestants[0].name]
        found = []
        for name, own in values.items():
            # How many times as good as the first: as fast, or as small.
            pairs = zip(own, base, strict=True)
            times = [a / b if row.unit.endswith("/s") else b / a for a, b in pairs if a and b]
            found.append({"contestant": name, **_spread(own), "times": _spread(times), "rounds": own})
        measurements.append({"name": row.name, "title": row.title, "unit": row.unit, "contestants": found})
    return measurements


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def write_cifar10(folder: Path, per_file: int = 10_000) -> None:
    """Write noise in the form of CIFAR-10's official Python batches, of `per_file` images each."""
    inside = folder / "cifar-10-batches-py"
    inside.mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {
            b"batch_label": name.encode(),
            b"labels": rng.integers(10, size=per_file).tolist(),
            b"data": rng.integers(256, size=(per_file, 3072), dtype=np.uint8),
            b"filenames": [f"{name}_{i:05}.png".encode() for i in range(per_file)],
        }
        (inside / name).write_bytes(pickle.dumps(content, protocol=3))
    meta = {b"num_cases_per_batch": per_file, b"label_names": [b"class %d" % i for i in range(10)], b"num_vis": 3072}
    (inside / "batches.meta").write_bytes(pickle.dumps(meta, protocol=3))


def main() -> None:
    """Measure, print, record."""
    kinds = ("startup", "load", "augment", "infer", "train", "step", "norms", "compile")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a look, in two minutes; float32 and compiling are left out"
    )
    parser.add_argument("--only", nargs="+", choices=kinds, metavar="KIND", help=f"some of {', '.join(kinds)}")
    parser.add_argument("--record", type=Path, metavar="FILE", help="where to write the figures, as JSON")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each contestant (%(default)s)")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    wanted = set(options.only or kinds)
    if options.quick and not options.only:
        wanted -= {"compile"}  # which takes minutes, however little is measured then
    if "compile" in wanted and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        print("compile is left out: it needs a C++ compiler", file=sys.stderr)
        wanted -= {"compile"}
    torch.set_num_threads(options.threads)

    started = time.monotonic()
    measurements, failed = [], []
    with tempfile.TemporaryDirectory(prefix="budgetnet-bench-") as temporary:
        folder = Path(temporary)
        write_cifar10(folder)
        for group in groups(effort, folder, options.threads):
            if group.kind not in wanted:
                continue
            name = group.rows[0].name
            try:
                found = measure(group, effort, partial(print, f"{name}:", file=sys.stderr))
            except RuntimeError as error:  # what else there is to measure is not lost with it
                print(f"{name}: {error}", file=sys.stderr)
                failed.append(name)
                continue
            print(figures.text(found), flush=True)
            measurements += found
    minutes = (time.monotonic() - started) / 60
    record = {"about": _about(options, effort, minutes), "measurements": measurements}
    path = options.record or (None if options.quick or options.only else figures.RECORD)
    if path:
        atomic_write(path, (json.dumps(record, indent=1) + "\n").encode())
        print(f"{path} written, after {minutes:.1f} minutes", file=sys.stderr)
        if path.resolve() == figures.RECORD.resolve() and not failed:
            figures.publish()
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def _about(options: argparse.Namespace, effort: Effort, minutes: float) -> dict[str, Any]:
    packages = ("torch", "numpy", "pillow", "onnxruntime")
    return {
        "quick": options.quick,
        "rounds": effort.rounds,
        "workers": options.threads,
        "precision": devices.precision("auto", torch.device("cpu")),
        "minutes": round(minutes, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "hardware": devices.hardware(torch.device("cpu")),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("budgetnet", *packages)},
    }


if __name__ == "__main__":
    main()
