"""What a run records while it trains: metrics.csv, always, and a copy of the run in MLflow.

The run folder is the source of truth. MLflow holds a copy of it, which is brought up to date by comparing the two: a
resumed run, a run whose server was away, and `budgetnet track RUN` all go through the same comparison, so that nothing
is sent twice and nothing that failed is lost. A failing server costs seconds and one warning, never a training.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import io
import json
import logging
import numbers
import os
import re
import reprlib
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from budgetnet.checkpoint import digest
from budgetnet.config import parse_yaml
from budgetnet.errors import BudgetnetError, DataError, TrainingError
from budgetnet.files import atomic_write

Status = Literal["FINISHED", "KILLED", "FAILED"]
T = TypeVar("T")

# Limits in seconds. MLflow's own limits are per request and per silence, so that a server which trickles, a queue of
# retries or a locked database (20 s a statement) would outlast them.
_PROBE_SECONDS = 2.0
_CALL_SECONDS = 15.0
_OPEN_SECONDS = 30.0  # SQLite makes its database meanwhile: 2 s, and more on a busy machine
_UPLOAD_SECONDS = 60.0
_SEND_SECONDS = 1800.0  # `budgetnet track`, where a person waits for the upload and can stop it

_RUN_TAG = "budgetnet.run"
_WEIGHTS_TAG = "budgetnet.weights"
_BATCH = 100  # MLflow's limit of parameters and of tags in a call; that of metrics is 1000


class Metrics:
    """The file metrics.csv of a run: a header from the first row's keys, then a row an epoch.

    A row is on the disk when `append` returns. A last line that a crash has torn is never read and is removed before
    the next row is written.

    Args:
        path: the file, new or of the run that is resumed; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] | None = None

    def append(self, row: Mapping[str, float | int]) -> None:
        """Add a row.

        Args:
            row: the epoch under "epoch", and numbers under the names that the first row has.

        Raises:
            DataError: the file that is there is damaged.
            TrainingError: the names differ from the file's, or the file cannot be written.
        """
        columns = self._columns
        if columns is None:
            columns, rows, torn = _parse_metrics(self._path)
            if torn:
                self._rewrite(columns, rows)
        new = not columns
        columns = columns or list(row)
        if set(row) != set(columns):
            raise TrainingError(
                f"{self._path}: the columns are {', '.join(columns)} and the new row has {', '.join(row)}; "
                "train into a new folder"
            )
        lines = [columns] if new else []
        lines.append([_number(row[name]) for name in columns])
        try:
            with self._path.open("ab") as file:
                file.write(_csv(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TrainingError(
                f"cannot write {self._path}: {error.strerror or error}; free some space or choose another folder"
            ) from error
        self._columns = columns

    def truncate(self, epoch: int) -> None:
        """Drop the rows after an epoch, which a run that is resumed from an earlier checkpoint writes again.

        Args:
            epoch: the last epoch that stays.

        Raises:
            DataError: the file is damaged, or cannot be written.
        """
        columns, rows, torn = _parse_metrics(self._path)
        if columns and "epoch" not in columns:
            raise DataError(f"{self._path}: expected a column epoch, found {', '.join(columns)}; remove the file")
        kept = [row for row in rows if float(row[columns.index("epoch")]) <= epoch]
        if torn or len(kept) < len(rows):
            self._rewrite(columns, kept)

    def _rewrite(self, columns: list[str], rows: list[list[str]]) -> None:
        atomic_write(self._path, _csv([columns, *rows]) if columns else b"")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read metrics.csv.

    Args:
        path: the file; where it is missing, no epoch has ended.

    Returns:
        A dictionary an epoch, in the order of the file, without a torn last line.

    Raises:
        DataError: the file is damaged elsewhere than at its end, or cannot be read.
    """
    columns, rows, _ = _parse_metrics(path)
    return [dict(zip(columns, map(float, row), strict=True)) for row in rows]


class Tracker:
    """The MLflow copy of one run, kept while it trains; a server that fails never raises here.

    The store is the one that MLFLOW_TRACKING_URI names, else the one that RUN/mlflow.json remembers, else
    `mlflow.db` in the current folder with its artifacts in `mlruns` beside it. A tracking URI's user, password and
    tokens are neither printed nor kept in mlflow.json: to resume such a run, set MLFLOW_TRACKING_URI again.

    Upon the first failure of any kind `warn` is called, once, and the rest of the run is kept in its folder only.

    Args:
        run: the run folder.
        experiment: name of the MLflow experiment.
        warn: called with one line, from the thread that called the tracker.
        enabled: false does nothing and never imports MLflow.
    """

    def __init__(self, run: Path, *, experiment: str, warn: Callable[[str], None], enabled: bool = True) -> None:
        self._run = run
        self._experiment = experiment
        self._warn = warn
        self._enabled = enabled
        self._copy: _Copy | None = None

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Create the MLflow run, or continue the one that RUN/mlflow.json records.

        Takes seconds: MLflow is imported, and its database made where there is none. A run that continues gets the
        epochs that RUN/metrics.csv has and it lacks; a parameter that has changed keeps its first value and puts the
        new one in a tag, `resumed.NAME`, as MLflow parameters cannot change.

        Args:
            name: name of the run.
            params: the configuration; nested keys become dotted names (`optimizer.lr`).
            tags: further facts (git commit, data checksum, parameter count).
        """
        if not self._enabled:
            return
        with self._guarded("starting the run"):
            record = _Record.load(self._run) or _Record(experiment=self._experiment)
            record = replace(record, name=name, tags=dict(tags))
            opened = _open(self._run, record)
            flat = _flatten(params)
            rows = read_metrics(self._run / "metrics.csv")
            _within(_CALL_SECONDS, lambda: opened.begin(flat, tags, rows))
            self._copy = opened

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Send an epoch's metrics, in one call; points that the MLflow run has already are left as they are.

        Args:
            row: the epoch under "epoch", which is the step, and the metrics.
        """
        opened = self._copy
        if opened is not None:
            with self._guarded(f"sending epoch {int(row['epoch'])}"):
                _within(_CALL_SECONDS, lambda: opened.rows([row]))

    def finish(
        self,
        status: Status,
        files: Sequence[Path],
        network: nn.Module | None,
        example: np.ndarray[Any, Any] | None,
        summary: Mapping[str, float],
    ) -> None:
        """Send the run's files, its final metrics and the model, and end the MLflow run.

        Args:
            status: how the run ended.
            files: what to send as artifacts; files of the same name are replaced.
            network: the model to send, not compiled, on any device, left unchanged; None sends none.
            example: (n, c, h, w), float32, normalised, n >= 2; given with `network`.
            summary: final metrics, logged as `final.NAME` at the last epoch.

        Raises:
            ValueError: `network` comes without an example of two or more images.
        """
        _check_example(network, example)
        opened = self._copy
        if opened is not None:
            with self._guarded("sending the results"):
                opened.complete(self._run, status, files, network, example, summary, _UPLOAD_SECONDS)

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            with _silence():
                yield
        except Exception as error:
            # Any exception at all: MLflow lets those of requests, SQLAlchemy, json and the operating system through,
            # and none of them is worth a training.
            self._enabled = False
            self._copy = None
            if isinstance(error, ImportError):
                self._warn(f"MLflow tracking is off: {_reason(error)}; everything is kept in {self._run}")
            else:
                self._warn(
                    f"MLflow tracking is off: {what} failed at {_where(self._run)} ({_reason(error)}); everything is "
                    f"kept in {self._run}, and `budgetnet track {self._run}` sends it later"
                )


def send(
    run: Path,
    *,
    load_network: Callable[[Path], tuple[nn.Module, np.ndarray[Any, Any]]],
    warn: Callable[[str], None],
) -> str:
    """Complete the MLflow copy of a run from its folder; what the store has already is not sent again.

    Args:
        run: the run folder.
        load_network: from best.safetensors to the network and an example, as `Tracker.finish` takes them.
        warn: called with a line where the run has not finished, and so has no model to send.

    Returns:
        The id of the MLflow run; RUN/mlflow.json has the store.

    Raises:
        BudgetnetError: the folder is no run, MLflow is not installed, or the store cannot be reached or fails.
    """
    params = _read_mapping(run / "config.yaml", parse_yaml)
    finished = (run / "summary.json").exists()
    summary = read_summary(run) if finished else {}
    record = _Record.load(run) or _Record(
        experiment=str(params.get("experiment", "budgetnet")), name=run.resolve().name
    )
    record = replace(record, name=summary.get("name", record.name), tags={**record.tags, **summary.get("tags", {})})
    names = ("config.yaml", "metrics.csv", "summary.json", "best.safetensors")
    files = [run / name for name in names if (run / name).exists()]
    network, example = None, None
    if finished and (run / "best.safetensors").exists():
        network, example = load_network(run / "best.safetensors")
        _check_example(network, example)
    if not finished:
        warn(f"{run} has no summary.json, so it has not finished: sending its epochs, without a model, as KILLED")
    try:
        with _silence():
            opened = _open(run, record)
            _within(_SEND_SECONDS, lambda: opened.describe(_flatten(params), record.tags, changes=False))
            status: Status = "FINISHED" if finished else "KILLED"
            opened.complete(run, status, files, network, example, summary.get("final", {}), _SEND_SECONDS)
    except BudgetnetError:
        raise
    except ImportError as error:
        raise BudgetnetError(f"cannot send {run}: {_reason(error)}") from error
    except Exception as error:
        raise BudgetnetError(
            f"cannot send {run} to {_where(run)}: {_reason(error)}; start the server, or set MLFLOW_TRACKING_URI to "
            "another store, and try again"
        ) from error
    return opened.run_id


@dataclass(frozen=True, kw_only=True)
class _Record:
    """RUN/mlflow.json: where the copy of the run is, written before the store is first asked.

    The key is a tag of the MLflow run, by which it is found again even when the answer to its creation was lost.
    """

    experiment: str
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    tracking_uri: str = ""
    run_id: str | None = None

    @classmethod
    def load(cls, run: Path) -> _Record | None:
        path = run / "mlflow.json"
        if not path.exists():
            return None
        try:
            return cls(**_read_mapping(path, json.loads))
        except TypeError as error:
            raise DataError(f"{path} is not what budgetnet wrote ({error}); remove it to send the run anew") from error

    def save(self, run: Path) -> None:
        atomic_write(run / "mlflow.json", (json.dumps(asdict(self), indent=2) + "\n").encode())


class _Copy:
    """A run in an MLflow store, and which points it has."""

    def __init__(self, client: Any, experiment_id: str, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._experiment_id = experiment_id
        found = client.get_run(run_id)
        self._status = str(found.info.status)
        self._params = dict(found.data.params)
        self._tags = dict(found.data.tags)
        self._points = {
            (name, point.step) for name in found.data.metrics for point in client.get_metric_history(run_id, name)
        }

    def begin(self, params: Mapping[str, str], tags: Mapping[str, str], rows: Sequence[Mapping[str, float]]) -> None:
        """Say that the run is running, and catch up with its folder."""
        if self._status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
            self._status = "RUNNING"
        self.describe(params, tags, changes=True)
        self.rows(rows)

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str], *, changes: bool) -> None:
        from mlflow.entities import Param, RunTag

        tags = dict(tags)
        if changes:
            tags |= {f"resumed.{k}": v for k, v in params.items() if k in self._params and self._params[k] != v}
        new_params = [Param(k, v) for k, v in params.items() if k not in self._params]
        new_tags = [RunTag(k, str(v)) for k, v in tags.items() if self._tags.get(k) != str(v)]
        for start in range(0, len(new_params), _BATCH):
            self._client.log_batch(self.run_id, params=new_params[start : start + _BATCH])
        for start in range(0, len(new_tags), _BATCH):
            self._client.log_batch(self.run_id, tags=new_tags[start : start + _BATCH])
        self._params |= {param.key: param.value for param in new_params}
        self._tags |= {tag.key: tag.value for tag in new_tags}

    def rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        self._log(
            [(name, float(value), int(row["epoch"])) for row in rows for name, value in row.items() if name != "epoch"]
        )

    def complete(
        self,
        run: Path,
        status: Status,
        files: Sequence[Path],
        network: nn.Module | None,
        example: np.ndarray[Any, Any] | None,
        final: Mapping[str, float],
        seconds: float,
    ) -> None:
        rows = read_metrics(run / "metrics.csv")
        last = max((int(row["epoch"]) for row in rows), default=0)

        def values_and_files() -> None:
            self.rows(rows)
            self._log([(f"final.{name}", float(value), last) for name, value in final.items()])
            for file in files:
                self._client.log_artifact(self.run_id, str(file))

        _within(seconds, values_and_files)
        if network is not None and example is not None:
            self._model(network, example, last, seconds)
        # Last, so that a run which says FINISHED has everything.
        if self._status != status:
            _within(_CALL_SECONDS, lambda: self._client.set_terminated(self.run_id, status))
            self._status = status

    def _log(self, points: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [Metric(name, value, now, step) for name, value, step in points if (name, step) not in self._points]
        for start in range(0, len(new), 1000):
            self._client.log_batch(self.run_id, metrics=new[start : start + 1000])
        self._points |= {(metric.key, metric.step) for metric in new}

    def _model(self, network: nn.Module, example: np.ndarray[Any, Any], step: int, seconds: float) -> None:
        """Log the model unless the run has one with these weights.

        Through the client and not mlflow.pytorch.log_model, which files the model under the process's active
        experiment and tracking URI instead of the run's.
        """
        import mlflow.pytorch
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        weights = digest({}, network.state_dict())

        def drop_unfinished() -> bool:
            found = self._client.search_logged_models([self._experiment_id], f"source_run_id = '{self.run_id}'")
            for model in found:
                if model.status != "READY":
                    self._client.delete_logged_model(model.model_id)
            return any(model.status == "READY" and model.tags.get(_WEIGHTS_TAG) == weights for model in found)

        if _within(_CALL_SECONDS, drop_unfinished):
            return
        network = copy.deepcopy(network).to("cpu").eval()
        with torch.no_grad():
            classes = network(torch.from_numpy(example)).shape[1]
        float32 = np.dtype(np.float32)
        signature = ModelSignature(
            Schema([TensorSpec(float32, (-1, *example.shape[1:]))]), Schema([TensorSpec(float32, (-1, classes))])
        )
        logged = _within(
            _CALL_SECONDS,
            lambda: self._client.create_logged_model(
                self._experiment_id, name="model", source_run_id=self.run_id, tags={_WEIGHTS_TAG: weights}
            ),
        )
        with tempfile.TemporaryDirectory() as folder:
            # pt2 is a traced graph: it loads without budgetnet and without running code from the file, where a pickle
            # needs both, and an example of two or more images leaves the batch size open. The requirements are given
            # because MLflow finds them out, slowly, by loading the model in another process.
            mlflow.pytorch.save_model(
                network,
                path=f"{folder}/model",
                mlflow_model=Model(
                    artifact_path=logged.artifact_location,
                    model_uuid=logged.model_id,
                    run_id=self.run_id,
                    model_id=logged.model_id,
                ),
                signature=signature,
                input_example=example,
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
                serialization_format="pt2",
            )

            def upload() -> None:
                self._client.log_model_artifacts(logged.model_id, f"{folder}/model")
                self._client.finalize_logged_model(logged.model_id, "READY")
                self._client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step)])

            _within(seconds, upload)


def _open(run: Path, record: _Record) -> _Copy:
    """Find the run in its store by its key, or create it, and remember it in RUN/mlflow.json."""
    uri = _store(run, record.tracking_uri)
    record = replace(record, tracking_uri=_mask(uri))
    record.save(run)
    _within(2 * _PROBE_SECONDS, lambda: _probe(uri))
    client_class = _import_mlflow()

    def find_or_create() -> _Copy:
        client = client_class(uri)
        experiment_id = _experiment(client, record.experiment, uri)
        found = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{record.key}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
        else:
            run_id = client.create_run(experiment_id, tags={_RUN_TAG: record.key}, run_name=record.name).info.run_id
        return _Copy(client, experiment_id, run_id)

    def open_alone() -> _Copy:
        with _locked(uri):
            return find_or_create()

    opened = _within(_OPEN_SECONDS, open_alone)
    replace(record, run_id=opened.run_id).save(run)
    return opened


@contextlib.contextmanager
def _locked(uri: str) -> Iterator[None]:
    """Let one process at a time open a SQLite store, as two that make its tables at once fail (measured, 3.17)."""
    if not uri.startswith("sqlite") or sys.platform == "win32":
        yield
        return
    import fcntl

    # Beside the database it would stay there for ever; the user's id, as others could not open it in a shared folder.
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"budgetnet-{os.getuid()}-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _experiment(client: Any, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # Of our own store we say where artifacts lie; of any other its owner has.
        location = (Path.cwd() / "mlruns").as_uri() if uri == _default_store() else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another run may have been first
            if found is None:
                raise
    return str(found.experiment_id)


def _import_mlflow() -> Any:
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


def _default_store() -> str:
    return f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def _store(run: Path, recorded: str) -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or recorded or _default_store()
    if uri == recorded and "***" in recorded:
        raise BudgetnetError(f"{run / 'mlflow.json'} names {recorded} without its password: set MLFLOW_TRACKING_URI")
    return uri


def _where(run: Path) -> str:
    """The store to name in a message, also when mlflow.json cannot be read."""
    try:
        record = _Record.load(run)
    except BudgetnetError:
        record = None
    return _mask(os.environ.get("MLFLOW_TRACKING_URI") or (record.tracking_uri if record else _default_store()))


def _mask(text: str) -> str:
    """Hide the user, the passwords and the tokens of the URIs in a text."""
    # SQLAlchemy allows a slash in a password, so all up to the last @ goes; a path may have an @ of its own.
    text = re.sub(r"\b(?!sqlite|file)([a-z][a-z0-9+.-]*://)[^\s'\"]*@", r"\1***@", text, flags=re.IGNORECASE)
    text = re.sub(
        r"([?&][\w-]*(?:password|passwd|pwd|token|secret)[\w-]*=)[^&\s'\"]*", r"\1***", text, flags=re.IGNORECASE
    )
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text


def _reason(error: BaseException) -> str:
    text = _mask(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _probe(uri: str) -> None:
    """Find out, without MLflow's retries, whether anything listens at an http(s) URI."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or urllib.request.getproxies().get(parts.scheme):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=_PROBE_SECONDS).close()


def _within(seconds: float, work: Callable[[], T]) -> T:
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

    thread = threading.Thread(target=body, name="budgetnet-mlflow", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no end after {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the Python warnings of MLflow and its dependencies, which no user of ours can mend, to themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested configuration to dotted names (`optimizer.lr`, `model.stages.0.width`) and texts as YAML would show."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(v, Mapping) for v in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": text for inner, text in _flatten(value).items()}
        else:
            flat[str(name)] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _check_example(network: nn.Module | None, example: np.ndarray[Any, Any] | None) -> None:
    if network is not None and (
        example is None or example.ndim != 4 or len(example) < 2 or example.dtype != np.float32
    ):
        found = "none" if example is None else f"{example.dtype} {example.shape}"
        raise ValueError(f"the example is {found}, expected float32 (n, c, h, w) with n >= 2")


def read_summary(run: Path) -> dict[str, Any]:
    """RUN/summary.json, which sums up a finished run.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    found = _read_mapping(run / "summary.json", json.loads)
    for key in ("final", "test", "tags", "hardware"):
        if not isinstance(found.get(key, {}), dict):
            raise DataError(
                f"{run / 'summary.json'} is damaged: {key} is {reprlib.repr(found[key])}, expected a mapping"
            )
    return found


def _read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}; expected a run folder that `budgetnet train` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {_reason(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}, expected a mapping")
    return found


def _number(value: float | int) -> str:
    return str(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))


def _csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _parse_metrics(path: Path) -> tuple[list[str], list[list[str]], bool]:
    """Columns, rows (texts of numbers) and whether a torn line follows them; no columns where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], [], False
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    whole = content[: content.rfind(b"\n") + 1]
    columns: list[str] = []
    rows: list[list[str]] = []
    for number, line in enumerate(whole.decode(errors="replace").splitlines(), start=1):
        try:
            cells = next(csv.reader([line]), [])
            if number == 1:
                columns = cells
                continue
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} cells under {len(columns)} columns")
            [float(cell) for cell in cells]
            if "epoch" in columns and not re.fullmatch("[0-9]{1,9}", cells[columns.index("epoch")]):
                raise ValueError("an epoch that is no number of one")
        except (ValueError, csv.Error) as error:
            raise DataError(f"{path}: line {number} is damaged ({error}); remove that line") from error
        rows.append(cells)
    return columns, rows, len(whole) < len(content)
