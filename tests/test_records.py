"""Tables of records: what remedies at test time are worth."""

import json
import statistics
import subprocess
from pathlib import Path

import pytest
import records
import remedies

from budgetnet import seeds
from budgetnet.recipe import load_recipe
from budgetnet.train import train

SMOKE = Path(__file__).parent.parent / "recipes" / "smoke.yaml"


def cell(accuracy: float, ece: float) -> dict[str, float]:
    return {"accuracy": accuracy, "loss": 1.0, "ece": ece}


def rows(accuracies: dict[str, list[float]]) -> dict:
    """A record of models with an accuracy each for each remedy, ten points less on corrupted images."""
    return {
        "rows": [
            {"model": f"run-{i}", "network": "wrn_16_4", "parameters": 97657, "options": options}
            | {"images": 1000, "severity": 3}
            | {"clean": cell(accuracy, 0.01 * i), "mean_corruption": cell(accuracy - 0.1, 0.02 * i)}
            for i in range(3)
            for options, values in accuracies.items()
            for accuracy in [values[i]]
        ]
    }


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(remedies, "REMEDIES", ("", "--tta flip"))


def test_each_remedy_is_compared_with_none_model_by_model():
    none, mirror = [0.80, 0.82, 0.81], [0.83, 0.86, 0.84]
    found = remedies.compare(rows({"": none, "--tta flip": mirror}), "mean_corruption")
    assert [entry["options"] for entry in found] == ["", "--tta flip"]
    assert "difference" not in found[0]
    assert found[0]["mean"] == pytest.approx(statistics.mean(none) - 0.1)
    assert found[0]["ece"] == pytest.approx(0.02)
    expected = seeds.difference(
        [b - a for a, b in zip(none, mirror, strict=True)], seeds.accuracy_noise(found[1]["mean"], 1000)
    )
    assert {key: found[1][key] for key in expected} == pytest.approx(expected)


def test_the_table_tells_models_images_and_both_kinds_of_accuracy():
    lines = remedies.markdown(rows({"": [0.80, 0.82, 0.81], "--tta flip": [0.83, 0.86, 0.84]})).splitlines()
    assert lines[0].startswith(
        "`run-0`, `run-1`, `run-2`: `wrn_16_4`, 97,657 parameters, 3 seeds, 1,000 validation images, corrupted by"
    )
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert lines[4] == "| none | 71.00 ± 1.00 |  | 2.00 | 81.00 ± 1.00 |  | 1.00 |"
    assert lines[5].startswith(r"| `--tta flip` | 74.33 ± 1.53 | +3.33 ± 1.43\* | 2.00 | 84.33")


def test_a_page_is_rewritten_between_its_comments_alone_and_comes_to_rest():
    page = "before\n<!-- x: written by `make table` -->\nold\n<!-- end of x -->\nafter\n"
    once = records._with(page, "x", "new")
    assert once == page.replace("old", "new")
    assert records._with(once, "x", "new") == once


def test_models_are_scored_by_evaluate_and_what_is_on_record_is_not_scored_again(two, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    train(load_recipe(SMOKE, ["--epochs", "1", "--train_size", "64"]), run, track=False, test=False)
    path = tmp_path / "smoke.json"
    remedies.measure(path, [str(run)], 10, None)
    found = json.loads(path.read_text())
    assert [row["options"] for row in found["rows"]] == ["", "--tta flip"]
    for row in found["rows"]:
        assert 0 <= row["mean_corruption"]["accuracy"] <= 1
        assert (row["model"], row["images"]) == ("run", 10)
    assert "run, --tta flip: " in capsys.readouterr().out
    monkeypatch.setattr(subprocess, "run", None)
    remedies.measure(path, [str(run)], 10, None)
    assert json.loads(path.read_text()) == found
    with pytest.raises(TypeError):
        remedies.measure(path, [str(run)], 11, None)
