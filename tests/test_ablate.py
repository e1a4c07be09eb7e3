"""Studies of what options are worth: planned before anything trains, resumable, never tested, compared seed by seed."""

import json
import math
import os
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import records
import torch

from budgetnet import ablate, devices, robustness, seeds, shift
from budgetnet.ablate import Study
from budgetnet.cli import main
from budgetnet.errors import ConfigError, DataError
from budgetnet.recipe import load_recipe
from budgetnet.train import train

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke.yaml"


def record(*accuracies: list[float], val_size: int = 5000) -> dict:
    """A record with a list of accuracies, one a seed, for each variant."""
    runs = [
        {
            "variant": f"variant {i}",
            "options": f"--x {i}" if i else "",
            "seed": seed,
            "val_accuracy": accuracy,
            "val_size": val_size,
            "parameters": 10,
        }
        for i, variant in enumerate(accuracies)
        for seed, accuracy in enumerate(variant)
    ]
    return {"recipe": "r.yaml", "always": "--epochs 1", "seeds": 3, "hardware": {"cpu": "A CPU, AVX"}, "runs": runs}


def refused(call, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_values_are_tried_one_at_a_time_beside_the_recipe_as_it_is():
    vary = ablate.parse_vary(["optimizer.lr=0.1, 0.2", "augment.erase_scale=[0.1,0.2],[0.1,0.3]"])
    assert vary == {"optimizer.lr": ["0.1", "0.2"], "augment.erase_scale": ["[0.1,0.2]", "[0.1,0.3]"]}
    assert ablate.one_at_a_time(vary) == {
        "as it is": [],
        "optimizer.lr 0.1": ["--optimizer.lr", "0.1"],
        "optimizer.lr 0.2": ["--optimizer.lr", "0.2"],
        "augment.erase_scale [0.1,0.2]": ["--augment.erase_scale", "[0.1,0.2]"],
        "augment.erase_scale [0.1,0.3]": ["--augment.erase_scale", "[0.1,0.3]"],
    }


def test_a_grid_has_every_value_with_every_other():
    found = ablate.grid({"a": ["1", "2"], "b": ["3", "4"]})
    assert list(found.values()) == [["--a", x, "--b", y] for x in "12" for y in "34"]


@pytest.mark.parametrize("text", ["optimizer.lr", "=1", "a=", "a=1,,2"])
def test_a_variation_without_key_or_value_is_refused(text):
    refused(lambda: ablate.parse_vary([text]), repr(text), "KEY=VALUE")


def test_a_key_that_is_varied_twice_is_refused():
    refused(lambda: ablate.parse_vary(["a=1", "a=2"]), "twice")


def test_what_is_wrong_with_a_study_is_said_before_anything_trains(tmp_path):
    def carry_out(*variants, always=(), seeds=1):
        study = Study(recipe=SMOKE, variants={str(i): v for i, v in enumerate(variants)}, always=always, seeds=seeds)
        ablate.carry_out(study, tmp_path / "runs")

    refused(lambda: carry_out([]), "--vary")
    refused(lambda: carry_out([], ["--epochs", "2"], seeds=0), "seeds is 0")
    refused(lambda: carry_out([], ["--epochs", "2"], always=["--seed", "7"]), "--seeds")
    refused(lambda: carry_out([], ["--seed=7"]), "--seeds")
    refused(lambda: carry_out([], ["--optimizer.lr", "-1"]), "optimizer.lr")
    refused(lambda: carry_out([], ["--optimizer.rate", "1"]), "optimizer.rate is not an option")
    refused(lambda: carry_out([], ["--epochs", "3"], always=["--val-size", "0"]), "val_size is 0")
    refused(lambda: carry_out(["--epochs", "3"], ["--epochs=3"]), "'1' is the same as '0'")
    same = Study(recipe=SMOKE, variants={"a b": [], "a-b": ["--epochs", "3"]})
    refused(lambda: ablate.carry_out(same, tmp_path / "runs"), "'a b' and 'a-b'", "folder")
    assert not (tmp_path / "runs").exists()


def test_differences_are_taken_seed_by_seed_with_students_interval():
    base, better, noisy, alone = [0.90, 0.92, 0.94], [0.93, 0.951, 0.969], [0.95, 0.90, 0.97], [0.99]
    first, *others = ablate.compare(record(base, better, noisy, alone))
    assert first["mean"] == pytest.approx(0.92)
    assert first["std"] == pytest.approx(0.02)
    assert "difference" not in first, "the first is not compared with itself"
    differences = [a - b for a, b in zip(better, base, strict=True)]
    assert others[0]["difference"] == pytest.approx(statistics.mean(differences))
    # 4.302653 is the 97.5 % quantile of Student's t with two degrees of freedom, from a table.
    assert others[0]["interval"] == pytest.approx(4.302653 * statistics.stdev(differences) / math.sqrt(3))
    assert [row["verdict"] for row in others] == ["beyond noise", "within noise", "one seed: unknown"]
    assert others[2]["difference"] == pytest.approx(0.09)


def test_a_difference_that_so_few_images_cannot_show_is_within_noise_however_alike_the_seeds_are():
    accuracies = [0.90, 0.90, 0.90], [0.91, 0.91, 0.911]
    assert ablate.compare(record(*accuracies, val_size=5000))[1]["verdict"] == "beyond noise"
    assert ablate.compare(record(*accuracies, val_size=500))[1]["verdict"] == "within noise"


def test_an_accuracy_of_one_still_leaves_room_for_noise():
    assert ablate.compare(record([1.0, 1.0], [0.999, 0.999], val_size=1000))[1]["verdict"] == "within noise"


def test_a_study_that_is_half_done_is_compared_as_far_as_it_is():
    rows = ablate.compare(record([0.9, 0.92], [0.95]))
    assert [row["seeds"] for row in rows] == [2, 1]
    assert rows[1]["difference"] == pytest.approx(0.05)
    assert ablate.compare(record()) == []


def test_the_table_is_no_wider_than_80_columns_and_the_page_names_options():
    found = record([0.9, 0.91], [0.95, 0.96])
    found["runs"][2]["variant"] = found["runs"][3]["variant"] = "images of full size for about as long, and then more"
    text = ablate.render(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "+5.00 ± 0.00*" in text
    assert "90.50 ± 0.71" in text
    page = ablate.markdown(found)
    assert "`r.yaml`, `--epochs 1`, on A CPU with AVX:" in page
    assert "| `--x 1` | 95.50 ± 0.71 % | +5.00 ± 0.00 | beyond noise | 2 |" in page


def test_the_page_says_how_many_parameters_each_has_where_they_differ():
    found = record([0.9, 0.91], [0.95, 0.96])
    assert "parameters" not in ablate.markdown(found)
    for row in found["runs"][2:]:
        row["parameters"] = 97_657
    page = ablate.markdown(found)
    assert "| variant | options | parameters | validation accuracy |" in page
    assert "| 10 | 90.50 ± 0.71 % |" in page
    assert "| `--x 1` | 97,657 | 95.50 ± 0.71 % |" in page


def test_the_page_says_on_which_machines_runs_were_computed():
    found = record([0.9, 0.91], [0.95, 0.96])
    assert "on A CPU with AVX:" in ablate.markdown(found)
    del found["hardware"]
    assert "`--epochs 1`:" in ablate.markdown(found)
    for row in found["runs"]:
        row["hardware"] = {"cpu": "A CPU, AVX", "device": "cpu"}
    assert "on A CPU with AVX:" in ablate.markdown(found)
    found["runs"][1]["hardware"] = {"cpu": "A CPU, AVX", "device": "cuda", "gpu": "A GPU"}
    assert "on A CPU with AVX and A GPU:" in ablate.markdown(found)


def test_the_page_says_which_precisions_were_computed_in_where_the_record_does():
    found = record([0.9], [0.95])
    assert "on A CPU with AVX:" in ablate.markdown(found)
    for row in found["runs"]:
        row["precision"] = "bf16"
    assert "on A CPU with AVX, in bf16:" in ablate.markdown(found)
    found["runs"][0]["precision"] = "fp32"
    assert "on A CPU with AVX, in bf16 and fp32:" in ablate.markdown(found)


def test_a_study_in_a_file_has_named_variants(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("recipe: r.yaml\nalways: --epochs 2\nshift: 7\nvariants: {as it is: '', two: --epochs 1 --x 'a b'}")
    study = ablate.read_study(path)
    assert study == Study(
        recipe=tmp_path / "r.yaml",
        always=["--epochs", "2"],
        variants={"as it is": [], "two": ["--epochs", "1", "--x", "a b"]},
        shift=7,
    )
    assert ablate.read_study(SMOKE) is None


@pytest.mark.parametrize(
    "text",
    [
        "recipe: r.yaml\nvariants: [a]",
        "variants: {a: '', b: ''}",
        "recipe: r.yaml\nvariants: {a: 1, b: ''}",
        "recipe: r.yaml\nepochs: 3\nvariants: {a: '', b: ''}",
        "recipe: r.yaml\nshift: many\nvariants: {a: '', b: ''}",
        "recipe: r.yaml\n1: 3\nb: 4\nvariants: {a: '', b: ''}",
        """recipe: r.yaml\nvariants: {a: "--x 'a", b: ''}""",
        "recipe: r.yaml\nalways: '--x \\'\nvariants: {a: '', b: ''}",
        "recipe: &a r.yaml\nvariants: {a: *a, b: ''}",
    ],
)
def test_a_file_with_something_else_than_a_study_is_refused(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    refused(lambda: ablate.read_study(tmp_path / "study.yaml"), "study.yaml", "expected")


def test_each_variant_trains_by_each_seed_untested_and_what_is_finished_is_not_trained_again(
    tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ["ablate", str(SMOKE), "--vary", "optimizer.lr=1e-9", "--seeds", "2", "--epochs", "1", "--jobs", "2"]
    command += ["--train-size", "64", "--precision", "auto"]
    assert main([*command, "--json"]) == 0
    printed = capfd.readouterr()
    found = json.loads(printed.out)
    comparison = found.pop("comparison")
    assert json.loads((tmp_path / "runs" / "ablate-smoke" / "study.json").read_text()) == found
    assert comparison == ablate.compare(found)
    assert [(row["variant"], row["seed"]) for row in found["runs"]] == [
        ("as it is", 0),
        ("optimizer.lr 1e-9", 0),
        ("as it is", 1),
        ("optimizer.lr 1e-9", 1),
    ]
    assert {row["hardware"]["device"] for row in found["runs"]} == {"cpu"}
    assert {row["precision"] for row in found["runs"]} == {devices.precision("auto", torch.device("cpu"))}
    assert printed.err.count(" of 4: ") == 4
    runs = sorted((tmp_path / "runs" / "ablate-smoke").glob("*/summary.json"))
    assert len(runs) == 4
    assert all(json.loads(run.read_text())["test"] == {} for run in runs), "the test images are not looked at"
    written = [run.stat().st_mtime_ns for run in runs]

    assert main([*command, "--jobs", "1"]) == 0
    assert [run.stat().st_mtime_ns for run in runs] == written
    assert "optimizer.lr 1e-9" in capfd.readouterr().out
    assert load_recipe(runs[0].parent / "config.yaml").epochs == 1


def test_no_training_outlives_a_study_that_is_killed(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(
        "import os, signal\n"
        "from budgetnet import ablate\n"
        "if __name__ == '__main__':\n"
        "    pool = ablate.workers(2)\n"
        "    pids = {pool.submit(os.getpid).result() for _ in range(2)}\n"
        "    waiting = [pool.submit(signal.pause) for _ in range(4)]\n"
        "    print(*pids, flush=True)\n"
        "    signal.pause()\n"
    )
    path = os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]])
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as study:
        pids = [int(pid) for pid in study.stdout.readline().split()]
        workers = [psutil.Process(pid) for pid in pids]
        study.kill()
    gone, alive = psutil.wait_procs(workers, timeout=60)
    for process in alive:
        process.kill()
    assert len(gone) == len(pids) > 0
    assert not alive


def test_accuracy_under_corruption_is_what_evaluate_finds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shift, "COMMON", ("brightness",))
    config = load_recipe(SMOKE, ["--epochs", "1", "--train_size", "64"])
    train(config, tmp_path / "run", track=False, test=False)
    job = ablate._Job(variant="", options=[], config=config, run=tmp_path / "run", shift=30)
    run = ["evaluate", str(tmp_path / "run"), "--split", "val", "--shift", "brightness", "--limit", "30", "--json"]
    assert main(run) == 0
    cells = json.loads(capsys.readouterr().out)["corruptions"]["brightness"].values()
    expected = statistics.mean(cell["accuracy"] for cell in cells)
    found = ablate._under_corruption(job, None)
    assert found["corruption_accuracy"] == pytest.approx(expected)
    right = bytes.fromhex(found["corruption_right"])
    assert (len(right), found["corrupted_images"], found["corruptions"]) == (30, 30, 5)
    assert sum(right) / 150 == pytest.approx(expected)
    monkeypatch.setattr(robustness, "measure", None)  # not measured again, unless it is of something else
    assert ablate._under_corruption(job, None) == found
    with pytest.raises(TypeError):
        ablate._under_corruption(replace(job, shift=31), None)


def corrupted(first: list[int], second: list[int], *, answers: bool = True) -> dict:
    """A record of three seeds of two variants: for each image, under how many of 75 corruptions it is right."""
    found = record([0.9, 0.91, 0.9], [0.92, 0.93, 0.93])
    for row in found["runs"]:
        right = [max(0, count - row["seed"]) for count in (second if row["options"] else first)]
        row |= {"corruption_accuracy": sum(right) / len(right) / 75, "corrupted_images": len(right), "corruptions": 75}
        row |= {"corruption_right": bytes(right).hex()} if answers else {}
    return found


def test_under_corruption_the_images_noise_is_that_of_the_differences_on_each_image():
    rng = random.Random(5)
    first = [rng.randrange(60) for _ in range(500)]
    alike = [count + rng.choice([0, 2, 4]) for count in first]  # better by 2.7 points
    other = [min(75, count + 2) for count in rng.sample(first, 500)]  # by as much, and wrong on other images
    verdicts = [
        ablate.compare(found, "corruption_accuracy")[1]["verdict"]
        for found in (corrupted(first, alike), corrupted(first, other), corrupted(first, alike, answers=False))
    ]
    assert verdicts == ["beyond noise", "within noise", "within noise"], "500 images tell no less than 4.3 points apart"


def test_paired_noise_is_that_of_a_mean():
    differences = [0.1, -0.2, 0.3, 0.0]
    assert seeds.paired_noise(differences) == pytest.approx(1.96 * statistics.stdev(differences) / 2)
    assert seeds.paired_noise([0.1]) == math.inf
    assert seeds.accuracy_noise(0.96, 10_000) == pytest.approx(0.0038, abs=1e-4)
    assert seeds.accuracy_noise(1, 100) == pytest.approx(0.0196), "of 100 right answers, the next may be wrong"


def test_a_study_with_shift_is_compared_by_both_measures(tmp_path, capsys, monkeypatch):
    found = record([0.9, 0.91], [0.95, 0.96])
    for row in found["runs"]:
        row |= {"corruption_accuracy": row["val_accuracy"] - 0.2, "corrupted_images": 500}
    monkeypatch.setattr(ablate, "carry_out", lambda study, *_, **__: found if study.shift == 500 else None)
    assert main(["ablate", str(SMOKE), "--vary", "optimizer.lr=1e-9", "--shift", "500", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["comparison"] == ablate.compare(found)
    assert printed["corruption_comparison"] == ablate.compare(found, "corruption_accuracy")


def test_both_measures_are_in_the_table_and_on_the_page():
    found = record([0.9, 0.91], [0.95, 0.96])
    for row in found["runs"]:
        row |= {"corruption_accuracy": row["val_accuracy"] - 0.2, "corrupted_images": 500}
    text = ablate.render(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "90.50 ± 0.71" in text
    assert "70.50 ± 0.71" in text
    row = (
        "| `--x 1` | 95.50 ± 0.71 % | +5.00 ± 0.00 | beyond noise | 75.50 ± 0.71 % | +5.00 ± 0.00 | beyond noise | 2 |"
    )
    assert row in ablate.markdown(found)


def test_more_images_under_corruption_than_are_held_out_are_refused():
    study = Study(recipe=SMOKE, variants={"a": [], "b": ["--epochs", "1"]}, shift=100_000)
    refused(lambda: ablate.carry_out(study, Path("runs")), "shift is 100,000", "held out")
    refused(lambda: Study(recipe=SMOKE, variants={"a": [], "b": []}, shift=-1), "shift is -1")


def test_corruptions_of_images_of_another_size_are_refused_before_anything_trains(tmp_path):
    large = ["--dataset", "folder", "--image-size", "64"]
    study = Study(recipe=SMOKE, variants={"a": [], "b": ["--epochs", "1"]}, always=large, shift=10)
    with pytest.raises(DataError, match="64"):
        ablate.carry_out(study, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_mistake_is_one_line(tmp_path, capfd):
    assert main(["ablate", str(SMOKE), "--vary", "optimizer.rate=1"]) == 1
    assert (
        capfd.readouterr().err
        == "budgetnet: error: --optimizer.rate is not an option (did you mean --optimizer.name?)\n"
    )
    study = tmp_path / "study.yaml"
    study.write_text("recipe: r.yaml\nvariants: {a: '', b: ''}")
    assert main(["ablate", str(study), "--vary", "epochs=1"]) == 1
    assert "leave --vary and --grid out" in capfd.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "ablations").glob("*.json")), ids=lambda path: path.stem)
def test_a_study_on_record_can_be_repeated_unless_it_asked_about_what_was_taken_out(path, tmp_path):
    found, path = json.loads(path.read_text()), path.with_suffix(".yaml")
    study = ablate.read_study(path)
    assert {row["variant"] for row in found["runs"]} == {*study.variants}
    if "was taken out" in path.read_text():
        with pytest.raises(ConfigError, match="is not an option"):
            ablate._plan(study, tmp_path)
    else:
        assert len(ablate._plan(study, tmp_path)) >= len(found["runs"])


def test_the_page_shows_the_records():
    page = records.ABLATIONS.read_text()
    assert records.with_ablations(page) == page, "run `make table`"
