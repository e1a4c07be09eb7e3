"""A network made smaller is the best part of what it was, and a network like any other."""

import contextlib
import io
import json
import pathlib
import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import small as small_targets
import torch
from torch import nn

import budgetnet
from budgetnet import checkpoint, cli, compress, data, deployed, hub, models, runs, splits, start
from budgetnet.classifier import Classifier
from budgetnet.config import ModelConfig, StageConfig
from budgetnet.errors import BudgetError, CheckpointError, ConfigError, Interrupted
from budgetnet.models import shrink
from budgetnet.models.blocks import BLOCKS
from budgetnet.recipe import load_recipe
from budgetnet.training import Training

SMOKE = pathlib.Path(__file__).parent.parent / "recipes" / "smoke.yaml"
SIDE = 16
KINDS = {kind: {} for kind in BLOCKS} | {
    "bottleneck": {"expansion": 2},
    "pyramid": {"widen": 2},
    "inverted": {"expansion": 2},
    "convnext": {"expansion": 2, "activation": "gelu"},
    "basic, separable": {"separable": True},
    "bottleneck, grouped": {"expansion": 2, "groups": 4},
    "inverted, gated": {"expansion": 2, "se": 4},
}


def residual(kind: str) -> ModelConfig:
    """Two stages of a kind of block, 8 and 8 wide, after a stem of two convolutions."""
    block = kind.partition(",")[0]
    return ModelConfig(
        name="residual",
        stem=2,
        stages=[StageConfig(block=block, depth=1, width=8, stride=s, **KINDS[kind]) for s in (1, 2)],
    )


NETWORKS = {kind: residual(kind) for kind in KINDS} | {
    "whitened_cnn": ModelConfig(name="whitened_cnn", width=8),
    "whitened_cnn_large": ModelConfig(name="whitened_cnn_large", width=8),
    "mobilenet_v2": ModelConfig(name="mobilenet_v2", width=4),
}


def built(config: ModelConfig, seed: int = 0) -> nn.Module:
    """The network as if it had been trained: nothing in it is 0 or 1 any more."""
    torch.manual_seed(seed)
    network = models.build(config, 4, image_size=SIDE).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
    return network


IMAGES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(network: nn.Module) -> torch.Tensor:
    return network(IMAGES)


# Channels


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_that_are_kept_compute_what_they_did_while_the_others_were_zero(name):
    config = NETWORKS[name]
    network, masked = built(config), built(config)
    places = shrink.places(network)
    assert places, "there is nothing to take out"
    counts = [max(2, n // 2) for n in (network.get_submodule(place.producer).out_channels for place in places)]
    for place, count in zip(places, counts, strict=True):
        kept = shrink.importance(masked, place).argsort(descending=True)[:count]
        mask = torch.zeros(masked.get_submodule(place.producer).out_channels)
        mask[kept] = 1

        def hook(module, inputs, mask=mask):
            (x,) = inputs
            return x * (mask if x.ndim == 2 else mask[:, None, None])

        masked.get_submodule(place.consumer).register_forward_pre_hook(hook)
    shrink.reduce(network, counts, None, trained=True)
    assert not torch.allclose(logits(network), logits(built(config)), atol=1e-4)
    torch.testing.assert_close(logits(network), logits(masked), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_configuration_alone_builds_a_network_of_the_same_shapes_that_can_be_trained(name):
    network = built(NETWORKS[name])
    channels = shrink.fewer_channels(network, 0.5)
    shrink.reduce(network, channels, None, trained=True)
    ranks = shrink.lower_ranks(network, 0.4)
    shrink.reduce(network, None, ranks, trained=True)
    config = replace(NETWORKS[name], channels=channels, ranks=ranks)
    anew = models.build(config, 4, image_size=SIDE)
    checkpoint.load_strictly(anew, network.state_dict(), "it", "the one that is built")
    assert torch.equal(logits(anew.eval()), logits(network))
    assert models.count_parameters(anew) == models.count_parameters(network)
    assert models.count_parameters(anew) < models.count_parameters(built(NETWORKS[name]))
    anew.train()(IMAGES).square().sum().backward()
    assert all(p.grad is not None for p in anew.parameters() if p.requires_grad)
    assert sum(row.parameters for row in models.summarize(anew, SIDE)) == models.count_parameters(anew)


@pytest.mark.parametrize("name", ["whitened_cnn", "bottleneck"])
def test_nothing_changes_without_sparsity_and_at_full_rank(name):
    network = built(NETWORKS[name])
    before = logits(network)
    channels, ranks = shrink.fewer_channels(network, 0), shrink.lower_ranks(network, 1)
    assert set(ranks) == {0}, "two convolutions of full rank have more weights than one"
    shrink.reduce(network, channels, ranks, trained=True)
    assert torch.equal(logits(network), before)
    # And where they are made all the same, they compute the same.
    full = [min(len(conv.weight), conv.weight[0].numel()) for _, conv in shrink.convolutions(network)]
    shrink.reduce(network, None, full, trained=True)
    torch.testing.assert_close(logits(network), before, rtol=1e-3, atol=1e-4)


def test_channels_on_a_residual_stream_before_gates_and_before_groups_stay():
    def producers(kind):
        return [place.producer for place in shrink.places(built(residual(kind)))]

    assert producers("basic") == ["conv1", "layer1.0.conv1", "layer2.0.conv1"]
    assert producers("bottleneck, grouped") == ["conv1"]
    assert producers("basic, separable") == ["conv1", "layer1.0.pointwise1", "layer2.0.pointwise1"]
    assert producers("inverted") == ["conv1", "layer1.0.expand.0", "layer2.0.expand.0"]
    assert producers("inverted, gated") == ["conv1"]


@pytest.mark.parametrize(
    ("channels", "sparsity", "left"),
    [
        (64, 0.3, 48),
        (64, 0.5, 32),
        (256, 0.7, 80),
        (64, 0.99, 8),
        (10, 0.5, 5),
        (10, 0.99, 2),
        (8, 0.3, 6),
        (2, 0.5, 2),
    ],
)
def test_a_share_of_the_channels_goes_and_what_is_left_are_eights_where_there_are_many(channels, sparsity, left):
    assert shrink._kept(channels, sparsity) == left


def test_the_channels_that_count_are_those_that_are_scaled_most_and_read_most():
    network = built(NETWORKS["basic"])
    place = shrink.places(network)[1]
    with torch.no_grad():
        network.layer1[0].conv2.weight[:, 3] *= 100
        network.layer1[0].bn1.weight[5] *= 100
        network.layer1[0].bn1.weight[6] = 0
    scores = shrink.importance(network, place)
    assert set(scores.topk(2).indices.tolist()) == {3, 5}
    assert scores.argmin() == 6


# Ranks


def test_a_factored_convolution_is_the_best_approximation_of_its_rank():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, 3, stride=2, padding=1)
    matrix = conv.weight.detach().flatten(1).numpy()
    u, s, v = np.linalg.svd(matrix)
    for rank in (1, 4, 10):
        factored = shrink.Factored(conv, rank)
        factored.approximate(conv)
        product = factored[1].weight[:, :, 0, 0] @ factored[0].weight.flatten(1)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        np.testing.assert_allclose(product.detach().numpy(), best, atol=1e-5)
        # No other of that rank is nearer: what is left over are the other singular values (Eckart and Young).
        error = np.square(product.detach().numpy() - matrix).sum()
        assert error == pytest.approx(np.square(s[rank:]).sum(), abs=1e-5)
        x = torch.randn(2, 6, 9, 9)
        direct = nn.functional.conv2d(x, product.view_as(conv.weight), conv.bias, 2, 1)
        torch.testing.assert_close(factored(x), direct, rtol=1e-4, atol=1e-5)


def test_convolutions_stay_whole_where_two_would_have_more_weights():
    network = built(NETWORKS["whitened_cnn"])
    for share in (0.1, 0.5, 0.9, 1.0):
        for (_, conv), rank in zip(shrink.convolutions(network), shrink.lower_ranks(network, share), strict=True):
            outputs, inputs = len(conv.weight), conv.weight[0].numel()
            asked = max(1, int(share * min(outputs, inputs) + 0.5))
            assert rank in (0, asked)
            assert bool(rank) == (asked * (inputs + outputs) < inputs * outputs)


# Configurations that do not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": [1]}, r"model\.channels has 1 numbers, but the network has 6 places to take channels from: gro"),
        ({"channels": [9, 8, 8, 8, 8, 8]}, r"model\.channels has 9 for group1\.conv1, which has 8: give at most that"),
        (
            {"ranks": [1, 2]},
            r"model\.ranks has 2 numbers, but the network has 6 convolutions that can be factored: gro",
        ),
        ({"ranks": [9, 0, 0, 0, 0, 0]}, r"model\.ranks has 9 for group1\.conv1, whose full rank is 8: give at most"),
    ],
)
def test_numbers_that_do_not_fit_the_network_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        models.build(ModelConfig(name="whitened_cnn", width=8, **options), 10)


def test_numbers_that_mean_nothing_are_refused_whatever_the_network():
    with pytest.raises(ConfigError, match=r"model\.channels is \[0\], expected numbers of 1 or more"):
        ModelConfig(channels=[0])
    with pytest.raises(ConfigError, match=r"model\.ranks is \[-1\], expected numbers of 0 or more"):
        ModelConfig(ranks=[-1])
    with pytest.raises(ConfigError, match=r"model\.ranks is given and model\.width is auto: give the width that they"):
        ModelConfig(width="auto", ranks=[1])


def test_a_smaller_network_over_the_budget_is_told_without_a_width_that_would_fit():
    config = ModelConfig(name="whitened_cnn", width=8, channels=[8, 8, 32, 32, 32, 32])
    with pytest.raises(BudgetError, match=r"over the budget of 100; raise the budget or choose another network"):
        models.build(config, 10, budget=100)


# The journey


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the digits that has learnt something."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    budgetnet.train(SMOKE, output=folder, epochs=4, track=False, report=False, quiet=True)
    return folder


QUIET = ["--no-track", "--no-report"]


def halving(run: pathlib.Path) -> list[str]:
    """The command that makes `small`."""
    options = ["--sparsity", "0.5", "--rank", "0.6", "--epochs", "1", "--output", str(run.parent / "small"), *QUIET]
    return ["compress", str(run), *options]


@pytest.fixture(scope="module")
def printed(run):
    """What that command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(halving(run)) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def small(run, printed):
    """The run with half of its channels, of lower rank, trained further."""
    return run.parent / "small"


def test_compress_prints_a_table_against_the_original(printed, small):
    table = printed[printed.index("original  compressed") :].splitlines()
    assert [line.split("  ")[0] for line in table[1:8]] == [
        "parameters",
        "million mult-adds",
        "file in MB",
        "validation accuracy",
        "test accuracy",
        "ms, 1 image",
        "ms, 64 images",
    ]
    assert "5,478" in table[1]
    assert "(at first " in table[4]
    assert "times as fast" in table[7]
    assert all(len(line) <= 80 for line in table[:8])
    assert f"everything is in {small}" in printed


def test_files_in_other_numbers_of_bits_are_not_compared(small):
    record = json.loads((small / "compressed.json").read_text())
    record["original"]["bytes"] = 2 * record["original"]["parameters"] + 500
    (line,) = (line for line in compress.render(record).splitlines() if line.startswith("file in MB"))
    assert line.endswith("in 16 and in 32 bits")


def test_a_smaller_run_says_from_what_it_was_made_and_costs_less(run, small):
    record = json.loads((small / "compressed.json").read_text())
    before, after = checkpoint.load(run), checkpoint.load(small)
    assert record["original"]["parameters"] == before.parameters
    assert record["compressed"]["parameters"] == after.parameters < before.parameters / 1.5
    assert record["compressed"]["bytes"] == (small / "best.safetensors").stat().st_size
    assert record["asked"] == {"sparsity": 0.5, "rank": 0.6, "distill_into": None}
    # The scores are those of the two runs: nothing was tested again.
    for kind, folder in (("original", run), ("compressed", small)):
        assert record[kind]["test_accuracy"] == runs.read(folder).find("final.test_accuracy", float)
    assert after.provenance["start"]["parameters"] == before.parameters
    assert after.provenance["start"]["val_accuracy"] == before.provenance["val_accuracy"]
    assert runs.read(small).find("tags.start", str) == after.provenance["start"]["sha256"]
    assert record["compressed"]["val_accuracy"] > 0.3
    card = hub.card("small", after, None)
    assert (
        f"It was made from one of {before.parameters:,} parameters, by taking channels out and by lowering the rank of "
        "convolutions." in card
    )


def test_a_smaller_run_is_evaluated_inspected_resumed_and_exported_like_any_other(small, tmp_path, capsys):
    assert cli.main(["evaluate", str(small), "--split", "val", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["accuracy"] == pytest.approx(checkpoint.load(small).provenance["val_accuracy"], abs=0.011)
    assert cli.main(["inspect", str(small)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "conv1 4 of 8 channels" in shown
    assert "rank" in shown
    assert "start: sha256" in shown
    file = tmp_path / "small.onnx"
    assert cli.main(["export", str(small), "--output", str(file), "--limit", "50"]) == 0
    model = checkpoint.load(small)
    images = data.load("digits", None).test.images[:20]
    asked = onnxruntime.InferenceSession(file)
    (found,) = asked.run(None, {"images": images.permute(0, 2, 3, 1).contiguous().numpy()})
    np.testing.assert_allclose(found, model.predict_proba(images), atol=1e-4)
    longer = shutil.copytree(small, tmp_path / "longer")
    assert cli.main(["train", "--resume", "--output", str(longer), "--epochs", "2", *QUIET, "--quiet"]) == 0
    assert len(runs.read(longer).rows) == 2


def test_the_same_command_finds_its_work_done_and_another_is_refused(run, small, capsys):
    first = json.loads((small / "compressed.json").read_text())
    assert cli.main([*halving(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["compressed"] == first["compressed"]
    assert cli.main([*halving(run), "--rank", "0.5"]) == 1
    assert "but the run in" in capsys.readouterr().err


def test_a_command_that_is_stopped_goes_on_and_comes_to_the_same(run, small, tmp_path):
    request = compress.Request(model=run, sparsity=0.5, rank=0.6, options=["--epochs", "1"])
    stops = iter([False] * 30 + [True] * 1000)
    with pytest.raises(Interrupted):
        compress.compress(request, tmp_path / "x", track=False, report=False, stop=lambda: next(stops))
    compress.compress(request, tmp_path / "x", track=False, report=False)
    found, expected = (checkpoint.load(folder).network.state_dict() for folder in (tmp_path / "x", small))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_run_is_not_resumed_when_the_weights_that_it_started_from_have_changed(run, tmp_path):
    original = tmp_path / "original.safetensors"
    shutil.copy(run / "best.safetensors", original)
    request = compress.Request(model=original, sparsity=0.5, options=["--epochs", "1"])
    stops = iter([False] * 3 + [True] * 1000)
    with pytest.raises(Interrupted):
        compress.compress(request, tmp_path / "x", track=False, report=False, stop=lambda: next(stops))
    best = checkpoint.load_classifier(original)
    checkpoint.save_classifier(original, replace(best, provenance=best.provenance | {"note": "another"}))
    with pytest.raises(CheckpointError, match=r"start .*original\.safetensors has changed since .*last\.ckpt"):
        compress.compress(request, tmp_path / "x", track=False, report=False)


def test_a_student_learns_from_the_model_and_from_the_same_images(run, tmp_path):
    recipe = tmp_path / "student.yaml"
    recipe.write_text(
        "dataset: cifar10\nepochs: 1\nbatch_size: 64\n"
        "model: {name: residual, stages: [{block: basic, depth: 1, width: 6, stride: 4}]}\n"
    )
    folder = tmp_path / "student"
    command = ["compress", str(run), "--distill-into", str(recipe), "--output", str(folder), *QUIET]
    assert cli.main([*command, "--distill.temperature", "2"]) == 0
    config = load_recipe(folder / "config.yaml")
    before = load_recipe(run / "config.yaml")
    assert config.distill.teachers == [str(run)]
    assert config.distill.temperature == 2
    assert (config.dataset, config.val_size, config.split_seed) == ("digits", before.val_size, before.split_seed)
    made = checkpoint.load(folder)
    assert len(made.provenance["teachers"]) == 1
    assert "It learnt from what another network said of the training images" in hub.card("student", made, None)


def test_less_is_trained_at_a_lower_rate_unless_options_say_otherwise(run):
    before = load_recipe(run / "config.yaml")
    _, config = compress.plan(compress.Request(model=run, sparsity=0.5))
    assert config.epochs == 1  # a quarter of four
    assert config.optimizer.lr == pytest.approx(before.optimizer.lr / 3)
    assert config.schedule.period == pytest.approx(before.schedule.period / 4)
    options = ["--epochs", "5", "--optimizer.lr=0.02", "--schedule.name", "cosine"]
    _, config = compress.plan(compress.Request(model=run, sparsity=0.5, options=options))
    assert (config.epochs, config.optimizer.lr, config.schedule.name) == (5, 0.02, "cosine")
    assert config.start == str(run)
    assert config.seed == before.seed


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "what shall become of {run}? give --sparsity or --rank, or both, or --distill-into RECIPE"),
        (["--sparsity", "1"], "sparsity is 1, expected a share of the channels in [0, 1)"),
        (["--sparsity", "-0.1"], "sparsity is -0.1, expected a share of the channels in [0, 1)"),
        (["--rank", "0"], "rank is 0, expected a share of the full rank in (0, 1]"),
        (["--rank", "nan"], "rank is nan, expected a share of the full rank in (0, 1]"),
        (["--sparsity", "0"], "{run} has 5,478 parameters, and 5,478 would be no fewer: give more --sparsity, or less"),
        (["--sparsity", "0.5", "--distill-into", str(SMOKE)], "--distill-into trains another network, --sparsity and"),
        (["--distill-into", str(SMOKE)], "5,478 would be no fewer: choose a smaller network"),
        (["--distill-into", str(SMOKE), "--distill.teachers", "[x]"], "leave out --distill.teachers"),
        (["--rank", "0.5", "--model.width", "4"], "--model.width is given, but the network and its weights are those"),
        (["--rank", "0.5", "--start=x"], "--start is given, but the network and its weights are those of {run}"),
        (["--rank", "0.5", "--epoch", "4"], "--epoch is not an option (did you mean --epochs?)"),
        (["--rank", "0.5", "--val-size", "100"], "val_size is 100, but {run} was trained with 200: images that are"),
        (["--rank", "0.5", "--dataset", "cifar10"], "{run} was trained on other data than these"),
    ],
)
def test_mistakes_are_told_in_a_line(options, message, run, tmp_path, capsys, monkeypatch):
    whole = data.load("digits", None)
    other = replace(whole, classes=("a", "b"), checksum="0" * 64)
    monkeypatch.setattr(data, "load", lambda name, *_, **__: whole if name == "digits" else other)
    assert cli.main(["compress", str(run), *options, "--output", str(tmp_path / "x"), *QUIET]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(run=run) in line
    assert not (tmp_path / "x").exists()


def made(folder: pathlib.Path, model: Classifier, **changes) -> pathlib.Path:
    """A model file in a folder of its own."""
    folder.mkdir()
    checkpoint.save_classifier(folder / "best.safetensors", replace(model, **changes))
    return folder


def test_models_that_cannot_be_made_smaller_are_refused(run, small, tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"small is factored already \(--rank\): give what it was made from, and both"
    ):
        compress.plan(compress.Request(model=small, rank=0.5))
    model = checkpoint.load(run)
    with pytest.raises(ConfigError, match="does not say how it was trained: give a finished run"):
        compress.plan(compress.Request(model=made(tmp_path / "a", model, provenance={}), rank=0.5))
    with pytest.raises(CheckpointError, match=r"nor is there runs/nowhere: give a model file or a run's folder"):
        compress.plan(compress.Request(model=pathlib.Path("nowhere"), rank=0.5))
    old = tmp_path / "old.pth"
    old.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"old\.pth is no run folder and no \.safetensors file: give a finished"):
        compress.plan(compress.Request(model=old, rank=0.5))
    monkeypatch.setattr(shrink, "places", lambda network: [])
    with pytest.raises(
        ConfigError, match="residual has no channels that could go alone, without those of other layers"
    ):
        compress.plan(compress.Request(model=run, sparsity=0.5))
    monkeypatch.setattr(shrink, "convolutions", lambda network: [])
    with pytest.raises(ConfigError, match="residual has no convolutions that could be factored: try --distill-into"):
        compress.plan(compress.Request(model=run, rank=0.5))


def test_a_folder_of_the_hub_is_a_model_like_a_run(run, tmp_path):
    hub.write(tmp_path, checkpoint.load(run), run)
    _, config = compress.plan(compress.Request(model=tmp_path, sparsity=0.5))
    assert config.start == str(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "secret.yaml"}, r"best\.safetensors: optimizer is 'secret\.yaml', expected options of its own"),
        ({"epochs": "many"}, r"epochs is 'many', expected int"),
        ({"epochs": "&a [*a]"}, r"best\.safetensors: '&a \[\*a\]' cannot be a value: it has an alias"),
        ({"epoch": 3}, r"best\.safetensors: epoch is not an option \(did you mean epochs\?\)"),
    ],
)
def test_a_recipe_that_no_training_wrote_is_refused(changes, message, run, tmp_path):
    model = checkpoint.load(run)
    provenance = model.provenance | {"config": model.provenance["config"] | changes}
    strange = made(tmp_path / "strange", model, provenance=provenance)
    with pytest.raises(ConfigError, match=message):
        compress.plan(compress.Request(model=strange, rank=0.5))


def test_a_channel_is_taken_out_twice_but_a_factored_network_stays_as_it_is(run, small):
    smaller = checkpoint.load(small)
    state = {key: value.clone() for key, value in smaller.network.state_dict().items()}
    same = start.made_smaller(smaller, smaller.model, "it").state_dict()
    assert all(torch.equal(state[key], same[key]) for key in state)
    with pytest.raises(
        ConfigError, match="it is factored already, and its convolutions are two each: compress what it"
    ):
        start.made_smaller(smaller, replace(smaller.model, ranks=None), "it")
    half = checkpoint.load(run)
    channels = shrink.fewer_channels(half.network, 0.25)
    once = start.made_smaller(half, replace(half.model, channels=channels), "it")
    again = shrink.fewer_channels(once, 0.5)
    twice = start.made_smaller(
        replace(half, network=once, model=replace(half.model, channels=channels)),
        replace(half.model, channels=again),
        "it",
    )
    fresh = models.build(replace(half.model, channels=again), 10, image_size=32)
    checkpoint.load_strictly(fresh, twice.state_dict(), "it", "the one that is built")


def test_training_starts_from_nothing_whose_score_would_be_of_images_that_it_knows(run, tmp_path, monkeypatch):
    model, digits = checkpoint.load(run), data.load("digits", None)
    config = replace(load_recipe(run / "config.yaml"), start=str(run))
    network = models.build(config.model, 10, image_size=32)
    indices, _ = splits.split(digits.train.targets, config.val_size, config.split_seed, config.train_size)
    said = start.load(network, config, digits, indices)
    assert said["parameters"] == model.parameters
    shutil.copytree(run, tmp_path / "runs" / "named")
    monkeypatch.chdir(tmp_path)
    assert start.load(network, replace(config, start="named"), digits, indices) == said
    assert torch.equal(logits(network.eval()), logits(model.network))
    recipe = model.provenance["config"] | {"train_on_test": True}
    tested = made(tmp_path / "tested", model, provenance=model.provenance | {"config": recipe})
    with pytest.raises(ConfigError, match=r"tested was trained on the test images too: choose another, or give --t"):
        start.load(network, replace(config, start=str(tested)), digits, indices)
    with pytest.raises(ConfigError, match=r"split_seed is 3, but .*first was trained with 0: images that are held out"):
        start.load(network, replace(config, split_seed=3), digits, indices)
    start.load(network, replace(config, split_seed=3, val_size=0), digits, indices)  # nothing is held out
    with pytest.raises(
        ConfigError, match=r"other data than these of digits \(checksum \w+, found 000000000000\): give"
    ):
        start.load(network, config, replace(digits, checksum="0" * 64), indices)
    nameless = made(tmp_path / "nameless", model, provenance={})
    with pytest.raises(ConfigError, match=r"nameless does not say what it was trained on, so that nothing could be"):
        start.load(network, replace(config, start=str(nameless)), digits, indices)
    with pytest.raises(CheckpointError, match="does not fit residual: "):
        start.load(models.build(replace(config.model, stem=2), 10, image_size=32), config, digits, indices)


def test_norms_of_a_smaller_network_see_no_held_out_image_where_test_images_are_trained_on(run, tmp_path):
    model, digits = checkpoint.load(run), data.load("digits", None)
    recipe = model.provenance["config"] | {"train_on_test": True}
    tested = made(tmp_path / "tested", model, provenance=model.provenance | {"config": recipe})
    smaller = replace(model.model, channels=shrink.fewer_channels(model.network, 0.5))
    config = replace(load_recipe(run / "config.yaml"), start=str(tested), model=smaller, train_on_test=True)
    indices, held_out = splits.split(digits.train.targets, config.val_size, config.split_seed, config.train_size)
    indices = torch.cat([indices, torch.arange(len(digits.test)) + len(digits.train)])
    whole = digits.with_test_to_train()
    images = whole.train.images.clone()
    images[held_out] = 255 - images[held_out]
    assert len(held_out) > 0
    states = [
        Training(
            config, replace(whole, train=replace(whole.train, images=pixels)), indices, torch.device("cpu")
        ).network.state_dict()
        for pixels in (whole.train.images, images)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# The measured table


def test_peak_memory_is_that_of_a_process_with_the_model_beyond_one_without(run, tmp_path, monkeypatch):
    monkeypatch.setattr(small_targets, "PROCESSES", 1)
    model = checkpoint.load(run)
    file = tmp_path / "model.onnx"
    file.write_bytes(deployed.to_onnx(model, "fp32", None))
    assert small_targets.peak_memory(file) > small_targets.peak_memory(None) > 10e6


def test_docs_show_the_record():
    page = small_targets.PAGE.read_text()
    assert small_targets.with_table(page) == page, "run `make table`"
