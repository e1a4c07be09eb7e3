"""Typed configuration: all that decides what a run computes, in dataclasses that check themselves when built.

Nothing here knows of torch, so that reading a recipe and printing help stay fast.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import yaml

from budgetnet.errors import ConfigError
from budgetnet.masking import masked
from budgetnet.plainyaml import require_plain
from budgetnet.sections import (
    AugmentConfig,
    DistillConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ProgressiveConfig,
    ScheduleConfig,
    StageConfig,
    require,
)

__all__ = [
    "AugmentConfig",
    "Config",
    "DatasetName",
    "DistillConfig",
    "MixConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProgressiveConfig",
    "ScheduleConfig",
    "StageConfig",
    "Tta",
    "model_from_dict",
    "nearest",
    "to_yaml",
]

DatasetName = Literal["cifar10", "cifar100", "folder", "digits"]
Tta = Literal["none", "flip", "flip-shift", "crops"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that decides what a run computes. Where it runs (device, threads, folders) is not part of it."""

    dataset: DatasetName = "cifar10"
    """cifar10, cifar100, folder (train/<class>/* and test/<class>/*) or digits (carried by scikit-learn)."""
    image_size: int = 32
    """Side in pixels that the images of dataset folder are resized to; the others are 32x32."""
    val_size: int = 5000
    """Training images held out to choose weights by; 0 trains on all, and the last weights are the result."""
    train_size: int | None = None
    """Images to train on, of those that are not held out, each class in its share; null is all of them."""
    train_on_test: bool = False
    """Train on the labelled test images too, where a contest allows it. Such a run has no test score."""
    split_seed: int = 0
    """Seed of the validation split, of its own so that runs with other seeds hold out the same images."""
    budget: int | None = 5_000_000
    """Hard limit on trainable parameters; null is none."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    init: Literal["default", "kaiming"] = "default"
    """PyTorch's initialisation, or the reference project's (fan-out for convolutions, 1/0 for norms, normal 1e-3 for
    linear layers)."""
    start: str | None = None
    """A finished run or model file of the same data, or `box`, whose weights training starts from; null is fresh. Where
    model.channels and model.ranks leave less than it has, from its most important channels and best approximations."""
    epochs: int = 200
    """Total number of epochs, also when a run is resumed."""
    batch_size: int = 128
    """Images a step, of all processes together. On the command line also auto: the recipe's, halved until a step fits
    in memory."""
    accumulate: int = 1
    """In how many pieces each process computes its images of a step, one after the other, adding up the gradients: less
    memory and the same step, except that batch norm sees one piece at a time."""
    sync_norm: bool = False
    """With several processes, take the statistics of batch norm over the images of all of them, as if one process had
    them all; that costs two exchanges a norm and step. Without it, each process takes those of its own images."""
    exchange: Literal["fp32", "bf16"] = "fp32"
    """What gradients are rounded to on their way between processes: bf16 halves what is sent."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What training images go through."""
    mix: MixConfig = field(default_factory=MixConfig)
    """How training images are mixed with each other."""
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    """How large training images are at first."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Which trained networks are learnt from."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How gradients become updates."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate over the run."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; null is no clipping."""
    ema: float = 0.0
    """Decay per step of an average of the weights, warmed up; 0 is none. With an average, both it and the weights
    themselves are validated after each epoch, and the better ones count."""
    swa: float = 0.0
    """Share of the run, at its end, over whose epochs the weights are averaged equally (Izmailov et al. 2018,
    arXiv:1803.05407); 0 is none. The other kind of average than ema."""
    patience: int | None = None
    """Stop after this many epochs without a better validation accuracy; null never. Off when val_size is 0."""
    tta: Tta = "none"
    """Views averaged in the final test (never in validation): none; flip (2); flip-shift, and some one-pixel shifts
    (6); crops, and all of them (18)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; auto is bf16 where the device computes in it, else fp32."""
    channels_last: bool = True
    """Keep images and convolutions in NHWC memory order, which most devices convolve faster."""
    compile: bool = False
    """Compile the network with torch.compile."""
    checkpoint_steps: int | None = None
    """Save last.ckpt also after every so many steps within an epoch."""
    checkpoint_minutes: float | None = 10.0
    """Save last.ckpt also when so many minutes have passed since it was saved."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""
    experiment: str = "budgetnet"
    """Name of the MLflow experiment."""

    def __post_init__(self) -> None:
        self._require_ranges()
        self._refuse_pairs()

    def _require_ranges(self) -> None:
        require(self.image_size >= 8, "image_size", self.image_size, "8 pixels or more")
        if self.progressive.size is not None:
            expected = f"at most image_size, {self.image_size}"
            require(self.progressive.size <= self.image_size, "progressive.size", self.progressive.size, expected)
        require(self.val_size >= 0, "val_size", self.val_size, "0 or more images")
        require(
            self.train_size is None or self.train_size > 0, "train_size", self.train_size, "1 or more images, or null"
        )
        require(self.budget is None or self.budget >= 1, "budget", self.budget, "a number of parameters, or null")
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more (batch norm needs more than one image)")
        require(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more pieces")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a share in [0, 1)")
        clip_norm = self.clip_norm
        require(clip_norm is None or 0 < clip_norm < math.inf, "clip_norm", clip_norm, "a norm above 0, or null")
        require(0 <= self.ema < 1, "ema", self.ema, "a decay in [0, 1)")
        require(0 <= self.swa <= 1, "swa", self.swa, "a share in [0, 1]")
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "1 or more epochs, or null")
        require(
            self.checkpoint_steps is None or self.checkpoint_steps >= 1,
            "checkpoint_steps",
            self.checkpoint_steps,
            "1 or more, or null",
        )
        require(
            self.checkpoint_minutes is None or 0 < self.checkpoint_minutes < math.inf,
            "checkpoint_minutes",
            self.checkpoint_minutes,
            "more than 0, or null",
        )
        require(0 <= self.seed < 2**63, "seed", self.seed, "a number in [0, 2**63)")
        require(0 <= self.split_seed < 2**63, "split_seed", self.split_seed, "a number in [0, 2**63)")
        require(bool(self.experiment.strip()), "experiment", self.experiment, "a name")

    def _refuse_pairs(self) -> None:
        """Refuse options that are in range each, but at odds with one another."""
        if self.ema and self.swa:
            raise ConfigError(
                f"ema is {self.ema:g} and swa is {self.swa:g}, two averages of the same weights: leave one of them out"
            )
        if self.image_size != 32 and self.dataset != "folder":
            raise ConfigError(f"image_size is {self.image_size}, but {self.dataset} images are 32x32: leave it out")
        if self.schedule.name == "plateau" and self.val_size == 0:
            raise ConfigError(
                "schedule.name is plateau and val_size is 0: plateau watches the validation loss; choose another "
                "schedule or hold out some images"
            )
        if self.model.width == "auto" and self.budget is None:
            raise ConfigError("model.width is auto and budget is null: give the budget that the width shall fill")
        if self.augment.consistency and self.mix.name != "none":
            raise ConfigError(
                f"augment.consistency is {self.augment.consistency:g} and mix.name is {self.mix.name}: the loss "
                "compares views of one image, and mixed ones are of several; leave one of them out"
            )
        if self.distill.cached and self.mix.name != "none":
            raise ConfigError(
                f"distill.cached is true and mix.name is {self.mix.name}: the teachers are asked about whole images, "
                "and mixed ones are of several; leave one of them out"
            )
        if self.augment.until < 1 and not self.augment.strong and self.mix.name == "none":
            raise ConfigError(
                f"augment.until is {self.augment.until:g}, but nothing is on that would stop then: leave it out"
            )
        if self.augment.crop_padding >= self.image_size:
            raise ConfigError(
                f"augment.crop_padding is {self.augment.crop_padding}, expected less than image_size {self.image_size}"
            )


def to_yaml(config: Config) -> str:
    """The complete configuration as YAML, which is itself a valid recipe; secrets in it are masked.

    Raises:
        ConfigError: a text in it is one that no recipe may hold.
    """
    require_plain(asdict(config), "the options")
    return yaml.safe_dump(masked(asdict(config)), sort_keys=False, width=110)


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The inverse of `dataclasses.asdict` for a `ModelConfig` that comes from a file, perhaps by an older version.

    Raises:
        ConfigError: an unknown key or a value out of range.
        TypeError: `values` has another structure.
    """
    allowed = {f.name for f in fields(ModelConfig)}
    # No option any more; it said what some norms began with, and a network that is in a file has begun.
    values = {key: value for key, value in values.items() if key != "zero_init"}
    for key in values:
        if key not in allowed:
            raise ConfigError(f"model.{key} is not an option{nearest(key, allowed, 'model.')}")
    stages = values.get("stages")
    return ModelConfig(**{**values, "stages": None if stages is None else [StageConfig(**stage) for stage in stages]})


def nearest(name: str, options: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown option: the right name, compared whole and by its last part."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, cutoff=0.75)
    if not near:
        last = {option.rpartition(".")[2]: option for option in reversed(options)}
        near = [last[key] for key in difflib.get_close_matches(name.rpartition(".")[2], last, cutoff=0.7)]
    return f" (did you mean {prefix}{near[0]}?)" if near else ""
