"""The specification of a training: what it computes, what it keeps, how it stops and goes on."""

import csv
import dataclasses
import itertools
import json
import math
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from budgetnet import advice, checkpoint, data, evaluate, models, splits
from budgetnet.cli import main
from budgetnet.config import (
    AugmentConfig,
    Config,
    DistillConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ProgressiveConfig,
    ScheduleConfig,
    StageConfig,
)
from budgetnet.errors import BudgetError, CheckpointError, ConfigError, DataError, Interrupted, TrainingError
from budgetnet.logits import predict_logits
from budgetnet.metrics import read_epochs
from budgetnet.mixing import mix
from budgetnet.optim import lr_factor
from budgetnet.policies import jensen_shannon
from budgetnet.progress import Progress, summary_lines
from budgetnet.recipe import load_recipe
from budgetnet.state import restore
from budgetnet.train import _LOOK_EVERY, train
from budgetnet.training import Training
from budgetnet.usage import Usage

RECIPES = Path(__file__).parent.parent / "recipes"

TINY = Config(
    dataset="digits",
    val_size=100,
    train_size=238,
    model=ModelConfig(name="residual", stages=[StageConfig(width=8, depth=1, stride=4), StageConfig(width=8, depth=1)]),
    epochs=3,
    batch_size=32,
    augment=AugmentConfig(crop_padding=2, flip="random", rotation=5, erase_p=0.3),
    optimizer=OptimizerConfig(lr=0.05, nesterov=True),
    ema=0.9,
    checkpoint_minutes=None,
)
STEPS = math.ceil(238 / 32)


class Stopper(Progress):
    """Stops a training after some steps, by being asked or by an error that no one expects."""

    def __init__(self, after: int):
        self.left = after

    def step(self, at, steps, lr):
        self.left -= 1

    def asked(self) -> bool:
        return self.left <= 0


class Crash(Progress):
    def __init__(self, after: int):
        self.left = after

    def step(self, at, steps, lr):
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError


def run(config: Config, place: Path, **options):
    return train(config, place, track=False, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_state(folder / "last.ckpt")["network"]


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that a clock fills."""
    with open(folder / "metrics.csv", newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]


def assert_same_run(one: Path, other: Path) -> None:
    for mine, theirs in (
        (checkpoint.load_state(one / "last.ckpt"), checkpoint.load_state(other / "last.ckpt")),
        (
            {"network": checkpoint.load_classifier(one).network.state_dict()},
            {"network": checkpoint.load_classifier(other).network.state_dict()},
        ),
    ):
        for part in ("network", "average"):
            assert mine.get(part, {}).keys() == theirs.get(part, {}).keys()
            for key, value in mine.get(part, {}).items():
                assert torch.equal(value, theirs[part][key]), key
    assert rows(one) == rows(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(TINY, folder)
    return folder


@pytest.mark.parametrize("stop", [1, STEPS - 1, STEPS, STEPS + 3, 2 * STEPS + 1])
def test_a_run_stopped_after_any_step_and_resumed_equals_the_uninterrupted_one_bit_for_bit(stop, whole, tmp_path):
    stopper = Stopper(stop)
    with pytest.raises(Interrupted):
        run(TINY, tmp_path / "run", progress=stopper, stop=stopper.asked)
    run(TINY, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_run_stopped_twice_equals_the_uninterrupted_one(whole, tmp_path):
    for resume in (False, True):
        stopper = Stopper(5)
        with pytest.raises(Interrupted):
            run(TINY, tmp_path / "run", progress=stopper, stop=stopper.asked, resume=resume)
    run(TINY, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("crash", [STEPS - 2, STEPS + 4])
def test_a_run_that_crashed_goes_on_from_its_last_checkpoint_to_the_same_end(crash, whole, tmp_path):
    config = replace(TINY, checkpoint_steps=3)
    with pytest.raises(ZeroDivisionError):
        run(config, tmp_path / "run", progress=Crash(crash))
    at = checkpoint.load_state(tmp_path / "run" / "last.ckpt")["position"]
    assert at["epoch"] * STEPS + at["step"] < crash
    run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("name", ["constant", "cosine", "onecycle"])
def test_the_learning_rate_is_the_schedules_however_the_validation_loss_stalls(name, tmp_path):
    """Long runs lost nine tenths of it in the middle of their cycle, where the loss rises for more than `patience`."""
    schedule = ScheduleConfig(name=name, patience=0)
    config = replace(TINY, schedule=schedule, ema=0.0, epochs=6, optimizer=OptimizerConfig(lr=0.5))
    run(config, tmp_path / "run")
    found = rows(tmp_path / "run")
    losses = [float(row["val_loss"]) for row in found]
    assert any(after >= before for before, after in itertools.pairwise(losses)), "the loss never stalled"
    expected = [0.5 * lr_factor(schedule, STEPS * epoch - 1, STEPS, 6) for epoch in range(1, 7)]
    assert [float(row["lr"]) for row in found] == pytest.approx(expected, rel=1e-9)


def test_dropout_and_plateau_resume_exactly_too(tmp_path):
    config = replace(
        TINY,
        model=ModelConfig(name="wrn_10_1", width=4, dropout=0.3),
        schedule=ScheduleConfig(name="plateau", patience=0, gamma=0.5),
        ema=0.0,
        epochs=4,
        optimizer=OptimizerConfig(lr=0.5),
    )
    run(config, tmp_path / "whole")
    assert len({row["lr"] for row in rows(tmp_path / "whole")}) > 1, "the plateau schedule never dropped"
    stopper = Stopper(3 * STEPS + 2)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", progress=stopper, stop=stopper.asked)
    run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_noise_within_the_network_resumes_exactly_too(tmp_path):
    stages = [StageConfig(block="shake", width=8, depth=1, stride=4), StageConfig(width=8, depth=1, cbam=2)]
    model = ModelConfig(name="residual", stages=stages, drop_path=0.4)
    config = replace(TINY, model=model, init="kaiming")
    run(config, tmp_path / "whole")
    stopper = Stopper(STEPS + 2)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", progress=stopper, stop=stopper.asked)
    run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_same_seed_gives_the_same_run_and_another_seed_another(whole, tmp_path):
    run(TINY, tmp_path / "same")
    run(replace(TINY, seed=1), tmp_path / "other")
    assert_same_run(tmp_path / "same", whole)
    assert rows(tmp_path / "other") != rows(whole)


def test_test_images_decide_nothing(whole, tmp_path, monkeypatch):
    real = data.load("digits", None)
    swapped = replace(real, test=data.Images(real.test.images.flip(0), real.test.labels))
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: swapped)
    summary = run(TINY, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)
    usual = json.loads((whole / "summary.json").read_text())
    assert summary["final"]["test_loss"] != usual["final"]["test_loss"]


def test_a_run_without_a_test_looks_at_no_test_image_and_can_be_tested_later(whole, tmp_path, monkeypatch):
    real = data.load("digits", None)
    with monkeypatch.context() as patched:
        none = replace(real, test=data.Images(real.test.images[:0], real.test.labels[:0]))
        patched.setattr(data, "load", lambda *args, **kwargs: none)
        summary = run(TINY, tmp_path / "run", test=False)
        assert run(TINY, tmp_path / "run", test=False, resume=True) == summary
    assert summary["test"] == {}
    assert not any(key.startswith("test") for key in summary["final"])
    assert_same_run(tmp_path / "run", whole)
    tested = run(TINY, tmp_path / "run", resume=True)
    assert tested["test"] == json.loads((whole / "summary.json").read_text())["test"]


def test_the_kept_weights_have_the_best_validation_accuracy_of_all_epochs(whole):
    accuracies = [float(row["val_accuracy"]) for row in rows(whole)]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["final"]["val_accuracy"] == max(accuracies)
    assert summary["final"]["best_epoch"] == accuracies.index(max(accuracies)) + 1
    best = checkpoint.load_classifier(whole)
    digits = data.load("digits", None)
    chosen = splits.split(digits.train.labels, TINY.val_size, TINY.split_seed)[1]
    logits = predict_logits(best.network, digits.train.images[chosen], best.mean, best.std)
    assert evaluate.score(logits, digits.train.labels[chosen]).accuracy == max(accuracies)


def test_a_run_folder_holds_what_was_promised(whole):
    assert {path.name for path in whole.iterdir()} == {
        "best.safetensors",
        "config.yaml",
        "last.ckpt",
        "metrics.csv",
        "predictions.safetensors",
        "previous.ckpt",
        "summary.json",
        "system.csv",
    }
    assert load_recipe(whole / "config.yaml") == TINY
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["parameters"] == models.count_parameters(checkpoint.load_classifier(whole).network)
    assert summary["tags"]["data_checksum"] == data.load("digits", None).checksum
    assert summary["test"]["none"]["n"] == 359
    assert [int(row["epoch"]) for row in rows(whole)] == [1, 2, 3]
    provenance = checkpoint.load_classifier(whole).provenance
    assert provenance["config"]["optimizer"]["lr"] == 0.05


def test_without_validation_all_images_train_and_the_last_weights_are_the_result(tmp_path):
    seen = []

    class Count(Progress):
        def step(self, at, steps, lr):
            seen.append(at.images)

    config = replace(TINY, val_size=0, train_size=None, patience=1, epochs=2, batch_size=256, ema=0.0)
    summary = run(config, tmp_path / "run", progress=Count())
    assert max(seen) == 1438
    assert summary["final"]["epochs"] == summary["final"]["best_epoch"] == 2
    assert summary["chosen_by"] == "last epoch"
    assert "val_accuracy" not in rows(tmp_path / "run")[0]
    kept = checkpoint.load_classifier(tmp_path / "run").network.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in weights(tmp_path / "run").items())


def test_a_run_on_some_of_the_images_sees_them_alone_and_is_evaluated_on_them(tmp_path, capsys):
    seen = []

    class Count(Progress):
        def step(self, at, steps, lr):
            seen.append(at.images)

    config = replace(TINY, train_size=100, epochs=1)
    run(config, tmp_path / "run", progress=Count())
    assert max(seen) == 100
    assert main(["evaluate", str(tmp_path / "run"), "--split", "train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 100


@pytest.mark.parametrize(
    "changed",
    [
        {"network": None},
        {"network": {}},
        {"position": {"epoch": "one"}},
        {"position": {"epochs": 1}},
        {"position": 3},
        {"optimizer": {}},
        {"optimizer": 7},
        {"plateau": []},
        {"average": [1]},
        {"average_updates": None, "average": None},
        {"checksum": None},
    ],
)
def test_a_sealed_file_that_is_no_state_of_the_run_is_refused_in_one_line(changed, whole):
    state = checkpoint.load_state(whole / "last.ckpt")
    training = a_training(TINY)
    restore(training, state, whole / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt") as caught:
        restore(a_training(TINY), state | changed, whole / "last.ckpt")
    assert "\n" not in str(caught.value)


def test_patience_stops_a_run_that_no_longer_learns(tmp_path):
    config = replace(TINY, epochs=50, patience=2, ema=0.0, optimizer=OptimizerConfig(lr=1e-12))
    summary = run(config, tmp_path / "run")
    assert summary["final"]["epochs"] == summary["final"]["best_epoch"] + 2 < 50
    (tmp_path / "run" / "summary.json").unlink()
    again = run(config, tmp_path / "run", resume=True)
    assert again["final"]["epochs"] == summary["final"]["epochs"], "resuming a run that patience ended trains no more"


def test_a_loss_that_is_not_finite_stops_before_the_update_and_says_what_to_try(tmp_path):
    config = replace(TINY, ema=0.0, checkpoint_steps=1, optimizer=OptimizerConfig(lr=1e30))
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch 1, step \d+, .*--optimizer.lr") as caught:
        run(config, tmp_path / "run")
    at = checkpoint.load_state(tmp_path / "run" / "last.ckpt")["position"]
    assert f"step {at['step'] + 1}," in str(caught.value), "the step that failed was not made"
    assert "\n" not in str(caught.value)


def test_looking_at_the_steps_late_as_on_an_accelerator_changes_nothing(whole, tmp_path, monkeypatch):
    monkeypatch.setitem(_LOOK_EVERY, "cpu", math.inf)
    run(TINY, tmp_path / "late")
    assert_same_run(tmp_path / "late", whole)
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        run(TINY, tmp_path / "run", stop=lambda: next(asked) == STEPS + 3)
    assert checkpoint.load_state(tmp_path / "run" / "last.ckpt")["position"]["images"] > 0
    run(TINY, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_loss_that_is_not_finite_and_seen_late_is_named_by_its_step_and_saved_by_none(tmp_path, monkeypatch):
    config = replace(TINY, ema=0.0, optimizer=OptimizerConfig(lr=1e30))
    messages = []
    for place, wait in (("soon", 0.0), ("late", math.inf)):
        monkeypatch.setitem(_LOOK_EVERY, "cpu", wait)
        with pytest.raises(TrainingError) as caught:
            run(config, tmp_path / place)
        messages.append(str(caught.value))
        assert not (tmp_path / place / "last.ckpt").exists()
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("schedule", "option"),
    [(ScheduleConfig(), "longer --schedule.warmup"), (ScheduleConfig(name="onecycle"), "larger --schedule.peak")],
)
def test_what_is_advised_against_a_loss_that_grows_is_an_option_of_the_schedule(schedule, option):
    assert f"in a new run, try a lower --optimizer.lr than 0.05, a {option}" in advice.diverged(
        "the loss is nan", replace(TINY, schedule=schedule), 0.05
    )


def test_images_grow_over_the_run_and_have_their_full_size_at_its_end(tmp_path, monkeypatch):
    sizes = []
    whole_loss = Training.loss

    def watched(self, index, seed, size, **options):
        sizes.append(size)
        return whole_loss(self, index, seed, size, **options)

    monkeypatch.setattr(Training, "loss", watched)
    run(replace(TINY, progressive=ProgressiveConfig(size=20, until=0.6)), tmp_path / "run")
    assert sizes == sorted(sizes)
    assert set(sizes) == {20, 24, 28, 32}
    assert sizes.index(32) == math.ceil(0.6 * len(sizes))


def test_a_run_on_growing_images_by_muon_resumes_exactly(tmp_path):
    config = replace(
        TINY,
        model=ModelConfig(name="whitened_cnn", width=4),
        progressive=ProgressiveConfig(size=16, until=0.9),
        optimizer=OptimizerConfig(name="muon", lr=0.1, head_lr=7.0, bias_lr=100.0),
    )
    run(config, tmp_path / "whole")
    stopper = Stopper(STEPS + 3)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", progress=stopper, stop=stopper.asked)
    run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "choice",
    [
        {"optimizer": OptimizerConfig(name="adamw", lr=0.01, sam=0.05), "clip_norm": 1.0},
        {"optimizer": OptimizerConfig(name="muon", sam=0.1), "ema": 0.0},
    ],
    ids=["adamw", "muon"],
)
def test_a_run_with_sam_resumes_exactly(choice, tmp_path):
    config = replace(TINY, **choice)
    run(config, tmp_path / "whole")
    stopper = Stopper(STEPS + 3)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", progress=stopper, stop=stopper.asked)
    run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("stop", [STEPS + 3, 2 * STEPS])
def test_a_run_with_an_equal_average_resumes_exactly(stop, tmp_path):
    config = replace(TINY, ema=0.0, swa=0.6, model=ModelConfig(name="wrn_10_1", width=4, dropout=0.3))
    run(config, tmp_path / "whole")
    stopper = Stopper(stop)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", progress=stopper, stop=stopper.asked)
    run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_equal_average_is_of_the_epochs_of_its_share_with_the_statistics_of_training_images(tmp_path):
    after = []

    class Watch(Progress):
        def epoch(self, row, best):
            after.append(weights(tmp_path / "run"))
            if len(after) == 1:  # not yet in its share
                assert row["val_accuracy_average"] == row["val_accuracy_raw"]

    config = replace(TINY, val_size=1200, train_size=None, ema=0.0, swa=0.6)
    summary = run(config, tmp_path / "run", progress=Watch())
    found = checkpoint.load_state(tmp_path / "run" / "last.ckpt")["average"]
    assert len(after) == 3
    trained = [key for key, value in found.items() if value.is_floating_point() and "running" not in key]
    torch.testing.assert_close(
        {key: found[key] for key in trained}, {key: (after[1][key] + after[2][key]) / 2 for key in trained}
    )
    digits = data.load("digits", None)
    indices = splits.split(digits.train.labels, config.val_size, config.split_seed)[0]
    network = a_training(config).network.train()
    network.load_state_dict(found)
    images = digits.train.images[indices[splits.epoch_order(len(indices), config.seed, 0)]]
    sums = torch.zeros(8)
    with torch.no_grad():
        for batch in splits.batches(images, config.batch_size):
            pixels = (batch.float() / 255 - torch.tensor(digits.mean).view(3, 1, 1)) / torch.tensor(digits.std).view(
                3, 1, 1
            )
            sums += network.conv1(pixels).mean((0, 2, 3))
    torch.testing.assert_close(found["bn1.running_mean"], sums / STEPS, rtol=1e-3, atol=1e-5)
    assert summary["weights"] == checkpoint.load_classifier(tmp_path / "run").provenance["weights"]


@pytest.mark.parametrize("better", ["average", "raw"])
def test_of_the_average_and_the_weights_themselves_the_better_in_validation_is_kept_and_recorded(
    better, tmp_path, monkeypatch
):
    def spoilt(self, network):
        self.updates += 1
        for parameter in self.network.parameters():
            parameter.zero_()  # so that it sees no difference between classes

    config = replace(TINY, epochs=1, train_size=None, optimizer=OptimizerConfig(lr=0.1, nesterov=True))
    if better == "raw":
        monkeypatch.setattr("budgetnet.optim.WeightAverage.update", spoilt)
    else:
        config = replace(config, optimizer=OptimizerConfig(lr=1e-12))  # equals: the average is taken
    summary = run(config, tmp_path / "run")
    best = checkpoint.load_classifier(tmp_path / "run")
    assert summary["weights"] == best.provenance["weights"] == better
    row = rows(tmp_path / "run")[int(summary["final"]["best_epoch"]) - 1]
    assert float(row["val_accuracy"]) == float(row[f"val_accuracy_{better}"]) == summary["final"]["val_accuracy"]
    assert float(row["val_accuracy"]) >= max(float(row["val_accuracy_raw"]), float(row["val_accuracy_average"]))


def test_without_an_average_the_record_has_the_columns_that_it_always_had(tmp_path):
    run(replace(TINY, ema=0.0, epochs=1), tmp_path / "run")
    assert [*rows(tmp_path / "run")[0]] == ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]


@pytest.mark.parametrize(
    "choice",
    [
        {"mix": MixConfig(name="cutmix", p=0.5), "label_smoothing": 0.1},
        {"distill": DistillConfig(cached=True, teachers=["?"])},
        {"progressive": ProgressiveConfig(size=16), "optimizer": OptimizerConfig(lr=0.01, sam=0.05)},
    ],
    ids=["mixed", "cached", "small images and sam"],
)
def test_a_student_of_an_earlier_run_resumes_exactly(choice, whole, tmp_path):
    config = replace(TINY, **choice)
    config = replace(config, distill=replace(config.distill, teachers=[str(whole), str(whole)]))
    summary = run(config, tmp_path / "whole")
    assert len(summary["tags"]["teachers"].split(", ")) == 2
    stopper = Stopper(STEPS + 3)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", progress=stopper, stop=stopper.asked)
    run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_loss_of_a_student_is_that_of_labels_and_that_of_teachers_by_weight(whole):
    config = replace(
        TINY,
        mix=MixConfig(name="mixup"),
        label_smoothing=0.1,
        distill=DistillConfig(teachers=[str(whole)], weight=0.7, temperature=3.0),
    )
    index = torch.arange(32)
    loss, _ = a_training(config).loss(index, 5, 32)
    plain, again = a_training(replace(config, distill=DistillConfig())), a_training(config)
    labels, _ = plain.loss(index, 5, 32)
    rng = torch.Generator().manual_seed(5)
    x = again.augment(again.images[index], index, 0, rng)
    x = mix(x, again.labels[index], 10, config.mix, rng)[0].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        p = (checkpoint.load_classifier(whole).network(x) / 3).softmax(1)  # of the same data, so normalised alike
        q = (again.network(x) / 3).softmax(1)
    apart = 9 * (p * (p.log() - q.log())).sum() / 32
    assert loss.item() == pytest.approx((0.3 * labels + 0.7 * apart).item(), rel=1e-4)


def test_a_run_is_not_resumed_when_a_teacher_has_changed(whole, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes((whole / "best.safetensors").read_bytes())
    config = replace(TINY, distill=DistillConfig(teachers=[str(teacher)]))
    stopper = Stopper(2)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", progress=stopper, stop=stopper.asked)
    best = checkpoint.load_classifier(whole)
    checkpoint.save_classifier(teacher, replace(best, provenance={}))
    with pytest.raises(CheckpointError, match=r"teacher .*teacher\.safetensors has changed since .*last\.ckpt"):
        run(config, tmp_path / "run", resume=True)


def test_a_teacher_may_be_over_the_budget_of_its_student(whole, tmp_path):
    small = ModelConfig(name="residual", stages=[StageConfig(width=4, depth=1, stride=4)])
    config = replace(TINY, budget=1000, model=small, epochs=1, distill=DistillConfig(teachers=[str(whole)]))
    assert models.count_parameters(checkpoint.load_classifier(whole).network) > 1000
    assert run(config, tmp_path / "run")["parameters"] <= 1000
    with pytest.raises(BudgetError):
        run(replace(config, model=TINY.model), tmp_path / "large")


def test_sam_over_no_distance_is_the_plain_run_bit_for_bit_and_over_some_another(tmp_path):
    plain = replace(
        TINY, model=ModelConfig(name="wrn_10_1", width=4, dropout=0.3), ema=0.0, mix=MixConfig(name="mixup"), epochs=1
    )
    for name, rho in (("plain", 0.0), ("none", 1e-30), ("some", 0.2)):
        run(replace(plain, optimizer=replace(plain.optimizer, sam=rho)), tmp_path / name)
    # The same augmentation, shares and dropout in the second pass; running statistics follow the first alone.
    # So far below the weights' last bits, nothing else may make a difference.
    none = weights(tmp_path / "none")
    assert all(torch.equal(none[key], value) for key, value in weights(tmp_path / "plain").items())
    apart = [
        (weights(tmp_path / "some")[key] - value).abs().max() for key, value in weights(tmp_path / "plain").items()
    ]
    assert max(apart) > 1e-2


def test_sam_under_a_loss_scale_is_sam_without_and_an_overflow_on_the_way_leaves_the_weights_alone():
    # As on CUDA in fp16; the scale itself needs no such device.
    config = replace(TINY, ema=0.0, clip_norm=1.0, optimizer=OptimizerConfig(lr=0.05, momentum=0.0, sam=0.1))
    plain, scaled = a_training(config), a_training(config)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for training in (plain, scaled):
        compute = partial(training.gradient, torch.arange(32), 0, 32)
        compute()
        training.update(0.05, compute)
    torch.testing.assert_close(scaled.network.state_dict(), plain.network.state_dict(), rtol=1e-4, atol=1e-6)
    before = {key: value.clone() for key, value in scaled.network.named_parameters()}
    compute = partial(scaled.gradient, torch.arange(32), 1, 32)
    compute()
    for parameter in scaled.network.parameters():
        parameter.grad *= math.inf
    scaled.update(0.05, compute)
    assert all(torch.equal(value, before[key]) for key, value in scaled.network.named_parameters())
    assert scaled.scaler.get_scale() == 2.0**9
    compute()
    scaled.update(0.05, compute)
    assert any(not torch.equal(value, before[key]) for key, value in scaled.network.named_parameters())


@pytest.mark.parametrize(
    "choice",
    [
        {
            "mix": MixConfig(name="mixup", alpha=0.4),
            "augment": AugmentConfig(flip="random", policy="trivial", until=0.7),
        },
        {"mix": MixConfig(name="ricap", p=0.5), "augment": AugmentConfig(policy="rand"), "label_smoothing": 0.1},
        {"augment": AugmentConfig(policy="augmix", consistency=12, policy_ops=2, until=0.8), "precision": "bf16"},
    ],
    ids=["mixup and trivial", "ricap and rand", "augmix"],
)
def test_a_run_with_mixing_and_policies_resumes_exactly(choice, tmp_path):
    config = replace(TINY, **choice)
    run(config, tmp_path / "whole")
    stopper = Stopper(STEPS + 3)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", progress=stopper, stop=stopper.asked)
    run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def a_training(config: Config) -> Training:
    return Training(config, data.load("digits", None), torch.arange(64), torch.device("cpu"))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", ["mixup", "cutmix", "ricap"])
def test_the_loss_of_mixed_images_is_the_smoothed_cross_entropy_of_their_shares_and_right_is_the_largest(
    name, smoothing
):
    config = replace(TINY, mix=MixConfig(name=name), label_smoothing=smoothing)
    index = torch.arange(32)
    loss, correct = a_training(config).loss(index, 5, 32)
    again, rng = a_training(config), torch.Generator().manual_seed(5)
    x = again.augment(again.images[index], index, 0, rng)
    x, shares = mix(x, again.labels[index], 10, config.mix, rng)
    logits = again.network(x.contiguous(memory_format=torch.channels_last)).detach()
    expected = 0.0
    for row, share in zip(logits.log_softmax(1), shares, strict=True):
        expected -= sum(((1 - smoothing) * share[k] + smoothing / 10) * row[k] for k in range(10)) / 32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert correct == sum(row.argmax() == share.argmax() for row, share in zip(logits, shares, strict=True))
    assert ((shares > 0).sum(1) > 1).any()


def test_the_consistency_loss_compares_three_views_that_the_network_sees_as_one_batch():
    config = replace(TINY, augment=AugmentConfig(crop_padding=2, policy="augmix", consistency=3.0), label_smoothing=0.1)
    index = torch.arange(32)
    loss, correct = a_training(config).loss(index, 5, 32)
    again = a_training(config)
    x = again.augment(again.images[index], index, 0, torch.Generator().manual_seed(5))
    logits = again.network(x.contiguous(memory_format=torch.channels_last)).detach()
    assert logits.shape == (96, 10)
    own = torch.nn.functional.cross_entropy(logits[:32], again.labels[index], label_smoothing=0.1)
    apart = jensen_shannon(torch.stack([logits[:32], logits[32:64], logits[64:]]))
    assert apart > 0
    assert loss.item() == pytest.approx((own + 3 * apart).item(), rel=1e-5)
    assert correct == (logits[:32].argmax(1) == again.labels[index]).sum()


def test_mixing_and_all_but_crop_and_flip_stop_at_a_share_of_the_run(tmp_path, monkeypatch):
    seen = []
    whole_loss = Training.loss

    def watched(self, index, seed, size, *, strong, part):
        assert part.whole
        plain = AugmentConfig(crop_padding=2, flip="random")
        weak = replace(self.config, augment=plain, mix=MixConfig(), ema=0.0)
        buffers = {key: value.clone() for key, value in self.network.state_dict().items()}
        expected, own = a_training(weak), whole_loss(self, index, seed, size, strong=strong)
        expected.network.load_state_dict(buffers)
        seen.append(own[0].item() == whole_loss(expected, index, seed, size)[0].item())
        return own

    monkeypatch.setattr(Training, "loss", watched)
    augmentation = replace(TINY.augment, policy="rand", cutout=8, until=0.75)
    run(replace(TINY, augment=augmentation, mix=MixConfig(name="cutmix")), tmp_path / "run")
    assert seen.count(True) == math.floor(0.25 * len(seen))
    assert seen == sorted(seen)


def test_first_images_that_the_network_cannot_take_are_refused_before_anything_is_written(tmp_path):
    config = replace(TINY, model=ModelConfig(name="whitened_cnn", width=4), progressive=ProgressiveConfig(size=8))
    with pytest.raises(ConfigError, match="expected at least 9"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_budget_is_checked_before_any_data_is_read_or_written(tmp_path):
    config = Config(model=ModelConfig(name="resnet18"))
    with pytest.raises(BudgetError, match=r"11,173,962 .* 6,173,962 over the budget of 5,000,000; .* width"):
        run(config, tmp_path / "run", folder=tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_width_auto_is_resolved_in_the_record(tmp_path):
    stages = [StageConfig(width=8, depth=1, stride=4)]
    config = replace(
        TINY, budget=2000, model=ModelConfig(name="residual", stages=stages, width="auto"), epochs=1, ema=0.0
    )
    summary = run(config, tmp_path / "run")
    width = load_recipe(tmp_path / "run" / "config.yaml").model.width
    assert isinstance(width, int)
    assert summary["parameters"] <= 2000
    wider = ModelConfig(name="residual", stages=stages, width=width + 1)
    assert models.count_parameters(models.build(wider, 10)) > 2000


def test_a_folder_that_holds_something_is_not_trained_into(whole):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(TrainingError, match="exists: choose another --output, or continue that run with --resume"):
        run(TINY, whole)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.yaml: there is nothing to resume"):
        run(TINY, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_died_before_its_first_checkpoint_begins_again(whole, tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(TINY, tmp_path / "run", progress=Crash(2))
    assert not (tmp_path / "run" / "last.ckpt").exists()
    run(TINY, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_finished_run_is_not_tested_again(whole, monkeypatch):
    monkeypatch.setattr(data, "load", None)
    assert run(TINY, whole, resume=True) == json.loads((whole / "summary.json").read_text())


def test_a_damaged_summary_is_made_again(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    for damaged in ({"final": {"minutes": 1}, "test": {"none": {}}}, {"final": {}, "test": {}}):
        (tmp_path / "run" / "summary.json").write_text(json.dumps(damaged))
        run(TINY, tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "run", whole)


def test_a_run_goes_on_where_other_things_of_the_machine_are_measured(whole, tmp_path, monkeypatch):
    stopper = Stopper(STEPS + 2)
    with pytest.raises(Interrupted):
        run(TINY, tmp_path / "run", progress=stopper, stop=stopper.asked)
    monkeypatch.setattr(Usage, "read", lambda self: {"gpu_memory_usage_megabytes": 5.0})
    run(TINY, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)
    first, *others = read_epochs(tmp_path / "run")
    assert "system/gpu_memory_usage_megabytes" not in first
    assert [row["system/gpu_memory_usage_megabytes"] for row in others] == [5.0] * (TINY.epochs - 1)


def test_whitening_looks_at_images_of_all_classes_though_they_come_in_order(monkeypatch):
    shown = []
    monkeypatch.setattr(models.whitened.WhitenedNetwork, "initialize", lambda self, images: shown.append(images))
    n = 5002
    images = torch.arange(2, dtype=torch.uint8).repeat_interleave(n)[:, None, None, None].expand(-1, 3, 32, 32)
    both = data.Images(images, torch.arange(2).repeat_interleave(n))
    dataset = replace(data.load("digits", None), train=both, classes=("black", "nearly"))
    config = replace(TINY, model=ModelConfig(name="whitened_cnn", width=8))
    Training(config, dataset, torch.arange(2 * n), torch.device("cpu"))
    _, counts = shown[0][:, 0, 0, 0].unique(return_counts=True)
    assert counts.sum() == 5000
    assert 2000 < counts[0] < 3000


def test_a_resumed_run_keeps_its_options_but_for_the_total_of_epochs(whole):
    with pytest.raises(ConfigError, match=r"optimizer\.lr is 0\.1, but the run in .* has 0\.05"):
        run(replace(TINY, optimizer=replace(TINY.optimizer, lr=0.1)), whole, resume=True)


def test_a_finished_run_is_trained_on_when_epochs_is_raised(tmp_path):
    config = replace(TINY, schedule=ScheduleConfig(name="constant"), ema=0.0)
    run(replace(config, epochs=2), tmp_path / "two")
    run(config, tmp_path / "two", resume=True)
    run(config, tmp_path / "three")
    assert_same_run(tmp_path / "two", tmp_path / "three")


def test_a_finished_run_that_is_trained_on_and_stopped_is_not_finished(tmp_path):
    config = replace(TINY, schedule=ScheduleConfig(name="constant"), ema=0.0)
    run(replace(config, epochs=1), tmp_path / "run")
    stopper = Stopper(2)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", progress=stopper, stop=stopper.asked, resume=True)
    assert run(config, tmp_path / "run", resume=True)["final"]["epochs"] == 3


def test_a_run_is_not_resumed_to_fewer_epochs_than_it_has_and_stays_as_it_is(whole):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(ConfigError, match=r"epochs is 2, but .* has trained 3"):
        run(replace(TINY, epochs=2), whole, resume=True)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_logits_that_are_not_finite_in_validation_stop_the_run_with_advice(tmp_path, monkeypatch):
    def diverged(*args, **kwargs):
        raise CheckpointError("the logits of 3 of 9 images (the first is image 1) are not finite")

    monkeypatch.setattr(sys.modules["budgetnet.train"], "predict_logits", diverged)
    with pytest.raises(TrainingError, match=r"after epoch 1, the logits of 3 .* try a lower --optimizer\.lr"):
        run(TINY, tmp_path / "run")


def test_a_first_loss_that_is_not_finite_is_not_blamed_on_the_learning_rate(tmp_path, monkeypatch):
    def nowhere(logits, *args, **kwargs):
        return logits.sum() * math.nan

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", nowhere)
    with pytest.raises(TrainingError) as caught:
        run(replace(TINY, precision="bf16"), tmp_path / "run")
    assert str(caught.value) == (
        "the loss is nan in epoch 1, step 1, before any update: look at the images (`budgetnet data verify`), or try "
        "--precision fp32 instead of bf16"
    )


def test_a_divergence_in_half_precision_says_that_full_precision_may_help(tmp_path):
    config = replace(TINY, ema=0.0, precision="bf16", optimizer=OptimizerConfig(lr=1e30))
    with pytest.raises(TrainingError, match=r"--optimizer\.lr .* or --precision fp32 instead of bf16"):
        run(config, tmp_path / "run")


def test_weights_that_the_last_step_ruined_are_not_kept_though_no_loss_and_no_validation_says_so(tmp_path, monkeypatch):
    update, left = Training.update, itertools.count(math.ceil(1438 / 256) - 1, -1)

    def ruin(training, *args):
        update(training, *args)
        if next(left) == 0:
            training.network.bn1.running_var[2] = math.inf

    monkeypatch.setattr(Training, "update", ruin)
    with pytest.raises(
        TrainingError, match=r"after epoch 1, 1 tensors .* \(the first is bn1\.running_var\), at learning"
    ):
        run(replace(TINY, val_size=0, train_size=None, batch_size=256, ema=0.0, epochs=1), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml"}


def test_gradients_that_overflow_under_every_loss_scale_end_the_run_and_a_few_do_not():
    training = a_training(replace(TINY, ema=0.0))
    for scale, wrong in ((2.0**-9, ""), (2.0**-11, "gradients overflow in fp16 however small the loss is scaled")):
        training.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        assert training.wrong(training.network)[: len(wrong) or 1] == wrong


def test_classes_that_validation_lacks_are_named_and_the_run_is_as_sound_as_ever(tmp_path, capsys):
    summary = run(replace(TINY, val_size=5, epochs=1, batch_size=256), tmp_path / "run")
    warning = "no validation image is of class "
    assert capsys.readouterr().err.count(warning) == 1
    assert summary["final"]["val_accuracy"] in {n / 5 for n in range(6)}
    assert math.isfinite(float(rows(tmp_path / "run")[0]["val_loss"]))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"labels": 3}, r"all 238 training images are of one class \(3\)"),
        ({"images": 0}, r"all 238 training images are alike \(all pixels are 0\)"),
    ],
)
def test_data_that_can_teach_nothing_is_refused_before_anything_is_written(broken, said, tmp_path, monkeypatch):
    digits = data.load("digits", None)
    filled = {name: getattr(digits.train, name).clone().fill_(value) for name, value in broken.items()}
    hopeless = replace(digits, train=replace(digits.train, **filled))
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: hopeless)
    with pytest.raises(DataError, match=said):
        run(TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_single_black_images_among_others_train(tmp_path, monkeypatch):
    digits = data.load("digits", None)
    images = digits.train.images.clone()
    images[::3] = 0
    dark = replace(digits, train=replace(digits.train, images=images))
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: dark)
    for policy in ("trivial", "rand", "augmix"):
        config = replace(TINY, epochs=1, augment=AugmentConfig(policy=policy))
        assert math.isfinite(run(config, tmp_path / policy)["final"]["test_loss"])


def test_memory_that_runs_out_gets_a_batch_size_to_try(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", full)
    with pytest.raises(TrainingError, match="not enough memory for batch_size 32: try --batch-size 16"):
        run(TINY, tmp_path / "run")


def test_a_checkpoint_is_written_when_enough_minutes_have_passed(tmp_path, monkeypatch):
    monkeypatch.setattr("time.monotonic", itertools.count(0, 20).__next__)  # each look takes 20 s
    with pytest.raises(ZeroDivisionError):
        run(replace(TINY, checkpoint_minutes=1.0), tmp_path / "run", progress=Crash(STEPS - 1))
    at = checkpoint.load_state(tmp_path / "run" / "last.ckpt")["position"]
    assert at["epoch"] == 0
    assert at["step"] >= 1


def test_a_compiler_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    def fails(network):
        raise torch._dynamo.exc.TorchRuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(TrainingError, match=r"torch\.compile failed \(no C\+\+ compiler.*--compile false$"):
        run(replace(TINY, compile=True), tmp_path / "run")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own, of torch.jit
def test_a_compiled_network_trains(tmp_path):
    small = ModelConfig(name="residual", stages=[StageConfig(width=4, depth=1, stride=4)])
    summary = run(replace(TINY, model=small, compile=True, epochs=1, ema=0.0, train_size=224), tmp_path / "run")
    assert 0 < summary["final"]["test_loss"] < 100


def test_a_run_is_not_resumed_on_other_data(tmp_path, monkeypatch):
    stopper = Stopper(2)
    with pytest.raises(Interrupted):
        run(TINY, tmp_path / "run", progress=stopper, stop=stopper.asked)
    other = replace(data.load("digits", None), checksum="0" * 64)
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: other)
    with pytest.raises(CheckpointError, match="belongs to a run on other data"):
        run(TINY, tmp_path / "run", resume=True)


def test_a_validation_split_larger_than_the_training_set_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ConfigError, match="val_size"):
        run(replace(TINY, val_size=5000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_half_precision_is_refused_on_a_cpu(tmp_path):
    with pytest.raises(ConfigError, match="precision is fp16, which CPUs do not train in"):
        run(replace(TINY, precision="fp16"), tmp_path / "run")


def names_of(section: type) -> tuple[str, ...]:
    return get_args(get_type_hints(section)["name"])


CHOICES = [
    *({"optimizer": OptimizerConfig(name=name, lr=0.01)} for name in names_of(OptimizerConfig)),
    *(
        {"schedule": ScheduleConfig(name=name, milestones=[1.0] if name == "multistep" else [])}
        for name in names_of(ScheduleConfig)
    ),
    {"init": "kaiming"},
    {"precision": "bf16"},
    {"channels_last": False},
    {"clip_norm": 0.1},
    {"ema": 0.0},
    {"label_smoothing": 0.1},
    {"tta": "flip-shift"},
    {"model": ModelConfig(name="whitened_cnn", width=4)},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_each_choice_trains(choice, tmp_path):
    config = replace(TINY, epochs=1, batch_size=64, **choice)
    summary = run(config, tmp_path / "run")
    assert 0 < summary["final"]["test_loss"] < 100
    assert ("test_accuracy_tta" in summary["final"]) == (config.tta != "none")
    assert dataclasses.replace(load_recipe(tmp_path / "run" / "config.yaml")) == config


def test_a_small_network_learns_the_digits(tmp_path):
    config = replace(
        TINY,
        train_size=None,
        epochs=6,
        augment=AugmentConfig(crop_padding=2),
        optimizer=OptimizerConfig(lr=0.1, nesterov=True),
    )
    summary = run(config, tmp_path / "run")
    assert summary["final"]["test_accuracy"] > 0.9


def test_with_train_on_test_all_but_the_validation_images_are_trained_on_and_nothing_is_tested(tmp_path, monkeypatch):
    digits = data.load("digits", None)
    seen: list[torch.Tensor] = []
    loss = Training.loss

    def noted(self, index, seed, size, **options):
        seen.append(index)
        assert len(self.images) == len(digits.train) + len(digits.test)
        assert torch.equal(self.images[len(digits.train) :], digits.test.images)
        assert torch.equal(self.labels[len(digits.train) :], digits.test.labels)
        return loss(self, index, seed, size, **options)

    monkeypatch.setattr(Training, "loss", noted)
    config = replace(TINY, train_on_test=True, train_size=None, batch_size=256, epochs=1)
    summary = run(config, tmp_path / "run")
    _, held_out = splits.split(digits.train.labels, TINY.val_size, TINY.split_seed)
    everything = set(range(len(digits.train) + len(digits.test)))
    assert sorted(torch.cat(seen).tolist()) == sorted(everything - set(held_out.tolist()))
    assert summary["test"] == {}
    assert summary["trained_on_test"]
    assert not [key for key in summary["final"] if key.startswith("test")]
    assert "no test accuracy, as the test images were trained on" in "".join(summary_lines(summary, tmp_path))
    assert run(config, tmp_path / "run", resume=True) == summary
