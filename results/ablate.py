"""What each choice of a recipe is worth: the recipe without it, or with another, over several seeds.

    python results/ablate.py SPEC.yaml [--seeds N] [--data DIR] [--runs DIR]

A specification names a recipe, what all its variants have, and the variants as command-line options:

    recipe: ../../recipes/speedrun.yaml
    always: --val-size 5000
    variants:
      as it is: ""
      images of full size throughout: --progressive.size null

Variants take turns, seed by seed, so that whatever else the machine does falls on all alike. Finished runs under --runs
are taken as they are and stopped ones go on, so the command may be repeated at any time. Judged by validation accuracy
after the last epoch; the test set decides nothing. Writes SPEC.json, and the table of docs/ablations.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
from pathlib import Path
from typing import Any

import yaml

from budgetnet import config as configuration
from budgetnet import devices
from budgetnet.files import atomic_write
from budgetnet.train import train

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "ablations.md"
BEGIN, END = "<!-- ablations: written by `results/ablate.py` -->", "<!-- end of ablations -->"


def ablate(spec: Path, seeds: int, folder: Path | None, runs: Path, device: str) -> dict[str, Any]:
    """Train what is missing, write the record after each run, and return it."""
    asked = yaml.safe_load(spec.read_text())
    recipe = spec.parent / asked["recipe"]
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name, options in asked["variants"].items():
            overrides = [*shlex.split(asked["always"]), *shlex.split(options), "--seed", str(seed)]
            run = runs / f"{spec.stem}-{list(asked['variants']).index(name)}-{seed}"
            config = configuration.load(recipe, overrides)
            summary = train(config, run, folder=folder, device=devices.find(device), track=False, resume=run.is_dir())
            with open(run / "metrics.csv", newline="") as file:
                last = list(csv.DictReader(file))[-1]
            row = {"variant": name, "options": options, "seed": seed, "val_accuracy": float(last["val_accuracy"])}
            row |= {"minutes": summary["final"]["minutes"], "git_commit": summary["tags"]["git_commit"]}
            rows.append(row)
            print(f"{name}, seed {seed}: {row['val_accuracy']:.2%}, {row['minutes']:.1f} minutes", flush=True)
            found = {"recipe": recipe.name, "always": asked["always"], "hardware": summary["hardware"], "runs": rows}
            atomic_write(spec.with_suffix(".json"), (json.dumps(found, indent=1) + "\n").encode())
    return found


def table(record: dict[str, Any]) -> str:
    """A line for each variant: validation accuracy and minutes, and the difference to the first, seed by seed."""
    variants: dict[str, list[dict[str, Any]]] = {}
    for row in record["runs"]:
        variants.setdefault(row["variant"], []).append(row)
    base = {row["seed"]: row["val_accuracy"] for row in next(iter(variants.values()))}
    lines = [
        f"`{record['recipe']}`, `{record['always']}`:",
        "",
        "| variant | options | validation accuracy | against the first, points | minutes | seeds |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, rows in variants.items():
        accuracies = [100 * row["val_accuracy"] for row in rows]
        differences = [100 * (row["val_accuracy"] - base[row["seed"]]) for row in rows if row["seed"] in base]
        against = "" if rows[0]["variant"] == next(iter(variants)) else _spread(differences, "+.2f")
        minutes = statistics.mean(row["minutes"] for row in rows)
        options = f"`{rows[0]['options']}`" if rows[0]["options"] else ""
        cells = [name, options, f"{_spread(accuracies, '.2f')} %", against, f"{minutes:.1f}", str(len(rows))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def with_tables(page: str) -> str:
    """The text of docs/ablations.md with the table of each record written anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [table(json.loads(path.read_text())) for path in sorted((HERE / "ablations").glob("*.json"))]
    return "\n\n".join([f"{before}{BEGIN}", *tables, f"{END}{after}"]) if tables else f"{before}{BEGIN}\n{END}{after}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, metavar="SPEC.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "ablations")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    print(table(ablate(options.spec, options.seeds, options.data, options.runs, options.device)))
    if options.spec.resolve().parent == HERE.resolve() / "ablations":
        atomic_write(PAGE, with_tables(PAGE.read_text()).encode())


if __name__ == "__main__":
    main()
