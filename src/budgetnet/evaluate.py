"""How good a network's answers are: exact scores of logits and of labels, and a table of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from budgetnet.errors import DataError
from budgetnet.logits import require_finite
from budgetnet.terminal import cell_len, fitted

_TOP5_FROM = 10
_ECE_BINS = 15
_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_COLUMNS = 80


@dataclass(frozen=True)
class LabelScores:
    """How well predicted labels agree with the true ones. Counts are exact; shares are in [0, 1]."""

    n: int
    """Images."""
    accuracy: float
    """Share of images whose predicted label is the true one."""
    accuracy_interval: tuple[float, float]
    """95 % interval of the accuracy for other images drawn alike (Wilson 1927)."""
    precision: tuple[float | None, ...]
    """For each class, the share of the images predicted as it that are of it; None if it was never predicted."""
    recall: tuple[float | None, ...]
    """For each class, the share of its images that are predicted as it; None if it has no image."""
    confusion: tuple[tuple[int, ...], ...]
    """Images by [true class][predicted class]."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types: tuples become lists, and an undefined share is None (null)."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class Scores(LabelScores):
    """How good logits are: the scores of the labels they predict, and of the probabilities they give."""

    loss: float
    """Cross-entropy in nats, the mean over the images, summed exactly in float64."""
    top5: float | None
    """Share of images whose true class is among the five of highest logit; None with fewer than 10 classes."""
    ece: float
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599)."""

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Scores:
        """What `to_dict` wrote; whatever follows from its counts is computed anew, so that nothing can contradict them.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: `found` is something else.
        """
        top5 = found["top5"]
        return cls(
            **vars(score_confusion(found["confusion"])),
            loss=float(found["loss"]),
            top5=None if top5 is None else float(top5),
            ece=float(found["ece"]),
        )


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Score logits against the true labels. The order of the images changes nothing, not even the last bit.

    A tie goes to the class of lower index.

    Args:
        logits: float (n, classes), finite, on any device.
        labels: integers (n,) in [0, classes), on any device.

    Raises:
        DataError: there are no images, or a label names no class of the network.
        CheckpointError: a logit is not finite.
        ValueError: the shapes do not belong together.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}, expected (n, classes) and (n,)"
        )
    n, num_classes = logits.shape
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu().long()
    require_finite(logits)
    predicted = logits.argmax(dim=1)
    by_label = score_labels(predicted, labels, num_classes)

    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(num_classes) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
    log_probabilities = _log_probabilities(logits)
    # fsum rounds once, at the end.
    loss = -math.fsum(log_probabilities.gather(1, labels[:, None]).flatten().tolist()) / n

    return Scores(
        **vars(by_label),
        loss=loss,
        top5=int((rank < 5).sum()) / n if num_classes >= _TOP5_FROM else None,
        ece=_calibration_error(_confidence(log_probabilities), predicted == labels),
    )


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits - logits.logsumexp(dim=1, keepdim=True)


def _confidence(log_probabilities: Tensor) -> Tensor:
    """The probability of the predicted class."""
    return log_probabilities.amax(dim=1).exp()


@dataclass(frozen=True)
class Bin:
    """How many `images` have a probability of their predicted class in (low, high]; the first bin has 0 too."""

    low: float
    high: float
    images: int
    confidence: float | None
    """Mean of that probability; None without images."""
    accuracy: float | None
    """Share of them that are classified right; None without images."""


def reliability(logits: Tensor, labels: Tensor) -> list[Bin]:
    """The bins over which `Scores.ece` is the mean distance of confidence and accuracy, weighted by their images.

    Args:
        logits: float (n, classes), finite, on any device.
        labels: integers (n,) in [0, classes), on any device.
    """
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu().long()
    confidence, predicted = _confidence(_log_probabilities(logits)), logits.argmax(dim=1)
    bins, correct = _bins(confidence), (predicted == labels).double()
    found = []
    for b in range(_ECE_BINS):
        inside = bins == b
        n = int(inside.sum())
        means = [math.fsum(values[inside].tolist()) / n if n else None for values in (confidence, correct)]
        found.append(Bin(b / _ECE_BINS, (b + 1) / _ECE_BINS, n, *means))
    return found


def _bins(confidence: Tensor) -> Tensor:
    """Which bin each probability falls into; bins are open below."""
    inner_edges = torch.arange(1, _ECE_BINS, dtype=torch.float64) / _ECE_BINS
    return torch.bucketize(confidence, inner_edges)


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Mean over the images of |confidence - accuracy| of the bin that they fall into."""
    bins = _bins(confidence)
    gap = confidence - correct.double()
    return math.fsum(abs(math.fsum(gap[bins == b].tolist())) for b in range(_ECE_BINS)) / len(gap)


def score_labels(predicted: Tensor, labels: Tensor, num_classes: int) -> LabelScores:
    """Score predicted labels against the true ones.

    Args:
        predicted: integers (n,) in [0, num_classes).
        labels: integers (n,) in [0, num_classes), on the same device.
        num_classes: classes there are, predicted or not.

    Raises:
        DataError: there are no images, or a label is out of range.
        ValueError: the shapes do not belong together.
    """
    if predicted.ndim != 1 or labels.shape != predicted.shape:
        raise ValueError(
            f"predicted is {tuple(predicted.shape)} and labels {tuple(labels.shape)}, expected (n,) and (n,)"
        )
    n = len(labels)
    if n == 0:
        raise DataError("there are no images to score, expected at least one")
    for values in (predicted, labels):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= num_classes:
            raise DataError(
                f"labels go from {low} to {high}, expected 0 to {num_classes - 1}: these images and the network of "
                f"{num_classes} classes do not belong together"
            )
    cells = labels.long() * num_classes + predicted.long()
    counts = torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    return score_confusion(counts.tolist())


def score_confusion(counts: Sequence[Sequence[int]]) -> LabelScores:
    """The scores of so many images by [true class][predicted class].

    Raises:
        ValueError: the counts are not as many rows as columns, one is below 0, or all are 0.
    """
    confusion = tuple(map(tuple, counts))
    n = sum(map(sum, confusion))
    if n < 1 or any(len(row) != len(confusion) or min(row) < 0 for row in confusion):
        raise ValueError("expected as many rows as columns, counts of 0 or more, and one image at least")
    hits = [row[i] for i, row in enumerate(confusion)]
    of_class, as_class = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    correct = sum(hits)
    return LabelScores(
        n=n,
        accuracy=correct / n,
        accuracy_interval=wilson(correct, n),
        precision=tuple(h / m if m else None for h, m in zip(hits, as_class, strict=True)),
        recall=tuple(h / m if m else None for h, m in zip(hits, of_class, strict=True)),
        confusion=confusion,
    )


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, for other images drawn alike (Wilson 1927).

    Args:
        correct: images that count, in [0, n].
        n: images, at least 1.

    Returns:
        Its ends, in [0, 1]; the share itself lies between them.
    """
    share, z2 = correct / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Rounding must not put the ends past the accuracy, where in exact arithmetic they meet it.
    return max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))


def render(scores: LabelScores, classes: Sequence[str]) -> str:
    """The scores as plain text for people, at most 80 columns wide.

    A confusion matrix too wide for that gives way to the most frequent confusions, and of more than 20 classes those
    of lowest recall are listed.

    Args:
        scores: of `score` or `score_labels`.
        classes: the names, one a class.

    Returns:
        Lines without colour and without a newline at the end.

    Raises:
        ValueError: `classes` has another length than the scores.
    """
    k = len(scores.confusion)
    if len(classes) != k:
        raise ValueError(f"there are {len(classes)} names, expected {k}, one a class")
    low, high = scores.accuracy_interval
    lines = [
        f"accuracy  {_percent(scores.accuracy)}   (95 % interval {_percent(low).strip()} to {_percent(high).strip()}, "
        f"{scores.n:,} images)"
    ]
    if isinstance(scores, Scores):
        if scores.top5 is not None:
            lines.append(f"top-5     {_percent(scores.top5)}")
        lines.append(f"loss      {scores.loss:8.4f}     (cross-entropy, nats)")
        lines.append(f"ECE       {_percent(scores.ece)}   (expected calibration error)")

    names = [_printable(name) for name in classes]
    digits = len(str(k - 1))
    label_width = max(len("class"), min(max(map(cell_len, names)), 20))
    labels = [f"{i:>{digits}} {fitted(name, label_width)}" for i, name in enumerate(names)]
    head = " " * (digits + 1) + fitted("class", label_width)

    def recall_of(i: int) -> float:
        recall = scores.recall[i]
        return 2.0 if recall is None else recall

    listed = sorted(sorted(range(k), key=recall_of)[:20])
    lines += ["", f"{head}  precision    recall    images"]
    lines += [
        f"{labels[i]}  {_percent(scores.precision[i]):>9} {_percent(scores.recall[i]):>9} {sum(scores.confusion[i]):9,}"
        for i in listed
    ]
    if len(listed) < k:
        lines.append(f"(the {len(listed)} of {k} classes with the lowest recall)")

    cell = max(len(str(max(map(max, scores.confusion)))), digits) + 1
    if digits + 1 + label_width + k * cell <= _COLUMNS:
        caption = "true class \\ predicted"
        lines += ["", caption, " " * len(head) + "".join(f"{i:>{cell}}" for i in range(k))]
        lines += [
            label + "".join(f"{count or '.':>{cell}}" for count in row)
            for label, row in zip(labels, scores.confusion, strict=True)
        ]
    else:
        lines += ["", *_largest_confusions(scores, names)]
    return "\n".join(lines)


def _largest_confusions(scores: LabelScores, names: Sequence[str]) -> list[str]:
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(scores.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not pairs:
        return ["no confusions"]
    most = sorted(pairs, key=lambda pair: -pair[0])[:20]  # those as frequent stay in the order of the classes
    width = max(cell_len(names[true]) for _, true, _ in most)
    lines = ["most frequent confusions (images, true -> predicted)"]
    for count, true, predicted in most:
        true_name = fitted(names[true], min(width, 30))
        predicted_name = fitted(names[predicted], min(cell_len(names[predicted]), 30))
        lines.append(f"{count:9,}  {true_name} -> {predicted_name}")
    return lines


def _percent(share: float | None) -> str:
    return "      -" if share is None else f"{100 * share:6.2f} %"


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name)
