"""How far it pays to train on more devices: measured on this machine's cores, and reckoned for up to 1,024 GPUs.

    python benchmarks/scale.py [--quick] [--record FILE] [--slow-link]

Measured: steps of one process on one and on all cores, and of several processes with the cores divided among them, in
turns (`turns.py`), and what an exchange between processes takes here. `--slow-link` (as root) adds a link of 200 Mbit/s
between two network namespaces, with gradients sent in float32 and in bfloat16.

Reckoned: the time of a step on N GPUs by the model of `step_seconds`, whose assumptions are in `ASSUMED` and in the
record. No GPU was at hand: what a step takes there is reckoned from the multiplications that were counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from turns import Contestant, Meter, take_turns

from budgetnet import data, distributed, models
from budgetnet.config import Config, ModelConfig, to_yaml
from budgetnet.devices import hardware
from budgetnet.recipe import load_recipe
from budgetnet.train import train

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "results" / "benchmarks" / "scale.json"
RECIPES = {"whitened_cnn": ("quick", 128), "resnet_leaky": ("reference", 32)}
"""The networks that are trained here: their recipe, and the batch."""

ASSUMED = {
    "flops": 1e14,
    "flops_means": "multiplications and additions a second that a GPU sustains, a tenth of an H100's peak in bf16",
    "step_overhead": 2e-3,
    "step_overhead_means": "seconds of a step that more GPUs do not shorten: launches, optimizer, augmentation's draws",
    "node": 8,
    "node_means": "GPUs of a node",
    "nvlink": (450e9, 2e-6),
    "nvlink_means": "bytes a second and seconds of latency between GPUs of a node (NVLink 4, one way)",
    "infiniband": (50e9, 5e-6),
    "infiniband_means": "the same between nodes, for each GPU (NDR, 400 Gbit/s)",
    "ethernet": (1.5625e9, 2e-5),
    "ethernet_means": "the same with 100 Gbit/s of Ethernet a node, which its GPUs share",
    "overlap": 0.8,
    "overlap_means": "share of the backward pass behind which the exchange hides; its last megabyte never does",
    "backward": 2 / 3,
    "backward_means": "share of the backward pass in a step's computation",
    "all_reduce": "a ring within the node, one between nodes for each GPU's eighth, and the first one back",
}
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
LAST_BUCKET = 1e6  # bytes
NETWORK = "resnet_leaky"
BEST_BATCH = 32_768
"""Images of a step in which a single GPU's overhead is hardly felt: what many are compared with."""
WAYS: dict[str, dict[str, Any]] = {
    "batch 1,024": {"batch": 1024},
    "batch 1,024, bf16 gradients": {"batch": 1024, "bytes": 2},
    "batch 1,024, sync_norm": {"batch": 1024, "sync_norm": True},
    "batch 8,192": {"batch": 8192},
    "batch 32,768": {"batch": 32_768},
    "128 images a GPU": {"each": 128},
    "128 images a GPU, sync_norm": {"each": 128, "sync_norm": True},
    "128 images a GPU, Ethernet": {"each": 128, "between": "ethernet"},
    "128 images a GPU, Ethernet, bf16 gradients": {"each": 128, "between": "ethernet", "bytes": 2},
    "128 images a GPU, Ethernet, 4 pieces": {"each": 128, "between": "ethernet", "accumulate": 4},
}
"""What is reckoned: a fixed batch that is shared out, or so many images for each GPU and piece."""


def all_reduce_seconds(size: float, gpus: int, between: str = "infiniband", assumed: dict[str, Any] = ASSUMED) -> float:
    """The time in which so many GPUs add up `size` bytes that each has.

    A ring of n sends 2 (n - 1) / n of the bytes over each link, in 2 (n - 1) steps (Patarasuk and Yuan 2009).
    """
    inside = min(gpus, assumed["node"])
    nodes = math.ceil(gpus / assumed["node"])
    fast, near = assumed["nvlink"]
    slow, far = assumed[between]
    within = 2 * (inside - 1) / inside * size / fast + 2 * (inside - 1) * near
    across = 2 * (nodes - 1) / nodes * size / inside / slow + 2 * (nodes - 1) * far
    return within + across


def step_seconds(
    network: dict[str, Any],
    gpus: int,
    batch: int,
    *,
    bytes: int = 4,  # noqa: A002  of a number
    accumulate: int = 1,
    sync_norm: bool = False,
    between: str = "infiniband",
    assumed: dict[str, Any] = ASSUMED,
) -> float:
    """The time of a step of `batch` images over `gpus`.

    Args:
        network: `parameters`, `flops` of an image's forward pass, and number of `norms`.
        gpus: that share the batch.
        batch: images.
        bytes: of each number of a gradient on its way.
        accumulate: pieces of each GPU's share; the exchange follows the last one.
        sync_norm: whether norms are exchanged, forward and backward, which nothing hides.
        between: what joins the nodes, infiniband or ethernet.
        assumed: see `ASSUMED`.
    """
    compute = 3 * network["flops"] * batch / gpus / assumed["flops"]  # backward is twice the forward pass
    if gpus == 1:
        return assumed["step_overhead"] * accumulate + compute
    gradient = bytes * network["parameters"]
    last = min(gradient, LAST_BUCKET)
    exchange = all_reduce_seconds(gradient, gpus, between, assumed)
    hidden = assumed["overlap"] * assumed["backward"] * (assumed["step_overhead"] + compute / accumulate)
    exposed = max(exchange - hidden, all_reduce_seconds(last, gpus, between, assumed))
    norms = 2 * network["norms"] * accumulate * all_reduce_seconds(1e3, gpus, between, assumed) if sync_norm else 0.0
    return assumed["step_overhead"] * accumulate + compute + exposed + norms


def simulate(network: dict[str, Any], way: dict[str, Any], gpus: int) -> dict[str, Any] | None:
    """Images a second of a way on so many GPUs, and their share of what as many single GPUs would make.

    The single GPUs make steps of `BEST_BATCH` images. None where a GPU's part of the batch is below two images, which
    is refused.
    """
    options = {key: value for key, value in way.items() if key not in ("batch", "each")}
    accumulate = options.get("accumulate", 1)
    batch = way.get("batch") or way["each"] * accumulate * gpus
    if batch // (gpus * accumulate) < 2:
        return None
    rate = batch / step_seconds(network, gpus, batch, **options)
    single = BEST_BATCH / step_seconds(network, 1, BEST_BATCH)
    return {"gpus": gpus, "batch": batch, "images_per_second": rate, "efficiency": rate / (gpus * single)}


def described(name: str) -> dict[str, Any]:
    """What the model needs to know of a network, counted."""
    from torch.utils.flop_counter import FlopCounterMode

    network = models.build(ModelConfig(name=name), 10, 32).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    norms = sum(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())
    return {
        "name": name,
        "parameters": models.count_parameters(network),
        "flops": counter.get_total_flops(),
        "norms": norms,
    }


def training(meter: Meter, config: Config, folder: Path, run: Path, processes: int, threads: int) -> None:
    """The contestant: `budgetnet train`, timed after each step, in as many processes with as many threads each."""
    others = []
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        os.environ |= shared | {"GLOO_SOCKET_IFNAME": "lo", "RANK": "0", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        recipe = run.with_suffix(".yaml")
        recipe.write_text(to_yaml(config))
        command = [sys.executable, __file__, "--follow", str(recipe), str(folder), str(threads)]
        others = [subprocess.Popen(command, env=os.environ | {"RANK": str(rank)}) for rank in range(1, processes)]
    try:
        _train(config, folder, run, threads, lambda: meter(config.batch_size))
    finally:
        for other in others:
            other.kill()


def _train(config: Config, folder: Path, run: Path, threads: int, stop: Callable[[], bool]) -> None:
    torch.set_num_threads(threads)
    # Every batch is full: the training images less those held out are a multiple of it.
    config = replace(config, val_size=50_000 % config.batch_size or config.batch_size, epochs=1000)
    with distributed.join(torch.device("cpu")) as group:
        train(replace(config, checkpoint_minutes=None), run, folder=folder, track=False, group=group, stop=stop)


def measure(name: str, folder: Path, rounds: int, seconds: float, place: Path) -> dict[str, Any]:
    """Images a second of one process and of two, on one core and on two."""
    recipe, batch = RECIPES[name]
    config = load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
    config = replace(config, batch_size=batch, precision="fp32", model=replace(config.model, name=name))
    cores = os.cpu_count() or 2
    ways = {
        "one process, one core": (config, 1, 1),
        f"one process, {cores} threads": (config, 1, cores),
        f"{cores} processes": (config, cores, 1),
        f"{cores} processes, sync_norm": (replace(config, sync_norm=True), cores, 1),
    }
    contestants = [
        Contestant(
            title,
            training,
            {
                "config": chosen,
                "folder": folder,
                "run": place / f"{name}-{number}",
                "processes": processes,
                "threads": threads,
            },
        )
        for number, (title, (chosen, processes, threads)) in enumerate(ways.items())
    ]
    turns = take_turns(contestants, rounds, seconds, 3, lambda text: print(f"{name}: {text}", file=sys.stderr))
    rates = {title: [turn.rate for turn in counted] for title, (_, counted) in turns.items()}
    single, threaded = list(rates)[:2]
    return {
        "network": name,
        "batch": batch,
        "cores": cores,
        "rows": [
            {
                "way": title,
                "images_per_second": _spread(values),
                "of_one_core": _spread([v / one for v, one in zip(values, rates[single], strict=True)]),
                "of_threads": _spread([v / one for v, one in zip(values, rates[threaded], strict=True)]),
            }
            for title, values in rates.items()
        ],
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def exchange(sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """What an exchange of so many bytes takes between two processes here."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "times.json"
        command = [sys.executable, __file__, "--exchange", str(file), str(repeats), *map(str, sizes)]
        _both(command, [], "lo", "127.0.0.1")
        found = json.loads(file.read_text())
    return found


def _both(command: list[str], prefixes: list[list[str]], interface: str, address: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": address, "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": interface}
    shared["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    both = [
        subprocess.Popen([*prefix, *command], env=os.environ | shared | {"RANK": str(rank), "OMP_NUM_THREADS": "1"})
        for rank, prefix in enumerate(prefixes or [[], []])
    ]
    ended = [process.wait(300) for process in both]
    if any(ended):
        raise RuntimeError("a process of an exchange failed: its error stands above")


def _exchange(file: Path, repeats: int, sizes: list[int]) -> None:
    with distributed.join(torch.device("cpu")) as group:
        found = []
        for size in sizes:
            values = torch.zeros(max(1, size // 4))
            times = []
            for _ in range(repeats + 3):
                group.agree(True)
                started = time.perf_counter()
                group.sum(values)
                times.append(time.perf_counter() - started)
            found.append({"bytes": size, "seconds": _spread(times[3:])})
        if group.leader:
            file.write_text(json.dumps(found))


@contextmanager
def _slow_link(rate: str) -> Iterator[list[list[str]]]:
    """How to run a command in each of two network namespaces, whose link has this rate."""
    names = ("scale-a", "scale-b")
    steps = [f"ip netns add {name}" for name in names]
    steps.append(f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
    for place, name in enumerate(names, 1):
        steps += [
            f"ip -n {name} addr add 10.199.8.{place}/24 dev cable",
            f"ip -n {name} link set cable up",
            f"ip -n {name} link set lo up",
            f"ip netns exec {name} tc qdisc add dev cable root tbf rate {rate} burst 256kb latency 400ms",
        ]
    try:
        for step in steps:
            subprocess.run(step.split(), check=True)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def slow_link(rate: str, steps: int) -> list[dict[str, Any]]:
    """Steps of two processes over a slow link, gradients sent in float32 and in bfloat16, in turns."""
    with _slow_link(rate) as prefixes, tempfile.TemporaryDirectory() as place:
        file = Path(place) / "times.json"
        _both([sys.executable, __file__, "--steps", str(file), str(steps)], prefixes, "cable", "10.199.8.1")
        times = json.loads(file.read_text())
    return [{"link": rate, "exchange": kind, "step_seconds": _spread(values)} for kind, values in times.items()]


def _steps(file: Path, steps: int) -> None:
    from budgetnet.training import Training

    digits = data.load("digits", None)
    base = Config(dataset="digits", model=ModelConfig(name="whitened_cnn"), batch_size=16)
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with distributed.join(torch.device("cpu")) as group:
        both = {
            kind: Training(replace(base, exchange=kind), digits, torch.arange(500), torch.device("cpu"), group)  # type: ignore[arg-type]
            for kind in times
        }
        for turn in range(2 * (steps + 2)):
            kind = ("fp32", "bf16")[turn % 2]
            group.agree(True)
            started = time.perf_counter()
            both[kind].gradient(torch.arange(16), turn, 32)
            both[kind].update(0.01)
            times[kind].append(time.perf_counter() - started)
        if group.leader:
            file.write_text(json.dumps({kind: values[2:] for kind, values in times.items()}))


def main(arguments: list[str] | None = None) -> None:
    """Measure, reckon, and write the record."""
    parser = argparse.ArgumentParser(description="how far it pays to train on more devices")
    parser.add_argument("--quick", action="store_true", help="a look and no measurement")
    parser.add_argument("--slow-link", action="store_true", help="also over a link of 200 Mbit/s (as root)")
    parser.add_argument("--record", type=Path, default=RECORD, help="the file to write")
    parser.add_argument("--data", type=Path, help="the folder that holds CIFAR-10")
    for inner in ("--follow", "--exchange", "--steps"):
        parser.add_argument(inner, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.follow:
        recipe, folder, threads = options.follow
        return _train(load_recipe(Path(recipe)), Path(folder), Path(recipe), int(threads), lambda: False)
    if options.exchange:
        file, repeats, *sizes = options.exchange
        return _exchange(Path(file), int(repeats), [*map(int, sizes)])
    if options.steps:
        return _steps(Path(options.steps[0]), int(options.steps[1]))
    started = time.monotonic()
    folder = options.data or data.default_folder()
    networks = {name: described(name) for name in RECIPES}
    sizes = [4, 4 * networks["whitened_cnn"]["parameters"], 4 * networks[NETWORK]["parameters"]]
    record: dict[str, Any] = {
        "about": {
            "date": time.strftime("%Y-%m-%d"),
            "hardware": hardware(torch.device("cpu")),
            "torch": torch.__version__,
            "quick": options.quick,
        },
        "networks": networks,
        "assumed": ASSUMED,
        "reckoned": [
            {"way": way, "at": [simulate(networks[NETWORK], choice, gpus) for gpus in GPUS]}
            for way, choice in WAYS.items()
        ],
        "measured": [],
    }
    record["exchange"] = exchange(sizes, 5 if options.quick else 30)
    record["slow_link"] = slow_link("200mbit", 2 if options.quick else 12) if options.slow_link else []
    with tempfile.TemporaryDirectory() as place:
        for name in RECIPES:
            record["measured"].append(measure(name, folder, *((1, 1.0) if options.quick else (3, 3.0)), Path(place)))
            record["about"]["minutes"] = (time.monotonic() - started) / 60
            options.record.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {options.record}; `make table` shows it in docs/scale.md", file=sys.stderr)


if __name__ == "__main__":
    main()
