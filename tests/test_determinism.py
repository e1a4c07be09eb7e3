"""One seed, one machine, one number of threads: the same bits, by the command that users type."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from budgetnet import checkpoint, cli

ROOT = Path(__file__).parent.parent
STEPS = math.ceil((1438 - 200) / 250)  # of one epoch of the recipe in batches of 250
TOLERANCE = 1e-3  # of the weights' norm, and of the loss; docs/reference/runs.md states both


def trained(folder: Path, threads: int, hash_seed: str | None = None) -> Path:
    """By this process, or by one of its own where it has a hash seed of its own."""
    recipe, run = str(ROOT / "recipes" / "smoke.yaml"), folder / "run"
    options = ["--no-track", "--no-report", "--epochs", "1", "--batch-size", "250", "--precision", "fp32", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]])
    command = ["train", recipe, "--output", str(run), "--threads", str(threads), *options]
    if hash_seed is None:
        assert cli.main(command) == 0
    else:
        environment["PYTHONHASHSEED"] = hash_seed  # no set or dictionary of names may decide anything
        subprocess.run([sys.executable, "-m", "budgetnet", *command], env=environment, check=True, timeout=120)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    return [trained(root / "here", 2), trained(root / "elsewhere", 2, other), trained(root / "alone", 1)]


def weights(run):
    return checkpoint.load_state(run / "last.ckpt")["network"]


def metrics(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


def test_the_same_seed_and_number_of_threads_give_the_same_bits_in_another_process(runs):
    one, other, _ = runs
    assert metrics(one) == metrics(other)
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name
    kept = [checkpoint.load_classifier(run).network.state_dict() for run in (one, other)]
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())


def test_another_number_of_threads_agrees_to_the_tolerance_that_the_docs_state(runs):
    two, _, one = runs
    state = checkpoint.load_state(one / "last.ckpt")
    assert state["position"]["epoch"] == 1
    one_vector, other = (
        torch.cat([value.flatten() for value in found.values() if value.is_floating_point()])
        for found in (state["network"], weights(two))
    )
    assert float((one_vector - other).norm() / one_vector.norm()) < TOLERANCE
    assert float(metrics(two)[0]["train_loss"]) == pytest.approx(float(metrics(one)[0]["train_loss"]), rel=TOLERANCE)
    page = " ".join((ROOT / "docs" / "reference" / "runs.md").read_text().split())
    assert f"{STEPS} steps" in page
    assert f"{TOLERANCE:g} of their norm" in page


def test_the_record_says_by_what_the_bits_can_be_had_again(runs):
    for run, threads in zip(runs, (2, 2, 1), strict=True):
        hardware = json.loads((run / "summary.json").read_text())["hardware"]
        assert hardware["threads"] == threads
        assert hardware["deterministic"] is True
        assert hardware["cpu"].endswith(torch.backends.cpu.get_cpu_capability())
