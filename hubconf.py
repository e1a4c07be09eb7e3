"""What `torch.hub.load` offers: `classifier`, which a file of weights rebuilds, and `network`, untrained."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

dependencies = ["torch", "numpy", "PIL", "yaml", "rich", "jsonargparse", "safetensors"]

if find_spec("budgetnet") is None:  # not installed: torch.hub has fetched the source
    sys.path.insert(0, str(Path(__file__).parent / "src"))


def classifier(path: str, **options: Any) -> Any:
    """A trained classifier: `budgetnet.load(path, **options)`."""
    import budgetnet

    return budgetnet.load(path, **options)


def network(name: str = "enhanced", classes: int = 10, image_size: int = 32, **options: Any) -> Any:
    """An untrained network by name, a `torch.nn.Module`: (n, 3, image_size, image_size) -> (n, classes).

    Args:
        name: one that `budgetnet models` lists.
        classes: number of classes, 2 or more.
        image_size: side of the images in pixels.
        options: further options of a recipe's section `model`, such as `width`.
    """
    from budgetnet import models
    from budgetnet.config import ModelConfig

    return models.build(ModelConfig(name=name, **options), classes, image_size=image_size)
