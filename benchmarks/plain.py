"""The plain PyTorch way, which budgetnet is measured against.

As tutorials have it: contiguous float32 tensors, an eager network, `torch.optim.SGD` as it comes, and a `DataLoader`
whose worker processes augment one PIL image after another. The augmentation is torchvision's of the same names, written
from its documented behaviour.
"""

from __future__ import annotations

import itertools
import math
import pickle
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from turns import Meter

from budgetnet import models
from budgetnet.config import AugmentConfig, Config, ModelConfig

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Chain:
    """Augmentation of one image at a time: crop, flip, rotation, colour jitter, normalisation, erasing, cutout.

    Args:
        config: which steps, how strong. An alternating flip is a coin's here.
        mean: of each channel, in [0, 1].
        std: of each channel, in [0, 1] units.
    """

    def __init__(self, config: AugmentConfig, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        self.config = config
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image to float32 (3, height, width), normalised; draws from the generators of random and torch."""
        c = self.config
        if c.crop_padding:
            image = self._crop(image)
        if c.flip != "none" and random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if c.rotation:
            image = image.rotate(random.uniform(-c.rotation, c.rotation))
        if c.brightness or c.contrast or c.saturation or c.hue:
            image = self._jitter(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        pixels = (pixels - self.mean) / self.std
        if random.random() < c.erase_p:
            self._erase(pixels)
        if c.cutout:
            self._cut_out(pixels)
        return pixels

    def _crop(self, image: Image.Image) -> Image.Image:
        padding, (width, height) = self.config.crop_padding, image.size
        if self.config.crop_border == "zeros":
            image = ImageOps.expand(image, padding)
        else:
            around = ((padding, padding), (padding, padding), (0, 0))
            image = Image.fromarray(np.pad(np.asarray(image), around, mode="reflect"))
        left, top = random.randint(0, 2 * padding), random.randint(0, 2 * padding)
        return image.crop((left, top, left + width, top + height))

    def _jitter(self, image: Image.Image) -> Image.Image:
        c = self.config
        for step in random.sample(("brightness", "contrast", "saturation", "hue"), 4):
            strength = getattr(c, step)
            if not strength:
                continue
            if step == "hue":
                hue, saturation, value = image.convert("HSV").split()
                shift = int(random.uniform(-strength, strength) * 255)
                turned = (np.asarray(hue).astype(np.int16) + shift).astype(np.uint8)  # round the wheel of 256
                image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
            else:
                kinds = {
                    "brightness": ImageEnhance.Brightness,
                    "contrast": ImageEnhance.Contrast,
                    "saturation": ImageEnhance.Color,
                }
                image = kinds[step](image).enhance(random.uniform(max(0.0, 1 - strength), 1 + strength))
        return image

    def _erase(self, pixels: Tensor) -> None:
        c, (_, rows, columns) = self.config, pixels.shape
        for _ in range(10):
            area = rows * columns * random.uniform(*c.erase_scale)
            ratio = math.exp(random.uniform(math.log(c.erase_ratio[0]), math.log(c.erase_ratio[1])))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < rows and width < columns:
                top, left = random.randint(0, rows - height), random.randint(0, columns - width)
                pixels[:, top : top + height, left : left + width] = torch.tensor(c.erase_value).view(-1, 1, 1)
                return

    def _cut_out(self, pixels: Tensor) -> None:
        size, (_, rows, columns) = self.config.cutout, pixels.shape
        top, left = random.randrange(rows) - size // 2, random.randrange(columns) - size // 2
        pixels[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0


class Pictures(Dataset[tuple[Tensor, int]]):
    """Labelled images, (n, height, width, 3) uint8 and (n,) int, each augmented when it is asked for."""

    def __init__(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], chain: Chain) -> None:
        self.images, self.labels, self.chain = images, labels, chain

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.chain(Image.fromarray(self.images[index])), int(self.labels[index])


def read(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The five training batches and the test batch of CIFAR-10: uint8 (n, 32, 32, 3), int64 (n,). Trusts the files."""
    images, labels = [], []
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        with (folder / "cifar-10-batches-py" / name).open("rb") as file:
            content = pickle.load(file, encoding="bytes")
        images.append(content[b"data"])
        labels.extend(content[b"labels"])
    return np.vstack(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels)


def network(config: ModelConfig) -> nn.Module:
    """The network, contiguous, in float32, with random weights, all different as in a trained one."""
    torch.manual_seed(0)
    built = models.build(config, 10)
    models.kaiming_(built)
    if isinstance(built, models.Initializable):
        built.initialize(torch.randn(1000, 3, 32, 32))
    return built


def batches(config: Config, folder: Path, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches for ever, from worker processes."""
    images, labels = read(folder)
    pictures = Pictures(images[:50_000], labels[:50_000], Chain(config.augment))
    loader = DataLoader(pictures, config.batch_size, shuffle=True, num_workers=workers, drop_last=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


# Contestants


def training(meter: Meter, config: Config, folder: Path, threads: int) -> None:
    """The whole loop: batches from as many workers as threads, and a step on each."""
    torch.set_num_threads(threads)
    _steps(meter, config, batches(config, folder, threads))


def steps(meter: Meter, config: Config, threads: int) -> None:
    """Steps alone: the batches are in memory, normalised."""
    torch.set_num_threads(threads)
    rng = torch.Generator().manual_seed(0)
    some = [
        (
            torch.randn(config.batch_size, 3, 32, 32, generator=rng),
            torch.randint(10, (config.batch_size,), generator=rng),
        )
        for _ in range(4)
    ]
    _steps(meter, config, itertools.cycle(some))


def _steps(meter: Meter, config: Config, source: Iterator[tuple[Tensor, Tensor]]) -> None:
    c = config.optimizer
    net = network(config.model).train()
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    optimizer = torch.optim.SGD(net.parameters(), lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)
    for images, labels in source:
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
        meter(len(images))


def augmentation(meter: Meter, config: Config, folder: Path, threads: int) -> None:
    """Batches from as many workers as threads, and nothing done with them."""
    for images, _ in batches(config, folder, threads):
        meter(len(images))


def loading(meter: Meter, folder: Path) -> None:
    """The batches of CIFAR-10 into one tensor."""
    while True:
        images, labels = read(folder)
        torch.from_numpy(images), torch.from_numpy(labels)
        meter()


@torch.no_grad()
def inference(meter: Meter, config: Config, batch: int, threads: int) -> None:
    """Logits of `batch` images at a time."""
    torch.set_num_threads(threads)
    net = network(config.model).eval()
    images = torch.randn(batch, 3, 32, 32)
    while True:
        net(images)
        meter(batch)
