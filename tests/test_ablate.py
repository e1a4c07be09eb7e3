"""Ablations: variants of a recipe by seed, recorded as they finish, and the page that shows the records."""

import importlib.util
import json
import statistics
from pathlib import Path

import pytest

from budgetnet import train as training

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ablate():
    spec = importlib.util.spec_from_file_location("ablate", ROOT / "results" / "ablate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_variant_trains_by_each_seed_and_what_is_finished_is_not_trained_again(ablate, tmp_path, monkeypatch):
    spec = tmp_path / "smoke.yaml"
    recipe = ROOT / "recipes" / "smoke.yaml"
    spec.write_text(f"recipe: {recipe}\nalways: --epochs 1\nvariants:\n  as it is: ''\n  slow: --optimizer.lr 1e-9\n")
    found = ablate.ablate(spec, 2, None, tmp_path / "runs", "cpu")
    assert json.loads(spec.with_suffix(".json").read_text()) == found
    runs = found["runs"]
    assert [(row["variant"], row["seed"]) for row in runs] == [
        ("as it is", 0),
        ("slow", 0),
        ("as it is", 1),
        ("slow", 1),
    ]
    monkeypatch.setattr(training, "_fit", None)
    assert ablate.ablate(spec, 2, None, tmp_path / "runs", "cpu") == found

    lines = ablate.table(found).splitlines()
    differences = [100 * (runs[i + 1]["val_accuracy"] - runs[i]["val_accuracy"]) for i in (0, 2)]
    assert f"| {statistics.mean(differences):+.2f} ± {statistics.stdev(differences):.2f} |" in lines[-1]
    assert "`--optimizer.lr 1e-9`" in lines[-1]
    assert lines[-2].count("|  |") >= 1, "the first is not compared with itself"


def test_the_page_shows_the_records(ablate):
    page = ablate.PAGE.read_text()
    assert ablate.with_tables(page) == page
