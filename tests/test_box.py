"""The model that budgetnet brings: it is what its record says, answers at once, and gives way to a better one alone."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import budgetnet
from budgetnet import checkpoint, cifar, data, hub, runs
from budgetnet.cli import main
from budgetnet.errors import BudgetnetError, CheckpointError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "results"))

import box  # noqa: E402

BOX = ROOT / "src" / "budgetnet" / "box"


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """A folder with a picture alone."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)
    Image.fromarray(noise).resize((300, 200)).save("photo.png")
    return "photo.png"


# What is in the box


def test_the_model_is_the_one_that_its_record_tells_of_small_and_within_the_budget():
    record, model = hub.box_record(), budgetnet.load()
    assert box.digest(BOX) == record["sha256"]
    assert model.parameters == record["parameters"] <= 5_000_000
    assert (BOX / "model.safetensors").stat().st_size == record["float16"]["bytes"] < 10_000_000
    assert model.classes == cifar.CIFAR10_CLASSES
    assert {path.name for path in BOX.iterdir()} == {"README.md", "config.json", "model.safetensors", "record.json"}


def test_the_card_is_the_one_that_its_record_makes_and_names_licence_data_and_limits():
    text, record = (BOX / "README.md").read_text(), hub.box_record()
    assert text == box.card(budgetnet.load("box"), record)
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert (metadata["license"], metadata["datasets"]) == ("mit", ["cifar10"])
    values = [m["value"] for r in metadata["model-index"][0]["results"] for m in r["metrics"]]
    assert record["test"]["none"]["accuracy"] in values
    for part in (
        record["command"],
        "## Under shift",
        "## Limits",
        "one seed",
        "Licence",
        f"{record['temperature']:.3f}",
    ):
        assert part in text


def test_readme_and_record_say_the_same_of_the_model():
    test = hub.box_record()["test"]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"{100 * test['none']['accuracy']:.2f} % of CIFAR-10's test images" in text


@pytest.mark.real_data
def test_the_scores_of_the_record_are_measured_again_clean_and_under_a_corruption(real_data):
    shifted, model = hub.box_record()["shift"], budgetnet.load()
    pixels, labels, ids = box.some_test_images(data.load("cifar10", real_data), shifted["images"])
    assert len(labels) == shifted["images"]
    # Sums in another order may turn an image that is all but undecided.
    assert model.score(pixels, labels) == pytest.approx(shifted["clean"]["accuracy"], abs=0.002)
    noisy = box.shift.corrupt(pixels, "gaussian_noise", 3, indices=ids, seed=shifted["seed"])
    assert model.score(noisy, labels) == pytest.approx(
        shifted["corruptions"]["gaussian_noise"]["3"]["accuracy"], abs=0.004
    )


@pytest.mark.real_data
@pytest.mark.several  # half a minute
def test_the_test_accuracy_of_the_record_is_measured_again_on_all_test_images(real_data):
    images = data.load("cifar10", real_data).test
    accuracy = hub.box_record()["test"]["none"]["accuracy"]
    assert budgetnet.load().score(images.images, images.targets) == pytest.approx(accuracy, abs=0.0004)


# By name


def test_a_picture_alone_is_classified_by_the_model_of_the_box_and_it_is_said_what_that_knows(photo, capsys):
    assert main(["predict", photo]) == 0
    shown = capsys.readouterr()
    assert main(["predict", "box", photo]) == 0
    assert capsys.readouterr().out == shown.out
    first, *others = shown.out.splitlines()
    expected = budgetnet.load().predict_proba(photo)[0]
    assert first.split() == [photo, cifar.CIFAR10_CLASSES[expected.argmax()], f"{100 * expected.max():.1f}%"]
    assert others
    said = " ".join(shown.err.split())
    assert "By the model that budgetnet brings" in said
    assert "airplane, automobile, bird" in said


def test_json_is_alone_on_standard_output_and_has_all_classes_of_one_image_once(photo, capsys):
    assert main(["predict", photo, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["predictions"]) == 1


def test_the_box_is_inspected_and_loaded_by_name_but_a_run_of_that_name_comes_first(photo, tmp_path, capsys):
    assert main(["inspect", "box"]) == 0
    assert f"{hub.box_record()['parameters']:,}" in capsys.readouterr().out
    assert checkpoint.is_box("box")
    (tmp_path / "runs" / "box").mkdir(parents=True)
    assert checkpoint.located("box") == Path("runs/box")
    assert not checkpoint.is_box("box")


def test_a_model_without_something_to_classify_is_one_line(photo, tmp_path, capsys):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for what in ("box", "first", "models:/a@b"):
        assert main(["predict", what]) == 1
        error = capsys.readouterr().err
        assert f"{what} is a model: say what it shall classify" in error
        assert error.count("\n") == 1


def test_more_than_a_model_and_an_input_is_one_line(photo, capsys):
    assert main(["predict", "box", photo, "another.png"]) == 1
    assert "unrecognized arguments: another.png" in capsys.readouterr().err


def test_a_copy_that_brings_no_model_says_so(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "checkpoint.py"))
    assert main(["predict", photo]) == 1
    assert "this copy of budgetnet brings no model" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="brings no model"):
        budgetnet.load()


# Another one


CIFAR = ("--dataset", "cifar10", "--val_size", "5000")


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        (("--dataset", "digits"), {}, "is of digits, expected cifar10"),
        (CIFAR, {}, "was trained on other data than the official ones"),
        ((*CIFAR, "--train_on_test", "true"), {}, "was trained on the test images too"),
        (CIFAR, {"finished": False}, "has not finished: go on by"),
        ((*CIFAR[:2], "--val_size", "4000"), {"checksum": box.Rules().checksum}, "are compared on the same validation"),
        (CIFAR, {"checksum": box.Rules().checksum, "parameters": 5_000_001}, "5,000,001 parameters, expected at most"),
    ],
)
def test_a_run_that_has_no_place_in_the_box_is_refused(options, more, said, make_run, tmp_path):
    run = make_run(tmp_path / "run", *options, **more)
    with pytest.raises(BudgetnetError, match=said):
        box.choose([run], box.Rules(), tmp_path / "box")


def test_the_best_by_validation_is_taken_and_one_that_is_not_better_than_the_box_is_refused(make_run, tmp_path):
    checksum = box.Rules().checksum
    made = [make_run(tmp_path / str(val), *CIFAR, val=val, checksum=checksum) for val in (0.91, 0.93, 0.92)]
    best, found = box.choose(made, box.Rules(), tmp_path / "box")
    assert (best.folder, len(found)) == (made[1], 3)
    (tmp_path / "box").mkdir()
    there = {"run": "earlier", "validation": {"accuracy": 0.93}}
    (tmp_path / "box" / hub.RECORD).write_text(json.dumps(there))
    with pytest.raises(BudgetnetError, match=r"93\.00% of the validation images, and the model in the box \(earlier\)"):
        box.choose(made, box.Rules(), tmp_path / "box")


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    recipe = ROOT / "recipes" / "smoke.yaml"
    return budgetnet.train(recipe, output=folder, track=False, report=False, quiet=True)


def test_a_better_run_is_measured_and_takes_the_place_or_leaves_all_as_it_was(digits_run, tmp_path, monkeypatch):
    rules = box.Rules(dataset="digits", checksum=digits_run.checksum, val_size=200)
    there = tmp_path / "box"
    few = lambda *given: {"clean": {"accuracy": 1.0, "ece": 0.0}}  # noqa: E731  75 corruptions take a while
    monkeypatch.setattr(box, "shift_scores", few)
    monkeypatch.setattr(box, "card", lambda classifier, record: f"# {classifier.model.name}\n")
    record = box.replace_box([digits_run.folder], None, None, rules, there)
    assert {path.name for path in there.iterdir()} == {"README.md", "config.json", "model.safetensors", "record.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["box"]
    assert json.loads((there / hub.RECORD).read_text())["sha256"] == box.digest(there) == record["sha256"]
    own, boxed = digits_run.classifier, checkpoint.load_classifier(there)
    images = data.load("digits", None).test.images
    assert (own.predict(images) == boxed.predict(images)).mean() > 0.98
    assert record["test"]["none"]["n"] == 359
    before = box.digest(there)
    with pytest.raises(BudgetnetError, match="it stays"):
        box.replace_box([digits_run.folder], None, None, rules, there)
    assert box.digest(there) == before
    (there / hub.RECORD).write_text(json.dumps(record | {"validation": {"accuracy": 0.0}}))
    monkeypatch.setattr(box, "card", lambda classifier, record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        box.replace_box([digits_run.folder], None, None, rules, there)
    assert box.digest(there) == before
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


def test_the_command_that_trains_the_like_is_the_nearest_recipe_with_what_differs(digits_run):
    assert box.command(digits_run.config) == "budgetnet train recipes/smoke.yaml"
    other = replace(runs.read(digits_run.folder), config=digits_run.config | {"seed": 7})
    assert box.command(other.config) == "budgetnet train recipes/smoke.yaml --seed 7"
