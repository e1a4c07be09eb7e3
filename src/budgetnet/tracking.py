"""A copy of the run in MLflow, kept beside the training, which never waits for it.

The run folder is the source of truth. MLflow holds a copy of it, which is brought up to date by comparing the two: a
resumed run, a run whose server was away, and `budgetnet track RUN` all go through the same comparison, so that nothing
is sent twice and nothing that failed is lost. A failing server costs one warning, and seconds before the first step or
after the last, never a step or a training.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from budgetnet import lineage, mlclient, runs, store, words
from budgetnet.classifier import Classifier
from budgetnet.errors import BudgetnetError, DataError
from budgetnet.masking import mask
from budgetnet.metrics import read_epochs
from budgetnet.mlrun import Copy, Status
from budgetnet.plainyaml import parse_yaml
from budgetnet.runfiles import CONFIG, COPIED, SUMMARY, WEIGHTS
from budgetnet.store import Record


class Tracker:
    """The MLflow copy of one run, kept while it trains; a server that fails never raises here.

    The store is the one that MLFLOW_TRACKING_URI names, else the one that RUN/mlflow.json remembers, else
    `mlflow.db` in the current folder with its artifacts in `mlruns` beside it. A tracking URI's user, password and
    tokens are neither printed nor kept in mlflow.json: to resume such a run, set MLFLOW_TRACKING_URI again, or
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    What is sent while the run trains is sent by a thread of its own. Upon the first failure of any kind `warn` is
    called, once, and the rest of the run is kept in its folder only.

    Args:
        run: the run folder.
        experiment: name of the MLflow experiment.
        warn: called with one line, from the thread that called the tracker.
        enabled: false does nothing and never imports MLflow.
    """

    def __init__(self, run: Path, *, experiment: str, warn: Callable[[str], None], enabled: bool = True) -> None:
        self._run = run
        self._experiment = mask(experiment)
        self._warn = warn
        self._enabled = enabled
        self._sender: _Sender | None = None
        self._copy: Copy | None = None

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Create the MLflow run, or continue the one that RUN/mlflow.json records.

        Takes two seconds, in which MLflow is imported, and for a server that does not answer at most four; the run
        itself is opened while the training goes on. A run that continues gets the epochs that RUN/metrics.csv has and
        it lacks; a parameter that has changed keeps its first value and puts the new one in a tag, `resumed.NAME`, as
        MLflow parameters cannot change.

        Args:
            name: name of the run.
            params: the configuration; nested keys become dotted names (`optimizer.lr`).
            tags: further facts (git commit, data checksum, parameter count).
        """
        if not self._enabled:
            return
        with self._guarded("starting the run"):
            record = Record.load(self._run) or Record(experiment=self._experiment)
            with mlclient.silence():
                uri, record = store.prepare(self._run, replace(record, name=name, tags=dict(tags), sent=False))
            mlclient.silence_threads()
            flat = runs.flat(params)
            rows = read_epochs(self._run)
            inputs, said = lineage.inputs(flat, tags), {**tags, **_shown(self._run, tags)}

            def begin() -> None:
                self._copy = store.open_copy(self._run, record, uri)
                self._copy.begin(flat, said, inputs, rows)

            self._sender = _Sender()
            self._sender.give("starting the run", mlclient.OPEN_SECONDS + mlclient.CALL_SECONDS, begin)

    def run_id(self) -> str | None:
        """The id of the MLflow run, waiting until it is open; None where nothing is tracked."""
        self._settle()
        return self._copy.run_id if self._copy and self._sender else None

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Have an epoch's metrics sent, in one call; points that the MLflow run has already are left as they are.

        Never waits.

        Args:
            row: the epoch under "epoch", which is the step, and the metrics.
        """
        sender = self._sender
        if sender is None:
            return

        def log() -> None:
            assert self._copy is not None, "the run was started by an earlier job"
            self._copy.rows([row])

        with self._guarded_by(sender):
            sender.give(f"sending epoch {int(row['epoch'])}", mlclient.CALL_SECONDS, log)

    def finish(
        self,
        status: Status,
        files: Sequence[Path],
        classifier: Classifier | None,
        summary: Mapping[str, float],
    ) -> None:
        """Send the run's files, its final metrics and the model, and end the MLflow run.

        Waits for what was given before, whose limits are those of `mlclient`, and for this, two minutes at most.

        Args:
            status: how the run ended.
            files: what to send as artifacts; files of the same name are replaced.
            classifier: the model to send, its network not compiled, on any device; None sends none.
            summary: final metrics, logged as `final/NAME` at the last epoch.
        """
        self._settle()
        opened = self._copy if self._sender else None
        if opened is not None:
            with self._guarded("sending the results"), mlclient.silence():
                said, most = _shown(self._run), mlclient.UPLOAD_SECONDS
                opened.complete(self._run, status, files, classifier, summary, said, most)
                store.note_sent(self._run, status)
        self._leave()

    def _settle(self) -> None:
        """Wait until all that was given is sent, or until something has failed."""
        if self._sender:
            with self._guarded_by(self._sender):
                self._sender.wait()

    def _leave(self) -> None:
        if self._sender:
            self._sender.leave()
        self._sender = None

    @contextlib.contextmanager
    def _guarded_by(self, sender: _Sender) -> Iterator[None]:
        """Do the block, then notice what has failed in the sender's thread."""
        yield
        if failed := sender.failed():
            with self._guarded(failed[0]):
                raise failed[1]

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Any exception at all: MLflow lets those of requests, SQLAlchemy, json and the operating system through,
            # and none of them is worth a training.
            self._enabled = False
            self._leave()
            if isinstance(error, ImportError):
                self._warn(f"MLflow tracking is off: {mlclient.why(error)}; everything is kept in {self._run}")
            else:
                self._warn(
                    f"MLflow tracking is off: {what} failed at {store.where(self._run)} ({mlclient.why(error)}); "
                    f"everything is kept in {self._run}, and `budgetnet track {self._run}` sends it later"
                )


class _Sender:
    """A thread that does what it is given, in order, until something fails or takes too long.

    It is left behind when it hangs, and does not keep the program from ending.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[tuple[str, float, Callable[[], None]]] = deque()
        self._since: float | None = None  # when the first of the jobs was begun
        self._error: tuple[str, Exception] | None = None
        self._left = False
        threading.Thread(target=self._work, name=mlclient.THREADS, daemon=True).start()

    def give(self, what: str, seconds: float, work: Callable[[], None]) -> None:
        """Have `work` done within so many seconds, after all that was given before."""
        with self._changed:
            self._jobs.append((what, seconds, work))
            self._changed.notify_all()

    def failed(self) -> tuple[str, Exception] | None:
        """The first thing that raised, or that is not done within its time, and the error."""
        with self._changed:
            return self._failed()

    def wait(self) -> None:
        """Return when all is done, or something has failed."""
        with self._changed:
            while self._jobs and not self._failed():
                until = self._since + self._jobs[0][1] if self._since is not None else None
                self._changed.wait(None if until is None else max(0.0, until - time.monotonic()) + 0.01)

    def leave(self) -> None:
        """Do nothing of what has not been begun."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def _failed(self) -> tuple[str, Exception] | None:
        if self._error is None and self._since is not None:
            what, seconds, _ = self._jobs[0]
            if time.monotonic() >= self._since + seconds:
                return what, TimeoutError(f"no end after {seconds:g} s")
        return self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._left)
                if self._left:
                    return
                what, _, work = self._jobs[0]
                self._since = time.monotonic()
                self._changed.notify_all()  # whoever waits does so until its time is over
            error = None
            try:
                work()
            except Exception as raised:
                error = raised
            with self._changed:
                self._since = None
                self._jobs.popleft()
                if error:
                    self._error = self._error or (what, error)
                    self._left = True
                self._changed.notify_all()


def send(
    run: Path,
    *,
    load_classifier: Callable[[Path], Classifier],
    warn: Callable[[str], None],
) -> str:
    """Complete the MLflow copy of a run from its folder; what the store has already is not sent again.

    Args:
        run: the run folder.
        load_classifier: from best.safetensors to the model to send, as `Tracker.finish` takes it.
        warn: called with a line where the run has not finished, and so has no model to send.

    Returns:
        The id of the MLflow run; RUN/mlflow.json has the store.

    Raises:
        BudgetnetError: the folder is no run, MLflow is not installed, or the store cannot be reached or fails.
    """
    params = runs.read_mapping(run / CONFIG, parse_yaml)
    finished = (run / SUMMARY).exists()
    summary = runs.read_summary(run) if finished else {}
    record = Record.load(run) or Record(
        experiment=str(params.get("experiment", "budgetnet")),
        name=run.resolve().name,
        begun=int((run / CONFIG).stat().st_mtime * 1000),  # written when it began
    )
    record = replace(record, name=summary.get("name", record.name), tags={**record.tags, **summary.get("tags", {})})
    files = [run / name for name in COPIED if (run / name).exists()]
    classifier = None
    if finished and (run / WEIGHTS).exists():
        classifier = load_classifier(run / WEIGHTS)
    if not finished:
        warn(f"{run} has no {SUMMARY}, so it has not finished: sending its epochs, without a model, as KILLED")
    try:
        with mlclient.silence():
            uri, record = store.prepare(run, record)
            opened = mlclient.within(mlclient.OPEN_SECONDS, lambda: store.open_copy(run, record, uri))
            flat, said = runs.flat(params), _shown(run, record.tags)

            def describe() -> None:
                opened.describe(flat, record.tags, changes=False)
                opened.inputs(lineage.inputs(flat, record.tags))

            mlclient.within(mlclient.SEND_SECONDS, describe)
            status: Status = "FINISHED" if finished else "KILLED"
            final = summary.get("final", {})
            opened.complete(run, status, files, classifier, final, said, mlclient.SEND_SECONDS)
            mlclient.within(mlclient.SEND_SECONDS, opened.drop_others)  # that a server may have made only now
            store.note_sent(run, status)
    except BudgetnetError:
        raise
    except ImportError as error:
        raise BudgetnetError(f"cannot send {run}: {mlclient.why(error)}") from error
    except Exception as error:
        raise BudgetnetError(
            f"cannot send {run} to {store.where(run)}: {mlclient.why(error)}; start the server, or set "
            "MLFLOW_TRACKING_URI to another store, and try again"
        ) from error
    return opened.run_id


def is_unsent(run: Path) -> bool:
    """Whether a run was being copied to MLflow, and may not have been to its end."""
    try:
        record = Record.load(run)
    except DataError:
        return True  # whoever tries to send it says what is wrong
    return record is not None and not record.sent


def _shown(run: Path, tags: Mapping[str, str] | None = None) -> dict[str, str]:
    """Tags that MLflow's page shows in places of their own: the run in words, and the commit of the source."""
    found = {}
    if (run / CONFIG).is_file():
        found["mlflow.note.content"] = words.note(runs.read(run))
    commit = (tags or {}).get("git_commit", "unknown").removesuffix("+")
    if commit != "unknown":
        found["mlflow.source.git.commit"] = commit
    return found
