"""How long airbench94, the record holder for 94 % on one GPU, takes on this CPU in float32.

    python benchmarks/airbench.py CLONE [--data DIR] [--seeds N] [--epochs N] [--record FILE]

CLONE is a folder with https://github.com/KellerJordan/cifar10-airbench in it. Its airbench94_muon.py runs as it is, all
its choices untouched; only what it asks of CUDA, half precision and torchvision is answered by the CPU: float32, eager,
channels-last. The seconds are those that it counts itself: training with the whitening, without its evaluations. With
--epochs it is stopped after so many of its eight, which all do the same work, and its minutes are extrapolated;
then there is no accuracy.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import torch

from budgetnet import data, devices
from budgetnet.files import atomic_write

SCRIPT = "airbench94_muon.py"
EPOCHS = 8
"""Of a whole run of it."""


class Enough(Exception):  # noqa: N818  it ends a run that was asked to be short
    """As many epochs as were asked for."""


class Clock:
    """In place of torch.cuda.Event."""

    def __init__(self, enable_timing: bool) -> None:
        self.time = 0.0

    def record(self) -> None:
        """Note the time."""
        self.time = time.perf_counter()

    def elapsed_time(self, end: "Clock") -> float:
        """Milliseconds to `end`."""
        return 1e3 * (end.time - self.time)


class Normalize:
    """In place of torchvision's."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Subtract the mean, divide by the deviation."""
        return (images - self.mean) / self.std


def prepare(folder: Path | None) -> None:
    """Let torch answer for CUDA on the CPU, and put the images where the script looks for them."""
    vision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    transforms.Normalize = Normalize  # type: ignore[attr-defined]
    vision.transforms = transforms  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": vision, "torchvision.transforms": transforms}
    load = torch.load
    patches: list[tuple[Any, str, Any]] = [
        (torch.Tensor, "half", torch.Tensor.float),
        (torch.Tensor, "bfloat16", lambda tensor: tensor.float().clone()),
        (torch.nn.Module, "half", torch.nn.Module.float),
        (torch.cuda, "Event", Clock),
        (torch.cuda, "synchronize", lambda: None),
        (torch, "compile", lambda function: function),
        (torch, "load", lambda path, map_location: load(path, map_location="cpu")),
    ]
    for owner, name, replacement in patches:
        setattr(owner, name, replacement)
    dataset = data.load("cifar10", folder)
    Path("cifar10").mkdir()
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        pixels = images.images.permute(0, 2, 3, 1).contiguous()
        torch.save({"images": pixels, "labels": images.labels, "classes": list(dataset.classes)}, f"cifar10/{split}.pt")


def main() -> None:
    """Run it, print and record what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, choices=range(1, EPOCHS + 1), default=EPOCHS, help="(%(default)s)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args()
    script = (options.clone / SCRIPT).resolve()
    git = ["git", "-C", str(options.clone), "log", "-1", "--format=%H"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    record = options.record.resolve() if options.record else None
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = options.data.resolve() if options.data else None
        os.chdir(place)
        prepare(folder)
        sys.argv = [str(script)]
        program: dict[str, Any] = {"__name__": "airbench"}
        exec(compile(script.read_text(), str(script), "exec"), program)
        printed: list[dict[str, Any]] = []
        show = program["print_training_details"]

        def note(variables: dict[str, Any], is_final_entry: bool) -> None:
            keys = ("epoch", "train_acc", "val_acc", "tta_val_acc", "time_seconds")
            printed.append({key: variables.get(key) for key in keys})
            show(variables, is_final_entry)
            if len(printed) == options.epochs < EPOCHS:
                raise Enough

        program["print_training_details"] = note
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            printed.clear()
            model = program["CifarNet"]().to(memory_format=torch.channels_last)
            with contextlib.suppress(Enough):
                program["main"](seed, model)
            trained = printed[options.epochs - 1]
            row = {"seed": seed, "minutes": trained["time_seconds"] / 60 * EPOCHS / options.epochs}
            if options.epochs == EPOCHS:
                row |= {"test_accuracy": trained["val_acc"], "test_accuracy_tta": printed[-1]["tta_val_acc"]}
            parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
            rows.append(row | {"epochs_measured": options.epochs, "epochs": EPOCHS, "parameters": parameters})
            print(rows[-1], flush=True)
        os.chdir("/")
    found = {
        "script": SCRIPT,
        "commit": commit,
        "torch": torch.__version__,
        "hardware": devices.hardware(torch.device("cpu")),
        "minutes": statistics.mean(row["minutes"] for row in rows),
        "runs": rows,
    }
    if record:
        atomic_write(record, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
