"""MLflow's client, kept quiet, and waited for only so long."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from budgetnet.errors import one_line
from budgetnet.masking import mask

T = TypeVar("T")

# Limits in seconds. MLflow's own limits are per request and per silence, so that a server which trickles, a queue of
# retries or a locked database (20 s a statement) would outlast them.
PROBE_SECONDS = 2.0
CALL_SECONDS = 15.0
OPEN_SECONDS = 30.0  # SQLite makes its database meanwhile: 2 s, and more on a busy machine
UPLOAD_SECONDS = 60.0
SEND_SECONDS = 1800.0  # `budgetnet track`, where a person waits for the upload and can stop it

THREADS = "budgetnet-mlflow"  # how the names of the threads begin in which MLflow works


def import_mlflow() -> Any:
    """The class MlflowClient, with MLflow told to be quiet, quick to give up, and not to report home.

    What the user has set in the environment is left as it is.
    """
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        if error.name != "mlflow":
            raise
        raise ImportError("MLflow is not installed (pip install mlflow)") from error
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient


def probe(uri: str) -> None:
    """See that somebody listens at an http(s) URI, without MLflow's retries, within `2 * PROBE_SECONDS`.

    Raises:
        Exception: nobody does, or it is no URI.
    """
    within(2 * PROBE_SECONDS, lambda: _connect(uri))


def _connect(uri: str) -> None:
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or urllib.request.getproxies().get(parts.scheme):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=PROBE_SECONDS).close()


def within(seconds: float, work: Callable[[], T]) -> T:
    """Do some work in another thread, and give up on it, leaving the thread behind, after so many seconds.

    Raises:
        TimeoutError: the work has not ended.
        Exception: what the work raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name=THREADS, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no end after {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]


def why(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters, masked."""
    text = mask(one_line(error))
    return text if len(text) <= 200 else text[:197] + "..."


class _InMLflowsThreads(type):
    def __subclasscheck__(cls, other: type) -> bool:
        return threading.current_thread().name.startswith(THREADS)


class _WarningsThere(Warning, metaclass=_InMLflowsThreads):
    """Stands for any warning, but in the threads in which MLflow works alone."""


def silence_threads() -> None:
    """Keep the warnings of MLflow and its dependencies to themselves in the threads in which MLflow works.

    `warnings.catch_warnings` changes the filters of all threads, and would hide what the training has to say, or
    restore the filters as another thread's block had them.
    """
    warnings.filterwarnings("ignore", category=_WarningsThere)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The same within a block, in which this thread waits for MLflow or is in it itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
