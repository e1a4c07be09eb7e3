"""What trainings compute, step by step, as it was when it was last meant to change.

A refactoring moves none of these numbers. A change that is meant to (another draw, another order, another rule) says so
in its commit and takes them anew: `python tests/test_golden.py`.
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetnet import devices
from budgetnet.config import Config
from budgetnet.recipe import load_recipe
from budgetnet.runs import read
from budgetnet.train import train
from budgetnet.training import Training

ROOT = Path(__file__).parent.parent
TRACES = Path(__file__).parent / "fixtures" / "golden.json"
SHORT = ["--dataset", "digits", "--val-size", "100", "--train-size", "238", "--epochs", "2", "--batch-size", "64"]
SHORT += ["--precision", "fp32"]
SMALL = {
    "smoke": ["--optimizer.lr", "0.02"],
    "speedrun": ["--model.width", "4", "--optimizer.lr", "0.01", "--progressive.size", "24", "--swa", "0.5"],
    "best": ["--model.name", "enhanced", "--model.width", "4", "--optimizer.lr", "0.002"],
    "robust": ["--model.name", "whitened_cnn", "--model.width", "4", "--optimizer.lr", "0.005"],
    "reference": ["--model.width", "4", "--optimizer.lr", "0.002", "--model.drop_path", "0.2", "--clip-norm", "1"],
}
"""Recipes that between them use nearly all that a step can do, on networks that take a second."""
STEPS = 2 * math.ceil(238 / 64)


def machine() -> dict[str, Any]:
    """What decides how sums are rounded."""
    return {"torch": torch.__version__, **devices.hardware(torch.device("cpu"))}


def trace(recipe: str, folder: Path) -> dict[str, list[float]]:
    """The loss of each step, and of each epoch's validation, of a short training by a recipe on a small network."""
    config: Config = load_recipe(ROOT / "recipes" / f"{recipe}.yaml", [*SHORT, *SMALL[recipe]])
    losses = []

    class Watched(Training):
        def gradient(self, *args, **kwargs):
            loss, right = super().gradient(*args, **kwargs)
            losses.append(loss.item())
            return loss, right

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["budgetnet.train"], "Training", Watched)
        train(config, folder, track=False)
    return {"loss": losses, "val_loss": [row["val_loss"] for row in read(folder).rows if "val_loss" in row]}


@pytest.mark.parametrize("recipe", SMALL)
def test_the_losses_of_every_step_are_those_that_were_recorded(recipe, tmp_path):
    recorded = json.loads(TRACES.read_text())
    expected, found = recorded["traces"][recipe], trace(recipe, tmp_path / "run")
    assert len(found["loss"]) == STEPS
    if recorded["machine"] == machine():
        assert found == {name: pytest.approx(losses, rel=1e-6) for name, losses in expected.items()}
    # Others round otherwise, which eight steps on such small networks carry to the third digit of a batch.
    assert found["loss"][:2] == pytest.approx(expected["loss"][:2], rel=1e-4)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=5e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        traces = {recipe: trace(recipe, Path(temporary) / recipe) for recipe in SMALL}
    TRACES.write_text(json.dumps({"machine": machine(), "traces": traces}, indent=1) + "\n")
