"""The chain of augmentations that a recipe describes, on whole batches.

Its steps are pure functions of (images, parameters or generator) in modules of their own, by kind: `geometry`,
`policies`, `colors`, `erasing`. Each leaves its input unchanged, draws only from the generator it is given, and runs on
any device without making the host wait for it. Images are uint8 in [0, 255] or floats in [0, 1], and normalised
floats where they are erased. To add one is to add a function beside its like, an option of `AugmentConfig`, and a step
of `Augment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from budgetnet.colors import color_jitter
from budgetnet.config import AugmentConfig
from budgetnet.erasing import cutout, random_erase
from budgetnet.geometry import alternating_flip, random_crop, random_flip, rotate
from budgetnet.inputs import check_statistics, normalize
from budgetnet.policies import augmix, rand_augment, trivial_augment

_RAND_OPS, _AUGMIX_OPS, _MAGNITUDE = 2, 3, 0.3  # what policies do unless told otherwise: M = 9 of 30, severity 3 of 10


class Augment:
    """The chain that a configuration describes: crop, flip, rotation, policy, colours, normalisation, erasing, cutout.

    A step that is off costs nothing and draws nothing. Crop and rotation show black where they uncover an edge, cutout
    shows the mean colour (0 after normalisation).

    Args:
        config: which steps, how strong.
        mean: one number a channel, in units of [0, 1].
        std: one number above 0 a channel, in units of [0, 1].
        seed: seed of the alternating flip's first orientations.

    Raises:
        ValueError: `mean` and `std` differ in length, or a std is not positive.
    """

    def __init__(self, config: AugmentConfig, mean: Sequence[float], std: Sequence[float], seed: int) -> None:
        check_statistics(mean, std)
        self.config = config
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed

    def __call__(self, images: Tensor, indices: Tensor, epoch: int, rng: Generator, *, strong: bool = True) -> Tensor:
        """Augment and normalise a batch; the result is a function of the arguments and the generator's state alone.

        Args:
            images: (n, c, h, w) uint8; left unchanged.
            indices: (n,) int64, place of each image in the training set.
            epoch: epoch, 0 or more.
            rng: where all draws come from, on the device of the images.
            strong: whether to do more than crop and flip.

        Returns:
            (n, c, h, w) float32, normalised, on the device of `images`. With a consistency loss and `strong`, (3 * n,
            c, h, w): the images, a mix of each, and another mix of each.

        Raises:
            ValueError: `images` is not a uint8 batch, or a step of the configuration does not fit it.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}, expected torch.uint8")
        c = self.config
        if c.crop_padding:
            images = random_crop(images, c.crop_padding, rng, c.crop_border)
        if c.flip == "random":
            images = random_flip(images, rng)
        elif c.flip == "alternate":
            images = alternating_flip(images, indices, epoch, self.seed)
        if not strong:
            return normalize(images, self.mean, self.std)
        if c.rotation:
            images = rotate(images, c.rotation, rng)
        images = self._policy(images, rng)
        if c.brightness or c.contrast or c.saturation or c.hue:
            # As floats, so that nothing is rounded back to uint8 before normalisation.
            images = color_jitter(images.float().div_(255), c.brightness, c.contrast, c.saturation, c.hue, rng)
        images = normalize(images, self.mean, self.std)
        if c.erase_p:
            images = random_erase(images, c.erase_p, c.erase_scale, c.erase_ratio, c.erase_value, rng)
        if c.cutout:
            images = cutout(images, c.cutout, rng)
        return images

    def _policy(self, images: Tensor, rng: Generator) -> Tensor:
        c = self.config
        magnitude = _MAGNITUDE if c.policy_magnitude is None else c.policy_magnitude
        match c.policy:
            case "none":
                return images
            case "trivial":
                return trivial_augment(images, rng)
            case "rand":
                return rand_augment(images, c.policy_ops or _RAND_OPS, magnitude, rng)
            case "augmix":
                mixed = partial(augmix, images, c.policy_ops or _AUGMIX_OPS, magnitude, rng)
                # One view after the other: on a CPU both at once fall out of the caches and take twice as long.
                return torch.cat([images, mixed(), mixed()]) if c.consistency else mixed()
