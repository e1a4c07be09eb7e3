"""`budgetnet serve`."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from budgetnet.cli.common import command_parser, warn
from budgetnet.cli.model import (
    add_data,
    add_engine,
    add_model,
    classifier_of,
    computed_by,
    computing_network,
    dataset_of,
)
from budgetnet.errors import DataError

if TYPE_CHECKING:
    import torch

    from budgetnet.classifier import Classifier


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(
        commands, "serve", _serve, "start a web page on which to try a model, by hand or by program", json=False
    )
    add_model(command)
    add_data(command)
    add_engine(command, precision=False)
    command.set_defaults(json=False)
    command.add_argument(
        "--host", default="127.0.0.1", help="address or name to listen on (default 127.0.0.1: this machine alone)"
    )
    command.add_argument("--port", type=int, default=8000, help="to listen on; 0 is any that is free (default 8000)")


def _serve(options: Namespace) -> int:
    from budgetnet import guard, models, serve
    from budgetnet.demo import Demo
    from budgetnet.logits import predict_logits

    listener, url = guard.listen(options.host, options.port)  # before the model: a port that is taken is told at once
    with listener:
        classifier = classifier_of(options)
        classifier.network.eval()
        network = computing_network(options, classifier)
        examples, source = _examples(options, classifier)

        def predict(images: torch.Tensor) -> torch.Tensor:
            return predict_logits(network, images, classifier.mean, classifier.std).softmax(1)

        demo = Demo(
            name=classifier.model.name,
            parameters=models.count_parameters(classifier.network),
            engine="ONNX Runtime" if computed_by(network)["engine"] == "onnx" else "PyTorch",
            classes=classifier.classes,
            image_size=classifier.image_size,
            predict=predict,
            examples=examples,
            source=source,
        )
        if not guard.is_loopback(listener):
            warn(f"{options.host} is not this machine alone: whoever reaches it can send pictures, without a password")
        print(f"{url} shows {options.checkpoint}; Ctrl-C stops it", flush=True)
        limits = guard.Limits()
        guard.run(serve.application(demo, limits, [options.host]), listener, limits)
    return 0


def _examples(options: Namespace, classifier: Classifier) -> tuple[list[Any], str]:
    """Test images where they are at hand, without a download, else drawn pictures; and which of both."""
    from budgetnet import origin
    from budgetnet.demo import drawn_examples, examples_of

    trained = origin.trained_on(options.checkpoint, classifier)
    asked = options.data or options.dataset
    if asked or trained.get("dataset") == "digits" or ("dataset" in trained and os.environ.get("BUDGETNET_DATA")):
        try:
            dataset = dataset_of(options, classifier, trained)
            return examples_of(dataset.test, dataset.classes), dataset.name
        except DataError:
            if asked:
                raise
    return drawn_examples(classifier.image_size), "drawn"
