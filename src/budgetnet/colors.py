"""Augmentations of colours: brightness, contrast, saturation and hue.

`adjust_color` applies given factors, one a row; `color_jitter` draws them.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from budgetnet import checks, draws

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's convert("L")


def adjust_color(
    images: Tensor,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
    hue: Tensor | None = None,
) -> Tensor:
    """Change each image's brightness, contrast, saturation and hue, in this order, clamping to the range after each.

    Brightness multiplies; contrast moves pixels away from the image's mean grey, saturation away from their own grey
    (0 is grey, 1 changes nothing); hue turns the colour wheel of HSV. Meanings as in torchvision and Pillow; uint8
    images are rounded once at the end, not after each step. One-channel images have neither saturation nor hue.

    Args:
        images: (n, c, h, w), c 1 or 3 (RGB), uint8 or a float in [0, 1].
        brightness: (n,) float, factors 0 or more; None leaves it alone, likewise for the others.
        contrast: (n,) float, factors 0 or more.
        saturation: (n,) float, factors 0 or more.
        hue: (n,) float, turns of the colour wheel (1 is all the way round).

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: `images` has neither one nor three channels, is neither uint8 nor float, or is no batch.
    """
    n, c, _, _ = checks.shape(images)
    checks.require(c in (1, 3), "the number of channels", c, "1 (grey) or 3 (RGB)")
    if images.dtype == torch.uint8:
        pixels = images.to(torch.float32).div_(255)
    elif images.is_floating_point():
        pixels = images.clone()
    else:
        raise ValueError(f"images are {images.dtype}, expected torch.uint8 or a float in [0, 1]")

    def per_image(values: Tensor) -> Tensor:
        return values.to(pixels.dtype).view(n, 1, 1, 1)

    if brightness is not None:
        pixels.mul_(per_image(brightness)).clamp_(0, 1)
    if contrast is not None:
        factor = per_image(contrast)
        grey = _luma(pixels.mean((2, 3), keepdim=True))  # the mean of the grey is the grey of the mean
        pixels.mul_(factor).add_(grey * (1 - factor)).clamp_(0, 1)
    if saturation is not None and c == 3:
        factor = per_image(saturation)
        grey = _luma(pixels)
        pixels.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 1)
    if hue is not None and c == 3:
        _turn_hue_(pixels, per_image(hue).squeeze(1))
    return pixels.mul_(255).round_().to(torch.uint8) if images.dtype == torch.uint8 else pixels


def color_jitter(
    images: Tensor, brightness: float, contrast: float, saturation: float, hue: float, rng: Generator
) -> Tensor:
    """Change each image's colours at random: torchvision's ColorJitter, with factors drawn for each image.

    The order is always brightness, contrast, saturation, hue (torchvision shuffles it): see `adjust_color`.

    Args:
        images: (n, c, h, w), c 1 or 3 (RGB), uint8 or a float in [0, 1]; left unchanged.
        brightness: factors are uniform in [max(0, 1 - brightness), 1 + brightness]; 0 leaves it alone.
        contrast: likewise.
        saturation: likewise.
        hue: shifts are uniform in [-hue, hue] turns of the colour wheel, in [0, 0.5].
        rng: where factors and shifts come from, on the device of the images.

    Returns:
        (n, c, h, w), dtype and device of `images`.

    Raises:
        ValueError: a strength is out of range, or `images` is unfit: see `adjust_color`.
    """
    n, *_ = checks.shape(images)
    for name, strength in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        checks.require(0 <= strength < math.inf, name, strength, "0 or more")
    checks.require(0 <= hue <= 0.5, "hue", hue, "turns in [0, 0.5]")

    def factors(strength: float) -> Tensor | None:
        return draws.uniform(max(0.0, 1 - strength), 1 + strength, (n,), rng, images.device) if strength else None

    return adjust_color(
        images,
        factors(brightness),
        factors(contrast),
        factors(saturation),
        draws.uniform(-hue, hue, (n,), rng, images.device) if hue else None,
    )


def _luma(pixels: Tensor) -> Tensor:
    """(n, 1, h, w): grey of (n, c, h, w) with one channel or three."""
    if pixels.shape[1] == 1:
        return pixels.clone()
    red, green, blue = pixels.unbind(1)
    grey = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return grey.unsqueeze(1)


def _turn_hue_(pixels: Tensor, turns: Tensor) -> None:
    """Add `turns` (n, 1, 1) to the hue of `pixels` (n, 3, h, w) in [0, 1], in place; HSV's value and saturation stay.

    With the hue in sixths of the wheel, each channel is low + chroma * ramp(hue), so HSV itself is never built.
    """
    red, green, blue = pixels.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Where the pixel is grey, the numerators are 0 and so is the chroma: any divisor will do.
    divisor = chroma.clamp_min(torch.finfo(pixels.dtype).tiny)
    from_green = (blue - red).div_(divisor).add_(2)
    from_blue = (red - green).div_(divisor).add_(4)
    hue = torch.where(high == green, from_green, from_blue)
    hue = torch.where(high == red, (green - blue).div_(divisor), hue).add_(turns * 6)
    hue.sub_((hue / 6).floor_().mul_(6))
    ramps = ((hue - 3).abs_().sub_(1), (hue - 2).abs_().neg_().add_(2), (hue - 4).abs_().neg_().add_(2))
    for channel, ramp in zip((red, green, blue), ramps, strict=True):
        torch.addcmul(low, chroma, ramp.clamp_(0, 1), out=channel)
    pixels.clamp_(0, 1)  # low + (high - low) may exceed high by a rounding
