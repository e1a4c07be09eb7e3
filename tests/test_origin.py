"""What a model's file says of its training data, which images those were, and what must not learn from it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from budgetnet import engine, origin
from budgetnet.classifier import Classifier
from budgetnet.config import Config, ModelConfig
from budgetnet.data import Dataset
from budgetnet.errors import CheckpointError, ConfigError, DataError
from budgetnet.images import Images
from budgetnet.splits import split

N, SOURCE = 60, Path("model.safetensors")
TRAINED = {"dataset": "digits", "val_size": 10, "split_seed": 3, "train_size": 40, "train_on_test": False}


def a_dataset(n=N, side=8, classes="abcd", checksum="1" * 64):
    pixels = torch.arange(n * 3 * side * side).remainder(256).to(torch.uint8).view(n, 3, side, side)
    images = Images(pixels, torch.arange(n) % len(classes))
    return Dataset("digits", tuple(classes), images, images, (0.5,) * 3, (0.25,) * 3, checksum)


def a_classifier(classes="abcd", **provenance):
    return Classifier(
        network=nn.Sequential(nn.Flatten(), nn.Linear(192, len(classes))).eval(),
        model=ModelConfig(name="enhanced"),
        classes=tuple(classes),
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
        image_size=8,
        provenance=provenance,
    )


def of(**changes):
    return a_classifier(config=TRAINED | changes, data_checksum="1" * 64)


# What a file says


def test_a_file_says_what_was_trained_on_and_one_of_before_leaves_out_what_there_was_not():
    assert origin.trained_on(SOURCE, of()) == TRAINED | {"data_checksum": "1" * 64}
    assert origin.trained_on(SOURCE, of(train_size=None))["train_size"] is None
    old = {key: value for key, value in TRAINED.items() if key not in ("train_size", "train_on_test")}
    said = origin.trained_on(SOURCE, a_classifier(config=old, data_checksum="1" * 64))
    assert said == old | {"train_size": None, "train_on_test": False, "data_checksum": "1" * 64}
    assert origin.trained_on(SOURCE, a_classifier()) == {}


@pytest.mark.parametrize("config", ["text", [], TRAINED | {"dataset": 3}])
def test_a_file_that_says_something_else_is_refused(config):
    with pytest.raises(CheckpointError, match=r"^model\.safetensors does not say as it should .* on: \["):
        origin.trained_on(SOURCE, a_classifier(config=config, data_checksum="1" * 64))


@pytest.mark.parametrize("key", ["data_checksum", "dataset", "val_size", "split_seed", "train_on_test", "train_size"])
def test_each_thing_that_a_file_says_is_of_its_kind(key):
    wrong = "1" if key not in ("data_checksum", "dataset") else 1
    said = {"config": dict(TRAINED), "data_checksum": "1" * 64}
    (said if key == "data_checksum" else said["config"])[key] = wrong
    with pytest.raises(CheckpointError, match=rf"was trained on: \['{key}'\]$"):
        origin.trained_on(SOURCE, a_classifier(**said))


def test_a_data_set_that_there_is_not_is_refused():
    with pytest.raises(CheckpointError, match=r"was trained on: dataset$"):
        origin.trained_on(SOURCE, of(dataset="imagenet"))


# What must not learn from it


def asked(trained, checksum="1" * 64, **student):
    config = Config(dataset="digits", **{"val_size": 10, "split_seed": 3} | student)
    origin.require_unseen("it", trained, config, a_dataset(checksum=checksum))


def test_who_is_chosen_by_or_tested_on_images_that_a_model_has_learnt_must_not_learn_from_it():
    same = TRAINED | {"data_checksum": "1" * 64}
    asked(same)
    told = "^it was trained on the test images too: choose another, or give --train_on_test true, as there is no test$"
    with pytest.raises(ConfigError, match=told):
        asked(same | {"train_on_test": True})
    with pytest.raises(ConfigError, match=told):
        asked(same | {"train_on_test": True}, val_size=0)
    asked(same | {"train_on_test": True}, train_on_test=True)
    for key, value in (("val_size", 11), ("split_seed", 4)):
        told = (
            f"^{key} is {value}, but it was trained with {TRAINED[key]}: images that are held out now were trained on; "
        )
        with pytest.raises(ConfigError, match=told + "give the same$"):
            asked(same, **{key: value})
        asked(same, checksum="2" * 64, **{key: value})  # of other data nobody knows
        asked({}, **{key: value})
    asked(same, val_size=0)  # nothing is held out
    with pytest.raises(ConfigError, match="split_seed is 4"):
        asked(same, split_seed=4, train_on_test=True)


def test_data_of_other_classes_are_refused():
    origin.require_classes(SOURCE, of(), a_dataset())
    told = r"^model\.safetensors knows 4 classes \(a, b, c, \.\.\.\), but digits has 5 \(e, d, c, \.\.\.\)$"
    with pytest.raises(DataError, match=told):
        origin.require_classes(SOURCE, of(), a_dataset(classes="edcba"))


# Which images those were


def test_the_split_is_the_trainings_own_where_the_data_are_and_else_all_may_be_trained_on():
    data, trained = a_dataset(), origin.trained_on(SOURCE, of())
    for found, expected in zip(origin.known_split(data, trained), split(data.train.targets, 10, 3, 40), strict=True):
        assert torch.equal(found, expected)
    for other in (trained | {"data_checksum": "2" * 64}, {}):
        training, validation = origin.known_split(data, other)
        assert (training.tolist(), validation.tolist()) == ([*range(N)], [])


def test_some_are_the_same_each_time_from_all_over_and_all_where_there_are_fewer():
    places = torch.arange(1000, 2000)
    some = origin.some_of(places, 100)
    assert len(set(some.tolist())) == 100
    assert set(some.tolist()) <= set(places.tolist())
    assert (some < 1500).sum() > 30 < (some >= 1500).sum()
    state = torch.get_rng_state()
    assert torch.equal(some, origin.some_of(places, 100))
    assert torch.equal(state, torch.get_rng_state())
    assert origin.some_of(places[:7], 100).sort().values.tolist() == places[:7].tolist()


@pytest.mark.parametrize(
    ("n", "train_size", "most", "expected"),
    [(60, 40, None, 40), (700, None, None, 512), (60, 40, 7 * 192 + 100, 7), (60, 40, 10, 1)],
)
def test_int8_is_calibrated_on_training_images_in_the_models_normalisation(n, train_size, most, expected, monkeypatch):
    if most is not None:
        monkeypatch.setattr(origin, "_CALIBRATION_NUMBERS", most)  # fewer images where they are large
    data, trained = a_dataset(n), TRAINED | {"data_checksum": "1" * 64, "train_size": train_size}
    found = origin.calibration_images(of(), data, trained)
    assert found.dtype == torch.float32
    training, _ = split(data.train.targets, 10, 3, train_size)
    pixels = data.train.images[origin.some_of(training, expected)]
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(found, (pixels / 255 - mean) / std)


def test_int8_is_compiled_for_the_models_images_with_that_calibration(monkeypatch):
    asked, data, classifier = {}, a_dataset(), of()
    trained = origin.trained_on(SOURCE, classifier)

    def compiled(network, shape, **options):
        asked.update(options, network=network, shape=shape)
        return "engine"

    monkeypatch.setattr(engine, "compile_network", compiled)
    assert origin.quantize(classifier, data, trained) == "engine"
    assert torch.equal(asked.pop("calibration"), origin.calibration_images(classifier, data, trained))
    assert asked == {"network": classifier.network, "shape": (3, 8, 8), "precision": "int8"}
