"""A trained model in every format and precision of `budgetnet export`: what each costs and brings, as docs/deploy.md.

`python benchmarks/deploy.py RUN --data DIR` exports, compares and records; without RUN it only writes the table anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from figures import measured_by, with_section

from budgetnet import checkpoint, data, devices, export, origin
from budgetnet.files import atomic_write

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "results" / "benchmarks" / "deploy.json"
PAGE = ROOT / "docs" / "deploy.md"
MARKS = ("<!-- deploy: written by `make table` -->", "<!-- end of deploy -->")
_NAMES = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": "model.safetensors", "openvino": "model.xml"}
_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino")


def measure(run: Path, folder: Path | None, limit: int) -> dict[str, Any]:
    """Export a run in every format and precision that this machine has the packages for, and compare each file."""
    classifier = checkpoint.load(run, device="cpu")
    trained = origin.trained_on(run, classifier)
    dataset = data.load(trained["dataset"], folder, classifier.image_size)
    rows = []
    for form, name in _NAMES.items():
        if form == "openvino" and find_spec("openvino") is None:
            continue
        for precision in export.PRECISIONS[form]:
            with tempfile.TemporaryDirectory() as place:
                compared = export.export(
                    classifier, run, Path(place) / name, dataset, form=form, precision=precision, limit=limit
                )
            rows.append(compared.to_dict())
            print(export.render(compared, Path(name)), flush=True)
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "run": run.name,
        "network": classifier.model.name,
        "parameters": classifier.parameters,
        "data_checksum": dataset.checksum,
        "dataset": dataset.name,
        "rows": rows,
        "versions": versions,
        "hardware": devices.hardware(torch.device("cpu")),
    }


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    lines = [
        "| format | precision | size | accuracy | points lost | same class | largest difference | 1 image | 7 images |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        times = (f"{row['latency'][n]['times_as_fast']:.1f}" for n in ("1", "7"))
        lines.append(
            f"| {row['format']} | {row['precision']} | {row['bytes'] / 1e6:.2f} MB | {row['accuracy']:.2%} | "
            f"{row['points_lost']:.2f} | {row['agreement']:.2%} | {max(row['largest_difference'].values()):.1g} | "
            f"{' | '.join(times)} |"
        )
    first = record["rows"][0]
    took = first["latency"]
    return "\n".join(
        [
            *lines,
            "",
            f"`{record['run']}`: `{record['network']}`, {record['parameters']:,} parameters, "
            f"{first['original_bytes'] / 1e6:.2f} MB in float32; {first['images']:,} {first['split']} images of "
            f"{record['dataset']}, of which PyTorch puts {first['original_accuracy']:.2%} right. The last two columns: "
            f"how many times as fast as PyTorch, which took {took['1']['original']:.1f} and "
            f"{took['7']['original']:.1f} ms beside the first row, in turn, {measured_by(record, RECORD)}",
        ]
    )


def with_table(page: str) -> str:
    """A page with the table of the record between its marks."""
    return with_section(page, MARKS, table(json.loads(RECORD.read_text())))


def main() -> None:
    """Measure, where a run is named, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=1000, help="images to compare with (default 1000)")
    options = parser.parse_args()
    if options.run:
        atomic_write(RECORD, (json.dumps(measure(options.run, options.data, options.limit), indent=1) + "\n").encode())
    atomic_write(PAGE, with_table(PAGE.read_text()).encode())


if __name__ == "__main__":
    main()
