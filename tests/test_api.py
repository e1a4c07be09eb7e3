"""From Python as from the command line: the same objects, the same answers, nothing imported before it is used."""

import doctest
import importlib
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

import budgetnet
from budgetnet import cli, data
from budgetnet.classifier import Classifier, pixels_of
from budgetnet.config import Config
from budgetnet.errors import CheckpointError, ConfigError, DataError
from budgetnet.images import read_images

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, a recipe and a photo."""
    place = tmp_path_factory.mktemp("place")
    recipe = (ROOT / "recipes" / "smoke.yaml").read_text()
    (place / "smoke.yaml").write_text(recipe)
    noise = np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)
    Image.fromarray(noise).resize((300, 200)).save(place / "photo.png")
    budgetnet.train(place / "smoke.yaml", output=place / "runs" / "first", track=False, report=False, quiet=True)
    return place


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def model(place):
    return budgetnet.load(place / "runs" / "first")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None).test


# ---------------------------------------------------------------------------------------------------- the package


def run_python(program):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_else_of_weight():
    assert run_python("""
import sys
before = set(sys.modules)
import budgetnet
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
print([name for name in budgetnet.__all__ if name not in dir(budgetnet)])
""").split("\n")[:2] == ["['budgetnet']", "[]"]


def test_functions_are_functions_and_modules_modules_whatever_is_imported_first():
    assert (
        run_python(
            """
def check():
    import inspect, sys, types
    import budgetnet
    from budgetnet import evaluate, models, train
    from budgetnet.evaluate import score
    from budgetnet.train import train as loop
    assert budgetnet.train is train and inspect.isfunction(train) and "overrides" in inspect.signature(train).parameters
    assert loop is sys.modules["budgetnet.train"].train and loop is not train
    assert isinstance(evaluate, types.ModuleType) and budgetnet.evaluate is evaluate and evaluate.score is score
    assert isinstance(models, types.ModuleType) and budgetnet.models is models and models.build
    assert inspect.isfunction(budgetnet.load)

import sys
for first in (
    "from budgetnet.train import train",
    "import budgetnet.train, budgetnet.evaluate, budgetnet.models, budgetnet.api",
    "import budgetnet; budgetnet.train; import budgetnet.train",
    "from budgetnet import train, evaluate, models",
):
    for name in [name for name in sys.modules if name.split(".")[0] == "budgetnet"]:
        del sys.modules[name]
    exec(first, {})
    check()
    print("yes")
"""
        ).split()
        == ["yes"] * 4
    )


def test_a_name_that_the_package_has_not_is_an_attribute_error_and_no_import():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        budgetnet.trian  # noqa: B018
    assert not hasattr(budgetnet, "torch")


def test_every_public_name_is_there_and_documented():
    for name in budgetnet.__all__:
        assert inspect.getdoc(getattr(budgetnet, name)), name


def test_no_option_of_a_recipe_is_hidden_by_an_argument_of_train():
    own = set(inspect.signature(budgetnet.train).parameters)
    assert own & {field.name for field in fields(Config)} == set()


@pytest.mark.parametrize("name", ["budgetnet", "budgetnet.api", "budgetnet.checkpoint", "budgetnet.classifier"])
def test_the_examples_in_the_documentation_hold(name, here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # nobody's server
    monkeypatch.setitem(inspect.getmodule(budgetnet.train).__dict__, "_train", without_tracking)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 2
    assert not found.failed


def without_tracking(*args, track, **kwargs):
    return importlib.import_module("budgetnet.train").train(*args, track=False, **kwargs)


# ---------------------------------------------------------------------------------------------------- loading


def test_a_run_is_loaded_by_its_folder_its_file_and_its_name(here, model, digits):
    expected = model.logits(digits.images[:5])
    for what in ("runs/first", here / "runs" / "first", "runs/first/best.safetensors", "first"):
        assert torch.equal(budgetnet.load(what).logits(digits.images[:5]), expected)


def test_what_is_nowhere_is_told_in_a_line(here):
    with pytest.raises(CheckpointError, match=r"^tenth cannot be read: .*, nor is there runs/tenth: give a model file"):
        budgetnet.load("tenth")
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        budgetnet.load("first", device="tpu")


def test_the_hub_of_torch_finds_the_classifier_and_the_networks(here, model, digits):
    arguments = {"source": "local", "trust_repo": True, "verbose": False}
    loaded = torch.hub.load(str(ROOT), "classifier", str(here / "runs" / "first"), **arguments)
    assert isinstance(loaded, Classifier)
    assert torch.equal(loaded.logits(digits.images[:3]), model.logits(digits.images[:3]))
    network = torch.hub.load(str(ROOT), "network", "wrn_10_1", classes=7, **arguments)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


# ---------------------------------------------------------------------------------------------------- images


def test_predictions_are_those_of_the_command(here, model, capsys):
    assert cli.main(["predict", "runs/first", "photo.png", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["predictions"][0]
    assert model.predict("photo.png").tolist() == [told["label"]]
    assert model.predict_proba("photo.png").max() == told["probability"]


def test_one_photo_in_any_form_gives_the_same_probabilities(here, model):
    opened = Image.open("photo.png")
    array = np.array(opened)
    tensor = torch.from_numpy(array)
    expected = model.predict_proba("photo.png")
    assert expected.shape == (1, 10)
    assert expected.dtype == np.float32
    forms = [
        here / "photo.png",
        opened,
        opened.convert("RGBA"),
        array,
        array[None],
        array.transpose(2, 0, 1),
        array[::-1][::-1],
        tensor,
        tensor[None],
        tensor.permute(2, 0, 1),
        tensor.permute(2, 0, 1)[None],
        model_sized("photo.png"),
        ["photo.png"],
    ]
    for form in forms:
        np.testing.assert_array_equal(model.predict_proba(form), expected)
    assert opened.size == (300, 200), "what is given is left as it was"


def model_sized(path):
    return read_images(pathlib.Path(path), 32).images


def test_an_array_that_cannot_be_written_to_is_read_without_a_warning(here, model):
    small = np.asarray(Image.open("photo.png").convert("RGB").resize((model.image_size,) * 2))
    assert not small.flags.writeable
    np.testing.assert_array_equal(model.predict_proba(small), model.predict_proba(small.copy()))


def test_many_images_of_many_kinds_and_sizes_are_rows_in_their_order(here, model):
    noise = np.random.default_rng(1).integers(0, 256, (4, 50, 20, 3), np.uint8)
    parts = ["photo.png", noise, Image.open("photo.png"), [noise[0], torch.from_numpy(noise[1])]]
    rows = model.predict_proba(parts)
    assert len(rows) == 1 + 4 + 1 + 2
    np.testing.assert_array_equal(rows, np.concatenate([model.predict_proba(part) for part in parts]))
    np.testing.assert_array_equal(rows[6:], rows[1:3])
    np.testing.assert_array_equal(model.predict(parts), rows.argmax(1))


def test_an_image_is_turned_upright_and_resized_as_pillow_does():
    noise = np.random.default_rng(2).integers(0, 256, (9, 14, 3), np.uint8)
    image = Image.fromarray(noise)
    image.getexif()[0x0112] = 6  # to be turned by a quarter, clockwise
    upright = np.rot90(noise, -1)
    expected = np.array(Image.fromarray(np.ascontiguousarray(upright)).resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels_of(image, 8)[0].permute(1, 2, 0), expected)
    np.testing.assert_array_equal(pixels_of(upright, 8)[0].permute(1, 2, 0), expected)


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_what_could_have_its_channels_first_or_last_has_them_where_its_kind_has(kind):
    cube = np.arange(2 * 27, dtype=np.uint8).reshape(2, 3, 3, 3)
    seen = pixels_of(cube if kind == "array" else torch.from_numpy(cube), 3).numpy()
    np.testing.assert_array_equal(seen, cube.transpose(0, 3, 1, 2) if kind == "array" else cube)


def test_no_images_are_no_rows(model):
    assert model.predict_proba([]).shape == (0, 10)
    assert model.predict(np.zeros((0, 40, 40, 3), np.uint8)).shape == (0,)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((32, 32, 3)), r"the images are float64 \(32, 32, 3\), expected uint8 in \[0, 255\]"),
        (torch.zeros(32, 32, 3), r"the images are torch.float32 \(32, 32, 3\), expected uint8"),
        (np.zeros((32, 32), np.uint8), r"the images are uint8 \(32, 32\), expected uint8"),
        (np.zeros((32, 32, 4), np.uint8), r"of shape \(h, w, 3\)"),
        (np.zeros((1, 1, 32, 32, 3), np.uint8), r"of shape \(h, w, 3\)"),
        (np.zeros((0, 9, 3), np.uint8), r"of shape \(0, 9, 3\), expected one pixel at least"),
        (7, "found int for images, expected a path"),
        ([[1, 2]], "found int for images, expected a path"),
        (None, "found NoneType for images"),
        ("nowhere.png", "nowhere.png: no such file or folder"),
        (Image.new("F", (4, 4)), "found pixels of mode F, expected 8 bits a channel"),
    ],
)
def test_what_is_no_image_is_refused_in_a_line(images, message, model):
    with pytest.raises(DataError, match=message):
        model.predict(images)


# ---------------------------------------------------------------------------------------------------- scores


def test_the_score_is_the_share_that_is_right_and_what_the_run_says_of_itself(place, model, digits):
    run = budgetnet.runs.read(place / "runs" / "first")
    assert model.score(digits.images, digits.labels) == run.test.accuracy
    right = model.predict(digits.images) == digits.labels.numpy()
    assert model.score(digits.images.numpy(), digits.labels.tolist()) == right.mean()


@pytest.mark.parametrize("labels", [[1, 2], [[1], [2], [3]], [1.0, 2.0, 3.0], ["a", "b", "c"], [1, 2, 10], [0, 1, -1]])
def test_labels_that_are_not_one_class_an_image_are_refused(labels, model):
    with pytest.raises(DataError):
        model.score(np.zeros((3, 32, 32, 3), np.uint8), labels)


# ---------------------------------------------------------------------------------------------------- training


def test_a_mistaken_option_gets_the_message_of_the_command(here):
    with pytest.raises(ConfigError, match=r"optimizer.momemtum is not an option \(did you mean --optimizer.momentum\?"):
        budgetnet.train("smoke.yaml", output="runs/never", optimizer={"momemtum": 0.9})
    with pytest.raises(ConfigError, match="epochs"):
        budgetnet.train("smoke.yaml", output="runs/never", epochs=True)
    with pytest.raises(ConfigError, match="resume needs output"):
        budgetnet.train("smoke.yaml", resume=True)
    assert not (here / "runs" / "never").exists()


def test_options_of_every_kind_reach_the_run(here):
    stages = [{"block": "basic", "depth": 1, "width": 8}]
    run = budgetnet.train(
        "smoke.yaml",
        epochs=1,
        val_size=0,
        clip_norm=None,
        model={"name": "residual", "stages": stages},
        optimizer={"nesterov": False, "lr": 1e-2},
        track=False,
        report=False,
        quiet=True,
    )
    assert re.fullmatch(r"runs/smoke-\d{8}-\d{6}", str(run.folder))
    assert run.option("optimizer.nesterov", bool) is False
    assert run.option("optimizer.lr", float) == 0.01
    assert run.option("val_size", int) == 0
    assert run.classifier.model.stages[0].width == 8
    assert not (run.folder / "report.html").exists()
