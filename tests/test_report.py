"""The report of a run: it stands alone, its numbers are the record's, and what is missing is said and no failure."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from budgetnet import checkpoint, data, evaluate, gallery, report, runfiles, runs
from budgetnet.cli import main
from budgetnet.errors import BudgetnetError, DataError
from budgetnet.evidence import Evidence
from budgetnet.gallery import Judged
from budgetnet.logits import predict_logits
from budgetnet.recipe import load_recipe
from budgetnet.train import train

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke.yaml"
HOSTILE = '"><script>alert(1)</script>'
CPU = torch.device("cpu")


def shown(share: float) -> str:
    return f"{100 * share:.2f} %"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run with its report, by the command line."""
    run = tmp_path_factory.mktemp("made") / "run"
    assert main(["train", str(SMOKE), "--output", str(run), "--no-track", "--quiet", "--tta", "flip"]) == 0
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "run", ignore=shutil.ignore_patterns("*.html")))


def reported(run: Path, parsed, **options):
    return parsed(report.write(run, **options))


def test_the_page_has_its_parts_and_the_numbers_of_the_record(made, parsed):
    page = parsed(made / "report.html")
    summary = json.loads((made / "summary.json").read_text())
    scores = summary["test"]["flip"]
    low, high = scores["accuracy_interval"]
    text = page.text
    assert f"{100 * scores['accuracy']:.2f} %" in text
    assert f"95 % interval {100 * low:.2f} % to {100 * high:.2f} %" in text
    assert f"Each as it is: {100 * summary['test']['none']['accuracy']:.2f} %" in text
    assert f"{summary['parameters']:,}" in text
    assert f"{100 * summary['parameters'] / summary['budget']:.1f} % of the budget of 5,000,000" in text
    assert f"calibration error is {100 * scores['ece']:.2f} %" in text
    assert "1,238 trained on, 200 held out to choose by" in text
    assert f"epoch {summary['final']['best_epoch']} of 3" in text
    assert f"chosen by validation accuracy ({100 * summary['final']['val_accuracy']:.2f} %)" in text
    for key in ("git_commit", "data_checksum"):
        assert summary["tags"][key] in text
    headings = [each["id"] for each in page.all("section")]
    assert headings == ["curves", "errors", "calibration", "mistakes", "looks", "network", "recipe", "origin"]


def test_every_field_of_the_confusion_matrix_and_every_class_is_the_records(made):
    scores = json.loads((made / "summary.json").read_text())["test"]["flip"]
    text = (made / "report.html").read_text()
    found = re.findall(r"<title>(\d), taken for (\d): (\d+) of (\d+) images</title>", text)
    assert len(found) == 100
    for true, taken, count, of in found:
        row = scores["confusion"][int(true)]
        assert (int(count), int(of)) == (row[int(taken)], sum(row))
    bars = dict(re.findall(r"<title>(\d): ([\d.]+)\xa0% of \d+ images found", text))
    assert bars == {str(i): f"{100 * recall:.2f}" for i, recall in enumerate(scores["recall"])}


def test_the_curves_say_what_metrics_csv_says(made):
    text = (made / "report.html").read_text()
    for row in runs.read(made).rows:
        start = f"<title>epoch {row['epoch']:.0f}: "
        assert f"{start}training {row['train_loss']:.4g}, validation {row['val_loss']:.4g}</title>" in text
        assert f"{start}learning rate {row['lr']:.3g}</title>" in text
        assert f"{start}images a second {row['images_per_second']:,.0f}</title>" in text


def test_the_mistakes_shown_are_mistakes_with_the_probabilities_of_the_network(made, parsed):
    page = parsed(made / "report.html")
    best = checkpoint.load_classifier(made)
    digits = data.load("digits", None).test
    logits = predict_logits(best.network, digits.images, best.mean, best.std, tta="flip")
    probabilities = torch.softmax(logits.double(), 1)
    pictures = page.all("img", loading="lazy")
    assert pictures
    pairs = re.findall(r'<figure data-pair="(\d)-(\d)"', (made / "report.html").read_text())
    wrong = (probabilities.argmax(1) != digits.labels).nonzero().flatten().tolist()
    assert 0 < len(pairs) <= len(wrong)
    for (true, taken), picture in zip(pairs, pictures, strict=False):
        i = int(picture["title"].removeprefix("image "))
        assert (int(digits.labels[i]), int(probabilities[i].argmax())) == (int(true), int(taken))
        assert f"{100 * probabilities[i].max():.1f} %" in page.text


def test_the_logits_that_training_kept_are_used_and_are_those_of_the_record(made, monkeypatch):
    evidence = Evidence(runs.read(made), None, None, CPU)
    monkeypatch.setattr("budgetnet.evidence.predict_logits", lambda *a, **k: pytest.fail("computed again"))
    logits, labels = evidence.logits
    assert evaluate.score(logits, labels) == evidence.run.test
    assert labels.tolist() == data.load("digits", None).test.labels.tolist()


def test_logits_of_other_weights_are_not_believed_and_computed_again(run):
    from safetensors.torch import load_file

    before = load_file(run / runfiles.PREDICTIONS)
    runs.keep_predictions(run, before["logits"] + torch.eye(10)[0], before["labels"])
    assert runs.read(run).predictions() is None
    logits, labels = Evidence(runs.read(run), None, None, CPU).logits
    torch.testing.assert_close(logits, before["logits"], rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, before["labels"])


def test_a_damaged_file_of_logits_is_one_clear_error(run, capsys):
    (run / runfiles.PREDICTIONS).write_bytes(b"not at all")
    assert main(["report", str(run)]) == 1
    shown_ = capsys.readouterr().err
    assert shown_.count("\n") == 1
    assert "predictions.safetensors is damaged" in shown_


def test_more_logits_than_a_few_megabytes_are_not_kept(tmp_path):
    runs.keep_predictions(tmp_path, torch.zeros(50_000, 100), torch.zeros(50_000, dtype=torch.long))
    assert not list(tmp_path.iterdir())


def test_hostile_names_are_shown_and_do_nothing(run, parsed):
    best = checkpoint.load_classifier(run)
    classes = tuple(f"{HOSTILE}{i}" for i in range(10))
    checkpoint.save_classifier(run / "best.safetensors", replace(best, classes=classes))
    summary = json.loads((run / "summary.json").read_text())
    summary["name"] = f"</title>{HOSTILE}"
    summary["tags"][HOSTILE] = f"</pre>{HOSTILE}\0\u202e"
    summary["hardware"]["cpu"] = HOSTILE
    (run / "summary.json").write_text(json.dumps(summary))
    config = (run / "config.yaml").read_text().replace("experiment: budgetnet", f"experiment: '</pre>{HOSTILE}'")
    (run / "config.yaml").write_text(config)
    moved = run.rename(run.with_name("a ' <img src=x onerror=alert(1)> $(touch x)"))
    page = reported(moved, parsed)
    text = (moved / "report.html").read_text()
    assert len(page.all("script")) == 1
    assert "<script>alert" not in text
    assert "onerror=alert" not in re.sub(r"&lt;img.*?&gt;", "", text)
    assert HOSTILE in page.text
    assert "\0" not in text
    assert "\u202e" not in text
    commands = re.findall(r"budgetnet train .*?--output .*", page.text)
    assert commands
    assert "'\"'\"'" in commands[0], "the folder is quoted for the shell"


def test_without_its_data_the_report_has_all_but_the_images_and_says_why(run, parsed):
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("dataset: digits", "dataset: cifar10"))
    page = reported(run, parsed, data=run)
    assert "The images are left out:" in page.text
    assert "expected cifar-10-batches-py/" in page.text
    ids = [each["id"] for each in page.all("section")]
    assert "looks" not in ids
    assert {"errors", "calibration", "network"} <= set(ids)
    assert "images given" in (run / "report.html").read_text(), "the diagram needs no image"


def test_data_that_are_not_the_runs_are_not_shown_as_if_they_were(run, parsed):
    digits = data.load("digits", None)
    page = reported(run, parsed, dataset=replace(digits, checksum="0" * 64))
    assert "the data found here are others (checksum 000000000000" in page.text
    assert not page.all("img", loading="lazy")


def test_a_run_without_weights_or_predictions_still_has_its_record(run, parsed):
    for name in ("best.safetensors", runfiles.PREDICTIONS, "last.ckpt"):
        (run / name).unlink()
    page = reported(run, parsed)
    assert "Left out: no weights were chosen yet" in page.text
    assert "The diagram is left out" in page.text
    assert "Most frequent confusions" in page.text


def test_a_run_that_was_not_tested_is_shown_by_its_validation_images(tmp_path, parsed):
    config = load_recipe(SMOKE, ["--epochs", "2"])
    train(config, tmp_path / "run", track=False, test=False)
    page = reported(tmp_path / "run", parsed)
    assert "This run was not tested." in page.text
    best = runs.read(tmp_path / "run").find("final.val_accuracy", float)
    assert f"{shown(best)} of 200 validation images are classified right" in page.text
    assert "On the 200 validation images, by which the weights were chosen: rather too good." in page.text
    assert "test split" not in page.text
    assert page.all("img", loading="lazy")


def test_a_run_trained_on_the_test_images_has_no_score_and_says_so(tmp_path, parsed):
    config = load_recipe(SMOKE, ["--epochs", "1", "--train_on_test", "true", "--val_size", "0"])
    train(config, tmp_path / "run", track=False)
    assert not (tmp_path / "run" / runfiles.PREDICTIONS).exists()
    page = reported(tmp_path / "run", parsed)
    assert "The test images were trained on too, so this run has no test score." in page.text
    assert "no validation images were held out: all images were trained on" in page.text
    assert "images are classified right" not in page.text
    assert "1,797 trained on, 0 held out" in page.text
    assert "the last ones: nothing was held out to choose by" in page.text


def test_a_run_trained_on_the_test_images_is_shown_by_its_validation_images_alone(tmp_path, parsed, capsys):
    run = tmp_path / "run"
    arguments = ["--train_on_test", "true", "--train_size", "1000", "--epochs", "1", "--no-track", "--output", str(run)]
    assert main(["train", str(SMOKE), *arguments]) == 0
    told = "1,438 training images, 1,000 of them used, 200 to choose by; 359 test images, trained on too"
    assert told in " ".join(capsys.readouterr().out.split())
    page = parsed(run / "report.html")
    assert "1,359 trained on, 200 held out" in page.text
    summary = (run / "summary.json").read_text()
    (run / "summary.json").unlink()
    assert "1,359 trained on, 200 held out" in reported(run, parsed).text, "of a run that goes on"
    (run / "summary.json").write_text(summary)
    best = runs.read(run).find("final.val_accuracy", float)
    evidence = Evidence(runs.read(run), None, None, CPU)
    assert evidence.scores.accuracy == best, "by the very images that the run was validated on"
    assert f"takes {200 - round(200 * best)} of the 200 validation images for something else" in page.text


def test_a_data_set_that_this_version_does_not_know_is_said_and_no_failure(make_run, tmp_path, parsed):
    folder = make_run(tmp_path / "run", "--dataset", "martian")
    assert "this version does not know the data set 'martian'" in reported(folder, parsed).text


def test_what_a_run_kept_of_its_test_is_used_though_a_score_was_computed_otherwise_then(run):
    summary = json.loads((run / "summary.json").read_text())
    for scores in summary["test"].values():
        scores["ece"] += 0.1
    (run / "summary.json").write_text(json.dumps(summary))
    assert runs.read(run).predictions() is not None
    for scores in summary["test"].values():
        scores["loss"] += 0.1
    (run / "summary.json").write_text(json.dumps(summary))
    assert runs.read(run).predictions() is None


def test_weights_of_another_number_of_classes_than_the_scores_are_refused(run):
    summary = json.loads((run / "summary.json").read_text())
    summary["test"]["flip"] = evaluate.score(torch.eye(3), torch.arange(3)).to_dict()
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match="10 classes are known and 3 scored"):
        report.write(run)


def test_a_run_that_goes_on_says_how_far_it_is(run, parsed):
    (run / "summary.json").unlink()
    page = reported(run, parsed)
    assert "This run has not ended: 3 of 3 epochs are done. It has no test score." in page.text
    assert "Go on where it stopped" in page.text
    assert page.all("img", loading="lazy"), "the best weights so far, on the validation images"


def test_a_run_that_has_only_begun_has_a_report_too(make_run, tmp_path, parsed):
    folder = make_run(tmp_path / "run", finished=False)
    (folder / "metrics.csv").unlink()
    page = reported(folder, parsed)
    assert "0 of 3 epochs are done" in page.text
    assert "No epoch has ended yet." in page.text


def test_a_run_of_an_older_version_lacks_what_it_did_not_write(run, parsed):
    summary = json.loads((run / "summary.json").read_text())
    for key in ("tta", "weights", "hardware", "versions", "trained_on_test"):
        del summary[key]
    (run / "summary.json").write_text(json.dumps(summary))
    lines = (run / "config.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("train_on_test", "swa", "channels_last", "clip_norm"))]
    (run / "config.yaml").write_text("\n".join(kept) + "\n")
    (run / runfiles.PREDICTIONS).unlink()
    page = reported(run, parsed)
    assert shown(summary["test"]["none"]["accuracy"]) in page.text
    assert page.all("img", loading="lazy")


def test_a_hundred_classes_and_a_thousand_epochs_still_fit_the_page(make_run, tmp_path, parsed):
    folder = make_run(tmp_path / "run", epochs=1000)
    summary = json.loads((folder / "summary.json").read_text())
    logits = torch.randn(10_000, 100, generator=torch.Generator().manual_seed(0))
    summary["test"]["none"] = evaluate.score(logits, torch.arange(10_000) % 100).to_dict()
    (folder / "summary.json").write_text(json.dumps(summary))
    page = reported(folder, parsed)
    assert "the 20 of 100 classes that are found least" in page.text
    assert "Most frequent confusions" in page.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("summary.json", "{", "is damaged"),
        ("summary.json", "[]", "holds a list"),
        ("summary.json", '{"name": "x", "final": 3}', "final"),
        ("summary.json", '{"tta": "none", "test": {"none": {"confusion": [[1, 2]]}}}', "test is damaged"),
        ("summary.json", '{"tta": "none", "test": {"none": {"confusion": 1e99}}}', "test is damaged"),
        ("summary.json", '{"parameters": "many"}', "parameters is 'many'"),
        ("config.yaml", "a: [", "is damaged"),
        ("metrics.csv", "loss\n1\n", "no column epoch"),
        ("shift.json", "{}", "shift.json is not what"),
    ],
)
def test_a_damaged_record_is_one_line_that_names_the_file(name, content, words, make_run, tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(content)
    assert main(["report", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert words in error


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no config.yaml: expected a run folder" in capsys.readouterr().err


def test_training_goes_well_when_its_report_does_not_and_one_line_says_so(tmp_path, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr(report, "write", broken)
    assert main(["train", str(SMOKE), "--output", str(tmp_path / "run"), "--no-track", "--quiet", "--epochs", "1"]) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "warning: no report.html (a bug of two lines): the run is complete without it" in error
    assert (tmp_path / "run" / "summary.json").is_file()


def test_training_writes_no_report_where_none_is_wanted(tmp_path):
    arguments = ["train", str(SMOKE), "--output", str(tmp_path / "run"), "--no-track", "--quiet", "--epochs", "1"]
    assert main([*arguments, "--no-report"]) == 0
    assert not (tmp_path / "run" / "report.html").exists()


def test_corruption_is_shown_where_it_was_measured_and_only_of_these_weights(run, parsed, monkeypatch, capsys):
    monkeypatch.setattr("budgetnet.shift.NAMES", ("fog", "gaussian_noise"))
    shift = run / "shift.json"
    arguments = ["evaluate", str(run), "--shift", "all", "--limit", "40", "--severity", "3", "--output", str(shift)]
    assert main([*arguments, "--engine", "torch"]) == 0
    assert f"written to {shift}" in capsys.readouterr().out
    measured = json.loads(shift.read_text())
    page = reported(run, parsed)
    assert "On 40 test images (generated), each as it is; without corruption" in page.text
    for name in ("fog", "gaussian_noise"):
        accuracy = measured["corruptions"][name]["3"]["accuracy"]
        assert f"{name}, severity 3: {shown(accuracy)} right" in page.text
    shift.write_text(json.dumps(measured | {"weights": "0" * 64}))
    assert "shift.json was measured with other weights" in reported(run, parsed).text


def test_the_record_of_corruptions_needs_a_folder_before_anything_is_measured(run, capsys):
    assert main(["evaluate", str(run), "--shift", "fog", "--output", str(run / "no" / "shift.json")]) == 1
    assert "there is no folder" in capsys.readouterr().err


def judged(n: int = 300, k: int = 5) -> Judged:
    rng = torch.Generator().manual_seed(1)
    probabilities = torch.softmax(2 * torch.randn(n, k, generator=rng), 1)
    labels = torch.randint(k, (n,), generator=rng)
    images = torch.randint(256, (n, 3, 8, 8), generator=rng, dtype=torch.uint8)
    return Judged(images=images, labels=labels, probabilities=probabilities, classes=list("abcde"))


def test_mistakes_are_the_most_confident_first_and_some_of_every_pair():
    found = judged()
    first, kept = gallery.mistakes(found)
    slow = []
    for i in range(300):
        p = found.probabilities[i].tolist()
        if p.index(max(p)) != int(found.labels[i]):
            slow.append((-max(p), i))
    order = [i for _, i in sorted(slow)]
    assert first == order[:24]
    assert kept == sorted(kept, key=order.index)
    assert set(first) <= set(kept)
    pairs = {(int(found.labels[i]), int(found.probabilities[i].argmax())) for i in order}
    assert {(int(found.labels[i]), int(found.probabilities[i].argmax())) for i in kept} == pairs
    assert len(kept) <= 150


def test_the_least_certain_hits_are_right_and_those_of_lowest_probability():
    found = judged()
    slow = sorted(
        (float(found.probabilities[i].max()), i)
        for i in range(300)
        if int(found.probabilities[i].argmax()) == int(found.labels[i])
    )
    assert gallery.least_certain(found) == [i for _, i in slow[:12]]


def test_a_network_that_is_never_or_always_wrong_has_a_gallery_of_the_rest():
    found = judged()
    right = replace(found, labels=found.probabilities.argmax(1))
    assert gallery.mistakes(right) == ([], [])
    wrong = replace(found, labels=(found.probabilities.argmax(1) + 1) % 5)
    assert gallery.least_certain(wrong) == []
    assert gallery.looks(wrong, lambda images: torch.full((len(images), 5), 0.2)).count("<figure") == 4


def test_small_images_are_shown_to_the_pixel_and_large_ones_shrunk():
    import base64
    import io

    from PIL import Image

    def decoded(image: torch.Tensor) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(gallery.data_uri(image).partition(",")[2])))

    small = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    assert np.array_equal(np.asarray(decoded(small)), small.permute(1, 2, 0).numpy())
    assert decoded(torch.zeros(3, 300, 200, dtype=torch.uint8)).size == (64, 96)
    assert decoded(torch.zeros(1, 8, 8, dtype=torch.uint8)).mode == "L"


def test_filters_are_shown_about_grey_each_by_its_own_largest_weight():
    import base64
    import io

    from PIL import Image

    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[0, 0, 0, 0] = 0.01
        network[0].weight[1, 2, 1, 1] = -5.0
    markup, said = gallery.filters(network)
    assert said == "5 filters of 3 x 3 pixels"
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", markup)[1]))))
    side = (sheet.shape[1] - 16) // 5
    assert sheet[2, 2].tolist() == [255, 128, 128, 255]
    assert sheet[side // 2, side + 4 + side // 2].tolist() == [128, 128, 0, 255]
    assert sheet[0, side + 1, 3] == 0, "nothing between them"
    assert gallery.filters(nn.Sequential(nn.Conv2d(1, 5, 3))) is None
    assert gallery.filters(nn.Sequential(nn.Linear(3, 5))) is None


def test_options_are_flat_as_a_recipe_would_write_them():
    found = runs.flat({"a": 1, "b": {"c": None, "d": "x", "e": [1, 2]}, "f": [{"g": True}], "h": {}})
    assert found == {"a": "1", "b.c": "null", "b.d": "x", "b.e": "[1, 2]", "f.0.g": "true", "h": "{}"}
    assert runs.defaults()["optimizer.lr"] == "0.1"


def test_a_value_of_another_kind_is_refused_and_a_missing_one_is_none(make_run, tmp_path):
    run = runs.read(make_run(tmp_path / "run"))
    assert run.find("final.best_epoch", float) == 3
    assert run.find("final.nothing", float) is None
    assert run.option("optimizer.lr", float) == 0.1
    with pytest.raises(DataError, match=r"final.minutes is 2.0, expected a str"):
        run.find("final.minutes", str)
    with pytest.raises(DataError, match="trained_on_test is False, expected a int"):
        run.find("trained_on_test", int)


def test_predictions_of_classes_that_the_network_has_not_are_refused(run):
    runs.keep_predictions(run, torch.zeros(3, 2), torch.tensor([0, 1, 7]))
    with pytest.raises(BudgetnetError, match="damaged"):
        runs.read(run).predictions()
