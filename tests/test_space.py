"""The space that a sweep searches: read with care, and refused in one line that names the key."""

from pathlib import Path

import pytest

from budgetnet import space
from budgetnet.errors import ConfigError
from budgetnet.recipe import recipe_loader
from budgetnet.space import Choice, Range

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke.yaml"


def read(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return space.read_space(path)


def test_a_space_has_ranges_and_choices_by_the_names_of_options(tmp_path):
    found = read(
        tmp_path,
        """
        optimizer.lr: {float: [1e-3, 1], log: true}
        ema: {float: [0.9, 0.999]}
        batch_size: {int: [32, 128], step: 32}
        model.width: {int: [8, 64], log: true}
        augment.policy: {choice: [none, trivial]}
        optimizer.nesterov: {choice: [true, false]}
        progressive.size: {choice: [null, 16]}
        augment.erase_scale: {choice: [[0.02, 0.1], [0.02, 0.4]]}
        """,
    )
    assert found == {
        "optimizer.lr": Range(low=0.001, high=1.0, log=True),
        "ema": Range(low=0.9, high=0.999),
        "batch_size": Range(low=32, high=128, whole=True, step=32),
        "model.width": Range(low=8, high=64, whole=True, log=True),
        "augment.policy": Choice(values=("none", "trivial")),
        "optimizer.nesterov": Choice(values=("true", "false")),
        "progressive.size": Choice(values=("null", "16")),
        "augment.erase_scale": Choice(values=("[0.02, 0.1]", "[0.02, 0.4]")),
    }


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples" / "spaces").glob("*.yaml")), ids=lambda path: path.name)
def test_each_space_that_comes_with_the_recipes_is_possible_around_the_recipe_of_its_name(recipe):
    load = recipe_loader(ROOT / "recipes" / recipe.name)
    varied = space.read_space(recipe)
    assert varied, "nothing would be searched"
    space.check(varied, lambda values: load([f"--{k}={v}" for k, v in values.items()]), "it")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found no options"),
        ("[1, 2]", "found no options"),
        (
            "optimizer.momemtum: {float: [0, 1]}",
            "optimizer.momemtum is not an option (did you mean optimizer.momentum?)",
        ),
        ("optimizer: {float: [0, 1]}", "optimizer has options of its own: name one of them, as optimizer.name"),
        ("optimizer: {lr: {float: [0.1, 1]}}", "optimizer has options of its own"),
        ("seed: {int: [0, 9]}", "seed must be the same in all trials"),
        ("budget: {choice: [1000, null]}", "budget must be the same in all trials"),
        ("epochs: 3", "epochs is 3, expected one of"),
        ("epochs: {int: [1, 3], float: [1, 3]}", "expected one of"),
        ("epochs: {integer: [1, 3]}", "expected one of"),
        (
            "optimizer.lr: {float: [0.1, 1], logs: true}",
            "lr.logs is not known, expected float and perhaps log",
        ),
        ("optimizer.lr: {float: [0.1, 1], step: 2}", "optimizer.lr.step is not known"),
        ("model.name: {choice: [a, b], log: true}", "model.name.log is not known, expected choice alone"),
        ("optimizer.lr: {float: [1, 0.1]}", "optimizer.lr.float is [1, 0.1], expected the lower number first"),
        ("optimizer.lr: {float: [1, 1]}", "expected the lower number first"),
        ("optimizer.lr: {float: [0, 1], log: true}", "begins at 0 and log is true"),
        ("optimizer.lr: {float: [0.1, 1], log: 2}", "optimizer.lr.log is 2, expected true or false"),
        ("optimizer.lr: {float: [0.1]}", "two finite numbers"),
        ("optimizer.lr: {float: [0.1, .inf]}", "two finite numbers"),
        ("optimizer.lr: {float: [0.1, .nan]}", "two finite numbers"),
        ("optimizer.lr: {float: [true, 2]}", "two finite numbers"),
        ("optimizer.lr: {float: 1}", "two finite numbers"),
        ("epochs: {int: [1.5, 3]}", "epochs.int is [1.5, 3], expected [LOW, HIGH], two whole numbers"),
        ("epochs: {int: [1, 1" + "0" * 400 + "]}", "128 bits"),
        ("epochs: {int: [1, 9], step: 0}", "epochs.step is 0, expected 1 or more"),
        ("epochs: {int: [1, 9], step: 1.5}", "epochs.step is 1.5"),
        ("epochs: {int: [1, 9], step: 2, log: true}", "epochs has log and step"),
        ("batch_size: {int: [64, 250], step: 64}", "by which 64 leads to 192, not to 250"),
        ("model.name: {choice: enhanced}", "expected a list of values"),
        ("model.name: {choice: [enhanced]}", "two or more values that differ"),
        ("epochs: {choice: [1, '1']}", "two or more values that differ"),
        ("model: {choice: [{a: 1}, {b: 2}]}", "model has options of its own"),
        ("epochs: {choice: [1, {b: 2}]}", "expected a list of values"),
        ("a: &a [1]\nb: *a", "alias"),
        ("epochs: {int: [1, 3]", "cannot be read as YAML"),
    ],
)
def test_a_space_that_cannot_be_is_refused_in_a_line_that_names_the_key(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def check(tmp_path, text):
    load = recipe_loader(SMOKE)
    found = read(tmp_path, text)
    space.check(found, lambda values: load([f"--{name}={value}" for name, value in values.items()]), "space.yaml")


def test_a_value_that_no_configuration_can_have_is_told_before_anything_trains(tmp_path):
    with pytest.raises(ConfigError, match=r"^space.yaml: optimizer.lr can never be -0.5: optimizer.lr is -0.5"):
        check(tmp_path, "optimizer.lr: {float: [-0.5, 1]}")
    with pytest.raises(ConfigError, match=r"augment.flip can never be sometimes: augment.flip is 'sometimes'"):
        check(tmp_path, "augment.flip: {choice: [none, sometimes]}")


def test_a_value_that_makes_sense_with_some_of_the_others_alone_is_possible(tmp_path):
    check(tmp_path, "augment.policy: {choice: [none, augmix]}\naugment.policy_ops: {int: [1, 3]}")
    with pytest.raises(ConfigError, match=r"augment.policy_ops can never be 1"):
        check(tmp_path, "augment.policy: {choice: [none, trivial]}\naugment.policy_ops: {int: [1, 3]}")
