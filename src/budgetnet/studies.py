"""The study that the workers of a sweep share, in a database: begun once, joined by all, its dead trials put back."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet import runs
from budgetnet.errors import BudgetnetError, ConfigError
from budgetnet.masking import mask, masked
from budgetnet.mlclient import why

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

PRUNERS = ("median", "halving", "none")

HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60
"""A worker says so often that it lives, and is taken for dead after so long without."""
MOST_DEATHS = 3
"""Of the workers of one trial, which may be why they die; then it is left."""

BEGIN_SECONDS = 10.0
"""How long who joins a study waits for who has begun it to say what it is of."""
ATTEMPTS = 5
"""At opening a database, whose tables another worker may be making."""


def locate(storage: str | None, output: Path) -> str:
    """The database as SQLAlchemy takes it.

    Raises:
        ConfigError: it is none that workers can share.
    """
    uri = storage or f"sqlite:///{output.resolve() / 'study.db'}"
    if not re.match(r"(sqlite:///.|postgres(ql)?(\+\w+)?://.)", uri):
        raise ConfigError(
            f"storage is {mask(uri)!r}, expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    return re.sub(r"^postgres(ql)?://", "postgresql+pg8000://", uri)


def begin(uri: str, name: str, request: Mapping[str, Any], pruner: str) -> Study:
    """Begin a study, or join it, where it is of the same.

    Args:
        uri: of the database, as `locate` gives it.
        name: of the study in it.
        request: what the study is of, as JSON has it.
        pruner: one of `PRUNERS`.

    Returns:
        The study; its attribute `request` is as given, and `key` is its own.

    Raises:
        ConfigError: it is of something else, or the database is not for studies.
        SQLAlchemyError, StorageInternalError: the database fails.
    """
    import optuna
    from optuna.exceptions import DuplicatedStudyError

    by_name: dict[str, optuna.pruners.BasePruner] = {
        "median": optuna.pruners.MedianPruner(),
        "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
        "none": optuna.pruners.NopPruner(),
    }
    request = masked(request)
    storage = _storage(uri)
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", pruner=by_name[pruner])
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, pruner=by_name[pruner])
        deadline = time.monotonic() + BEGIN_SECONDS
        while (
            "request" not in study.user_attrs and not study.get_trials(deepcopy=False) and time.monotonic() < deadline
        ):
            time.sleep(0.1)  # whoever has begun it says at once what it is of, or has died
        before = study.user_attrs.get("request", {} if study.get_trials(deepcopy=False) else request)
        if not isinstance(before, dict) or before.keys() != request.keys():
            raise ConfigError(f"study {name!r} was not made by budgetnet sweep: choose another --study") from None
        _require_same(name, before, request)
    if "request" not in study.user_attrs:
        study.set_user_attr("key", uuid.uuid4().hex)
        study.set_user_attr("request", request)
    return study


def _require_same(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    earlier, asked = runs.flat(before), runs.flat(now)
    for key in sorted({*earlier, *asked}):
        if earlier.get(key) != asked.get(key):
            raise ConfigError(
                f"{key} is {asked.get(key)}, but study {name!r} was begun with {earlier.get(key)}: go on with that, or "
                "choose another --output or --study"
            )


def _storage(uri: str) -> RDBStorage:
    """The database with its tables, which another worker may be making at the same moment."""
    import optuna
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    class Storage(optuna.storages.RDBStorage):
        def record_heartbeat(self, trial_id: int) -> None:
            """Leave one out when the database is away for a moment, instead of never coming again."""
            with contextlib.suppress(SQLAlchemyError, optuna.exceptions.StorageInternalError):
                super().record_heartbeat(trial_id)

    # SQLite's file is locked by others for a moment now and then; connections to a server may have ended.
    engine = {"connect_args": {"timeout": 60}} if uri.startswith("sqlite") else {"pool_pre_ping": True}
    for attempt in range(ATTEMPTS):
        try:
            with quiet():
                return Storage(
                    uri,
                    engine_kwargs=engine,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=put_back,
                )
        except ImportError as error:
            raise ConfigError(
                f"there is no driver for {mask(uri)} ({why(error)}): pip install 'budgetnet[postgres]'"
            ) from error
        except DBAPIError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
        except RuntimeError as error:  # Optuna's, of tables that are not its own
            raise ConfigError(
                f"{mask(uri)} cannot hold a study ({why(error)}): give it a database of its own"
            ) from error
    raise AssertionError("unreachable")


def put_back(study: Study, trial: FrozenTrial, *, died: bool = True) -> None:
    """Have a trial taken up again by any worker, first of all; by whom it was taken is at an end."""
    deaths = trial.user_attrs.get("tries", 0) + died
    # One that had finished has no value if its worker died before Optuna was told: its run's folder still knows it.
    ended = trial.user_attrs.get("ended", {}).get("outcome") not in (None, "finished")
    if "trial" in trial.user_attrs and not ended and deaths <= MOST_DEATHS:
        study.enqueue_trial(trial.params, user_attrs={"trial": trial.user_attrs["trial"], "tries": deaths})


@contextlib.contextmanager
def telling(uri: str) -> Iterator[None]:
    """Say in a line what is wrong with the database.

    Raises:
        BudgetnetError: it failed within the block.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise BudgetnetError(
            f"the study's database {mask(uri)} fails ({why(error)}): see that it runs, and give the same command again"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves that heartbeats are experimental in Optuna."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
