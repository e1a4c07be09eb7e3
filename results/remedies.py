"""What each remedy at test time is worth to models, by validation images, clean and corrupted (severity 3 of 5).

    python results/remedies.py NAME MODEL [MODEL ...] [--data DIR] [--limit N]

writes results/remedies/NAME.json after each `budgetnet evaluate`, and does not repeat what that file holds already. The
models differ in their seed alone. What is fitted (weights of views, a temperature) is fitted on all validation images,
of which those that are scored are a part.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import budgetnet
from budgetnet import checkpoint, seeds
from budgetnet.files import atomic_write

HERE = Path(__file__).parent / "remedies"
REMEDIES = (
    "",
    "--tta flip",
    "--tta flip-shift",
    "--tta flip-shift --view-weights fit",
    "--tta crops",
    "--norm-statistics target",
    "--norm-statistics target --norm-prior 16",
    "--temperature fit",
    "--tta flip --norm-statistics target --temperature fit",
)
"""Options of `evaluate`; the others are compared with the first, which is none."""
SEVERITY = 3
_SETS = {"mean_corruption": "corrupted", "clean": "clean"}


def measure(path: Path, models: Sequence[str], limit: int, data: Path | None) -> None:
    """Score each model with each remedy; `path` is rewritten after each."""
    before = json.loads(path.read_text())["rows"] if path.is_file() else []
    rows = []
    for model in models:
        loaded = budgetnet.load(model)
        common = {"model": Path(model).name, "weights": checkpoint.digest({}, loaded.network.state_dict())}
        common |= {"network": loaded.model.name, "parameters": loaded.parameters}
        for options in REMEDIES:
            row = common | {"options": options, "images": limit, "severity": SEVERITY}
            kept = next((old for old in before if row.items() <= old.items()), None)
            rows.append(kept or row | _evaluate(model, options, limit, data))
            atomic_write(path, (json.dumps({"rows": rows}, indent=1) + "\n").encode())
            clean, corrupted = (rows[-1][kind]["accuracy"] for kind in ("clean", "mean_corruption"))
            print(f"{model}, {options or 'none'}: {clean:.2%}, corrupted {corrupted:.2%}", flush=True)


def _evaluate(model: str, options: str, limit: int, data: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "budgetnet", "evaluate", model, "--split", "val", "--shift", "all", "--json"]
    command += ["--severity", str(SEVERITY), "--limit", str(limit), *(["--data", str(data)] if data else [])]
    command += shlex.split(options)
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    fitted = [{key: each[key] for key in each.keys() & {"temperature", "shares"}} for each in found.get("remedies", [])]
    return {key: found[key] for key in ("engine", *_SETS)} | {"fitted": [each for each in fitted if each]}


def compare(record: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Each remedy on one kind of images (clean, mean_corruption): mean accuracy and calibration error over the models,
    and the difference to none, as `seeds.difference` has it."""
    measured = {options: [row for row in record["rows"] if row["options"] == options] for options in REMEDIES}
    base = {row["model"]: row[kind]["accuracy"] for row in measured[""]}
    found = []
    for options, rows in measured.items():
        if not rows:  # of a record that is not complete yet
            continue
        accuracies = {row["model"]: row[kind]["accuracy"] for row in rows}
        entry = {"options": options, **seeds.spread(list(accuracies.values()))}
        entry["ece"] = sum(row[kind]["ece"] for row in rows) / len(rows)
        if options:
            differences = [accuracy - base[model] for model, accuracy in accuracies.items()]
            entry |= seeds.difference(differences, seeds.accuracy_noise(entry["mean"], rows[0]["images"]))
        found.append(entry)
    return found


def markdown(record: Mapping[str, Any]) -> str:
    """The comparison as a table for a page."""
    first = record["rows"][0]
    names = sorted({row["model"] for row in record["rows"]})
    models, named = len(names), ", ".join(f"`{name}`" for name in names)
    heads = "".join(f" {title}, % | points | ECE, % |" for title in _SETS.values())
    lines = [
        f"{named}: `{first['network']}`, {first['parameters']:,} parameters, {models} seed{'s' if models > 1 else ''}, "
        f"{first['images']:,} validation images, corrupted by severity {first['severity']}; \\* is beyond noise:",
        "",
        f"| remedy |{heads}",
        f"|---|{'--:|--:|--:|' * len(_SETS)}",
    ]
    for entries in zip(*(compare(record, kind) for kind in _SETS), strict=True):
        cells = [f"`{entries[0]['options']}`" if entries[0]["options"] else "none"]
        for entry in entries:
            points = "" if "verdict" not in entry else seeds.percent(entry["difference"], entry["interval"], sign=True)
            mark = "\\*" if entry.get("verdict") == "beyond noise" else ""
            cells += [seeds.percent(entry["mean"], entry["std"]), points + mark, seeds.percent(entry["ece"], None)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=1000)
    options = parser.parse_args(arguments)
    HERE.mkdir(exist_ok=True)
    measure(HERE / f"{options.name}.json", options.models, options.limit, options.data)


if __name__ == "__main__":
    main()
