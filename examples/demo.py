"""The whole job in a minute or two on the handwritten digits that scikit-learn carries: train, test, submit.

    make demo

Each step is a command that a user could type; this file only types them, and makes the unlabelled images to submit.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from budgetnet import data

AIM = 0.98
RUN = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"


def budgetnet(*arguments: str) -> None:
    """Show a command, run it, and end with its exit code when it fails."""
    print(f"\n$ budgetnet {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "budgetnet", *arguments], check=False).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Train, evaluate, submit, and say where everything lies."""
    os.chdir(Path(__file__).parent.parent)
    budgetnet("train", "recipes/digits.yaml", "--output", str(RUN))
    budgetnet("evaluate", str(RUN))

    unlabelled, submission = RUN / "digits_test.npy", RUN / "submission.csv"
    np.save(unlabelled, data.load("digits", None).test.images.permute(0, 2, 3, 1).numpy())
    budgetnet("predict", str(RUN), str(unlabelled), "--output", str(submission))

    summary = json.loads((RUN / "summary.json").read_text())
    accuracy = summary["final"]["test_accuracy"]
    if accuracy < AIM:
        sys.exit(f"the demo's test accuracy is {accuracy:.2%}, expected {AIM:.0%} or more")
    print(f"""
{accuracy:.2%} of the test digits, with {summary["parameters"]:,} parameters

In {RUN} are
  report.html       the run in pictures
  config.yaml       the recipe, every option resolved
  metrics.csv       a row an epoch
  best.safetensors  the chosen weights: this file alone predicts
  last.ckpt         what --resume goes on from
  summary.json      final figures
  submission.csv    ID,Labels
The MLflow record is in mlflow.db:
  .venv/bin/budgetnet ui

The same on CIFAR-10 (downloaded on first use, or read from --data DIR):
  .venv/bin/budgetnet train recipes/quick.yaml""")


if __name__ == "__main__":
    main()
