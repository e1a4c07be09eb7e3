"""Training: from a configuration and a data folder to a run folder with chosen weights and their scores.

`train` prepares a run, `_fit` is the loop, on one page, and both read from top to bottom. What a step computes is in
`training.py`, what is saved between two steps in `state.py`, how a run is written down in `recorder.py`, and whether it
can begin or go on in `resume.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet import advice, audit, checkpoint, data, devices, evaluate, models, recorder, runs, splits
from budgetnet.config import Config, Tta
from budgetnet.data import Dataset
from budgetnet.distributed import Group
from budgetnet.errors import CheckpointError, ConfigError, FolderError, Interrupted, TrainingError, WriteError
from budgetnet.folder import RunFolder, hold
from budgetnet.inputs import progressive_size
from budgetnet.logits import predict_logits
from budgetnet.position import Clock, Position
from budgetnet.progress import Progress
from budgetnet.recipe import load_recipe
from budgetnet.recorder import Recorder, send_results
from budgetnet.resume import finished, require_new, require_resumable, tidy_up
from budgetnet.runfiles import CONFIG
from budgetnet.state import restore
from budgetnet.tracking import Tracker
from budgetnet.training import PRECISIONS, Training, fitting_batch

# Seconds between looks at what came of the steps. On a CPU a look is free; an accelerator would stand still after it.
_LOOK_EVERY = {"cpu": 0.0, "cuda": 0.5, "mps": 0.5}


def train(
    config: Config,
    run: Path,
    *,
    folder: Path | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
    track: bool = True,
    resume: bool = False,
    test: bool = True,
    fit_memory: bool = False,
    group: Group | None = None,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[Dataset], None] = lambda dataset: None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train a network, keep the weights that do best in validation, and test them once.

    Args:
        config: what to compute.
        run: the run's folder, made here; with `resume`, that of a run that stopped. Its name is the run's.
        folder: where the data is; None is `data.default_folder()`.
        device: where to compute; None is the CPU.
        progress: told of every step and epoch; None is silence.
        track: copy the record to MLflow, where that is installed.
        resume: continue exactly where the run stopped.
        test: test at the end; without, or with `train_on_test`, the summary has no figures of the test images.
        fit_memory: halve the batch size until a step fits in memory; what it comes to is in config.yaml, and a resumed
            run keeps it.
        group: the processes that train together, each of which makes this call; None is this one alone.
        stop: asked after every step whether to save and leave.
        report: called with the data as it was loaded, once the run is complete, before its files go to MLflow.
        tags: of the run, in MLflow and in its summary, besides its own.

    Returns:
        What summary.json holds. Of several processes, the first alone reads and writes the run's folder and MLflow.

    Raises:
        BudgetError: the network is over the budget; nothing was read or written.
        ConfigError: options that do not fit the data, the device, the teachers, the start, or the run that is resumed.
        DataError: the data is missing or damaged, or the run's folder cannot be written.
        CheckpointError: there is nothing to resume, or it (and what was saved before it) or a teacher is damaged, or
            has changed.
        FolderError: another process trains into the run's folder, or it is full, read-only or gone; what was saved
            before is as it was.
        TrainingError: the run's folder exists, the loss is not finite, or memory has run out.
        Interrupted: `stop` said so, and the state is saved.
    """
    device, progress, group = device or torch.device("cpu"), progress or Progress(), group or Group()
    test = test and not config.train_on_test
    devices.tune(device)
    config = _settled(config, folder, device)
    if fit_memory:
        config = _with_its_batch_size(config, run, group, resume)
    if summary := group.lead(lambda: _finished_before(config, run, test, resume)):
        progress.say(f"{run} is finished: there is nothing left to train")
        if group.leader:
            tidy_up(config, run, summary, track, progress)
        return summary

    loaded = _load(config, folder, group, progress)
    dataset, train_indices, val_indices = _split(config, loaded, progress)
    if fit_memory and not resume:
        config = replace(config, batch_size=fitting_batch(config, dataset, train_indices, device))
        progress.say(f"batch_size {config.batch_size}, of which a step fits in memory")
    group.require_shareable(config, min(map(len, splits.batches(train_indices, config.batch_size))))
    training = Training(config, dataset, train_indices, device, group)

    with hold(run, progress.warn) if group.leader else contextlib.nullcontext() as place:
        if place and not resume:
            require_new(run)  # another may have been here in the meantime
        if resume:
            _go_on(training, place, progress)
        tags = recorder.tags(training, len(val_indices)) | dict(tags or {})
        tracker = Tracker(run, experiment=config.experiment, warn=progress.warn, enabled=track and group.leader)
        record = Recorder(place, training, tracker)
        record.begin()
        progress.begin(config, loaded, run, tags)
        tracker.start(run.resolve().name, asdict(config), tags)
        with _said_how_it_ended(record, config, device):
            try:
                _fit(training, val_indices, record, progress, stop)
            finally:
                progress.end()
            summary = _summary(training, run, tags, _test(training, run) if test else {})
            group.leave()
            record.complete(summary)
        if place:
            report(loaded)
            send_results(tracker, run, summary)
    return summary


def _settled(config: Config, folder: Path | None, device: torch.device) -> Config:
    """The configuration with what `auto` comes to, of a network within the budget."""
    classes = data.num_classes(config.dataset, folder)
    smallest = config.progressive.size or config.image_size
    model = models.check_budget(config.model, classes, budget=config.budget, image_size=smallest)
    return replace(config, precision=devices.precision(config.precision, device), model=model)


def _with_its_batch_size(config: Config, run: Path, group: Group, resume: bool) -> Config:
    """With `fit_memory`: a run that goes on keeps the batch size that it found when it began.

    Raises:
        ConfigError: of several processes, or of `accumulate`, for which none is looked for.
    """
    if group.size > 1 or config.accumulate > 1:
        raise ConfigError("--batch-size auto is of one process, and of accumulate 1: give a number")
    if resume and (run / CONFIG).is_file():
        return replace(config, batch_size=load_recipe(run / CONFIG).batch_size)
    return config


def _finished_before(config: Config, run: Path, test: bool, resume: bool) -> dict[str, Any] | None:
    """The summary of a run that is finished; None of one that can begin or go on.

    Raises:
        TrainingError, CheckpointError, ConfigError: it can do neither; see `require_new` and `require_resumable`.
    """
    if not resume:
        require_new(run)
        return None
    require_resumable(config, run)
    return finished(config, run, test)


def _load(config: Config, folder: Path | None, group: Group, progress: Progress) -> Dataset:
    """The data, which one process on each machine fetches and decodes, and the others find."""
    with group.in_turn():
        return data.load(
            config.dataset, folder, config.image_size, progress=progress.download, decoding=progress.decode
        )


def _split(config: Config, loaded: Dataset, progress: Progress) -> tuple[Dataset, Tensor, Tensor]:
    """What is trained on, and the places in it of the images that are trained on and of those held out."""
    train, val = splits.split(loaded.train.targets, config.val_size, config.split_seed, config.train_size)
    dataset = loaded
    if config.train_on_test:
        train = torch.cat([train, torch.arange(len(loaded.test)) + len(loaded.train)])
        dataset = loaded.with_test_to_train()
    audit.check_images(dataset.train.images, train)
    labels = dataset.train.targets
    for line in audit.check_labels(dataset.classes, labels[train], labels[val]):
        progress.warn(line)
    return dataset, train, val


def _go_on(training: Training, place: RunFolder | None, progress: Progress) -> None:
    """Bring `training` to where the run stopped; to the beginning, where it died before its first checkpoint.

    Args:
        training: what is changed, in every process.
        place: the run's folder; None in processes that have none.
        progress: told of a checkpoint that is damaged, and of the one that is taken instead.
    """
    found = training.group.lead(lambda: place.load(progress.warn) if place else None)
    if not found:
        return
    state, path = found
    restore(training, state, path)
    config, at = training.config, training.at
    if config.epochs < at.epoch:
        raise ConfigError(
            f"epochs is {config.epochs}, but {path.parent} has trained {at.epoch}: epochs is the total, give more"
        )


@contextlib.contextmanager
def _said_how_it_ended(record: Recorder, config: Config, device: torch.device) -> Iterator[None]:
    """Within it, an error is told to the copy of the run, and comes out with what to do against it."""
    try:
        yield
    except BaseException as error:
        record.fail(error)
        if isinstance(error, WriteError):
            raise FolderError(f"{error}; what was saved before is kept, and --resume goes on from there") from error
        if found := advice.against(error, config, device):
            raise TrainingError(found) from error
        raise


def _fit(
    training: Training, val_indices: Tensor, record: Recorder, progress: Progress, stop: Callable[[], bool]
) -> None:
    """The training loop: from where `training` stands to the last epoch."""
    config, device, at, group = training.config, training.device, training.at, training.group
    if config.compile:
        training.forward = torch.compile(training.forward)
    every = training.dataset.train
    val_images, val_labels = every.images[val_indices], every.targets[val_indices]
    clock, look_every = Clock(at), _LOOK_EVERY[device.type]
    look = look_every == 0

    while not _is_over(config, at):
        order = training.indices[splits.epoch_order(len(training.indices), config.seed, at.epoch)].to(device)
        training.network.train()
        for batch in splits.batches(order, config.batch_size)[at.step :]:
            with clock.working():
                lr, compute = training.learning_rate(at.step), _gradient_of(training, batch)
                loss, correct = compute()
                training.note(len(batch), loss, correct)
                if look:
                    training.settle()  # so that a loss that is not finite moves no weight
                training.update(lr, compute)
                at.step += 1
            if look:
                progress.step(at, training.steps, lr)
                clock.looked()
            # All processes do these or none: `settle` sums over them, and their clocks and signals differ.
            leave, due, look = group.agree(
                stop(), _save_is_due(training, clock.since_save), clock.since_look >= look_every
            )
            if leave or due:
                training.settle()
                record.checkpoint()
                clock.saved()
            if leave:
                raise Interrupted

        with clock.working():
            training.settle()  # as long as the device takes for the last steps
        speed = at.images / at.epoch_seconds
        row = training.end_epoch()
        weights, scores = _validate(training, val_images, val_labels, row["lr"])
        # The test set has no say; without validation images the last epoch is kept.
        better = scores["val_accuracy"] > at.best_accuracy if scores else at.epoch == config.epochs
        if better:
            at.best_epoch, at.best_weights = at.epoch, weights
            at.best_accuracy = scores.get("val_accuracy", at.best_accuracy)
            record.keep(training.candidates[weights])
        row |= scores | {"images_per_second": speed, "seconds": clock.read()}
        record.epoch(row)
        clock.saved()
        progress.epoch(row, better)
        if group.agree(stop())[0]:
            raise Interrupted


def _is_over(config: Config, at: Position) -> bool:
    """Whether all epochs are done, or validation has waited long enough for a better one."""
    waited = at.epoch - at.best_epoch if at.best_epoch else 0
    patience = config.patience if config.val_size else None
    return at.epoch >= config.epochs or (patience is not None and waited >= patience)


def _gradient_of(training: Training, batch: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """What computes the gradient of the current step, by the same draws each time that it is called."""
    config, at = training.config, training.at
    done = (at.epoch * training.steps + at.step) / (config.epochs * training.steps)  # share of the run
    size = progressive_size(config.progressive, done, training.images.shape[-1])
    seed = splits.step_seed(config.seed, at.epoch, at.step)
    return partial(training.gradient, batch, seed, size, strong=done < config.augment.until)


def _save_is_due(training: Training, seconds: float) -> bool:
    """Whether to save within an epoch, `seconds` after the last time; its end saves anyway."""
    config, step = training.config, training.at.step
    if step == training.steps:
        return False
    by_steps = config.checkpoint_steps is not None and step % config.checkpoint_steps == 0
    return by_steps or (config.checkpoint_minutes is not None and seconds >= 60 * config.checkpoint_minutes)


def _validate(training: Training, images: Tensor, labels: Tensor, rate: float) -> tuple[str, dict[str, float]]:
    """Which of the candidates is best after an epoch, and what metrics.csv says of it; nothing, without images.

    A weight average is kept unless the raw weights do better, as they may early on, while it lags behind.

    Raises:
        TrainingError: weights or logits are not finite.
    """
    candidates = training.candidates
    kept = next(iter(candidates))  # of equals, and where nothing is validated
    if wrong := training.wrong(candidates[kept]):
        raise TrainingError(advice.diverged(f"after epoch {training.at.epoch}, {wrong}", training.config, rate))
    if not len(images):
        return kept, {}
    scores: dict[str, evaluate.Scores] = {}
    try:
        for name, network in candidates.items():
            scores[name] = evaluate.score(_logits(training, network, images), labels)
    except CheckpointError as error:
        what = f"after epoch {training.at.epoch}, {error}"
        raise TrainingError(advice.diverged(what, training.config, rate)) from error
    kept = max(scores, key=lambda name: scores[name].accuracy)
    training.plateau.update(scores[kept].loss)
    row = {"val_loss": scores[kept].loss, "val_accuracy": scores[kept].accuracy}
    if training.average:  # before swa begins, the average is what it would begin with
        row["val_accuracy_raw"] = scores["raw"].accuracy
        row["val_accuracy_average"] = scores.get("average", scores["raw"]).accuracy
    return kept, row


def _test(training: Training, run: Path) -> dict[str, dict[str, Any]]:
    """The scores of the chosen weights by views: the one time that the test images are looked at."""
    config, group, test = training.config, training.group, training.dataset.test
    best = group.lead(lambda: checkpoint.load_classifier(run))
    network = best.network.to(device=training.device, memory_format=training.layout)  # type: ignore[call-overload]
    scores: dict[str, dict[str, Any]] = {}
    for tta in dict.fromkeys(("none", config.tta)):
        logits = _logits(training, network, test.images, tta)
        scores[tta] = evaluate.score(logits, test.targets).to_dict()
        if tta == config.tta and group.leader:
            runs.keep_predictions(run, logits, test.targets)
    return scores


def _logits(training: Training, network: nn.Module, images: Tensor, tta: Tta = "none") -> Tensor:
    """Of one of the training's networks; each process computes those of its share of the images."""
    dataset, precision = training.dataset, PRECISIONS[training.config.precision]
    predict = partial(predict_logits, network, mean=dataset.mean, std=dataset.std, tta=tta, precision=precision)
    return training.group.logits(predict, images)


def _summary(
    training: Training, run: Path, tags: Mapping[str, str], test: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What summary.json holds of a run and its scores on the test images by views, where there are some."""
    config, at = training.config, training.at
    final: dict[str, Any] = {f"test_{key}": test["none"][key] for key in ("accuracy", "loss", "ece") if test}
    if config.tta in test and config.tta != "none":
        final["test_accuracy_tta"] = test[config.tta]["accuracy"]
    if config.val_size:
        final["val_accuracy"] = at.best_accuracy
    return {
        "name": run.resolve().name,
        "final": final | {"best_epoch": at.best_epoch, "epochs": at.epoch, "minutes": at.seconds / 60},
        "chosen_by": "validation accuracy" if config.val_size else "last epoch",
        "weights": at.best_weights,
        "tta": config.tta,
        "test": test,
        "trained_on_test": config.train_on_test,
        "parameters": models.count_parameters(training.network),
        "budget": config.budget,
        "tags": dict(tags),
        "versions": recorder.versions(),
        "hardware": devices.hardware(training.device, training.group.size),
    }
