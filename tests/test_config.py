"""The specification of the whole configuration, and of its ways into files and back."""

import dataclasses
import math
import re

import pytest
import yaml

from budgetnet.config import (
    AugmentConfig,
    Config,
    DistillConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ProgressiveConfig,
    ScheduleConfig,
    StageConfig,
    model_from_dict,
    nearest,
    to_yaml,
)
from budgetnet.errors import ConfigError


def test_resolved_yaml_names_every_option_of_every_section():
    plain = yaml.safe_load(to_yaml(Config()))
    assert set(plain) == {field.name for field in dataclasses.fields(Config)}
    for name, kind in (
        ("model", ModelConfig),
        ("augment", AugmentConfig),
        ("optimizer", OptimizerConfig),
        ("schedule", ScheduleConfig),
    ):
        assert set(plain[name]) == {field.name for field in dataclasses.fields(kind)}


DEFAULTS = """
{dataset: cifar10, image_size: 32, val_size: 5000, train_size: null, train_on_test: false, split_seed: 0,
budget: 5_000_000, init: default, start: null, epochs: 200, batch_size: 128, accumulate: 1, sync_norm: false,
exchange: fp32, label_smoothing: 0.0, clip_norm: null, ema: 0.0, swa: 0.0, patience: null, tta: none, precision: fp32,
channels_last: true, compile: false, checkpoint_steps: null, checkpoint_minutes: 10.0, seed: 0, experiment: budgetnet,
model: {name: enhanced, width: null, stem: 1, stages: null, dropout: 0.0, drop_path: 0.0,
  channels: null, ranks: null},
augment: {crop_padding: 0, crop_border: zeros, flip: none, rotation: 0.0, policy: none, policy_ops: null,
  policy_magnitude: null, consistency: 0.0, brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0, erase_p: 0.0,
  erase_scale: [0.02, 0.1], erase_ratio: [0.3, 3.3], erase_value: [0.0, 0.0, 0.0], cutout: 0, until: 1.0},
mix: {name: none, alpha: null, p: 1.0},
progressive: {size: null, until: 0.7},
distill: {teachers: [], temperature: 4.0, weight: 0.9, cached: false},
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, nesterov: false, betas: [0.9, 0.999], weight_decay: 0.0005,
  decay_norms: true, bias_lr: 1.0, head_lr: 1.0, sam: 0.0},
schedule: {name: cosine, warmup: 0.0, floor: 0.0, milestones: [], gamma: 0.1, patience: 10, period: 10.0,
  period_growth: 2.0, peak: 0.3, start: 0.04}}
"""
OF_A_STAGE = """
{block: basic, depth: 2, width: 64, widen: 0, stride: 1, groups: 1, separable: false, expansion: 1, se: 0, eca: false,
cbam: 0, se_place: branch, activation: relu}
"""


def test_what_a_recipe_does_not_say_never_changes():
    """Old recipes and the folders of old runs leave options out: they mean what they meant."""
    assert yaml.safe_load(to_yaml(Config())) == yaml.safe_load(DEFAULTS)
    assert dataclasses.asdict(StageConfig()) == yaml.safe_load(OF_A_STAGE)


def test_a_model_survives_its_way_through_a_file():
    model = ModelConfig(name="residual", stages=[StageConfig(width=8)], width=4)
    assert model_from_dict(dataclasses.asdict(model)) == model
    assert model_from_dict(dataclasses.asdict(ModelConfig())) == ModelConfig()
    with pytest.raises(ConfigError, match=r"model\.depht is not an option"):
        model_from_dict({"name": "resnet18", "depht": 3})


@pytest.mark.parametrize("zero_init", [False, True])
def test_a_network_in_a_file_may_have_begun_as_none_does_any_more(zero_init):
    assert model_from_dict({"name": "resnet18", "zero_init": zero_init}) == ModelConfig(name="resnet18")


def test_the_nearest_name_is_found_whole_or_by_its_last_part():
    options = ["schedule.name", "augment.until", "patience", "progressive.until", "schedule.patience"]
    assert nearest("patiense", options) == " (did you mean patience?)"
    assert nearest("schedule.patiense", options) == " (did you mean schedule.patience?)"
    assert nearest("untill", options, "--") == " (did you mean --augment.until?)"  # of two alike the first by name
    assert nearest("optimizer.until", options) == " (did you mean augment.until?)"
    assert nearest("momentum", options) == nearest("momentum", []) == ""
    assert nearest("flips", ["flops", "flip"]) == " (did you mean flip?)"
    assert nearest("flips", ["mix.flops", "augment.flip"]) == " (did you mean augment.flip?)"
    assert nearest("until", ["units"]) == ""  # which are three letters in five alike
    with pytest.raises(ConfigError, match=r"^model\.widht is not an option \(did you mean model\.width\?\)$"):
        model_from_dict({"widht": 3})


def test_resolved_yaml_has_the_order_of_the_reference_and_no_secrets():
    text = to_yaml(
        Config(experiment="https://me:hidden@host/x", optimizer=OptimizerConfig(name="adam", betas=(0.5, 0.9)))
    )
    plain = yaml.safe_load(text)
    assert list(plain) == [field.name for field in dataclasses.fields(Config)]
    assert list(plain["optimizer"]) == [field.name for field in dataclasses.fields(OptimizerConfig)]
    assert plain["experiment"] == "https://***@host/x"
    assert plain["optimizer"]["betas"] == [0.5, 0.9]


ABOVE_1 = math.nextafter(1, 2)
BELOW_0 = math.nextafter(0, -1)
BELOW_1 = math.nextafter(1, 0)
LEAST = math.nextafter(0, 1)


@pytest.mark.parametrize(
    ("besides", "option", "passes", "refused"),
    [
        ({"dataset": "folder"}, "image_size", [8], [7]),
        ({}, "val_size", [0, 1], [-1]),
        ({}, "train_size", [None, 1], [0]),
        ({}, "budget", [None, 1], [0]),
        ({}, "epochs", [1], [0]),
        ({}, "batch_size", [2], [1]),
        ({}, "accumulate", [1], [0]),
        ({}, "label_smoothing", [0, BELOW_1], [BELOW_0, 1]),
        ({}, "clip_norm", [None, LEAST, 1e9], [0, math.inf, math.nan]),
        ({}, "ema", [0, BELOW_1], [BELOW_0, 1]),
        ({}, "swa", [0, 1], [BELOW_0, ABOVE_1]),
        ({}, "patience", [None, 1], [0]),
        ({}, "checkpoint_steps", [None, 1], [0]),
        ({}, "checkpoint_minutes", [None, LEAST, 1e9], [0, math.inf, math.nan]),
        *(({}, name, [0, 2**63 - 1], [-1, 2**63]) for name in ("seed", "split_seed")),
        ({}, "experiment", ["a"], ["", " "]),
    ],
)
def test_a_range_ends_where_its_message_says(besides, option, passes, refused):
    for value in passes:
        assert getattr(Config(**besides, **{option: value}), option) == value
    for value in refused:
        with pytest.raises(ConfigError, match=rf"^{option} is {re.escape(repr(value))}, expected "):
            Config(**besides, **{option: value})


MIXUP = MixConfig(name="mixup")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"progressive": ProgressiveConfig(size=33)}, "progressive.size is 33, expected at most image_size, 32"),
        ({"ema": 0.9, "swa": 0.5}, "ema is 0.9 and swa is 0.5, two averages of the same weights"),
        *(
            ({"dataset": name, "image_size": 64}, f"image_size is 64, but {name} images are 32x32")
            for name in ("cifar10", "cifar100", "digits")
        ),
        ({"schedule": ScheduleConfig(name="plateau"), "val_size": 0}, "schedule.name is plateau and val_size is 0"),
        ({"model": ModelConfig(width="auto"), "budget": None}, "model.width is auto and budget is null"),
        (
            {"augment": AugmentConfig(policy="augmix", consistency=1), "mix": MIXUP},
            "augment.consistency is 1 and mix.name is mixup",
        ),
        (
            {"distill": DistillConfig(teachers=["a"], cached=True), "mix": MIXUP},
            "distill.cached is true and mix.name is mixup",
        ),
        ({"augment": AugmentConfig(until=0.5)}, "augment.until is 0.5, but nothing is on that would stop then"),
        ({"augment": AugmentConfig(crop_padding=32)}, "augment.crop_padding is 32, expected less than image_size 32"),
    ],
)
def test_options_at_odds_are_refused_together(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"progressive": ProgressiveConfig(size=32)},
        {"ema": 0.9},
        {"swa": 0.5},
        {"dataset": "folder", "image_size": 64},
        {"schedule": ScheduleConfig(name="plateau"), "val_size": 1},
        {"val_size": 0},
        {"model": ModelConfig(width="auto"), "budget": 1},
        {"budget": None},
        {"augment": AugmentConfig(policy="augmix", consistency=1)},
        {"augment": AugmentConfig(policy="augmix"), "mix": MIXUP},
        {"distill": DistillConfig(teachers=["a"], cached=True)},
        {"distill": DistillConfig(teachers=["a"]), "mix": MIXUP},
        {"augment": AugmentConfig(until=0.5), "mix": MIXUP},
        {"augment": AugmentConfig(until=0.5, cutout=8)},
        {"augment": AugmentConfig(crop_padding=31)},
    ],
)
def test_options_that_go_together_are_not_refused(values):
    config = Config(**values)
    assert {name: getattr(config, name) for name in values} == values
