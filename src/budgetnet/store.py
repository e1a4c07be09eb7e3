"""The MLflow store that has a run's copy: which one it is, opened, and asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from budgetnet import mlclient, mlrun
from budgetnet.errors import BudgetnetError, DataError
from budgetnet.files import atomic_write, flush
from budgetnet.masking import mask, masked
from budgetnet.mlclient import import_mlflow, why
from budgetnet.mlrun import Copy, Status
from budgetnet.runfiles import CONFIG, METRICS, MLFLOW, SUMMARY
from budgetnet.runs import read_mapping

T = TypeVar("T")

_EXPERIMENT = {
    "mlflow.experimentKind": "custom_model_development",  # or the page guesses, and shows what chat bots are made with
    "mlflow.note.content": "Image classifiers within a budget of parameters, trained by budgetnet. Each run's "
    "description says how good it is, how its weights were chosen, and what its metrics mean.",
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """RUN/mlflow.json: where the copy of the run is, written before the store is first asked.

    The key is a tag of the MLflow run, by which it is found again even when the answer to its creation was lost.
    Secrets are masked in the file, the store's password among them.
    """

    experiment: str
    """Name of the MLflow experiment."""
    name: str = ""
    """Of the run in MLflow."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the run in MLflow, besides the key."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    tracking_uri: str = ""
    """Of the store, its password masked; empty is the default one."""
    run_id: str | None = None
    """What the store calls the run; None until it has answered."""
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
        path = run / MLFLOW
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
        atomic_write(run / MLFLOW, (json.dumps(masked(asdict(self)), indent=2) + "\n").encode())


def note_sent(run: Path, status: Status) -> None:
    """Remember that the store has all of a run, if it has finished."""
    record = Record.load(run)
    if record is not None and status == "FINISHED":
        replace(record, sent=True).save(run)


def prepare(run: Path, record: Record) -> tuple[str, Record]:
    """Settle where the copy is, remember it in RUN/mlflow.json, see that somebody listens there, and import MLflow.

    Waits for a server at most `2 * mlclient.PROBE_SECONDS`; importing MLflow takes some two seconds.

    Returns:
        The URI of the store, with its secrets, and the record as it was written.

    Raises:
        Exception: anything at all, like the methods of `Copy`.
    """
    uri, shown = _store(run, record.tracking_uri)
    record = replace(record, tracking_uri=shown)
    record.save(run)
    mlclient.probe(uri)
    import_mlflow()
    return uri, record


def open_copy(run: Path, record: Record, uri: str) -> Copy:
    """Find the run in its store by its key, or create it, and remember its id in RUN/mlflow.json; after `prepare`."""
    client_class = import_mlflow()
    with _locked(uri):
        _make_database(client_class, uri)
        client = client_class(uri)
        experiment_id = _experiment(client, record.experiment, uri)
        if not (found := mlrun.find(client, experiment_id, record.key)):
            mlrun.make(client, experiment_id, record.key, record.name, record.begun)
            found = mlrun.find(client, experiment_id, record.key)
        run_id = record.run_id if record.run_id in found else found[0]
        opened = Copy(client, experiment_id, run_id, key=record.key, begun=record.begun)
    replace(record, run_id=run_id).save(run)
    opened.drop_others()
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
    path = Path(tempfile.gettempdir()) / f"budgetnet-{os.getuid()}-{name}.lock"
    # Others can put a link there, to a file of this user.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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


def usual() -> str:
    """The store that a new run goes to, with its secrets: MLFLOW_TRACKING_URI's, else `mlflow.db` in this folder.

    Raises:
        BudgetnetError: it is the latter, and not there.
    """
    return _there(os.environ.get("MLFLOW_TRACKING_URI") or _default_store())


def where(run: Path) -> str:
    """The store to name in a message, masked, also when mlflow.json cannot be read."""
    try:
        record = Record.load(run)
    except BudgetnetError:
        record = None
    return mask(os.environ.get("MLFLOW_TRACKING_URI") or (record.tracking_uri if record else _default_store()))


def _there(uri: str) -> str:
    if uri == _default_store() and not (Path.cwd() / "mlflow.db").is_file():
        raise BudgetnetError(
            "there is no mlflow.db in this folder: go to the one with the runs, or set MLFLOW_TRACKING_URI"
        )
    return uri


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
            f"{run / MLFLOW} names {recorded} without its password: set MLFLOW_TRACKING_URI, or for an http "
            "server MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri, recorded


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
            if not {CONFIG, METRICS} <= held:
                without += 1
                continue
            # A server says what both are; the id keeps apart runs of the same name.
            run_id, name = (re.sub(r"[^\w.-]", "_", text) for text in (run.info.run_id, run.info.run_name or "run"))
            target = folder / f"_{run_id}" / (name if name.strip(".") else "run")
            target.mkdir(parents=True)
            for name in (CONFIG, METRICS, SUMMARY):
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
        with mlclient.silence():
            mlclient.probe(uri)
            return mlclient.within(mlclient.SEND_SECONDS, lambda: work(import_mlflow()(uri), mask(uri)))
    except BudgetnetError:
        raise
    except Exception as error:
        raise BudgetnetError(
            f"MLflow at {mask(uri)} fails: {why(error)}; start the server, or name another store by MLFLOW_TRACKING_URI"
        ) from error
