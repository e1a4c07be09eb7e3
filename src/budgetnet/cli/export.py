"""`budgetnet export`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from budgetnet.cli.common import command_parser, json_text, path
from budgetnet.cli.model import CHECKPOINT, add_data, dataset_of, load_model


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(
        commands, "export", _export, "write a model for other programs, and compare the file with the original"
    )
    command.add_argument("checkpoint", type=path, help=CHECKPOINT)
    command.add_argument("--model", metavar="NAME", help="network of a checkpoint of the reference project")
    command.add_argument(
        "--format",
        choices=("onnx", "torch", "safetensors", "openvino", "hub"),
        default="onnx",
        help="hub is a folder for Hugging Face (default onnx)",
    )
    command.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="fp16 halves the file and computes in 32 bits; int8 is calibrated on training images (default fp32)",
    )
    command.add_argument("--output", type=path, metavar="FILE", required=True, help="the file, or the folder for hub")
    add_data(command)
    command.add_argument(
        "--split", choices=("val", "test"), help="images to compare with (default: val where there are such)"
    )
    command.add_argument(
        "--limit", type=int, metavar="N", default=1000, help="so many of them, each class in its share (default 1000)"
    )
    command.add_argument(
        "--max-loss", type=float, metavar="POINTS", default=1.0, help="of accuracy that it may lose (default 1)"
    )
    command.add_argument(
        "--page", action="store_true", help="write index.html beside the onnx file: it classifies in the browser"
    )


def _export(options: Namespace) -> int:
    from budgetnet import checkpoint, export, origin, registry

    export.check(options.format, options.precision, options.checkpoint, options.output, options.max_loss, options.page)
    classifier = load_model(options.checkpoint, options.model)
    # Of a run, the card of a hub folder has the figures.
    source = options.checkpoint
    if not registry.is_registered(source):
        source = checkpoint.located(source)
    dataset = dataset_of(options, classifier, origin.trained_on(options.checkpoint, classifier))
    compared = export.export(
        classifier,
        source,
        options.output,
        dataset,
        form=options.format,
        precision=options.precision,
        split=options.split,
        limit=options.limit,
        most_lost=options.max_loss,
        page=options.page,
    )
    if options.json:
        print(json_text({"checkpoint": str(options.checkpoint), "output": str(options.output), **compared.to_dict()}))
        return 0
    print(export.render(compared, options.output))
    if options.page:
        print(export.PAGE_HINT.format(folder=options.output.parent))
    return 0
