"""What is written is read back exactly, and nothing else is read at all."""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import pathlib
import pickle
import pickletools
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import asdict
from types import SimpleNamespace
from typing import Literal, get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from budgetnet import checkpoint, models
from budgetnet.checkpoint import (
    Classifier,
    found,
    has_type,
    is_box,
    is_model,
    load,
    load_classifier,
    load_state,
    load_strictly,
    located,
    save_classifier,
    save_state,
)
from budgetnet.cifar import CIFAR10_CLASSES
from budgetnet.config import ModelConfig, OptimizerConfig, StageConfig
from budgetnet.errors import BudgetnetError, CheckpointError, ConfigError
from budgetnet.optim import make_optimizer

STAGES = [
    StageConfig(block="bottleneck", depth=1, width=4, expansion=2, se=2, activation="leaky_relu"),
    StageConfig(block="preact", depth=2, width=8, stride=2, groups=2),
]
TINY = ModelConfig(name="residual", stages=[StageConfig(depth=1, width=2)])
CONFIGS = {
    "residual": ModelConfig(name="residual", stages=STAGES, stem=2),
    "enhanced": ModelConfig(name="enhanced", width=4),
    "whitened_cnn": ModelConfig(name="whitened_cnn", width=4),
    "whitened_cnn_large": ModelConfig(name="whitened_cnn_large", width=4),
    "resnet_se": ModelConfig(name="resnet_se", width=4),
    "resnet_custom": ModelConfig(name="resnet_custom", width=4),
    "resnext29_32x4d": ModelConfig(name="resnext29_32x4d", width=32),
    "wrn_10_1": ModelConfig(name="wrn_10_1", dropout=0.2),
}


def classifier(config, classes=("cat", 'a "dog"\n', "été"), image_size=16, **changes):
    torch.manual_seed(0)
    network = models.build(config, len(classes), image_size=image_size)
    network.train()(torch.randn(8, 3, image_size, image_size))  # so that statistics are not what a new network has
    values = {
        "network": network.eval(),
        "model": config,
        "classes": classes,
        "mean": (0.1, 1 / 3, 0.47),
        "std": (0.2, 1e-3, 2 / 7),
        "image_size": image_size,
        "provenance": {"epoch": 3, "val_accuracy": 0.1 + 0.2, "config": {"seed": 0, "list": [1, None]}},
    }
    return Classifier(**values | changes)


@functools.cache
def tiny_bytes():
    with tempfile.TemporaryDirectory() as folder:
        save_classifier(pathlib.Path(folder, "m.safetensors"), classifier(TINY))
        return pathlib.Path(folder, "m.safetensors").read_bytes()


def described(found):
    """All of a classifier but the network, for comparison."""
    return (found.model, found.classes, found.mean, found.std, found.image_size, found.provenance)


def weights(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def refused(path, match, model=None):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_classifier(path, model)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


class Evil:
    """A pickle that makes a file when it is loaded by pickle."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (pathlib.Path.touch, (self.marker,))


shares = st.floats(0, 1, exclude_max=True)


# ------------------------------------------------------------------------------------- the state of a training


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda key: key != "format"), plain_values, max_size=4))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_plain_values_of_a_state_read_back_as_they_were(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "last.ckpt"
    save_state(path, state)
    found = load_state(path)
    del found["format"]
    assert found == state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_of_a_state_read_back_bit_for_bit(tmp_path, dtype):
    tensor = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    save_state(tmp_path / "s", {"t": tensor, "scalar": tensor[0, 0], "empty": tensor[:0]})
    found = load_state(tmp_path / "s")
    assert found["t"].dtype == dtype
    assert torch.equal(found["t"], tensor)
    assert torch.equal(found["scalar"], tensor[0, 0])
    assert found["empty"].shape == (0, 4)


@pytest.mark.parametrize("name", get_args(get_type_hints(OptimizerConfig)["name"]))
def test_an_optimizers_state_reads_back_into_an_optimizer(tmp_path, name):
    made = classifier(TINY).network.train()
    optimizer = make_optimizer(made, OptimizerConfig(name=name, bias_lr=2))
    made(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", {"network": made.state_dict(), "optimizer": optimizer.state_dict()})
    found = load_state(tmp_path / "s")
    load_strictly(made, found["network"], "s", "tiny")
    again = make_optimizer(made, OptimizerConfig(name=name, bias_lr=2))
    again.load_state_dict(found["optimizer"])
    torch.testing.assert_close(again.state_dict(), optimizer.state_dict(), rtol=0, atol=0)


@functools.cache
def state_bytes():
    buffer = io.BytesIO()
    torch.save({"format": 1, "network": {"w": torch.arange(64.0)}, "epoch": 3}, buffer)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()


def test_a_state_is_torchs_format_followed_by_its_sha256(tmp_path):
    (tmp_path / "s").write_bytes(state_bytes())
    assert load_state(tmp_path / "s")["epoch"] == 3


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_state_with_any_byte_changed_is_refused(tmp_path_factory, data):
    content = bytearray(state_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"flipped\.ckpt is damaged"):
        load_state(path)


@given(shares, st.binary(max_size=3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_state_cut_short_anywhere_or_longer_is_refused(tmp_path_factory, share, tail):
    path = tmp_path_factory.getbasetemp() / "cut.ckpt"
    for content in (state_bytes()[: int(share * len(state_bytes()))], state_bytes() + tail + b"\0"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="checksum does not hold"):
            load_state(path)


def test_a_state_that_holds_code_is_refused_and_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    torch.save({"format": 1, "epoch": Evil(marker)}, buffer)
    for content in (buffer.getvalue(), pickle.dumps({"format": 1, "epoch": Evil(marker)})):
        path = tmp_path / "last.ckpt"
        path.write_bytes(content + hashlib.sha256(content).digest())
        with pytest.raises(CheckpointError, match="which is never loaded") as caught:
            load_state(path)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert marker.exists()  # so the refusal was what held it back


@pytest.mark.parametrize("number", [0, 2, None, "1"])
def test_a_state_of_another_format_is_refused(tmp_path, number):
    save_state(tmp_path / "s", {"format": number})
    with pytest.raises(CheckpointError, match="expected 1: it was written by another version"):
        load_state(tmp_path / "s")


def test_the_state_before_stays_under_another_name(tmp_path):
    for epoch in (1, 2, 3):
        save_state(tmp_path / "last.ckpt", {"epoch": epoch}, keep="previous.ckpt")
    assert load_state(tmp_path / "last.ckpt")["epoch"] == 3
    assert load_state(tmp_path / "previous.ckpt")["epoch"] == 2


def test_a_state_that_is_no_dictionary_or_not_there_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save([1], buffer)
    (tmp_path / "s").write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.raises(CheckpointError, match="holds a list, expected a dictionary"):
        load_state(tmp_path / "s")
    with pytest.raises(CheckpointError, match="gone cannot be read: No such file"):
        load_state(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load_state(tmp_path)


# ------------------------------------------------------------------------------------------------ model files


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_file_rebuilds_the_classifier_bit_for_bit(tmp_path, name):
    made = classifier(CONFIGS[name])
    save_classifier(tmp_path / "best.safetensors", made)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for path in (tmp_path / "best.safetensors", tmp_path):  # the file, and the run's folder
        found = load_classifier(path)
        assert described(found) == described(made)
        assert same_weights(found.network, made.network)
        assert not any(module.training for module in found.network.modules())
        with torch.no_grad():
            assert torch.equal(found.network(images), made.network(images))
    frozen = [key for key, parameter in made.network.named_parameters() if not parameter.requires_grad]
    assert [key for key, parameter in found.network.named_parameters() if not parameter.requires_grad] == frozen


def test_weights_in_another_memory_order_are_written_alike(tmp_path):
    made = classifier(CONFIGS["enhanced"])
    made.network.to(memory_format=torch.channels_last)
    save_classifier(tmp_path / "best.safetensors", made)
    assert same_weights(load_classifier(tmp_path).network, made.network)


def test_a_narrow_file_halves_what_has_several_dimensions_and_is_read_in_32_bits(tmp_path):
    made = classifier(CONFIGS["residual"])
    save_classifier(tmp_path / "best.safetensors", made, narrow=True)
    kept = load_safetensors((tmp_path / "best.safetensors").read_bytes())
    read = load_classifier(tmp_path).network.state_dict()
    for key, value in made.network.state_dict().items():
        expected = value.half() if value.ndim > 1 else value
        assert kept[key].dtype == expected.dtype
        assert torch.equal(kept[key], expected)
        assert read[key].dtype == value.dtype
        assert torch.equal(read[key], expected.to(value.dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bfloat16])
def test_a_narrow_file_keeps_what_is_not_of_32_bits_as_it_is(tmp_path, dtype):
    made = classifier(TINY)
    made.network.register_buffer("table", torch.arange(4).reshape(2, 2).to(dtype))
    save_classifier(tmp_path / "best.safetensors", made, narrow=True)
    assert load_safetensors((tmp_path / "best.safetensors").read_bytes())["table"].dtype == dtype


def test_of_a_folder_with_a_runs_model_and_one_in_hugging_faces_layout_the_runs_is_read(tmp_path):
    for name, classes in (("best.safetensors", ("run", "b")), ("model.safetensors", ("hub", "b"))):
        save_classifier(tmp_path / name, classifier(TINY, classes=classes))
    assert load_classifier(tmp_path).classes == ("run", "b")


def test_loading_a_classifier_draws_no_random_numbers(tmp_path):
    save_classifier(tmp_path / "best.safetensors", classifier(TINY))
    before = torch.get_rng_state()
    load_classifier(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_file_is_safetensors_that_anyone_can_read(tmp_path):
    made = classifier(TINY)
    save_classifier(tmp_path / "best.safetensors", made)
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert set(file.keys()) == set(made.network.state_dict())
        assert json.loads(file.metadata()["classes"]) == list(made.classes)


@given(st.data())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_a_model_file_with_any_byte_changed_is_refused_or_means_the_same(tmp_path_factory, data):
    content = bytearray(tiny_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    position = data.draw(st.integers(0, header - 1) | st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    try:
        found = load_classifier(path)
    except CheckpointError:
        pass
    else:
        assert position < header  # JSON's white space
        path.write_bytes(tiny_bytes())
        whole = load_classifier(path)
        assert described(found) == described(whole)
        assert same_weights(found.network, whole.network)


@given(shares)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_model_file_cut_short_anywhere_is_refused(tmp_path_factory, share):
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(tiny_bytes()[: int(share * len(tiny_bytes()))])
    refused(path, "is no readable safetensors file")


def sealed(path, tensors=None, **changes):
    """A model file whose metadata someone has changed, and whose checksum holds all the same."""
    path.write_bytes(tiny_bytes())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del metadata["sha256"]
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    tensors = load_safetensors(tiny_bytes()) if tensors is None else tensors
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode() + b"\n")
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    path.write_bytes(save_safetensors(tensors, metadata | {"sha256": digest.hexdigest()}))


def test_a_sealed_file_without_changes_is_read(tmp_path):
    sealed(tmp_path / "m.safetensors")
    assert load_classifier(tmp_path / "m.safetensors").classes == ("cat", 'a "dog"\n', "été")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("image_size", "8", 8),
        ("image_size", "10000", 10_000),
        ("mean", "[0, -1, 2.5]", (0.0, -1.0, 2.5)),
        ("std", "[1, 2, 1e-9]", (1.0, 2.0, 1e-9)),
        ("std", f"[1, 2, {2**53 - 1}]", (1.0, 2.0, 2.0**53 - 1)),  # the last before floats leave out integers
    ],
)
def test_metadata_at_the_edge_of_what_it_may_be_is_read(tmp_path, key, value, expected):
    sealed(tmp_path / "m.safetensors", **{key: value})
    assert repr(getattr(load_classifier(tmp_path / "m.safetensors"), key)) == repr(expected)


def test_a_value_that_is_refused_is_shown_with_what_was_expected(tmp_path):
    path = tmp_path / "m.safetensors"
    sealed(path, image_size="7")
    refused(path, "has unusable metadata: image_size is 7, expected pixels from 8 to 10000$")
    sealed(path, mean=f"[0, 0, {2**53}]")
    refused(path, r"has unusable metadata: mean is \[0, 0, 9007199254740992\], expected 3 finite numbers$")
    sealed(path, std="[1, 2]")
    refused(path, r"has unusable metadata: std is \[1, 2\], expected 3 finite numbers above 0$")


def test_two_classes_are_enough_and_one_is_not(tmp_path):
    path = tmp_path / "m.safetensors"
    save_classifier(path, classifier(TINY, classes=("cat", "dog")))
    assert load_classifier(path).classes == ("cat", "dog")
    sealed(path, classes='["cat"]')
    refused(path, "the number of classes is 1, expected 2 or more")


@pytest.mark.parametrize("key", ["model", "classes", "mean", "std", "image_size", "provenance", "extra"])
def test_metadata_changed_without_the_checksum_is_refused(tmp_path, key):
    path = tmp_path / "m.safetensors"
    path.write_bytes(tiny_bytes())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    metadata[key] = metadata.get(key, "") + " "
    path.write_bytes(save_safetensors(load_safetensors(tiny_bytes()), metadata))
    refused(path, "is damaged: the checksum over its weights and metadata does not hold")


def model(**changes):
    return json.dumps({"name": "residual", "stages": [{"depth": 1, "width": 2}]} | changes)


def stage(**changes):
    return model(stages=[{"depth": 1, "width": 2} | changes])


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "classes": ['"cats"', "{}", "[]", '["one"]', "[1, 2, 3]", '["a", null, "c"]', "3", "null", "", "[", DEEP],
    "mean": [
        *["[0, 0]", "[0, 0, 0, 0]", "[]", "0.5", "null", "[NaN, 0, 0]", "[0, Infinity, 0]", "[0, 0, 1e999]", DEEP],
        *['["0", 0, 0]', "[true, 0, 0]", "[[0], 0, 0]", '{"0": 0, "1": 0, "2": 0}', "[0, 0, 1" + "0" * 400 + "]"],
    ],
    "std": ["[1, 1]", "[1, 1, 1, 1]", "[0, 1, 1]", "[1, -1, 1]", "[NaN, 1, 1]", "[1, 1, -Infinity]", '"111"', DEEP],
    "image_size": [
        *["0", "-16", "7", "10001", "1000000000000", "9" * 5000, "16.0", '"16"', "true", "null", "NaN", "Infinity"],
        *["[16]", DEEP],
    ],
    "provenance": ["[]", "null", '"x"', "1", "[[1, 2]]", "{", DEEP],
    "model": ["[]", "null", '""', '"residual"', "5", "{}", "{", DEEP]
    + [model(unknown=1), model(stages=None), model(stages=5), model(stages={}), model(stages=["x"]), model(stages=[[]])]
    + [model(name=name) for name in (5, None, [], {}, "", "enhanced", "no such\nnetwork", "x" * 10**5)]
    + [model(stages=None, name=name) for name in (5, None, [], {}, "", "auto", "no such\nnetwork", "x" * 10**5)]
    + [model(stages=None, name=f"wrn_{depth}_1") for depth in (6 * 10**9 + 4, "9" * 5000, 11, 16, "x")]
    + [model(stages=None, name=f"wrn_10_{factor}") for factor in (0, 2, "9" * 20, "9" * 5000)]
    + [model(width=width) for width in ("auto", "wide", 1.5, True, [], 0, -1, 10**9, 10**30)]
    + [model(stem=stem) for stem in (0, 3, "1", 1.0, None, 10**9)]
    + [model(dropout=dropout) for dropout in (float("nan"), 1, -0.1, "0", None, 0.5)]
    + [stage(**{key: value}) for key in ("depth", "width", "expansion") for value in (0, 1.5, "1", None, 10**9, 10**30)]
    + [stage(**{key: value}) for key in ("stride", "groups", "se") for value in (-1, 1.5, "1", None, [], True)]
    + [stage(block=block) for block in ("none", None, [], 1)]
    + [stage(activation="swish"), stage(activation={}), stage(se_place="nowhere"), stage(separable=1), stage(what=1)],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [pytest.param(key, value, id=f"{key}-{i}") for key, values in HOSTILE.items() for i, value in enumerate(values)],
)
def test_metadata_that_is_not_what_it_should_be_is_refused_whatever_its_checksum_says(tmp_path, key, value):
    path = tmp_path / "m.safetensors"
    sealed(path, **{key: value})
    refused(path, "metadata|network|does not fit residual|does not fit wrn")
    with pytest.raises(CheckpointError) as caught:
        load_classifier(path)
    assert len(str(caught.value)) < 1000 + len(str(path))


@pytest.mark.parametrize("key", ["model", "classes", "mean", "std", "image_size", "provenance"])
def test_metadata_that_is_missing_or_no_json_is_named(tmp_path, key):
    path = tmp_path / "m.safetensors"
    sealed(path, **{key: None})
    refused(path, f"has no {key} in its metadata")
    for value in ("{", DEEP):
        sealed(path, **{key: value})
        refused(path, f"has unreadable metadata: {key} is no JSON: ")


@pytest.mark.parametrize(
    ("value", "hint", "holds"),
    [
        *[(2, Literal[1, 2], True), (3, Literal[1, 2], False), (True, Literal[1], False), (1.0, Literal[1], False)],
        *[([1], list[int], True), ([1, True], list[int], False), ((1,), list[int], False), (None, int | None, True)],
        *[(1, float, True), (True, float, False), (float("inf"), float, False), (True, int, False), (1.0, int, False)],
        *[(StageConfig(), StageConfig, True), (StageConfig(depth=1.0), StageConfig, False)],
        *[(asdict(StageConfig()), StageConfig, False), (SimpleNamespace(**asdict(StageConfig())), StageConfig, False)],
    ],
)
def test_a_value_has_a_type_if_it_is_of_no_other_that_equals_it(value, hint, holds):
    assert has_type(value, hint) == holds


@pytest.mark.parametrize("found", [None, "budgetnet 1", "budgetnet 3", "pt"])
def test_a_model_file_of_another_format_is_refused(tmp_path, found):
    sealed(tmp_path / "m.safetensors", format=found)
    refused(tmp_path / "m.safetensors", f"has format {found!r}, expected 'budgetnet 2'")


def test_safetensors_of_someone_else_are_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(save_safetensors({"w": torch.zeros(2)}))
    refused(tmp_path / "m.safetensors", "has format None")


def test_keys_that_are_missing_extra_or_of_another_shape_or_type_are_named(tmp_path):
    path = tmp_path / "m.safetensors"
    whole = load_safetensors(tiny_bytes())
    sealed(path, {key: value for key, value in whole.items() if key != "linear.bias"})
    refused(path, r"does not fit residual: linear\.bias is missing$")
    sealed(path, whole | {"more": torch.zeros(1)})
    refused(path, r"does not fit residual: more is extra$")
    sealed(path, whole | {"linear.bias": torch.zeros(4)})
    refused(path, r"does not fit residual: linear\.bias is \(4,\), expected \(3,\)$")
    sealed(path, whole | {"linear.bias": torch.zeros(3, dtype=torch.float64)})
    refused(path, r"does not fit residual: linear\.bias is of torch\.float64, expected torch\.float32$")
    sealed(path, {})
    refused(path, "does not fit residual: it holds 0 tensors, expected one a layer or more$")
    sealed(path, {"linear.bias": whole["linear.bias"]})  # as many as the network has blocks
    refused(path, r"does not fit residual: .* is missing; ")


def test_a_network_that_images_of_the_files_size_would_not_survive_is_refused(tmp_path):
    sealed(tmp_path / "m.safetensors", model=json.dumps({"name": "whitened_cnn"}), image_size="8")
    refused(
        tmp_path / "m.safetensors", "says of its network what cannot be built: image_size is 8, expected at least 9"
    )


@pytest.mark.parametrize(
    "dtype",
    [
        *[torch.bool, torch.int8, torch.uint16, torch.uint64, torch.complex64, torch.bfloat16, torch.float64],
        *[torch.float8_e4m3fn, torch.float8_e5m2],
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
def test_weights_of_any_type_are_refused_where_they_do_not_belong(tmp_path, dtype, shape):
    sealed(tmp_path / "m.safetensors", load_safetensors(tiny_bytes()) | {"linear.bias": torch.zeros(shape).to(dtype)})
    refused(tmp_path / "m.safetensors", r"does not fit residual: linear\.bias is ")


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "what", None, 1, "F32"])
@pytest.mark.parametrize("shape", [[0, 2**62], [0, 2**63], [2**40, 2**40], [0, 2**40, 2**40], [-1], [1.5], "x", [0]])
def test_a_header_that_torch_cannot_follow_is_refused(tmp_path, dtype, shape):
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(tmp_path / "m.safetensors", "is no readable safetensors file|has format None")


@pytest.mark.parametrize("header", [b"{}", b"[]", b"null", b'{"__metadata__": null}', b'{"a":' * 1000, b"[" * 100_000])
def test_a_header_of_another_structure_is_refused(tmp_path, header):
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(tmp_path / "m.safetensors", "is no readable safetensors file|has format None")


def test_a_file_for_another_network_names_the_first_keys_and_counts_the_rest(tmp_path):
    sealed(tmp_path / "m.safetensors", model=json.dumps({"name": "resnet18"}))
    refused(tmp_path / "m.safetensors", r"does not fit resnet18: .*; .*; .* \(and \d+ more\)$")


@pytest.mark.parametrize(("missing", "more"), [(1, ""), (3, ""), (4, r" \(and 1 more\)"), (5, r" \(and 2 more\)")])
def test_three_keys_that_do_not_fit_are_named_and_the_rest_is_counted(missing, more):
    network = classifier(TINY).network
    some = dict(list(weights(network).items())[missing:])
    named = "; ".join([r"[\w.]+ is missing"] * min(missing, 3))
    with pytest.raises(CheckpointError, match=f"^here does not fit tiny: {named}{more}$"):
        load_strictly(network, some, "here", "tiny")


def test_load_strictly_copies_weights_into_a_network_that_they_fit_and_leaves_another_as_it_was():
    network = classifier(TINY).network
    before = weights(network)
    other = {key: value + 1 for key, value in before.items()}
    wrong = {key: value for key, value in other.items() if key != "linear.bias"}
    with pytest.raises(CheckpointError, match=r"here does not fit tiny: linear\.bias is missing"):
        load_strictly(network, wrong, "here", "tiny")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    load_strictly(network, other, "here", "tiny")
    assert all(torch.equal(value, other[key]) for key, value in network.state_dict().items())


def test_a_model_file_needs_no_name_and_takes_none(tmp_path):
    sealed(tmp_path / "m.safetensors")
    refused(tmp_path / "m.safetensors", "leave out --model resnet18", model="resnet18")


def test_the_model_file_is_that_of_a_run_or_of_hugging_faces_layout_or_the_file_itself(tmp_path):
    with pytest.raises(
        CheckpointError, match=f"^{tmp_path} is no run folder and no .safetensors file: give a finished"
    ):
        checkpoint.weights_file(tmp_path)
    for name in ("model.safetensors", "best.safetensors"):  # the second of which a run has
        (tmp_path / name).touch()
        assert checkpoint.weights_file(tmp_path) == checkpoint.weights_file(tmp_path / name) == tmp_path / name
    with pytest.raises(CheckpointError, match=r"old\.pth is no run folder"):
        checkpoint.weights_file(tmp_path / "old.pth")


def test_the_files_of_a_model_are_those_that_loading_it_may_read_and_those_of_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for there in (tmp_path / "runs" / "one", "runs/one", "one"):
        found = {path.resolve().relative_to(tmp_path) for path in checkpoint.files_of(there)}
        assert {pathlib.Path("runs/one", name) for name in ("", "best.safetensors", "model.safetensors")} <= found
        assert {pathlib.Path("runs/one", name) for name in ("config.yaml", "summary.json", "last.ckpt")} <= found
    assert checkpoint.files_of("who/knows") == []


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"ID,Labels\n"])
def test_a_file_that_looks_like_no_model_is_called_none_whatever_is_in_it(content, tmp_path):
    (tmp_path / "photo.png").write_bytes(content)
    refused(
        tmp_path / "photo.png", r"photo\.png is no model: give a run's folder, or a file \(\.safetensors, \.pth", SMALL
    )


def test_a_checkpoint_may_have_any_name(tmp_path):
    path = reference_file(tmp_path / "ckpt.pth", reference_network())
    old = tmp_path / "weights.bin"
    torch.save({"net": reference_network().state_dict()}, old, _use_new_zipfile_serialization=False)
    for named in (path.rename(tmp_path / "weights"), old):
        assert load_classifier(named, SMALL).image_size == 32


# ------------------------------------------------------------------------ checkpoints of the reference project


SMALL = "wrn_10_1"  # the loader is the same for every network, so a small one stands for those of the project


def reference_network(name=SMALL):
    torch.manual_seed(3)
    network = models.build(ModelConfig(name=name), 10)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(0.1 if value.is_floating_point() else 7)
    return network.eval()


def reference_file(path, network, prefix="", **changes):
    net = OrderedDict((prefix + key, value) for key, value in network.state_dict().items())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    torch.save({"net": net, "acc": 95.49, "epoch": 171, "optimizer": optimizer.state_dict()} | changes, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", [SMALL, "resnet_leaky"])
def test_a_reference_checkpoint_is_read_with_its_normalisation(tmp_path, name, prefix):
    network = reference_network(name)
    found = load_classifier(reference_file(tmp_path / "ckpt.pth", network, prefix), name)
    assert same_weights(found.network, network)
    assert not found.network.training
    assert found.model == ModelConfig(name=name)
    assert found.classes == CIFAR10_CLASSES
    assert (found.mean, found.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # as that project has them
    assert (found.image_size, found.provenance) == (32, {"acc": 95.49, "epoch": 171})


def test_a_reference_checkpoint_in_torchs_old_format_is_read(tmp_path):
    network = reference_network()
    torch.save({"net": network.state_dict()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = load_classifier(tmp_path / "old.pth", SMALL)
    assert same_weights(found.network, network)
    assert found.provenance == {}


@pytest.mark.parametrize("place", ["cuda:0", "mps", "meta", "nowhere"])
def test_weights_that_were_on_another_device_are_read_onto_the_cpu(tmp_path, place):
    network = reference_network()
    path = reference_file(tmp_path / "ckpt.pth", network)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(b"X\3\0\0\0cpu", b"X%c\0\0\0%b" % (len(place), place.encode())))
    assert place.encode() in path.read_bytes()
    assert same_weights(load_classifier(path, SMALL).network, network)


def test_a_checkpoint_of_which_torch_would_warn_is_read_in_silence_and_others_warnings_are_still_heard(tmp_path):
    path, network = tmp_path / "ckpt.pth", reference_network()
    torch.save({"net": network.state_dict()}, path, pickle_protocol=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_weights(load_classifier(path, SMALL).network, network)
        with pytest.raises(UserWarning, match="heard"):
            warnings.warn("heard", stacklevel=1)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [1, 4, 5])
def test_a_checkpoint_of_a_protocol_that_torch_does_not_check_is_refused_without_its_advice(protocol, zipped, tmp_path):
    path, content = tmp_path / "ckpt.pth", {"net": reference_network().state_dict()}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    refused(path, r"is no readable checkpoint: its pickle is of another protocol than 2, .* or 3$", SMALL)


def test_a_reference_checkpoint_needs_the_name_of_its_network(tmp_path):
    path = reference_file(tmp_path / "ckpt.pth", reference_network())
    refused(path, "does not say which network it holds: give --model NAME")
    refused(path, r"model\.name: resnet_leeky is not a network \(did you mean resnet_leaky\?\)", "resnet_leeky")
    refused(path, r"does not fit resnet18: .* is missing; .* \(and \d+ more\)", "resnet18")
    refused(path, r"does not fit wrn_10_2: layer1\.0\.shortcut\.0\.weight is missing; ", "wrn_10_2")
    refused(path, "cannot be read as --model residual: .*stages is not given", "residual")


def test_what_does_not_fit_in_a_reference_checkpoint_is_named(tmp_path):
    network, path = reference_network(), tmp_path / "ckpt.pth"
    net = weights(network)
    reference_file(path, network, net=net | {"fc.bias": torch.zeros(1)})
    refused(path, r"does not fit wrn_10_1: fc\.bias is extra$", SMALL)
    reference_file(path, network, net={key: value for key, value in net.items() if key != "linear.bias"})
    refused(path, r"does not fit wrn_10_1: linear\.bias is missing$", SMALL)
    reference_file(path, network, net=net | {"linear.bias": torch.zeros(11)})
    refused(path, r"does not fit wrn_10_1: linear\.bias is \(11,\), expected \(10,\)$", SMALL)
    reference_file(path, network, net=net | {"linear.bias": torch.zeros(10, dtype=torch.float16)})
    refused(path, r"linear\.bias is of torch\.float16, expected torch\.float32$", SMALL)
    reference_file(path, network, net=net | {"module.linear.bias": torch.zeros(10)})
    refused(path, r"module\.linear\.bias is extra$", SMALL)  # and does not quietly replace the other


@pytest.mark.parametrize("net", [None, 3, [1], {"w": 3}, {1: torch.zeros(1)}])
def test_a_checkpoint_without_weights_where_they_belong_is_refused(tmp_path, net):
    refused(reference_file(tmp_path / "c.pth", reference_network(), net=net), "expected net with the weights", SMALL)
    torch.save(reference_network().state_dict(), tmp_path / "c.pth")
    refused(tmp_path / "c.pth", "has the entries .*, expected net with the weights", SMALL)


@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_tensors_that_have_no_values_of_their_own_are_refused_by_name(tmp_path, kind):
    found = torch.zeros(2, device="meta") if kind == "meta" else torch.zeros(2).to_sparse()
    refused(reference_file(tmp_path / "c.pth", reference_network(), net={"w": found}), rf"holds torch\._utils.*{kind}")


def test_a_numpy_number_in_a_checkpoint_is_refused_by_name(tmp_path):
    path = reference_file(tmp_path / "c.pth", reference_network(), acc=np.float64(95.5))
    refused(path, r"holds numpy\.\S+, which is never loaded: only tensors, plain numbers", SMALL)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_holds_code_is_refused_and_runs_nothing(tmp_path, zipped):
    marker, path = tmp_path / "marker", tmp_path / "c.pth"
    content = {"net": reference_network().state_dict(), "acc": Evil(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(path, "which is never loaded", SMALL)
    path.write_bytes(pickle.dumps(Evil(marker)))
    refused(path, "which is never loaded", SMALL)
    assert not marker.exists()


@pytest.mark.parametrize("number", range(5))
def test_code_in_any_of_the_pickles_of_torchs_old_format_is_refused_before_torch_sees_it(tmp_path, number):
    raw, ends = reference_bytes(False), [0]
    for _ in range(5):
        *_, (_, _, stop) = pickletools.genops(raw[ends[-1] :])
        ends.append(ends[-1] + stop + 1)
    code = pickle.dumps(Evil(tmp_path / "marker"))
    (tmp_path / "c.pth").write_bytes(raw[: ends[number]] + code + raw[ends[number + 1] :])
    refused(tmp_path / "c.pth", "which is never loaded", SMALL)
    assert not (tmp_path / "marker").exists()


def test_torch_itself_refuses_code_that_was_not_rehearsed_whatever_the_environment_says(tmp_path, monkeypatch):
    marker, path = tmp_path / "marker", tmp_path / "c.pth"
    torch.save({"net": reference_network().state_dict(), "acc": Evil(marker)}, path)
    monkeypatch.setattr(checkpoint, "rehearse", lambda raw, start, room: start)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    refused(path, "is no readable checkpoint: Weights only load failed", SMALL)
    assert not marker.exists()


def test_the_state_of_a_training_is_no_model(tmp_path):
    save_state(tmp_path / "last.ckpt", {"network": {}})
    for name in (None, SMALL):
        refused(tmp_path / "last.ckpt", r"is the state of a training, .* best\.safetensors beside it", name)


@pytest.mark.parametrize(
    "content",
    [
        *[b"", b"\0", b"hello\n", b"ID,Labels\n0,3\n", b"PK", b"PK\x03\x04" + bytes(100), b"\x80\x02}", bytes(1000)],
        *[bytes(range(256)) * 4, b"\x80\x02\x8b\xff\xff\xff\x7f"],
    ],
    ids=range(10),
)
@pytest.mark.parametrize(("name", "model"), [("c.pth", SMALL), ("c.pth", None), ("m.safetensors", None)])
def test_what_is_no_checkpoint_at_all_is_refused(tmp_path, content, name, model):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "is no readable|holds the opcode LONG4, which is never loaded", model)


def test_a_model_file_under_another_name_is_refused(tmp_path):
    (tmp_path / "c.pth").write_bytes(tiny_bytes())
    refused(tmp_path / "c.pth", "is no readable checkpoint|is damaged", SMALL)


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "xml"])
def test_an_export_for_other_programs_is_refused_as_one(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(tiny_bytes())
    refused(path, "is for other programs: give the run that it was exported from")


def test_files_and_folders_that_hold_nothing_are_refused(tmp_path):
    refused(tmp_path, r"holds no best\.safetensors: give a finished run's folder")
    refused(tmp_path / "gone", "cannot be read: No such file or directory")
    (tmp_path / "best.safetensors").mkdir()
    refused(tmp_path, r"holds no best\.safetensors")


COMPRESSED, OVERLAP = "is no readable checkpoint: a compressed archive", "is no readable checkpoint: .* parts overlap"


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("says", [2_000_000, 10])
def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused_whatever_it_says(tmp_path, method, says):
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(bomb, "w", method) as archive:
        archive.writestr("c/data/0", bytes(2_000_000))
        archive.filelist[0].file_size = says
    assert bomb.stat().st_size < 20_000
    refused(bomb, COMPRESSED, SMALL)


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        ({"compress_type": zipfile.ZIP_DEFLATED}, COMPRESSED),
        ({"compress_size": 10**6}, COMPRESSED),  # would be read to the end of the file, for each of many such parts
        ({"file_size": 10**6}, COMPRESSED),
        ({"file_size": 10**6, "compress_size": 10**6}, OVERLAP),
    ],
)
def test_a_checkpoint_whose_directory_lies_about_a_part_is_refused(tmp_path, lie, match):
    path = reference_file(tmp_path / "c.pth", reference_network())
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"written anew"
        for name, value in lie.items():
            setattr(archive.filelist[-1], name, value)
    refused(path, match, SMALL)


def test_a_checkpoint_that_has_a_file_twice_is_refused(tmp_path):
    path = reference_file(tmp_path / "c.pth", reference_network())
    with zipfile.ZipFile(path, "a") as archive:
        name = archive.namelist()[0]
        content = archive.read(name)
        archive.NameToInfo.pop(name)  # so that it may be there twice without a warning
        archive.writestr(name, content)
    refused(path, OVERLAP, SMALL)


@functools.cache
def reference_bytes(zipped):
    buffer = io.BytesIO()
    state = {"net": OrderedDict(reference_network().state_dict()), "acc": 95.49, "epoch": 171}
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@given(st.booleans(), shares, st.integers(1, 255), st.booleans())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_a_damaged_reference_checkpoint_is_read_or_refused_and_never_a_crash(
    tmp_path_factory, zipped, place, flip, near_an_end
):
    content = bytearray(reference_bytes(zipped))
    # The structure lies at the start of the old format, and at both ends of the new one; weights are in between.
    position = int(place * (2000 if near_an_end else len(content)))
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    flipped = bytearray(content)
    flipped[position] ^= flip
    flipped[-1 - position] ^= flip
    for damaged in (content[:position], flipped):
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):  # these files have no checksum: some damage cannot be told
            load_classifier(path, SMALL)


# ------------------------------------------------------------------------------------------------------- names


def test_a_name_means_what_stands_there_else_the_run_of_that_name_and_else_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert found("first") is None
    with pytest.raises(CheckpointError, match=r"^first cannot be read: No such file or directory, nor is there runs/f"):
        located("first")
    pathlib.Path("runs", "first").mkdir(parents=True)
    assert located("first") == found("first") == pathlib.Path("runs/first")
    pathlib.Path("first").touch()
    assert located("first") == found("first") == pathlib.Path("first")


def test_box_means_the_model_that_budgetnet_brings_if_it_brings_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located("box") == checkpoint.box()
    assert is_box("box")
    assert is_box(checkpoint.box())
    assert not is_box("first")
    assert load().provenance == load("box").provenance == load(checkpoint.box()).provenance
    monkeypatch.setattr(checkpoint, "BOX", "no such box")
    assert not is_box("box")
    with pytest.raises(CheckpointError, match=r"^this copy of budgetnet brings no model \(.*no such box holds none\)"):
        load()


@pytest.mark.parametrize("name", ["m.safetensors", "last.ckpt", "old.pth", "m.pt"])
def test_a_file_looks_like_a_model_by_its_name(tmp_path, name):
    assert not is_model(tmp_path / name)
    (tmp_path / name).touch()
    assert is_model(tmp_path / name)


@pytest.mark.parametrize("name", ["best.safetensors", "model.safetensors"])
def test_a_folder_looks_like_a_model_by_what_it_holds(tmp_path, name):
    (tmp_path / "photo.png").touch()
    assert not is_model(tmp_path)
    assert not is_model(tmp_path / "photo.png")
    (tmp_path / name).touch()
    assert is_model(tmp_path)


def test_what_is_not_there_looks_like_a_model_if_it_is_a_run_or_the_box(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_model("box")
    assert not is_model("first")
    pathlib.Path("runs", "first").mkdir(parents=True)
    assert is_model("first")


def test_a_model_is_loaded_by_path_or_by_the_name_of_its_run_onto_a_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("runs", "first").mkdir(parents=True)
    made = classifier(TINY)
    save_classifier(pathlib.Path("runs/first/best.safetensors"), made)
    for name in ("first", "runs/first/best.safetensors"):
        assert same_weights(load(name, device="cpu").network, made.network)
    assert load(reference_file(tmp_path / "c.pth", reference_network()), model=SMALL).image_size == 32
    with pytest.raises(ConfigError, match="cuda:99"):
        load("first", device="cuda:99")
    monkeypatch.setattr(checkpoint.devices, "find", {"elsewhere": torch.device("meta")}.get)
    assert all(value.is_meta for value in load("first", device="elsewhere").network.state_dict().values())


# ------------------------------------------------------------------------------------------------- atomicity


def write_state(path):
    save_state(path, {"w": torch.zeros(50_000)})


def write_model(path):
    save_classifier(path, classifier(CONFIGS["enhanced"]))


def old_file_stays(path, write):
    path.write_bytes(b"old")
    with pytest.raises(BudgetnetError, match=f"cannot write .*{path.name}") as caught:
        write(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("write", [write_state, write_model])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_at_its_end_leaves_the_old_file_whole(tmp_path, monkeypatch, write, call):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    old_file_stays(tmp_path / "file", write)


@pytest.mark.parametrize("write", [write_state, write_model])
def test_a_write_that_fails_in_the_middle_leaves_the_old_file_whole(tmp_path, write):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        old_file_stays(tmp_path / "file", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("write", [write_state, write_model])
def test_a_new_file_takes_the_place_of_the_old_and_nothing_stays_beside_it(tmp_path, write):
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"old")
    write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    load_state(path) if write is write_state else load_classifier(path)


def test_a_file_in_a_folder_that_is_not_there_is_not_written(tmp_path):
    with pytest.raises(BudgetnetError, match="there is no folder"):
        write_state(tmp_path / "gone" / "last.ckpt")
    assert list(tmp_path.iterdir()) == []
