"""Search: many trainings by options that Optuna draws from a space, shared by any number of workers.

A worker is a process that takes a trial, trains it as any other run (never tested), and takes the next, until the study
has as many as were asked for. Workers meet in a database alone, SQLite or PostgreSQL. A trial whose worker died or was
stopped is put back and goes on from the checkpoint in its run folder, where that is at hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from budgetnet import data, models, space, standings, studies
from budgetnet.config import Config, to_yaml
from budgetnet.errors import BudgetError, BudgetnetError, ConfigError, FolderError, Interrupted, TrainingError
from budgetnet.files import make_folder
from budgetnet.masking import mask
from budgetnet.metrics import read_metrics
from budgetnet.progress import Progress, duration
from budgetnet.recipe import recipe_loader
from budgetnet.runfiles import CONFIG, METRICS
from budgetnet.space import Space
from budgetnet.store import Record
from budgetnet.tracking import Tracker
from budgetnet.train import train

if TYPE_CHECKING:
    from optuna import Study, Trial

    from budgetnet.data import Dataset

POLL_SECONDS = 2.0
"""Between looks at the trials of others, where nothing else is left to do."""
MOST_REFUSED = 100
"""Configurations in a row that are over the budget or impossible; then the space is to blame."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be searched, and when a trial is stopped early: below the median of those before it, or by successive
    halving (Li et al. 2020, arXiv:1810.05934).
    """

    recipe: Path
    """What all trials have in common."""
    space: Space
    """What varies."""
    trials: int
    """Trainings in all, pruned ones among them, of all workers and all calls together."""
    always: Sequence[str] = ()
    """Options of all trials, as on the command line."""
    pruner: Literal["median", "halving", "none"] = "median"
    """When a trial is stopped early: when its validation accuracy is below the median of those before it at the same
    epoch (from the sixth on), or below the best quarter at epochs 1, 4, 16, ... (successive halving)."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"trials is {self.trials}, expected 1 or more")
        if self.pruner not in studies.PRUNERS:
            raise ConfigError(f"pruner is {self.pruner!r}, expected one of {', '.join(studies.PRUNERS)}")
        for option in self.always:
            name = option.partition("=")[0].removeprefix("--").replace("-", "_")
            if option.startswith("--") and name in self.space:
                raise ConfigError(f"{option.partition('=')[0]} is in the space too: leave it out there, or here")


def carry_out(
    sweep: Sweep,
    output: Path,
    *,
    storage: str | None = None,
    name: str | None = None,
    folder: Path | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
    track: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Work on a study until it has all its trials: begin it, join others that do, or go on.

    Where the rest is in the hands of other workers, this waits for them, in case they die.

    Args:
        sweep: what to search.
        output: a folder, made here, for the runs and the results (`standings.FILES`).
        storage: URI of the database that the workers share, sqlite or postgresql; None is `study.db` in `output`.
        name: of the study there; None is the name of `output`.
        folder: where the data is; None is `data.default_folder()`.
        device: where to train; None is the CPU.
        progress: told of every trial.
        track: copy each trial to MLflow, as a child of a run for the study.
        stop: asked after every step whether to save, put the trial back and leave.

    Returns:
        What sweep.json holds.

    Raises:
        ConfigError: an option is wrong, a value of the space is impossible, or the study is of something else.
        BudgetnetError: as `train`, or the database fails; the trial at work is put back.
        TrainingError: all trials failed.
        Interrupted: `stop` said so; the trial at work is saved and put back.
    """
    import optuna

    progress = progress or Progress()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    load = recipe_loader(sweep.recipe)
    base = load(sweep.always)
    if not base.val_size:
        raise ConfigError("val_size is 0, but trials are judged by held-out images: give some")
    space.check(sweep.space, lambda values: load([*sweep.always, *options(values)]), "the space")
    classes = data.num_classes(base.dataset, folder)
    make_folder(output)
    name = name or output.resolve().name
    uri = studies.locate(storage, output)
    request = {
        "recipe": yaml.safe_load(to_yaml(base)),
        "space": {option: asdict(dimension) for option, dimension in sweep.space.items()},
        "pruner": sweep.pruner,
    }
    with studies.telling(uri):
        study = studies.begin(uri, name, json.loads(json.dumps(request)), sweep.pruner)
        worker = _Worker(
            study=study,
            shown=mask(uri),
            sweep=sweep,
            load=load,
            base=base,
            classes=classes,
            output=output,
            folder=folder,
            device=device or torch.device("cpu"),
            progress=progress,
            track=track,
            stop=stop,
        )
        return worker.work()


def options(values: Mapping[str, str]) -> list[str]:
    """Values of options as a command line has them."""
    return [f"--{name}={value}" for name, value in values.items()]


class _PrunedError(Interrupted):
    """The trial is worse than others at this epoch."""


class _LostError(Interrupted):
    """The trial was given to another worker, as this one seemed dead."""


class _SurplusError(Exception):
    """Another worker was about to begin the last trial too."""


class _Hook(Progress):
    """Tells the study the validation accuracy of each epoch, and ends a training that is not worth more."""

    def __init__(self, trial: Trial, run: Path, outer: Progress) -> None:
        self.trial, self.run, self.outer = trial, run, outer
        self.row: Mapping[str, float] = {}
        self.epochs = 0
        self.warn = outer.warn  # type: ignore[method-assign]
        self.download = outer.download  # type: ignore[method-assign]
        self.decode = outer.decode  # type: ignore[method-assign]

    def begin(self, config: Config, dataset: Dataset, run: Path, tags: Mapping[str, str]) -> None:
        """Report what the run has from an earlier worker."""
        super().begin(config, dataset, run, tags)
        self.epochs = config.epochs
        for row in read_metrics(self.run / METRICS):
            self._report(row)

    def epoch(self, row: Mapping[str, float], best: bool) -> None:
        """Report the epoch, whose checkpoint is written."""
        self._report(row)
        if row["epoch"] < self.epochs and self.trial.should_prune():
            raise _PrunedError

    def _report(self, row: Mapping[str, float]) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        self.row = row
        try:
            self.trial.report(row["val_accuracy"], int(row["epoch"]))
        except UpdateFinishedTrialError as error:
            raise _LostError from error


@dataclass(kw_only=True)
class _Worker:
    study: Study
    shown: str
    """Its database, without the password."""
    sweep: Sweep
    load: Callable[[Sequence[str]], Config]
    base: Config
    classes: int
    output: Path
    folder: Path | None
    device: torch.device
    progress: Progress
    track: bool
    stop: Callable[[], bool]
    parent: str | None = None
    """Id of the study's run in MLflow."""
    best: tuple[int, Config] | None = None
    """The best trial so far, and its configuration."""
    costs: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Parameters and multiply-adds by network and size, as most spaces vary how the same one is trained."""
    refused: int = 0
    """Configurations in a row."""
    number: int | None = None
    """Optuna's of the trial at work."""
    raised: BaseException | None = None
    """What that ended with."""

    def work(self) -> dict[str, Any]:
        """All that `carry_out` does once the study is open."""
        tracker = self._parent_run()
        status: Literal["FINISHED", "KILLED", "FAILED"] = "FAILED"
        try:
            self._take_trials()
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            # Whatever has happened, what there is is told; but the first error is the one to be seen.
            with contextlib.nullcontext() if status == "FINISHED" else contextlib.suppress(Exception):
                result = self._write()
                files = [self.output / file for file in standings.FILES if (self.output / file).is_file()]
                best = result["best"]
                taken = sum(row["outcome"] != "refused" for row in result["trials"])
                final = {} if best is None else {"val_accuracy": best["val_accuracy"], "trials": taken}
                tracker.finish(status, files, None, final)
        if result["best"] is None:
            reasons = [row["why"] for row in result["trials"] if row["why"]]
            raise TrainingError(f"no trial came to its end; the last one: {(reasons or ['pruned'])[-1]}")
        return result

    def _write(self) -> dict[str, Any]:
        """Write down what is known of all trials, whoever trained them."""
        trials = self.study.get_trials(deepcopy=False)
        result: dict[str, Any] = {"study": self.study.study_name, "storage": self.shown}
        with studies.quiet():
            result |= self.study.user_attrs["request"] | standings.summarize(self.study, trials, self.device)
        best = result["best"]
        if best and (self.best is None or self.best[0] != best["trial"]):
            self.best = best["trial"], self.load([*self.sweep.always, *options(best["options"])])
        standings.write(self.output, result, self.sweep.recipe.name, self.best[1] if self.best else None)
        return result

    def _parent_run(self) -> Tracker:
        """The study's own run in MLflow, the same for all workers; its trials are the children."""
        key = self.study.user_attrs["key"]
        if self.track and ((record := Record.load(self.output)) is None or record.key != key):
            Record(experiment=mask(self.base.experiment), key=key).save(self.output)

        def warn(text: str) -> None:
            self.progress.warn(f"{text.partition('; everything')[0]}; everything is kept in {self.output}")

        tracker = Tracker(self.output, experiment=self.base.experiment, warn=warn, enabled=self.track)
        varied = {name: json.dumps(value) for name, value in self.study.user_attrs["request"]["space"].items()}
        params = {"space": varied, "pruner": self.sweep.pruner, "trials": self.sweep.trials}
        tracker.start(self.study.study_name, params, {"budgetnet.kind": "sweep"})
        self.parent = tracker.run_id()
        return tracker

    def _take_trials(self) -> None:
        import optuna

        told = False
        while True:
            if self.stop():
                raise Interrupted
            with studies.quiet():
                optuna.storages.fail_stale_trials(self.study)
            done, running, waiting = self._tally()
            if done >= self.sweep.trials:
                return
            if waiting or done + running < self.sweep.trials:
                self._take()
                self._write()
                told = False
                continue
            if not told:
                self.progress.say(f"the last {running} trials are with other workers: waiting for their end")
                told = True
            time.sleep(POLL_SECONDS)

    def _tally(self, before: int | None = None) -> tuple[int, int, int]:
        """Trials that are done, running and waiting; with `before`, of those of lower numbers."""
        from optuna.trial import TrialState

        states = [
            trial.state
            for trial in self.study.get_trials(deepcopy=False)
            if trial.user_attrs.get("ended", {}).get("outcome") != "refused"
            and (before is None or trial.number < before)
        ]
        done = states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED)
        return done, states.count(TrialState.RUNNING), states.count(TrialState.WAITING)

    def _take(self) -> None:
        """Take one trial, and do what it takes."""
        from optuna import TrialPruned
        from optuna.exceptions import UpdateFinishedTrialError

        self.number = self.raised = None
        try:
            self.study.optimize(self._noted, n_trials=1, catch=(_SurplusError,))
        except ValueError as error:
            if self.number is None or error is self.raised:
                raise
            # Optuna does not want to be told how a trial ended that was given to another worker meanwhile.
            self.progress.warn(
                f"trial {self.study.get_trials(deepcopy=False)[self.number].user_attrs['trial']} is left to another "
                "worker, as this one had not been heard of for long"
            )
            # The other one has the folder, or has told how it ended; anything else is no consequence of that.
            if self.raised is not None and not isinstance(
                self.raised, TrialPruned | UpdateFinishedTrialError | FolderError
            ):
                raise self.raised from None
        except (Interrupted, KeyboardInterrupt, BudgetnetError):
            if self.number is not None:
                studies.put_back(self.study, self.study.get_trials(deepcopy=False)[self.number], died=False)
            raise

    def _noted(self, trial: Trial) -> float:
        """`_try`, of whose end Optuna may let nothing through."""
        try:
            return self._try(trial)
        except BaseException as error:
            self.raised = error
            raise

    def _try(self, trial: Trial) -> float:
        """Train the trial's configuration; its validation accuracy."""
        from optuna import TrialPruned
        from optuna.samplers import TPESampler

        self.number = trial.number
        index: int
        if "tries" in trial.user_attrs:
            index = trial.user_attrs["trial"]
        else:
            index = sum(
                "tries" not in other.user_attrs and other.number < trial.number
                for other in self.study.get_trials(deepcopy=False)
            )
            trial.set_user_attr("trial", index)
            if sum(self._tally(before=trial.number)) >= self.sweep.trials:
                trial.set_user_attr("ended", {"outcome": "surplus"})
                raise _SurplusError
        # What is drawn is a function of the seed, the place of the trial, and what is known of others: a study that was
        # stopped goes on as if it had not been, and no two workers draw alike.
        self.study.sampler = TPESampler(seed=_seed(self.base.seed, index))
        values = {name: dimension.suggest(trial, name) for name, dimension in self.sweep.space.items()}
        try:
            config = self._configure(trial, values)
        except (ConfigError, BudgetError) as error:
            self._refuse(trial, index, error)
            raise TrialPruned from error
        self.refused = 0
        again = ", once more" if "tries" in trial.user_attrs else ""
        self.progress.say(f"trial {index}: {standings.shown(values)}{again}")
        accuracy = self._train(trial, index, config)
        if accuracy is None:
            raise TrialPruned
        return accuracy

    def _configure(self, trial: Trial, values: Mapping[str, str]) -> Config:
        """The checked configuration, within the budget.

        Raises:
            ConfigError, BudgetError: it is none.
        """
        trial.set_user_attr("drawn", {"options": values})
        config = self.load([*self.sweep.always, *options(values)])
        smallest = config.progressive.size or config.image_size
        if config.model.width == "auto":
            model = models.check_budget(config.model, self.classes, budget=config.budget, image_size=smallest)
        else:
            model = config.model
        if (key := repr((model, config.image_size))) not in self.costs:
            with torch.device("meta"):
                network = models.build(model, self.classes, image_size=config.image_size)
            spent = models.count_parameters(network), models.multiply_adds(network, config.image_size)
            self.costs[key] = spent
        parameters, multiply_adds = self.costs[key]
        trial.set_user_attr("drawn", {"options": values, "parameters": parameters, "multiply_adds": multiply_adds})
        if config.budget is not None:
            # Above 0 it is infeasible, and the sampler learns by how much.
            trial.set_constraint("budget", parameters / config.budget - 1)
            models.check_budget(model, self.classes, budget=config.budget, image_size=smallest)
        return config

    def _refuse(self, trial: Trial, index: int, error: BudgetnetError) -> None:
        """Tell the sampler that this is none, which is not a failure."""
        self.refused += 1
        trial.set_user_attr("ended", {"outcome": "refused", "why": str(error)})
        if not any(value > 0 for value in trial.constraints.values()):
            trial.set_constraint("recipe", 1.0)
        self.progress.say(f"trial {index}: refused before training: {error}")
        if self.refused >= MOST_REFUSED:
            raise ConfigError(f"{self.refused} configurations in a row were refused, the last one: {error}")

    def _train(self, trial: Trial, index: int, config: Config) -> float | None:
        """The validation accuracy of the chosen epoch; None of a training that was pruned or failed."""
        run = self.output / "trials" / f"trial-{index}"
        hook = _Hook(trial, run, self.progress)
        tags = {"budgetnet.study": self.study.study_name, "budgetnet.trial": str(index)}
        if self.parent:
            tags["mlflow.parentRunId"] = self.parent
        accuracy, failed = None, ""
        try:
            summary = train(
                config,
                run,
                folder=self.folder,
                device=self.device,
                progress=hook,
                track=self.parent is not None,
                resume=(run / CONFIG).is_file(),
                test=False,
                stop=self.stop,
                tags=tags,
            )
            accuracy = float(summary["final"]["val_accuracy"])
            outcome, epochs, minutes = "finished", summary["final"]["epochs"], summary["final"]["minutes"]
        except _LostError:
            return None
        except (_PrunedError, TrainingError) as error:
            if isinstance(error, FolderError):
                raise  # says nothing about the options
            outcome = "failed" if isinstance(error, TrainingError) else "pruned"
            failed = str(error)
            epochs, minutes = int(hook.row.get("epoch", 0)), hook.row.get("seconds", 0.0) / 60
        ended = {"outcome": outcome, "why": failed, "epochs": epochs, "minutes": minutes}
        trial.set_user_attr("ended", ended)
        reached = accuracy if accuracy is not None else hook.row.get("val_accuracy")
        self.progress.say(
            f"trial {index}: {outcome}"
            + (f", {reached:.2%} of the validation images" if reached is not None else "")
            + f", {epochs} epoch{'' if epochs == 1 else 's'}, {duration(60 * minutes)}"
            + (f": {failed}" if failed else "")
        )
        return accuracy


def _seed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "big")
