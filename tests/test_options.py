"""The specification of what is said of the options of a recipe."""

from dataclasses import fields

import pytest
import yaml

from budgetnet.config import Config, StageConfig, to_yaml
from budgetnet.options import Option, sections
from budgetnet.plainyaml import parse_yaml

SECTIONS = sections()
OPTIONS = {section.dotted(option): option for section in SECTIONS for option in section.options}
STAGES = {f"model.stages.{one.name}" for one in fields(StageConfig)}


def flat(content: dict, prefix: str = "") -> dict:
    inner = [flat(value, f"{prefix}{key}.") for key, value in content.items() if isinstance(value, dict)]
    own = {f"{prefix}{key}": value for key, value in content.items() if not isinstance(value, dict)}
    return own | {key: value for found in inner for key, value in found.items()}


def test_every_key_of_a_recipe_and_of_a_stage_is_there_and_means_something():
    assert set(OPTIONS) == {*flat(yaml.safe_load(to_yaml(Config()))), *STAGES}
    assert all(option.meaning for option in OPTIONS.values())
    assert all(section.meaning for section in SECTIONS)


def test_the_default_of_an_option_is_what_a_recipe_would_say():
    taken = flat(yaml.safe_load(to_yaml(Config())))
    assert {name: parse_yaml(OPTIONS[name].default) for name in taken} == taken


@pytest.mark.parametrize(
    ("name", "values", "default"),
    [
        ("budget", "whole number or `null`", "5_000_000"),
        ("optimizer.lr", "number", "0.1"),
        ("optimizer.nesterov", "`true` | `false`", "false"),
        ("mix.name", "`none` | `mixup` | `cutmix` | `ricap`", "none"),
        ("model.name", "text", "enhanced"),
        ("model.width", "whole number or `auto` or `null`", "null"),
        ("model.ranks", "a list of whole numbers or `null`", "null"),
        ("schedule.milestones", "a list of numbers", "[]"),
        ("model.stages", "a list of stages or `null`", "null"),
        ("distill.teachers", "a list of texts", "[]"),
        ("augment.erase_ratio", "2 numbers", "[0.3, 3.3]"),
        ("model.stages.depth", "whole number", "2"),
    ],
)
def test_what_an_option_may_be_is_said_in_words(name, values, default):
    own = name.rpartition(".")[2]
    assert OPTIONS[name] == Option(own, values, default, OPTIONS[name].meaning)
