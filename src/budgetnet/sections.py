"""The sections of a configuration: what each option of a network, its training images and its updates means.

A docstring stands under each field, for help and the reference; what a section alone can tell is wrong is refused when
it is built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from budgetnet.errors import ConfigError


def require(condition: bool, option: str, found: Any, expected: str) -> None:
    """Refuse the value found of an option unless the condition holds.

    Raises:
        ConfigError: it does not; the message says what was expected.
    """
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
        for one in fields(self):  # of a stage in a recipe, the parser lets null pass
            if getattr(self, one.name) is None:
                raise ConfigError(f"model.stages.{one.name} is null, expected a value, or no such key")
        for name in ("depth", "width", "stride", "groups", "expansion"):
            value = getattr(self, name)
            require(value >= 1, f"model.stages.{name}", value, "1 or more")
        for name in ("se", "cbam"):
            value = getattr(self, name)
            require(value >= 0, f"model.stages.{name}", value, "a reduction ratio, or 0 for none")
        if (self.se > 0) + self.eca + (self.cbam > 0) > 1:
            raise ConfigError("model.stages has more than one of se, eca and cbam: a block has one gate at most")
        require(self.widen >= 0, "model.stages.widen", self.widen, "0 or more channels")
        if self.widen and self.block != "pyramid":
            raise ConfigError(f"model.stages.widen is given, but block is {self.block}: only pyramid blocks widen")
        require(self.width % self.groups == 0, "model.stages.groups", self.groups, f"a divisor of width {self.width}")


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
    channels: list[int] | None = None
    """Channels left at each place inside blocks where some may go, in the order of the network; null is all. What
    `budgetnet compress --sparsity` sets."""
    ranks: list[int] | None = None
    """Rank of each convolution, 0 for those left whole; null is all. What `budgetnet compress --rank` sets."""

    def __post_init__(self) -> None:
        if isinstance(self.width, int):
            require(self.width >= 1, "model.width", self.width, "1 or more, auto, or null")
        for name, least in (("channels", 1), ("ranks", 0)):
            numbers = getattr(self, name)
            if numbers is not None:
                require(all(n >= least for n in numbers), f"model.{name}", numbers, f"numbers of {least} or more")
                if self.width == "auto":
                    raise ConfigError(f"model.{name} is given and model.width is auto: give the width that they are of")
        for name in ("dropout", "drop_path"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "a share in [0, 1)")
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
        require(self.crop_padding >= 0, "augment.crop_padding", self.crop_padding, "0 or more pixels")
        require(0 <= self.rotation <= 180, "augment.rotation", self.rotation, "degrees in [0, 180]")
        for name in ("brightness", "contrast", "saturation"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "a number in [0, 1]")
        require(0 <= self.hue <= 0.5, "augment.hue", self.hue, "a number in [0, 0.5]")
        require(0 <= self.erase_p <= 1, "augment.erase_p", self.erase_p, "a probability")
        low, high = self.erase_scale
        require(0 < low <= high <= 1, "augment.erase_scale", self.erase_scale, "0 < smallest <= largest <= 1")
        low, high = self.erase_ratio
        require(0 < low <= high < math.inf, "augment.erase_ratio", self.erase_ratio, "numbers 0 < smallest <= largest")
        require(all(map(math.isfinite, self.erase_value)), "augment.erase_value", self.erase_value, "finite numbers")
        require(self.cutout >= 0, "augment.cutout", self.cutout, "0 or more pixels")
        ops, magnitude = self.policy_ops, self.policy_magnitude
        require(ops is None or ops >= 1, "augment.policy_ops", ops, "1 or more, or null")
        require(
            magnitude is None or 0 <= magnitude <= 1,
            "augment.policy_magnitude",
            magnitude,
            "a number in [0, 1], or null",
        )
        require(0 <= self.consistency < math.inf, "augment.consistency", self.consistency, "a weight, or 0 for none")
        require(0 < self.until <= 1, "augment.until", self.until, "a share in (0, 1]")
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
        require(self.alpha is None or 0 < self.alpha < math.inf, "mix.alpha", self.alpha, "a number above 0, or null")
        require(0 < self.p <= 1, "mix.p", self.p, "a probability above 0")
        if self.name == "none" and (self.alpha is not None or self.p != 1):
            given = "alpha" if self.alpha is not None else "p"
            raise ConfigError(f"mix.{given} is given, but mix.name is none: name a method, or leave it out")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Learning from trained networks besides the labels (Hinton et al. 2015, arXiv:1503.02531)."""

    teachers: list[str] = field(default_factory=list)
    """Finished runs (folders, or names in `runs`), model files, or `box`: of the same classes and, where of the same
    data, with the same images held out. Their probabilities are averaged; they may be over the budget."""
    temperature: float = 4.0
    """What the logits of both sides are divided by: more is softer."""
    weight: float = 0.9
    """Weight of the teachers in the loss; that of the labels is the rest."""
    cached: bool = False
    """Ask the teachers once about each training image (and its mirror, with augment.flip), and not about every view
    that the student sees. That saves their forward pass in each step; every view is better (Beyer et al. 2022,
    arXiv:2106.05237)."""

    def __post_init__(self) -> None:
        require(0 < self.temperature < math.inf, "distill.temperature", self.temperature, "a number above 0")
        require(0 < self.weight <= 1, "distill.weight", self.weight, "a share in (0, 1]")
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

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "optimizer.lr", self.lr, "a number above 0")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "a number in [0, 1)")
        require(all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "two numbers in [0, 1)")
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "a number of 0 or more")
        require(0 < self.bias_lr < math.inf, "optimizer.bias_lr", self.bias_lr, "a number above 0")
        require(0 < self.head_lr < math.inf, "optimizer.head_lr", self.head_lr, "a number above 0")
        require(0 <= self.sam < math.inf, "optimizer.sam", self.sam, "a distance, or 0 for none")
        if self.betas != (0.9, 0.999) and self.name not in ("adam", "adamw"):
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
    """cosine: falls to `floor`. multistep: drops by `gamma` at `milestones`. exponential: drops by `gamma` each epoch.
    plateau: drops by `gamma` when validation loss stalls. restarts: cosines, each from the top (Loshchilov and Hutter
    2017, arXiv:1608.03983). onecycle: cosine up over `peak`, cosine down (Smith 2018, arXiv:1708.07120). triangular:
    straight up over `peak`, straight down."""
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
        require(0 <= self.warmup < math.inf, "schedule.warmup", self.warmup, "0 or more epochs")
        require(0 <= self.floor <= 1, "schedule.floor", self.floor, "a factor in [0, 1]")
        require(0 < self.gamma <= 1, "schedule.gamma", self.gamma, "a factor in (0, 1]")
        require(self.patience >= 0, "schedule.patience", self.patience, "0 or more epochs")
        require(0.01 <= self.period < math.inf, "schedule.period", self.period, "0.01 epochs or more")
        require(1 <= self.period_growth < math.inf, "schedule.period_growth", self.period_growth, "1 or more")
        require(0 < self.peak < 1, "schedule.peak", self.peak, "a share in (0, 1)")
        require(0 <= self.start <= 1, "schedule.start", self.start, "a factor in [0, 1]")
        require(
            self.milestones == sorted(self.milestones) and all(0 < m < math.inf for m in self.milestones),
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
        require(self.size is None or self.size >= 8, "progressive.size", self.size, "8 pixels or more, or null")
        require(0 < self.until <= 1, "progressive.until", self.until, "a share in (0, 1]")
