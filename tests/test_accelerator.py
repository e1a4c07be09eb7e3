"""Training on an accelerator, pretended by a CPU: all of it stays there, and the host does not wait for it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from budgetnet import models
from budgetnet.checkpoint import save_classifier
from budgetnet.classifier import Classifier
from budgetnet.config import ModelConfig

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
SMALL = ["--dataset", "cifar10", "--model.width", "8", "--budget", "null", "--batch-size", "8", "--precision", "fp32"]
OPTIONS = {
    "smoke": ["--model.width", "null"],
    "sam": ["--optimizer.sam", "0.05", "--clip-norm", "1"],
    "pieces": ["--accumulate", "2", "--mix.name", "mixup"],
    "rand": ["--augment.policy", "rand", "--augment.cutout", "8", "--mix.name", "ricap"],
    "branches": ["--model.name", "shake_shake26_2x32d", "--model.drop-path", "0.2"],
    "adamw": ["--optimizer.name", "adamw", "--model.name", "convnext_atto"],
    "shallow": ["--model.name", "wrn_16_4"],
    "deep": ["--model.name", "wrn_28_4"],
    "enhanced": ["--model.name", "enhanced", "--optimizer.name", "sgd", "--optimizer.nesterov", "true"],
    "scaled": ["--precision", "fp16", "--clip-norm", "1", "--optimizer.sam", "0.05"],
    "half": ["--precision", "bf16"],
    "growing": ["--progressive.size", "16", "--clip-norm", "1", "--label-smoothing", "0.1"],
    "student": ["--distill.teachers", "[TEACHER, TEACHER]"],
    "cached": ["--distill.teachers", "[TEACHER]", "--distill.cached", "true", "--augment.flip", "alternate"],
}
# PyTorch asks after each step in fp16 whether a gradient has overflowed.
WAITS = {"scaled": {"_local_scalar_dense in training.py: self.scaler.step(self.optimizer)": 2}}
CASES = {
    name: [f"recipes/{name if name in RECIPES else 'tiny'}.yaml", *SMALL, *OPTIONS.get(name, [])]
    for name in (*RECIPES, *OPTIONS)
}


def trained(work, cases):
    command = [sys.executable, "tests/pretended.py", work, json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    teacher = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = ModelConfig(name="wrn_10_1", width=8)
    save_classifier(
        teacher,
        Classifier(
            network=models.build(model, 10),
            model=model,
            classes=tuple("abcdefghij"),
            mean=(0.4,) * 3,
            std=(0.3,) * 3,
            image_size=32,
        ),
    )
    return trained("steps", {name: [o.replace("TEACHER", str(teacher)) for o in case] for name, case in CASES.items()})


@pytest.mark.parametrize("name", CASES)
def test_a_step_on_an_accelerator_is_the_same_and_never_waits_for_it(found, name):
    cpu, accelerator = found[name]["cpu"], found[name]["accelerator"]
    assert len(cpu["losses"]) == 3
    assert accelerator["losses"] == pytest.approx(cpu["losses"], rel=1e-3)
    assert min(accelerator["kernels"]) > 10
    assert accelerator["waits"] == WAITS.get(name, {})
    assert cpu["kernels"] == [0, 0]


def test_muon_starts_no_more_kernels_for_more_convolutions_of_the_same_shapes(found):
    shallow, deep = (found[name]["accelerator"]["kernels"] for name in ("shallow", "deep"))
    assert deep[0] > 1.4 * shallow[0]
    assert deep[1] == shallow[1]


def test_predictions_and_norm_statistics_are_the_same_on_an_accelerator():
    for each in trained("logits", {name: [name] for name in ("wrn_16_4", "whitened_cnn")}).values():
        np.testing.assert_allclose(each["accelerator"], each["cpu"], rtol=1e-3, atol=1e-3)
        own, better = each["cpu"]
        assert not np.allclose(own, better, rtol=0, atol=0.01)


def test_a_step_starts_few_kernels(found):
    """It takes a GPU as long to start one as to compute most of them."""
    kernels = {name: sum(found[name]["accelerator"]["kernels"]) for name in ("best", "robust", "speedrun")}
    assert kernels["best"] < 700
    assert kernels["robust"] < 1200
    assert kernels["speedrun"] < 225


def test_a_run_on_an_accelerator_is_the_same_stopped_and_resumed_too():
    options = ["--optimizer.name", "muon", "--optimizer.nesterov", "false", "--ema", "0.9", "--tta", "flip"]
    (found,) = trained("whole", {"run": ["recipes/smoke.yaml", *options]}).values()
    waits = found["accelerator"].pop("waits")
    assert found["cpu"].pop("waits") == {}
    for summary in found.values():
        assert summary.pop("minutes") > 0
    assert found["accelerator"] == found["cpu"]
    assert found["cpu"]["stopped"]
    # Whatever the number of steps: once at the end of each of the two epochs that were left.
    assert [count for line, count in waits.items() if "self.group.sum" in line] == [2]
    files = {line.split()[2] for line in waits}
    assert files == {"training.py:", "train.py:", "state.py:", "checkpoint.py:", "logits.py:"}
