"""A program that uses the package, never run: `make types` reads it as those do who install budgetnet.

Each line that is wrong on purpose says so; mypy complains if it is not.
"""

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import budgetnet
from budgetnet import Classifier, Run

model = budgetnet.load("runs/first")
assert_type(model, Classifier)
assert_type(model.predict(["a.png", Path("b.png")]), NDArray[np.int64])
assert_type(model.predict_proba(np.zeros((32, 32, 3), np.uint8)), NDArray[np.float32])
assert_type(model.score("photos", [1, 2]), float)
assert_type(model.classes, tuple[str, ...])
assert_type(model.parameters, int)
run = budgetnet.train("recipe.yaml", epochs=1, optimizer={"lr": 0.1})
assert_type(run, Run)
assert_type(run.classifier, Classifier)
assert_type(budgetnet.models.names(), tuple[str, ...])
assert_type(
    budgetnet.evaluate.score(model.logits("photos"), budgetnet.data.load("digits", None).test.images).ece, float
)
budgetnet.load(3)  # type: ignore[arg-type]
budgetnet.train()  # type: ignore[call-arg]
model.predict(3)  # type: ignore[arg-type]
wrong = budgetnet.trian  # type: ignore[attr-defined]
