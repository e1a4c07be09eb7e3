"""budgetnet's side of each comparison: the package's own functions, called as it calls them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from plain import MEAN, STD, network
from torch import nn
from turns import Meter

from budgetnet import data, engine, splits
from budgetnet.augment import Augment
from budgetnet.config import Config
from budgetnet.engine import Precision
from budgetnet.models.norms import BatchNorm2d
from budgetnet.train import train


def training(
    meter: Meter, config: Config, folder: Path, threads: int, run: Path, images: int = 50_000, norms: bool = True
) -> None:
    """`budgetnet train`, stopped and timed after each step; epochs and their ends are not reached.

    Without `norms`, batch norms compute as torch's own.
    """
    torch.set_num_threads(threads)
    if not norms:
        BatchNorm2d.forward = nn.BatchNorm2d.forward  # type: ignore[method-assign]
    batch = config.batch_size
    # Every batch is full: the training images less those held out are a multiple of it.
    config = replace(config, val_size=images % batch or batch, epochs=1000, checkpoint_minutes=None)
    train(config, run, folder=folder, track=False, stop=lambda: meter(batch))


def augmentation(meter: Meter, config: Config, folder: Path, threads: int) -> None:
    """Batches gathered and augmented in this process."""
    torch.set_num_threads(threads)
    images = data.load("cifar10", folder).train.images
    augment = Augment(config.augment, MEAN, STD, config.seed)
    epoch = 0
    while True:
        for step, index in enumerate(splits.batches(splits.epoch_order(len(images), 0, epoch), config.batch_size)):
            augment(images[index], index, epoch, torch.Generator().manual_seed(splits.step_seed(0, epoch, step)))
            meter(len(index))
        epoch += 1


def loading(meter: Meter, folder: Path) -> None:
    """CIFAR-10 read, checked and summed."""
    while True:
        data.load("cifar10", folder)
        meter()


@torch.no_grad()
def inference(meter: Meter, config: Config, batch: int, threads: int, precision: Precision) -> None:
    """Logits of `batch` images at a time by the engine."""
    torch.set_num_threads(threads)
    calibration = torch.randn(256, 3, 32, 32) if precision == "int8" else None
    compiled = engine.compile_network(
        network(config.model).eval(), (3, 32, 32), precision=precision, calibration=calibration
    )
    images = torch.randn(batch, 3, 32, 32)
    while True:
        compiled(images)
        meter(batch)
