"""Training on an accelerator: steps a second, kernels a step, whether the host ever waits, and whole runs.

    PYTHONPATH=src python3 benchmarks/gpu.py --data DIR [--device cuda] [--recipes NAME ...] [--seeds N] [--record FILE]

For each recipe: how fast steps follow each other, as the recipe says and compiled, timed in turn; on CUDA with torch
set to raise an error wherever the host would wait. Then, with --seeds, the recipe from beginning to end for each seed:
seconds of training, and test accuracy.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from budgetnet import data, devices, splits
from budgetnet.config import Config
from budgetnet.data import Dataset
from budgetnet.errors import BudgetnetError
from budgetnet.files import atomic_write
from budgetnet.recipe import load_recipe
from budgetnet.train import train
from budgetnet.training import Training

RECIPES = Path(__file__).parent.parent / "recipes"


class Stepper:
    """One recipe's training, a step at a time."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        indices = torch.arange(len(dataset.train.images))
        self.device, self.count = device, 0
        self.training = Training(config, dataset, indices, device)
        if config.compile:
            self.training.forward = torch.compile(self.training.network)
        self.training.network.train()
        self.batches = splits.batches(indices.to(device), config.batch_size)
        self.size = dataset.train.images.shape[-1]

    def steps(self, n: int) -> float:
        """Make n steps on images of full size; the seconds they take, the device's last work included."""
        self.synchronize()
        started = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(n):
            self.training.gradient(self.batches[self.count % len(self.batches)], self.count, self.size)
            self.training.update(1e-3)
            self.count += 1
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        self.synchronize()
        return time.perf_counter() - started

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def launches(self, n: int) -> float | None:
        """Kernels that the host starts in a step; unknown where torch cannot tell."""
        if self.device.type != "cuda":
            return None
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            self.steps(n)
        return sum(event.count for event in found.key_averages() if "LaunchKernel" in event.key) / n


def speeds(
    name: str, dataset: Dataset, device: torch.device, modes: list[str], rounds: int, steps: int
) -> list[dict[str, Any]]:
    """How fast a recipe's steps are, eager and compiled, in turn."""
    config = load_recipe(RECIPES / f"{name}.yaml")
    config = replace(config, precision=devices.precision(config.precision, device), ema=0.0)
    steppers = {mode: Stepper(replace(config, compile=mode == "compiled"), dataset, device) for mode in modes}
    warm = {mode: stepper.steps(steps) for mode, stepper in steppers.items()}
    seconds: dict[str, list[float]] = {mode: [] for mode in steppers}
    for _ in range(rounds):
        for mode, stepper in steppers.items():
            seconds[mode].append(stepper.steps(steps))
    rows = []
    for mode, stepper in steppers.items():
        rates = [steps * config.batch_size / value for value in seconds[mode]]
        row = {"recipe": name, "network": config.model.name, "batch": config.batch_size, "mode": mode}
        row |= {"precision": config.precision, "min": min(rates), "median": statistics.median(rates), "max": max(rates)}
        row |= {"first_seconds": warm[mode], "kernels_a_step": stepper.launches(5)}
        rows.append(row)
        print(f"{name:14} {mode:9} batch {config.batch_size:5} {row['median']:12,.0f} images/s", flush=True)
    return rows


def whole_runs(name: str, folder: Path | None, device: torch.device, seeds: int) -> list[dict[str, Any]]:
    """A recipe from beginning to end, for each seed."""
    rows = []
    for seed in range(seeds):
        config = replace(load_recipe(RECIPES / f"{name}.yaml"), seed=seed)
        with tempfile.TemporaryDirectory() as place:
            final = train(config, Path(place) / "run", folder=folder, device=device, track=False)["final"]
        rows.append({"recipe": name, "seed": seed, "seconds": 60 * final["minutes"], **final})
        print(f"{name:14} seed {seed}: {rows[-1]['seconds']:.2f} s, test {final['test_accuracy']:.2%}", flush=True)
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--recipes", nargs="+", default=["speedrun", "quick", "reference"])
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=0, help="also train each recipe to its end, with so many seeds")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args()
    device = devices.find(options.device)
    devices.tune(device)
    found: dict[str, Any] = {"torch": torch.__version__, "hardware": devices.hardware(device), "steps": [], "runs": []}
    for name in options.recipes:
        dataset = data.load(load_recipe(RECIPES / f"{name}.yaml").dataset, options.data)
        found["steps"] += speeds(name, dataset, device, options.modes, options.rounds, options.steps)
        if options.seeds:
            found["runs"] += whole_runs(name, options.data, device, options.seeds)
        if options.record:
            atomic_write(options.record, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    try:
        main()
    except BudgetnetError as error:
        sys.exit(str(error))
