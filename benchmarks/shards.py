"""A million images of 32x32 in shards: how long until they can be trained on, and in how much memory.

    python benchmarks/shards.py [--images N] [--kind tar|parquet] [--limit MB] [--record FILE]

The shards are written first (10,000 PNG files each, of 10,000 different pictures), which is not measured. Then one
process prepares them as `train` does (looks through, decodes with as many processes as threads, measures mean and
deviation, takes the checksum), and another opens what is kept, gathers every image once in shuffled batches, and trains
a small network.

Memory is the largest anonymous part of the resident set of each (RssAnon, sampled every 10 ms): what it has for itself,
without the pages of the mapped file, which the operating system takes back when it needs them; beside it is the largest
resident set with those pages. --limit makes the operating system allow so much memory
beyond what Python and its libraries hold, pages of files included (a memory control group: Linux, as root).
--record adds the figures to a file of such.
"""

import argparse
import io
import json
import multiprocessing
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budgetnet import cache, data, shards, splits
from budgetnet.config import AugmentConfig, Config, ModelConfig, StageConfig
from budgetnet.devices import hardware, tune
from budgetnet.training import Training

SHARD = 10_000
STEPS, BATCH = 100, 256
CHAIN = AugmentConfig(crop_padding=4, flip="random")
MODEL = ModelConfig(name="residual", stages=(StageConfig(block="basic", depth=1, width=16, stride=4),))


def pictures() -> list[bytes]:
    """PNG files of pictures that are smooth with some noise, about as large as those of photographs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for _ in range(SHARD):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-8, 9, (32, 32, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
        found.append(file.getvalue())
    return found


def write(root: Path, kind: str, n: int) -> int:
    """Shards of n images, a twentieth of them of the test set; returns their bytes."""
    held, parts = pictures(), n // SHARD
    for part in range(parts):
        name = f"{'test' if part < max(1, parts // 20) else 'train'}-{part:05}.{kind}"
        if kind == "tar":
            write_tar(root / name, held, part)
        else:
            import pyarrow
            import pyarrow.parquet

            values = [{"bytes": held[(i + part) % SHARD], "path": None} for i in range(SHARD)]
            table = pyarrow.table({"image": values, "label": [i % 10 for i in range(SHARD)]})
            pyarrow.parquet.write_table(table, root / name, row_group_size=1000)
    return sum(path.stat().st_size for path in root.iterdir())


def write_tar(path: Path, held: list[bytes], part: int) -> None:
    """One shard, its headers made by changing those that tarfile made."""
    blank = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)[:512])
    with path.open("wb") as file:
        for i in range(SHARD):
            key = b"%05d-%05d" % (part, i)
            for name, content in ((key + b".png", held[(i + part) % SHARD]), (key + b".cls", b"%d" % (i % 10))):
                blank[: len(name)], blank[124:136], blank[148:156] = name, b"%011o\0" % len(content), b" " * 8
                blank[148:156] = b"%06o\0 " % sum(blank)
                file.write(blank + content + bytes(-len(content) % 512))
        file.write(bytes(1024))


def status(key: str) -> int:
    """Bytes that Linux says this process has of something."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0])


@contextmanager
def group(limit: int | None) -> Iterator[Path | None]:
    """A control group of processes that may have so many MB of memory, or none without a limit."""
    if limit is None:
        yield None
        return
    root, knob = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if not root.is_dir():
        root, knob = Path("/sys/fs/cgroup"), "memory.max"
    place = root / f"budgetnet-{os.getpid()}"
    place.mkdir()
    try:
        (place / knob).write_text(str(limit * 1_000_000))
        yield place / "cgroup.procs"
    finally:
        place.rmdir()


def measured(work: Callable[[], dict[str, Any]], results: Any, procs: Path | None) -> None:
    """In a process of its own: what `work` says, and the memory that it took beyond what was there before."""
    if procs:
        procs.write_text(str(os.getpid()))
    before = peak = status("RssAnon")
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    found = work()
    over.set()
    watcher.join()
    found |= {"anonymous_mb": (peak - before) / 1e6, "resident_with_mapped_pages_mb": status("VmHWM") / 1e6}
    results.put(found)


def prepare(root: Path) -> dict[str, Any]:
    """From shards to what can be trained on."""
    began = time.perf_counter()
    layout = shards.find(root)
    assert layout
    index = shards.index(layout)
    looked = time.perf_counter()
    said = []
    dataset = data.load("folder", root, decoding=lambda done, total: said.append(time.perf_counter()))
    ended = time.perf_counter()
    n = len(index.table)
    return {
        "images": n,
        "checksum": dataset.checksum,
        "look_through_s": looked - began,
        "decode_s": said[-1] - looked,
        "statistics_and_checksum_s": ended - said[-1],
        "prepare_s": ended - began,
        "images_per_second": n / (ended - began),
    }


def use(root: Path) -> dict[str, Any]:
    """From what is kept to steps of a training."""
    began = time.perf_counter()
    dataset = data.load("folder", root)
    opened = time.perf_counter() - began
    assert dataset.train.labels is not None
    train, _ = splits.split(dataset.train.labels, 5000, 0)
    order = train[splits.epoch_order(len(train), 0, 0)]
    cache.expect_random(dataset.train.images)  # as a training does
    began = time.perf_counter()
    for batch in splits.batches(order, BATCH):
        dataset.train.images[batch]
    gathered = time.perf_counter() - began
    device = torch.device("cpu")
    tune(device)
    config = Config(dataset="folder", model=MODEL, augment=CHAIN, precision="fp32", budget=None, batch_size=BATCH)
    training = Training(config, dataset, train, device)
    training.network.train()
    began = time.perf_counter()
    for step, batch in enumerate(splits.batches(order, BATCH)[:STEPS]):
        loss, _ = training.loss(batch, step, 32)
        training.update(loss, 0.05)
    taken = time.perf_counter() - began
    return {
        "open_s": opened,
        "gathered_images_per_second": len(order) / gathered,
        "trained_images_per_second": STEPS * BATCH / taken,
    }


def apart(work: Callable[[Path], dict[str, Any]], root: Path, procs: Path | None) -> dict[str, Any]:
    """What `work` says in a process of its own."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=measured, args=(lambda: _threaded(work, root), results, procs))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed with exit code {process.exitcode}")
    found: dict[str, Any] = results.get()
    return found


def _threaded(work: Callable[[Path], dict[str, Any]], root: Path) -> dict[str, Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    return work(root)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="a multiple of 10,000, at least 20,000")
    parser.add_argument("--kind", choices=("tar", "parquet"), default="tar")
    parser.add_argument("--limit", type=int, metavar="MB", help="of memory")
    parser.add_argument("--record", type=Path, metavar="FILE", help="add the figures to a JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "set"
        root.mkdir()
        size = write(root, options.kind, options.images)
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        loads = [os.getloadavg()[0]]
        row = {"kind": options.kind, "shards_mb": size / 1e6, "pixels_mb": options.images * 3072 / 1e6}
        with group(options.limit) as procs:
            row |= {"limit_mb": options.limit}
            row |= {"prepare": apart(prepare, root, procs), "use": apart(use, root, procs)}
        loads.append(os.getloadavg()[0])
    row |= {"load_average": loads, "threads": os.cpu_count(), "torch": torch.__version__}
    row |= {"hardware": hardware(torch.device("cpu"))}
    print(json.dumps(row, indent=1))
    if options.record:
        rows = json.loads(options.record.read_text())["rows"] if options.record.exists() else []
        rows = [other for other in rows if other["kind"] != options.kind]
        options.record.write_text(json.dumps({"rows": [*rows, row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
