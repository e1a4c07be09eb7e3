"""Networks that have a name: ours, the reference project's, the field's, each described by its stages.

A network of known blocks is an entry of `NETWORKS`; what several of them share is a function.
"""

from __future__ import annotations

from budgetnet.config import StageConfig
from budgetnet.models.residual import ResidualArchitecture, uniform
from budgetnet.models.whitened import WhitenedArchitecture


def enhanced() -> ResidualArchitecture:
    """The reference project's idea done right: under 5,000,000 parameters with 10 classes and with 100.

    Bottlenecks [2, 4, 6, 2] of width 32 after a stem of two convolutions, LeakyReLU in stages 3 and 4, and
    squeeze-and-excitation on the residual branch (Hu et al. 2018, arXiv:1709.01507) in stages 1 to 3: with 100
    classes some 134,000 parameters are left for it, a gate in stage 4 costs most and, by their section 6.4, brings
    least; reduction 32 instead of 16 is what fits.
    """
    relu, leaky = "relu", "leaky_relu"
    stages = uniform(
        "bottleneck", (2, 4, 6, 2), 32, expansion=4, activation=(relu, relu, leaky, leaky), se=(32, 32, 32, 0)
    )
    return ResidualArchitecture(stages=stages, stem=2, stem_width=32)


def reference(
    depths: tuple[int, int, int, int] = (2, 4, 6, 2),
    stem: int = 2,
    leaky: tuple[int, ...] = (),
    se: tuple[int, ...] = (),
    separable: tuple[int, ...] = (),
) -> ResidualArchitecture:
    """A bottleneck network of the reference project, its switches given by the stages (from 1) that have them."""
    stages = uniform(
        "bottleneck",
        depths,
        32,
        expansion=4,
        activation=tuple("leaky_relu" if i in leaky else "relu" for i in range(1, 5)),
        se=tuple(16 if i in se else 0 for i in range(1, 5)),
        se_place=("sum",) * 4,
        separable=tuple(i in separable for i in range(1, 5)),
    )
    return ResidualArchitecture(stages=stages, stem=stem, stem_width=32)


def resnet(block: str, depths: tuple[int, ...], expansion: int = 1, se: int = 0) -> ResidualArchitecture:
    """He et al. 2015 (arXiv:1512.03385) for small images: one 3x3 convolution before the stages, no pooling.

    With pre-activation blocks (He et al. 2016, arXiv:1603.05027) as pytorch-cifar has it, with nothing at the end.
    """
    stages = uniform(block, depths, 64, expansion, se=(se,) * len(depths))
    return ResidualArchitecture(stages=stages, stem_width=64, bare=True)


def resnext(depth: int, groups: int, group_width: int, stem_kernel: int = 3) -> ResidualArchitecture:
    """Xie et al. 2017 (arXiv:1611.05431), section 5.3: depth 9n + 2, stages that put out 256, 512 and 1024.

    pytorch-cifar has a 1x1 stem.
    """
    width = groups * group_width
    stages = uniform("bottleneck", ((depth - 2) // 9,) * 3, width, 256 // width, groups=(groups,) * 3)
    return ResidualArchitecture(stages=stages, stem_width=64, stem_kernel=stem_kernel)


def pyramid(depth: int, added: int) -> ResidualArchitecture:
    """Han et al. 2017 (arXiv:1610.02915): depth 6n + 2, from 16 channels to 16 + `added`, a multiple of 3."""
    stages = tuple(
        StageConfig(
            block="pyramid",
            depth=(depth - 2) // 6,
            width=16 + added // 3 * i,
            widen=added // 3,
            stride=1 if i == 0 else 2,
        )
        for i in range(3)
    )
    return ResidualArchitecture(stages=stages, stem_width=16)


def shake_shake(depth: int, width: int) -> ResidualArchitecture:
    """Gastaldi 2017 (arXiv:1705.07485): depth 6n + 2, two branches `width` wide."""
    return ResidualArchitecture(stages=uniform("shake", ((depth - 2) // 6,) * 3, width), stem_width=16)


def mobilenet_v2() -> ResidualArchitecture:
    """Sandler et al. 2018 (arXiv:1801.04381), with ReLU, and strides for small images as pytorch-cifar has them."""
    table = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    stages = tuple(
        StageConfig(block="inverted", expansion=expansion, width=width, depth=depth, stride=stride)
        for expansion, width, depth, stride in table
    )
    return ResidualArchitecture(stages=stages, stem_width=32, head_width=1280)


def convnext(depths: tuple[int, ...], width: int) -> ResidualArchitecture:
    """Liu et al. 2022 (arXiv:2201.03545) for small images: a 3x3 stem without stride instead of 4x4 patches.

    The last layer norm comes before the mean over positions, not after it.
    """
    stages = uniform("convnext", depths, width, 4, activation=("gelu",) * len(depths))
    return ResidualArchitecture(stages=stages, stem_width=width)


def wide_resnet(depth: int, factor: int) -> ResidualArchitecture:
    """Zagoruyko and Komodakis 2016 (arXiv:1605.07146): depth 6n + 4, stages `factor` times 16, 32 and 64 wide."""
    stages = uniform("preact", ((depth - 4) // 6,) * 3, 16 * factor)
    return ResidualArchitecture(stages=stages, stem_width=16)


NETWORKS: dict[str, ResidualArchitecture | WhitenedArchitecture] = {
    "enhanced": enhanced(),
    "whitened_cnn": WhitenedArchitecture(widths=(64, 256, 256)),
    "whitened_cnn_large": WhitenedArchitecture(widths=(128, 288, 320), convolutions=3),
    "resnet_bottleneck": reference(stem=1),
    "resnet_leaky": reference(leaky=(3, 4)),
    "resnet_se": reference(se=(3, 4)),
    "resnet_grouped": reference((3, 4, 6, 3), separable=(3, 4)),
    "resnet_custom": reference((2, 4, 5, 2), leaky=(3, 4), se=(4,), separable=(1, 2)),
    "resnet18": resnet("basic", (2, 2, 2, 2)),
    "resnet34": resnet("basic", (3, 4, 6, 3)),
    "resnet50": resnet("bottleneck", (3, 4, 6, 3), expansion=4),
    "resnet101": resnet("bottleneck", (3, 4, 23, 3), expansion=4),
    "preact_resnet18": resnet("preact", (2, 2, 2, 2)),
    "se_resnet18": resnet("basic", (2, 2, 2, 2), se=16),
    "resnext29_32x4d": resnext(29, 32, 4, stem_kernel=1),
    "resnext29_2x64d": resnext(29, 2, 64, stem_kernel=1),
    "resnext20_4x32d": resnext(20, 4, 32),
    "resnext56_16x4d": resnext(56, 16, 4),
    "wrn_16_4": wide_resnet(16, 4),
    "wrn_28_10": wide_resnet(28, 10),
    "wrn_40_2": wide_resnet(40, 2),
    "preact_resnet20_4": ResidualArchitecture(stages=uniform("preact", (3, 3, 3), 64), stem_width=64),
    "pyramidnet110_84": pyramid(110, 84),
    "shake_shake26_2x32d": shake_shake(26, 32),
    "mobilenet_v2": mobilenet_v2(),
    "convnext_atto": convnext((2, 2, 6, 2), 40),
}
"""By the names that `budgetnet models` lists, in its order."""
