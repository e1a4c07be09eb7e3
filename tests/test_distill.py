"""The specification of teachers: what they say, of which images, and which of them are refused."""

import hashlib
import math
import re
from dataclasses import replace

import pytest
import torch

from budgetnet import checkpoint, data, models
from budgetnet.classifier import Classifier
from budgetnet.config import (
    AugmentConfig,
    Config,
    DistillConfig,
    MixConfig,
    ModelConfig,
    ProgressiveConfig,
    StageConfig,
)
from budgetnet.distill import Teachers, distillation_loss
from budgetnet.errors import CheckpointError, ConfigError

N = 60


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    whole = data.load("digits", None)
    return replace(whole, train=data.Images(whole.train.images[:N], whole.train.labels[:N]))


def a_teacher(folder, digits, seed, **changes):
    """A model file of a network with other weights and another normalisation for each seed."""
    torch.manual_seed(seed)
    model = ModelConfig(name="residual", stages=[StageConfig(width=4 + seed, depth=1, stride=4)])
    network = models.build(model, len(changes.get("classes", digits.classes))).eval()
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
    for head in (module for module in network.modules() if isinstance(module, torch.nn.Linear)):
        head.weight.data *= 50  # so that it says something else of each image
    classifier = Classifier(
        network=network,
        model=model,
        **{"classes": digits.classes, "mean": (0.1 * seed,) * 3, "std": (0.2 + 0.1 * seed,) * 3, "image_size": 32}
        | changes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_classifier(folder / "best.safetensors", classifier)
    return folder, classifier


def teachers(distill, digits, *, indices=None, precision=None, **options):
    """Teachers of a student by that configuration, which is not chosen by images unless told otherwise."""
    return Teachers(
        Config(dataset="digits", distill=distill, **{"val_size": 0} | options),
        digits,
        torch.arange(N) if indices is None else indices,
        device=torch.device("cpu"),
        layout=torch.channels_last,
        precision=precision,
    )


def normalized(images, mean, std):
    return (images.float() / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@torch.no_grad()
def says(classifier, images, temperature):
    """The probabilities of one teacher for raw images."""
    return (classifier.network(normalized(images, classifier.mean, classifier.std)) / temperature).softmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_equals_a_loop_over_images_and_classes(temperature):
    rng = torch.Generator().manual_seed(0)
    logits, taught = 3 * torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng).softmax(1)
    expected = 0.0
    for row, target in zip(logits.tolist(), taught.tolist(), strict=True):
        total = sum(math.exp(z / temperature) for z in row)
        for z, p in zip(row, target, strict=True):
            expected += p * (math.log(p) - math.log(math.exp(z / temperature) / total)) * temperature**2 / 5
    assert distillation_loss(logits, taught, temperature).item() == pytest.approx(expected, rel=1e-4)


def test_a_student_that_agrees_has_no_loss_and_no_gradient_and_sure_teachers_are_labels():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = distillation_loss(logits, (logits.detach() / 2).softmax(1), 2.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert abs(loss.item()) < 1e-6
    assert gradient.abs().max() < 1e-6
    labels = torch.tensor([0, 3, 1])
    sure = torch.eye(4)[labels]
    torch.testing.assert_close(distillation_loss(logits, sure, 1.0), torch.nn.functional.cross_entropy(logits, labels))


def test_what_teachers_say_is_the_mean_of_their_probabilities_each_in_its_own_normalisation(tmp_path, digits):
    made = [a_teacher(tmp_path / str(seed), digits, seed) for seed in (0, 1, 2)]
    config = DistillConfig(teachers=[str(made[0][0]), *(str(path / "best.safetensors") for path, _ in made[1:])])
    asked = teachers(config, digits)
    images, index = digits.train.images[5:25].flip(2), torch.arange(5, 25)
    state = torch.get_rng_state()
    found = asked.targets(normalized(images, digits.mean, digits.std), index)
    expected = torch.stack([says(classifier, images, 4.0) for _, classifier in made]).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert found.std(0).max() > 1e-3, "they say the same of all images"
    assert not found.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert asked.digests == [hashlib.sha256((path / "best.safetensors").read_bytes()).hexdigest() for path, _ in made]


@pytest.mark.parametrize("mirrored", [False, True])
def test_cached_teachers_are_asked_about_the_images_as_they_are_whatever_the_student_sees(mirrored, tmp_path, digits):
    made = [a_teacher(tmp_path / str(seed), digits, seed) for seed in (0, 1)]
    config = DistillConfig(teachers=[str(path) for path, _ in made], cached=True, temperature=2.0)
    index = torch.tensor([7, 3, 50])
    augment = AugmentConfig(flip="random" if mirrored else "none")
    asked = teachers(config, digits, indices=torch.arange(3, 51), augment=augment)
    found = asked.targets(torch.zeros(3, 3, 8, 8), index)
    images = digits.train.images[index]
    views = [images, images.flip(3)] if mirrored else [images]
    expected = torch.stack([says(classifier, view, 2.0) for _, classifier in made for view in views]).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_cached_teachers_compute_in_the_precision_that_is_wanted_and_others_in_that_of_the_step(
    cached, tmp_path, digits
):
    path, _ = a_teacher(tmp_path, digits, 1)
    config, index = DistillConfig(teachers=[str(path)], cached=cached, temperature=100), torch.arange(20)
    view = normalized(digits.train.images[index], digits.mean, digits.std)
    exact, coarse = (
        teachers(config, digits, precision=precision).targets(view, index) for precision in (None, torch.bfloat16)
    )
    assert exact.dtype == coarse.dtype == torch.float32
    assert torch.equal(exact, coarse) is not cached
    torch.testing.assert_close(exact, coarse, rtol=0, atol=0.01)


def test_a_teacher_of_other_classes_or_images_is_refused(tmp_path, digits):
    other, _ = a_teacher(tmp_path / "other", digits, 0, classes=("cat", "dog"))
    large, _ = a_teacher(tmp_path / "large", digits, 0, image_size=64)
    told = f"teacher {other} knows the classes cat, dog, but digits has 0, 1, 2, 3, ... (10): choose a teacher that was"
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        teachers(DistillConfig(teachers=[str(other)]), digits)
    for names, shown in (("abcd", "a, b, c, d"), ("abcde", r"a, b, c, d, \.\.\. \(5\)")):
        some, _ = a_teacher(tmp_path / names, digits, 0, classes=tuple(names))
        with pytest.raises(ConfigError, match=f" knows the classes {shown}, but digits has "):
            teachers(DistillConfig(teachers=[str(some)]), digits)
    with pytest.raises(ConfigError, match=r"teacher .*large takes images of 64 pixels, but those of digits have 32"):
        teachers(DistillConfig(teachers=[str(large)]), digits)


def test_a_teacher_that_is_no_model_is_refused(tmp_path, digits):
    (tmp_path / "old.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"old\.pth is no run folder and no \.safetensors file"):
        teachers(DistillConfig(teachers=[str(tmp_path / "old.pth")]), digits)
    with pytest.raises(CheckpointError, match="is no run folder"):
        teachers(DistillConfig(teachers=[str(tmp_path)]), digits)


def test_a_folder_in_hugging_faces_layout_teaches_as_the_run_does(tmp_path, digits):
    path, _ = a_teacher(tmp_path / "run", digits, 0)
    (tmp_path / "hub").mkdir()
    (path / "best.safetensors").rename(tmp_path / "hub" / "model.safetensors")
    assert teachers(DistillConfig(teachers=[str(tmp_path / "hub")]), digits).digests


def test_a_teacher_is_named_as_any_model_is(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = a_teacher(tmp_path / "runs" / "first", digits, 0)
    digest = hashlib.sha256((path / "best.safetensors").read_bytes()).hexdigest()
    assert teachers(DistillConfig(teachers=["first"]), digits).digests == [digest]
    with pytest.raises(ConfigError, match=r"teacher box knows the classes airplane, "):
        teachers(DistillConfig(teachers=["box"]), digits)
    with pytest.raises(CheckpointError, match=r"^gone cannot be read: .* nor is there runs.gone: "):
        teachers(DistillConfig(teachers=["gone"]), digits)


def test_a_teacher_that_was_trained_on_test_images_teaches_only_who_is_not_tested(tmp_path, digits):
    trained = {"dataset": "digits", "val_size": 0, "split_seed": 0, "train_size": None, "train_on_test": True}
    provenance = {"config": trained, "data_checksum": digits.checksum}
    path, _ = a_teacher(tmp_path / "all", digits, 0, provenance=provenance)
    config = DistillConfig(teachers=[str(path)])
    told = f"^teacher {re.escape(str(path))} was trained on the test images too: choose another, or give"
    with pytest.raises(ConfigError, match=told):
        teachers(config, digits)
    assert teachers(config, digits, train_on_test=True).digests


@pytest.mark.parametrize(("key", "value"), [("val_size", 0), ("split_seed", 1)])
def test_a_teacher_that_has_learnt_images_which_the_student_holds_out_is_refused(key, value, tmp_path, digits):
    held_out = {"val_size": 10, "split_seed": 0}
    trained = {"dataset": "digits", **held_out, "train_size": None, "train_on_test": False}

    def asked(name, checksum=digits.checksum, changes=trained, **student):
        provenance = {"config": changes, "data_checksum": checksum}
        path, _ = a_teacher(tmp_path / name, digits, 0, provenance=provenance)
        return teachers(DistillConfig(teachers=[str(path)]), digits, **held_out | student)

    assert asked("same").digests
    other = trained | {key: value}
    with pytest.raises(
        ConfigError, match=rf"{key} is {held_out[key]}, but teacher .*other was trained with {value}: images"
    ):
        asked("other", changes=other)
    assert asked("other", changes=other, val_size=0).digests, "nothing is chosen by images"
    assert asked("other", changes=other, checksum="0" * 64).digests, "of other data nobody knows"


def test_a_teacher_that_cannot_take_the_smallest_images_is_refused(tmp_path, digits):
    model = ModelConfig(name="whitened_cnn", width=4)
    network = models.build(model, 10)
    path, _ = a_teacher(tmp_path / "small", digits, 0)
    checkpoint.save_classifier(
        path / "best.safetensors",
        Classifier(
            network=network, model=model, classes=digits.classes, mean=digits.mean, std=digits.std, image_size=32
        ),
    )
    small = ProgressiveConfig(size=8)
    teachers(DistillConfig(teachers=[str(path)], cached=True), digits, progressive=small)
    with pytest.raises(ConfigError, match=r"teacher .*small cannot take the smallest images of progressive\.size"):
        teachers(DistillConfig(teachers=[str(path)]), digits, progressive=small)


def test_options_that_mean_nothing_together_are_refused():
    with pytest.raises(ConfigError, match=r"distill\.teachers is empty: name a teacher"):
        DistillConfig(weight=0.5)
    with pytest.raises(ConfigError, match=r"distill\.temperature is 0"):
        DistillConfig(teachers=["run"], temperature=0)
    with pytest.raises(ConfigError, match=r"distill\.cached is true and mix\.name is mixup"):
        Config(distill=DistillConfig(teachers=["run"], cached=True), mix=MixConfig(name="mixup"))
