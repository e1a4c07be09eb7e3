"""Logits depend on the image alone, and scores equal slow, obvious references."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budgetnet import evaluate
from budgetnet.engine import compile_network
from budgetnet.errors import BudgetnetError, CheckpointError, DataError
from budgetnet.evaluate import (
    LabelScores,
    Scores,
    predict_logits,
    reliability,
    render,
    score,
    score_confusion,
    score_labels,
)
from budgetnet.inputs import normalize

MEAN, STD = (0.5, 0.4, 0.45), (0.25, 0.24, 0.26)


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))[:, :, None, None]


def a_network(channels_last: bool = False) -> nn.Sequential:
    """Has the layers whose kernels could treat one place in a batch unlike another."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.GELU(),
        nn.Conv2d(16, 30, 3, stride=2, padding=1, groups=2),
        nn.SiLU(),
        nn.Conv2d(30, 30, 1),
        Gate(30),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(30, 7),
    )
    return network.to(memory_format=torch.channels_last) if channels_last else network


def some_images(n: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 20, 24), dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize(("channels_last", "precision"), [(False, None), (True, None), (True, torch.bfloat16)])
def test_logits_of_an_image_are_the_same_bits_alone_in_a_subset_and_in_any_order(threads, channels_last, precision):
    torch.set_num_threads(threads)
    network, images = a_network(channels_last), some_images(40)
    together = predict_logits(network, images, MEAN, STD, precision=precision)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for chosen in (order, torch.arange(17, 25), torch.tensor([0]), torch.tensor([39]), torch.tensor([5, 5])):
        assert torch.equal(predict_logits(network, images[chosen], MEAN, STD, precision=precision), together[chosen])


@pytest.mark.parametrize("channels_last", [False, True])
def test_logits_are_what_the_network_says_of_each_normalised_image(channels_last):
    network, images = a_network(channels_last), some_images(5)
    logits = predict_logits(network, images, MEAN, STD)
    network.eval()
    one_by_one = torch.cat([network(normalize(image[None], MEAN, STD)) for image in images])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, one_by_one)


def views(image: Tensor, tta: str) -> list[tuple[float, Tensor]]:
    """Views of an image (3, h, w) with their weights, by slicing."""
    mirror = image.flip(2)
    if tta == "none":
        return [(1.0, image)]
    if tta == "flip":
        return [(0.5, image), (0.5, mirror)]
    rows, columns = image.shape[1:]

    def moved(down: int, right: int) -> Tensor:
        def source(i: int, length: int, by: int) -> int:
            i = abs(i - by)
            return i if i < length else 2 * (length - 1) - i

        found = image[:, [source(i, rows, down) for i in range(rows)]]
        return found[:, :, [source(i, columns, right) for i in range(columns)]]

    if tta == "flip-shift":
        shifted = [view for by in (-1, 1) for view in (moved(by, by), moved(by, by).flip(2))]
        return [(0.25, image), (0.25, mirror), *((0.125, view) for view in shifted)]
    crops = [moved(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return [(1 / 18, view) for crop in crops for view in (crop, crop.flip(2))]


@pytest.mark.parametrize("tta", ["none", "flip", "flip-shift", "crops"])
def test_tta_is_the_weighted_mean_of_the_logits_of_each_view(tta):
    network, images = a_network(), some_images(2)
    logits = predict_logits(network, images, MEAN, STD, tta=tta)
    expected = []
    for image in images:
        terms = [w * predict_logits(network, view[None], MEAN, STD) for w, view in views(image, tta)]
        expected.append(torch.stack(terms).sum(0))
    torch.testing.assert_close(logits, torch.cat(expected))


def test_groups_of_views_count_for_their_shares_and_one_alone_is_the_mean_of_its_views():
    network, images = a_network(), some_images(2)

    def logits(tta, shares=None):
        return predict_logits(network, images, MEAN, STD, tta=tta, shares=shares)

    torch.testing.assert_close(logits("flip-shift", [3, 0]), logits("flip"))
    torch.testing.assert_close(logits("flip-shift", [2, 2]), logits("flip-shift"))
    alone = [logits("crops", shares) for shares in torch.eye(3).tolist()]
    torch.testing.assert_close(logits("crops", [1, 2, 5]), (alone[0] + 2 * alone[1] + 5 * alone[2]) / 8)
    with pytest.raises(ValueError, match="zip"):
        logits("flip-shift", [1, 1, 1])


def test_flipping_the_images_changes_nothing_under_flip_tta():
    network, images = a_network(), some_images(3)
    torch.testing.assert_close(
        predict_logits(network, images, MEAN, STD, tta="flip"),
        predict_logits(network, images.flip(3), MEAN, STD, tta="flip"),
    )


def test_every_module_returns_to_the_mode_it_was_in_even_when_the_network_fails():
    network = a_network()
    network[1].eval()
    before = [module.training for module in network.modules()]
    predict_logits(network, some_images(1), MEAN, STD)
    assert [module.training for module in network.modules()] == before
    with pytest.raises(RuntimeError):
        predict_logits(network, torch.zeros(1, 1, 20, 24, dtype=torch.uint8), MEAN[:1], STD[:1])
    assert [module.training for module in network.modules()] == before


def test_an_autocast_around_the_call_changes_nothing():
    network, images = a_network(), some_images(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = predict_logits(network, images, MEAN, STD)
    assert torch.equal(inside, predict_logits(network, images, MEAN, STD))


def test_nothing_is_kept_for_a_backward_pass():
    network, seen = a_network(), []
    network.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    predict_logits(network, some_images(2), MEAN, STD)
    assert seen == [True]


def test_on_an_accelerator_images_go_256_at_a_time_in_their_order():
    passes = evaluate._passes_of_one_size(some_images(300), torch.device("cuda"))
    assert [size for size, _, _ in passes] == [256, 256]
    assert torch.equal(torch.cat([chosen for _, chosen, _ in passes]), torch.arange(300))
    assert torch.equal(torch.cat([places for _, _, places in passes]), torch.arange(300) % 256)


def test_weights_of_neither_memory_format_are_given_images_in_the_usual_one():
    network, seen = a_network(channels_last=True), []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(module.weight.detach().transpose(2, 3))
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
    predict_logits(network, some_images(2), MEAN, STD)
    assert seen == [True]


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_network_is_given_images_in_the_memory_format_of_its_weights(channels_last):
    network, seen = a_network(channels_last), []
    network.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    predict_logits(network, some_images(2), MEAN, STD)
    assert seen == [channels_last]


def test_no_images_give_no_logits_of_the_right_width():
    assert predict_logits(a_network(), some_images(0), MEAN, STD).shape == (0, 7)


def test_an_unknown_tta_and_images_that_are_not_uint8_are_refused():
    with pytest.raises(ValueError, match="expected none, flip, flip-shift, crops"):
        predict_logits(a_network(), some_images(1), MEAN, STD, tta="twice")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected torch\.uint8"):
        predict_logits(a_network(), some_images(1).float(), MEAN, STD)
    with pytest.raises(
        ValueError, match=r"^images are torch\.uint8 \(3, 20, 24\), expected torch\.uint8 \(n, c, h, w\)"
    ):
        predict_logits(a_network(), some_images(1)[0], MEAN, STD)


def test_an_engine_stands_for_its_network_also_with_no_images():
    network, images = a_network().eval(), some_images(5)
    engine = compile_network(network, (3, 20, 24))
    torch.testing.assert_close(predict_logits(engine, images, MEAN, STD), predict_logits(network, images, MEAN, STD))
    assert predict_logits(engine, images[:0], MEAN, STD).shape == (0, 7)


def test_an_engine_takes_no_precision():
    engine = compile_network(a_network().eval(), (3, 20, 24))
    with pytest.raises(ValueError, match=r"^precision is torch\.bfloat16, but an engine computes in what it was"):
        predict_logits(engine, some_images(1), MEAN, STD, precision=torch.bfloat16)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_precision_is_what_the_network_computes_in_and_32_bits_are_none(precision):
    network, images = a_network(), some_images(3)
    seen = []
    network[-1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    narrow = predict_logits(network, images, MEAN, STD, precision=precision)
    plain = [predict_logits(network, images, MEAN, STD, precision=what) for what in (None, torch.float32)]
    assert set(seen[:1]) == {precision}
    assert set(seen[-2:]) == {torch.float32}
    assert narrow.dtype == torch.float32
    assert torch.equal(*plain)
    torch.testing.assert_close(narrow, plain[0], rtol=0.1, atol=0.1)


def test_a_network_without_parameters_runs_where_the_images_are():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = some_images(3)
    logits = predict_logits(network, images, MEAN, STD)
    torch.testing.assert_close(logits, normalize(images, MEAN, STD).mean((2, 3)))


def test_logits_that_are_not_finite_are_refused():
    network = a_network()
    network[-1].bias.data[3] = math.nan
    with pytest.raises(CheckpointError, match=r"2 of 2 images .* not finite"):
        predict_logits(network, some_images(2), MEAN, STD)
    with pytest.raises(CheckpointError, match="the first is image 1"):
        score(torch.tensor([[0.0, 1.0], [math.inf, 0.0]]), torch.tensor([0, 1]))


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
