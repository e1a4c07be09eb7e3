"""All tests in orders drawn by chance, again and again: whether one passes may not depend on which ran before it.

`python reliability/orders.py --runs 20` takes eight minutes a run, and goes on where it stopped: the record has each
run with its order's seed and the commit that was tested. `make shuffle SEED=7` is one of these orders.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

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
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", f"--junitxml={report}"]
        order = ["--random-order-bucket=global", f"--random-order-seed={seed}"]
        done = subprocess.run([*command, *order], cwd=folder)
        if done.returncode not in (0, 1) or not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}, so that nothing is known of the tests")
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = int(suite.attrib["skipped"])
    return {
        "seed": seed,
        "commit": commit(folder),
        "passed": int(suite.attrib["tests"]) - skipped - len(failed),
        "skipped": skipped,
        "failed": failed,
        "minutes": round(float(suite.attrib["time"]) / 60, 1),
    }


def commit(folder: Path) -> str:
    """What is tested."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def campaign(folder: Path, runs: int) -> Sequence[dict[str, Any]]:
    """Run the orders of seeds 1, 2, ... that the record has not, writing it after each; all of them."""
    found = json.loads(RECORD.read_text())["runs"] if RECORD.exists() else []
    for seed in sorted({*range(1, runs + 1)} - {one["seed"] for one in found}):
        found.append(run(folder, seed))
        passed = sum(not one["failed"] for one in found)
        fault = faults.Fault(
            fault="all tests in an order drawn by chance",
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
