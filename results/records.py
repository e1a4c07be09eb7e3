"""Records behind the numbers that README and the recipes state.

    python results/records.py add NAME RUN [RUN ...]    sum finished runs of one recipe up in results/NAME.json
    python results/records.py table                     write README's results and docs/ablations.md from the records

A record holds what each run says of itself; nothing is typed in by hand.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import remedies
import yaml

from budgetnet import ablate
from budgetnet.config import to_yaml
from budgetnet.files import atomic_write
from budgetnet.recipe import load_recipe

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RECIPES = HERE.parent / "recipes"
ABLATIONS = HERE.parent / "docs" / "ablations.md"


def record(runs: list[Path]) -> dict[str, Any]:
    """What finished runs that differ in their seed alone amount to."""
    entries, plain = [], []
    for run in runs:
        config = load_recipe(run / "config.yaml")
        summary = json.loads((run / "summary.json").read_text())
        lines = (run / "metrics.csv").read_text().splitlines()
        entries.append(
            {
                "seed": config.seed,
                **summary["final"],
                "chosen_by": summary["chosen_by"],
                "parameters": summary["parameters"],
                "data_checksum": summary["tags"]["data_checksum"],
                "git_commit": summary["tags"]["git_commit"],
                "versions": summary["versions"],
                "hardware": summary["hardware"],
                "metrics": {
                    "columns": lines[0].split(","),
                    "rows": [[float(x) for x in r.split(",")] for r in lines[1:]],
                },
            }
        )
        plain.append(to_yaml(replace(config, seed=0)))
    if len(set(plain)) > 1:
        sys.exit("these runs differ in more than their seed")
    if len({entry["seed"] for entry in entries}) < len(entries):
        sys.exit("two of these runs have the same seed")
    keys = ("test_accuracy", "test_accuracy_tta", "val_accuracy", "minutes", "epochs")
    spread = {key: _spread([entry[key] for entry in entries]) for key in keys if key in entries[0]}
    return {"config": plain[0], "spread": spread, "runs": entries}


def _spread(values: list[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"n": len(values), "mean": statistics.mean(values), "std": deviation, "min": min(values), "max": max(values)}


def table() -> str:
    """README's table: a row for each record of trainings."""
    columns = [
        "record",
        "unlike the recipe",
        "data",
        "network",
        "parameters",
        "test accuracy",
        "averaged views",
        "minutes",
        "seeds",
        "hardware",
    ]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for path in sorted(HERE.glob("*.json")):
        found = json.loads(path.read_text())
        if "spread" not in found:
            continue
        first, spread = found["runs"][0], found["spread"]
        config = yaml.safe_load(found["config"])
        cells = [
            f"[`{path.stem}`](results/{path.name})",
            "<br>".join(f"`{key}: {json.dumps(value)}`" for key, value in unlike(path.stem, config).items()),
            config["dataset"],
            f"`{config['model']['name']}`",
            f"{first['parameters']:,}",
            _percent(spread["test_accuracy"]) if "test_accuracy" in spread else "none: trained on",
            _percent(spread["test_accuracy_tta"]) if "test_accuracy_tta" in spread else "",
            f"{spread['minutes']['mean']:.1f}",
            str(spread["minutes"]["n"]),
            "<br>".join(dict.fromkeys(_hardware(run["hardware"]) for run in found["runs"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    submissions = [f"- {_submission(path)}" for path in sorted(HERE.glob("*.json"))]
    return "\n".join([*lines, "", *(line for line in submissions if line != "- ")])


def unlike(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The options of a record that are not those of its recipe as it is now: of the one that its name begins with.

    What `auto` came to and the seed tell nothing of that, nor do options that one of the two does not know.

    Args:
        name: of the record.
        config: the whole configuration of its runs.
    """
    recipes = {path.stem: path for path in RECIPES.glob("*.yaml") if f"{name}-".startswith(f"{path.stem}-")}
    if not recipes:
        sys.exit(f"{name} does not begin with the name of a recipe")
    now = _flat(yaml.safe_load(to_yaml(load_recipe(recipes[max(recipes, key=len)]))))
    then = _flat(config)
    return {k: v for k, v in then.items() if k in now and now[k] not in (v, "auto") and k != "seed"}


def _flat(section: dict[str, Any]) -> dict[str, Any]:
    """Options by their whole names."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        found |= {f"{name}.{key}": v for key, v in _flat(value).items()} if isinstance(value, dict) else {name: value}
    return found


def _submission(path: Path) -> str:
    """What `budgetnet predict --labels --json` found, in a sentence; nothing for a record of trainings."""
    found = json.loads(path.read_text())
    if "predictions" in found or "scores" not in found:
        return ""
    low, high = found["scores"]["accuracy_interval"]
    without = "".join(f", {each['accuracy_before']:.2%} without {each['remedy']}" for each in found.get("remedies", []))
    return (
        f"`{found['checkpoint']}` on `{Path(found['input']).name}`, views {found['tta']}: "
        f"{found['scores']['accuracy']:.2%} of {found['images']:,} right (95 % interval {low:.2%} to {high:.2%})"
        f"{without}, [{path.name}](results/{path.name})"
    )


def _percent(spread: dict[str, Any]) -> str:
    deviation = "" if spread["std"] is None else f" ± {100 * spread['std']:.2f}"
    return f"{100 * spread['mean']:.2f}{deviation} %"


def _hardware(hardware: dict[str, Any]) -> str:
    if "gpu" in hardware:
        return str(hardware["gpu"])
    return f"{hardware['threads']} core{'' if hardware['threads'] == 1 else 's'} of {hardware['cpu'].partition(',')[0]}"


def with_table(readme: str) -> str:
    """The text of README with its results written anew."""
    return _with(readme, "results", table())


def with_ablations(page: str) -> str:
    """The text of docs/ablations.md with a table of each study, and of what remedies are worth, written anew."""
    for name, show in {"ablations": ablate.markdown, "remedies": remedies.markdown}.items():
        records = [json.loads(path.read_text()) for path in sorted((HERE / name).glob("*.json"))]
        page = _with(page, name, "".join(f"\n{show(record)}\n" for record in records))
    return page


def _with(page: str, name: str, text: str) -> str:
    """A page with what is between the comments of that name replaced."""
    begin, end = f"<!-- {name}: written by `make table` -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{text}\n{end}{after}"


def main(arguments: list[str]) -> None:
    """Run the command line."""
    if len(arguments) >= 3 and arguments[0] == "add":
        path = HERE / f"{arguments[1]}.json"
        atomic_write(path, (json.dumps(record([Path(a) for a in arguments[2:]]), indent=1) + "\n").encode())
        print(path)
    elif arguments == ["table"]:
        atomic_write(README, with_table(README.read_text()).encode())
        atomic_write(ABLATIONS, with_ablations(ABLATIONS.read_text()).encode())
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
