"""Scores equal slow, obvious references, and their table fits a terminal."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budgetnet.errors import BudgetnetError, CheckpointError, DataError
from budgetnet.evaluate import (
    LabelScores,
    Scores,
    reliability,
    render,
    score,
    score_confusion,
    score_labels,
)


def random_case(n: int, k: int, seed: int, coarse: bool = False) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, generator=rng)
    return (logits.round() if coarse else logits), torch.randint(0, k, (n,), generator=rng)


cases = st.builds(
    random_case, n=st.integers(1, 60), k=st.integers(1, 14), seed=st.integers(0, 10**6), coarse=st.booleans()
)


def slow_scores(logits: list[list[float]], labels: list[int]) -> dict:
    n, k = len(logits), len(logits[0])
    confusion = [[0] * k for _ in range(k)]
    loss, in_top5 = 0.0, 0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits, labels, strict=True):
        ranking = sorted(range(k), key=lambda c: (-row[c], c))
        confusion[label][ranking[0]] += 1
        in_top5 += label in ranking[:5]
        total = sum(math.exp(x) for x in row)
        loss -= math.log(math.exp(row[label]) / total)
        confidence = math.exp(max(row)) / total
        for b in range(15):
            if b / 15 < confidence <= (b + 1) / 15 or (b == 14 and confidence > 1):
                bins[b].append((confidence, ranking[0] == label))
    ece = 0.0
    for members in filter(None, bins):
        accuracy = sum(right for _, right in members) / len(members)
        ece += len(members) / n * abs(accuracy - sum(c for c, _ in members) / len(members))
    predicted = [sum(confusion[t][p] for t in range(k)) for p in range(k)]
    return {
        "n": n,
        "accuracy": sum(confusion[c][c] for c in range(k)) / n,
        "precision": [confusion[c][c] / predicted[c] if predicted[c] else None for c in range(k)],
        "recall": [confusion[c][c] / sum(confusion[c]) if sum(confusion[c]) else None for c in range(k)],
        "confusion": confusion,
        "loss": loss / n,
        "top5": in_top5 / n if k >= 10 else None,
        "ece": ece,
    }


@given(cases)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_scores_equal_slow_loops_over_the_images(case):
    logits, labels = case
    found = score(logits, labels).to_dict()
    interval = found.pop("accuracy_interval")
    expected = slow_scores(logits.tolist(), labels.tolist())
    assert found.keys() == expected.keys()
    for name in ("loss", "ece"):
        assert found.pop(name) == pytest.approx(expected.pop(name), abs=1e-12)
    assert found == expected
    assert 0 <= interval[0] <= found["accuracy"] <= interval[1] <= 1


@given(cases, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_scores_hold_together_and_do_not_depend_on_the_order(case, random):
    logits, labels = case
    scores = score(logits, labels)
    assert sum(map(sum, scores.confusion)) == scores.n == len(labels)
    assert scores.accuracy == sum(row[i] for i, row in enumerate(scores.confusion)) / scores.n
    assert 0 <= scores.ece <= 1
    assert scores.loss >= 0
    assert scores.top5 is None or scores.accuracy <= scores.top5 <= 1
    order = random.sample(range(len(labels)), len(labels))
    assert score(logits[order], labels[order]) == scores


@given(cases)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_scores_survive_json_and_every_undefined_share_is_null(case):
    scores = score(*case)
    found = scores.to_dict()
    read = json.loads(json.dumps(found, allow_nan=False))
    assert read == found
    assert Scores.from_dict(read) == scores


def test_loss_equals_the_cross_entropy_of_pytorch_also_for_extreme_logits():
    logits, labels = random_case(500, 10, 3)
    logits = 100 * logits.double()
    expected = nn.functional.cross_entropy(logits, labels)
    assert score(logits, labels).loss == pytest.approx(expected.item(), rel=1e-12)


def test_wilson_interval_is_where_the_accuracy_is_196_standard_errors_away():
    scores = score_labels(torch.tensor([0] * 90 + [1] * 10), torch.zeros(100, dtype=torch.long), 2)
    for bound in scores.accuracy_interval:
        assert abs(0.9 - bound) / math.sqrt(bound * (1 - bound) / 100) == pytest.approx(1.959964, abs=1e-6)


def test_wilson_interval_of_no_and_of_all_images_right_is_not_empty():
    right, wrong = torch.zeros(10, dtype=torch.long), torch.ones(10, dtype=torch.long)
    assert score_labels(right, right, 2).accuracy_interval == (pytest.approx(0.72247, abs=1e-5), 1.0)
    assert score_labels(wrong, right, 2).accuracy_interval == (0.0, pytest.approx(0.27753, abs=1e-5))


def test_a_calibrated_network_has_a_small_calibration_error_and_a_bragging_one_a_large():
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 10, generator=rng)
    labels = logits.softmax(1).multinomial(1, generator=rng).flatten()
    assert score(logits, labels).ece < 0.015
    assert score(5 * logits, labels).ece > 0.15


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "labels go from 0 to 3, expected 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "labels go from -1 to 0, expected 0 to 2"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "no images"),
    ],
)
def test_labels_that_no_class_has_and_no_images_at_all_are_refused_in_one_line(logits, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        score(logits, labels)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, BudgetnetError)


def test_logits_that_are_not_finite_have_no_score():
    with pytest.raises(CheckpointError, match="the first is image 1"):
        score(torch.tensor([[0.0, 1.0], [math.inf, 0.0]]), torch.tensor([0, 1]))


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"logits are \(2, 3\) and labels \(1,\), expected"):
        score(torch.zeros(2, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"logits are \(2,\) and labels \(2,\), expected"):
        score(torch.zeros(2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="expected"):
        score_labels(torch.tensor([0, 1]), torch.tensor([0]), 2)
    with pytest.raises(ValueError, match="expected"):
        score_labels(torch.tensor([[0], [1]]), torch.tensor([[0], [1]]), 2)


@pytest.mark.parametrize("k", [2, 10, 20, 100])
@pytest.mark.parametrize("n", [1, 20_000])
def test_a_rendering_names_the_scores_fits_80_columns_and_has_no_control_characters(k, n):
    logits, labels = random_case(n, k, 0)
    scores = score(logits, labels)
    names = [f"类别\t{i} with a rather long name that goes on and on" for i in range(k)]
    text = render(scores, names)
    from rich.cells import cell_len

    assert max(map(cell_len, text.split("\n"))) <= 80
    assert all(line.isprintable() for line in text.split("\n"))
    assert f"{100 * scores.accuracy:.2f} %" in text
    assert f"{scores.loss:.4f}" in text
    assert f"{100 * scores.ece:.2f} %" in text


def test_a_rendering_shows_the_whole_confusion_matrix_of_ten_classes():
    logits, labels = random_case(5000, 10, 0)
    scores = score(logits, labels)
    lines = render(scores, [f"class{i}" for i in range(10)]).split("\n")
    assert lines[5] == "  class   precision    recall    images"
    rows = lines[-10:]
    assert [[0 if cell == "." else int(cell) for cell in row.split()[2:]] for row in rows] == [
        list(row) for row in scores.confusion
    ]


def test_a_rendering_of_many_classes_shows_the_largest_confusion_first_instead():
    true = torch.arange(100).repeat(5)
    predicted = true.clone()
    predicted[true == 7] = 42
    text = render(score_labels(predicted, true, 100), [f"name{i}" for i in range(100)])
    confusions = text.split("most frequent confusions")[1].split("\n")[1:]
    assert [line.split() for line in confusions] == [["5", "name7", "->", "name42"]]


def test_a_rendering_of_few_classes_is_this_table_and_this_matrix():
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [1, 0, 0]])
    scores = score(logits, torch.tensor([0, 1, 1, 1]))
    assert render(scores, ["cat", "a long name of a class", "dog"]).split("\n") == [
        "accuracy   50.00 %   (95 % interval 15.00 % to 85.00 %, 4 images)",
        "loss        1.3593     (cross-entropy, nats)",
        "ECE        31.87 %   (expected calibration error)",
        "",
        "  class                 precision    recall    images",
        "0 cat                     50.00 %  100.00 %         1",
        "1 a long name of a cl…   100.00 %   33.33 %         3",
        "2 dog                      0.00 %         -         0",
        "",
        "true class \\ predicted",
        "                       0 1 2",
        "0 cat                  1 . .",
        "1 a long name of a cl… 1 1 1",
        "2 dog                  . . .",
    ]


def test_a_rendering_of_eleven_classes_has_the_top_5_and_columns_as_wide_as_the_numbers_of_classes():
    lines = render(score(3 * torch.eye(11), torch.arange(11)), ["c"] * 11).split("\n")
    assert lines[1] == "top-5     100.00 %"
    assert lines[5] == "   class  precision    recall    images"
    assert lines[6] == " 0 c       100.00 %  100.00 %         1"
    assert lines[-12] == "          0  1  2  3  4  5  6  7  8  9 10"
    assert lines[-1] == "10 c      .  .  .  .  .  .  .  .  .  .  1"


def test_of_more_than_twenty_classes_those_of_lowest_recall_are_listed_in_their_order_and_twenty_confusions():
    true = torch.arange(25).repeat(3)
    true = true[true != 5]  # a class without images has no recall, and is not among the lowest
    predicted = torch.where(true == 24, 0, true)
    predicted[:24] = 3  # one of each class
    lines = render(score_labels(predicted, true, 25), [f"name{i}" for i in range(25)]).split("\n")
    listed = [int(line.split()[0]) for line in lines[3:23]]
    assert listed == [0, 1, 2, 4, *range(6, 21), 24]
    assert lines[2] == "   class   precision    recall    images"
    assert lines[3] == " 0 name0     50.00 %   66.67 %         3"
    assert lines[22] == "24 name24          -    0.00 %         3"
    assert lines[23:26] == [
        "(the 20 of 25 classes with the lowest recall)",
        "",
        "most frequent confusions (images, true -> predicted)",
    ]
    assert lines[26:29] == ["        2  name24 -> name0", "        1  name0  -> name3", "        1  name1  -> name3"]
    assert len(lines) == 26 + 20
    assert lines[-1] == "        1  name20 -> name3"


def test_a_confusion_that_is_not_listed_takes_no_room():
    true = torch.arange(1, 25)
    names = ["name0", *(f"name{i}" for i in range(1, 21)), *["a name of more columns"] * 4]
    lines = render(score_labels(torch.zeros(24, dtype=torch.long), true, 25), names).split("\n")
    assert lines[-20:] == [f"        1  {f'name{i}':6} -> name0" for i in range(1, 21)]


def test_twenty_classes_are_all_listed_and_a_matrix_is_shown_where_80_columns_hold_it():
    labels = torch.arange(20)
    scores = score_labels(labels, labels, 20)
    assert len(render(scores, ["a" * 20] * 20).split("\n")) == 3 + 20 + 2
    assert render(scores, ["a" * 20] * 20).endswith("\nno confusions")
    assert max(map(len, render(scores, ["a" * 17] * 20).split("\n"))) == 80
    assert "no confusions" not in render(scores, ["a" * 17] * 20)
    assert "no confusions" in render(scores, ["a" * 18] * 20)


def test_names_of_confusions_are_cut_at_thirty_columns_and_control_characters_shown_as_question_marks():
    scores = score_labels(torch.tensor([1, 0]), torch.tensor([0, 1]), 21)
    names = ["a" * 31, "b" * 30, *["\n"] * 19]
    text = render(scores, names)
    assert f"        1  {'a' * 29}… -> {'b' * 30}\n        1  {'b' * 30} -> {'a' * 29}…" in text
    assert " 2 ?  " in text


def test_a_rendering_of_labels_alone_has_no_loss():
    scores = score_labels(torch.tensor([0, 1]), torch.tensor([0, 0]), 2)
    assert type(scores) is LabelScores
    assert not isinstance(scores, Scores)
    assert "loss" not in render(scores, ["cat", "dog"])
    with pytest.raises(ValueError, match="expected 2"):
        render(scores, ["cat"])


def test_the_bins_of_a_reliability_diagram_equal_a_loop_and_add_up_to_the_calibration_error():
    rng = torch.Generator().manual_seed(3)
    logits, labels = 3 * torch.randn(500, 4, generator=rng), torch.randint(4, (500,), generator=rng)
    found = reliability(logits, labels)
    probabilities = torch.softmax(logits.double(), 1)
    for i, each in enumerate(found):
        assert (each.low, each.high) == (i / 15, (i + 1) / 15)
        inside = [j for j in range(500) if each.low < probabilities[j].max() <= each.high]
        assert each.images == len(inside)
        if not inside:
            assert (each.confidence, each.accuracy) == (None, None)
            continue
        right = sum(int(probabilities[j].argmax()) == int(labels[j]) for j in inside)
        assert each.accuracy == pytest.approx(right / len(inside))
        assert each.confidence == pytest.approx(sum(float(probabilities[j].max()) for j in inside) / len(inside))
    error = sum(each.images * abs(each.confidence - each.accuracy) for each in found if each.images) / 500
    assert error == pytest.approx(score(logits, labels).ece)
    assert any(not each.images for each in found)


@pytest.mark.parametrize("classes", [3, 5])
def test_bins_of_ties_at_their_edges_are_those_of_the_calibration_error(classes):
    logits = torch.arange(40, dtype=torch.float64)[:, None].expand(40, classes) / 2  # a confidence of 1 / 3 is an edge
    labels = torch.arange(40) % 2
    found = reliability(logits, labels)
    error = sum(each.images * abs(each.confidence - each.accuracy) for each in found if each.images) / 40
    assert error == pytest.approx(score(logits, labels).ece, abs=1e-12)


def test_the_bins_of_narrow_logits_are_computed_in_64_bits():
    logits, labels = random_case(200, 5, 1)
    narrow = logits.float().requires_grad_()
    assert reliability(narrow, labels.to(torch.int32)) == reliability(narrow.detach().double(), labels)


@pytest.mark.parametrize("edge", range(8, 15))
def test_a_confidence_a_billionth_above_the_edge_of_a_bin_is_in_the_next(edge):
    p = torch.tensor([edge / 15 - 1e-9, edge / 15 + 1e-9], dtype=torch.float64)
    found = reliability(torch.stack([p, 1 - p], 1).log(), torch.tensor([0, 0]))
    assert [i for i, each in enumerate(found) if each.images] == [edge - 1, edge]


def test_scores_of_a_confusion_matrix_are_those_of_its_images_and_an_impossible_one_is_refused():
    rng = torch.Generator().manual_seed(4)
    predicted, labels = torch.randint(3, (2, 50), generator=rng)
    scores = score_labels(predicted, labels, 4)
    assert score_confusion(scores.confusion) == scores
    for counts in ([[1, 2]], [[0]], [[1, -1], [1, 1]], []):
        with pytest.raises(ValueError, match="as many rows as columns"):
            score_confusion(counts)
