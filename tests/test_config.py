"""The specification of the whole configuration, and of its ways into files and back."""

import dataclasses

import pytest
import yaml

from budgetnet.config import (
    AugmentConfig,
    Config,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    model_from_dict,
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


def test_a_model_survives_its_way_through_a_file():
    model = ModelConfig(name="residual", stages=[StageConfig(width=8)], width=4)
    assert model_from_dict(dataclasses.asdict(model)) == model
    with pytest.raises(ConfigError, match=r"model\.depht is not an option"):
        model_from_dict({"name": "resnet18", "depht": 3})
