"""`budgetnet ui`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from budgetnet.cli.common import command_parser


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(
        commands, "ui", _ui, "show the runs in MLflow's page, which only this machine can reach", json=False
    )
    command.add_argument(
        "--store",
        metavar="URI",
        help="URI of a store, or an mlflow.db (default: $MLFLOW_TRACKING_URI, else the mlflow.db in this folder)",
    )
    command.add_argument("--port", type=int, default=5000, help="to listen on; 0 is any that is free (default 5000)")


def _ui(options: Namespace) -> int:
    from budgetnet import guard, mlclient, ui
    from budgetnet.masking import mask

    uri = ui.find(options.store)
    if ui.has_page(uri):
        print(f"{mask(uri)} is a server that has its page itself: open it there")
        return 0
    listener, url = guard.listen("127.0.0.1", options.port)  # before MLflow: a port that is taken is told at once
    with listener:
        serve = ui.open_page(uri, listener)
        print(f"{url} shows {mask(uri)}; Ctrl-C stops it", flush=True)
        with mlclient.silence():  # of what MLflow imports when it is first asked
            serve()
    raise KeyboardInterrupt  # by which alone that ends
