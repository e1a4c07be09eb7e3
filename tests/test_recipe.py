"""The specification of recipes and their options."""

import re
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from budgetnet.config import AugmentConfig, Config, DistillConfig, ModelConfig, OptimizerConfig, StageConfig, to_yaml
from budgetnet.errors import ConfigError
from budgetnet.recipe import (
    BROUGHT,
    add_options,
    config_from_record,
    find_recipe,
    load_recipe,
    parse_options,
    require_option,
    run_folder,
)

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_resolves_to_yaml_that_is_a_recipe_for_the_same(path, tmp_path):
    config = load_recipe(path)
    assert load_recipe(recipe(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_opens_with_its_command_and_score(path):
    header = path.read_text().split("\n\n")[0]
    comments = [line for line in header.splitlines() if line.startswith("#")]
    assert f"#   budgetnet train recipes/{path.name}" in comments
    assert len(comments) >= 4


def test_options_override_the_recipe_and_the_last_one_wins(tmp_path):
    path = recipe(tmp_path, "epochs: 3\noptimizer: {lr: 0.2, momentum: 0.5}\n")
    config = load_recipe(path, ["--optimizer.lr", "0.3", "--val-size=0", "--optimizer.lr", "0.4"])
    assert (config.epochs, config.val_size) == (3, 0)
    assert (config.optimizer.lr, config.optimizer.momentum) == (0.4, 0.5)


def test_numbers_may_be_written_as_people_write_them(tmp_path):
    path = recipe(tmp_path, "budget: 5_000_000\noptimizer: {lr: 1e-3, weight_decay: 5.0e-4}\nclip_norm: 1\n")
    config = load_recipe(path)
    assert (config.budget, config.optimizer.lr, config.optimizer.weight_decay) == (5_000_000, 0.001, 0.0005)
    assert config.clip_norm == 1.0


@pytest.mark.parametrize("written", ["1e6", "1E6", "1.0e6", "1.0e+6", "10e5", "1_000_000", "1000000"])
def test_a_budget_may_be_written_as_fit_takes_it(written, tmp_path):
    path = recipe(tmp_path, f"budget: {written}\n")
    (tmp_path / "other").mkdir()
    other = recipe(tmp_path / "other", "budget: 5\n")
    found = [load_recipe(path), load_recipe(other, ["--budget", written]), load_recipe(other, [f"--budget={written}"])]
    assert [config.budget for config in found] == [1_000_000] * 3


@pytest.mark.parametrize("option", ["train_size", "batch_size", "model.width", "schedule.patience"])
def test_every_whole_number_may_be_written_so(option, tmp_path):
    section, dot, name = option.rpartition(".")
    path = recipe(tmp_path, f"{section}: {{{name}: 2e2}}\n" if dot else f"{name}: 2e2\n")
    for config in (load_recipe(path), load_recipe(recipe(tmp_path, "epochs: 1\n"), [f"--{option}", "2e2"])):
        value = getattr(getattr(config, section) if dot else config, name)
        assert (value, type(value)) == (200, int)


def test_an_option_that_was_taken_out_may_be_in_a_file_where_it_meant_nothing(tmp_path):
    old = "optimizer: {lr: 0.5, lookahead_steps: 0, lookahead_alpha: 0.5}\nmodel: {width: 8, zero_init: false}\n"
    new = "optimizer: {lr: 0.5}\nmodel: {width: 8}\n"
    assert load_recipe(recipe(tmp_path, old)) == load_recipe(recipe(tmp_path, new))
    with pytest.raises(ConfigError, match=r"model\.zero_init is True, but is no option any more: train without"):
        load_recipe(recipe(tmp_path, "model: {zero_init: true}\n"))
    path = recipe(tmp_path, "optimizer: {lookahead_steps: 5}\n")
    with pytest.raises(ConfigError, match=r"optimizer\.lookahead_steps is 5, but is no option any more: train without"):
        load_recipe(path)
    with pytest.raises(ConfigError, match=r"^--optimizer\.lookahead-steps is not an option$"):
        load_recipe(recipe(tmp_path, "epochs: 1"), ["--optimizer.lookahead-steps", "0"])


def test_what_is_no_whole_number_stays_as_it_is_written(tmp_path):
    assert load_recipe(recipe(tmp_path, "epochs: 1"), ["--experiment", "1e3"]).experiment == "1e3"


@pytest.mark.parametrize("written", ["1.5", "15e-1", "1.5e0", "1..5e3", "1e400", "1e-400", ".inf", ".nan", "true"])
def test_a_budget_that_is_no_whole_number_is_refused(written, tmp_path):
    path = recipe(tmp_path, f"budget: {written}\n")
    (tmp_path / "other").mkdir()
    other = recipe(tmp_path / "other", "budget: 5\n")
    for given in ((path, []), (other, ["--budget", written])):
        with pytest.raises(ConfigError, match=r"^budget is .*, expected one of: int, null"):
            load_recipe(*given)


@pytest.mark.parametrize(
    ("option", "values"),
    [("dataset", "cifar10 cifar100 folder digits"), ("tta", "none flip flip-shift crops")],
)
def test_an_option_of_few_values_takes_each_of_them_and_no_other(option, values, tmp_path):
    for value in values.split():
        assert getattr(load_recipe(recipe(tmp_path, f"{option}: {value}")), option) == value
    with pytest.raises(ConfigError, match=f"^{option} is 'other', expected one of {', '.join(values.split())}$"):
        load_recipe(recipe(tmp_path, f"{option}: other"))


def test_a_section_may_be_a_file_beside_the_recipe(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "sgd.yaml").write_text("lr: 0.7\nmomentum: 0.5\n")
    path = recipe(tmp_path, "optimizer: shared/sgd.yaml\n")
    assert load_recipe(path, ["--optimizer.momentum", "0.6"]).optimizer == OptimizerConfig(lr=0.7, momentum=0.6)
    (tmp_path / "shared" / "sgd.yaml").write_text("momemtum: 0.5\n")
    with pytest.raises(ConfigError, match="momemtum"):
        load_recipe(path)


def test_an_empty_recipe_is_the_defaults(tmp_path):
    assert load_recipe(recipe(tmp_path, "# nothing yet\n")) == Config()


@pytest.mark.parametrize("text", ["1e3", "1.5e+3", "0x10", "on", ".inf", "2026-11-30", "[1e3]", "a: b", "\x7f"])
def test_a_text_that_could_be_something_else_is_read_back_as_it_was(text, tmp_path):
    """Else a run by `--experiment 1e3` could be trained, and neither resumed nor evaluated."""
    config = Config(experiment=text, start=text, distill=DistillConfig(teachers=[text]))
    assert load_recipe(recipe(tmp_path, to_yaml(config))) == config


def test_what_no_recipe_may_hold_is_not_written_either():
    with pytest.raises(ConfigError, match=r"^the options: '010' cannot be a value: 010 means 8 in YAML"):
        to_yaml(Config(experiment="010"))


def test_stages_of_a_residual_network_are_read_from_yaml(tmp_path):
    path = recipe(
        tmp_path, "model: {name: residual, stem: 2, stages: [{width: 8}, {block: preact, width: 16, se: 4}]}\n"
    )
    assert load_recipe(path).model == ModelConfig(
        name="residual", stem=2, stages=[StageConfig(width=8), StageConfig(block="preact", width=16, se=4)]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {momemtum: 1}", "optimizer.momemtum is not an option (did you mean optimizer.momentum?)"),
        ("label_smothing: 0.1", "label_smothing is not an option (did you mean label_smoothing?)"),
        ("momentum: 0.1", "momentum is not an option (did you mean optimizer.momentum?)"),
        ("qqq: 1", "qqq is not an option"),
        ("1: 2", "1 is not an option"),
        ("epochs: many", "epochs is 'many', expected int"),
        ("epochs: 0", "epochs is 0, expected 1 or more"),
        ("epochs: 2.5", "epochs is '2.5', expected int"),
        ("seed: true", "seed is 'True', expected int"),
        ("optimizer: {name: sdg}", "optimizer.name is 'sdg', expected one of sgd, adam, adamw"),
        ("epochs: 2024-99-01", "epochs is '2024-99-01', expected int"),
        ("model: {stem: 2}", "model.stem is 2, but enhanced has a stem of its own"),
        ("schedule: {milestones: [3]}", "schedule.milestones is given, but schedule.name is cosine"),
        ("optimizer: {betas: [0.5, 0.9]}", "optimizer.betas is given, but optimizer.name is sgd"),
        ("image_size: 64", "image_size is 64, but cifar10 images are 32x32"),
        ("optimizer: {lr: -1}", "optimizer.lr is -1.0, expected a number above 0"),
        ("optimizer: 3", "optimizer is 3, expected options of its own, such as optimizer.name"),
        ("model: {width: wide}", "model.width is 'wide', expected one of: int, one of auto, null"),
        ("model: {stages: [{widht: 3}], name: residual}", "widht"),
        ("model: {name: residual}", "stages"),
        ("model: {name: resnet18, stages: [{width: 3}]}", "stages"),
        ("augment: {erase_scale: [0.5, 0.1]}", "augment.erase_scale is (0.5, 0.1), expected 0 < smallest <= largest"),
        ("augment: {policy: trival}", "augment.policy is 'trival', expected one of none, trivial, rand, augmix"),
        ("augment: {policy: rand, policy_ops: 0}", "augment.policy_ops is 0, expected 1 or more, or null"),
        (
            "augment: {policy: augmix, policy_magnitude: 9}",
            "augment.policy_magnitude is 9.0, expected a number in [0, 1]",
        ),
        ("augment: {policy: trivial, policy_ops: 2}", "augment.policy_ops is given, but augment.policy is trivial"),
        ("augment: {policy_magnitude: 0.5}", "augment.policy_magnitude is given, but augment.policy is none"),
        ("augment: {policy: rand, consistency: 12}", "augment.consistency is 12, but augment.policy is rand"),
        ("augment: {policy: augmix, consistency: -1}", "augment.consistency is -1.0, expected a weight"),
        (
            "augment: {policy: augmix, consistency: 12}\nmix: {name: mixup}",
            "augment.consistency is 12 and mix.name is mixup",
        ),
        ("augment: {cutout: 8, until: 0}", "augment.until is 0.0, expected a share in (0, 1]"),
        ("augment: {crop_padding: 4, flip: random, until: 0.9}", "augment.until is 0.9, but nothing is on"),
        ("mix: {name: cutmix, alpha: 0}", "mix.alpha is 0.0, expected a number above 0"),
        ("mix: {name: mixup, p: 0}", "mix.p is 0.0, expected a probability above 0"),
        ("mix: {alpha: 1}", "mix.alpha is given, but mix.name is none"),
        ("mix: {p: 0.5}", "mix.p is given, but mix.name is none"),
        ("augment: {crop_padding: 32}", "augment.crop_padding is 32, expected less than image_size 32"),
        ("optimizer: {name: adam, nesterov: true}", "optimizer.nesterov needs optimizer.name sgd"),
        ("schedule: {name: multistep}", "schedule.milestones is empty"),
        (
            "schedule: {name: onecycle, warmup: 3}",
            "schedule.warmup is 3, but onecycle has its own rise",
        ),
        ("val_size: 0\nschedule: {name: plateau}", "schedule.name is plateau and val_size is 0"),
        ("budget: null\nmodel: {width: auto}", "model.width is auto and budget is null"),
        ("batch_size: 1", "batch_size is 1, expected 2 or more"),
        ("- a list", "holds a list, expected the options of a recipe"),
        ("a: [", "cannot be read as YAML"),
        ("epochs: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line_that_names_the_option(text, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, text + "\n"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: many", "epochs is 'many', expected int"),
        ("budget: many", "budget is 'many', expected one of: int, null"),
        ("tta: twice", "tta is 'twice', expected one of none, flip, flip-shift, crops"),
        ("model: {width: wide}", "model.width is 'wide', expected one of: int, one of auto, null"),
        ("model: {stages: [3]}", "model.stages is '[3]', expected one of: list[StageConfig], null"),
        (
            "model: {name: residual, stages: [{widht: 3}]}",
            "model.stages is \"[{'widht': 3}]\", expected one of: list[StageConfig], null; "
            "Option 'widht' is not accepted",
        ),
        ("model: {name: residual, stages: [{depth: 0}]}", "model.stages.depth is 0, expected 1 or more"),
        *(
            (f"model: {{stages: [{{{name}: null}}]}}", f"model.stages.{name} is null, expected a value, or no such key")
            for name in (one.name for one in fields(StageConfig))
        ),
        (
            "model: {name: residual, stages: [{se: 1, eca: true}]}",
            "model.stages has more than one of se, eca and cbam: a block has one gate at most",
        ),
    ],
)
def test_what_the_parser_refuses_is_said_in_the_words_of_a_recipe(text, message, tmp_path):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_recipe(recipe(tmp_path, text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer.momemtum", "1"], "--optimizer.momemtum is not an option (did you mean --optimizer.momentum?)"),
        (["--experiment", "[&a 1, *a]"], "the command line: '[&a 1, *a]' cannot be a value: it has an alias"),
        (["--hepl"], "--hepl is not an option (did you mean --help?)"),
        (["--epochs"], "--epochs"),
        (["--epochs", "0"], "epochs is 0, expected 1 or more"),
        (["--ema", "1"], "ema is 1.0, expected a decay in [0, 1)"),
        (["--swa", "2"], "swa is 2.0, expected a share in [0, 1]"),
        (["--swa", "0.5", "--ema", "0.9"], "two averages of the same weights: leave one of them out"),
        (["--optimizer.sam", "-1"], "optimizer.sam is -1.0, expected a distance, or 0 for none"),
        (["--distill.cached", "true"], "distill.teachers is empty: name a teacher"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, "epochs: 3\n"), options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["nowhere.yaml", "1e400"])  # the second is infinity to the parser
def test_what_is_neither_options_nor_a_file_is_no_section(value, tmp_path):
    path = recipe(tmp_path, f"optimizer: {value}\n")
    expected = "options of its own, such as optimizer.name, or a file that holds them"
    with pytest.raises(ConfigError, match=f"^{path}: optimizer is '{value}', expected {expected}$"):
        load_recipe(path)
    expected = "options of its own, or a file that holds them"
    with pytest.raises(ConfigError, match=f"^optimizer is '{value}', expected {expected}$"):
        load_recipe(recipe(tmp_path, ""), ["--optimizer", value])


@pytest.mark.parametrize("strong", ["rotation", "hue", "erase_p", "cutout"])
def test_a_share_after_which_strong_augmentation_stops_needs_some_or_mixing(strong, tmp_path):
    augment = AugmentConfig(until=0.5, **{strong: 1 if strong in ("rotation", "cutout") else 0.5})
    assert Config(augment=augment).augment.until == 0.5
    assert load_recipe(recipe(tmp_path, "augment: {until: 0.5}\nmix: {name: ricap}\n")).augment.until == 0.5


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_recipe(tmp_path / "nowhere.yaml")


# Recipes that budgetnet brings, and folders of runs


def test_a_recipe_is_a_file_or_one_that_budgetnet_brings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(Path("quick")) == find_recipe(Path("quick.yaml")) == BROUGHT / "quick.yaml"
    assert find_recipe(Path("unknown")) == Path("unknown")
    for misspelt in ("quik", "quik.yaml"):
        with pytest.raises(ConfigError, match=rf"^{misspelt} is not there, nor a recipe .* \(did you mean quick\?\)$"):
            find_recipe(Path(misspelt))
    assert find_recipe(Path("mine/quik.yaml")) == Path("mine/quik.yaml"), "which is no name"
    assert load_recipe(Path("quick")) == load_recipe(BROUGHT / "quick.yaml") != Config()
    for elsewhere in ("nowhere/quick.yaml", "nowhere/quick", "quick.txt"):
        with pytest.raises(ConfigError, match=rf"^{elsewhere} is not there; `quick` alone is the recipe of that name"):
            find_recipe(Path(elsewhere))
    Path("quick.yaml").write_text("epochs: 3")
    assert find_recipe(Path("quick.yaml")) == Path("quick.yaml")
    assert load_recipe(Path("quick.yaml")).epochs == 3


def test_a_folder_is_no_recipe_and_the_folder_of_a_run_says_where_its_recipe_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "runs/first", "quick", "quick.yaml"):
        Path(folder).mkdir(parents=True)
    Path("runs/first/config.yaml").write_text("epochs: 3")
    with pytest.raises(ConfigError, match=r"^mine is a folder, expected a recipe: a YAML file, or a name, such"):
        find_recipe(Path("mine"))
    with pytest.raises(
        ConfigError,
        match=r"^runs/first is the folder of a run: `budgetnet train --resume --output runs/first` continues it, and "
        r"its recipe is runs/first/config\.yaml$",
    ):
        find_recipe(Path("runs/first"))
    for name in ("quick", "quick.yaml"):
        assert find_recipe(Path(name)) == BROUGHT / "quick.yaml", "a folder that bears its name does not hide a recipe"


def test_a_run_is_called_by_its_recipe_and_when_it_began(monkeypatch):
    strftime, moment = time.strftime, (2026, 11, 29, 21, 5, 9, 6, 333, 0)
    monkeypatch.setattr(time, "strftime", lambda form: strftime(form, moment))
    assert run_folder(Path("recipes/quick.yaml")) == Path("runs/quick-20261129-210509")


# The configuration that a file of a run holds


def test_a_record_gives_the_configuration_that_it_is_of():
    config = load_recipe(RECIPES[0])
    assert config_from_record(asdict(config), "x.json") == config
    assert config_from_record({"epochs": 3}, "x.json", ["--epochs", "4", "--optimizer.lr=2"]) == Config(
        epochs=4, optimizer=OptimizerConfig(lr=2)
    )
    assert config_from_record({}, "x.json") == Config()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"optimizer": "section.yaml"}, "x.json: optimizer is 'section.yaml', expected options of its own"),
        ({"optimizer": None}, "x.json: optimizer is None, expected options of its own"),
        ({"epoch": 3}, "x.json: epoch is not an option (did you mean epochs?)"),
        ({"epochs": None}, "x.json: epochs is null, expected a value, or no such line"),
        ({"experiment": "[&a [1], *a]"}, "x.json: '[&a [1], *a]' cannot be a value: it has an alias"),
    ],
)
def test_a_record_that_is_none_is_refused_by_its_name(record, message, tmp_path, monkeypatch):
    (tmp_path / "section.yaml").write_text("lr: 1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        config_from_record(record, "x.json")


def test_an_option_is_required_by_its_whole_name():
    for name in ("epochs", "optimizer.lr", "model.stages"):
        require_option(name, "study.yaml")
    for name, message in (
        ("optimizer.rl", "optimizer.rl is not an option (did you mean optimizer.lr?)"),
        ("qqq", "qqq is not an option"),
        ("epoch", "epoch is not an option (did you mean epochs?)"),
        ("optimizer", "optimizer has options of its own: name one of them, as optimizer.name"),
    ):
        with pytest.raises(ConfigError, match="^" + re.escape(f"study.yaml: {message}") + "$"):
            require_option(name, "study.yaml")


# Command lines


@pytest.mark.parametrize("form", [["--optimizer", "sgd.yaml"], ["--optimizer=sgd.yaml"]])
def test_a_section_may_be_a_file_on_the_command_line(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, "epochs: 3")
    Path("sgd.yaml").write_text("lr: 0.7")
    assert load_recipe(path, [*form, "--optimizer.momentum", "0.6"]).optimizer == OptimizerConfig(lr=0.7, momentum=0.6)
    assert load_recipe(path, ["--experiment", "sgd.yaml"]).experiment == "sgd.yaml"
    Path("plateau.yaml").write_text("name: plateau\npatience: 2e1\n")  # as in a recipe
    assert load_recipe(path, [*form, "--schedule", "plateau.yaml", "--epochs", "4"]).schedule.patience == 20
    assert load_recipe(path, [*form, "--epochs", "4"]).epochs == 4
    Path("sgd.yaml").write_text("[&a [1], *a]")
    with pytest.raises(ConfigError, match=r"sgd\.yaml cannot be read as YAML: it has an alias"):
        load_recipe(path, form)


@pytest.mark.parametrize("form", [["--optimizer", "{lr: 0.7}"], ["--optimizer={lr: 0.7}"]])
def test_a_section_may_be_written_out_on_the_command_line(form, tmp_path):
    assert load_recipe(recipe(tmp_path, "epochs: 3"), form).optimizer == OptimizerConfig(lr=0.7)


def test_a_command_line_may_have_options_of_its_own_and_name_the_recipe(tmp_path):
    parser = ArgumentParser(exit_on_error=False, print_config=None)
    add_options(parser)
    parser.add_argument("recipe_file", nargs="?")
    parser.add_argument("--device", default="auto")
    path = recipe(tmp_path, "epochs: 3\nseed: 5")
    config, others = parse_options(parser, [str(path), "--epochs", "4", "--device", "cpu"])
    assert config == Config(epochs=4, seed=5)
    assert vars(others) == {"recipe_file": str(path), "device": "cpu"}
    config, others = parse_options(parser, ["--seed=7"])
    assert config == Config(seed=7)
    assert vars(others) == {"recipe_file": None, "device": "auto"}


def test_dashes_in_the_names_of_options_are_underscores_and_elsewhere_they_stay(tmp_path):
    path = recipe(tmp_path, "epochs: 3")
    for form in (["--val-size", "7", "--experiment", "a-b"], ["--val_size=7", "--experiment=a-b"]):
        config = load_recipe(path, form)
        assert (config.val_size, config.experiment) == (7, "a-b")
    assert load_recipe(path, ["--tta", "flip-shift"]).tta == "flip-shift"
    with pytest.raises(ConfigError, match=r"^--lable-smoothing is not an option \(did you mean --label-smoothing\?\)$"):
        load_recipe(path, ["--lable_smoothing", "0.1"])


# Recipes of strangers


NAMED = "{class_path: evil.Config, init_args: {}}"


@pytest.mark.parametrize(
    "text",
    [
        f"augment: {NAMED}",
        "augment: section.yaml",
        f"augment: '{NAMED}'",
        f"model: {{name: residual, stages: [{NAMED}]}}",
        f"model: {{name: residual, stages: '[{NAMED}]'}}",
        'model: {name: residual, stages: "[{\\x63lass_path: evil.Config}]"}',
        "model: {name: residual, stages: [evil.Config]}",
        "augment: evil.Config",
        "epochs: !!python/name:evil.Config",
        f"label_smoothing: {NAMED}",
    ],
)
def test_a_recipe_that_names_a_class_imports_nothing(text, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\nclass Config: pass\n")
    (tmp_path / "section.yaml").write_text(NAMED)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError):
        load_recipe(recipe(tmp_path, text))
    for option in ("--augment", "--model.stages"):
        with pytest.raises(ConfigError):
            load_recipe(recipe(tmp_path, "epochs: 1"), [option, NAMED])
    assert not (tmp_path / "marker").exists()
    assert "evil" not in sys.modules


def test_a_recipe_may_be_a_section_of_a_file_and_have_dates_and_signs_as_texts(tmp_path):
    (tmp_path / "section.yaml").write_text("{flip: none, crop_padding: 2}")
    found = load_recipe(recipe(tmp_path, "augment: section.yaml\nexperiment: 2026-11-24\noptimizer: {lr: 1e-3}"))
    assert (found.augment.crop_padding, found.experiment, found.optimizer.lr) == (2, "2026-11-24", 0.001)
    assert load_recipe(recipe(tmp_path, "experiment: 'a & b: *c*, [d'")).experiment == "a & b: *c*, [d"
