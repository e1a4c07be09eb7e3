"""A trained model made smaller in several ways: what each costs and brings, on a CPU and in int8, as docs/deploy.md.

`python benchmarks/small.py RUN --data DIR` makes, trains, measures and records; without RUN it only writes the table
anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import measured_by, with_section

from budgetnet import checkpoint, compress, data, deployed, devices, export, origin, progress
from budgetnet.files import atomic_write

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "results" / "benchmarks" / "small.json"
PAGE = ROOT / "docs" / "deploy.md"
MARKS = ("<!-- small: written by `make table` -->", "<!-- end of small -->")
STUDENT = ROOT / "recipes" / "speedrun.yaml"
WAYS: dict[str, dict[str, Any]] = {
    "sparsity 0.3": {"sparsity": 0.3, "options": ["--epochs", "1"]},
    "sparsity 0.5": {"sparsity": 0.5, "options": ["--epochs", "1"]},
    "sparsity 0.5 longer": {"sparsity": 0.5, "options": ["--epochs", "2"]},
    "sparsity 0.7": {"sparsity": 0.7, "options": ["--epochs", "1"]},
    "rank 0.25": {"rank": 0.25, "options": ["--epochs", "1"]},
    "distill": {"student": STUDENT, "options": ["--model.width", "32", "--epochs", "2", "--distill.cached", "true"]},
}
CALLS = 100  # of which the fastest counts
IMAGES = 20  # that a process runs, one at a time, for its peak memory
PROCESSES = 3  # of which the median counts
# A process that does nothing else: only the difference to one without a model is the model's. What getrusage says is no
# good here, as it begins with what the process was forked from.
_PROCESS = """
import sys
import numpy, onnxruntime
if len(sys.argv) > 1:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    for _ in range(int(sys.argv[2])):
        session.run(None, {"images": numpy.zeros((1, *map(int, sys.argv[3:])), numpy.uint8)})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_memory(file: Path | None, image_size: int = 32) -> int:
    """Bytes of memory that a new Python process takes at its peak, which runs a file by ONNX Runtime; on Linux.

    Args:
        file: of `export` in ONNX's format, run on one image at a time; None is what the process takes without one.
        image_size: side in pixels.
    """
    arguments = [] if file is None else [str(file), str(IMAGES), str(image_size), str(image_size), "3"]
    found = [
        subprocess.run(
            [sys.executable, "-c", _PROCESS, *arguments], capture_output=True, text=True, check=True, timeout=120
        ).stdout
        for _ in range(PROCESSES)
    ]
    return 1024 * int(statistics.median(map(int, found)))


def fastest(function: deployed.Function, image_size: int) -> float:
    """Milliseconds of one image, of the fastest call: whatever else the machine does only adds."""
    image = np.zeros((1, image_size, image_size, 3), np.uint8)
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        function(image)
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def exported(run: Path, folder: Path | None, limit: int) -> dict[str, Any]:
    """The run's files in ONNX's format: size, loss of accuracy in validation, time of an image, and peak memory."""
    classifier = checkpoint.load(run, device="cpu")
    trained = origin.trained_on(run, classifier)
    dataset = data.load(trained["dataset"], folder, classifier.image_size)
    found: dict[str, Any] = {}
    empty = peak_memory(None)
    for precision in ("fp32", "int8"):
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "model.onnx"
            compared = export.export(
                classifier, run, file, dataset, precision=precision, split="val", limit=limit, most_lost=100
            )
            found[precision] = {
                "bytes": compared.bytes,
                "points_lost": compared.points_lost,
                "milliseconds": fastest(deployed.load_onnx(file), classifier.image_size),
                "peak_memory": peak_memory(file, classifier.image_size) - empty,
            }
    return {"images": limit, "process": empty, **found}


def measure(run: Path, folder: Path | None, work: Path, ways: list[str], limit: int) -> dict[str, Any]:
    """Make the run smaller in each way, and measure it and what comes of it."""
    rows: list[dict[str, Any]] = []
    for name in ways:
        way = WAYS[name]
        request = compress.Request(model=run, **way)
        place = work / name.replace(" ", "-")
        # The device of the other figures; no report, as nobody reads it.
        made = compress.compress(
            request, place, folder=folder, progress=progress.PlainProgress(sys.stdout), track=False, report=False
        )
        made["compressed"]["model"] = place.name
        made["original"]["model"] = run.name
        made["asked"]["distill_into"] = way["student"].name if "student" in way else None
        summary = json.loads((place / "summary.json").read_text())
        about = {"name": name, "minutes": summary["final"]["minutes"], "git_commit": summary["tags"]["git_commit"]}
        rows.append({**about, **made, "onnx": exported(place, folder, limit)})
        print(compress.render(made), flush=True)
    return {
        "run": run.name,
        "original": rows[0]["original"] | {"onnx": exported(run, folder, limit)},
        "rows": rows,
        "versions": {package: version(package) for package in ("torch", "onnx", "onnxruntime")},
        "hardware": devices.hardware(torch.device("cpu")),
    }


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    original = record["original"]
    lines = [
        "| network | epochs | parameters | file | validation | test | 1 image | 64 images | int8 file | int8 loses "
        "| int8, 1 image | int8 memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        _line("as it was", "-", original, original["onnx"], ("1", "1")),
    ]
    for row in record["rows"]:
        times = [f"{row['latency'][batch]['times_as_fast']:.1f}" for batch in ("1", "64")]
        lines.append(_line(_way(row), str(row["epochs"]), row["compressed"], row["onnx"], (times[0], times[1])))
    first = record["rows"][0]["latency"]
    onnx = original["onnx"]
    return "\n".join(
        [
            *lines,
            "",
            f"`{record['run']}`: `{original['network']}`. Weights were chosen by the validation images; test images "
            f"were looked at once a row, at its end. One seed each. 1 and 64 images: how many times as fast as the "
            f"original in float32, which took {first['1']['original']:.1f} and {first['64']['original']:.0f} ms "
            "beside the first row (the fastest of calls in turn). int8 loses: points of validation accuracy, on "
            f"{onnx['images']:,} images; int8, 1 image: milliseconds. int8 memory: what a Python process with ONNX "
            f"Runtime takes at its peak, one image at a time, more than the {onnx['process'] / 1e6:.0f} MB that it "
            "takes without a model; in float32 the original takes "
            f"{onnx['fp32']['peak_memory'] / 1e6:.1f} MB more. {measured_by(record, RECORD)}",
        ]
    )


def _way(row: dict[str, Any]) -> str:
    asked = row["asked"]
    if asked["distill_into"]:
        options = dict(zip(row["options"][::2], row["options"][1::2], strict=True))
        return f"`--distill-into {asked['distill_into']}`, width {options['--model.width']}"
    return " ".join(f"`--{key} {asked[key]:g}`" for key in ("sparsity", "rank") if asked[key] is not None)


def _line(name: str, epochs: str, of: dict[str, Any], onnx: dict[str, Any], times: tuple[str, str]) -> str:
    int8 = onnx["int8"]
    cells = [
        name,
        epochs,
        f"{of['parameters']:,}",
        f"{of['bytes'] / 1e6:.2f} MB",
        f"{of['val_accuracy']:.2%}",
        f"{of['test_accuracy']:.2%}",
        *times,
        f"{int8['bytes'] / 1e6:.2f} MB",
        f"{int8['points_lost']:.2f}",
        f"{int8['milliseconds']:.2f}",
        f"{int8['peak_memory'] / 1e6:.1f} MB",
    ]
    return f"| {' | '.join(cells)} |"


def with_table(page: str) -> str:
    """A page with the table of the record between its marks."""
    return with_section(page, MARKS, table(json.loads(RECORD.read_text())))


def main() -> None:
    """Make and measure, where a run is named, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/small"), help="where the runs go (default runs/small)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    parser.add_argument("--limit", type=int, default=1000, help="images to compare int8 with (default 1000)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.run:
        torch.set_num_threads(options.threads)
        record = measure(options.run, options.data, options.work, options.ways, options.limit)
        atomic_write(RECORD, (json.dumps(record, indent=1) + "\n").encode())
    atomic_write(PAGE, with_table(PAGE.read_text()).encode())


if __name__ == "__main__":
    main()
