"""What a page shows of images: those that a network gets wrong or nearly wrong, where it looks, and its filters."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from budgetnet.markup import Html, percent, shortened, tag
from budgetnet.saliency import occlusion

_FIRST, _PER_PAIR, _MOST = 24, 5, 150  # mistakes shown at first, kept of a pair of classes, and kept in all
_LOOKS = 4  # mistakes, and hits, whose occlusion is shown
_LOSSLESS, _SIDE = 40, 96  # pixels: larger images are shrunk to so many, and compressed
_FILTERS = 96


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Images, and what a network makes of them."""

    images: Tensor
    """uint8 (n, c, h, w)."""
    labels: Tensor
    """int64 (n,)."""
    probabilities: Tensor
    """float (n, classes)."""
    classes: Sequence[str]
    """Names, in the order of the probabilities."""

    def __post_init__(self) -> None:
        n, k = self.probabilities.shape
        if (len(self.images), len(self.labels), len(self.classes)) != (n, n, k):
            raise ValueError(
                f"{len(self.images)} images, {len(self.labels)} labels, {len(self.classes)} classes: {n, k}"
            )


def mistakes(judged: Judged) -> tuple[list[int], list[int]]:
    """The images classified wrong, by falling probability of the wrong class.

    Returns:
        The first 24 of all, and up to 150 together with the first 5 of each pair of classes; places, int.
    """
    confidence, predicted = judged.probabilities.max(dim=1)
    wrong = (predicted != judged.labels).nonzero().flatten()
    ranked = wrong[confidence[wrong].argsort(descending=True, stable=True)].tolist()
    first = ranked[:_FIRST]
    taken: dict[tuple[int, int], int] = {}
    kept = []
    for i in ranked:
        pair = int(judged.labels[i]), int(predicted[i])
        taken[pair] = taken.get(pair, 0) + 1
        if i in first or taken[pair] <= _PER_PAIR:
            kept.append(i)
    return first, kept[:_MOST]


def least_certain(judged: Judged) -> list[int]:
    """Places of up to 12 images that are classified right, by rising probability of their class."""
    confidence, predicted = judged.probabilities.max(dim=1)
    right = (predicted == judged.labels).nonzero().flatten()
    chosen: list[int] = right[confidence[right].argsort(stable=True)][: _FIRST // 2].tolist()
    return chosen


def grid(judged: Judged, places: Sequence[int], *, first: Sequence[int] | None = None, id_: str | None = None) -> Html:
    """The images at some places, each with what it was taken for and what it is.

    Args:
        judged: the images.
        places: which.
        first: those that are shown until a pair is chosen; None is all.
        id_: of the grid, for the page's script.
    """
    figures = []
    for i in places:
        label, predicted = int(judged.labels[i]), int(judged.probabilities[i].argmax())
        second = label if label != predicted else int(judged.probabilities[i].topk(2).indices[1])
        name, other, next_ = (shortened(judged.classes[c], 24) for c in (label, predicted, second))
        given, less = (percent(float(judged.probabilities[i, c]), 1) for c in (predicted, second))
        lines = [tag("span", tag("b", other), f" {given}")]
        lines.append(tag("span", f"{'is' if label != predicted else 'or'} {next_} {less}"))
        shown = first is None or i in first
        figures.append(
            tag(
                "figure",
                tag(
                    "img",
                    src=data_uri(judged.images[i]),
                    alt=f"image {i}, a {name}",
                    title=f"image {i}",
                    loading="lazy",
                ),
                tag("figcaption", *lines),
                class_=None if shown else "more",
                data_pair=f"{label}-{predicted}" if label != predicted else None,
                data_first="" if shown else None,
            )
        )
    return tag("div", *figures, class_="gallery", id=id_)


def looks(judged: Judged, predict: Callable[[Tensor], Tensor]) -> Html:
    """Where the network looks in some mistakes and some hits: what hiding a part takes from the predicted class.

    Args:
        judged: the images.
        predict: from uint8 images (n, c, h, w) to probabilities (n, classes).
    """
    confidence, predicted = judged.probabilities.max(dim=1)
    right = (predicted == judged.labels).nonzero().flatten()
    ranked = right[confidence[right].argsort(stable=True)].tolist()
    hits = (
        [ranked[len(ranked) * (2 * i + 1) // (2 * _LOOKS)] for i in range(_LOOKS)] if len(ranked) >= _LOOKS else ranked
    )
    figures = []
    for i in [*mistakes(judged)[0][:_LOOKS], *hits]:
        image, label = judged.images[i], int(predicted[i])
        side = min(image.shape[1:])
        fall = occlusion(predict, image, label, window=max(2, side // 4), stride=max(1, side // 8))
        name, true = judged.classes[label], judged.classes[int(judged.labels[i])]
        verdict = "right" if label == judged.labels[i] else f"wrong: is {true}"
        most = max(float(fall.max()), 0.0)
        figures.append(
            tag(
                "figure",
                tag(
                    "div",
                    tag("img", src=data_uri(image), alt=f"image {i}, a {true}"),
                    tag("img", src=data_uri(_overlay(image, fall)), alt=f"what speaks for {name} in it is coloured"),
                    class_="pair",
                ),
                tag(
                    "figcaption",
                    tag("span", tag("b", name), f" {percent(float(confidence[i]), 1)}, {verdict}"),
                    tag("span", f"falls by up to {100 * most:.1f} points"),
                ),
            )
        )
    return tag("div", *figures, class_="gallery pairs")


def filters(network: nn.Module) -> tuple[Html, str] | None:
    """The filters of the first convolution as one picture, each scaled by its own largest weight; grey is nought.

    Returns:
        The picture, and what it shows; None where the first convolution does not take three channels.
    """
    layer = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if layer is None or layer.weight.shape[1] != 3:
        return None
    weights = layer.weight.detach().float().cpu()
    shown = weights[:_FILTERS]
    n, _, height, width = shown.shape
    scale = shown.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    tiles = ((shown / scale * 0.5 + 0.5) * 255).round().to(torch.uint8)
    across = min(n, 16)
    factor = max(1, 28 // max(height, width))
    enlarged = tiles.repeat_interleave(factor, 2).repeat_interleave(factor, 3).permute(0, 2, 3, 1).numpy()
    high, wide = factor * height + 4, factor * width + 4
    sheet = np.zeros((-(-n // across) * high - 4, across * wide - 4, 4), np.uint8)  # see-through between filters
    for i, tile in enumerate(enlarged):
        place = sheet[i // across * high :, i % across * wide :][: high - 4, : wide - 4]
        place[:, :, :3], place[:, :, 3] = tile, 255
    picture = tag("img", src=_encoded(sheet, "png"), alt="the filters", width=sheet.shape[1], height=sheet.shape[0])
    frozen = "" if layer.weight.requires_grad else ", not trained"
    some = f"{n} of {len(weights)}" if n < len(weights) else f"{n}"
    return tag("div", picture, class_="filters"), f"{some} filters of {height} x {width} pixels{frozen}"


def data_uri(image: Tensor) -> str:
    """An image, uint8 (c, h, w), as the address of itself: as it is where it is small, else shrunk and compressed."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    return _encoded(pixels, "png" if max(pixels.shape[:2]) <= _LOSSLESS else "jpeg")


def _encoded(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], kind: str) -> str:
    from PIL import Image

    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    if kind == "jpeg":
        picture.thumbnail((_SIDE, _SIDE))
        picture.save(buffer, "JPEG", quality=85)
    else:
        picture.save(buffer, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _overlay(image: Tensor, fall: Tensor) -> Tensor:
    """The image in grey, orange where it speaks for the class and blue where against it; uint8 (3, h, w).

    The strongest colour is the largest change of the image, but 5 points at least, so that noise stays grey.
    """
    grey = image.float().mean(dim=0, keepdim=True).expand(3, -1, -1)
    strength = (fall / fall.abs().max().clamp_min(0.05)).clamp(-1, 1)[None]
    orange, blue = (torch.tensor(colour)[:, None, None] for colour in ((255.0, 140.0, 0.0), (0.0, 114.0, 255.0)))
    colour = torch.where(strength >= 0, orange, blue)
    share = 0.75 * strength.abs()
    return ((1 - share) * grey + share * colour).round().clamp(0, 255).to(torch.uint8)
