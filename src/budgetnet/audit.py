"""What may be wrong with a data set that reads well: images that are there twice, labels that teach nothing.

Two images are nearly the same if the cosine between their fingerprints is large: 8x8 means of luma and two differences
of colours, as cosines of two dimensions, each divided by about what it varies by in photographs. These vary most in
what is coarse and grey (Field 1987, "Relations between the statistics of natural images"), so that plain correlation
finds any two ships between sky and sea alike; with all frequencies on a par, detail counts. Brightness, colour casts
and small shifts change little, and a mirror image is the same up to signs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from budgetnet.errors import DataError

NEAR = 0.875
"""From which similarity on two images count as nearly the same. The best matches of CIFAR-10's test images make two
heaps, and the fewest lie around this bound; of the 37 pairs just above it, up to 0.9, some 35 are one picture, of 40
just below, down to 0.85, some 34."""

_SIDE = 8
_PAIRS_SHOWN = 10
_MOST_PAIRS = 2 * 10**9  # of a test and a training image: four times CIFAR's, some 20 s on two cores
_BLOCK = 2**24  # similarities that are in memory at a time
_FAINT = 1.0  # length of a fingerprint below which an image has too little in it to be told from another


@dataclass(frozen=True)
class Pair:
    """A test image that is, nearly, a training image."""

    test: str
    """Its place in the test set, or the name of its file."""
    train: str
    """That of the most similar training image."""
    similarity: float
    """1 for the same pixels, else the cosine of the fingerprints, up to 1."""


@dataclass(frozen=True)
class Duplicates:
    """How many images a data set has more than once, and some of them."""

    where: str
    """The name of its folder."""
    test: int
    """Test images."""
    exact: int
    """Test images whose very pixels are among the training images."""
    near: int | None
    """Further ones with a training image, or its mirror image, of a similarity of at least `threshold`; None where the
    set is too large to look for them."""
    threshold: float
    """`NEAR`."""
    within_train: int
    """Training images whose very pixels an earlier training image has."""
    within_test: int
    """The same of the test images."""
    pairs: tuple[Pair, ...]
    """The ten most similar, the most similar first."""

    def lines(self) -> list[str]:
        """The same for people."""
        near = "" if self.near is None else f", {self.near:,} nearly (similarity {self.threshold:g} or more)"
        text = f"{self.where}: of {self.test:,} test images {self.exact:,} are training images exactly{near}"
        if self.within_train or self.within_test:
            text += f"; {self.within_train:,} training and {self.within_test:,} test images repeat another of their own"
        found = [text]
        if self.near is None:
            found.append(f"{self.where}: too large to look for images that are nearly the same")
        shown = [f"{pair.test} = {pair.train} ({pair.similarity:.3f})" for pair in self.pairs[:5]]
        if shown:
            found.append(f"{self.where}: the most similar, test = train: {', '.join(shown)}")
        return found


class Prints:
    """The fingerprints of images that need not be in memory at once.

    Args:
        near: whether to keep what near duplicates are found by, 768 bytes an image, or only what exact ones are.
    """

    def __init__(self, *, near: bool = True) -> None:
        self.hashes: list[bytes] = []
        self._near = near
        self._vectors: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Take in some more images: uint8 (n, 3, h, w)."""
        self.hashes += [hashlib.blake2b(image.data, digest_size=16).digest() for image in images.numpy()]
        if self._near:
            self._vectors += [_fingerprint(part) for part in torch.split(images, 4096)]

    @property
    def vectors(self) -> Tensor:
        """float32 (n, 192), of length 1, or less for faint images."""
        return torch.cat(self._vectors) if self._vectors else torch.empty(0, 3 * _SIDE * _SIDE)


def comparable(train: int, test: int) -> bool:
    """Whether so many images are few enough to look for near duplicates."""
    return train * test <= _MOST_PAIRS


def compare(
    where: str,
    train: Prints,
    test: Prints,
    *,
    train_name: Callable[[int], str] = str,
    test_name: Callable[[int], str] = str,
) -> Duplicates:
    """Look for the test images among the training images, exactly and nearly.

    Args:
        where: name of the data set.
        train: of its training images.
        test: of its test images.
        train_name: what a training image is called, by its place.
        test_name: what a test image is called, by its place.
    """
    first: dict[bytes, int] = {}
    for i, key in enumerate(train.hashes):
        first.setdefault(key, i)
    found = [(1.0, i, first[key]) for i, key in enumerate(test.hashes) if key in first]
    exact = {i for _, i, _ in found}
    near = comparable(len(train.hashes), len(test.hashes))
    if near and train.hashes and test.hashes:
        best, place = _most_similar(test.vectors, train.vectors)
        found += [
            (min(best[i].item(), 1.0), i, int(place[i]))
            for i in (best >= NEAR).nonzero().flatten().tolist()
            if i not in exact
        ]
    ordered = sorted(found, key=lambda pair: (-pair[0], pair[1]))
    return Duplicates(
        where=where,
        test=len(test.hashes),
        exact=len(exact),
        near=len(found) - len(exact) if near else None,
        threshold=NEAR,
        within_train=len(train.hashes) - len(first),
        within_test=len(test.hashes) - len(set(test.hashes)),
        pairs=tuple(Pair(test_name(i), train_name(j), round(s, 4)) for s, i, j in ordered[:_PAIRS_SHOWN]),
    )


def _most_similar(wanted: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """For each fingerprint, the largest similarity to another, or to its mirror image, and where that is."""
    odd = torch.arange(_SIDE) % 2 == 1  # orders of cosines across, the last of (colour, down, across)
    mirrored = torch.where(odd, -1.0, 1.0).repeat(3 * _SIDE)
    best, place = [], []
    for some in torch.split(wanted, max(1, _BLOCK // len(among))):
        plain, there = (some @ among.T).max(1)
        mirror, elsewhere = ((some * mirrored) @ among.T).max(1)
        best.append(torch.maximum(plain, mirror))
        place.append(torch.where(plain >= mirror, there, elsewhere))
    return torch.cat(best), torch.cat(place)


def _fingerprint(images: Tensor) -> Tensor:
    means = F.adaptive_avg_pool2d(images.float() / 255, _SIDE)
    order = torch.arange(_SIDE, dtype=torch.float32)
    cosines = torch.cos(math.pi * (order + 0.5) * order[:, None] / _SIDE) * math.sqrt(2 / _SIDE)
    cosines[0] /= math.sqrt(2)
    colours = F.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]))
    terms = torch.einsum("ku,lv,dc,ncuv->ndkl", cosines, cosines, colours, means)
    frequency = (order[:, None] ** 2 + order**2).clamp(min=1)
    # About CIFAR-10's variances at low frequencies; the cube, and a floor for the noise of compression, parted pairs of
    # one picture from others best among the five variants tried. The mean of the image is left out.
    falling = frequency.sqrt() ** 3
    usual = torch.stack([power / falling + 5e-4 for power in (1.5, 0.09, 0.02)])
    terms /= usual.sqrt()
    terms[:, :, 0, 0] = 0
    flat = terms.flatten(1)
    vectors: Tensor = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=_FAINT)
    return vectors


def check_images(images: Tensor, train: Tensor) -> None:
    """Refuse training images that are all the same, black for instance. Reads no more of them than it must.

    Args:
        images: uint8 (n, c, h, w).
        train: places of the images that are trained on, int64 (m,), m >= 1.

    Raises:
        DataError: no image differs from another.
    """
    first = images[train[:1]]
    if all(bool((images[some] == first).all()) for some in torch.split(train, 1000)):
        low, high = int(first.min()), int(first.max())
        looks = f"all pixels are {low}" if low == high else "the same picture"
        raise DataError(f"all {len(train):,} training images are alike ({looks}), expected images that differ")


def check_labels(classes: Sequence[str], train: Tensor, val: Tensor) -> list[str]:
    """Look at what the labels of a data set can teach.

    Args:
        classes: the names.
        train: labels of the images that are trained on, int64 (n,).
        val: labels of the images that the weights are chosen by, int64 (n,); none where nothing is chosen.

    Returns:
        A line for what is worth a warning: a class of which no image is trained on, or none is chosen by.

    Raises:
        DataError: all training images are of one class.
    """
    seen = torch.bincount(train, minlength=len(classes)) > 0
    if int(seen.sum()) == 1:
        raise DataError(
            f"all {len(train):,} training images are of one class ({classes[int(train[0])]}), expected two or more: "
            "check the labels"
        )
    found = []
    if not seen.all():
        found.append(f"no training image is of class {_listed(classes, ~seen)}: it will not be learnt")
    if len(val):
        chosen_by = torch.bincount(val, minlength=len(classes)) > 0
        missing = seen & ~chosen_by
        if missing.any():
            found.append(
                f"no validation image is of class {_listed(classes, missing)}, which plays no part in choosing the "
                "weights then: raise val_size"
            )
    return found


def _listed(classes: Sequence[str], which: Tensor) -> str:
    names = [classes[i] for i in which.nonzero().flatten().tolist()]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
