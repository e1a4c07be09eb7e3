"""How time and memory grow with the number of images, their size, the parameters and the threads.

    python benchmarks/growth.py [--quick] [--record FILE]

Every point is measured in processes of its own (forked, so on Linux alone), round after round over all points, so that
whatever else the machine does falls on all of them alike; a figure is the median over the rounds. Memory is the
anonymous part of the resident set (RssAnon, sampled every millisecond in a further round): what the process has for
itself, without the pages of mapped files, which the operating system takes back when it needs them. The exponent is the
slope of the least-squares line through the logarithms: 1 is in proportion, and more than 1.1 is called super-linear.

The images of up to 1,000,000 are one mapped file, written for the purpose, which stays in the page cache: what is
measured is the program, not the disk. Real image files are decoded for the smaller numbers.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budgetnet import cache, data, models, splits
from budgetnet.augment import Augment
from budgetnet.config import AugmentConfig, Config, ModelConfig
from budgetnet.devices import hardware
from budgetnet.logits import predict_logits
from budgetnet.training import Training

Work = Callable[[], object]
Point = Callable[[], Iterator[tuple[str, int, Work]]]
"""Prepares a point and gives its tasks in turn: a name, how often it is done at a time, and what is done."""

SUPER_LINEAR = 1.1
REASONS = {"order of an epoch": "it sorts, n log n", "split": "it sorts, n log n"}
MEAN = STD = (0.5, 0.5, 0.5)
CHAIN = AugmentConfig(crop_padding=4, flip="random")
NETWORK = "resnet18"
BATCH = 32


@dataclass(frozen=True)
class Ladder:
    """One quantity that grows, while all others stay."""

    grows: str
    points: list[tuple[float, Point]]


def files(root: Path, n: int) -> Iterator[tuple[str, int, Work]]:
    """A folder tree of n PPM files of 32x32 pixels, of ten classes."""
    tree, kept = root / f"tree-{n}", root / f"kept-{os.getpid()}"
    if not tree.exists():
        noise = os.urandom(3 * 32 * 32 + n)
        for i in range(n):
            path = tree / ("train" if i % 10 else "test") / str(i // 10 % 10) / f"{i}.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P6 32 32 255\n" + noise[i : i + 3 * 32 * 32])
    os.environ["XDG_CACHE_HOME"] = str(kept)
    cache.KEEP_FROM = 1  # so that few files take the way of many
    yield "decode a folder tree and keep it", 1, partial(data.load, "folder", tree)
    yield "open it again", 1, partial(data.load, "folder", tree)


def images(file: Path, n: int) -> Iterator[tuple[str, int, Work]]:
    """The first n images of a mapped file."""
    pixels = cache._map(file, (n, 3, 32, 32))
    labels = torch.arange(n) % 100
    held = data.Images(pixels, labels)
    train, _ = splits.split(labels, n // 10, 0)
    order = train[splits.epoch_order(len(train), 0, 0)]
    augment = Augment(CHAIN, MEAN, STD, seed=0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 100))
    rng = torch.Generator().manual_seed(0)

    def gather_and_augment() -> None:
        for index in splits.batches(order, 128)[:50]:
            augment(pixels[index], index, 0, rng)

    yield "split", 1, partial(splits.split, labels, n // 10, 0)
    yield "order of an epoch", 1, partial(splits.epoch_order, n, 0, 1)
    yield "channel statistics", 1, partial(data.stats, held)
    yield "checksum", 1, partial(data._checksum, held)
    yield "gather and augment 50 batches", 3, gather_and_augment
    # A tenth of the images, as of a validation split, and next to no network: what is around it is to be seen.
    yield "predict a tenth", 1, partial(predict_logits, linear, pixels[: n // 10], MEAN, STD)


def steps(side: int, width: int, threads: int) -> Iterator[tuple[str, int, Work]]:
    """Training steps of a network on 256 images of a size."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (256, 3, side, side), dtype=torch.uint8)
    part = data.Images(pixels, torch.arange(256) % 10)
    dataset = data.Dataset("folder", tuple("0123456789"), part, part, MEAN, STD, "")
    model = ModelConfig(name=NETWORK, width=width)
    config = Config(dataset="folder", model=model, image_size=side, augment=CHAIN, precision="fp32", budget=None)
    training = Training(config, dataset, torch.arange(256), torch.device("cpu"))
    training.network.train()

    def step() -> None:
        training.gradient(torch.arange(BATCH), 0, side)
        training.update(0.01)

    step()  # the first allocates
    yield f"training step of {NETWORK}", 3, step


def parameters(width: int) -> int:
    """Parameters of the network that is trained."""
    with torch.device("meta"):  # in the parent, which must not start torch's threads before it forks
        return models.count_parameters(
            models.build(ModelConfig(name=NETWORK, width=width), 10, image_size=32, budget=None)
        )


def anonymous() -> int:
    """Bytes of memory that the process has for itself."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def peak_of(work: Callable[[], None]) -> float:
    """By how many MB the anonymous memory grows while something is done."""
    before = peak = anonymous()
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.001):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    over.set()
    watcher.join()
    return (max(peak, anonymous()) - before) / 1e6


def measure(point: Point, memory: bool, results: Any) -> None:
    """In a process of its own: the seconds of each task of a point, or the peak memory of all of it."""
    torch.set_num_threads(2)

    def run() -> None:
        for _, _, task in point():
            task()

    if memory:
        results.put(peak_of(run))
        return
    seconds = {}
    for name, times, task in point():
        taken: list[float] = []
        for _ in range(times):
            start = time.perf_counter()
            task()
            taken.append(time.perf_counter() - start)
        seconds[name] = min(taken)
    results.put(seconds)


def apart(point: Point, memory: bool) -> Any:
    """What `measure` says in a forked process, which has imported everything already."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=measure, args=(point, memory, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"a point failed with exit code {process.exitcode}")
    return results.get()


def exponent(xs: list[float], ys: list[float]) -> float:
    """The slope of the least-squares line through the logarithms."""
    slope, _ = np.polyfit(np.log(xs), np.log(ys), 1)
    return float(slope)


def climb(ladder: Ladder, rounds: int) -> list[dict[str, Any]]:
    """Measure all points of a ladder, and print and return a row for each task and one for the memory."""
    xs = [x for x, _ in ladder.points]
    seconds: dict[str, list[list[float]]] = {}
    for _ in range(rounds):
        for place, (_, point) in enumerate(ladder.points):
            for name, value in apart(point, memory=False).items():
                seconds.setdefault(name, [[] for _ in xs])[place].append(value)
    figures = {(name, "s"): [statistics.median(values) for values in points] for name, points in seconds.items()}
    figures["anonymous memory, all of it", "MB"] = [apart(point, memory=True) for _, point in ladder.points]

    print(f"\n{ladder.grows:34} {' '.join(f'{x:>10,.0f}' for x in xs)} {'exponent':>9}")
    rows = []
    for (name, unit), values in figures.items():
        slope = exponent(xs, values)
        shown = " ".join(f"{_short(value, unit):>10}" for value in values)
        remark = f"  SUPER-LINEAR ({REASONS.get(name, 'why?')})" if slope > SUPER_LINEAR else ""
        print(f"{name:34} {shown} {slope:9.2f}{remark}")
        row = {"grows": ladder.grows, "task": name, "unit": unit, "x": xs, "y": values, "exponent": slope}
        rows.append(row | {"super_linear": slope > SUPER_LINEAR})
    return rows


def _short(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        value, unit = value * 1000, "ms"
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 0.01))))}f} {unit}"


def ladders(root: Path, quick: bool) -> list[Ladder]:
    """What grows, and how far."""
    most = 30_000 if quick else 1_000_000
    file = root / "images"
    block = os.urandom(10_000 * 3 * 32 * 32)
    with file.open("wb") as out:
        for _ in range(most // 10_000):
            out.write(block)
    counts = [10_000, 20_000, 30_000] if quick else [10_000, 31_600, 100_000, 316_000, 1_000_000]
    trees = [500, 1_000, 2_000] if quick else [2_000, 8_000, 32_000]
    sides = [32, 48, 64] if quick else [32, 48, 64, 96, 128]
    widths = [8, 16, 24] if quick else [8, 16, 32, 48]
    return [
        Ladder("image files", [(n, partial(files, root, n)) for n in trees]),
        Ladder("images in a mapped file", [(n, partial(images, file, n)) for n in counts]),
        Ladder("pixels of an image", [(side * side, partial(steps, side, 8, 2)) for side in sides]),
        Ladder("parameters", [(parameters(width), partial(steps, 32, width, 2)) for width in widths]),
        Ladder("threads", [(n, partial(steps, 64, 16, n)) for n in (1, 2)]),
    ]


def main() -> None:
    """Print a table for each quantity: seconds and memory at each point, and the exponent of their growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller points, and one round")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args()
    rounds = 1 if options.quick else 3
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for ladder in ladders(Path(folder), options.quick):
            rows += climb(ladder, rounds)
    if options.record:
        about = {"rounds": rounds, "batch_size": BATCH, "torch": torch.__version__}
        record = about | {"hardware": hardware(torch.device("cpu")), "rows": rows}
        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
