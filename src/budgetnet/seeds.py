"""What several seeds say: how much a figure spreads over them, and whether a difference is more than noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over the seeds (None of fewer than two), and how many there are."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": deviation, "seeds": len(values)}


def difference(differences: Sequence[float], images_noise: float) -> dict[str, Any]:
    """The mean of differences of accuracies, seed by seed, with its 95 % interval and a verdict.

    A difference is "beyond noise" when Student's interval over the seeds leaves 0 out, and when it is larger than what
    the choice of the images alone could make it, as all seeds share them.

    Args:
        differences: one a seed, at least one.
        images_noise: of `accuracy_noise`, or better of `paired_noise`.

    Returns:
        The mean as `difference`, the half-width of the interval as `interval` (None of one seed), and the `verdict`.
    """
    from scipy.stats import t

    n, mean = len(differences), statistics.mean(differences)
    if n < 2:
        return {"difference": mean, "interval": None, "verdict": "one seed: unknown"}
    interval = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    beyond = abs(mean) > interval and abs(mean) > images_noise
    return {"difference": mean, "interval": interval, "verdict": "beyond noise" if beyond else "within noise"}


def accuracy_noise(accuracy: float, images: int) -> float:
    """What the choice of so many images may make of a difference: 1.96 standard errors of an accuracy in [0, 1]."""
    return 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 1 / images) / images)


def paired_noise(differences: Sequence[float]) -> float:
    """The same where both sides' answers to each image are known: 1.96 standard errors of the mean over the images.

    Args:
        differences: for each image, one side's accuracy on it less the other's, averaged over seeds.

    Returns:
        The noise; infinite of one image, which tells nothing of others.
    """
    if len(differences) < 2:
        return math.inf
    return 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))


def percent(share: float, spread: float | None, sign: bool = False) -> str:
    """A share in per cent, or a difference of shares in points, as text: with its spread where there is one."""
    text = f"{100 * share:{'+' if sign else ''}.2f}"
    return text if spread is None else f"{text} ± {100 * spread:.2f}"
