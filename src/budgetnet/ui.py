"""MLflow's own page, on this machine alone and in this process alone, so that whatever ends it ends all of it."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from budgetnet import mlclient, store
from budgetnet.errors import BudgetnetError, ConfigError
from budgetnet.masking import mask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_NAMES = ("localhost", "127.0.0.1", "::1")


def find(asked: str | None) -> str:
    """The URI of a store, with its secrets.

    Args:
        asked: a URI, or an `mlflow.db`; None is the store that a new run goes to.

    Raises:
        BudgetnetError: there is nothing.
    """
    uri = asked or store.usual()
    if "://" not in uri:
        uri = f"sqlite:///{Path(uri).resolve()}"
    found = re.fullmatch(r"sqlite:///([^?:]+)", uri)
    if found and not Path(found[1]).is_file():
        raise ConfigError(f"{found[1]} is not there: give --store the mlflow.db of a run, or the URI of a store")
    return uri


def has_page(uri: str) -> bool:
    """Whether a store is a server, which has its page itself."""
    return uri.startswith(("http://", "https://"))


def open_page(uri: str, listener: socket.socket) -> Callable[[], None]:
    """Prepare MLflow's page of a store.

    It is the part of MLflow's server that shows and records runs; its gateway, its assistant, which runs programs, and
    its jobs are left out. Every thread is this process's.

    Args:
        uri: of the store, which is a database or a folder.
        listener: of the loopback.

    Returns:
        What serves until it is interrupted, and then returns.

    Raises:
        BudgetnetError: MLflow is not installed, or cannot read the store.
    """
    with mlclient.silence():
        try:
            application = _application(uri)
        except ImportError as error:
            raise BudgetnetError(f"cannot show {mask(uri)}: {mlclient.why(error)}") from error
        except Exception as error:  # as of SQLAlchemy, or of a database that another version made
            raise BudgetnetError(f"cannot show {mask(uri)}: MLflow says {mlclient.why(error)}") from error
        from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass  # nobody looks at them

    host, port = listener.getsockname()[:2]
    guarded = only_own(application, port)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server(host, port, guarded, threaded=True, request_handler=Silent, fd=listener.fileno())
    return server.serve_forever


def only_own(application: WSGIApplication, port: int) -> WSGIApplication:
    """A WSGI application that is asked by its own page, and by programs of this machine, and by nobody else.

    A stranger's page, whose name is made to lead to this machine (DNS rebinding), has another Host; one that asks from
    elsewhere, or from another port of this machine, has another Origin.
    """

    def guarded(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        own = _is_own(f"http://{environ.get('HTTP_HOST', '')}", port)
        if own and (origin is None or _is_own(origin, port)):
            return application(environ, start)
        status = HTTPStatus.FORBIDDEN
        start(f"{status.value} {status.phrase}", [("content-type", "text/plain"), ("connection", "close")])
        return [b"asked by a page that is not this server's own, or by a name that is not this machine's\n"]

    return guarded


def _is_own(url: str, port: int) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and parts.hostname in _NAMES and (parts.port or 80) == port
    except ValueError:
        return False


def _application(uri: str) -> WSGIApplication:
    client_class = mlclient.import_mlflow()
    client_class(uri).search_experiments(max_results=1)
    # As MLflow's own command tells its server, which reads them when it is imported and when it is first asked.
    database = re.fullmatch(r"sqlite:///([^?:]+)", uri)
    artifacts = (Path(database[1]).parent if database else Path.cwd()) / "mlruns"
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": uri,
        "_MLFLOW_SERVER_REGISTRY_STORE": uri,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": artifacts.as_uri(),  # of experiments that are made on the page
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    try:
        from mlflow.server import app
        from mlflow.server.handlers import initialize_backend_stores
    except ModuleNotFoundError as error:
        raise ImportError("the page comes with the whole of MLflow (pip install mlflow)") from error
    initialize_backend_stores(uri, uri, artifacts.as_uri())
    application: WSGIApplication = app
    return application
