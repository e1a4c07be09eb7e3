"""A run in words, as MLflow shows it."""

import json
import re

import pytest

from budgetnet import runs, words
from budgetnet.metrics import read_epochs


def note(folder):
    return words.note(runs.read(folder)).replace("\N{NO-BREAK SPACE}", " ")


def test_the_note_has_the_verdict_how_weights_were_chosen_and_the_command(make_run, tmp_path):
    text = note(make_run(tmp_path / "first", test=0.9, images=1000, parameters=4_000_000))
    assert text.startswith(
        "**90.00 %** of 1,000 test images are classified right (each as it is; 95 % interval 87.98 %"
    )
    assert "4,000,000 trainable parameters (80.0 % of the budget of 5,000,000)" in text
    assert "- **Weights**: epoch 3 of 3: chosen by validation accuracy (90.00 %)" in text
    assert "2:00, A CPU, 2 threads" in text
    assert "    budgetnet train config.yaml --device cpu --threads 2 --output runs/again\n" in text
    assert "    budgetnet train --resume --output runs/first --device cpu --threads 2\n" in text


def test_each_metric_of_a_run_is_explained_and_no_other(make_run, tmp_path):
    folder = make_run(tmp_path / "first")
    (folder / "system.csv").write_text("epoch,process_memory_usage_megabytes\n1,5.5\n2,5.5\n3,5.5\n")
    rows, final = read_epochs(folder), json.loads((folder / "summary.json").read_text())["final"]
    explained = re.findall("^- `(.*)`: .", note(folder), re.MULTILINE)
    assert {*explained} == {name for row in rows for name in row} - {"epoch"} | {f"final/{name}" for name in final}
    assert len(explained) == len({*explained})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"test": None}, "**90.00 %** of 500 validation images are classified right"),
        ({"test": None, "val": None}, "This run was not tested."),
        ({"finished": False}, "This run has not ended, and has no test score."),
    ],
)
def test_a_run_without_a_test_score_says_so_first(make_run, tmp_path, options, said):
    assert note(make_run(tmp_path / "run", **options)).startswith(said)


def test_a_run_trained_on_the_test_images_says_so(make_run, tmp_path):
    text = note(make_run(tmp_path / "run", "--train_on_test", "true", test=None, val=None))
    assert text.startswith("The test images were trained on too, so this run has no test score.")


def test_the_note_of_a_run_that_goes_on_stays_as_it_is_from_epoch_to_epoch(make_run, tmp_path):
    one, other = (make_run(tmp_path / str(n) / "run", finished=False, epochs=n) for n in (1, 2))
    (other / "config.yaml").write_bytes((one / "config.yaml").read_bytes())
    assert note(one) == note(other)


def test_names_are_no_markup_and_secrets_are_masked(make_run, tmp_path):
    folder = make_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["hardware"]["cpu"] = "<script>*a*</script> http://ann:h4nter2@host"
    (folder / "summary.json").write_text(json.dumps(summary))
    text = note(folder)
    assert r"\<script\>\*a\*\</script\>" in text
    assert "h4nter2" not in text
