"""Models by name, for a group: a finished run becomes a version in MLflow's registry, and `models:/NAME@ALIAS` a model.

A version is of the model that MLflow has of the run, so that MLflow's own tools find what they expect. What is loaded
here is never that one but the run's best.safetensors, which runs no code, and must be the file that was registered.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from budgetnet import runs, store
from budgetnet.errors import BudgetnetError, CheckpointError, ConfigError
from budgetnet.runfiles import MLFLOW, WEIGHTS
from budgetnet.store import Record

_DIGEST_TAG = "budgetnet.sha256"
_NAME = r"[^/:@'\"\s][^/:@'\"]*"


def register(run: Path, name: str, alias: str | None = None) -> dict[str, Any]:
    """Make a finished run a version of a registered model, which is made where there is none of the name.

    A run that is a version of it already stays that one, and is given the alias alone.

    Args:
        run: its folder; its copy in MLflow is complete.
        name: of the model.
        alias: that the version gets, and any other loses, such as champion; None is none.

    Returns:
        `name`, `version`, `new` (whether it was made), `alias`, `run`, and the run's figures.

    Raises:
        ConfigError: MLflow takes no such name or alias.
        BudgetnetError: the run has not finished, or its copy in MLflow is not complete; or MLflow fails.
    """
    if not re.fullmatch(_NAME, name):
        raise ConfigError(f"name is {name!r}, expected one without / : @ and quotes")
    if alias is not None and (not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"v\d+|latest", alias, re.IGNORECASE)):
        raise ConfigError(f"alias is {alias!r}, expected letters, digits, - and _, and neither latest nor v1, v2, ...")
    found = runs.read(run)
    if not found.finished or not (run / WEIGHTS).is_file():
        raise BudgetnetError(f"{run} has not finished: go on by `budgetnet train --resume --output {run}`")
    record = Record.load(run)
    if record is None or record.run_id is None or not record.sent:
        raise BudgetnetError(f"MLflow does not have all of {run}: send it by `budgetnet track {run}`, then register it")
    said = {
        "parameters": found.find("parameters", int),
        "val_accuracy": found.find("final.val_accuracy", float),
        "test_accuracy": None if found.test is None else found.test.accuracy,
    }
    tags = {key: str(value) for key, value in said.items() if value is not None}
    for key in ("dataset", "data_checksum", "git_commit"):
        tags[key] = found.find(f"tags.{key}", str) or "unknown"
    tags[_DIGEST_TAG] = _digest(run / WEIGHTS)
    run_id = record.run_id

    def work(client: Any, shown: str) -> dict[str, Any]:
        held = {artifact.path for artifact in client.list_artifacts(run_id)}
        outputs = client.get_run(run_id).outputs
        models = [output.model_id for output in outputs.model_outputs] if outputs else []
        if WEIGHTS not in held or not models:
            raise BudgetnetError(f"{shown} has lost files of {run}: remove {run / MLFLOW} and track it anew")
        _make(client, name)
        there = [
            version
            for version in client.search_model_versions(f"name = '{name}'")
            if version.run_id == run_id and version.tags.get(_DIGEST_TAG) == tags[_DIGEST_TAG]
        ]
        if there:
            version = max(int(each.version) for each in there)
        else:
            made = client.create_model_version(
                name, f"models:/{models[-1]}", run_id=run_id, tags=tags, model_id=models[-1], description=found.name
            )
            version = int(made.version)
        if alias:
            client.set_registered_model_alias(name, alias, str(version))
        return {"name": name, "version": version, "new": not there, "alias": alias, "run": str(run), **said}

    return store.ask(work, run)


def is_registered(what: Path | str) -> bool:
    """Whether this names a registered model and no file."""
    return str(what).startswith("models:/")


@contextlib.contextmanager
def fetched(what: Path | str) -> Iterator[Path]:
    """The model file of a registered version, `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in a temporary folder.

    It comes from the store that MLFLOW_TRACKING_URI names, else from `mlflow.db` in the current folder.

    Raises:
        ConfigError: it is of another form.
        CheckpointError: there is no such version, it was not registered by `register`, or its file is not the one that
            was; or what the block finds wrong with the file, which is then called by its name in the registry.
        BudgetnetError: MLflow fails.
    """
    match = re.fullmatch(rf"models:/({_NAME})(?:@([\w-]+)|/(\d+))", str(what))
    if not match:
        raise ConfigError(f"{what} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match.groups()
    with tempfile.TemporaryDirectory(prefix="budgetnet-model-") as folder:

        def work(client: Any, shown: str) -> tuple[Path, str]:
            version = _version(client, name, alias, number, f"{shown} has no {what}")
            expected = version.tags.get(_DIGEST_TAG)
            if not expected or not version.run_id:
                raise CheckpointError(f"{what} is version {version.version}, which `budgetnet register` did not make")
            return Path(client.download_artifacts(version.run_id, WEIGHTS, folder)), expected

        path, expected = store.ask(work)
        if _digest(path) != expected:
            raise CheckpointError(
                f"{what} is not the file that was registered (checksum {expected[:12]}): do not use it"
            )
        try:
            yield path
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(path), str(what))) from error


def _version(client: Any, name: str, alias: str | None, number: str | None, missing: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        try:
            model = client.get_registered_model(name)
        except MlflowException:
            names = ", ".join(sorted(each.name for each in client.search_registered_models())) or "none"
            raise CheckpointError(f"{missing}: its models are {names}") from error
        if number is not None:
            newest = max((int(each.version) for each in client.search_model_versions(f"name = '{name}'")), default=None)
            there = f"the newest version of {name} is {newest}" if newest else f"{name} has no version"
            raise CheckpointError(f"{missing}: {there}") from error
        aliases = ", ".join(f"@{each}" for each in sorted(model.aliases)) or "none"
        raise CheckpointError(f"{missing}: the aliases of {name} are {aliases}") from error


def _make(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
