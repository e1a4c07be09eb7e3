"""The tests of `make test` in orders drawn by chance: whether one passes may not depend on which ran before it.

`python reliability/orders.py --runs 20` takes some seven minutes a run, and goes on where it stopped: the record has
each run with its order's seed and the commit that was tested. `make shuffle SEED=7` is one of these orders.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faults

RECORD = faults.RECORDS / "orders.json"
COMMAND = "python reliability/orders.py"


def run(folder: Path, seed: int) -> dict[str, Any]:
    """Run the tests of a project once.

    Args:
        folder: the project, where pytest finds its settings.
        seed: of the order.

    Returns:
        What the record says of the run: how many passed and were skipped, which failed, and the minutes.

    Raises:
        RuntimeError: pytest did not come so far.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-n", "auto", "--dist", "loadfile"]
    order = ["--random-order-bucket=global", f"--random-order-seed={seed}"]
    began = time.monotonic()
    with subprocess.Popen([*command, *order], cwd=folder, stdout=subprocess.PIPE, text=True) as running:
        lines = []
        for line in running.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if running.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {running.returncode}, so that nothing is known of the tests")
    failed = [found[1] for line in lines if (found := re.match(r"(?:FAILED|ERROR) (.+?)(?: - .*)?$", line))]
    if bool(failed) != bool(running.returncode):
        raise RuntimeError(f"pytest ended with {running.returncode}, but names {len(failed)} tests that failed")
    count = dict.fromkeys(("passed", "skipped"), 0)
    count |= {what: int(number) for number, what in re.findall(r"(\d+) (passed|skipped)\b", lines[-1])}
    return {
        "seed": seed,
        **count,
        "failed": failed,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def campaign(folder: Path, runs: int) -> Sequence[dict[str, Any]]:
    """Run the orders of seeds 1, 2, ... that the record has not, writing it after each; all of them."""
    found = json.loads(RECORD.read_text())["runs"] if RECORD.exists() else []
    tested = faults.commit(folder)  # before the record is another
    for seed in sorted({*range(1, runs + 1)} - {one["seed"] for one in found}):
        found.append({"commit": tested, **run(folder, seed)})
        passed = sum(not one["failed"] for one in found)
        fault = faults.Fault(
            fault="the tests in an order drawn by chance",
            held="every test passes",
            tried=len(found),
            survived=passed,
        )
        seconds = 60 * sum(one["minutes"] for one in found)
        faults.write(RECORD.stem, f"{COMMAND} --runs {runs}", [fault], seconds, runs=found)
    return found


def main() -> None:
    """Exit status 1 says that a test failed in some order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="how many orders (20)")
    found = campaign(faults.ROOT, parser.parse_args().runs)
    sys.exit(any(one["failed"] for one in found))


if __name__ == "__main__":
    main()
