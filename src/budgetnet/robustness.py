"""How good a classifier is on corrupted images: scores a corruption and severity, their means, a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from budgetnet.evaluate import score
from budgetnet.shift import COMMON, EXTRA

Progress = Callable[[int, int], None]
"""Called with the sets of images that are scored and those that there are."""


@dataclass(frozen=True)
class Cell:
    """Scores of one set of images, or means of several sets'."""

    accuracy: float
    """Share of the images that are classified right."""
    loss: float
    """Cross-entropy in nats."""
    ece: float
    """Expected calibration error; see `evaluate.Scores`."""


@dataclass(frozen=True)
class ShiftScores:
    """How good logits are on clean images and on the same images corrupted."""

    images: int
    clean: Cell
    cells: Mapping[str, dict[int, Cell]]
    """By corruption and severity."""
    clean_right: Tensor = field(compare=False)
    """int64 (images,): 1 for each clean image that is classified right."""
    right: Mapping[str, Tensor] = field(compare=False)
    """By corruption, int64 (images,): under how many severities each image is classified right."""

    def mean(self, names: Sequence[str]) -> Cell | None:
        """The mean over some corruptions and all their severities; None where one of them was not measured."""
        if not all(name in self.cells for name in names):
            return None
        found = [cell for name in names for cell in self.cells[name].values()]
        return Cell(*(math.fsum(values) / len(found) for values in zip(*map(_values, found), strict=True)))

    def times_right(self, names: Sequence[str]) -> Tensor:
        """int64 (images,): under how many of some corruptions and their severities each image is classified right."""
        return torch.stack([self.right[name] for name in names]).sum(0)

    def shares_right(self, names: Sequence[str]) -> Tensor:
        """float64 (images,): `times_right`, as a share of these corruptions and severities."""
        return self.times_right(names).double() / sum(len(self.cells[name]) for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; a mean of corruptions that were not all measured is None (null)."""
        common, extra = self.mean(COMMON), self.mean(EXTRA)
        return {
            "clean": asdict(self.clean),
            "corruptions": {
                name: {str(severity): asdict(cell) for severity, cell in row.items()}
                for name, row in self.cells.items()
            },
            "mean_corruption": common and asdict(common),
            "mean_extra": extra and asdict(extra),
        }


def _values(cell: Cell) -> tuple[float, float, float]:
    return cell.accuracy, cell.loss, cell.ece


def measure(
    classify: Callable[[Tensor], Sequence[Tensor]],
    clean: Tensor,
    labels: Tensor,
    corrupted: Callable[[str, int], Tensor],
    names: Sequence[str],
    severities: Sequence[int],
    progress: Progress | None = None,
) -> list[ShiftScores]:
    """Score one or more classifiers on clean images and on each corruption and severity of them.

    Args:
        classify: from images, uint8 (n, c, h, w), to logits (n, classes) of each classifier.
        clean: uint8 (n, c, h, w).
        labels: int64 (n,).
        corrupted: the same images for a corruption and a severity.
        names: of the corruptions.
        severities: of each.
        progress: told how many of all sets are scored.

    Returns:
        The scores of each classifier.

    Raises:
        DataError: there are no images, or a label names no class.
        CheckpointError: a logit is not finite.
    """
    total = 1 + len(names) * len(severities)

    def answers(images: Tensor, done: int) -> list[tuple[Cell, Tensor]]:
        found = [(score(logits, labels), logits.argmax(1) == labels) for logits in classify(images)]
        if progress:
            progress(done, total)
        return [(Cell(scores.accuracy, scores.loss, scores.ece), right) for scores, right in found]

    measured = [
        ShiftScores(
            images=len(labels),
            clean=cell,
            cells={name: {} for name in names},
            clean_right=right.long(),
            right={name: torch.zeros_like(labels) for name in names},
        )
        for cell, right in answers(clean, 1)
    ]
    done = 1
    for name in names:
        for severity in severities:
            done += 1
            for scores, (cell, right) in zip(measured, answers(corrupted(name, severity), done), strict=True):
                scores.cells[name][severity] = cell
                scores.right[name].add_(right)
    return measured


def render(scores: ShiftScores) -> str:
    """The scores as plain text for people, at most 80 columns wide: accuracy a corruption and severity, in per cent.

    Returns:
        Lines without colour and without a newline at the end.
    """
    severities = list(next(iter(scores.cells.values())))
    head = "".join(f"{severity:>8}" for severity in severities)
    lines = [f"{'accuracy in %':<20}" + head + f"{'mean':>10}{'ECE':>9}"]
    for group, mean in ((COMMON, "mean corruption"), (EXTRA, "mean of the extra")):
        measured = [name for name in group if name in scores.cells]
        for name in measured:
            row = scores.cells[name]
            lines.append(_row(name, [row[severity].accuracy for severity in severities], scores.mean([name])))
        if len(measured) == len(group):
            columns = [
                math.fsum(scores.cells[name][severity].accuracy for name in group) / len(group)
                for severity in severities
            ]
            lines += [_row(mean, columns, scores.mean(group)), ""]
    lines.append(_row("clean", [], scores.clean, 8 * len(severities)))
    return "\n".join(lines)


def _row(title: str, accuracies: Sequence[float], mean: Cell | None, width: int = 0) -> str:
    assert mean is not None, "of what was measured"
    cells = "".join(f"{100 * accuracy:8.2f}" for accuracy in accuracies)
    return f"{title:<20}{cells:<{width}}{100 * mean.accuracy:10.2f}{100 * mean.ece:9.2f}"
