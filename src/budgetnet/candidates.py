"""Networks that fill a parameter budget, and what each costs: parameters, multiply-adds, latency, time of training.

`propose` lists them: family x depth x groups, each as wide as the budget allows.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from budgetnet import data, devices, engine, models, splits
from budgetnet.config import (
    AugmentConfig,
    Config,
    DatasetName,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from budgetnet.errors import ConfigError
from budgetnet.models.residual import ResidualArchitecture, uniform
from budgetnet.training import Training

FULL = 0.75
"""A candidate uses at least this share of the budget: groups may be too coarse to use more."""

_WARM_UP, _RUNS = 5, 25  # of one image, for a latency


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for."""

    budget: int
    """Largest number of trainable parameters."""
    recipe: Config
    """How to train: all but the network, the budget and the epochs."""
    families: tuple[str, ...] = ()
    """Names out of `FAMILIES`; none is all."""
    multiply_adds: float | None = None
    """Most multiply-adds for one image."""
    latency_ms: float | None = None
    """Most milliseconds for one image, as `measure_latency` measures them."""
    epochs: int = 4
    """Epochs of every candidate in the first rung; 0 is no training."""
    minutes: float | None = None
    """Instead of equal epochs: minutes of training for every candidate in the first rung."""

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                raise ConfigError(f"{name} is not a family of networks, expected some of {', '.join(FAMILIES)}")
        for name, value in (("budget", self.budget), ("flops", self.multiply_adds), ("latency", self.latency_ms)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value:g}, expected a number above 0")
        if self.epochs < 0:
            raise ConfigError(f"epochs is {self.epochs}, expected 0 or more")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"minutes is {self.minutes:g}, expected a number above 0")
        if self.recipe.val_size == 0 and self.epochs:
            raise ConfigError("val_size is 0, but networks are chosen by validation accuracy: hold out some images")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network that fills the budget."""

    name: str
    """Family, depths, groups and width, in short."""
    family: str
    """Its family."""
    model: ModelConfig
    """The network, as wide as that makes it."""
    parameters: int
    """Trainable parameters."""
    multiply_adds: int
    """Multiply-adds for one image."""
    latency_ms: float = 0.0
    """Median time of one image in milliseconds."""
    images_per_second: float | None = None
    """Speed of training, where that decides how many epochs it gets."""

    def epochs(self, request: Request, rung: int, images: int) -> int:
        """Its epochs in a rung (from 0), where the training set has so many images: each rung is twice the last."""
        if request.minutes is None or self.images_per_second is None:
            return int(request.epochs * 2**rung)
        return max(1, int(60 * request.minutes * 2**rung * self.images_per_second / images))


def _residual(block: str, depth: int, width: int, groups: int = 1, expansion: int = 1, **more: Any) -> ModelConfig:
    switches = {name: (value,) * 3 for name, value in {"groups": groups, **more}.items()}
    stages = uniform(block, (depth,) * 3, width, expansion, **switches)
    return ModelConfig(name="residual", stages=list(stages))


def _pyramid(depth: int) -> ModelConfig:
    # Six times as wide at the end as at the beginning, as with 84 channels added to 16.
    stages = _residual("pyramid", depth, 16).stages or []
    return ModelConfig(
        name="residual", stages=[replace(stage, width=16 + 28 * i, widen=28) for i, stage in enumerate(stages)]
    )


FAMILIES: dict[str, dict[str, ModelConfig]] = {
    "preact": {f"preact {n}-{n}-{n}": _residual("preact", n, 64) for n in (2, 3, 4, 6)},
    "bottleneck": {f"bottleneck {n}-{n}-{n}": _residual("bottleneck", n, 64, expansion=4) for n in (3, 6)},
    "resnext": {
        f"resnext {n}-{n}-{n} g{g}": _residual("bottleneck", n, 64, groups=g, expansion=4)
        for n in (3, 6)
        for g in (4, 16)
    },
    "pyramid": {f"pyramid {n}-{n}-{n}": _pyramid(n) for n in (2, 3, 6, 12, 18)},
    "shake": {f"shake {n}-{n}-{n}": _residual("shake", n, 32) for n in (2, 4)},
    "inverted": {f"inverted {n}-{n}-{n}": _residual("inverted", n, 64, expansion=6, se=24) for n in (2, 4)},
    "convnext": {f"convnext {n}-{n}-{n}": _residual("convnext", n, 64, expansion=4, activation="gelu") for n in (2, 4)},
    "enhanced": {"enhanced": ModelConfig(name="enhanced")},
    "whitened": {name: ModelConfig(name=name) for name in ("whitened_cnn", "whitened_cnn_large")},
}
"""By family: networks by their names, at widths that do not matter."""


def default_recipe(dataset: DatasetName, seed: int = 0) -> Config:
    """How candidates are trained unless told otherwise: one cycle of the learning rate, shifts, and mirror images.

    Raises:
        ConfigError: `dataset` is folder, of which nobody knows how large its images should be.
    """
    if dataset == "folder":
        raise ConfigError("the dataset folder needs a recipe with its image_size and val_size: give --recipe")
    digits = dataset == "digits"
    return Config(
        dataset=dataset,
        val_size=200 if digits else 5000,
        batch_size=64 if digits else 128,
        augment=AugmentConfig(crop_padding=3 if digits else 4, flip="none" if digits else "random"),
        optimizer=OptimizerConfig(lr=0.1, nesterov=True, decay_norms=False),
        schedule=ScheduleConfig(name="onecycle", peak=0.25),
        label_smoothing=0.1,
        precision="auto",
        seed=seed,
    )


def propose(request: Request, num_classes: int) -> list[Candidate]:
    """Networks that use the budget, by family and depth, each as wide as it allows, within the multiply-adds.

    Their latencies are not measured yet.

    Raises:
        ConfigError: there is none.
    """
    size, channels = request.recipe.image_size, 3
    smallest = request.recipe.progressive.size or size
    found: list[Candidate] = []
    cheapest = None
    for family in request.families or FAMILIES:
        for name, model in FAMILIES[family].items():
            width = models.largest_width(
                model, num_classes, budget=request.budget, image_size=smallest, channels=channels
            )
            if width is None:
                continue
            model = _at_width(model, width)
            with torch.device("meta"):
                network = models.build(model, num_classes, image_size=size, channels=channels)
            parameters, cost = models.count_parameters(network), models.multiply_adds(network, size, channels)
            if parameters < FULL * request.budget:
                continue
            cheapest = min(cost, cheapest or cost)
            if request.multiply_adds is None or cost <= request.multiply_adds:
                found.append(
                    Candidate(
                        name=f"{name} w{width}",
                        family=family,
                        model=model,
                        parameters=parameters,
                        multiply_adds=cost,
                    )
                )
    if not found and cheapest:
        raise ConfigError(
            f"no network that fills {request.budget:,} parameters makes at most {request.multiply_adds:,.0f} "
            f"multiply-adds, the cheapest {cheapest:,}: raise --flops or lower --budget"
        )
    if not found:
        raise ConfigError(f"no network of these families fills {request.budget:,} parameters: raise --budget")
    return found


def _at_width(model: ModelConfig, width: int) -> ModelConfig:
    """The network so wide, its stages with the widths that they then have, as somebody would write them down."""
    if model.stages is None:
        return replace(model, width=width)
    described = ResidualArchitecture(stages=tuple(model.stages), stem_width=model.stages[0].width)
    return replace(model, stages=list(described.scaled(width).stages))


def measure_latency(model: ModelConfig, num_classes: int, image_size: int) -> float:
    """Median milliseconds that one image takes on this machine's CPU, by the engine that `predict` uses there.

    With random weights, and as many threads as `torch.get_num_threads()` says.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.build(model, num_classes, image_size=image_size).eval()
        image = torch.randn(1, 3, image_size, image_size)
    run: Callable[[torch.Tensor], torch.Tensor] = network
    if engine.available():
        run = engine.compile_network(network, image.shape[1:])
    times = []
    with torch.no_grad():
        for _ in range(_WARM_UP + _RUNS):
            started = time.perf_counter()
            run(image)
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[_WARM_UP:])


def measure_speed(config: Config, dataset: data.Dataset, device: torch.device, steps: int = 3) -> float:
    """Images a second of training, from a few steps after two that warm up."""
    indices, _ = splits.split(dataset.train.targets, config.val_size, config.split_seed, config.train_size)
    training = Training(
        replace(config, precision=devices.precision(config.precision, device)), dataset, indices, device
    )
    batch = indices[: config.batch_size].to(device)
    started = 0.0
    for step in range(2 + steps):
        if step == 2:
            started = time.perf_counter()
        loss, _ = training.gradient(batch, step, dataset.train.images.shape[-1])
        training.update(config.optimizer.lr / 1000)
        loss.item()  # waits for the device
    return steps * len(batch) / (time.perf_counter() - started)
