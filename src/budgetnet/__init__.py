"""budgetnet trains the best image classifier that fits a parameter budget.

From Python as from the command line:

>>> import budgetnet
>>> run = budgetnet.train("smoke.yaml", output="runs/third", quiet=True)
>>> model = budgetnet.load("runs/third")  # which is run.classifier
>>> model.predict(["photo.png", "photo.png"]).shape
(2,)
>>> budgetnet.evaluate.score(model.logits("photo.png"), run.classifier.logits("photo.png").argmax(1)).accuracy
1.0
>>> budgetnet.models.names()[:2]
('enhanced', 'whitened_cnn')

Nothing else is imported before it is used.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budgetnet import data, evaluate, models
    from budgetnet.api import train
    from budgetnet.checkpoint import load
    from budgetnet.classifier import Classifier
    from budgetnet.runs import Run

    __version__: str

__all__ = ["Classifier", "Run", "data", "evaluate", "load", "models", "train"]

_HOMES = {"Classifier": "classifier", "Run": "runs", "load": "checkpoint", "train": "api"}


if not TYPE_CHECKING:  # or any name would pass for one of these

    def __getattr__(name: str) -> Any:
        """Import what is asked for the first time (PEP 562)."""
        if name == "__version__":
            globals()[name] = _version()
            return globals()[name]
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
        found = getattr(module, name) if name in _HOMES else module
        globals()[name] = found
        return found


def _version() -> str:
    """The version that was installed, which the tags of the repository give; looked up only where it is asked for."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "0.0+source"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """A package whose `train` is the function, though it has a module of that name too.

    The import system makes each submodule an attribute of its package, whenever somebody imports it first; then
    `budgetnet.train(...)` would call a module. `from budgetnet.train import ...` finds the module all the same.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "train" and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
