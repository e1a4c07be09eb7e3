"""A run in an MLflow store: found there or begun, compared with the run folder, and completed.

Every point has the time of the run's own clock, so that one which is sent twice (a request whose answer was lost, or
`budgetnet track` while the training still sends) is one and the same to MLflow.
"""

from __future__ import annotations

import contextlib
import getpass
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from budgetnet import mlclient, mlmodel
from budgetnet.checkpoint import digest
from budgetnet.classifier import Classifier
from budgetnet.lineage import Input
from budgetnet.masking import masked
from budgetnet.metrics import read_epochs
from budgetnet.mlclient import within

Status = Literal["FINISHED", "KILLED", "FAILED"]

_RUN_TAG = "budgetnet.run"
_WEIGHTS_TAG = "budgetnet.weights"
_BATCH = 100  # MLflow's limit of parameters and of tags in a call; that of metrics is 1000


def find(client: Any, experiment_id: str, key: str) -> list[str]:
    """Ids of the MLflow runs of a key, the oldest first."""
    tagged, by_age = f"tags.`{_RUN_TAG}` = '{key}'", ["attributes.start_time ASC"]
    return [found.info.run_id for found in client.search_runs([experiment_id], tagged, order_by=by_age)]


def make(client: Any, experiment_id: str, key: str, name: str, begun: int) -> None:
    """Make an MLflow run of a key.

    Args:
        client: an MlflowClient.
        experiment_id: where.
        key: by which `find` finds it.
        name: that it is shown by.
        begun: when it began, in milliseconds since 1970.
    """
    tags = {_RUN_TAG: key, **_made_by()}
    client.create_run(experiment_id, start_time=begun, tags=tags, run_name=name)


def _made_by() -> dict[str, str]:
    """What MLflow's table says of where a run is from."""
    tags = {"mlflow.source.name": "budgetnet train", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container may know no name of its user
        tags["mlflow.user"] = getpass.getuser()
    return tags


class Copy:
    """A run in an MLflow store, and which points it has; what it is given more than once, it sends once.

    Every method may raise anything at all: MLflow lets the exceptions of requests, SQLAlchemy, json and the operating
    system through.
    """

    def __init__(self, client: Any, experiment_id: str, run_id: str, *, key: str, begun: int) -> None:
        self.run_id = run_id
        self._key = key
        self._begun = begun
        self._client = client
        self._experiment_id = experiment_id
        found = client.get_run(run_id)
        if not found.info.artifact_uri:  # half an answer, which MLflow takes for a run without anything
            raise ConnectionError("the answer to what the run holds broke off")
        self._place = found.info.artifact_uri
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
        for other in find(self._client, self._experiment_id, self._key):
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
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
            from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

            self.rows(rows)
            self._log([(f"final/{name}", float(value), last, clock) for name, value in final.items()])
            self.describe({}, tags, changes=False)
            # Not by `log_artifact`, which asks where that is, and keeps for good what half an answer said.
            store = self._client.tracking_uri
            at = add_databricks_profile_info_to_artifact_uri(self._place, store)  # type: ignore[no-untyped-call]
            place: Any = get_artifact_repository(at, tracking_uri=store)
            for file in files:
                if file.is_dir():
                    place.log_artifacts(str(file), file.name)
                else:
                    place.log_artifact(str(file))

        within(seconds, values_and_files)
        if classifier is not None:
            self._model(classifier, last, seconds)
        # Last, so that a run which says FINISHED has everything.
        if self._status != status:
            ended = self._begun + round(1000 * clock)
            within(mlclient.CALL_SECONDS, lambda: self._client.set_terminated(self.run_id, status, ended))
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

        logged = within(mlclient.CALL_SECONDS, create)
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
