"""Comparing runs: grouped by recipe, differences seed by seed, fronts, and the same figures on every surface."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetnet import compare_page, models, runs, seeds, tracking
from budgetnet.cli import main
from budgetnet.compare import compare, front, points
from budgetnet.errors import ConfigError, DataError
from budgetnet.recipe import load_recipe

HOSTILE = '"><script>alert(1)</script>[bold red]'


@pytest.fixture
def study(make_run, tmp_path) -> list[Path]:
    """Two recipes by three seeds each, and one more by a single seed, at known accuracies."""
    vals = {"base": (0.90, 0.91, 0.92), "better": (0.95, 0.96, 0.968)}
    found = [
        make_run(
            tmp_path / f"{name}-{seed}",
            "--seed",
            str(seed),
            *options,
            val=vals[name][seed],
            test=vals[name][seed] - 0.02,
        )
        for name, options in (("base", []), ("better", ["--optimizer.lr", "0.2"]))
        for seed in range(3)
    ]
    width = ["--model.width", "16"]
    return [*found, make_run(tmp_path / "wide-0", *width, val=0.93, test=0.91, parameters=4000, minutes=9.0)]


def test_runs_of_the_same_recipe_are_a_group_whatever_their_seed(study):
    groups = compare(study).groups
    assert [(g.letter, g.name, [e.seed for e in g.entries]) for g in groups] == [
        ("A", "base", [0, 1, 2]),
        ("B", "better", [0, 1, 2]),
        ("C", "wide-0", [0]),
    ]
    assert {name: [g.options[name] for g in groups] for name in groups[0].options} == {
        "model.width": ["8", "8", "16"],
        "optimizer.lr": ["0.1", "0.2", "0.1"],
    }


def test_what_changes_no_result_makes_no_group(make_run, tmp_path):
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", "--experiment", "other", "--checkpoint_minutes", "3", "--seed", "1")
    assert len(compare([a, b]).groups) == 1


def test_an_option_that_an_older_recipe_does_not_know_counts_as_its_default(make_run, tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", "--seed", "1")
    text = (a / "config.yaml").read_text()
    (a / "config.yaml").write_text(re.sub(r"^swa: .*\n|^train_on_test: .*\n", "", text, flags=re.MULTILINE))
    assert len(compare([a, b]).groups) == 1
    (b / "config.yaml").write_text((b / "config.yaml").read_text().replace("swa: 0.0", "swa: 0.5"))
    assert [dict(group.options) for group in compare([a, b]).groups] == [{"swa": "0.0"}, {"swa": "0.5"}]


def test_means_spreads_and_differences_equal_a_slow_reference(study):
    from scipy.stats import ttest_rel

    base, better, wide = compare(study).groups
    first, second = [0.90, 0.91, 0.92], [0.95, 0.96, 0.968]
    assert base.val_accuracy == {"mean": pytest.approx(0.91), "std": pytest.approx(0.01), "seeds": 3}
    assert better.test_accuracy["mean"] == pytest.approx(statistics.mean(second) - 0.02)
    assert base.against == {}
    found = better.against["val_accuracy"]
    low, high = ttest_rel(second, first).confidence_interval(0.95)
    assert found["difference"] == pytest.approx((low + high) / 2)
    assert found["interval"] == pytest.approx((high - low) / 2)
    assert found["seeds"] == [0, 1, 2]
    assert found["verdict"] == "beyond noise"
    assert wide.val_accuracy["std"] is None
    assert wide.against["val_accuracy"] == {
        "difference": pytest.approx(0.03),
        "interval": None,
        "verdict": "one seed: unknown",
        "seeds": [0],
    }


def test_differences_are_of_shared_seeds_alone(make_run, tmp_path):
    a = [make_run(tmp_path / f"a-{seed}", "--seed", str(seed), val=0.8 + seed / 100) for seed in (0, 1, 2)]
    b = [make_run(tmp_path / f"b-{seed}", "--seed", str(seed), "--swa", "0.5", val=0.9) for seed in (1, 2, 3)]
    found = compare([*a, *b]).groups[1].against["val_accuracy"]
    assert found["seeds"] == [1, 2]
    assert found["difference"] == pytest.approx(0.9 - 0.815)
    assert "val_accuracy" not in compare([a[0], b[2]]).groups[1].against


def test_two_runs_of_one_seed_count_as_one(make_run, tmp_path):
    a, b = make_run(tmp_path / "a", val=0.8), make_run(tmp_path / "b", val=0.9)
    found = compare([a, b])
    assert found.groups[0].val_accuracy == {"mean": pytest.approx(0.85), "std": None, "seeds": 1}
    assert any("have the same seed and count as one: a, b" in remark for remark in found.remarks)


def test_accuracies_on_different_data_are_not_set_off_against_each_other(make_run, tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", val=0.95, checksum="cd" * 32)
    found = compare([a, b])
    assert [group.options["data checksum"] for group in found.groups] == ["ab" * 6, "cd" * 6]
    assert found.groups[1].against == {}
    assert any("different data" in remark for remark in found.remarks)


def test_accuracies_on_another_validation_split_are_not_set_off_but_those_on_the_test_images_are(make_run, tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", "--split_seed", "5")
    assert set(compare([a, b]).groups[1].against) == {"test_accuracy"}


def test_a_run_that_goes_on_is_in_the_curves_and_in_no_figure(study, make_run, tmp_path, parsed):
    going = make_run(tmp_path / "base-3", "--seed", "3", finished=False, val=0.5)
    found = compare([*study, going])
    assert [e.seed for e in found.groups[0].entries] == [0, 1, 2, 3]
    assert found.groups[0].val_accuracy["seeds"] == 3
    assert any(remark == "Not ended, and so only in the curves: base-3." for remark in found.remarks)
    compare_page.write(found, tmp_path / "page.html")
    assert "not ended" in parsed(tmp_path / "page.html").text


def test_runs_are_judged_by_validation_where_all_have_it_else_by_the_test_else_not(make_run, tmp_path):
    both, no_val = make_run(tmp_path / "a"), make_run(tmp_path / "b", val=None)
    no_test = make_run(tmp_path / "c", "--swa", "0.5", test=None)
    assert compare([both, no_test]).measure == "val_accuracy"
    found = compare([both, no_val])
    assert found.measure == "test_accuracy"
    assert any("not to choose by" in remark for remark in found.remarks)
    assert compare([no_val, no_test]).measure is None


def test_minutes_of_different_machines_are_called_so(make_run, tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", "--seed", "1")
    assert not any("machines" in remark for remark in compare([a, b]).remarks)
    (b / "summary.json").write_text((b / "summary.json").read_text().replace("A CPU", "Another"))
    assert any("different machines" in remark for remark in compare([a, b]).remarks)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_a_front_holds_what_no_other_beats_in_both(pairs):
    found = front([(float(cost), float(value)) for cost, value in pairs])
    for (cost, value), on in zip(pairs, found, strict=True):
        beaten = False
        for other_cost, other_value in pairs:
            if other_cost <= cost and other_value >= value and (other_cost < cost or other_value > value):
                beaten = True
        assert on != beaten
    assert any(found)


def test_the_fronts_of_a_study_are_by_each_cost(study):
    base, better, wide = compare(study).groups
    assert better.fronts == ["parameters", "multiply_adds", "minutes"]
    assert base.fronts == wide.fronts == []


def test_multiply_adds_are_those_of_the_recipes_network(study):
    recipe = load_recipe(study[0] / "config.yaml")
    network = models.build(recipe.model, 10)
    assert compare(study).groups[0].cost("multiply_adds") == models.multiply_adds(network, 32)
    (study[0] / "config.yaml").write_text((study[0] / "config.yaml").read_text().replace("enhanced", "of_yore"))
    assert compare([study[0], study[3]]).groups[0].cost("multiply_adds") is None


def test_the_page_the_table_and_the_json_say_the_same(study, tmp_path, parsed, capsys):
    page_file = tmp_path / "compare.html"
    arguments = ["compare", *map(str, study)]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--output", str(page_file)]) == 0
    table = capsys.readouterr().out
    page = parsed(page_file)
    for group in said["groups"]:
        for measure in ("val_accuracy", "test_accuracy"):
            spread = group[measure]
            text = f"{100 * spread['mean']:.2f}" + (
                f" ± {100 * spread['std']:.2f}" if spread["std"] is not None else ""
            )
            assert text in table
            assert text in page.text
        for apart in group["against"].values():
            assert points(apart) in page.text
            assert points(apart) in table
    verdict = (
        "Highest mean validation accuracy: B (better) with 95.93 ± 0.90 % over 3 seeds. Against A, +4.93 ± 0.29 points"
    )
    assert verdict in page.text
    assert verdict.split(".")[0] in table
    assert [each["id"] for each in page.all("section")] == ["differences", "costs", "curves", "options", "runs"]
    assert max(map(len, table.splitlines())) <= 120
    entry = said["groups"][0]["entries"][1]
    assert (entry["name"], entry["seed"], entry["val_accuracy"], entry["minutes"]) == ("base-1", 1, 0.91, 2.0)


def test_curves_are_means_over_the_seeds_between_the_lowest_and_the_highest(study, tmp_path):
    compare_page.write(compare(study), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    rows = [runs.read(folder).rows[1] for folder in study]
    mean = statistics.mean(row["val_accuracy"] for row in rows[:3])
    assert mean == pytest.approx(0.9)
    assert "epoch 2: A base 90\xa0%, B better" in text
    assert text.count('class="band c0"') == 4
    assert text.count('class="band c2"') == 0, "a single seed has no band"


def test_hostile_names_are_shown_and_do_nothing(make_run, tmp_path, parsed, capsys):
    a = make_run(tmp_path / "a", "--experiment", json.dumps(HOSTILE))
    b = make_run(tmp_path / "b", "--swa", "0.5")
    for folder in (a, b):
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"name": f"{HOSTILE}\x1b[31m\u202e{folder.name}"}))
    assert main(["compare", str(a), str(b), "--output", str(tmp_path / "page.html")]) == 0
    table = capsys.readouterr().out
    assert "\x1b[31m" not in table
    assert "[bold red]" in "".join(table.split()).replace("boldred", "bold red"), (
        "names are no markup of the terminal's"
    )
    page = parsed(tmp_path / "page.html")
    assert len(page.all("script")) == 1
    assert "<script>alert" not in (tmp_path / "page.html").read_text()
    assert HOSTILE in page.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give run folders, or --experiment NAME"),
        (["RUN", "--experiment", "x"], "and not both"),
        (["RUN"], "found 1 run to compare, expected two or more"),
        (["RUN", "RUN/../a"], "is given twice"),
        (["RUN", "nowhere"], "nowhere is not there: expected a run folder"),
        (["RUN", "OTHER", "--output", "page.pdf"], "expected .html"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(arguments, words, make_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "--seed", "1")
    given_ = [each.replace("RUN", "a").replace("OTHER", "b") for each in arguments]
    assert main(["compare", *given_]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_the_runs_of_an_mlflow_experiment_are_compared_like_their_folders(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["compare", "--experiment", "budgetnet"]) == 1
    assert "there is no mlflow.db in this folder" in capsys.readouterr().err
    for folder in (study[0], study[3], study[6]):
        tracker = tracking.Tracker(folder, experiment="budgetnet", warn=lambda text: pytest.fail(text))
        tracker.start(folder.name, {}, {})
        files = [folder / name for name in ("config.yaml", "metrics.csv", "summary.json")]
        ended = folder != study[6]
        tracker.finish("FINISHED" if ended else "KILLED", files if ended else [], None, {})
    assert main(["compare", "--experiment", "budgetnet", "--json"]) == 0
    output = capsys.readouterr()
    assert "1 runs of budgetnet have no record in MLflow yet" in output.err
    found = json.loads(output.out)
    assert main(["compare", str(study[0]), str(study[3]), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    for result in (found, expected):
        for group in result["groups"]:
            for entry in group["entries"]:
                folder = entry.pop("folder")
                assert folder == (entry["name"] if result is found else str(tmp_path / entry["name"]))
    assert found == expected
    assert main(["compare", "--experiment", "nobody"]) == 1
    assert "has no experiment 'nobody': it has Default, budgetnet" in capsys.readouterr().err


def test_the_difference_of_single_seeds_has_no_interval_and_no_verdict_but_unknown():
    found = seeds.difference([0.05], 0.01)
    assert (found["interval"], found["verdict"]) == (None, "one seed: unknown")


def test_an_interval_equals_students_by_hand():
    differences = [0.01, 0.02, 0.04, 0.01]
    found = seeds.difference(differences, 0.001)
    assert found["interval"] == pytest.approx(3.182446 * statistics.stdev(differences) / math.sqrt(4), rel=1e-6)
    assert found["difference"] == pytest.approx(0.02)


def test_what_runs_kept_of_each_test_image_tells_smaller_differences_apart(make_run, tmp_path):
    """A group that is right wherever the other is, and on 1 % of 1,000 images more, is better."""

    def verdict(name: str, *, first: bool, second: bool) -> str:
        folders = [
            make_run(
                tmp_path / f"{name}-{lr}-{seed}", "--seed", str(seed), "--optimizer.lr", lr, test=test, answers=kept
            )
            for lr, accuracy, kept in (("0.1", 0.9, first), ("0.2", 0.91, second))
            for seed, test in enumerate((accuracy, accuracy + 0.001, accuracy - 0.001))
        ]
        return compare(folders).groups[1].against["test_accuracy"]["verdict"]

    assert verdict("neither", first=False, second=False) == "within noise", "which by 1,000 images is 1.8 points"
    assert verdict("one", first=True, second=False) == "within noise"
    assert verdict("both", first=True, second=True) == "beyond noise"


def test_many_groups_have_letters_of_their_own(make_run, tmp_path, parsed):
    folders = [make_run(tmp_path / f"r{i}", "--optimizer.lr", str(0.01 + i / 100)) for i in range(28)]
    found = compare(folders)
    assert [found.groups[i].letter for i in (0, 25, 26, 27)] == ["A", "Z", "AA", "AB"]
    compare_page.write(found, tmp_path / "page.html")
    parsed(tmp_path / "page.html")


def test_a_damaged_run_names_its_file(study):
    (study[1] / "metrics.csv").write_text("epoch,lr\n1,x\n2,3\n")
    with pytest.raises(DataError, match=r"metrics.csv: line 2 is damaged"):
        compare(study)
    with pytest.raises(ConfigError):
        compare([])
