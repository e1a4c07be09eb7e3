"""Typed configuration: a recipe is a YAML file over these dataclasses, and any key is an option on the command line.

Nothing here knows of torch, so that reading a recipe and printing help stay fast.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import yaml

from budgetnet.errors import ConfigError
from budgetnet.masking import masked

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_LONGEST = 1 << 16  # characters of a YAML file, or of a value
_DEEPEST = 20
# What PyYAML raises on what is no YAML, or has a tag that does not fit it: `!!bool maybe`, `!!int ""`.
_BROKEN = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
DatasetName = Literal["cifar10", "cifar100", "folder", "digits"]
Tta = Literal["none", "flip", "flip-shift", "crops"]

RUNS = Path("runs")
"""Where runs are that were given no other folder."""


BROUGHT = Path(__file__).parent / "recipes"
"""The recipes that are part of the package; in a checkout, a link to those at its top."""


def find_recipe(recipe: Path) -> Path:
    """The file of a recipe: one of this name, or one that budgetnet brings, of which `quick` is name enough.

    Raises:
        ConfigError: it lies elsewhere, and budgetnet brings one of its name.
    """
    brought = BROUGHT / f"{recipe.stem}.yaml"
    if recipe.exists() or not brought.is_file():
        return recipe
    if recipe in (Path(recipe.stem), Path(brought.name)):
        return brought
    raise ConfigError(f"{recipe} is not there; `{recipe.stem}` alone is the recipe of that name that budgetnet brings")


def run_folder(recipe: Path) -> Path:
    """The folder of a run by that recipe which was given no other."""
    return RUNS / f"{recipe.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _require(condition: bool, option: str, found: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{option} is {found!r}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a residual network: `depth` blocks of one kind at one resolution."""

    block: Literal["basic", "bottleneck", "preact", "pyramid", "shake", "inverted", "convnext"] = "basic"
    """basic: two 3x3 convolutions. bottleneck: 1x1, 3x3, 1x1. preact: two 3x3 with norm and activation first. pyramid:
    preact without the first activation, over a shortcut padded with zeros (Han 2017, arXiv:1610.02915). shake: two
    branches of two 3x3, mixed by chance (Gastaldi 2017, arXiv:1705.07485). inverted: 1x1, depthwise 3x3, 1x1 (Sandler
    2018, arXiv:1801.04381). convnext: depthwise 7x7, 1x1, 1x1 (Liu 2022, arXiv:2201.03545)."""
    depth: int = 2
    """Number of blocks."""
    width: int = 64
    """Channels inside the block; the stage puts out width * expansion. inverted and convnext put out width."""
    widen: int = 0
    """Channels that are added to width from the first to the last block, in equal steps; pyramid only."""
    stride: int = 1
    """Stride of the first block."""
    groups: int = 1
    """Groups of the 3x3 convolutions."""
    separable: bool = False
    """Replace the 3x3 convolution by a depthwise 3x3 and a pointwise 1x1, with no norm between."""
    expansion: int = 1
    """Output channels as a multiple of width (4 in the usual bottleneck); inverted and convnext are so many times wider
    inside (usually 6 and 4)."""
    se: int = 0
    """Squeeze-and-excitation reduction ratio (Hu 2018, arXiv:1709.01507); 0 is none."""
    eca: bool = False
    """Efficient channel attention (Wang 2020, arXiv:1910.03151)."""
    cbam: int = 0
    """Channel and spatial attention (Woo 2018, arXiv:1807.06521), its reduction ratio; 0 is none."""
    se_place: Literal["branch", "sum"] = "branch"
    """Gate (by se, eca or cbam) the residual branch before the sum or the sum itself (the reference project)."""
    activation: Literal["relu", "leaky_relu", "silu", "gelu"] = "relu"
    """Activation of the stage's blocks."""

    def __post_init__(self) -> None:
        for name in ("depth", "width", "stride", "groups", "expansion"):
            value = getattr(self, name)
            _require(value >= 1, f"model.stages.{name}", value, "1 or more")
        for name in ("se", "cbam"):
            value = getattr(self, name)
            _require(value >= 0, f"model.stages.{name}", value, "a reduction ratio, or 0 for none")
        if (self.se > 0) + self.eca + (self.cbam > 0) > 1:
            raise ConfigError("model.stages has more than one of se, eca and cbam: a block has one gate at most")
        _require(self.widen >= 0, "model.stages.widen", self.widen, "0 or more channels")
        if self.widen and self.block != "pyramid":
            raise ConfigError(f"model.stages.widen is given, but block is {self.block}: only pyramid blocks widen")
        _require(self.width % self.groups == 0, "model.stages.groups", self.groups, f"a divisor of width {self.width}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network."""

    name: str = "enhanced"
    """A name that `budgetnet models` lists, `residual` for the network that `stages` describes, or `timm:NAME`."""
    width: int | Literal["auto"] | None = None
    """Channels of the first stage, the others in proportion; auto is the largest that the budget allows; null the
    network's own."""
    stem: Literal[1, 2] = 1
    """With `name: residual`: number of 3x3 convolutions before the first stage."""
    stages: list[StageConfig] | None = None
    """With `name: residual`: the stages."""
    dropout: float = 0.0
    """Share of values dropped inside pre-activation blocks (Zagoruyko 2016, arXiv:1605.07146)."""
    drop_path: float = 0.0
    """Stochastic depth: share of images for which the last residual branch is left out; earlier ones in proportion to
    their place (Huang 2016, arXiv:1603.09382)."""
    zero_init: bool = False
    """Start the norm that ends each residual branch with weight 0, under either init (Goyal 2017, arXiv:1706.02677)."""
    channels: list[int] | None = None
    """Channels left at each place inside blocks where some may go, in the order of the network; null is all. What
    `budgetnet compress --sparsity` sets."""
    ranks: list[int] | None = None
    """Rank of each convolution, 0 for those left whole; null is all. What `budgetnet compress --rank` sets."""

    def __post_init__(self) -> None:
        if isinstance(self.width, int):
            _require(self.width >= 1, "model.width", self.width, "1 or more, auto, or null")
        for name, least in (("channels", 1), ("ranks", 0)):
            numbers = getattr(self, name)
            if numbers is not None:
                _require(all(n >= least for n in numbers), f"model.{name}", numbers, f"numbers of {least} or more")
                if self.width == "auto":
                    raise ConfigError(f"model.{name} is given and model.width is auto: give the width that they are of")
        for name in ("dropout", "drop_path"):
            _require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "a share in [0, 1)")
        if self.stem != 1 and self.name != "residual":
            raise ConfigError(f"model.stem is {self.stem}, but {self.name} has a stem of its own: leave it out")
        if (self.name == "residual") != bool(self.stages):
            raise ConfigError(
                f"model.name is {self.name!r} and model.stages {'is' if self.stages else 'is not'} given: "
                "stages describe the network called residual, and only that one"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What training images go through, in this order; every draw is for one image. After the colours come normalisation
    (always), erasing and cutout; then what `mix` and `progressive` say."""

    crop_padding: int = 0
    """Random shift by up to this many pixels each way; 0 is none."""
    crop_border: Literal["zeros", "reflect"] = "zeros"
    """What the uncovered edge shows: black (zeros), or what lies inside, mirrored (reflect)."""
    flip: Literal["none", "random", "alternate"] = "none"
    """Mirror images left to right: never, by a coin for each image and epoch (random), or in every other epoch, the
    first drawn for each image (alternate)."""
    rotation: float = 0.0
    """Rotation by up to this many degrees each way: nearest neighbour, black outside."""
    policy: Literal["none", "trivial", "rand", "augmix"] = "none"
    """Operations drawn for each image: TrivialAugment (Mueller and Hutter 2021, arXiv:2103.10158, its wide space),
    RandAugment (Cubuk et al. 2019, arXiv:1909.13719) or AugMix (Hendrycks et al. 2020, arXiv:1912.02781)."""
    policy_ops: int | None = None
    """Operations in turn, of rand, or of the longest chain of augmix; null is 2 for rand and 3 for augmix."""
    policy_magnitude: float | None = None
    """Strength of rand's operations, and the largest of augmix's, in [0, 1]; null is 0.3 (rand's M = 9 of 30, augmix's
    severity 3 of 10)."""
    consistency: float = 0.0
    """With augmix: weight of the loss that compares an image with two mixes of it (12 in the paper); the network then
    sees three images for each; 0 is none."""
    brightness: float = 0.0
    """Brightness factor drawn from [1 - x, 1 + x]; contrast and saturation likewise, in this order, values clamped
    after each."""
    contrast: float = 0.0
    """See brightness."""
    saturation: float = 0.0
    """See brightness."""
    hue: float = 0.0
    """Hue shift drawn from [-x, x] turns of the colour wheel, x <= 0.5."""
    erase_p: float = 0.0
    """Probability of erasing a random rectangle of an image."""
    erase_scale: tuple[float, float] = (0.02, 0.1)
    """Smallest and largest erased share of the area."""
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest ratio of the rectangle's height to its width."""
    erase_value: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """What an erased pixel shows, in normalised units."""
    cutout: int = 0
    """Side in pixels of a square set to the mean colour at a random place, cut off at the edges; 0 is none."""
    until: float = 1.0
    """Share of the run after which only crop and flip remain of all this, and no images are mixed (mix.name)."""

    def __post_init__(self) -> None:
        _require(self.crop_padding >= 0, "augment.crop_padding", self.crop_padding, "0 or more pixels")
        _require(0 <= self.rotation <= 180, "augment.rotation", self.rotation, "degrees in [0, 180]")
        for name in ("brightness", "contrast", "saturation"):
            _require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "a number in [0, 1]")
        _require(0 <= self.hue <= 0.5, "augment.hue", self.hue, "a number in [0, 0.5]")
        _require(0 <= self.erase_p <= 1, "augment.erase_p", self.erase_p, "a probability")
        low, high = self.erase_scale
        _require(0 < low <= high <= 1, "augment.erase_scale", self.erase_scale, "0 < smallest <= largest <= 1")
        low, high = self.erase_ratio
        _require(0 < low <= high, "augment.erase_ratio", self.erase_ratio, "0 < smallest <= largest")
        _require(self.cutout >= 0, "augment.cutout", self.cutout, "0 or more pixels")
        ops, magnitude = self.policy_ops, self.policy_magnitude
        _require(ops is None or ops >= 1, "augment.policy_ops", ops, "1 or more, or null")
        _require(
            magnitude is None or 0 <= magnitude <= 1,
            "augment.policy_magnitude",
            magnitude,
            "a number in [0, 1], or null",
        )
        _require(self.consistency >= 0, "augment.consistency", self.consistency, "a weight, or 0 for none")
        _require(0 < self.until <= 1, "augment.until", self.until, "a share in (0, 1]")
        for name in ("policy_ops", "policy_magnitude"):
            if getattr(self, name) is not None and self.policy not in ("rand", "augmix"):
                raise ConfigError(
                    f"augment.{name} is given, but augment.policy is {self.policy}: only rand and augmix have it; "
                    "leave it out"
                )
        if self.consistency and self.policy != "augmix":
            raise ConfigError(
                f"augment.consistency is {self.consistency:g}, but augment.policy is {self.policy}: it compares the "
                "mixes of augmix; leave one of them out"
            )

    @property
    def strong(self) -> bool:
        """Whether any step is on that `until` ends."""
        jitter = self.brightness or self.contrast or self.saturation or self.hue
        return bool(self.rotation or self.policy != "none" or jitter or self.erase_p or self.cutout)


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixing of training images with those before them in the batch, after augmentation, and of their targets alike."""

    name: Literal["none", "mixup", "cutmix", "ricap"] = "none"
    """Blend two images (Zhang et al. 2018, arXiv:1710.09412), paste a rectangle of another (Yun et al. 2019,
    arXiv:1905.04899), or put four together (Takahashi et al. 2018, arXiv:1811.09030)."""
    alpha: float | None = None
    """Shares are drawn from Beta(alpha, alpha): 1 is uniform, less is nearer 0 or 1; null is the paper's, 1 for mixup
    and cutmix and 0.3 for ricap."""
    p: float = 1.0
    """Probability that an image is mixed at all."""

    def __post_init__(self) -> None:
        _require(self.alpha is None or 0 < self.alpha < math.inf, "mix.alpha", self.alpha, "a number above 0, or null")
        _require(0 < self.p <= 1, "mix.p", self.p, "a probability above 0")
        if self.name == "none" and (self.alpha is not None or self.p != 1):
            given = "alpha" if self.alpha is not None else "p"
            raise ConfigError(f"mix.{given} is given, but mix.name is none: name a method, or leave it out")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Learning from trained networks besides the labels (Hinton et al. 2015, arXiv:1503.02531)."""

    teachers: list[str] = field(default_factory=list)
    """Finished runs or model files of the same classes, whose probabilities are averaged; they may be over the
    budget."""
    temperature: float = 4.0
    """What the logits of both sides are divided by: more is softer."""
    weight: float = 0.9
    """Weight of the teachers in the loss; that of the labels is the rest."""
    cached: bool = False
    """Ask the teachers once about each training image (and its mirror, with augment.flip), instead of about every view
    that the student sees, which costs their forward pass each step (and is better: Beyer et al. 2022,
    arXiv:2106.05237)."""

    def __post_init__(self) -> None:
        _require(0 < self.temperature < math.inf, "distill.temperature", self.temperature, "a number above 0")
        _require(0 < self.weight <= 1, "distill.weight", self.weight, "a share in (0, 1]")
        if not self.teachers and (self.temperature, self.weight, self.cached) != (4.0, 0.9, False):
            raise ConfigError("distill has options, but distill.teachers is empty: name a teacher, or leave them out")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """SGD with momentum, Adam (Kingma and Ba 2015, arXiv:1412.6980), AdamW (Loshchilov and Hutter 2019,
    arXiv:1711.05101), or Muon (Jordan et al. 2024): convolutions by orthogonalised updates, the rest by SGD."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD and Muon."""
    nesterov: bool = False
    """Nesterov's momentum, for SGD; Muon always has it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two averages."""
    weight_decay: float = 5e-4
    """Weight decay: added to the gradient by SGD and Adam, decoupled in AdamW."""
    decay_norms: bool = True
    """Decay norm weights and biases too."""
    bias_lr: float = 1.0
    """Learning rate of norm biases as a multiple of lr (64 in Jordan 2024, arXiv:2404.00498)."""
    head_lr: float = 1.0
    """Learning rate of linear layers as a multiple of lr, which under muon has another meaning for them."""
    sam: float = 0.0
    """Distance (rho) up the gradient at which the gradient of the update is taken (sharpness-aware minimisation, Foret
    et al. 2021, arXiv:2010.01412), for about twice the time; 0 is none."""
    lookahead_steps: int = 0
    """Steps between moves of slow weights towards the weights, which go on from there (Zhang et al. 2019,
    arXiv:1907.08610); 0 is none."""
    lookahead_alpha: float = 0.5
    """Share of the way that the slow weights move."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optimizer.lr", self.lr, "a number above 0")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "a number in [0, 1)")
        _require(all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "two numbers in [0, 1)")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        _require(self.bias_lr > 0, "optimizer.bias_lr", self.bias_lr, "a number above 0")
        _require(self.head_lr > 0, "optimizer.head_lr", self.head_lr, "a number above 0")
        _require(0 <= self.sam < math.inf, "optimizer.sam", self.sam, "a distance, or 0 for none")
        steps, alpha = self.lookahead_steps, self.lookahead_alpha
        _require(steps >= 0, "optimizer.lookahead_steps", steps, "a number of steps, or 0 for none")
        _require(0 < alpha <= 1, "optimizer.lookahead_alpha", alpha, "a share in (0, 1]")
        if alpha != 0.5 and not steps:
            raise ConfigError(
                f"optimizer.lookahead_alpha is {alpha:g}, but optimizer.lookahead_steps is 0: give the steps, or leave "
                "it out"
            )
        if self.betas != (0.9, 0.999) and self.name in ("sgd", "muon"):
            raise ConfigError(
                f"optimizer.betas is given, but optimizer.name is {self.name}, which has momentum: leave it out"
            )
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ConfigError(
                f"optimizer.nesterov needs optimizer.name sgd and a momentum, found {self.name} with momentum "
                f"{self.momentum:g}"
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate as a function of the step, as a factor of optimizer.lr."""

    name: Literal["constant", "cosine", "multistep", "exponential", "plateau", "restarts", "onecycle", "triangular"] = (
        "cosine"
    )
    """constant; cosine to `floor`; drops by `gamma` at `milestones`; by `gamma` each epoch; by `gamma` when validation
    loss stalls; cosine with warm restarts (Loshchilov and Hutter 2017, arXiv:1608.03983); one cycle (Smith 2018,
    arXiv:1708.07120: cosine up over `peak`, cosine down); straight up over `peak`, straight down."""
    warmup: float = 0.0
    """Epochs of linear warm-up from near 0, before all but onecycle and triangular."""
    floor: float = 0.0
    """The factor reached at the end (cosine, restarts, onecycle, triangular) and never gone below (the others)."""
    milestones: list[float] = field(default_factory=list)
    """Epochs after which multistep drops."""
    gamma: float = 0.1
    """Factor of each drop."""
    patience: int = 10
    """Epochs without a lower validation loss before plateau drops."""
    period: float = 10.0
    """Epochs of the first cycle of restarts."""
    period_growth: float = 2.0
    """Each cycle of restarts is this much longer than the one before."""
    peak: float = 0.3
    """Share of the run in which onecycle and triangular rise."""
    start: float = 0.04
    """The factor at which onecycle and triangular begin."""

    def __post_init__(self) -> None:
        _require(self.warmup >= 0, "schedule.warmup", self.warmup, "0 or more epochs")
        _require(0 <= self.floor <= 1, "schedule.floor", self.floor, "a factor in [0, 1]")
        _require(0 < self.gamma <= 1, "schedule.gamma", self.gamma, "a factor in (0, 1]")
        _require(self.patience >= 0, "schedule.patience", self.patience, "0 or more epochs")
        _require(self.period > 0, "schedule.period", self.period, "more than 0 epochs")
        _require(self.period_growth >= 1, "schedule.period_growth", self.period_growth, "1 or more")
        _require(0 < self.peak < 1, "schedule.peak", self.peak, "a share in (0, 1)")
        _require(0 <= self.start <= 1, "schedule.start", self.start, "a factor in [0, 1]")
        _require(
            self.milestones == sorted(self.milestones) and all(m > 0 for m in self.milestones),
            "schedule.milestones",
            self.milestones,
            "rising epochs above 0",
        )
        if self.name == "multistep" and not self.milestones:
            raise ConfigError(
                "schedule.name is multistep and schedule.milestones is empty: give the epochs of the drops"
            )
        if self.milestones and self.name != "multistep":
            raise ConfigError(f"schedule.milestones is given, but schedule.name is {self.name}: leave one of them out")
        if self.warmup and self.name in ("onecycle", "triangular"):
            raise ConfigError(
                f"schedule.warmup is {self.warmup:g}, but {self.name} has its own rise: set schedule.peak"
            )


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig:
    """Training on smaller images first, which costs less (Tan and Le 2021, arXiv:2104.00298, without its change of
    regularisation)."""

    size: int | None = None
    """Side in pixels that the first training images are shrunk to, after all else, smoothing what would alias; null is
    full size throughout."""
    until: float = 0.7
    """Share of the run over which the side grows, in steps of 4 pixels; then images have their full size."""

    def __post_init__(self) -> None:
        _require(self.size is None or self.size >= 8, "progressive.size", self.size, "8 pixels or more, or null")
        _require(0 < self.until <= 1, "progressive.until", self.until, "a share in (0, 1]")


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
    """A finished run or model file of the same data whose weights training starts from; null is fresh weights. Where
    model.channels and model.ranks leave less than it has, from its most important channels and best approximations."""
    epochs: int = 200
    """Total number of epochs, also when a run is resumed."""
    batch_size: int = 128
    """Images a step, of all processes together. On the command line also auto: the recipe's, halved until a step fits
    in memory."""
    accumulate: int = 1
    """Pieces that each process computes its images of a step in, one after the other, adding up the gradients: less
    memory, the same step, but that batch norm has the statistics of a piece."""
    sync_norm: bool = False
    """With several processes, take the statistics of batch norm over the images of all of them: as if one process had
    them all, for two exchanges a norm and step. Without, over each process's own."""
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
        _require(self.image_size >= 8, "image_size", self.image_size, "8 pixels or more")
        if self.progressive.size is not None:
            expected = f"at most image_size, {self.image_size}"
            _require(self.progressive.size <= self.image_size, "progressive.size", self.progressive.size, expected)
        _require(self.val_size >= 0, "val_size", self.val_size, "0 or more images")
        _require(
            self.train_size is None or self.train_size > 0, "train_size", self.train_size, "1 or more images, or null"
        )
        _require(self.budget is None or self.budget >= 1, "budget", self.budget, "a number of parameters, or null")
        _require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _require(
            self.batch_size >= 2, "batch_size", self.batch_size, "2 or more (batch norm needs more than one image)"
        )
        _require(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more pieces")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a share in [0, 1)")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "a norm above 0, or null")
        _require(0 <= self.ema < 1, "ema", self.ema, "a decay in [0, 1)")
        _require(0 <= self.swa <= 1, "swa", self.swa, "a share in [0, 1]")
        if self.ema and self.swa:
            raise ConfigError(
                f"ema is {self.ema:g} and swa is {self.swa:g}, two averages of the same weights: leave one of them out"
            )
        _require(self.patience is None or self.patience >= 1, "patience", self.patience, "1 or more epochs, or null")
        _require(
            self.checkpoint_steps is None or self.checkpoint_steps >= 1,
            "checkpoint_steps",
            self.checkpoint_steps,
            "1 or more, or null",
        )
        _require(
            self.checkpoint_minutes is None or self.checkpoint_minutes > 0,
            "checkpoint_minutes",
            self.checkpoint_minutes,
            "more than 0, or null",
        )
        _require(0 <= self.seed < 2**63, "seed", self.seed, "a number in [0, 2**63)")
        _require(0 <= self.split_seed < 2**63, "split_seed", self.split_seed, "a number in [0, 2**63)")
        _require(bool(self.experiment.strip()), "experiment", self.experiment, "a name")
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


def add_options(parser: ArgumentParser) -> None:
    """Give `parser` an option for every key of a recipe, dotted (`--optimizer.lr`), and `--recipe FILE` under them."""
    import jsonargparse

    # The first, so that help shows what stands under each field. The other, because a value may be written as the name
    # of a class, whose module is imported before anyone asks whether it belongs there: none is, but for stages.
    jsonargparse.set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        import_path_denylist=["*"],
        import_path_allowlist=[f"{__name__}.{StageConfig.__name__}"],
    )
    action = jsonargparse.ActionConfigFile  # type: ignore[attr-defined]
    parser.add_argument("--recipe", action=action, help=argparse.SUPPRESS)
    parser.add_class_arguments(Config)


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Config, Namespace]:
    """Parse a command line whose parser has the options of `add_options`, and perhaps others.

    Args:
        parser: made with exit_on_error=False and print_config=None; a positional called `recipe_file`, where it has
            one, names the recipe.
        arguments: the command line; dashes inside option names mean underscores.

    Returns:
        The checked configuration (recipe, then options), and whatever else was parsed.

    Raises:
        ConfigError: an unknown key (with the nearest right one), a wrong type, a value out of range, an impossible mix.
    """
    arguments = [_underscored(argument) for argument in arguments]
    known = parser.get_defaults()
    options = set(known.keys()) | {"help", "recipe"}
    for argument in arguments:
        name = argument[2:].partition("=")[0]
        if argument.startswith("--") and not any(option == name or option.startswith(name + ".") for option in options):
            raise ConfigError(f"--{name} is not an option{_nearest(name, options, '--')}")
    values = [argument.partition("=")[2] if argument.startswith("--") else argument for argument in arguments]
    _require_plain(values, "the command line")
    arguments = _with_files(arguments)
    try:
        parsed = parser.parse_args(arguments)
        recipe = parsed.get("recipe_file")
        if recipe is not None:
            parsed = parser.parse_args([*_recipe_arguments(Path(recipe)), *arguments])
        made = parser.instantiate(parsed)
    # Besides its own, what the parser meets in values of lists that it looks at no closer: `stages: [{depth: null}]`.
    except (argparse.ArgumentError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ConfigError(_readable(str(error))) from error
    names = {f.name for f in fields(Config)}
    return (
        Config(**{name: made[name] for name in names}),
        Namespace(**{key: value for key, value in vars(made).items() if key not in names and key != "recipe"}),
    )


def load(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a recipe, with command-line style overrides such as `["--optimizer.lr", "0.1"]`.

    Raises:
        ConfigError: as `parse`; the recipe cannot be read or is not YAML.
    """
    return loader(recipe)(overrides)


def loader(recipe: Path) -> Callable[[Sequence[str]], Config]:
    """`load` for many overrides of one recipe, which is read once.

    Raises:
        ConfigError: the recipe cannot be read or is not YAML.
    """
    arguments = _recipe_arguments(recipe)
    return lambda overrides: parse(_parser(), [*arguments, *overrides])[0]


@cache  # it keeps nothing of what it parses, and making it takes most of the time
def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, print_config=None)
    add_options(parser)
    return parser


def from_record(record: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a file holds as plain values (`asdict`), with overrides as of `load`.

    Raises:
        ConfigError: as `load`; `source` names the file.
    """
    _require_plain(record, source)
    for section, kind in get_type_hints(Config).items():  # which in a recipe may be a file's name
        if is_dataclass(kind) and not isinstance(record.get(section, {}), dict):
            raise ConfigError(f"{source}: {section} is {record[section]!r}, expected options of its own")
    arguments = _content_arguments(record, source, Path())
    return parse(_parser(), [*arguments, *overrides])[0]


def to_yaml(config: Config) -> str:
    """The complete configuration as YAML, which is itself a valid recipe; secrets in it are masked."""
    return yaml.safe_dump(masked(_plain(asdict(config))), sort_keys=False, width=110)


def require_option(name: str, source: str) -> None:
    """Make sure that a name is that of a single option of a recipe.

    Raises:
        ConfigError: there is none of this name (the nearest right one is said), or it has options of its own.
    """
    options = dict(_options(Config))
    if name not in options:
        raise ConfigError(f"{source}: {name} is not an option{_nearest(name, options)}")
    if is_dataclass(kind := options[name]):
        raise ConfigError(
            f"{source}: {name} has options of its own: name one of them, as {name}.{fields(kind)[0].name}"
        )


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The inverse of `dataclasses.asdict` for a `ModelConfig` that comes from a file.

    Raises:
        ConfigError: an unknown key or a value out of range.
        TypeError: `values` has another structure.
    """
    allowed = {f.name for f in fields(ModelConfig)}
    for key in values:
        if key not in allowed:
            raise ConfigError(f"model.{key} is not an option{_nearest(key, allowed, 'model.')}")
    stages = values.get("stages")
    return ModelConfig(**{**values, "stages": None if stages is None else [StageConfig(**stage) for stage in stages]})


def read_yaml(path: Path) -> Any:
    """What a YAML file of at most 65,536 characters holds, as plain values; dates are strings.

    Raises:
        ConfigError: it cannot be read, is not YAML, is longer, has aliases, or is nested more than 20 deep.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = parse_yaml(file.read(_LONGEST + 1))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    _require_plain(content, str(path))
    return content


def parse_yaml(text: str) -> Any:
    """What YAML holds, as `read_yaml` reads it.

    Raises:
        ValueError: it is none, or more than a recipe needs.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST:,} characters, where a recipe has a few thousand")
    try:
        return _Loader(text).get_single_data()
    except _BROKEN as error:
        raise ValueError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    """YAML without dates, and without what a short text can grow by: aliases and depth."""

    yaml_implicit_resolvers = {  # noqa: RUF012  typed in the base class
        first: [(tag, pattern) for tag, pattern in patterns if not tag.endswith(":timestamp")]
        for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _ExcessError("it has an alias (*name), expected the value itself")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _ExcessError(f"it is nested more than {_DEEPEST} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if value.bit_length() > 128:  # which Python may refuse to print
        raise _ExcessError("a number of more than 128 bits")
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _int)


class _ExcessError(yaml.YAMLError):
    """Of a text that is YAML, but more than a recipe needs."""


def _require_plain(value: Any, source: str) -> None:
    """Refuse texts that would be YAML of the forbidden kinds when the parser of options looks into them, as it does."""
    if isinstance(value, dict | list):
        for entry in value.items() if isinstance(value, dict) else value:
            _require_plain(list(entry) if isinstance(entry, tuple) else entry, source)
    elif isinstance(value, str):
        if len(value) > _LONGEST:
            raise ConfigError(f"{source}: a value has more than {_LONGEST:,} characters: {value[:40]!r}...")
        try:
            inner = _Loader(value).get_single_data()
        except _BROKEN as error:
            if isinstance(error, yaml.YAMLError) and not isinstance(error, _ExcessError):
                return  # so it is a text and no more
            why = " ".join(str(error).split())
            raise ConfigError(f"{source}: {value[:40]!r} cannot be a value: {why}") from error
        if inner != value:
            _require_plain(inner, source)


def _recipe_arguments(path: Path) -> list[str]:
    """The options that read a recipe; what cannot be one is refused, naming unknown keys better than the parser."""
    path = find_recipe(path)
    content = read_yaml(path)
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected the options of a recipe, one a line")
    return _content_arguments(content, str(path), path.parent)


def _content_arguments(content: dict[str, Any], source: str, folder: Path) -> list[str]:
    """The options that read what a recipe holds; sections may be files in `folder`."""
    options = dict(_options(Config))
    for section, kind in get_type_hints(Config).items():
        if not is_dataclass(kind) or section not in content:
            continue
        value = content[section]
        if isinstance(value, str) and os.path.isfile(folder / value):
            # Read here: the parser would take `section.yaml` for the name yaml in a module.
            content[section] = value = read_yaml(folder / value)
        if not isinstance(value, dict | str):
            example = f"{section}.{fields(kind)[0].name}"
            raise ConfigError(f"{source}: {section} is {value!r}, expected options of its own, such as {example}")
    for name, value in _entries(content):
        if name not in options:
            raise ConfigError(f"{source}: {name} is not an option{_nearest(name, options)}")
        if value is None and type(None) not in get_args(options[name]):  # which the parser lets pass
            raise ConfigError(f"{source}: {name} is null, expected a value, or no such line")
    return ["--recipe", yaml.safe_dump(content)] if content else []


def _with_files(arguments: Sequence[str]) -> list[str]:
    """Arguments in which the files that sections are read from have their whole names, as the parser needs them."""
    found: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        option = (name or (found[-1] if found else "")).removeprefix("--")
        if is_dataclass(get_type_hints(Config).get(option)) and value and os.path.isfile(value):
            read_yaml(Path(value))  # for what it refuses
            value = os.path.abspath(value)
        found.append(name + equals + value)
    return found


def _options(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a section, and of those in it, with their types."""
    for name, hint in get_type_hints(kind).items():
        yield prefix + name, hint
        if is_dataclass(hint):
            yield from _options(hint, f"{prefix}{name}.")  # type: ignore[arg-type]


def _entries(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _entries(value, f"{prefix}{key}.")


def _nearest(name: str, options: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown option: the right name, compared whole and by its last part."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.75)
    if not near:
        last = {option.rpartition(".")[2]: option for option in reversed(options)}
        near = [last[key] for key in difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.7)]
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _readable(message: str) -> str:
    """The parser's message as one line in the words of a recipe."""
    message = " ".join(message.split())
    message = re.sub(r"(?:Parser key|Problem with given class_path) \"([\w.]+)\":?", r"\1:", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    message = re.sub(r"typing\.Literal\[([^\]]*)\]", lambda m: "one of " + m[1].replace("'", ""), message)
    unread = re.match(r"([\w.]+): (?:Unable to load config|Importing) '(.*?)'", message)
    if unread:
        return f"{unread[1]} is {unread[2]!r}, expected options of its own, or a file that holds them"
    found = re.fullmatch(r"([\w.]+): Expected an? (.*?)\. Got value: (.*)", message)
    if found:
        return f"{found[1]} is {found[3]!r}, expected {found[2]}"
    union = re.match(
        r"([\w.]+): Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: (.*)", message
    )
    if union:
        inner = re.search(r"Option '\w+' is not accepted", union[3])
        value = union[3].rpartition("Given value: ")[2]
        expected = union[2].replace("budgetnet.config.", "").replace("NoneType", "null")
        return f"{union[1]} is {value!r}, expected one of: {expected}" + (f"; {inner[0]}" if inner else "")
    return message


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML and JSON."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
