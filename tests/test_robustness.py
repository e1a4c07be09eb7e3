"""Scores under corruption: means, the table, and the order of measuring."""

import json

import pytest
import torch

from budgetnet.evaluate import score
from budgetnet.robustness import Cell, ShiftScores, measure, render
from budgetnet.shift import COMMON, EXTRA, NAMES, SEVERITIES


def table(names, severities=SEVERITIES) -> ShiftScores:
    """Accuracies, losses and calibration errors that are all different."""
    cells = {
        name: {s: Cell(accuracy=1 - i / 50 - s / 100, loss=i + s / 10, ece=i / 100 + s / 1000) for s in severities}
        for i, name in enumerate(names)
    }
    right = {name: torch.zeros(1000) for name in names}
    return ShiftScores(1000, Cell(0.995, 0.02, 0.003), cells, torch.zeros(1000), right)


def test_the_mean_corruption_is_over_the_15_and_all_severities_alike():
    scores = table(NAMES)
    accuracies = [scores.cells[name][s].accuracy for name in COMMON for s in SEVERITIES]
    assert len(accuracies) == 75
    assert scores.mean(COMMON).accuracy == pytest.approx(sum(accuracies) / 75)
    assert scores.mean(EXTRA).ece == pytest.approx((15 + 16 + 17 + 18) / 400 + 0.003)
    plain = scores.to_dict()
    assert plain["mean_corruption"]["accuracy"] == scores.mean(COMMON).accuracy
    assert plain["corruptions"]["fog"]["3"]["accuracy"] == scores.cells["fog"][3].accuracy
    assert plain["clean"] == {"accuracy": 0.995, "loss": 0.02, "ece": 0.003}
    assert json.loads(json.dumps(plain)) == plain
    assert table(NAMES) == scores != table(COMMON), "of what is told"


def test_a_mean_of_what_was_not_all_measured_is_none():
    scores = table(COMMON[:14])
    assert scores.mean(COMMON) is None
    assert scores.to_dict()["mean_corruption"] is None
    assert scores.to_dict()["mean_extra"] is None


@pytest.mark.parametrize(("names", "severities"), [(NAMES, SEVERITIES), (("fog",), (3,)), (EXTRA, (1, 5))])
def test_the_table_has_a_row_a_corruption_in_80_columns(names, severities):
    scores = table(names, severities)
    lines = render(scores).splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line[:20].strip(): line[20:].split() for line in lines if line.strip()}
    for name in names:
        cells = scores.cells[name]
        mean = scores.mean([name])
        expected = [*(cells[s].accuracy for s in severities), mean.accuracy, mean.ece]
        assert rows[name] == [f"{100 * value:.2f}" for value in expected]
    assert rows["clean"] == ["99.50", "0.30"]
    assert ("mean corruption" in rows) == (names == NAMES)
    assert ("mean of the extra" in rows) == (names != ("fog",))
    if names == NAMES:
        mean = scores.mean(COMMON)
        assert rows["mean corruption"][-2:] == [f"{100 * mean.accuracy:.2f}", f"{100 * mean.ece:.2f}"]
        third = sum(scores.cells[name][3].accuracy for name in COMMON) / 15
        assert rows["mean corruption"][2] == f"{100 * third:.2f}"


def test_a_table_as_people_see_it():
    assert render(table(EXTRA, (1, 5))).splitlines() == [
        "accuracy in %              1       5      mean      ECE",
        "speckle_noise          99.00   95.00     97.00     0.30",
        "gaussian_blur          97.00   93.00     95.00     1.30",
        "spatter                95.00   91.00     93.00     2.30",
        "saturate               93.00   89.00     91.00     3.30",
        "mean of the extra      96.00   92.00     94.00     1.80",
        "",
        "clean                                    99.50     0.30",
    ]


def test_each_classifier_is_scored_on_the_same_images_which_are_made_once():
    labels = torch.tensor([0, 1, 1, 0])
    made, told = [], []

    def corrupted(name: str, severity: int) -> torch.Tensor:
        made.append((name, severity))
        return torch.full((4, 3, 2, 2), severity, dtype=torch.uint8)

    def classify(images: torch.Tensor) -> list[torch.Tensor]:
        first = images[:, 0, 0, 0].float()
        return [torch.stack([first, 5 - first], 1), torch.stack([torch.zeros(4), torch.ones(4)], 1)]

    clean = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    one, other = measure(
        classify, clean, labels, corrupted, ("fog", "snow"), (1, 4), lambda done, total: told.append((done, total))
    )
    assert made == [("fog", 1), ("fog", 4), ("snow", 1), ("snow", 4)]
    assert told == [(i, 5) for i in range(1, 6)]
    expected = score(classify(corrupted("fog", 4))[0], labels)
    assert one.cells["fog"][4] == Cell(expected.accuracy, expected.loss, expected.ece)
    assert one.clean.accuracy == other.clean.accuracy == 0.5
    assert one.cells["snow"][1].loss != other.cells["snow"][1].loss
    assert one.images == 4
    for index, scores in enumerate((one, other)):  # the clean images are not among them
        each = [classify(corrupted(name, s))[index].argmax(1) == labels for name in ("fog", "snow") for s in (1, 4)]
        assert scores.shares_right(("fog", "snow")).tolist() == torch.stack(each).double().mean(0).tolist()
        assert scores.shares_right(["snow"]).tolist() == torch.stack(each[2:]).double().mean(0).tolist()
        for names in (["fog"], ["fog", "snow"]):
            assert scores.shares_right(names).mean().item() == pytest.approx(scores.mean(names).accuracy)
        assert scores.clean_right.tolist() == (classify(clean)[index].argmax(1) == labels).long().tolist()
