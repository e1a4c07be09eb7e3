"""Where a model comes from: what its file says of its training data, and which images of a data set those were."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from budgetnet import engine, splits
from budgetnet.classifier import Classifier
from budgetnet.config import Config, DatasetName
from budgetnet.data import Dataset
from budgetnet.engine import Engine
from budgetnet.errors import CheckpointError, ConfigError, DataError
from budgetnet.inputs import normalize

_CALIBRATION_IMAGES, _CALIBRATION_NUMBERS = 512, 2**26  # fewer where images are large: calibrated on as float32


def trained_on(source: Path, classifier: Classifier) -> dict[str, Any]:
    """What the file `source` says of its training data, or nothing where it does not say.

    Raises:
        CheckpointError: it says something else than a training does.
    """
    found = classifier.provenance.get("config")
    if found is None:
        return {}
    trained = {"data_checksum": classifier.provenance.get("data_checksum")}
    if isinstance(found, dict):
        trained |= {key: found.get(key) for key in ("dataset", "val_size", "split_seed")}
        # which older files do not know
        trained |= {"train_on_test": found.get("train_on_test", False), "train_size": found.get("train_size")}
    kinds: dict[str, Any] = {"data_checksum": str, "dataset": str, "val_size": int, "split_seed": int}
    kinds |= {"train_on_test": bool, "train_size": int | None}
    wrong = [key for key, kind in kinds.items() if not isinstance(trained.get(key), kind)]
    if wrong or trained["dataset"] not in get_args(DatasetName):
        raise CheckpointError(f"{source} does not say as it should what it was trained on: {wrong or 'dataset'}")
    return trained


def require_unseen(source: str, trained: dict[str, Any], config: Config, dataset: Dataset) -> None:
    """Refuse a model to start from, or to learn from, that was trained on images which a run is chosen by or tested on.

    Its scores would be of images that it has learnt. Of other data, or where nothing is said of it, nobody knows.

    Args:
        source: what the model is called.
        trained: what its file says of its training data.
        config: of the run.
        dataset: of the run.

    Raises:
        ConfigError: it was.
    """
    if trained.get("train_on_test") and not config.train_on_test:
        raise ConfigError(
            f"{source} was trained on the test images too: choose another, or give --train_on_test true, as there is "
            "no test"
        )
    if not config.val_size or trained.get("data_checksum") != dataset.checksum:
        return
    for key in ("val_size", "split_seed"):
        if trained[key] != getattr(config, key):
            raise ConfigError(
                f"{key} is {getattr(config, key)}, but {source} was trained with {trained[key]}: images that are held "
                "out now were trained on; give the same"
            )


def require_classes(source: Path, classifier: Classifier, dataset: Dataset) -> None:
    """Refuse data of other classes than those that the model knows.

    Raises:
        DataError: they are others.
    """
    if dataset.classes != classifier.classes:
        raise DataError(
            f"{source} knows {len(classifier.classes)} classes ({', '.join(classifier.classes[:3])}, ...), "
            f"but {dataset.name} has {len(dataset.classes)} ({', '.join(dataset.classes[:3])}, ...)"
        )


def known_split(dataset: Dataset, trained: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Places (int64) of the images that the model was trained on and chosen by; where nobody knows, all and none."""
    labels = dataset.train.targets
    if trained.get("data_checksum") != dataset.checksum:
        return torch.arange(len(labels)), torch.arange(0)
    return splits.split(labels, trained["val_size"], trained["split_seed"], trained["train_size"])


def some_of(indices: Tensor, n: int) -> Tensor:
    """The same `n` each time (all where there are fewer), from all over: data may be in the order of its classes."""
    return indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))[:n]]


def calibration_images(classifier: Classifier, dataset: Dataset, trained: dict[str, Any]) -> Tensor:
    """What int8 is calibrated on: some of the training images, normalised, float32 (n, c, h, w)."""
    training, _ = known_split(dataset, trained)
    count = min(_CALIBRATION_IMAGES, max(1, _CALIBRATION_NUMBERS // dataset.train.images[0].numel()))
    return normalize(dataset.train.images[some_of(training, count)], classifier.mean, classifier.std)


def quantize(classifier: Classifier, dataset: Dataset, trained: dict[str, Any]) -> Engine:
    """The network in int8, calibrated on some of the images that it was trained on."""
    return engine.compile_network(
        classifier.network,
        classifier.image_shape,
        precision="int8",
        calibration=calibration_images(classifier, dataset, trained),
    )
