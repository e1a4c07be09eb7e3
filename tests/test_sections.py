"""The specification of what each section refuses: of a range, the last values that pass and the first that do not."""

import math
import re
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from budgetnet.config import (
    AugmentConfig,
    DistillConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ProgressiveConfig,
    ScheduleConfig,
    StageConfig,
)
from budgetnet.errors import ConfigError

ABOVE_1 = math.nextafter(1, 2)
BELOW_0 = math.nextafter(0, -1)
BELOW_1 = math.nextafter(1, 0)
LEAST = math.nextafter(0, 1)

STAGES = [StageConfig()]
OPTIMIZERS = get_args(get_type_hints(OptimizerConfig)["name"])


@pytest.mark.parametrize(
    ("kind", "besides", "option", "passes", "refused"),
    [
        *((StageConfig, {}, name, [1, 2], [0, -1]) for name in ("depth", "width", "stride", "groups", "expansion")),
        *((StageConfig, {}, name, [0, 1], [-1]) for name in ("se", "cbam")),
        (StageConfig, {"block": "pyramid"}, "widen", [0, 1], [-1]),
        (StageConfig, {"width": 6}, "groups", [1, 2, 3, 6], [4, 5, 12]),
        (ModelConfig, {}, "width", [None, "auto", 1], [0]),
        (ModelConfig, {}, "channels", [None, [], [1, 2]], [[0], [2, 0]]),
        (ModelConfig, {}, "ranks", [None, [], [0, 2]], [[-1], [2, -1]]),
        *((ModelConfig, {}, name, [0, BELOW_1], [BELOW_0, 1]) for name in ("dropout", "drop_path")),
        (AugmentConfig, {}, "crop_padding", [0, 1], [-1]),
        (AugmentConfig, {}, "rotation", [0, 180], [BELOW_0, 181]),
        *((AugmentConfig, {}, name, [0, 1], [BELOW_0, ABOVE_1]) for name in ("brightness", "contrast", "saturation")),
        (AugmentConfig, {}, "hue", [0, 0.5], [BELOW_0, 0.51]),
        (AugmentConfig, {}, "erase_p", [0, 1], [BELOW_0, ABOVE_1]),
        (AugmentConfig, {}, "erase_scale", [(LEAST, 1), (0.5, 0.5)], [(0, 1), (0.5, 0.4), (0.5, ABOVE_1)]),
        (AugmentConfig, {}, "erase_ratio", [(LEAST, 9), (2, 2)], [(0, 1), (2, 1), (1, math.inf)]),
        (AugmentConfig, {}, "erase_value", [(-1e9, 0, 9)], [(0, 0, math.inf), (math.nan, 0, 0), (0, -math.inf, 0)]),
        (AugmentConfig, {}, "cutout", [0, 1], [-1]),
        *((AugmentConfig, {"policy": policy}, "policy_ops", [None, 1], [0]) for policy in ("rand", "augmix")),
        *(
            (AugmentConfig, {"policy": policy}, "policy_magnitude", [None, 0, 1], [BELOW_0, ABOVE_1])
            for policy in ("rand", "augmix")
        ),
        (AugmentConfig, {"policy": "augmix"}, "consistency", [0, 12], [BELOW_0, math.inf, math.nan]),
        (AugmentConfig, {}, "until", [LEAST, 1], [0, ABOVE_1]),
        (MixConfig, {"name": "mixup"}, "alpha", [None, LEAST, 1e9], [0, -1, math.inf, math.nan]),
        (MixConfig, {"name": "mixup"}, "p", [LEAST, 1], [0, ABOVE_1]),
        (DistillConfig, {"teachers": ["a"]}, "temperature", [LEAST, 1e9], [0, math.inf, math.nan]),
        (DistillConfig, {"teachers": ["a"]}, "weight", [LEAST, 1], [0, ABOVE_1]),
        (OptimizerConfig, {}, "lr", [LEAST, 1e9], [0, -1, math.inf, math.nan]),
        (OptimizerConfig, {}, "momentum", [0, BELOW_1], [BELOW_0, 1]),
        (OptimizerConfig, {"name": "adam"}, "betas", [(0, 0), (BELOW_1, BELOW_1)], [(BELOW_0, 0), (0, 1), (1, 0)]),
        (OptimizerConfig, {}, "weight_decay", [0, 1], [BELOW_0, math.inf, math.nan]),
        (OptimizerConfig, {}, "bias_lr", [LEAST, 1e9], [0, math.inf, math.nan]),
        (OptimizerConfig, {}, "head_lr", [LEAST, 1e9], [0, math.inf, math.nan]),
        (OptimizerConfig, {}, "sam", [0, 0.1], [BELOW_0, math.inf]),
        (ScheduleConfig, {}, "warmup", [0, 1e9], [BELOW_0, math.inf, math.nan]),
        (ScheduleConfig, {}, "floor", [0, 1], [BELOW_0, ABOVE_1]),
        (ScheduleConfig, {}, "gamma", [LEAST, 1], [0, ABOVE_1]),
        (ScheduleConfig, {}, "patience", [0], [-1]),
        (ScheduleConfig, {}, "period", [0.01, 1e9], [math.nextafter(0.01, 0), math.inf, math.nan]),
        (ScheduleConfig, {}, "period_growth", [1, 1e9], [BELOW_1, math.inf, math.nan]),
        (ScheduleConfig, {}, "peak", [LEAST, BELOW_1], [0, 1]),
        (ScheduleConfig, {}, "start", [0, 1], [BELOW_0, ABOVE_1]),
        (
            ScheduleConfig,
            {"name": "multistep"},
            "milestones",
            [[1], [1, 2.5], [2, 2]],
            [[0], [0, 1], [2, 1], [1, math.inf]],
        ),
        (ProgressiveConfig, {}, "size", [None, 8], [7]),
        (ProgressiveConfig, {}, "until", [LEAST, 1], [0, ABOVE_1]),
    ],
)
def test_a_range_ends_where_its_message_says(kind, besides, option, passes, refused):
    for value in passes:
        assert getattr(kind(**besides, **{option: value}), option) == value
    for value in refused:
        with pytest.raises(ConfigError, match=rf"^[a-z.]*\b{option} is {re.escape(repr(value))}, expected "):
            kind(**besides, **{option: value})


@pytest.mark.parametrize("name", [one.name for one in fields(StageConfig)])
def test_no_option_of_a_stage_is_null(name):
    with pytest.raises(ConfigError, match=rf"^model\.stages\.{name} is null, expected a value, or no such key$"):
        StageConfig(**{name: None})


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        *(
            (StageConfig, values, "model.stages has more than one of se, eca and cbam")
            for values in ({"se": 1, "eca": True}, {"se": 1, "cbam": 1}, {"eca": True, "cbam": 1})
        ),
        (StageConfig, {"widen": 1}, "model.stages.widen is given, but block is basic"),
        *(
            (ModelConfig, {name: [1], "width": "auto"}, f"model.{name} is given and model.width is auto")
            for name in ("channels", "ranks")
        ),
        (ModelConfig, {"stem": 2}, "model.stem is 2, but enhanced has a stem of its own"),
        (ModelConfig, {"name": "residual"}, "model.stages is not given"),
        (ModelConfig, {"name": "residual", "stages": []}, "model.stages is not given"),
        (ModelConfig, {"stages": STAGES}, "model.name is 'enhanced' and model.stages is given"),
        *(
            (AugmentConfig, {name: 1, "policy": policy}, f"augment.{name} is given, but augment.policy is {policy}")
            for name in ("policy_ops", "policy_magnitude")
            for policy in ("none", "trivial")
        ),
        *(
            (AugmentConfig, {"consistency": 1, "policy": policy}, f"consistency is 1, but augment.policy is {policy}")
            for policy in ("none", "trivial", "rand")
        ),
        (MixConfig, {"alpha": 1}, "mix.alpha is given, but mix.name is none"),
        (MixConfig, {"p": 0.5}, "mix.p is given, but mix.name is none"),
        *(
            (DistillConfig, values, "distill.teachers is empty")
            for values in ({"temperature": 2}, {"weight": 0.5}, {"cached": True})
        ),
        *(
            (OptimizerConfig, {"betas": (0, 0), "name": name}, "optimizer.betas is given")
            for name in OPTIMIZERS
            if name not in ("adam", "adamw")
        ),
        *((OptimizerConfig, {"nesterov": True, "name": name}, f"found {name}") for name in ("adam", "adamw", "muon")),
        (OptimizerConfig, {"nesterov": True, "momentum": 0}, "found sgd with momentum 0"),
        (ScheduleConfig, {"name": "multistep"}, "schedule.milestones is empty"),
        (ScheduleConfig, {"milestones": [1]}, "schedule.milestones is given, but schedule.name is cosine"),
        *(
            (ScheduleConfig, {"name": name, "warmup": 1}, f"schedule.warmup is 1, but {name} has its own rise")
            for name in ("onecycle", "triangular")
        ),
    ],
)
def test_options_at_odds_are_refused_together(kind, values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        kind(**values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (StageConfig, {}),
        *((StageConfig, values) for values in ({"se": 4}, {"eca": True}, {"cbam": 4})),
        (ModelConfig, {"name": "residual", "stem": 2, "stages": STAGES}),
        *((ModelConfig, {name: [1], "width": 8}) for name in ("channels", "ranks")),
        *((AugmentConfig, {"policy": policy}) for policy in ("none", "trivial", "rand", "augmix")),
        (MixConfig, {}),
        (DistillConfig, {}),
        *((OptimizerConfig, {"betas": (0, 0), "name": name}) for name in ("adam", "adamw")),
        *((OptimizerConfig, {"name": name}) for name in OPTIMIZERS),
        (OptimizerConfig, {"nesterov": True, "momentum": 0.1}),
        *((ScheduleConfig, {"name": name, "warmup": 1}) for name in ("constant", "cosine", "plateau", "restarts")),
        *((ScheduleConfig, {"name": name}) for name in ("onecycle", "triangular")),
    ],
)
def test_options_that_go_together_are_not_refused(kind, values):
    assert kind(**values) == kind(**values)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rotation", 1),
        ("policy", "trivial"),
        *((name, 0.1) for name in ("brightness", "contrast", "saturation", "hue", "erase_p")),
        ("cutout", 1),
    ],
)
def test_all_but_crop_and_flip_are_strong(option, value):
    assert AugmentConfig(**{option: value}).strong
    assert not AugmentConfig(crop_padding=4, flip="random").strong
