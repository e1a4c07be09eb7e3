"""Bad days of the MLflow server, one after another: what happens to a training, and what `budgetnet track` mends.

    python reliability/days.py [--tries N] [--seed N]

A tiny network is trained on digits under a real MLflow server whose door fails from some request on, or whose database
another writer locks. A try counts as survived if the fault struck and there was one warning of it (or none, where half
of an answer said enough), weights and metrics equal those of an undisturbed run bit for bit, no epoch waited for the
server, and afterwards, the server being well, `track` leaves one MLflow run with every epoch's metrics once, all
parameters, files, one model, and the status FINISHED; a second `track` changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from faults import Fault, write
from mlflow_server import Gate, serving, stored

from budgetnet import checkpoint, mlclient, progress, tracking, words
from budgetnet.config import Config, ModelConfig, OptimizerConfig, StageConfig
from budgetnet.errors import BudgetnetError
from budgetnet.metrics import read_epochs
from budgetnet.runs import read
from budgetnet.train import train

KINDS = {
    "shut": "the MLflow server dies",
    "hang": "the MLflow server takes requests and never answers",
    "lose": "answers of the MLflow server are lost on the way",
    "half": "answers of the MLflow server break off in the middle",
    "500": "the MLflow server answers 500",
    "garbage": "the MLflow server answers garbage",
    "locked": "another writer locks the MLflow server's database",
}
HELD = (
    "weights and metrics of the training equal an undisturbed run's bit for bit, no epoch waits, and `track` completes "
    "the MLflow run later, each point once"
)
TINY = Config(
    dataset="digits",
    val_size=1200,
    model=ModelConfig(name="residual", stages=[StageConfig(width=8, depth=1, stride=4), StageConfig(width=8, depth=1)]),
    epochs=4,
    batch_size=32,
    optimizer=OptimizerConfig(lr=0.05),
    checkpoint_minutes=None,
)
FILES = {"config.yaml", "metrics.csv", "system.csv", "summary.json", "best.safetensors"}
WAITED = 0.5  # seconds: half of what the server is given to answer in


class Timed(tracking.Tracker):
    """Notes how long the training stood still for an epoch to be logged."""

    longest = 0.0

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """As ever, timed."""
        began = time.monotonic()
        super().log_epoch(row)
        Timed.longest = max(Timed.longest, time.monotonic() - began)


class Quiet(progress.Progress):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Keep one."""
        self.warnings.append(text)


def metrics(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that a clock fills."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


def differences(run: Path, undisturbed: Path) -> list[str]:
    """What is not as in the undisturbed run."""
    mine, theirs = (checkpoint.load_state(each / "last.ckpt")["network"] for each in (run, undisturbed))
    found = [name for name, value in theirs.items() if not torch.equal(mine[name], value)]
    return found + (["metrics.csv"] if metrics(run) != metrics(undisturbed) else [])


def incomplete(found: dict[str, Any], run: Path) -> list[str]:
    """What MLflow does not have, or has more than once, of a finished run."""
    rows = read_epochs(run)
    expected = {name: [(int(row["epoch"]), row[name]) for row in rows] for name in rows[0] if name != "epoch"}
    final = json.loads((run / "summary.json").read_text())["final"]
    expected |= {f"final/{name}": [(len(rows), float(value))] for name, value in final.items()}
    wrong = [name for name, points in expected.items() if found["points"].get(name) != points]
    wrong += [f"unexpected {name}" for name in found["points"] if name not in expected]
    wrong += [] if found["status"] == "FINISHED" else [f"status {found['status']}"]
    wrong += [] if set(found["files"]) == FILES else [f"files {sorted(found['files'])}"]
    wrong += [] if [status for _, status in found["models"]] == ["READY"] else [f"models {found['models']}"]
    wrong += [] if found["params"].get("optimizer.lr") == "0.05" and len(found["params"]) > 50 else ["parameters"]
    wrong += [] if [each[0] for each in found["inputs"]] == ["test", "training", "validation"] else ["data sets"]
    wrong += [] if found["note"] == words.note(read(run)) else ["description"]
    return wrong + ([] if "data_checksum" in found["tags"] else ["tags"])


def a_try(kind: str, after: int, folder: Path, gate: Gate, database: Path, undisturbed: Path) -> list[str] | None:
    """Train under one fault, mend the server, complete the record; what is wrong afterwards, or None if none struck."""
    run = folder / "run"
    with contextlib.ExitStack() as stack:
        if kind == "locked":
            other = stack.enter_context(contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=30)))
            other.execute("BEGIN IMMEDIATE")
        else:
            gate.fail(kind, after=after)
        Timed.longest, told = 0.0, Quiet()
        train(TINY, run, progress=told)
        struck = gate.recover() or kind == "locked"
    if not struck:
        return None
    wrong = differences(run, undisturbed)
    # Half of an answer that has no more to say than that all is well does no harm.
    harmless = kind == "half" and not told.warnings and not incomplete(stored(gate.uri, run), run)
    if len(told.warnings) != 1 and not harmless:
        wrong.append(f"{len(told.warnings)} warnings instead of one")
    if not Timed.longest:
        wrong.append("no epoch was timed")
    if Timed.longest > WAITED:
        wrong.append(f"an epoch waited {Timed.longest:.2f} s")
    for _ in range(2):
        try:
            tracking.send(run, load_classifier=checkpoint.load_classifier, warn=wrong.append)
            wrong += incomplete(stored(gate.uri, run), run)
        except (AssertionError, BudgetnetError) as error:
            wrong.append(str(error))
    return wrong


def main() -> None:
    """Run the campaign and write its record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=20, help="of each kind of fault")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.set_num_threads(1)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    # Shorter than a user has them, so that a server that hangs costs the campaign seconds.
    os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0"}
    mlclient.OPEN_SECONDS, mlclient.CALL_SECONDS, mlclient.UPLOAD_SECONDS = 4.0, 3.0, 6.0
    vars(sys.modules["budgetnet.train"])["Tracker"] = Timed  # which the function of that name hides
    began = time.monotonic()
    survived: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        train(TINY, root / "undisturbed", track=False)
        (root / "server").mkdir()
        with serving(root / "server") as port:
            gate, database = Gate(port), root / "server" / "mlflow.db"
            os.environ["MLFLOW_TRACKING_URI"] = gate.uri
            try:
                before = gate.requests
                train(TINY, root / "well")
                requests = gate.requests - before
                for _ in range(options.tries):
                    for kind in KINDS:
                        wrong = None
                        while wrong is None:  # the number of requests varies, and some come too late to strike
                            after = rng.randrange(requests)
                            folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=root))
                            wrong = a_try(kind, after, folder, gate, database, root / "undisturbed")
                        survived[kind] += not wrong
                        print(f"{kind} after {after} requests: {'; '.join(wrong) or 'survived'}", flush=True)
            finally:
                gate.close()
    record = [
        Fault(fault=text, held=HELD, tried=options.tries, survived=survived[kind]) for kind, text in KINDS.items()
    ]
    command = f"python reliability/days.py --tries {options.tries} --seed {options.seed}"
    print(write("days", command, record, time.monotonic() - began))


if __name__ == "__main__":
    main()
