"""`budgetnet data`."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from budgetnet.cli.common import command_parser, json_text, path, progress_on


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    group = commands.add_parser("data", help="verify, describe or download data").add_subparsers(
        metavar="COMMAND", required=True
    )
    command = command_parser(group, "verify", _verify, "check data files, and look for duplicates", parent="data ")
    command.add_argument("path", type=path, nargs="?", help="a folder or file (default: where the data is looked for)")
    command = command_parser(
        group, "stats", _stats, "count classes, and measure pixel mean and deviation", parent="data "
    )
    command.add_argument("path", type=path, nargs="?", help="a folder or file (default: where the data is looked for)")
    command = command_parser(
        group, "download", _download, "fetch and verify an official archive", json=False, parent="data "
    )
    command.add_argument("name", choices=("cifar10", "cifar100"), nargs="?", default="cifar10")
    command.add_argument("--data", type=path, metavar="DIR", help="where to put it (default: $BUDGETNET_DATA, cache)")


def _verify(options: Namespace) -> int:
    from dataclasses import asdict

    from budgetnet import data, verification
    from budgetnet.markup import visible
    from budgetnet.terminal import columns, wrapped

    path = options.path or data.default_folder()
    found = verification.verify(path)
    if options.json:
        print(json_text({"path": str(path), **asdict(found)}))
        return 0
    print(f"{path}: {found.kind}, {found.images:,} images")
    for line in found.lines:
        print("\n".join(wrapped(f"  {visible(line)}", columns(), 4)))
    return 0


def _stats(options: Namespace) -> int:
    from budgetnet import data
    from budgetnet.markup import visible
    from budgetnet.terminal import cell_len, columns, fitted

    path = options.path or data.default_folder()
    images, classes = data.read_training(path)
    found = data.stats(images)
    # Labels may end below the last class.
    counts = {name: found.counts[i] if i < len(found.counts) else 0 for i, name in enumerate(classes)}
    if options.json:
        print(json_text({"path": str(path), "images": len(images.images), **vars(found), "counts": counts}))
        return 0
    print(f"{path}: {len(images.images):,} image{'s' * (len(images.images) != 1)}")
    names = [visible(name) for name in counts]
    width = min(max([20, *map(cell_len, names)]), columns() - 11)
    for name, count in zip(names, counts.values(), strict=True):
        print(f"  {fitted(name, width)} {count:>8,}")
    print("  mean " + " ".join(f"{x:.5f}" for x in found.mean))
    print("  std  " + " ".join(f"{x:.5f}" for x in found.std))
    return 0


def _download(options: Namespace) -> int:
    from budgetnet import data
    from budgetnet.download import download

    progress = progress_on(False, sys.stderr)
    try:
        folder = download(options.name, options.data or data.default_folder(), progress=progress.download)
    finally:
        progress.end()
    print(folder)
    return 0
