"""Processes that read and decode shards: `python -m budgetnet.workers` takes jobs, a line each, and answers them.

They are programs of their own, and not forks or copies of the process that starts them: torch's threads do not outlive
a fork, a script without `if __name__ == "__main__"` is not run again, and what dies takes nothing with it. They end
when the process that gives them jobs does, however that ends.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from budgetnet import tables, tarballs
from budgetnet.decoding import Pixels
from budgetnet.errors import DataError

MEMORY = 4 << 30
"""Bytes beyond what it starts with that such a process may ask for: what a hostile file claims is refused there."""
_CHUNK = 4 << 20  # bytes of pixels

Job = dict[str, Any]
"""What is to be done, in values that JSON has."""


def scan_job(path: Path) -> Job:
    """Read what a shard holds but for its pixels; see `scanned`."""
    return {"do": "scan", "path": str(path)}


def decode_job(path: Path, places: Any, image_size: int, part: Path, offset: int) -> Job:
    """Decode a piece of a shard into a file.

    Args:
        path: the shard.
        places: of a tar shard, int64 (n, 2), as `tarballs.images` takes them; of a Parquet file, two row groups, as
            `tables.images` does.
        image_size: side in pixels that the images are resized to.
        part: a file that is there.
        offset: where in it the pixels are written to, in bytes.

    The answer is a pair: how many images those are, and the CRC-32 of their pixels.
    """
    wanted = _encoded(places) if path.suffix == ".tar" else list(places)
    return {
        "do": "decode",
        "path": str(path),
        "places": wanted,
        "size": image_size,
        "part": str(part),
        "offset": offset,
    }


def scanned(answer: Any) -> tuple[tarballs.Samples | tables.Table, int]:
    """What the answer to a `scan_job` says, and how many images that is."""
    labels, places, groups, classes = answer
    if places is None:
        return tables.Table(labels, groups, classes), len(labels)
    return tarballs.Samples(labels, np.frombuffer(base64.b64decode(places), "<i8").reshape(-1, 2)), len(labels)


def _encoded(places: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(places, "<i8").tobytes()).decode()


def carry_out(job: Job) -> Any:
    """Do a job in this process.

    Raises:
        DataError: the shard is damaged or hostile.
        OSError: the file cannot be written to.
    """
    path = Path(job["path"])
    tar = path.suffix == ".tar"
    if job["do"] == "scan":
        if tar:
            samples = tarballs.scan(path)
            return [samples.labels, _encoded(samples.places), None, None]
        table = tables.scan(path)
        return [table.labels, None, table.groups, table.classes]
    if tar:
        places = map(tuple, np.frombuffer(base64.b64decode(job["places"]), "<i8").reshape(-1, 2).tolist())
        pixels = tarballs.images(path, places, job["size"])
    else:
        pixels = tables.images(path, tuple(job["places"]), job["size"])
    return _write(Path(job["part"]), job["offset"], pixels)


def _write(part: Path, offset: int, pixels: Iterator[Pixels]) -> list[int]:
    count = checksum = 0
    pending: list[Pixels] = []

    def put() -> None:
        nonlocal checksum
        raw = b"".join(image.data for image in pending)
        file.write(raw)
        checksum = zlib.crc32(raw, checksum)
        pending.clear()

    with part.open("r+b") as file:
        file.seek(offset)
        for image in pixels:
            pending.append(image)
            count += 1
            if len(pending) * image.size >= _CHUNK:
                put()
        put()
    return [count, checksum]


def answers(jobs: Sequence[Job], processes: int) -> Generator[tuple[int, Any], None, None]:
    """Have jobs done by processes, as many at a time; the number of each and its answer, as they come.

    Raises:
        DataError: a shard is damaged or hostile, or ends the process that reads it.
        OSError: a file cannot be written to.
    """
    workers = [_Worker() for _ in range(min(processes, len(jobs)))]
    free: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def done(job: Job) -> Any:
        worker = free.get()
        try:
            return worker.ask(job)
        finally:
            free.put(worker)

    pool = ThreadPoolExecutor(max(1, len(workers)))
    try:
        # A few ahead of whoever takes the answers, so that what they are of does not pile up.
        waiting = iter(enumerate(jobs))
        numbers = {pool.submit(done, job): i for i, job in islice(waiting, 2 * len(workers))}
        while numbers:
            for future in wait(numbers, return_when=FIRST_COMPLETED).done:
                i = numbers.pop(future)
                numbers |= {pool.submit(done, job): j for j, job in islice(waiting, 1)}
                yield i, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.end()
        pool.shutdown()


class _Worker:
    """One such process."""

    def __init__(self) -> None:
        home = str(Path(__file__).parent.parent)
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "budgetnet.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )

    def ask(self, job: Job) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        line = b""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise DataError(
                f"{job['path']}: the process that read it ended ({signal.Signals(-code).name if code < 0 else code}): "
                "the file is damaged or hostile, or memory has run out"
            )
        kind, *said = json.loads(line)
        if kind == "refused":
            raise DataError(*said)
        if kind == "failed":
            raise OSError(*said)
        return said[0]

    def end(self) -> None:
        """End the process; what it has written so far stays."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()


def main() -> None:
    """Answer jobs from standard input until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gives the jobs
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints is no answer
    _bound_memory()
    for line in sys.stdin.buffer:
        job = json.loads(line)
        answer: list[Any]
        try:
            answer = ["done", carry_out(job)]
        except DataError as error:
            answer = ["refused", str(error)]
        except OSError as error:
            answer = ["failed", error.errno, error.strerror, job.get("part", job["path"])]
        out.write(json.dumps(answer) + "\n")
        out.flush()


def _bound_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():
        import resource

        limit = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
