"""The weights that a training starts from, where they are those of a trained network, whole or made smaller."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet import checkpoint, optim, origin
from budgetnet.classifier import Classifier
from budgetnet.config import Config, ModelConfig
from budgetnet.data import Dataset
from budgetnet.errors import ConfigError
from budgetnet.inputs import normalize
from budgetnet.models import shrink

_NORM_IMAGES, _NORM_BATCH = 2000, 500


def made_smaller(classifier: Classifier, model: ModelConfig, source: str) -> nn.Module:
    """The classifier's network, changed in place to what `model.channels` and `model.ranks` leave of it.

    Raises:
        ConfigError: it is factored already, and otherwise; or it has fewer channels.
    """
    own = classifier.model
    if (own.channels, own.ranks) == (model.channels, model.ranks):
        return classifier.network
    if own.ranks is not None:
        raise ConfigError(
            f"{source} is factored already, and its convolutions are two each: compress what it was made from"
        )
    shrink.reduce(classifier.network, model.channels, model.ranks, trained=True)
    return classifier.network


def load(network: nn.Module, config: Config, dataset: Dataset, indices: Tensor) -> dict[str, Any]:
    """Copy the weights of `config.start` into a network that `config.model` describes.

    Where that is smaller, its norms get statistics of their own, from some of the images that are trained on: those of
    `dataset` at the places `indices`, int64 (n,).

    Returns:
        What the file of a training says of where it comes from: `sha256` and `parameters` of the model, and its
        `val_accuracy` or None.

    Raises:
        CheckpointError: the file is missing, damaged, holds no model, or another network.
        ConfigError: it was trained on other data, or holds out other images, so that scores would be of images that
            were trained on.
    """
    assert config.start is not None
    name = config.start
    path = checkpoint.weights_file(checkpoint.located(Path(name).expanduser()))
    classifier = checkpoint.load_classifier(path)
    trained = origin.trained_on(path, classifier)
    if not trained:
        raise ConfigError(f"{name} does not say what it was trained on, so that nothing could be held out: train anew")
    if (classifier.classes, trained["data_checksum"]) != (dataset.classes, dataset.checksum):
        raise ConfigError(
            f"{name} was trained on other data than these of {dataset.name} (checksum {trained['data_checksum'][:12]}, "
            f"found {dataset.checksum[:12]}): give the --data that it was trained on"
        )
    origin.require_unseen(name, trained, config, dataset)
    parameters = classifier.parameters
    smaller = made_smaller(classifier, config.model, name)
    if (classifier.model.channels, classifier.model.ranks) != (config.model.channels, config.model.ranks):
        images = dataset.train.images[origin.some_of(indices, _NORM_IMAGES)]
        batches = (normalize(batch, classifier.mean, classifier.std) for batch in torch.split(images, _NORM_BATCH))
        optim.estimate_norms(smaller, batches)
    checkpoint.load_strictly(network, smaller.state_dict(), name, config.model.name)
    accuracy = classifier.provenance.get("val_accuracy")
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": parameters,
        "val_accuracy": accuracy if isinstance(accuracy, float) else None,
    }
