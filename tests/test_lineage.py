"""The data of a run as MLflow records it."""

import json

import numpy as np
import pytest

from budgetnet import mlclient
from budgetnet.lineage import inputs

PARAMS = {
    "dataset": "cifar10",
    "val_size": "5000",
    "split_seed": "0",
    "train_size": "null",
    "train_on_test": "false",
    "image_size": "32",
    "optimizer.lr": "0.1",
}
TAGS = {"data_checksum": "ab" * 32, "train_images": "45000", "val_images": "5000", "test_images": "10000"}


def digests(params=None, tags=None):
    return {each.context: each.digest for each in inputs(PARAMS | (params or {}), TAGS | (tags or {}))}


@pytest.mark.parametrize(
    ("params", "tags", "other"),
    [
        ({"optimizer.lr": "0.2"}, {}, ""),
        ({}, {"train_images": "1"}, ""),
        ({"train_size": "1000"}, {}, "training"),
        ({"split_seed": "1"}, {}, "training validation"),
        ({"val_size": "100"}, {}, "training validation"),
        ({}, {"data_checksum": "cd" * 32}, "training validation test"),
    ],
)
def test_a_digest_is_another_exactly_where_the_images_are(params, tags, other):
    before, now = digests(), digests(params, tags)
    assert {context for context in before if before[context] != now[context]} == {*other.split()}
    assert len({*before.values()}) == 3
    assert {len(digest) for digest in before.values()} == {12}


@pytest.mark.parametrize(
    ("params", "contexts"),
    [
        ({}, ["training", "validation", "test"]),
        ({"val_size": "0"}, ["training", "test"]),
        ({"val_size": "0", "train_on_test": "true"}, ["training"]),
    ],
)
def test_what_a_run_has_not_is_no_input(params, contexts):
    assert [*digests(params)] == contexts


def test_a_run_that_does_not_say_what_data_it_had_has_no_inputs():
    assert inputs(PARAMS, {}) == []
    assert inputs({}, TAGS) == []


def test_schema_and_profile_are_those_that_mlflow_makes_of_the_arrays():
    params = PARAMS | {"dataset": "folder", "image_size": "8"}
    training = inputs(params, TAGS | {"train_images": "6"})[0]
    arrays = np.zeros((6, 3, 8, 8), np.uint8), np.zeros(6, np.int64)
    with mlclient.silence():
        mlclient.import_mlflow()
        import mlflow.data

        expected = mlflow.data.from_numpy(arrays[0], targets=arrays[1]).to_dict()
    assert json.loads(training.schema)["mlflow_tensorspec"].keys() == {"features", "targets"}
    for part, text in json.loads(training.schema)["mlflow_tensorspec"].items():
        assert json.loads(text) == json.loads(json.loads(expected["schema"])["mlflow_tensorspec"][part])
    found, profile = json.loads(training.profile), json.loads(expected["profile"])
    for name in ("features_shape", "targets_shape"):
        assert found[name] == profile[name]
    assert found["num_rows"] == 6


def test_an_older_run_without_counts_has_inputs_all_the_same_and_a_folder_is_not_named():
    found = inputs(PARAMS | {"dataset": "folder"}, {"data_checksum": "ab" * 32})
    assert [json.loads(each.profile) for each in found] == [{"checksum": "ab" * 32}] * 3
    assert {each.source for each in found} == {'{"uri": "folder abababababab"}'}
    assert inputs(PARAMS, TAGS)[0].source_type == "http"
