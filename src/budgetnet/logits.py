"""What a network says of images: logits that depend on the image alone, perhaps averaged over views of it."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.config import Tta
from budgetnet.engine import Engine
from budgetnet.errors import CheckpointError
from budgetnet.inputs import normalize
from budgetnet.models.summary import evaluating

SHIFTS: Mapping[Tta, Sequence[Sequence[tuple[int, int]]]] = {
    "flip": [[(0, 0)]],
    "flip-shift": [[(0, 0)], [(1, 1), (-1, -1)]],
    "crops": [[(0, 0)], [(0, 1), (0, -1), (1, 0), (-1, 0)], [(1, 1), (1, -1), (-1, 1), (-1, -1)]],
}
"""Of each test-time augmentation, groups of shifts by pixels down and right; each is seen with its mirror image."""
SHARES: Mapping[Tta, Sequence[float]] = {"flip": [1], "flip-shift": [1 / 2, 1 / 2], "crops": [1 / 9, 4 / 9, 4 / 9]}
"""What each group counts for, where nothing else is said."""


def predict_logits(
    network: nn.Module | Engine,
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    tta: Tta = "none",
    shares: Sequence[float] | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """The logits of each image, the same bits whichever images are asked about with it, and in whichever order.

    An engine runs on the CPU. A network runs on the device of its parameters and in the memory format of its
    convolutions, in evaluation mode (each module's own mode is restored). Test-time augmentation averages logits, not
    probabilities:

    - "flip": 1/2 each of the image and its mirror.
    - "flip-shift": 1/4 each of the image and its mirror, and 1/8 each of both moved by one pixel up and left and moved
      by one pixel down and right, the uncovered edge reflected (Jordan 2024, arXiv:2404.00498).
    - "crops": 1/18 each of the nine crops of the image with a reflected border of one pixel, and their mirrors.

    Args:
        network: maps float32 (n, c, h, w) to (n, classes): a network, or what `engine.compile_network` makes of it.
        images: uint8 (n, c, h, w) in [0, 255], on any device.
        mean: of each channel, in units of the full range, [0, 1].
        std: of each channel, in the same units.
        tta: the views that are averaged.
        shares: what each group of `SHIFTS[tta]` counts for, 0 or more, of which one at least is not 0; those of
            `SHARES` if None.
        precision: autocast a network to this dtype; None computes in the dtype of the weights. An engine has its own.

    Returns:
        float32 (n, classes) on the CPU.

    Raises:
        CheckpointError: a logit is not finite.
        ValueError: `images` is not uint8 with four dimensions, a precision is given for an engine, or `shares` are not
            as many as the groups.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, expected torch.uint8 (n, c, h, w)")
    if isinstance(network, Engine):
        if precision is not None:
            raise ValueError(f"precision is {precision}, but an engine computes in what it was compiled for")
        device, memory_format = torch.device("cpu"), torch.contiguous_format
        passes = _passes_in_order(len(images), network.batch)
    else:
        device = next((p.device for p in network.parameters()), images.device)
        memory_format = _memory_format(network)
        passes = _passes_of_one_size(images, device)
    rows = []
    mode = contextlib.nullcontext() if isinstance(network, Engine) else evaluating(network)
    with mode, torch.inference_mode(), _autocast(device, precision):
        for size, chosen, slots in passes:
            chunk = torch.zeros((size, *images.shape[1:]), dtype=torch.uint8, device=device)
            chunk[slots] = images[chosen].to(device)
            inputs = normalize(chunk, mean, std).contiguous(memory_format=memory_format)
            rows.append(_average_views(network, inputs, tta, shares)[slots])
    shuffled = torch.cat(rows).cpu()
    logits = torch.empty_like(shuffled)
    logits[torch.cat([chosen for _, chosen, _ in passes])] = shuffled
    require_finite(logits)
    return logits


# How many images go through together, padding included, the indices of those that are no padding, and their places.
_Pass = tuple[int, Tensor, Tensor]


def _passes_in_order(n: int, size: int) -> list[_Pass]:
    """For an engine, which sees to it itself that an image's logits depend on that image alone."""
    chunks = torch.split(torch.arange(n), size)
    return [(len(chosen), chosen, torch.arange(len(chosen))) for chosen in chunks]


def _passes_of_one_size(images: Tensor, device: torch.device) -> list[_Pass]:
    """For a network in PyTorch: which images go through it together, and where each stands among them.

    Every forward pass is of one size, the rest padding, because kernels sum in an order that changes with the size. On
    a CPU the place counts too: threads share a batch without regard to where an image ends, and what is left over by
    their vector instructions goes through scalar ones, which round otherwise. There the place is drawn from the pixels
    themselves, so that an image always stands in the same one, at the price of some more padding. An
    accelerator runs one kernel for all places, and larger passes suit it.
    """
    if device.type == "cpu":
        size = 16
        pixels = images.flatten(1).cpu().contiguous().numpy()
        slots = [zlib.crc32(row) % size for row in pixels]
    else:
        size = 256
        slots = [i % size for i in range(len(images))]
    passes: list[tuple[list[int], list[int]]] = []
    taken = [0] * size
    for i, slot in enumerate(slots):
        if taken[slot] == len(passes):
            passes.append(([], []))
        chosen, places = passes[taken[slot]]
        chosen.append(i)
        places.append(slot)
        taken[slot] += 1
    # An empty input still gives the network one pass, of padding alone: it alone knows the number of classes.
    return [
        (size, torch.tensor(c, dtype=torch.long), torch.tensor(p, dtype=torch.long)) for c, p in passes or [([], [])]
    ]


def _memory_format(network: nn.Module) -> torch.memory_format:
    for weight in network.parameters():
        # Weights of 1x1 convolutions are contiguous in both formats and tell nothing.
        if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def _autocast(device: torch.device, precision: torch.dtype | None) -> torch.autocast:
    # Always entered, so that an autocast around the call cannot change what it returns.
    return torch.autocast(device.type, dtype=precision, enabled=precision not in (None, torch.float32))


def _average_views(
    network: Callable[[Tensor], Tensor], inputs: Tensor, tta: Tta, shares: Sequence[float] | None
) -> Tensor:
    if tta == "none":
        return network(inputs).float()
    if tta not in SHIFTS:
        raise ValueError(f"tta is {tta!r}, expected none, {', '.join(SHIFTS)}")
    shares = SHARES[tta] if shares is None else shares
    height, width = inputs.shape[2:]
    bordered = F.pad(inputs, (1, 1, 1, 1), mode="reflect")

    def logits(down: int, right: int) -> Tensor:
        view = inputs
        if down or right:
            view = bordered[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
        return 0.5 * (network(view).float() + network(view.flip(3)).float())

    terms = [
        share / sum(shares) / len(group) * _sum(logits(*shift) for shift in group)
        for share, group in zip(shares, SHIFTS[tta], strict=True)
        if share
    ]
    return _sum(terms)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


def require_finite(logits: Tensor) -> None:
    """Refuse logits of shape (n, classes) of which one is not finite.

    Raises:
        CheckpointError: one is not.
    """
    bad = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise CheckpointError(
            f"the logits of {len(bad)} of {len(logits)} images (the first is image {bad[0]}) are not finite"
        )
