"""The record of a campaign of faults, and docs/reliability.md's table of all of them.

`python reliability/faults.py` writes the table. A campaign (a file beside this one) ends with `write`; nothing in the
table is typed in by hand.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from budgetnet.files import atomic_write

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "results" / "reliability"
PAGE = ROOT / "docs" / "reliability.md"
MARKS = ("<!-- faults: written by `make table` -->", "<!-- end of faults -->")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault, and what came of trying it."""

    fault: str
    """What was done, as the table says it: "killed (SIGKILL) while a checkpoint is written"."""
    held: str
    """What had to hold for a try to count as survived: "weights and metrics equal those of an undisturbed run"."""
    tried: int
    """How often."""
    survived: int
    """How often what had to hold did."""


def write(
    campaign: str,
    command: str,
    faults: Sequence[Fault],
    seconds: float,
    figures: Mapping[str, str] | None = None,
    **details: Any,
) -> Path:
    """Write `results/reliability/CAMPAIGN.json`.

    Args:
        campaign: the record's name.
        command: what repeats it, from the root of the repository.
        faults: what was tried, in the order of the table.
        seconds: how long the campaign took.
        figures: what was measured on the way, by its name, with its unit.
        details: what else the record holds, which the table does not show.
    """
    record = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "git_commit": commit(ROOT),
        "seconds": round(seconds, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "faults": [asdict(fault) for fault in faults],
        "figures": dict(figures or {}),
        **details,
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{campaign}.json"
    atomic_write(path, (json.dumps(record, indent=1) + "\n").encode())
    return path


def commit(folder: Path) -> str | None:
    """What a checkout is at, with `-dirty` where it has been changed, but for records and the pages that show them.

    None where git does not know.
    """
    git = ["git", "-C", str(folder)]
    at = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True).stdout.strip()
    others = [*git, "diff", "--quiet", "HEAD", "--", ".", ":(exclude)results/reliability", ":(exclude)docs"]
    return (at + ("-dirty" if subprocess.run(others).returncode else "")) if at else None


def table() -> str:
    """Every fault of every record, in Markdown."""
    lines = ["| fault | what must hold | tried | survived | campaign |", "|---|---|--:|--:|---|"]
    commands = []
    for path in sorted(RECORDS.glob("*.json")):
        found = json.loads(path.read_text())
        lines += [
            f"| {one['fault']} | {one['held']} | {one['tried']:,} | {one['survived']:,} | {path.stem} |"
            for one in found["faults"]
        ]
        commands.append(
            f"- {path.stem}: `{found['command']}`, {found['seconds'] / 60:.1f} minutes on {found['date']}, commit "
            f"{found['git_commit']}, [record](../results/reliability/{path.name})"
        )
        if figures := found.get("figures"):
            commands[-1] += ". " + "; ".join(f"{name}: {value}" for name, value in figures.items())
    return "\n".join([*lines, "", *commands])


def main() -> None:
    """Write the table into docs/reliability.md."""
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    atomic_write(PAGE, f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{after}".encode())


if __name__ == "__main__":
    main()
