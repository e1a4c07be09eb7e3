"""Thousands of requests to `budgetnet serve` on this machine, with garbage and rudeness mixed in.

    python reliability/load.py

A real server process, with a small network of random weights, is asked by a dozen clients without a pause while others
send it what is no picture, no request, too large, too slow, or from elsewhere. Bounded in requests and in time.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from faults import Fault, write
from PIL import Image

from budgetnet import checkpoint, models
from budgetnet.classifier import Classifier
from budgetnet.config import ModelConfig

HOST = "127.0.0.1"
CLIENTS, PICTURES = 12, 6000  # that keep asking, and what they ask in all
MOST_SECONDS = 150
PATIENCE = 40  # seconds for one answer: more than the server gives itself
GROWTH = 32 << 20  # bytes of resident memory
RNG = random.Random(0)


@dataclass
class Answer:
    """What a server said; status 0 where it hung up, and -1 where it did neither."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def problem(self) -> bool:
        """Whether it is one line that says what is wrong, and no traceback."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return False
        return list(found) == ["error"] and "\n" not in found["error"] and "Traceback" not in found["error"]

    @property
    def later(self) -> bool:
        """Whether it is a deliberate refusal for the time being."""
        return self.status == 503 and "retry-after" in self.headers and self.problem


class Client:
    """One connection, opened again when it was closed."""

    def __init__(self, port: int):
        self.port, self.streams = port, None

    async def ask(self, path: str, body: bytes | None = None, headers: str = "", host: str = HOST) -> Answer:
        """Send a request and read the answer."""
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body or b'')}\r\n{headers}\r\n"
        return await self.send(head.encode() + (body or b""))

    async def send(self, data: bytes) -> Answer:
        """Send any bytes and read what may be the answer."""
        try:
            async with asyncio.timeout(PATIENCE):
                if self.streams is None:
                    self.streams = await asyncio.open_connection(HOST, self.port)
                reader, writer = self.streams
                writer.write(data)
                with suppress(ConnectionError):  # an answer may be there all the same
                    await writer.drain()
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
                headers = {
                    name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                answer = Answer(int(head[0].split()[1]), headers)
                answer.body = await reader.readexactly(int(headers.get("content-length", "0")))
        except TimeoutError:
            answer = Answer(-1)
        except (OSError, asyncio.IncompleteReadError):
            answer = Answer()
        if answer.headers.get("connection") == "close" or answer.status <= 0:
            self.close()
        return answer

    def close(self) -> None:
        """Hang up."""
        if self.streams:
            self.streams[1].close()
            self.streams = None


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def claiming(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG that says it is of this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


PIXELS = np.random.default_rng(0)
GOOD = [
    encoded(PIXELS.integers(0, 256, (side, side + 5, 3), np.uint8), kind)
    for side in (27, 60, 200)
    for kind in ("PNG", "JPEG", "WEBP")
]
BOMBS = [claiming(side, side) for side in (7_900, 9_000, 11_000, 60_000, 2**31 - 1)]
BOMBS += [encoded(np.zeros((7_000, 9_000, 3), np.uint8)), b"P6 60000 60000 255\n", b"P6 7900 7900 255\n"]


WRONG = ["/../cli.py", "/%2e%2e/cli.py", "//", "/api", f"/{'a/' * 2000}", "/api/examples/99", "/api/examples/-1"]
WRONG += ["/api/curves/", "/api/predict?noise=9", "/api/predict?rotation=nan", "/api/predict?x=1"]


async def no_picture(client: Client) -> bool:
    """Random bytes, cut and damaged pictures. Damage may leave a picture."""
    good = bytearray(RNG.choice(GOOD))
    for _ in range(RNG.randrange(1, 30)):
        good[RNG.randrange(len(good))] = RNG.randrange(256)
    kind = RNG.randrange(3)
    body = [RNG.randbytes(RNG.randrange(2000)), bytes(good), bytes(good[: RNG.randrange(len(good))])][kind]
    answer = await client.ask(RNG.choice(["/api/predict"] * 4 + ["/api/attention", "/api/curves"]), body)
    return (answer.status == 415 and answer.problem) or (answer.status == 200 and kind > 0) or answer.later


async def bomb(client: Client) -> bool:
    """Pictures that claim many pixels, or have them."""
    answer = await client.ask("/api/predict", RNG.choice(BOMBS))
    return (answer.status == 415 and answer.problem) or answer.status == 200 or answer.later


async def too_large(client: Client) -> bool:
    """Bodies beyond the limit, with and without a length. One that goes on for long may be hung up on."""
    if RNG.random() < 0.5:
        answer = await client.ask("/api/predict", bytes(17 << 20))
    else:
        head = f"POST /api/predict HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        answer = await client.send(head + b"100000\r\n%b\r\n" % bytes(1 << 20) * RNG.choice([20, 90]) + b"0\r\n\r\n")
    client.close()
    return answer.status == 0 or (answer.status == 413 and answer.problem) or answer.later


async def foreign(client: Client) -> bool:
    """Names and pages of others."""
    if RNG.random() < 0.5:
        answer = await client.ask(
            "/api/predict", RNG.choice(GOOD), host=RNG.choice(["evil.example", "x", "localhost.x"])
        )
        return answer.status == 421 and answer.problem
    origin = RNG.choice(["http://evil.example", "null", "http://["])
    answer = await client.ask("/api/predict", RNG.choice(GOOD), f"Origin: {origin}\r\n")
    return answer.status == 403 and answer.problem


async def no_request(client: Client) -> bool:
    """Bytes that are no HTTP, or hardly."""
    whole = f"POST /api/predict HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nabcde".encode()
    damaged = bytearray(whole)
    for _ in range(RNG.randrange(1, 6)):
        damaged[RNG.randrange(len(damaged))] = RNG.randrange(256)
    kind = RNG.randrange(3)
    text = [RNG.randbytes(RNG.randrange(1, 3000)), bytes(damaged), whole[:-7] + b"X: " + b"x" * 40_000][kind]
    client.close()
    # What ends a header may be missing from random bytes: then nothing can be answered but by the limits of time.
    answer = await client.send(text + b"\r\n\r\n\r\n\r\n" + b"0" * 20_000)
    client.close()
    return answer.status == 0 or (400 <= answer.status < 500 and answer.problem) or answer.later


async def wrong_question(client: Client) -> bool:
    """Paths and parameters that there are not."""
    path = RNG.choice(WRONG)
    answer = await client.ask(path, RNG.choice([None, RNG.choice(GOOD)]))
    return answer.status in (404, 405, 422, 307) and (answer.problem or answer.status == 307)


async def leaves(client: Client) -> bool:
    """A client that goes in the middle of its request or answer; held if the next one is served."""
    picture = RNG.choice(GOOD)
    head = f"POST /api/attention HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(picture)}\r\n\r\n".encode() + picture
    _, writer = await asyncio.open_connection(HOST, client.port)
    writer.write(head[: RNG.randrange(1, len(head) + 1)])
    await writer.drain()
    if RNG.random() < 0.5:
        writer.transport.abort()
    writer.close()
    return (await client.ask("/health")).status == 200


async def dawdles(client: Client) -> bool:
    """A header or body of which the end never comes; held if it is ended within the limits."""
    head = f"POST /api/predict HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9\r\n\r\nabc".encode()
    client.close()
    answer = await client.send(head[: RNG.choice([0, 5, 40, len(head)])])
    client.close()
    return answer.status == 0 or (answer.status == 408 and answer.problem) or answer.later


GARBAGE: list[tuple[Callable[[Client], Awaitable[bool]], int, int, str, str]] = [
    (
        no_picture,
        1500,
        4,
        "what is no picture, or a damaged one",
        "415 and one line, or an answer where a picture is left",
    ),
    (bomb, 60, 2, "pictures that claim or have 60 million pixels and more", "415 and one line, or an answer"),
    (too_large, 40, 2, "bodies beyond 16 MiB, with and without a length", "413, or hung up on beyond 64 MiB"),
    (foreign, 1000, 2, "names and pages of other servers", "421 or 403"),
    (no_request, 1500, 4, "bytes that are no request", "one line of 4xx, or hung up on"),
    (wrong_question, 1000, 2, "paths and parameters that there are not", "404, 405 or 422 and one line"),
    (leaves, 600, 3, "clients that leave in the middle", "the next one is served"),
    (dawdles, 60, 20, "headers and bodies whose end never comes", "408 or hung up on, in time"),
]


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) << 10


def open_files(pid: int) -> int:
    """File descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


async def load(port: int, pid: int) -> tuple[list[Fault], dict[str, str]]:
    """Ask, and count what held."""
    expected = {}
    first = Client(port)
    for picture in GOOD:
        found = json.loads((await first.ask("/api/predict", picture)).body)
        expected[picture] = [one["probability"] for one in found["probabilities"]]
    files = open_files(pid)
    latencies: list[float] = []
    right = later = 0
    end = time.monotonic() + MOST_SECONDS
    memory = 0

    async def keeps_asking() -> int:
        nonlocal right, later, memory
        client, tried = Client(port), 0
        for number in range(PICTURES // CLIENTS):
            if time.monotonic() > end:
                break
            picture = GOOD[number % len(GOOD)]
            start = time.perf_counter()
            answer = await client.ask("/api/predict", picture)
            tried += 1
            if answer.later:
                later += 1
                await asyncio.sleep(0.05)
            elif answer.status == 200:
                latencies.append(1000 * (time.perf_counter() - start))
                believed = [one["probability"] for one in json.loads(answer.body)["probabilities"]]
                right += believed == expected[picture]
            if not memory and len(latencies) > PICTURES / 4:
                memory = resident(pid)
        client.close()
        return tried

    async def annoys(rudeness: Callable[[Client], Awaitable[bool]], count: int) -> tuple[int, int]:
        client, tried, held = Client(port), 0, 0
        while tried < count and time.monotonic() < end:
            tried += 1
            held += await rudeness(client)
        client.close()
        return tried, held

    rude = [[annoys(function, count // clients) for _ in range(clients)] for function, count, clients, _, _ in GARBAGE]
    asked, *counts = await asyncio.gather(
        asyncio.gather(*(keeps_asking() for _ in range(CLIENTS))), *(asyncio.gather(*each) for each in rude)
    )
    faults = [
        Fault(
            fault=f"{CLIENTS} clients that ask without a pause, while all of the below goes on",
            held="the same probabilities, bit for bit, as before the load, or 503 with Retry-After",
            tried=sum(asked),
            survived=right + later,
        )
    ]
    for (_, _, _, fault, held), each in zip(GARBAGE, counts, strict=True):
        faults.append(
            Fault(fault=fault, held=held, tried=sum(n for n, _ in each), survived=sum(held for _, held in each))
        )
    faults.append(await at_once(port))

    after = Client(port)
    same = 0
    for picture in GOOD:
        found = json.loads((await after.ask("/api/predict", picture)).body)
        same += [one["probability"] for one in found["probabilities"]] == expected[picture]
    after.close()
    for _ in range(200):  # what was hung up on is noticed within the limits
        if open_files(pid) <= files:
            break
        await asyncio.sleep(0.1)
    grown = resident(pid) - memory
    requests = sum(fault.tried for fault in faults)
    faults.append(
        Fault(
            fault=f"all {requests:,} requests together",
            held=f"memory grew by less than {GROWTH >> 20} MiB after the first quarter, no file stayed open, and the "
            "answers are the same afterwards",
            tried=1,
            survived=int(grown < GROWTH and open_files(pid) <= files and same == len(GOOD)),
        )
    )
    ordered = sorted(latencies)
    figures = {
        "p50": f"{ordered[len(ordered) // 2]:.0f} ms",
        "p99": f"{ordered[len(ordered) * 99 // 100]:.0f} ms",
        "slowest": f"{ordered[-1]:.0f} ms",
        "answered": f"{len(latencies):,} pictures, and {later:,} told to come back",
        "memory": f"{memory / 2**20:.0f} MiB after a quarter, {grown / 2**20:+.1f} MiB at the end",
        "on": f"{os.cpu_count()} cores, which clients and server share",
    }
    return faults, figures


async def at_once(port: int) -> Fault:
    """Many more connections than are served, several times."""
    tried = held = 0
    for _ in range(5):
        answers = await asyncio.gather(*(Client(port).ask("/api/predict", GOOD[0]) for _ in range(300)))
        tried += len(answers)
        held += sum(answer.status in (0, 200) or answer.later for answer in answers)
        held -= not any(answer.status == 200 for answer in answers)
    return Fault(
        fault="300 connections at once, of which 128 are served",
        held="an answer, 503 with Retry-After, or hung up on beyond 256",
        tried=tried,
        survived=held,
    )


def main() -> int:
    """Start a server, load it, and write the record."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config = ModelConfig(name="enhanced", width=8)
        classes, path = tuple(map(str, range(10))), Path(folder) / "model.safetensors"
        network = models.build(config, len(classes)).eval()
        checkpoint.save_classifier(
            path,
            Classifier(network=network, model=config, classes=classes, mean=(0.5,) * 3, std=(0.25,) * 3, image_size=32),
        )
        with open(Path(folder) / "stderr", "w+") as stderr:
            command = [sys.executable, "-m", "budgetnet", "serve", str(path), "--port", "0"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as server:
                try:
                    port = int(re.search(r":(\d+) ", server.stdout.readline())[1])
                    faults, figures = asyncio.run(load(port, server.pid))
                finally:
                    server.terminate()
            stderr.seek(0)
            said = stderr.read()
    faults.append(
        Fault(
            fault="the same, seen from the server's terminal",
            held="nothing on standard error: no error of ours",
            tried=1,
            survived=int(not said),
        )
    )
    print(said[-3000:], file=sys.stderr)
    for fault in faults:
        print(f"{fault.survived:>6,} of {fault.tried:>6,}  {fault.fault}")
    print(figures)
    print(write("load", "python reliability/load.py", faults, time.monotonic() - began, figures))
    return int(any(fault.survived < fault.tried for fault in faults))


if __name__ == "__main__":
    sys.exit(main())
