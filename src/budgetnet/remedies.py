"""What can be done for a trained network at test time, without labels of the images that it is to classify.

Averaging views is part of `logits.predict_logits`. Here are what those views should count for, norm statistics of the
images at hand, and the temperature of the probabilities.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from budgetnet import seeds
from budgetnet.errors import CheckpointError, ConfigError, DataError
from budgetnet.inputs import normalize
from budgetnet.splits import batches

LOWEST, HIGHEST = 0.05, 20.0
"""Between which a temperature is looked for: a network that is never wrong, or never right, has none."""

_PIXELS = 2**19  # of a batch: 512 images of 32x32, whose activations take some hundred megabytes
_FEWEST = 16


@torch.no_grad()
def adapted(
    network: nn.Module, images: Tensor, mean: Sequence[float], std: Sequence[float], prior: int = 0
) -> nn.Module:
    """A copy of a network whose batch norms use statistics of the images that it is to classify.

    Each norm's mean and variance become prior / (prior + n) of those that training left and n / (prior + n) of those
    of its inputs over the n images (Schneider et al. 2020, arXiv:2006.16971; with a prior of 0, Nado et al. 2020,
    arXiv:2006.10963), those inputs coming through the norms before it as they are now. In batches of some 512 images,
    the inputs come through norms with the statistics of the batch. Batches are made in an order that depends on what
    the images show, so that the order in which they are given changes nothing.

    Args:
        network: maps float32 (n, c, h, w) to logits, on any device; left unchanged.
        images: uint8 (n, c, h, w) in [0, 255], n >= 1; without labels.
        mean: of each channel, in units of the full range, [0, 1].
        std: of each channel, in the same units.
        prior: how many images the statistics of training count as, 0 or more. Few images need some, such as 16.

    Returns:
        The copy, on the device of the network, in evaluation mode.

    Raises:
        ConfigError: the network has no batch norm with running statistics, or `prior` is negative.
        DataError: there are no images, or one alone without a prior.
        CheckpointError: activations are not finite.
    """
    if prior < 0:
        raise ConfigError(f"norm_prior is {prior}, expected 0 or more images")
    if not len(images) or len(images) + prior < 2:
        raise DataError(f"found {len(images)} images, expected two or more to take norm statistics of, or a prior")
    network = copy.deepcopy(network).eval()
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise ConfigError("this network has no batch norms, whose statistics could be taken of the images")
    n = len(images)
    ours = n / (prior + n)
    device = next(network.parameters()).device
    source = {norm: _statistics(norm) for norm in norms}
    # On the CPU: Apple's GPUs have no 64 bits.
    means = {norm: torch.zeros(norm.num_features, dtype=torch.float64) for norm in norms}
    squares = {norm: torch.zeros_like(means[norm]) for norm in norms}

    def take(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, _BatchNorm)
        x = inputs[0].float()
        variance, average = torch.var_mean(x, [i for i in range(x.ndim) if i != 1], correction=0)
        exact = average.cpu().double()
        means[norm] += share * exact
        squares[norm] += share * (variance.cpu().double() + exact**2)
        _blend(norm, source[norm], average, variance, ours)

    handles = [norm.register_forward_pre_hook(take) for norm in norms]
    for chosen in batches(_order(images), max(_FEWEST, _PIXELS // math.prod(images.shape[2:]))):
        share = len(chosen) / n
        network(normalize(images[chosen].to(device), mean, std))
    for handle in handles:
        handle.remove()
    for norm in norms:
        _blend(norm, source[norm], means[norm], (squares[norm] - means[norm] ** 2).clamp_min(0), ours)
        if not all(values.isfinite().all() for values in _statistics(norm)):
            raise CheckpointError("activations of these images are not finite: the weights are of no use")
    return network


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()


def _blend(norm: _BatchNorm, source: tuple[Tensor, Tensor], mean: Tensor, variance: Tensor, share: float) -> None:
    for name, old, new in zip(("running_mean", "running_var"), source, (mean, variance), strict=True):
        setattr(norm, name, ((1 - share) * old.to(new.device) + share * new).to(old.dtype).to(old.device))


def _order(images: Tensor) -> Tensor:
    """Indices that sort the images by a digest of their pixels."""
    pixels = images.cpu().contiguous().numpy()
    digests = [hashlib.blake2b(image.data, digest_size=16).digest() for image in pixels]
    return torch.tensor(sorted(range(len(digests)), key=digests.__getitem__))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature by which to divide logits so that their cross-entropy is least (Guo et al. 2017,
    arXiv:1706.04599).

    The cross-entropy is convex in the inverse of the temperature, so that the sign of its slope says on which side the
    one minimum lies, and bisection finds it from anywhere.

    Args:
        logits: float (n, classes), finite, of images that nothing was trained on.
        labels: int64 (n,) in [0, classes).

    Returns:
        In [`LOWEST`, `HIGHEST`]; the end of it beyond which the minimum lies, where it does.

    Raises:
        DataError: there are no images.
    """
    if not len(logits):
        raise DataError("there are no images to fit a temperature on, expected a validation split")
    logits = logits.double()
    own = logits.gather(1, labels[:, None]).squeeze(1)

    def slope(temperature: float) -> float:
        """Of the cross-entropy by the inverse temperature, times n."""
        expected = (torch.softmax(logits / temperature, 1) * logits).sum(1)
        return math.fsum((expected - own).tolist())

    low, high = LOWEST, HIGHEST
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.sqrt(low * high)


def fit_shares(logits: Tensor, labels: Tensor) -> list[float]:
    """What groups of views should count for, so that the cross-entropy of their weighted mean is least.

    At whichever temperature suits it best: the temperature is then another remedy. The cross-entropy is convex in the
    weights.

    Args:
        logits: float (groups, n, classes), finite, of images that nothing was trained on.
        labels: int64 (n,) in [0, classes).

    Returns:
        The share of each group, 0 or more, 1 in all; equal where no mean says anything of the classes.

    Raises:
        DataError: there are no images.
    """
    from scipy.optimize import minimize

    if not len(labels):
        raise DataError("there are no images to weigh views by, expected a validation split")
    groups = logits.double()
    own = groups.gather(2, labels.expand(len(groups), -1)[:, :, None]).squeeze(2)

    def loss(weights: Any) -> tuple[float, Any]:
        """The mean cross-entropy, and its gradient."""
        mean = torch.einsum("g,gnc->nc", torch.from_numpy(weights), groups)
        value = torch.logsumexp(mean, 1) - torch.from_numpy(weights) @ own
        slope = (torch.softmax(mean, 1) * groups).sum(2) - own
        return value.mean().item(), slope.mean(1).numpy()

    start = np.full(len(groups), 1 / len(groups))
    found = minimize(loss, start, jac=True, bounds=[(0, 1 / LOWEST)] * len(groups)).x
    total = float(found.sum())
    return [float(weight) / total for weight in found] if total > 1e-9 else start.tolist()


def gain(before: Tensor, after: Tensor) -> dict[str, float]:
    """What a remedy did to the accuracy, and how much of that the choice of the images alone could have done.

    Args:
        before: (n,) in [0, 1], n >= 1: for each image the share of the answers to it (to each corruption, or one) that
            are right.
        after: the same of the same images, with the remedy.

    Returns:
        The difference of the means as `accuracy`, and as `noise` what `seeds.paired_noise` says of it.
    """
    differences = after.double() - before.double()
    return {"accuracy": differences.mean().item(), "noise": seeds.paired_noise(differences.tolist())}


def render_scored(remedy: Mapping[str, Any], split: str) -> str:
    """What a remedy did to the images of a split that were scored, as text for people, at most 80 columns wide.

    Args:
        remedy: an entry of `remedies` in the result of `evaluate`: what it is, scores `before` and `after`, and `gain`.
        split: of the images.
    """
    lines = [_name(remedy) + (" (scored here too)" if "fitted" in remedy and split == "val" else "")]
    before, after, gained = remedy["before"], remedy["after"], remedy["gain"]
    if "clean" in before:
        lines += [_change("clean", before["clean"], after["clean"]), *_judged(gained["clean"])]
    lines += [_change("shifted" if "clean" in before else "", before, after), *_judged(gained)]
    return "\n".join(lines)


def render_predicted(remedy: Mapping[str, Any]) -> str:
    """What a remedy did to predictions, whose labels may not be known, as text for people, at most 80 columns wide.

    Args:
        remedy: an entry of `remedies` in the result of `predict`.
    """
    changed = f"  {remedy['predictions_changed']:.2%} of predictions changed"
    if "accuracy_before" in remedy:
        changed += f", accuracy {remedy['accuracy_before']:.2%} -> {remedy['accuracy_after']:.2%}"
    lines = [_name(remedy), changed, *_judged(remedy.get("gain"))]
    if "fitted" in remedy:
        lines.append(_change("there", remedy["fitted"]["before"], remedy["fitted"]["after"]))
    return "\n".join(lines)


def _name(remedy: Mapping[str, Any]) -> str:
    if remedy["remedy"] == "norm statistics":
        return f"norm statistics of these images (training's count as {remedy['prior']:,} images)"
    if remedy["remedy"] == "views":
        what = f"views that count for {' : '.join(f'{share:.3g}' for share in remedy['shares'])}"
    else:
        what = f"temperature {remedy['temperature']:.4g}"
    return what + (f", fitted on the {remedy['fitted']['images']:,} validation images" if "fitted" in remedy else "")


def _judged(gained: Mapping[str, Any] | None) -> list[str]:
    """Whether the accuracy changed by more than the choice of the images; nothing where each answer is as right."""
    if not gained or not gained["noise"]:
        return []
    beyond = abs(gained["accuracy"]) > gained["noise"]
    said = seeds.percent(gained["accuracy"], gained["noise"], sign=True)
    return [f"  {'':<8}{said} points, {'beyond' if beyond else 'within'} the noise of these images"]


def _change(title: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    accuracy, ece = ([100 * scores[key] for scores in (before, after)] for key in ("accuracy", "ece"))
    return (
        f"  {title:<8}accuracy {accuracy[0]:.2f} -> {accuracy[1]:.2f} %, loss {before['loss']:.3f} -> "
        f"{after['loss']:.3f}, ECE {ece[0]:.2f} -> {ece[1]:.2f} %"
    )
