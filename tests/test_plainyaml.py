"""The specification of what is read of the YAML of strangers, by way of recipes."""

from pathlib import Path

import pytest

from budgetnet.errors import ConfigError
from budgetnet.plainyaml import parse_yaml, read_yaml, require_plain
from budgetnet.recipe import load_recipe


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "it has an alias"),
        ("distill: &a {teachers: *a}", "it has an alias"),
        ("augment: {<<: &a {flip: none}}\nmix: *a", "it has an alias"),
        ("augment: " + "[" * 50_000, "is nested more than 20 deep"),
        ("augment: " + "{a: " * 50, "is nested more than 20 deep"),
        ("label_smoothing: '" + "[" * 30_000 + "'", "cannot be a value: it is nested more than 20 deep"),
        ("label_smoothing: '[&a [1], *a]'", "cannot be a value: it has an alias"),
        ("experiment: \"['[&a [1], *a]']\"", "cannot be a value: it has an alias"),
        ("epochs: 3\nbudget: 9\nepochs: 7", "it has epochs twice"),
        ("optimizer: {lr: 1, lr: 1}", "it has lr twice"),
        ("experiment: '{a: 1, a: 2}'", "cannot be a value: it has a twice"),
        ("epochs: 1:30", "1:30 means 90 in YAML"),
        ("epochs: 010", "010 means 8 in YAML"),
        ("label_smoothing: -1:30.5", "-1:30.5 means -90.5 in YAML"),
        ("epochs: '1:30'", "cannot be a value: 1:30 means 90"),
        ("epochs: !!bool maybe", "cannot be read as YAML"),
        ("epochs: !!int ''", "cannot be read as YAML"),
        ("epochs: !!timestamp x", "cannot be read as YAML"),
        ("epochs: '!!bool maybe'", "cannot be a value"),
        ("epochs: 0x_", "cannot be read as YAML"),
        ("epochs: 0x" + "f" * 5000, "a number of more than 128 bits"),
        ("epochs: " + "1:" * 5000 + "1", "a number of more than 128 bits"),
        ("epochs: '0x" + "f" * 5000 + "'", "a number of more than 128 bits"),
        ("experiment: null", "experiment is null, expected a value"),
        ("epochs:", "epochs is null, expected a value"),
        ("optimizer: {lr: ~}", "optimizer.lr is null, expected a value"),
        ("model: {name: residual, stages: [{depth: null}]}", "model.stages.depth is null, expected a value"),
        ("model: {name: residual, stages: [{depth: [1]}]}", "model.stages"),
        ("model: {name: residual, stages: [null]}", "model.stages"),
        ("epochs: " + "9" * 5000, "cannot be read as YAML"),
        ("experiment: " + "x" * 70_000, "has more than 65,536 characters"),
        ("augment: deep.yaml", "deep.yaml cannot be read as YAML: it is nested more than 20 deep"),
        ("augment: 'a\\0b'", "augment"),
        ("augment: " + "a" * 5000, "augment"),
    ],
)
def test_a_recipe_that_would_take_memory_time_or_the_stack_is_refused(text, message, tmp_path):
    (tmp_path / "deep.yaml").write_text("[" * 30_000)
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["[" * 30_000, "[&a [1], *a]", "!!bool maybe", "x" * 70_000])
def test_so_is_such_a_value_on_the_command_line(value, tmp_path):
    for arguments in (["--experiment", value], [f"--experiment={value}"]):
        with pytest.raises(ConfigError):
            load_recipe(recipe(tmp_path, "epochs: 1"), arguments)


@pytest.mark.parametrize(
    ("most", "more", "message"),
    [
        ("x" * 65_536, "x" * 65_537, "it has more than 65,536 characters"),
        ("[" * 20 + "]" * 20, "[" * 21 + "]" * 21, "it is nested more than 20 deep"),
        (str(2**128 - 1), str(2**128), "a number of more than 128 bits"),
        (f"-{2**128 - 1}", f"-{2**128}", "a number of more than 128 bits"),
    ],
)
def test_a_limit_is_where_its_message_says(most, more, message):
    parse_yaml(most)
    require_plain({"key": [most]}, "file")
    with pytest.raises(ValueError, match=message):
        parse_yaml(more)
    with pytest.raises(ConfigError, match=r"^file: .* (?:more than|deep)"):
        require_plain({"key": [more]}, "file")
    with pytest.raises(ConfigError, match=r"^file: .* (?:more than|deep)"):
        require_plain({more: "value"}, "file")


def test_a_text_within_a_text_is_looked_into_and_other_texts_are_texts():
    require_plain(["a: b: c", "*", "[", "2026-11-24", 3, None, "'[1]'"], "file")
    with pytest.raises(ConfigError, match=r"^file: .* cannot be a value: it has an alias"):
        require_plain("'[&a 1, *a]'", "file")
    assert parse_yaml("[2026-11-24, 1e3, 0x10, null, ~, yes]") == ["2026-11-24", "1e3", 16, None, None, True]


def test_a_file_is_refused_for_a_text_in_it_too(tmp_path):
    path = recipe(tmp_path, "experiment: '[&a 1, *a]'")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: .* cannot be a value: it has an alias"):
        read_yaml(path)


def test_depth_is_not_length():
    many = [[[i]] for i in range(100)]
    assert parse_yaml(str(many)) == many
    require_plain({"key": str(many)}, "file")


def test_a_file_of_the_longest_length_is_read_and_of_a_longer_one_no_part(tmp_path):
    path = recipe(tmp_path, "x" * 65_536)
    assert read_yaml(path) == "x" * 65_536
    path.write_text("x" * 65_537)
    with pytest.raises(ConfigError, match=r"recipe\.yaml cannot be read as YAML: it has more than 65,536 characters"):
        read_yaml(path)


def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_numbers_are_those_that_they_look_like():
    assert parse_yaml("[0, 7, -2, 1_000, 0x10, 0.5, 1.5e+3, -0.25]") == [0, 7, -2, 1000, 16, 0.5, 1500.0, -0.25]
    for misleading, meant in (("010", 8), ("1:30", 90), ("-1:30.5", -90.5)):
        with pytest.raises(ValueError, match=f"{misleading} means {meant} in YAML"):
            parse_yaml(misleading)
