"""Where a network looks: how much less it believes in a class when part of the image is hidden from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def occlusion(
    predict: Callable[[Tensor], Tensor], image: Tensor, label: int, window: int = 8, stride: int = 4
) -> Tensor:
    """How much the probability of a class falls when a grey window covers a pixel: the mean over the windows that do.

    Windows hang over the edges as far as they must for each pixel to be covered equally often (where `stride` divides
    `window`). Their grey is the image's own mean, so that hiding a part of an even image changes nothing. All covered
    images are predicted in one call, with the image itself: 82 of a 32x32 image. For another size, a quarter of the
    side as window and an eighth as stride make as many.

    Args:
        predict: from uint8 images (n, c, h, w) to the probabilities of the classes, float (n, classes) on any device,
            each row independent of the others.
        image: uint8 (c, h, w) in [0, 255]; left unchanged.
        label: the class, in [0, classes).
        window: side of the window in pixels, 1 or more.
        stride: pixels from one window to the next, 1 to `window`.

    Returns:
        float32 (h, w) in [-1, 1] on the CPU. Where it is above 0, what stands there speaks for the class; below 0,
        against it.

    Raises:
        ValueError: `image` is no uint8 image, or `stride` is not in [1, window].

    Zeiler and Fergus 2013, "Visualizing and understanding convolutional networks", arXiv:1311.2901, section 4.2.
    """
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise ValueError(f"image is {image.dtype} {tuple(image.shape)}, expected torch.uint8 (c, h, w)")
    if not 1 <= stride <= window:
        raise ValueError(f"stride is {stride}, expected 1 to the window, which is {window}")
    rows, columns = (_windows(side, window, stride).to(image.device) for side in image.shape[1:])
    hidden = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)  # (windows, h, w)
    grey = image.float().mean().round().to(torch.uint8)
    covered = torch.where(hidden[:, None], grey, image)
    believed = predict(torch.cat([image[None], covered]))[:, label].float().cpu()
    falls = (believed[0] - believed[1:]).view(len(rows), len(columns))
    down, across = rows.float().cpu(), columns.float().cpu()
    return (down.T @ falls @ across) / torch.outer(down.sum(0), across.sum(0))


def _windows(side: int, window: int, stride: int) -> Tensor:
    """Which of the pixels along a side each window hides: bool (windows, side)."""
    first = torch.arange(stride - window, side, stride)[:, None]
    pixel = torch.arange(side)
    return (pixel >= first) & (pixel < first + window)
