"""The journeys a user makes, through the real command line."""

import argparse
import csv
import json
import os
import pickle
import re
import resource
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from mlflow_server import stored
from PIL import Image

from budgetnet import checkpoint, cifar, data, devices, engine, evaluate, export, models, shift, splits
from budgetnet.classifier import Classifier
from budgetnet.cli import _parser, main
from budgetnet.cli.common import EXAMPLES, json_text, stop_by_signal
from budgetnet.config import DatasetName, ModelConfig, StageConfig, Tta
from budgetnet.inputs import normalize
from budgetnet.logits import SHARES, SHIFTS, predict_logits
from budgetnet.options import sections
from budgetnet.progress import Progress
from budgetnet.words import VIEWS

ROOT = Path(__file__).parent.parent
SMOKE = str(ROOT / "recipes" / "smoke.yaml")
BUDGETNET = [sys.executable, "-m", "budgetnet"]


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "BUDGETNET"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]]), **more}


def budgetnet(*arguments: str, cwd: Path, code: int = 0, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [*BUDGETNET, *arguments], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == code, done.stderr
    return done


def python(program: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a finished run in `run`, made by the real command, and unlabelled images in `digits.npy`."""
    folder = tmp_path_factory.mktemp("home")
    done = budgetnet("train", SMOKE, "--output", "run", cwd=folder)
    assert "test accuracy" in done.stdout
    digits = data.load("digits", None).test
    np.save(folder / "digits.npy", digits.images[:50].permute(0, 2, 3, 1).numpy())
    with open(folder / "labels.csv", "w") as file:
        file.write("ID,Labels\n" + "".join(f"{i},{y}\n" for i, y in enumerate(digits.labels[:50].tolist())))
    return folder


def test_a_training_writes_its_folder_its_mlflow_record_and_a_readable_account(home):
    names = {path.name for path in (home / "run").iterdir()}
    assert {"config.yaml", "metrics.csv", "last.ckpt", "best.safetensors", "summary.json"} <= names
    assert (home / "mlflow.db").is_file()


def test_the_mlflow_record_of_a_run_is_complete(home, monkeypatch):
    monkeypatch.chdir(home)
    found = stored(f"sqlite:///{home / 'mlflow.db'}", home / "run")
    assert (found["params"]["optimizer.lr"], found["status"]) == ("0.1", "FINISHED")
    assert int(found["tags"]["parameters"]) == json.loads((home / "run" / "summary.json").read_text())["parameters"]
    assert {"config.yaml", "metrics.csv", "best.safetensors", "summary.json"} <= found["files"].keys()


def shell(command: str, **more: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command whose outputs go where the line says."""
    line = f"set -o pipefail; {shlex.join(BUDGETNET)} {command}"
    done = subprocess.run(["bash", "-c", line], env=environment(**more), capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_output_that_cannot_be_written_is_told_in_one_line_where_nothing_is_buffered():
    expected = "budgetnet: error: cannot write the output: No space left on device; free some space where it goes\n"
    assert shell("models > /dev/full", PYTHONUNBUFFERED="1") == (1, "", expected)


def test_a_shell_may_close_either_output():
    assert shell("models >&-") == (0, "", "")
    code, out, _ = shell("models 2>&-")
    assert code == 0
    assert "resnet_leaky" in out


def test_a_training_whose_reader_leaves_says_how_to_go_on(tmp_path):
    code, _, told = shell(f"train {SMOKE} --epochs 50 --no-track --output {tmp_path / 'run'} | head -1")
    assert code == 1
    assert told == "budgetnet: error: nobody reads the output any more: the run has stopped; go on by --resume\n"


def test_what_commands_offer_is_what_recipes_know():
    """Help is made without importing the configuration."""
    known = {"dataset": get_args(DatasetName), "tta": get_args(Tta)}
    assert {"none", *SHIFTS} == {"none", *SHARES} == {*VIEWS} == {*known["tta"]}
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    offered = [
        (action.dest, action.choices)
        for command in commands.choices.values()
        for action in command._actions
        if action.dest in known and action.choices
    ]
    assert {name for name, _ in offered} == {*known}
    for name, choices in offered:
        assert tuple(choices) == known[name]


def test_evaluate_agrees_with_the_summary_and_its_json_is_alone_on_standard_output(home):
    done = budgetnet("evaluate", "run", "--json", cwd=home)
    scores = json.loads(done.stdout)
    final = json.loads((home / "run" / "summary.json").read_text())["final"]
    assert scores["accuracy"] == pytest.approx(final["test_accuracy"], abs=0.003)
    assert scores["loss"] == pytest.approx(final["test_loss"], rel=1e-3)
    assert np.sum(scores["confusion"]) == scores["n"] == 359


def test_onnx_runtime_computes_where_it_can_and_finds_what_pytorch_finds(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    found = {}
    for choice in ("auto", "onnx", "torch"):
        assert main(["evaluate", "run", "--engine", choice, "--json"]) == 0
        found[choice] = json.loads(capsys.readouterr().out)
    computed_by = {choice: scores.pop("engine") for choice, scores in found.items()}
    assert computed_by == {"auto": "onnx", "onnx": "onnx", "torch": "torch"}
    assert found["auto"] == found["onnx"]
    assert found["torch"]["confusion"] == found["onnx"]["confusion"]
    assert found["torch"]["loss"] == pytest.approx(found["onnx"]["loss"], rel=1e-5)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_onnx_runtime_pytorch_computes_and_one_line_says_so(package, home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["evaluate", "run", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["engine"] == "torch"
    assert shown.err.startswith("budgetnet: warning: onnx and onnxruntime are not installed")
    assert shown.err.count("\n") == 1
    assert main(["predict", "run", "digits.npy", "--engine", "onnx"]) == 1
    assert f"pip install {package}" in capsys.readouterr().err
    assert main(["predict", "run", "digits.npy", "--engine", "torch"]) == 0
    assert capsys.readouterr().err == ""


def test_evaluate_in_int8_tells_what_it_costs_on_the_same_images(home, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    assert main(["evaluate", "run", "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "run", "--precision", "int8", "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    scores = json.loads(shown.out)
    cost = scores["int8"]
    assert (exact["arithmetic"], scores["arithmetic"]) == ("fp32", "int8")
    assert (cost["fp32_accuracy"], cost["int8_accuracy"]) == (exact["accuracy"], scores["accuracy"])
    assert cost["points_lost"] == pytest.approx(100 * (exact["accuracy"] - scores["accuracy"]))
    assert cost["points_lost"] / 100 <= cost["predictions_changed"]
    np.save(tmp_path / "test.npy", data.load("digits", None).test.images.permute(0, 2, 3, 1).numpy())
    told = []
    for precision in ("fp32", "int8"):
        command = ["predict", "run", str(tmp_path / "test.npy"), "--precision", precision, "--probabilities"]
        assert main([*command, "--output", str(tmp_path / f"{precision}.csv")]) == 0
        told.append(np.loadtxt(tmp_path / f"{precision}.probabilities.csv", delimiter=",", skiprows=1)[:, 1:])
    capsys.readouterr()
    assert cost["predictions_changed"] == (told[0].argmax(1) != told[1].argmax(1)).mean()
    # How many answers are near a tie after so few steps is up to the processor that trained; how near int8 is, less so.
    assert abs(told[0] - told[1]).sum(1).mean() / 2 < 0.03
    assert (cost["split"], cost["images"]) == ("test", 359)
    assert scores["loss"] != exact["loss"]
    assert main(["evaluate", "run", "--precision", "int8"]) == 0
    title, cost = capsys.readouterr().out.splitlines()[-2:]
    assert title == "int8 instead of fp32 on 359 images of the test split:"
    assert re.fullmatch(r"  accuracy .*% -> .*% \(.* points\), .*% of predictions changed", cost)


def test_predict_in_int8_tells_what_it_costs_on_the_validation_split(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["evaluate", "run", "--split", "val", "--json"]) == 0
    val = json.loads(capsys.readouterr().out)
    assert main(["predict", "run", "digits.npy", "--precision", "int8", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["int8"]["split"], result["int8"]["images"]) == ("val", val["n"])
    assert result["int8"]["fp32_accuracy"] == val["accuracy"]
    assert main(["predict", "run", "digits.npy", "--output", "int8.csv", "--precision", "int8"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("int8 instead of fp32 on ")


def test_int8_is_calibrated_on_images_that_the_model_was_trained_on_alone(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    seen = []
    usual = engine.compile_network

    def spy(network, image_shape, **options):
        seen.extend(options.get("calibration", []))
        return usual(network, image_shape, **options)

    monkeypatch.setattr(engine, "compile_network", spy)
    assert main(["evaluate", "run", "--split", "val", "--precision", "int8", "--json"]) == 0
    best = checkpoint.load_classifier(home / "run")
    config, images = best.provenance["config"], data.load("digits", None).train
    trained, _ = splits.split(images.labels, config["val_size"], config["split_seed"])
    allowed = {x.numpy().tobytes() for x in normalize(images.images[trained], best.mean, best.std)}
    assert len(seen) == 512
    assert all(image.numpy().tobytes() in allowed for image in seen)


def test_onnx_runtime_means_the_cpu_and_another_device_is_refused(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(devices, "find", lambda name: torch.device("cuda" if name in ("auto", "cuda") else name))
    assert main(["predict", "run", "digits.npy", "--engine", "onnx"]) == 0
    capsys.readouterr()
    for options in (["--engine", "onnx"], ["--precision", "int8"]):
        assert main(["predict", "run", "digits.npy", "--device", "cuda", *options]) == 1
        assert "computes on the CPU: leave out --device cuda" in capsys.readouterr().err


def test_evaluate_on_the_validation_split_finds_the_accuracy_that_chose_the_weights(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["evaluate", "run", "--split", "val", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] == checkpoint.load_classifier(home / "run").provenance["val_accuracy"]
    assert main(["evaluate", "run", "--split", "train"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_validation_images_are_corrupted_by_their_place_in_the_training_set_and_scored(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    command = ["evaluate", "run", "--shift", "gaussian_noise", "--split", "val"]
    assert main([*command, "--severity", "5", "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    result = json.loads(shown.out)
    assert (result["images"], result["split"], result["source"], result["seed"]) == (200, "val", "generated", 0)
    assert result["mean_corruption"] is None
    assert main(["evaluate", "run", "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["clean"]["accuracy"]

    best, train = checkpoint.load_classifier(home / "run"), data.load("digits", None).train
    config = best.provenance["config"]
    _, chosen = splits.split(train.labels, config["val_size"], config["split_seed"])
    noisy = shift.corrupt(train.images[chosen], "gaussian_noise", 5, indices=chosen)
    scores = evaluate.score(predict_logits(best.network, noisy, best.mean, best.std), train.labels[chosen])
    cell = result["corruptions"]["gaussian_noise"]["5"]
    assert (cell["accuracy"], cell["loss"]) == (scores.accuracy, pytest.approx(scores.loss, rel=1e-5))

    assert main([*command, "--limit", "40", "--output", "heat.svg"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "40 images of the val split; corruptions generated with seed 0" in shown
    assert (home / "heat.svg").read_text().startswith("<?xml")


def test_all_corruptions_are_measured_with_their_mean_and_progress_goes_to_standard_error(home, capfd, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["evaluate", "run", "--shift", "all", "--severity", "3", "--limit", "30"]) == 0
    out, err = capfd.readouterr()
    lines = [line for line in out.splitlines() if line]
    assert [line.split()[0] for line in lines[1:21]] == [*shift.COMMON, "mean", *shift.EXTRA]
    assert max(map(len, lines)) <= 80
    assert "stand-in" in out
    assert err.splitlines()[-1] == "scored 20 of 20 sets of images"


def test_a_limit_keeps_each_class_in_its_share(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    found = []
    for options in ([], ["--limit", "90"]):
        assert main(["evaluate", "run", *options, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    counts, some = (np.sum(scores["confusion"], 1) for scores in found)
    assert (found[1]["n"], found[1]["limit"], found[0]["limit"]) == (90, 90, None)
    assert (np.abs(some - counts * 90 / 359) < 1).all()


def test_each_remedy_is_told_with_what_it_did_to_the_images_that_were_scored(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    command = ["evaluate", "run", "--norm-statistics", "target", "--norm-prior", "16", "--temperature", "fit"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "run", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    norms, temperature = found["remedies"]
    assert (norms["remedy"], norms["prior"], temperature["remedy"]) == ("norm statistics", 16, "temperature")
    keys = ("accuracy", "loss", "ece")
    assert norms["before"] == {key: plain[key] for key in keys}
    assert norms["after"] == temperature["before"] != norms["before"]
    assert temperature["after"] == {key: found[key] for key in keys}
    assert temperature["after"]["accuracy"] == temperature["before"]["accuracy"]
    assert temperature["after"]["loss"] != temperature["before"]["loss"]
    fitted = temperature["fitted"]
    assert (fitted["split"], fitted["images"]) == ("val", 200)
    assert fitted["after"]["loss"] < fitted["before"]["loss"]
    assert norms["gain"]["accuracy"] == pytest.approx(norms["after"]["accuracy"] - norms["before"]["accuracy"])
    assert norms["gain"]["noise"] > 0
    assert temperature["gain"] == {"accuracy": 0, "noise": 0}, "it changes no label"

    corrupted = ["--split", "val", "--shift", "contrast", "--severity", "4", "--limit", "60", "--engine", "torch"]
    assert main([*command, *corrupted]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (norms,) = (i for i, line in enumerate(lines) if line.startswith("norm statistics of these images (training's"))
    assert re.fullmatch(r"temperature [\d.]+, fitted on the 200 validation images \(scored here too\)", lines[-3])
    assert [line.split()[0] for line in lines[-2:]] == ["clean", "shifted"], "no label changed"
    words = [line.split() for line in lines[norms + 1 : -3]]
    assert [line[0] for line in words if line[1] == "accuracy"] == ["clean", "shifted"]
    (judged,) = words[words.index(next(line for line in words if line[0] == "shifted")) + 1 :]
    assert re.fullmatch(r"[+-][\d.]+ ± [\d.]+ points, (beyond|within) the noise of these images", " ".join(judged))


def test_predict_takes_remedies_and_tells_what_they_changed(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    command = ["predict", "run", "digits.npy", "--norm-statistics", "target", "--temperature", "fit"]
    assert main([*command, "--output", "remedied.csv", "--labels", "labels.csv", "--probabilities"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-6].startswith("norm statistics of these images ")
    assert re.fullmatch(r"  .*% of predictions changed, accuracy .*% -> .*%", lines[-5])
    assert re.fullmatch(r" {10}[+-][\d.]+ ± [\d.]+ points, (beyond|within) the noise of these images", lines[-4])
    assert re.fullmatch(r"temperature .*, fitted on the 200 validation images", lines[-3])
    assert lines[-2].startswith("  0.00% of predictions changed")
    assert lines[-1].startswith("  there   accuracy ")
    assert main([*command, "--json"]) == 0
    norms, temperature = json.loads(capsys.readouterr().out)["remedies"]
    assert 0 < norms["predictions_changed"] < 1
    with open(home / "remedied.probabilities.csv", newline="") as file:
        fitted = np.array([[float(row[str(c)]) for c in range(10)] for row in csv.DictReader(file)])
    by_hand = str(temperature["temperature"])
    command[-1] = by_hand
    assert main([*command, "--output", "again.csv", "--probabilities"]) == 0
    with open(home / "again.probabilities.csv", newline="") as file:
        again = np.array([[float(row[str(c)]) for c in range(10)] for row in csv.DictReader(file)])
    assert np.array_equal(fitted, again)
    assert main([*command[:5], "--output", "cold.csv", "--probabilities"]) == 0
    with open(home / "cold.probabilities.csv", newline="") as file:
        untempered = np.array([[float(row[str(c)]) for c in range(10)] for row in csv.DictReader(file)])
    powers = untempered ** (1 / temperature["temperature"])
    assert np.allclose(powers / powers.sum(1, keepdims=True), fitted, atol=1e-5)


def test_what_views_count_for_is_fitted_told_and_given_again(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    command = ["evaluate", "run", "--tta", "crops", "--view-weights"]
    assert main([*command, "fit", "--temperature", "fit", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    views, temperature = found["remedies"]
    assert (views["remedy"], temperature["remedy"], views["fitted"]["images"]) == ("views", "temperature", 200)
    assert sum(views["shares"]) == pytest.approx(1)
    assert temperature["before"] == views["after"] != views["before"]
    again = ",".join(map(repr, views["shares"]))
    assert main([*command, again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remedies"][0]["after"] == views["after"]
    assert main(["predict", "run", "digits.npy", *command[2:], again]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r" views that count for [\d.e-]+ : [\d.e-]+ : [\d.e-]+:? [\d.]+% of predictions changed$", told)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--view-weights", "fit"], "--tta flip-shift or crops"),
        (["--tta", "flip", "--view-weights", "1"], "--tta flip-shift or crops"),
        (["--tta", "crops", "--view-weights", "1,2"], "2 numbers, expected 3"),
        (["--tta", "crops", "--view-weights", "1,-2,0"], "numbers of 0 and above"),
        (["--tta", "crops", "--view-weights", "0,0,0"], "numbers of 0 and above"),
        (["--tta", "crops", "--view-weights", "1,2,nan"], "numbers of 0 and above"),
    ],
)
def test_weights_of_views_that_make_no_sense_are_refused(home, capsys, monkeypatch, options, said):
    monkeypatch.chdir(home)
    assert main(["evaluate", "run", *options]) == 1
    assert said in capsys.readouterr().err


def test_a_submission_has_a_row_an_image_and_is_scored_against_known_labels(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    command = ["predict", "run", "digits.npy", "--output", "out.csv", "--probabilities", "--labels", "labels.csv"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    with open(home / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ID"] for row in rows] == [str(i) for i in range(50)]
    assert list(rows[0]) == ["ID", "Labels"]
    with open(home / "labels.csv", newline="") as file:
        right = [row["Labels"] for row in csv.DictReader(file)]
    assert result["scores"]["accuracy"] == np.mean([row["Labels"] == y for row, y in zip(rows, right, strict=True)])
    with open(home / "out.probabilities.csv", newline="") as file:
        probabilities = list(csv.DictReader(file))
    best = [max("0123456789", key=lambda c: float(row[c])) for row in probabilities]
    assert best == [row["Labels"] for row in rows]
    assert main(command) == 0
    assert "out.csv: 50 rows" in capsys.readouterr().out


def test_a_contest_pickle_is_predicted_under_its_own_ids(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    images = np.load(home / "digits.npy")[:5]
    (home / "contest.pkl").write_bytes(pickle.dumps({b"data": images, b"ids": np.array([7, 3, 9, 1, 0])}))
    assert main(["predict", "run", "contest.pkl", "--output", "contest.csv"]) == 0
    assert [line.split(",")[0] for line in (home / "contest.csv").read_text().split()] == ["ID", *"73910"]


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("predict m v.png --output v.png", "v.png"),
        ("predict m ./v.png --output v.csv", "v.png"),
        ("predict m own.pkl --output own.pkl", "own.pkl"),
        ("predict m own.pkl --output L.csv --labels L.csv", "L.csv"),
        ("predict m own.pkl --output L.csv --labels L.probabilities.csv --probabilities", "L.probabilities.csv"),
        ("predict m own.pkl --output m/best.safetensors", "m/best.safetensors"),
        ("predict runs/n own.pkl --output m/best.safetensors", "m/best.safetensors"),
        ("predict n own.pkl --output m/best.safetensors", "m/best.safetensors"),
        ("predict m own.pkl --output m/metrics.csv", "metrics.csv"),
        ("evaluate n --shift all --output m/summary.json", "summary.json"),
        ("export m --format safetensors --precision fp16 --output m/best.safetensors", "m/best.safetensors"),
        ("export ref.bin --format openvino --output ref.xml", "ref.bin"),
        ("export index.html --page --output m.onnx", "index.html"),
    ],
)
def test_no_command_writes_over_what_it_reads_or_what_belongs_to_it(command, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "find_spec", lambda package: package)  # OpenVINO need not be there
    for folder in ("m", "runs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "runs" / "n").symlink_to(tmp_path / "m")
    for name in ("own.pkl", "v.png", "L.csv", "L.probabilities.csv", "m/best.safetensors", "ref.bin", "index.html"):
        (tmp_path / name).write_text(name)  # which nothing could read: it is refused before
    (tmp_path / "v.csv").symlink_to(tmp_path / "v.png")
    before = everything(tmp_path)
    assert main(command.split()) == 1
    assert re.fullmatch(
        rf"budgetnet: error: cannot write \S+: it is \S*{Path(file).name}, which is needed; choose another --output\n",
        capsys.readouterr().err,
    )
    assert everything(tmp_path) == before


def test_a_single_image_is_classified_on_the_terminal(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    Image.fromarray(np.load(home / "digits.npy")[0]).resize((90, 70)).save(home / "one.png")
    assert main(["predict", "run", "one.png"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"one\.png +\d +\d+\.\d%", first)
    assert all(re.fullmatch(r" +(\d|\d others) +\d+\.\d%", line) for line in others)
    shares = [float(line.split()[-1].rstrip("%")) for line in (first, *others)]
    assert sum(shares) == pytest.approx(100, abs=0.4)


def test_inspect_shows_a_network_a_recipe_and_a_run_and_draws_them(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["inspect", "resnet_leaky"]) == 0
    assert "4,773,354" in capsys.readouterr().out
    assert main(["inspect", SMOKE, "--picture", "smoke.svg"]) == 0
    assert (home / "smoke.svg").read_text().startswith("<?xml")
    assert main(["inspect", "run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["provenance"]["epoch"] >= 1


def test_inspect_knows_a_recipe_that_budgetnet_brings_by_its_name_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = []
    for name in ("quick", "quick.yaml", str(ROOT / "recipes" / "quick.yaml")):
        assert main(["inspect", name]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]


def test_inspecting_a_network_needs_no_memory_for_it(tmp_path, capsys):
    recipe = tmp_path / "wide.yaml"
    recipe.write_text("model: {name: enhanced, width: 100000}\nbudget: null\n")
    for wide in (["enhanced", "--width", "100000"], [str(recipe)]):
        assert main(["inspect", *wide, "--json"]) == 0
        layers = json.loads(capsys.readouterr().out)["layers"]
        assert (layers[0]["parameters"], layers[0]["multiply_adds"]) == (27 * 100_000, 27 * 100_000 * 32**2)


def test_pictures_in_folders_are_trained_on_tested_and_predicted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = data.load("digits", None)
    for part, images, count in (("train", digits.train, 120), ("test", digits.test, 30)):
        for i in range(count):
            folder = tmp_path / "photos" / part / f"digit {int(images.labels[i]) % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(images.images[i].permute(1, 2, 0).numpy()).resize((20 + i % 7, 30))
            picture.save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    options = ["--dataset", "folder", "--data", "photos", "--image-size", "16", "--val-size", "20", "--no-track"]
    assert main(["train", SMOKE, *options, "--no-report", "--output", "run"]) == 0
    assert main(["evaluate", "run", "--data", "photos", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 30
    assert main(["predict", "run", "photos/test/digit 1", "--output", "out.csv", "--probabilities"]) == 0
    with open(tmp_path / "out.probabilities.csv", newline="") as file:
        assert next(csv.DictReader(file)).keys() == {"ID", "File", "digit 0", "digit 1", "digit 2"}


def test_track_sends_what_was_not_tracked_and_sends_it_once(home, capsys, monkeypatch):
    import mlflow

    monkeypatch.chdir(home)
    train = ["train", SMOKE, "--no-track", "--no-report", "--epochs", "1", "--experiment", "later", "--output", "later"]
    assert main(train) == 0
    capsys.readouterr()
    assert main(["track", "later"]) == 0
    first = capsys.readouterr().out
    assert main(["track", "later"]) == 0
    assert capsys.readouterr().out == first
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("later").experiment_id])
    assert run.info.run_id == first.strip()
    assert len(client.get_metric_history(run.info.run_id, "val_accuracy")) == 1


def test_models_lists_the_registry_and_what_fits(capsys, monkeypatch):
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert set(rows) == set(models.names())
    assert rows["resnet18"]["parameters"] == 11_173_962
    assert not rows["resnet18"]["fits"]
    assert rows["enhanced"]["fits"]
    monkeypatch.setattr(models, "names", lambda: ("resnet_leaky",))  # to look at all of them takes seconds
    assert main(["models"]) == 0
    assert "4,773,354" in capsys.readouterr().out
    for written in ("4773354", "4_773_354", "4.773354e6"):
        assert main(["models", "--budget", written]) == 0
        heads, row = capsys.readouterr().out.splitlines()
        assert (heads[-14:], row[-3:]) == ("fits 4,773,354", "yes")


def test_print_config_prints_a_recipe_for_the_same_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", SMOKE, "--optimizer.lr", "0.3", "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(printed := capsys.readouterr().out)
    assert "lr: 0.3" in printed
    assert main(["train", "printed.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["train", "printed.yaml", "--print-config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(printed)
    assert [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]


def test_json_puts_one_object_on_standard_output_and_quiet_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", SMOKE, "--no-track", "--epochs", "1"]
    assert main([*command, "--no-report", "--output", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "one" / "summary.json").read_text())
    assert main([*command, "--output", "two", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


UNTRACKED = ["train", SMOKE, "--no-track", "--no-report", "--epochs", "4", "--threads", "1", "--output"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """What no signal stops."""
    run = tmp_path_factory.mktemp("undisturbed") / "whole"
    torch.set_num_threads(1)
    assert main([*UNTRACKED, str(run)]) == 0
    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_and_the_printed_command_goes_on_to_the_same_weights(
    number, code, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen(
        [*BUDGETNET, *UNTRACKED, "run"],
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.strip().startswith("1 "):  # the row of the first epoch
                process.send_signal(number)
                break
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "stopping after this step" in rest
    again = re.search(r"to go on: budgetnet (.*)", errors)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(shlex.split(again[1])) == 0
    one, other = (checkpoint.load_state(run / "last.ckpt")["network"] for run in (undisturbed, tmp_path / "run"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_signal_in_the_middle_of_a_line_is_told_after_it_and_once():
    class Lines(Progress):
        def __init__(self):
            self.lines = []

        def say(self, text):
            self.lines.append(text)

    progress, before = Lines(), signal.getsignal(signal.SIGTERM)
    with stop_by_signal(progress, alone=False) as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert progress.lines == []  # a handler that writes while a line is written fails: "reentrant call"
        assert [stop(), stop(), stop.number] == [True, True, signal.SIGTERM]
        assert progress.lines == ["stopping after this step"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_while_there_is_nothing_to_save_ends_at_once_and_leaves_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda *arguments, **options: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not have
    try:
        assert main(["train", SMOKE, "--no-track", "--output", "run"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "budgetnet: interrupted\n"
    assert not list(tmp_path.iterdir())


def _reference_checkpoint(path: Path, name: str = "resnet_bottleneck", prefix: str = "module.") -> None:
    torch.manual_seed(0)
    weights = models.build(ModelConfig(name=name), 10).state_dict()
    torch.save(
        {"net": {prefix + key: value for key, value in weights.items()}, "acc": 95.5, "epoch": 3, "optimizer": {}}, path
    )


def test_a_checkpoint_of_the_reference_project_is_inspected_and_predicts(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    _reference_checkpoint(home / "leaky.pth")
    assert main(["inspect", "leaky.pth", "--model", "resnet_bottleneck"]) == 0
    assert "0.2023" in capsys.readouterr().out
    assert main(["predict", "leaky.pth", "digits.npy", "--model", "resnet_bottleneck", "--output", "leaky.csv"]) == 0
    assert len((home / "leaky.csv").read_text().splitlines()) == 51


def tiny_cifar10(folder: Path, images: int = 4) -> None:
    """CIFAR-10's layout with a few random images a file."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (images, 3072), np.uint8)
        labels = [int(x) for x in rng.integers(0, 9, images)]
        (batches / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}))
    names = [name.encode() for name in cifar.CIFAR10_CLASSES]
    meta = {b"label_names": names, b"num_cases_per_batch": images}
    (batches / "batches.meta").write_bytes(pickle.dumps(meta))


def test_a_checkpoint_of_the_reference_project_is_evaluated(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _reference_checkpoint(tmp_path / "leaky.pth", prefix="")
    tiny_cifar10(tmp_path / "tiny")
    assert main(["evaluate", "leaky.pth", "--model", "resnet_bottleneck", "--data", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4
    (tmp_path / "one.npy").symlink_to(home / "digits.npy")
    int8 = ["--precision", "int8", "--data", "tiny", "--json"]
    assert main(["predict", "leaky.pth", "one.npy", "--model", "resnet_bottleneck", *int8]) == 0
    cost = json.loads(capsys.readouterr().out)["int8"]
    assert (cost["split"], cost["images"]) == ("train", 20)
    assert main(["evaluate", "leaky.pth", "--model", "resnet_bottleneck", "--data", "tiny", "--split", "val"]) == 1
    assert "does not say which images it was chosen by" in capsys.readouterr().err


def test_official_corrupted_images_and_new_test_sets_are_read_and_said_to_be(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(name="residual", stages=(StageConfig(depth=1, width=4),))
    best = Classifier(
        network=models.build(model, 10),
        model=model,
        classes=cifar.CIFAR10_CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        image_size=32,
    )
    checkpoint.save_classifier(tmp_path / "model.safetensors", best)
    tiny_cifar10(tmp_path / "tiny")
    labels = data.load("cifar10", tmp_path / "tiny").test.labels
    rng = np.random.default_rng(0)
    official = tmp_path / "tiny" / "CIFAR-10-C"
    official.mkdir()
    np.save(official / "labels.npy", np.tile(labels.numpy(), 5).astype(np.uint8))
    np.save(official / "fog.npy", rng.integers(0, 256, (20, 32, 32, 3), np.uint8))
    np.save(tmp_path / "tiny" / "cifar10.1_v6_data.npy", rng.integers(0, 256, (7, 32, 32, 3), np.uint8))
    np.save(tmp_path / "tiny" / "cifar10.1_v6_labels.npy", np.arange(7, dtype=np.int32))
    command = ["evaluate", "model.safetensors", "--data", "tiny"]

    assert main([*command, "--shift", "fog", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["source"], result["seed"], list(result["corruptions"]["fog"])) == (
        str(Path("tiny") / "CIFAR-10-C"),
        None,
        list("12345"),
    )
    third = torch.from_numpy(np.load(official / "fog.npy")[8:12]).permute(0, 3, 1, 2)
    scores = evaluate.score(predict_logits(best.network, third, best.mean, best.std), labels)
    assert result["corruptions"]["fog"]["3"]["loss"] == pytest.approx(scores.loss, rel=1e-4)
    assert main([*command, "--shift", "fog", "--severity", "2"]) == 0
    assert "4 images of the test split; corrupted as in tiny/CIFAR-10-C" in capsys.readouterr().out
    assert main([*command, "--shift", "snow"]) == 1
    assert "snow.npy: no such file or directory" in capsys.readouterr().err

    assert main([*command, "--shift", "cifar10.1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["dataset"], result["n"], result["split"]) == ("cifar10.1", 7, "test")
    assert main([*command, "--shift", "cifar10.2"]) == 1
    assert "expected cifar102_test.npz, in it or in a folder of it" in capsys.readouterr().err
    assert main([*command, "--temperature", "fit"]) == 1
    assert (
        "--temperature fit needs a validation split, and none of model.safetensors is known" in capsys.readouterr().err
    )


def test_a_class_that_no_image_has_counts_none(tmp_path, capsys):
    tiny_cifar10(tmp_path / "tiny")
    assert main(["data", "stats", str(tmp_path / "tiny"), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts["truck"] == 0
    assert sum(counts.values()) == 20


@pytest.mark.parametrize("name", ["one.png", "some.npy", "contest.pkl"])
def test_images_without_labels_have_statistics_and_no_classes(name, tmp_path, capsys):
    black = np.zeros((1, 32, 32, 3), np.uint8)
    Image.fromarray(black[0]).save(tmp_path / "one.png")
    np.save(tmp_path / "some.npy", black)
    (tmp_path / "contest.pkl").write_bytes(pickle.dumps({"data": black}))
    assert main(["data", "stats", str(tmp_path / name)]) == 0
    zeros = "0.00000 0.00000 0.00000"
    assert capsys.readouterr().out == f"{tmp_path / name}: 1 image\n  mean {zeros}\n  std  {zeros}\n"


def test_a_name_with_line_ends_stays_in_its_line(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a\nb", "c\td"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / f"{name}.png")
    checkpoint.save_classifier(
        tmp_path / "m.safetensors", replace(checkpoint.load_classifier(home / "run"), classes=("a\nb", *"123456789"))
    )
    for command, lines in (
        ("data stats photos", ["photos: 2 images", "  a\ufffdb ", "  c\ufffdd ", "  mean ", "  std "]),
        ("predict m.safetensors photos", ["a\ufffdb/a\ufffdb.png ", "c\ufffdd/c\ufffdd.png "]),
    ):
        assert main(command.split()) == 0
        shown = capsys.readouterr().out.splitlines()
        assert [line.startswith(start) for line, start in zip(shown, lines, strict=True)] == [True] * len(lines)
    assert main(["inspect", "m.safetensors"]) == 0
    assert "classes: a\ufffdb, 1, 2, 3" in capsys.readouterr().out


def test_class_names_are_printed_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("[small]", ":cat:", "[x]"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    options = ["--dataset", "folder", "--data", "photos", "--image-size", "16", "--val-size", "6", "--no-track"]
    assert main(["train", SMOKE, *options, "--no-report", "--epochs", "1", "--output", "run"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", "photos"]) == 0
    shown = capsys.readouterr().out
    assert "[small]" in shown
    assert ":cat:" in shown


def test_inspecting_a_recipe_counts_the_classes_of_its_data(tmp_path, capsys):
    (tmp_path / "hundred.yaml").write_text("dataset: cifar100\n")
    assert main(["inspect", str(tmp_path / "hundred.yaml")]) == 0
    assert "4,986,828" in capsys.readouterr().out


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch was_run",))


@pytest.fixture(scope="module")
def bad(home, tmp_path_factory) -> Path:
    """A folder of files that no one should be able to use, and the good ones of `home`."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "home").symlink_to(home)
    (folder / "empty").mkdir()
    (folder / "garbage.bin").write_bytes(b"\x00\xff" * 1000)
    (folder / "hostile.pkl").write_bytes(pickle.dumps({b"data": Hostile()}))
    torch.save({"net": Hostile()}, folder / "hostile.pth")
    (folder / "typo.yaml").write_text("optimizer: {momemtum: 0.9}\n")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n, but no more")
    np.save(folder / "small.npy", np.zeros((4, 20, 20, 3), np.uint8))
    (folder / "contest.pkl").write_bytes(pickle.dumps({b"data": np.zeros((4, 1000), np.uint8)}))
    _reference_checkpoint(folder / "other.pth")
    batches = folder / "truncated" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (batches / name).write_bytes(
            pickle.dumps({b"data": np.zeros((10, 3072), np.uint8), b"labels": [0] * 10})[:-100]
        )
    (batches / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"x"] * 10}))
    (folder / "file").write_text("no folder")
    (folder / "few.csv").write_text("ID,Labels\n0,1\n1,2\n")
    tiny_cifar10(folder / "tiny")
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "COMMAND"),
        ("trian", "invalid choice: 'trian'"),
        ("train", "which recipe"),
        ("train nowhere.yaml", "nowhere.yaml cannot be read"),
        ("train quik", "quik is not there, nor a recipe that budgetnet brings (did you mean quick?)"),
        ("train quik.yaml", "quik.yaml is not there, nor a recipe that budgetnet brings (did you mean quick?)"),
        ("ablate quik --vary seed=1,2", "(did you mean quick?)"),
        ("inspect quik", "(did you mean quick?)"),
        (f"train {SMOKE} --output ''", "--output is empty, expected a folder: give one, or leave --output out"),
        (f"train {SMOKE} --data ''", "--data is empty, expected a folder"),
        ("compare a b --output ''", "argument --output: found nothing, expected the name of a file or folder"),
        (f"train {SMOKE} --output=", "--output is empty"),
        ("fit --budget 1e5 --minutes -1", "error: minutes is -1, expected a number above 0"),
        ("fit --budget 1e5 --minutes nan", "error: minutes is nan, expected a number above 0"),
        ("fit --budget 1e5 --epochs -1", "error: epochs is -1, expected 0 or more"),
        (
            f"ablate {SMOKE} --vary optimizer.lr=1,2 --jobs 0",
            "error: jobs is 0, expected 1 or more trainings",
        ),
        (f"ablate {SMOKE} --vary optimizer.lr=1,2 --threads -1", "error: threads is -1, expected 1 to"),
        ("train typo.yaml", "typo.yaml: optimizer.momemtum is not an option (did you mean optimizer.momentum?)"),
        (f"train {SMOKE} --epochs 0", "epochs is 0, expected 1 or more"),
        (f"train {SMOKE} --epochs ten", "epochs is 'ten', expected int"),
        (f"train {SMOKE} --epoch 3", "--epoch is not an option (did you mean --epochs?)"),
        (f"train {SMOKE} --device gpu", "device is 'gpu', expected auto, cpu, cuda"),
        (f"train {SMOKE} --device cpu:", "device is 'cpu:'"),
        (f"train {SMOKE} --device cuda:99", "which this machine does not have"),
        (f"train {SMOKE} --threads -1", "threads is -1"),
        (f"train {SMOKE} --threads 1000000", "threads is 1000000, expected 1 to"),
        ("fit --budget 9000 --threads 1000000", "threads is 1000000, expected 1 to"),
        (f"train {SMOKE} --output {'x' * 300}", "File name too long"),
        (f"train {SMOKE} --resume", "--resume needs --output"),
        (f"train {SMOKE} --resume --output empty", "nothing to resume"),
        ("train --resume --output nowhere", "nothing to resume"),
        (f"train {SMOKE} --output home", "home exists: choose another --output, or continue that run with --resume"),
        (f"train {SMOKE} --output file/run", "file/run cannot be made: Not a directory; choose another --output"),
        (f"train {SMOKE} --output file", "file exists"),
        (f"train {SMOKE} --budget 10", "not even width"),
        (f"train {SMOKE} --model.name resnet18 --model.stages null", "6,173,962 over the budget of 5,000,000"),
        (f"train {SMOKE} --model.name resnet81 --model.stages null", "resnet81 is not a network"),
        (
            f"train {SMOKE} --model.name enhanced --model.stages null --budget null --model.width 100000",
            "GB of memory are free: choose a smaller network, or a smaller width",
        ),
        (f"train {SMOKE} --val-size 2000", "val_size"),
        (f"train {SMOKE} --dataset cifar10 --data empty", "found an empty folder"),
        (f"train {SMOKE} --dataset cifar10 --data nowhere", "no such folder"),
        (f"train {SMOKE} --dataset cifar10 --data truncated", "data_batch_1"),
        (f"train {SMOKE} --dataset folder --data empty", "empty"),
        ("evaluate nowhere", "nowhere cannot be read: No such file"),
        ("evaluate empty", "holds no best.safetensors"),
        ("evaluate garbage.bin", "garbage.bin"),
        ("evaluate hostile.pth --model resnet18", "holds posix.system, which is never loaded: only tensors"),
        ("evaluate other.pth", "give --model NAME"),
        ("evaluate other.pth --model resnet_leaky", "other.pth does not fit resnet_leaky: conv2.weight is missing"),
        ("evaluate home/run --data empty --dataset cifar10", "empty"),
        ("evaluate home/run --engine torch --precision int8", "leave out --engine torch"),
        ("evaluate home/run --shift fogg", "'fogg' is no corruption (did you mean fog?)"),
        ("evaluate home/run --shift cifar10.3", "'cifar10.3' is no test set, expected cifar10.1, cifar10.2"),
        ("evaluate home/run --shift fog --severity 6", "severity is 6, expected 1 (least) to 5"),
        ("evaluate home/run --severity 3", "--severity is for corruptions: give --shift all"),
        ("evaluate home/run --output out.svg", "--output is for corruptions: give --shift all"),
        ("evaluate home/run --shift cifar10.1 --output out.svg", "--output is for corruptions"),
        ("evaluate home/run --shift fog --output out.bmp", "out.bmp ends in '.bmp', expected .svg or .png"),
        ("evaluate home/run --shift fog --severity 1 --output nowhere/out.svg", "there is no folder"),
        ("evaluate home/run --shift cifar10.1 --split val", "is a test set, never to choose by: leave out --split val"),
        ("evaluate home/run --shift cifar10.1", "home/run knows 10 classes (0, 1, 2, ...) in images of 32 pixels"),
        ("evaluate home/run --limit 0", "--limit is 0, expected 1 to 359"),
        ("evaluate home/run --limit 360", "--limit is 360, expected 1 to 359"),
        ("evaluate home/run --norm-prior 16", "--norm-prior is for --norm-statistics target"),
        ("evaluate home/run --norm-statistics target --norm-prior -1", "--norm-prior is -1, expected 0 or more"),
        ("evaluate home/run --norm-statistics target --precision int8", "leave out --precision int8 or --norm-s"),
        ("evaluate home/run --temperature cold", "found 'cold', expected fit or a number from 0.01 to 100"),
        ("evaluate home/run --temperature nan", "found 'nan', expected fit or a number from 0.01 to 100"),
        ("evaluate home/run --temperature 1e-300", "found '1e-300', expected fit or a number from 0.01 to 100"),
        ("evaluate home/run --temperature 101", "found '101', expected fit or a number from 0.01 to 100"),
        ("evaluate home/run --temperature 0", "found '0', expected fit or a number from 0.01 to 100"),
        (
            "predict home/run home/digits.npy --temperature 2 --data tiny",
            "--temperature fit and --view-weights fit are fitted on",
        ),
        ("predict home/run home/digits.npy --temperature fit --dataset cifar10 --data empty", "named by --data: "),
        ("predict home/run home/digits.npy --norm-statistics target --precision int8", "leave out --precision int8"),
        ("predict home/run home/digits.npy --data tiny", "what --precision int8 is calibrated on"),
        ("predict home/run home/digits.npy --precision int8 --dataset cifar10 --data empty", "named by --data: "),
        ("predict home/run home/digits.npy --precision int8 --dataset cifar10 --data tiny", "airplane"),
        ("predict home/run nowhere", "nowhere"),
        ("predict home/run empty", "empty"),
        ("predict home/run hostile.pkl --output out.csv", "hostile.pkl"),
        ("predict home/run picture.png", "picture.png"),
        ("predict picture.png home/run", "home/run is a model, and picture.png is none: name the model first"),
        ("predict picture.png home/digits.npy", "picture.png is no model: give a run's folder, or a file"),
        ("predict home/run small.npy", "small.npy"),
        ("predict home/run contest.pkl", "contest.pkl"),
        ("predict home/run home/digits.npy --output nowhere/out.csv", "nowhere"),
        ("predict home/run home/digits.npy --output out.png", "--output is out.png, expected a name that ends in .csv"),
        ("predict home/run home/digits.npy --labels home/labels.csv", "give --output"),
        ("predict home/run home/digits.npy --output out.csv --labels typo.yaml", "typo.yaml"),
        ("predict home/run home/digits.npy --output out.csv --labels few.csv", "IDs"),
        (f"predict home/run {'x' * 300}", "File name too long"),
        ("evaluate home/run --split val --data tiny --dataset cifar10", "airplane"),
        ("models --budget 0", "argument --budget: found '0', expected a whole number above 0, such as 5e6"),
        ("models --budget -5", "argument --budget: found '-5', expected a whole number above 0"),
        ("models --budget 1.5", "argument --budget: found '1.5', expected a whole number above 0"),
        ("models --budget 1e999", "argument --budget: found '1e999', expected a whole number above 0"),
        ("inspect resnet81", "resnet81"),
        ("inspect enhanced --width 1000000000", "enhanced is too large to be built: choose a smaller network"),
        ("inspect enhanced --width 100000000000000000000", "enhanced is too large to be built"),
        ("inspect home/run --width 3", "--width is for a network given by name"),
        ("inspect home/run --classes 5", "--classes is for a name or a recipe, and home/run has its own"),
        ("inspect quick --width 3", "--width is for a network given by name"),
        ("inspect quick --model resnet18", "--model is for a checkpoint"),
        ("inspect enhanced --classes 0", "the number of classes is 0, expected 2 or more"),
        ("inspect quick --classes 0", "the number of classes is 0, expected 2 or more"),
        ("inspect nowhere/quick.yaml", "`quick` alone is the recipe of that name"),
        ("inspect resnet18 --model resnet18", "--model is for a checkpoint"),
        ("inspect runs/nowhere", "runs/nowhere is not there"),
        ("inspect nowhere.safetensors", "nowhere.safetensors is not there"),
        ("inspect garbage.bin", "garbage.bin"),
        ("inspect resnet18 --picture out.bmp", "out.bmp"),
        ("track empty", "empty"),
        ("data verify nowhere", "nowhere"),
        ("data verify empty", "empty"),
        ("data verify truncated", "data_batch_1"),
        ("data verify hostile.pkl", "hostile.pkl"),
        ("data stats garbage.bin", "garbage.bin"),
    ],
)
def test_a_users_mistake_gets_one_line_and_exit_code_1_and_leaves_nothing_behind(
    command, message, home, bad, capsys, monkeypatch
):
    monkeypatch.delenv("BUDGETNET_DATA", raising=False)
    monkeypatch.chdir(bad)
    before = everything(bad), everything(home)
    assert main(shlex.split(command)) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("budgetnet: error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert (everything(bad), everything(home)) == before
    assert sorted(path.name for path in bad.iterdir() if path.is_dir()) == ["empty", "home", "tiny", "truncated"]


def test_debug_shows_where_an_error_came_from(capsys):
    assert main(["evaluate", "nowhere", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_no_torn_file(tmp_path, monkeypatch):
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # whose file would be too large itself

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = ["train", SMOKE, "--no-track", "--output", "run"]
    done = budgetnet(*command, cwd=tmp_path, code=1, preexec_fn=small_files)
    assert re.fullmatch(r"budgetnet: error: cannot write run/[\w.]+: File too large; .*\n", done.stderr)
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix in (".ckpt", ".safetensors", ".part")]


def test_help_is_there_for_every_command_with_an_example(capsys):
    for command in EXAMPLES:
        try:
            code = main([*command.split(), "--help"])
        except SystemExit as stop:
            code = stop.code
        assert not code
        assert f"example: budgetnet {command}" in " ".join(capsys.readouterr().out.split())


def test_the_help_of_train_says_all_of_every_option(capsys):
    assert main(["train", "--help"]) == 0
    words = capsys.readouterr().out.split()
    printed = "".join(words)  # which breaks lines at hyphens too
    for section in sections():
        for option in section.options:
            said = f"{option.meaning} ({option.values}; default {option.default})".replace("`", "")
            assert "".join(said.split()) in printed.replace("`", "")
            dashed = f"--{section.dotted(option)}".replace("_", "-")  # as the guide writes it
            assert (option.name if section.name == "model.stages" else dashed) in words
        assert "".join(section.meaning.split()) in printed
        assert section.name in ("", "model.stages") or f"--{section.name}" in words


def test_the_help_of_train_needs_no_parser_of_types():
    program = "import sys; from budgetnet.cli import main; main(['train', '-h']); print('jsonargparse' in sys.modules)"
    assert python(program).stdout.splitlines()[-1] == "False"


def test_help_and_version_need_no_torch():
    program = (
        "import sys; from budgetnet.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = python(program)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.real_data
def test_cifar10_is_verified_described_and_trained_on(real_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "stats", str(real_data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["counts"].values()) == {5000}
    assert [f"{x:.5f}" for x in found["mean"] + found["std"]] == [
        "0.49140",
        "0.48216",
        "0.44653",
        "0.24703",
        "0.24349",
        "0.26159",
    ]
    assert main(["data", "verify", str(real_data)]) == 0
    said = capsys.readouterr().out
    assert "CIFAR-10 Python batches" in said
    assert "50,000 training and 10,000 test images of 10 classes, structure right" in " ".join(said.split())
    options = ["--dataset", "cifar10", "--data", str(real_data), "--epochs", "1", "--no-track", "--batch-size", "256"]
    assert (
        main(["train", SMOKE, *options, "--val-size", "1000", "--train-size", "1000", "--no-report", "--output", "run"])
        == 0
    )
    contest = real_data / "contest"
    command = ["predict", "run", str(contest / "cifar_test_nolabel.pkl"), "--output", "out.csv"]
    assert main([*command, "--labels", str(contest / "practice_labels.csv")]) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 10_001


def test_a_model_that_was_trained_on_the_test_images_has_no_test_score(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert (
        main(["train", SMOKE, "--train-on-test", "true", "--epochs", "1", "--output", run, "--no-track", "--no-report"])
        == 0
    )
    assert "test images, trained on too" in capsys.readouterr().out
    assert main(["evaluate", run]) == 1
    error = capsys.readouterr().err
    assert "was trained on these test images too" in error
    assert "use --split val" in error
    assert main(["evaluate", run, "--split", "val"]) == 0


def test_json_has_null_for_a_number_that_is_not_finite():
    text = json_text({"a": [1.5, float("nan")], "b": {"c": (-float("inf"), 2, None, True)}})
    assert text == '{"a": [1.5, null], "b": {"c": [null, 2, null, true]}}'
