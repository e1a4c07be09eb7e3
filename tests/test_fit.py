"""Which network for a budget: how candidates are halved, and the journey from a budget to a recipe."""

import itertools
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_candidates import FAMILIES, RECIPE, request

from budgetnet import candidates, checkpoint, cli, data, evaluate, fit, models, splits
from budgetnet.config import ModelConfig, to_yaml
from budgetnet.errors import ConfigError
from budgetnet.logits import predict_logits
from budgetnet.recipe import load_recipe
from budgetnet.training import Training


@pytest.fixture(autouse=True)
def _latency_of_its_name(monkeypatch):
    """So that results repeat: a latency by what the network makes."""

    def latency(model: ModelConfig, num_classes: int, image_size: int) -> float:
        with torch.device("meta"):
            return models.multiply_adds(models.build(model, num_classes), image_size) / 1e6

    monkeypatch.setattr(fit, "measure_latency", latency)


def test_networks_that_are_too_slow_are_left_out():
    times = sorted(candidate["latency_ms"] for candidate in fit.fit(request(epochs=0))["candidates"])
    limited = fit.fit(request(epochs=0, latency_ms=times[1]))["candidates"]
    assert sorted(candidate["latency_ms"] for candidate in limited) == times[:2]
    with pytest.raises(ConfigError, match=rf"at most 0\.001 ms an image, the fastest {times[0]:.2f} ms"):
        fit.fit(request(epochs=0, latency_ms=0.001))


def test_halving_keeps_the_better_half_of_each_rung_and_ends_with_one():
    asked = []

    def scores(entrants, rung):
        asked.append(list(entrants))
        return [entrant * (-1) ** rung for entrant in entrants]  # the order turns around from rung to rung

    rungs = fit.halve(range(10), scores)
    assert asked == [list(range(10)), [9, 8, 7, 6, 5], [5, 6]]
    assert [[entrant for entrant, _ in rung] for rung in rungs] == [list(range(9, -1, -1)), [5, 6, 7, 8, 9], [6, 5]]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_halving_by_scores_that_do_not_change_finds_the_first_of_the_best(values):
    rungs = fit.halve(range(len(values)), lambda entrants, rung: [values[entrant] for entrant in entrants])
    assert rungs[-1][0] == (values.index(max(values)), max(values))
    assert [len(rung) for rung in rungs][:1] == [len(values)]
    assert all(len(after) == len(before) // 2 for before, after in itertools.pairwise(rungs))


def test_in_halving_a_failure_is_worse_than_any_score():
    rungs = fit.halve("abc", lambda entrants, rung: [None if entrant == "a" else 0.0 for entrant in entrants])
    assert rungs == [[("b", 0.0), ("c", 0.0), ("a", None)]]


def row(name: str, cost: float, *accuracies: float | None) -> dict[str, object]:
    return {"name": name, "parameters": 1, "multiply_adds": cost, "latency_ms": 1.0, "accuracies": list(accuracies)}


def test_the_front_compares_networks_after_equal_training():
    early, late = row("dropped early", 2, 0.5), row("trained on", 1, 0.4, 0.9)
    assert fit.front([early, late]) == ["dropped early", "trained on"], "0.4 against 0.5, not 0.9"
    assert fit.front([row("dropped early", 2, 0.4), late]) == ["trained on"]
    assert fit.front([row("failed", 1, None), row("worse in nothing but accuracy", 2, 0.1)]) == [
        "worse in nothing but accuracy"
    ]
    assert fit.front([row("one", 1, 0.5), row("its equal", 1, 0.5)]) == ["one", "its equal"]


def test_the_front_is_what_no_other_beats_in_everything():
    rng = random.Random(0)
    keys = ("parameters", "multiply_adds", "latency_ms")
    rows = [
        {"name": str(i), "accuracies": [rng.randint(0, 5)], **{key: rng.randint(0, 5) for key in keys}}
        for i in range(60)
    ]
    points = [(*(row[key] for key in keys), -row["accuracies"][0]) for row in rows]
    expected = [
        str(i)
        for i, point in enumerate(points)
        if not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
    ]
    assert fit.front(rows) == expected
    assert 0 < len(expected) < 60


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(to_yaml(RECIPE))
    return path


def arguments(recipe_file: Path, *more: str) -> list[str]:
    command = ["fit", "--budget", "12e3", "--recipe", str(recipe_file), "--families", *FAMILIES]
    return [*command, "--epochs", "1", "--threads", "1", *more]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, recipe_file) -> Path:
    """The folder of a whole fit, made without a single test image to look at."""
    output = tmp_path_factory.mktemp("fit") / "fit"
    real = data.load("digits", None)
    none = replace(real, test=data.Images(real.test.images[:0], real.test.labels[:0]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data, "load", lambda *args, **kwargs: none)
        patched.setattr(fit, "measure_latency", lambda model, *_: float(model.stages[0].depth))
        assert cli.main(arguments(recipe_file, "--output", str(output))) == 0
    return output


def test_a_fit_trains_by_rungs_and_its_winner_is_the_best_of_the_last(fitted):
    result = json.loads((fitted / "fit.json").read_text())
    rows = result["candidates"]
    assert [len(row["accuracies"]) for row in rows] == [2] * (len(rows) // 2) + [1] * (len(rows) - len(rows) // 2)
    assert [row["epochs"] for row in rows] == [2 ** (len(row["accuracies"]) - 1) for row in rows]
    assert result["winner"] == rows[0]["name"]
    last = [row["accuracies"][1] for row in rows if len(row["accuracies"]) == 2]
    assert last[0] == max(last)
    first = [row["accuracies"][0] for row in rows]
    assert min(first[: len(last)]) >= max(first[len(last) :])
    assert result["front"] == fit.front(rows)
    assert result["winner"] in result["front"]
    assert (fitted / "front.png").read_bytes().startswith(b"\x89PNG")


def test_an_accuracy_of_a_fit_is_that_of_the_run_on_the_validation_split(fitted):
    rows = json.loads((fitted / "fit.json").read_text())["candidates"]
    run = fitted / "runs" / f"{rows[0]['name'].replace(' ', '_')}-{rows[0]['epochs']}"
    best, digits = checkpoint.load_classifier(run), data.load("digits", None)
    chosen = splits.split(digits.train.labels, RECIPE.val_size, RECIPE.split_seed)[1]
    logits = predict_logits(best.network, digits.train.images[chosen], best.mean, best.std)
    assert evaluate.score(logits, digits.train.labels[chosen]).accuracy == rows[0]["accuracies"][-1]


def test_the_winner_is_a_recipe_that_fits_the_budget_and_trains_otherwise_as_asked(fitted):
    config = load_recipe(fitted / "winner.yaml")
    winner = json.loads((fitted / "fit.json").read_text())["candidates"][0]
    with torch.device("meta"):
        assert models.count_parameters(models.build(config.model, 10, budget=config.budget)) == winner["parameters"]
    assert winner["name"].endswith(f" w{config.model.stages[0].width}"), "stages have the widths that the name says"
    assert replace(config, model=RECIPE.model, budget=RECIPE.budget) == RECIPE
    assert cli.main(["train", str(fitted / "winner.yaml"), "--print-config"]) == 0


def test_the_same_fit_again_trains_nothing_and_says_the_same(fitted, recipe_file, monkeypatch, capsys):
    before = json.loads((fitted / "fit.json").read_text())
    monkeypatch.setattr(fit, "measure_latency", None)
    monkeypatch.setattr(Training, "__init__", None)
    assert cli.main(arguments(recipe_file, "--output", str(fitted), "--json")) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == before == json.loads((fitted / "fit.json").read_text())


def test_a_fit_that_was_interrupted_goes_on_to_the_same_end(fitted, recipe_file, tmp_path, monkeypatch, capsys):
    output = tmp_path / "fit"
    shutil.copytree(fitted, output)
    for run in output.glob("runs/*-2"):  # as if the first rung had just ended
        shutil.rmtree(run)
    updates = []
    whole_update = Training.update

    def update(self, *given):
        updates.append(1)
        if len(updates) == 11:
            raise KeyboardInterrupt
        whole_update(self, *given)

    monkeypatch.setattr(Training, "update", update)
    assert cli.main(arguments(recipe_file, "--output", str(output))) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert cli.main(arguments(recipe_file, "--output", str(output))) == 0
    assert len(updates) == 8 + 3 + 8 + 16, "an epoch, then some steps that were lost; the rest, and the other network"
    found, expected = (json.loads((folder / "fit.json").read_text()) for folder in (output, fitted))
    assert found == expected


def test_a_folder_of_another_request_is_refused_with_what_differs(fitted, recipe_file, capsys):
    assert cli.main(arguments(recipe_file, "--output", str(fitted), "--budget", "13e3")) == 1
    assert "budget is 13000, but" in capsys.readouterr().err
    assert cli.main(arguments(recipe_file, "--output", str(fitted), "--seed", "1")) == 1
    assert "seed is 1, but" in capsys.readouterr().err
    assert cli.main(arguments(recipe_file, "--output", str(fitted / "runs"))) == 1
    assert "exists and holds no fit.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("candidates", 0, "name"), "../../escaped w4"),
        (("candidates", 0, "name"), "preact 2-2-2 w../../escaped"),
        (("candidates", 0, "name"), "/tmp/escaped"),
        (("candidates", 0, "name"), None),
        (("candidates", 0, "family"), "none"),
        (("candidates", 0, "model", "name"), 5),
        (("candidates", 0, "model", "stages"), 5),
        (("candidates", 0, "model", "stages", 0), {"depth": "deep"}),
        (("candidates", 0, "parameters"), "many"),
        (("candidates", 0, "latency_ms"), float("nan")),
        (("candidates", 0), []),
        (("candidates",), 5),
        (("request",), []),
        (("request", "recipe"), None),
    ],
)
def test_a_fit_json_that_says_what_it_should_not_is_refused(fitted, recipe_file, tmp_path, capsys, place, value):
    content = json.loads((fitted / "fit.json").read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "fit.json").write_text(json.dumps(content))
    assert cli.main(arguments(recipe_file, "--output", str(tmp_path))) == 1
    assert "fit.json is not what an earlier call wrote" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path != recipe_file] == ["fit.json"]


@pytest.mark.parametrize("text", ["", "5", "[" * 100_000, "{}", '{"request": {}, "candidates": []}', "\udcff"])
def test_a_damaged_fit_json_is_refused(recipe_file, tmp_path, capsys, text):
    (tmp_path / "fit.json").write_bytes(text.encode(errors="surrogateescape"))
    assert cli.main(arguments(recipe_file, "--output", str(tmp_path))) == 1
    assert "fit.json is not what an earlier call wrote" in capsys.readouterr().err


def test_without_epochs_the_proposals_are_printed_and_nothing_is_trained(monkeypatch, capsys):
    monkeypatch.setattr(Training, "__init__", None)
    command = ["fit", "--budget", "12000", "--dataset", "digits", "--families", "preact", "--epochs", "0"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "parameters" in out
    assert "preact 2-2-2 w4" in out
    assert "val acc" not in out
    assert cli.main([*command, "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["candidates"]]
    assert all(name in out for name in names)


def test_the_table_has_at_most_80_columns_whatever_is_in_it():
    rows = [
        {
            **row(f"{name} w{width}", 4_999_999_999, *accuracies),
            "parameters": 48_999_999,
            "latency_ms": 1234.5,
            "epochs": 1200,
        }
        for family in candidates.FAMILIES.values()
        for name in family
        for width, accuracies in ((128, (0.5, 1.0)), (1000, (None,)))
    ]
    result = {"candidates": rows, "front": [row["name"] for row in rows], "winner": rows[0]["name"]}
    lines = fit.render(result).splitlines()
    assert max(map(len, lines)) <= 80
    assert len({len(line.rstrip(" *")) for line in lines[: len(rows) + 1]}) == 1, "columns are straight"


def test_trainings_that_fail_are_told_and_lose_and_where_all_fail_so_does_the_fit(tmp_path, recipe_file, capsys):
    broken = load_recipe(recipe_file, ["--optimizer.lr", "1e30", "--ema", "0"])
    (tmp_path / "broken.yaml").write_text(to_yaml(broken))
    command = ["fit", "--budget", "12e3", "--recipe", str(tmp_path / "broken.yaml"), "--families", "preact"]
    assert cli.main([*command, "--epochs", "1", "--threads", "1"]) == 1
    err = capsys.readouterr().err
    assert err.count("budgetnet: warning: preact") > 1
    assert "budgetnet: error: the loss is" in err or "budgetnet: error: after epoch" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("budget", ["many", "inf", "nan"])
def test_a_budget_that_is_no_number_is_refused_in_a_line(budget, capsys):
    assert cli.main(["fit", "--budget", budget]) == 1
    assert (
        f"argument --budget: found '{budget}', expected a whole number above 0, such as 5e6" in capsys.readouterr().err
    )
