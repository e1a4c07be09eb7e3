"""A run's copy in an MLflow store: opened or begun there, compared with the run folder, and completed.

Every point has the time of the run's own clock, so that one which is sent twice (a request whose answer was lost, or
`budgetnet track` while the training still sends) is one and the same to MLflow.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import os
import re
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

from budgetnet import mlmodel
from budgetnet.checkpoint import digest
from budgetnet.classifier import Classifier
from budgetnet.errors import BudgetnetError, DataError
from budgetnet.files import atomic_write, flush
from budgetnet.lineage import Input
from budgetnet.masking import mask, masked
from budgetnet.metrics import read_epochs
from budgetnet.runs import read_mapping

Status = Literal["FINISHED", "KILLED", "FAILED"]
T = TypeVar("T")

# Limits in seconds. MLflow's own limits are per request and per silence, so that a server which trickles, a queue of
# retries or a locked database (20 s a statement) would outlast them.
PROBE_SECONDS = 2.0
CALL_SECONDS = 15.0
OPEN_SECONDS = 30.0  # SQLite makes its database meanwhile: 2 s, and more on a busy machine
UPLOAD_SECONDS = 60.0
SEND_SECONDS = 1800.0  # `budgetnet track`, where a person waits for the upload and can stop it

THREADS = "budgetnet-mlflow"  # how the names of the threads begin in which MLflow works

_RUN_TAG = "budgetnet.run"
_WEIGHTS_TAG = "budgetnet.weights"
_EXPERIMENT = {
    "mlflow.experimentKind": "custom_model_development",  # or the page guesses, and shows what chat bots are made with
    "mlflow.note.content": "Image classifiers within a budget of parameters, trained by budgetnet. Each run's "
    "description says how good it is, how its weights were chosen, and what its metrics mean.",
}
_BATCH = 100  # MLflow's limit of parameters and of tags in a call; that of metrics is 1000


@dataclass(frozen=True, kw_only=True)
class Record:
    """RUN/mlflow.json: where the copy of the run is, written before the store is first asked.

    The key is a tag of the MLflow run, by which it is found again even when the answer to its creation was lost.
    Secrets are masked in the file, the store's password among them.
    """

    experiment: str
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    tracking_uri: str = ""
    run_id: str | None = None
    begun: int = field(default_factory=lambda: int(time.time() * 1000))
    """When the run was first to be copied, in milliseconds since 1970: the times of its points count from there."""
    sent: bool = False
    """Whether the store has all of a finished run."""

    @classmethod
    def load(cls, run: Path) -> Record | None:
        """What the run folder has, or None.

        Raises:
            DataError: the file is damaged.
        """
        path = run / "mlflow.json"
        if not path.exists():
            return None
        try:
            return cls(**read_mapping(path, json.loads))
        except TypeError as error:
            raise DataError(f"{path} is not what budgetnet wrote ({error}); remove it to send the run anew") from error

    def save(self, run: Path) -> None:
        """Write the file.

        Raises:
            DataError: it cannot be written.
        """
        atomic_write(run / "mlflow.json", (json.dumps(masked(asdict(self)), indent=2) + "\n").encode())


def note_sent(run: Path, status: Status) -> None:
    """Remember that the store has all of a run, if it has finished."""
    record = Record.load(run)
    if record is not None and status == "FINISHED":
        replace(record, sent=True).save(run)


class Copy:
    """A run in an MLflow store, and which points it has; what it is given more than once, it sends once.

    Every method may raise anything at all: MLflow lets the exceptions of requests, SQLAlchemy, json and the operating
    system through.
    """

    def __init__(self, client: Any, experiment_id: str, run_id: str, record: Record) -> None:
        self.run_id = run_id
        self._key = record.key
        self._begun = record.begun
        self._client = client
        self._experiment_id = experiment_id
        found = client.get_run(run_id)
        self._status = str(found.info.status)
        self._params = dict(found.data.params)
        self._tags = dict(found.data.tags)
        self._inputs = {
            (entry.dataset.name, entry.dataset.digest)
            for entry in (found.inputs.dataset_inputs if found.inputs else ())
        }
        self._points = {
            (name, point.step) for name in found.data.metrics for point in client.get_metric_history(run_id, name)
        }

    def begin(
        self,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        inputs: Sequence[Input],
        rows: Sequence[Mapping[str, float]],
    ) -> None:
        """Say that the run is running, and catch up with its folder."""
        if self._status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
            self._status = "RUNNING"
        self.describe(params, tags, changes=True)
        self.inputs(inputs)
        self.rows(rows)

    def drop_others(self) -> None:
        """Delete further MLflow runs of the same run folder.

        A request to create one that is not answered in time is repeated, and a server whose database is locked still
        obeys both when it can.
        """
        for other in _runs(self._client, self._experiment_id, self._key):
            if other != self.run_id:
                self._client.delete_run(other)

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str], *, changes: bool) -> None:
        """Send parameters and tags, masked; with `changes`, a parameter that has another value there as a tag."""
        from mlflow.entities import Param, RunTag

        params, tags = masked(params), masked(tags)
        if changes:
            changed = {f"resumed.{k}": v for k, v in params.items() if k in self._params and self._params[k] != v}
            tags = {**tags, **changed}
        new_params = [Param(k, v) for k, v in params.items() if k not in self._params]
        new_tags = [RunTag(k, str(v)) for k, v in tags.items() if self._tags.get(k) != str(v)]
        for start in range(0, len(new_params), _BATCH):
            self._client.log_batch(self.run_id, params=new_params[start : start + _BATCH])
        for start in range(0, len(new_tags), _BATCH):
            self._client.log_batch(self.run_id, tags=new_tags[start : start + _BATCH])
        self._params |= {param.key: param.value for param in new_params}
        self._tags |= {tag.key: tag.value for tag in new_tags}

    def inputs(self, inputs: Sequence[Input]) -> None:
        """Send the data that the run was trained, validated and tested on."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        new = [
            DatasetInput(
                Dataset(each.name, each.digest, each.source_type, each.source, each.schema, each.profile),
                [InputTag("mlflow.data.context", each.context)],
            )
            for each in inputs
            if (each.name, each.digest) not in self._inputs
        ]
        if new:
            try:
                self._client.log_inputs(self.run_id, datasets=new)
            except MlflowException:
                # MLflow looks for a data set and then adds it: of two runs that begin together, one is refused. By now
                # it is there.
                self._client.log_inputs(self.run_id, datasets=new)
        self._inputs |= {(each.name, each.digest) for each in inputs}

    def rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Send rows of metrics.csv and system.csv, the epoch being the step."""
        self._log(
            [
                (name, float(value), int(row["epoch"]), row.get("seconds", 0.0))
                for row in rows
                for name, value in row.items()
                if name != "epoch"
            ]
        )

    def complete(
        self,
        run: Path,
        status: Status,
        files: Sequence[Path],
        classifier: Classifier | None,
        final: Mapping[str, float],
        tags: Mapping[str, str],
        seconds: float,
    ) -> None:
        """Send what is missing: rows, final metrics, tags, files, the model, and last how the run ended, and when.

        When it ended is by its own clock: pauses between its parts are not counted, nor the time since.
        """
        rows = read_epochs(run)
        last = max((int(row["epoch"]) for row in rows), default=0)
        clock = max((row.get("seconds", 0.0) for row in rows), default=0.0)

        def values_and_files() -> None:
            self.rows(rows)
            self._log([(f"final/{name}", float(value), last, clock) for name, value in final.items()])
            self.describe({}, tags, changes=False)
            for file in files:
                self._client.log_artifact(self.run_id, str(file))

        within(seconds, values_and_files)
        if classifier is not None:
            self._model(classifier, last, seconds)
        # Last, so that a run which says FINISHED has everything.
        if self._status != status:
            ended = self._begun + round(1000 * clock)
            within(CALL_SECONDS, lambda: self._client.set_terminated(self.run_id, status, ended))
            self._status = status

    def _log(self, points: Sequence[tuple[str, float, int, float]]) -> None:
        """Send points: name, value, step, and seconds on the run's clock."""
        from mlflow.entities import Metric

        new = [
            Metric(name, value, self._begun + round(1000 * seconds), step)
            for name, value, step, seconds in points
            if (name, step) not in self._points
        ]
        for start in range(0, len(new), 1000):
            self._client.log_batch(self.run_id, metrics=new[start : start + 1000])
        self._points |= {(metric.key, metric.step) for metric in new}

    def _model(self, classifier: Classifier, step: int, seconds: float) -> None:
        """Log the model unless the run has one with these weights.

        Through the client and not mlflow.pytorch.log_model, which files the model under the process's active
        experiment and tracking URI instead of the run's.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        weights = digest({}, classifier.network.state_dict())

        def models() -> list[Any]:
            of_this_run = f"source_run_id = '{self.run_id}'"
            return list(self._client.search_logged_models([self._experiment_id], of_this_run))

        def create() -> Any:
            # Death may also come between a model's completion and its entry as what the run has put out.
            outputs = {output.model_id for output in self._client.get_run(self.run_id).outputs.model_outputs}
            there = [model for model in models() if model.status == "READY" and model.model_id in outputs]
            if any(model.tags.get(_WEIGHTS_TAG) == weights for model in there):
                return None
            new = self._client.create_logged_model(
                self._experiment_id, name="model", source_run_id=self.run_id, tags={_WEIGHTS_TAG: weights}
            )
            for model in models():  # left behind by a training that died, or by a request that was repeated
                if model.model_id not in (new.model_id, *(one.model_id for one in there)):
                    self._client.delete_logged_model(model.model_id)
            return new

        logged = within(CALL_SECONDS, create)
        if logged is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            model = Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                run_id=self.run_id,
                model_id=logged.model_id,
            )
            mlmodel.save(classifier, Path(folder) / "model", model)

            def upload() -> None:
                self._client.log_model_artifacts(logged.model_id, f"{folder}/model")
                self._client.finalize_logged_model(logged.model_id, "READY")
                self._client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step)])

            within(seconds, upload)


def prepare(run: Path, record: Record) -> tuple[str, Record]:
    """Settle where the copy is, remember it in RUN/mlflow.json, see that somebody listens there, and import MLflow.

    Waits for a server at most `2 * PROBE_SECONDS`; importing MLflow takes some two seconds.

    Returns:
        The URI of the store, with its secrets, and the record as it was written.

    Raises:
        Exception: anything at all, like the methods of `Copy`.
    """
    uri, shown = _store(run, record.tracking_uri)
    record = replace(record, tracking_uri=shown)
    record.save(run)
    within(2 * PROBE_SECONDS, lambda: _probe(uri))
    import_mlflow()
    return uri, record


def open_copy(run: Path, record: Record, uri: str) -> Copy:
    """Find the run in its store by its key, or create it, and remember its id in RUN/mlflow.json; after `prepare`."""
    client_class = import_mlflow()
    with _locked(uri):
        _make_database(client_class, uri)
        client = client_class(uri)
        experiment_id = _experiment(client, record.experiment, uri)
        if not (found := _runs(client, experiment_id, record.key)):
            tags = {_RUN_TAG: record.key, **_made_by()}
            client.create_run(experiment_id, start_time=record.begun, tags=tags, run_name=record.name)
            found = _runs(client, experiment_id, record.key)
        run_id = record.run_id if record.run_id in found else found[0]
        opened = Copy(client, experiment_id, run_id, record)
    replace(record, run_id=run_id).save(run)
    opened.drop_others()
    return opened


def _made_by() -> dict[str, str]:
    """What MLflow's table says of where a run is from."""
    tags = {"mlflow.source.name": "budgetnet train", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container may know no name of its user
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _runs(client: Any, experiment_id: str, key: str) -> list[str]:
    """Ids of the MLflow runs of a key, the oldest first."""
    tagged, by_age = f"tags.`{_RUN_TAG}` = '{key}'", ["attributes.start_time ASC"]
    return [found.info.run_id for found in client.search_runs([experiment_id], tagged, order_by=by_age)]


def usual() -> str:
    """The store that a new run goes to, with its secrets: MLFLOW_TRACKING_URI's, else `mlflow.db` in this folder.

    Raises:
        BudgetnetError: it is the latter, and not there.
    """
    return _there(os.environ.get("MLFLOW_TRACKING_URI") or _default_store())


def _there(uri: str) -> str:
    if uri == _default_store() and not (Path.cwd() / "mlflow.db").is_file():
        raise BudgetnetError(
            "there is no mlflow.db in this folder: go to the one with the runs, or set MLFLOW_TRACKING_URI"
        )
    return uri


def fetch(experiment: str, folder: Path) -> tuple[list[Path], int]:
    """Copy the records of an experiment's runs (not their weights) out of MLflow.

    The store is the one that MLFLOW_TRACKING_URI names, else `mlflow.db` in the current folder.

    Args:
        experiment: its name.
        folder: where to, new folders in it.

    Returns:
        A folder for each run, the oldest first, as `train` writes them and called as the run is, and how many runs
        have no record there.

    Raises:
        BudgetnetError: MLflow is not installed, the store cannot be reached, or it has no such experiment.
    """

    def copy_records(client: Any, shown: str) -> tuple[list[Path], int]:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = ", ".join(sorted(each.name for each in client.search_experiments())) or "none"
            raise BudgetnetError(f"{shown} has no experiment {experiment!r}: it has {names}")
        copied, without = [], 0
        order = ["attributes.start_time ASC"]
        for run in client.search_runs([found.experiment_id], order_by=order, max_results=10_000):
            held = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
            if not {"config.yaml", "metrics.csv"} <= held:
                without += 1
                continue
            # A server says what both are; the id keeps apart runs of the same name.
            run_id, name = (re.sub(r"[^\w.-]", "_", text) for text in (run.info.run_id, run.info.run_name or "run"))
            target = folder / f"_{run_id}" / (name if name.strip(".") else "run")
            target.mkdir(parents=True)
            for name in ("config.yaml", "metrics.csv", "summary.json"):
                if name in held:
                    client.download_artifacts(run.info.run_id, name, str(target))
            copied.append(target)
        return copied, without

    return ask(copy_records)


def ask(work: Callable[[Any, str], T], run: Path | None = None) -> T:
    """Do something with the store that MLFLOW_TRACKING_URI names, else with `mlflow.db` in the current folder.

    Args:
        work: given an MlflowClient, and the store's URI to name in messages.
        run: a run folder, whose own store comes before the current folder's.

    Raises:
        BudgetnetError: `work` raised it, MLflow is not installed, or the store cannot be reached or fails.
    """
    record = Record.load(run) if run else None
    uri = _there(_store(run or Path(), record.tracking_uri if record else "")[0])
    try:
        with silence():
            within(2 * PROBE_SECONDS, lambda: _probe(uri))
            return within(SEND_SECONDS, lambda: work(import_mlflow()(uri), mask(uri)))
    except BudgetnetError:
        raise
    except Exception as error:
        raise BudgetnetError(
            f"MLflow at {mask(uri)} fails: {why(error)}; start the server, or name another store by MLFLOW_TRACKING_URI"
        ) from error


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


def _make_database(client_class: Any, uri: str) -> None:
    """Make the file of a SQLite store, whole or not at all; nobody else makes it meanwhile.

    MLflow makes its tables in steps that are no transaction. Killed in between, it can never open the file again.
    """
    found = re.fullmatch(r"sqlite:///([^?:]+)", uri)  # not :memory:
    database = Path(found[1]) if found else None
    if database is None or database.exists() or not database.parent.is_dir():
        return
    part = database.with_name(f".{database.name}.part")
    for rest in (part, part.with_name(f"{part.name}-journal")):
        rest.unlink(missing_ok=True)
    client_class(f"sqlite:///{part}").search_experiments(max_results=1)
    flush(part)
    part.rename(database)
    flush(database.parent)


def _experiment(client: Any, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # Of our own store we say where artifacts lie; of any other its owner has.
        location = (Path.cwd() / "mlruns").as_uri() if uri == _default_store() else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another run may have been first
            if found is None:
                raise
    return str(found.experiment_id)


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


def _default_store() -> str:
    return f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def _store(run: Path, recorded: str) -> tuple[str, str]:
    """The URI of the store, and the same as it is recorded, masked.

    To a server whose password is not recorded, MLflow sends MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or recorded or _default_store()
    if uri != recorded or "***" not in recorded:
        return uri, mask(uri)
    if recorded.startswith("http") and os.environ.get("MLFLOW_TRACKING_USERNAME"):
        uri = recorded.replace("://***@", "://")
    if "***" in uri:
        raise BudgetnetError(
            f"{run / 'mlflow.json'} names {recorded} without its password: set MLFLOW_TRACKING_URI, or for an http "
            "server MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri, recorded


def where(run: Path) -> str:
    """The store to name in a message, masked, also when mlflow.json cannot be read."""
    try:
        record = Record.load(run)
    except BudgetnetError:
        record = None
    return mask(os.environ.get("MLFLOW_TRACKING_URI") or (record.tracking_uri if record else _default_store()))


def why(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters, masked."""
    text = mask(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _probe(uri: str) -> None:
    """Find out, without MLflow's retries, whether anything listens at an http(s) URI."""
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
