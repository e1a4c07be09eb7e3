"""Training: from a configuration and a data folder to a run folder with chosen weights and their scores.

`train` makes the run; `_fit` is the loop, on one page. Order, crops, flips and dropout are a pure function of (seed,
epoch, step), so that a resumed run needs only the weights, the optimizer's memory and a few counters.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from budgetnet import (
    __version__,
    audit,
    cache,
    checkpoint,
    data,
    devices,
    draws,
    evaluate,
    memory,
    models,
    optim,
    runs,
    start,
)
from budgetnet.augment import Augment, normalize, progressive_size, resize
from budgetnet.checkpoint import Classifier
from budgetnet.config import Config, Tta, load, to_yaml
from budgetnet.data import Dataset
from budgetnet.distill import Teachers, distillation_loss
from budgetnet.distributed import Group, Part
from budgetnet.errors import (
    BudgetnetError,
    CheckpointError,
    ConfigError,
    DataError,
    FolderError,
    Interrupted,
    TrainingError,
    WriteError,
)
from budgetnet.files import atomic_write, remove
from budgetnet.folder import RunFolder, hold, is_empty
from budgetnet.masking import masked
from budgetnet.metrics import METRICS, SYSTEM, Metrics, of_system
from budgetnet.mixing import REACH, mix
from budgetnet.policies import jensen_shannon
from budgetnet.progress import Progress
from budgetnet.store import Status
from budgetnet.tracking import RECORD, Tracker, is_unsent
from budgetnet.usage import Usage

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# Images whose activations give the norm statistics of averaged weights: more pixels than the second digit needs.
_NORM_IMAGES = 10_000

# Of the loss in fp16. Above it, gradients that still overflow are above 6e7.
_LEAST_SCALE = 2.0**-10

# Seconds between looks at what came of the steps. On a CPU a look is free; an accelerator would stand still after it.
_LOOK_EVERY = {"cpu": 0.0, "cuda": 0.5, "mps": 0.5}


@dataclass
class Position:
    """Where a training stands between two steps."""

    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Steps completed in the current epoch."""
    images: int = 0
    """Images seen in them."""
    loss_sum: float = 0.0
    """Sum of the training loss over those images."""
    correct: int = 0
    """How many of them, as augmented, were classified right."""
    epoch_seconds: float = 0.0
    """Time of the steps of the current epoch so far."""
    seconds: float = 0.0
    """Time of the run so far: steps, validation and saving."""
    best_epoch: int = 0
    """The epoch whose weights are kept; 0 is none yet."""
    best_accuracy: float = -1.0
    """Its validation accuracy."""
    best_weights: str = "raw"
    """Which of its weights: raw, or the average."""


class Training:
    """All that changes while training, and how it is saved."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        train_indices: Tensor,
        device: torch.device,
        group: Group | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        network = models.build(config.model, len(dataset.classes), dataset.train.images.shape[-1], config.budget)
        if config.init == "kaiming":
            models.kaiming_(network)
        if isinstance(network, models.Initializable):
            enough = 5000 * 32**2 // dataset.train.images[0, 0].numel()  # pixels are what counts, and what costs memory
            sample = dataset.train.images[train_indices[: max(1, enough)]]
            network.initialize(normalize(sample, dataset.mean, dataset.std))
        self.start = start.load(network, config, dataset) if config.start is not None else None
        self.config, self.device, self.group = config, device, group or Group()
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network = network.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]
        self.forward: Callable[[Tensor], Tensor] = self.group.connect(self.network, config)
        self.augment = Augment(config.augment, dataset.mean, dataset.std, config.seed)
        self.classes = len(dataset.classes)
        self.images, self.labels = dataset.train.images.to(device), _labels(dataset.train).to(device)
        cache.expect_random(self.images)
        self.teachers = (
            Teachers(
                config.distill,
                dataset,
                train_indices,
                smallest=config.progressive.size or dataset.train.images.shape[-1],
                mirrored=config.augment.flip != "none",
                device=device,
                layout=self.layout,
                precision=PRECISIONS[config.precision],
            )
            if config.distill.teachers
            else None
        )
        averaged = bool(config.ema or config.swa)
        self.average = optim.WeightAverage(self.network, config.ema or None) if averaged else None
        steps, alpha = config.optimizer.lookahead_steps, config.optimizer.lookahead_alpha
        self.lookahead = optim.Lookahead(self.network, steps, alpha) if steps else None
        self.optimizer = optim.make_optimizer(self.network, config.optimizer)
        self.plateau = optim.Plateau(config.schedule)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.at = Position()

    @property
    def candidates(self) -> dict[str, nn.Module]:
        """The networks that are validated, of which the best is kept, the first of equals: average (if any) and raw.

        With lookahead, the raw weights are the slow ones.
        """
        raw = {"raw": self.lookahead.network if self.lookahead else self.network}
        return {"average": self.average.network} | raw if self.average and self.average.updates else raw

    def loss(
        self, index: Tensor, seed: int, size: int, *, strong: bool = True, part: Part | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch of training images, and how many of them are classified right, on the device.

        A mixed image is right where the class with the largest share of it is found; of several views of an image the
        first counts. Nothing here, in `gradient` or in `update` makes the host wait for an accelerator.

        Args:
            index: int64 (n,), places in the training set, on the device.
            seed: of augmentation and dropout.
            size: side in pixels that the augmented images are shrunk to.
            strong: whether images are mixed, and augmented by more than crop and flip.
            part: of the batch that the loss is of, its images augmented and mixed as in the whole; None is all of it.
        """
        first = part.start if part else 0
        torch.manual_seed(seed + first)  # for dropout, which draws from the global generator
        partners = 0
        if part is None or part.whole:
            rng = torch.Generator(self.device).manual_seed(seed)
        else:
            partners = REACH[self.config.mix.name] if strong else 0
            rows = part.rows(partners, self.device)
            index, rng = index[rows], draws.Share(rows, part.total).manual_seed(seed)
        x, y = self.augment(self.images[index], index, self.at.epoch, rng, strong=strong), self.labels[index]
        labels = y
        if strong and self.config.mix.name != "none":
            x, y = mix(x, y, self.classes, self.config.mix, rng)
            labels = y.argmax(1)
        if partners:  # which other parts train on
            x, y, labels, index = x[partners:], y[partners:], labels[partners:], index[partners:]
        x = resize(x, size)
        precision = PRECISIONS[self.config.precision]
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            x = x.contiguous(memory_format=self.layout)
            logits = self.forward(x)
            taught = self.teachers.targets(x[: len(index)], index) if self.teachers else None
        views = logits.float().reshape(-1, len(index), self.classes)  # one, or three with a consistency loss
        loss = F.cross_entropy(views[0], y, label_smoothing=self.config.label_smoothing)
        if taught is not None:
            weight, temperature = self.config.distill.weight, self.config.distill.temperature
            loss = (1 - weight) * loss + weight * distillation_loss(views[0], taught, temperature)
        if len(views) > 1:
            loss = loss + self.config.augment.consistency * jensen_shannon(views)
        return loss, (views[0].detach().argmax(1) == labels).sum()

    def gradient(self, index: Tensor, seed: int, size: int, *, strong: bool = True) -> tuple[Tensor, Tensor]:
        """Leave the gradient of a batch's mean loss in the parameters, that of all processes in each.

        Args:
            index: int64 (n,), the whole batch, of which this process computes its part, in as many pieces as
                `accumulate` says.
            seed: as for `loss`.
            size: likewise.
            strong: likewise.

        Returns:
            What `loss` does; the sums over the processes are those of the batch.
        """
        self.optimizer.zero_grad()
        losses, rights = [], []
        parts = self.group.parts(len(index), self.config.accumulate)
        for part in parts:
            with self.group.holding(self.forward, part is not parts[-1]):
                loss, right = self.loss(index, seed, size, strong=strong, part=part)
                if not part.whole:  # gradients of pieces add up, and are averaged over the processes
                    loss = loss * part.share
                self.scaler.scale(loss * self.group.size if self.group.size > 1 else loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            rights.append(right)
        return sum(losses[1:], losses[0]), sum(rights[1:], rights[0])

    def update(self, lr: float, again: Callable[[], object] | None = None) -> None:
        """Move the weights, and what follows them, against the gradient that they have.

        Args:
            lr: learning rate.
            again: computes the gradient once more, by the same draws, from weights that have moved; `optimizer.sam`
                needs it.
        """
        if self.config.optimizer.sam and again:
            with optim.ascended(self.network, self.config.optimizer.sam):
                again()
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        optim.set_learning_rate(self.optimizer, lr)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.group.average_norms(self.network)
        if self.lookahead:
            self.lookahead.update(self.network)
        if self.average and self.config.ema:
            self.average.update(self.network)

    def wrong(self, network: nn.Module) -> str:
        """What makes it useless to go on though no loss said so, or nothing; waits for the device.

        Validation would find most of it, but there may be none; and with a loss scale, gradients that always overflow
        leave every update out, in silence.
        """
        bad = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
        if bad:
            return f"{len(bad)} tensors of the network are not finite (the first is {bad[0]})"
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        if scale < _LEAST_SCALE:
            return f"gradients overflow in fp16 however small the loss is scaled (now {scale:g}), and no update is made"
        return ""

    def end_epoch(self, indices: Tensor) -> None:
        """With `swa` and in its share of the run, take the weights of the epoch just completed into the average.

        Norm statistics of the average are then estimated on up to 10,000 training images, always the same ones, as
        they are: normalised and not augmented, like the images that the weights will be used on.

        Args:
            indices: int64 (n,), places of the images that are trained on.
        """
        if not self.average or self.config.epochs - self.at.epoch >= self.config.swa * self.config.epochs:
            return
        self.average.update(self.candidates["raw"])
        chosen = indices[data.epoch_order(len(indices), self.config.seed, 0)[:_NORM_IMAGES]].to(self.device)
        precision = PRECISIONS[self.config.precision]
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            optim.estimate_norms(
                self.average.network,
                (
                    normalize(self.images[batch], self.augment.mean, self.augment.std).contiguous(
                        memory_format=self.layout
                    )
                    for batch in data.batches(chosen, self.config.batch_size)
                ),
            )

    def state(self, checksum: str) -> dict[str, Any]:
        """Everything that a resumed run needs; with the checksum of the data, so that it resumes on no other."""
        state: dict[str, Any] = {
            "checksum": checksum,
            "position": asdict(self.at),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.start:
            state |= {"start": self.start["sha256"]}
        if self.teachers:
            state |= {"teachers": self.teachers.digests}
        if self.average:
            state |= {"average": self.average.network.state_dict(), "average_updates": self.average.updates}
        if self.lookahead:
            state |= {"lookahead": self.lookahead.network.state_dict(), "lookahead_updates": self.lookahead.updates}
        return state

    def load(self, state: Mapping[str, Any], path: Path, checksum: str) -> None:
        """Go on from a `state`, which is from a file at `path`.

        Raises:
            CheckpointError: the run was trained on other data, from other weights or by other teachers, or the file
                holds something else.
        """
        try:
            self._restore(state, path, checksum)
        # Whoever knows the format can seal anything; what is wrong with it is met by whatever reads it first.
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise CheckpointError(
                f"{path} has a checkpoint's checksum and not its content ({what}): resume from another, or train again"
            ) from error

    def _restore(self, state: Mapping[str, Any], path: Path, checksum: str) -> None:
        if state["checksum"] != checksum:
            raise CheckpointError(
                f"{path} belongs to a run on other data (checksum {state['checksum'][:12]}, found {checksum[:12]}): "
                "resume with the same --data"
            )
        others = [f"teacher {name}" for name in self.config.distill.teachers]
        found, saved = list(self.teachers.digests if self.teachers else ()), list(state.get("teachers", ()))
        if self.start or "start" in state:
            others.append(f"start {self.config.start}")
            found.append(self.start["sha256"] if self.start else "none")
            saved.append(state.get("start", "none"))
        for other, now, before in zip(others, found, saved, strict=True):
            if now != before:
                raise CheckpointError(
                    f"{other} has changed since {path} was written (checksum {before[:12]}, found {now[:12]}): "
                    "resume with the same file"
                )
        checkpoint.load_strictly(self.network, state["network"], str(path), "the run's network")
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            checkpoint.load_strictly(self.average.network, state["average"], str(path), "the run's network")
            self.average.updates = state["average_updates"]
        if self.lookahead:
            checkpoint.load_strictly(self.lookahead.network, state["lookahead"], str(path), "the run's network")
            self.lookahead.updates = state["lookahead_updates"]
        self.at = Position(**state["position"])
        if not checkpoint.has_type(self.at, Position):
            raise TypeError(f"a position of {self.at}")


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
    device = device or torch.device("cpu")
    progress = progress or Progress()
    group = group or Group()
    test = test and not config.train_on_test
    devices.tune(device)
    config = replace(config, precision=devices.precision(config.precision, device))
    classes = data.num_classes(config.dataset, folder)
    smallest = config.progressive.size or config.image_size
    config = replace(config, model=models.check_budget(config.model, classes, config.budget, smallest))
    if fit_memory and (group.size > 1 or config.accumulate > 1):
        raise ConfigError("--batch-size auto is of one process, and of accumulate 1: give a number")
    if fit_memory and resume and (run / "config.yaml").is_file():
        config = replace(config, batch_size=load(run / "config.yaml").batch_size)
    if summary := group.lead(lambda: _found(config, run, test, resume)):
        progress.say(f"{run} is finished: there is nothing left to train")
        if group.leader:
            _tidy_up(config, run, summary, track and is_unsent(run), progress)
        return summary
    with group.in_turn():
        dataset = data.load(
            config.dataset, folder, config.image_size, progress=progress.download, decoding=progress.decode
        )
    train_indices, val_indices = data.split(
        _labels(dataset.train), config.val_size, config.split_seed, config.train_size
    )
    loaded = dataset
    if config.train_on_test:
        train_indices = torch.cat([train_indices, torch.arange(len(dataset.test)) + len(dataset.train)])
        dataset = dataset.with_test_to_train()
    audit.check_images(dataset.train.images, train_indices)
    labels = _labels(dataset.train)
    for line in audit.check_labels(dataset.classes, labels[train_indices], labels[val_indices]):
        progress.warn(line)
    if fit_memory and not resume:
        config = replace(config, batch_size=_fitting_batch(config, dataset, train_indices, device))
        progress.say(f"batch_size {config.batch_size}, of which a step fits in memory")
    group.require(config, min(map(len, data.batches(train_indices, config.batch_size))))
    training = Training(config, dataset, train_indices, device, group)
    with hold(run, progress.warn) if group.leader else contextlib.nullcontext() as place:
        if place and not resume:
            _require_new(run)  # another may have been here in the meantime
        # A run that died before its first checkpoint begins again.
        if found := group.lead(lambda: place.load(progress.warn) if place and resume else None):
            training.load(*found, dataset.checksum)
            if config.epochs < training.at.epoch:
                raise ConfigError(
                    f"epochs is {config.epochs}, but {run} has trained {training.at.epoch}: epochs is the total, give "
                    "more"
                )
        metrics, system = Metrics(run / METRICS), Metrics(run / SYSTEM)
        if place:
            remove(run / "summary.json")  # of fewer epochs than are asked for now
            atomic_write(run / "config.yaml", to_yaml(config).encode())
            for file in (metrics, system):
                file.truncate(training.at.epoch)
        sizes = len(train_indices), len(val_indices)
        tags = _tags(config, dataset, sizes, training.network, device) | dict(tags or {})
        if training.start:
            tags["start"] = training.start["sha256"]
        if training.teachers:
            tags["teachers"] = ", ".join(training.teachers.digests)
        progress.begin(config, dataset, run, tags)
        tracker = Tracker(run, experiment=config.experiment, warn=progress.warn, enabled=track and group.leader)
        tracker.start(run.resolve().name, asdict(config), tags)
        try:
            try:
                split = train_indices, val_indices
                _fit(config, dataset, split, place, training, (metrics, system), tracker, progress, stop)
            finally:
                progress.end()
            summary = _test(config, dataset, run, training.at, device, tags, test, group)
            group.leave()
            if place:
                place.require()
                atomic_write(run / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        except BaseException as error:
            status: Status = "KILLED" if isinstance(error, Interrupted | KeyboardInterrupt) else "FAILED"
            tracker.finish(status, [], None, {})
            if isinstance(error, WriteError):
                raise FolderError(f"{error}; what was saved before is kept, and --resume goes on from there") from error
            advice = _advice(error, config, device)
            if advice:
                raise TrainingError(advice) from error
            raise
        if place:
            report(loaded)
            _send_results(tracker, run, summary)
    return summary


def _send_results(tracker: Tracker, run: Path, summary: Mapping[str, Any]) -> None:
    """Give a finished run's files and model to MLflow."""
    files = [run / name for name in RECORD if (run / name).exists()]
    tracker.finish("FINISHED", files, checkpoint.load_classifier(run), summary["final"])


def _tidy_up(config: Config, run: Path, summary: Mapping[str, Any], unsent: bool, progress: Progress) -> None:
    """Remove what a finished run that was killed in its last moments has left, and send to MLflow what it has not."""
    try:
        with hold(run, progress.warn):
            if unsent:
                tracker = Tracker(run, experiment=config.experiment, warn=progress.warn)
                tracker.start(run.resolve().name, asdict(config), summary["tags"])
                _send_results(tracker, run, summary)
    except FolderError as error:  # such as one that is read-only by now, which is no harm else
        if unsent:
            progress.warn(f"MLflow may lack the end of this run: {error}")


def _fit(
    config: Config,
    dataset: Dataset,
    split: tuple[Tensor, Tensor],
    place: RunFolder | None,
    training: Training,
    files: tuple[Metrics, Metrics],
    tracker: Tracker,
    progress: Progress,
    stop: Callable[[], bool],
) -> None:
    """The training loop: from where `training` stands to the last epoch. Writes checkpoints and best.safetensors, in
    `place`, which the first of several processes has."""
    device, at, group = training.device, training.at, training.group
    if config.compile:
        training.forward = torch.compile(training.forward)
    train_indices, val_indices = split
    val_images, val_labels = dataset.train.images[val_indices], _labels(dataset.train)[val_indices]
    steps = len(data.batches(train_indices, config.batch_size))
    patience = config.patience if config.val_size else None
    metrics, system = files
    usage = Usage(place.path if place else Path(), device)
    clock = time.monotonic() - at.seconds
    saved = seen = at.seconds
    look = not _LOOK_EVERY[device.type]
    pending: list[tuple[int, int, Tensor, Tensor]] = []  # step, images, loss and right answers, still on the device

    def learning_rate(step: int) -> float:
        factor = optim.lr_factor(config.schedule, at.epoch * steps + step, steps, config.epochs)
        return config.optimizer.lr * training.plateau.factor * factor

    def settle() -> None:
        """Wait for the device, and take note of what came of the steps since the last time."""
        values = [value.float() for *_, loss, correct in pending for value in (loss, correct)]
        outcomes = group.sum(torch.stack(values)).tolist()
        for (step, images, _, _), loss, correct in zip(pending, outcomes[::2], outcomes[1::2], strict=True):
            if not math.isfinite(loss):
                where = f"the loss is {loss} in epoch {at.epoch + 1}, step {step + 1}"
                if at.epoch == step == 0:
                    raise TrainingError(_bad_from_the_start(where, config))
                raise TrainingError(_diverged(where, config, learning_rate(step)))
            at.images, at.loss_sum, at.correct = (
                at.images + images,
                at.loss_sum + loss * images,
                at.correct + int(correct),
            )
        pending.clear()

    while at.epoch < config.epochs and not (patience and at.best_epoch and at.epoch - at.best_epoch >= patience):
        order = train_indices[data.epoch_order(len(train_indices), config.seed, at.epoch)].to(device)
        training.network.train()
        for batch in data.batches(order, config.batch_size)[at.step :]:
            started = time.monotonic()
            done = (at.epoch * steps + at.step) / (config.epochs * steps)
            size = progressive_size(config.progressive, done, training.images.shape[-1])
            strong = done < config.augment.until
            seed = data.step_seed(config.seed, at.epoch, at.step)
            compute = partial(training.gradient, batch, seed, size, strong=strong)
            pending.append((at.step, len(batch), *compute()))
            if look:
                settle()
            training.update(learning_rate(at.step), compute)

            at.step += 1
            at.epoch_seconds += time.monotonic() - started
            at.seconds = time.monotonic() - clock
            if look:
                seen = at.seconds
                progress.step(at, steps, learning_rate(at.step - 1))
            due = at.step < steps and _due(config, at.step, at.seconds - saved)
            asked, due, look = group.agree(stop(), due, at.seconds - seen >= _LOOK_EVERY[device.type])
            if asked or due:
                if pending:
                    settle()
                if place:
                    place.save(training.state(dataset.checksum))
                saved = at.seconds
            if asked:
                raise Interrupted

        if pending:
            settle()
            at.epoch_seconds += time.monotonic() - clock - at.seconds
        row: dict[str, float] = {
            "epoch": at.epoch + 1,
            "lr": learning_rate(steps - 1),
            "train_loss": at.loss_sum / at.images,
            "train_accuracy": at.correct / at.images,
        }
        speed = at.images / at.epoch_seconds
        at.epoch, at.step, at.images, at.loss_sum, at.correct, at.epoch_seconds = at.epoch + 1, 0, 0, 0.0, 0, 0.0
        better = at.epoch == config.epochs
        training.end_epoch(train_indices)
        candidates = training.candidates
        kept = next(iter(candidates))
        if wrong := training.wrong(candidates[kept]):
            raise TrainingError(_diverged(f"after epoch {at.epoch}, {wrong}", config, row["lr"]))
        if config.val_size:
            scores: dict[str, evaluate.Scores] = {}
            try:
                for name, network in candidates.items():
                    predict = partial(_predict, network, mean=dataset.mean, std=dataset.std, config=config)
                    scores[name] = evaluate.score(group.logits(predict, val_images), val_labels)
            except CheckpointError as error:
                raise TrainingError(_diverged(f"after epoch {at.epoch}, {error}", config, row["lr"])) from error
            kept = max(scores, key=lambda name: scores[name].accuracy)
            row |= {"val_loss": scores[kept].loss, "val_accuracy": scores[kept].accuracy}
            if training.average:  # before swa begins, the average is what it would begin with
                row["val_accuracy_raw"] = scores["raw"].accuracy
                row["val_accuracy_average"] = scores.get("average", scores["raw"]).accuracy
            training.plateau.update(scores[kept].loss)
            better = scores[kept].accuracy > at.best_accuracy
            at.best_accuracy = max(scores[kept].accuracy, at.best_accuracy)
        if better:
            at.best_epoch, at.best_weights = at.epoch, kept
        if place:
            place.require()
            if better:
                _keep(candidates[kept], training, dataset, place.path)
        saved = at.seconds = time.monotonic() - clock
        row |= {"images_per_second": speed, "seconds": at.seconds}
        if place:
            used = usage.read()
            metrics.append(row)
            system.append({"epoch": at.epoch, **used})
            place.save(training.state(dataset.checksum))
            tracker.log_epoch(row | of_system(used))
        progress.epoch(row, better)
        if group.agree(stop())[0]:
            raise Interrupted


def _keep(network: nn.Module, training: Training, dataset: Dataset, run: Path) -> None:
    """Write the weights chosen so far, as a model file that stands alone."""
    config, at, teachers = training.config, training.at, training.teachers
    checkpoint.save_classifier(
        run / "best.safetensors",
        Classifier(
            network=network,
            model=config.model,
            classes=dataset.classes,
            mean=dataset.mean,
            std=dataset.std,
            image_size=dataset.train.images.shape[-1],
            provenance={
                "config": masked(asdict(config)),
                "epoch": at.epoch,
                "weights": at.best_weights,
                "val_accuracy": at.best_accuracy if config.val_size else None,
                "data_checksum": dataset.checksum,
                "versions": _versions(),
            }
            | ({"start": training.start} if training.start else {})
            | ({"teachers": teachers.digests} if teachers else {}),
        ),
    )


def _test(
    config: Config,
    dataset: Dataset,
    run: Path,
    at: Position,
    device: torch.device,
    tags: Mapping[str, str],
    wanted: bool,
    group: Group,
) -> dict[str, Any]:
    """Test the chosen weights, where wanted: the one time that the test images are looked at. Sum the run up."""
    best = group.lead(lambda: checkpoint.load_classifier(run))
    network = best.network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    test: dict[str, Any] = {}
    views = dict.fromkeys(("none", config.tta)) if wanted else {}
    for tta in views:
        predict = partial(_predict, network, mean=best.mean, std=best.std, config=config, tta=tta)
        logits = group.logits(predict, dataset.test.images)
        test[tta] = evaluate.score(logits, _labels(dataset.test)).to_dict()
        if tta == config.tta and group.leader:
            runs.keep_predictions(run, logits, _labels(dataset.test))
    final: dict[str, Any] = {f"test_{key}": test["none"][key] for key in ("accuracy", "loss", "ece") if wanted}
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
        "parameters": models.count_parameters(network),
        "budget": config.budget,
        "tags": dict(tags),
        "versions": _versions(),
        "hardware": devices.hardware(device) | ({"processes": group.size} if group.size > 1 else {}),
    }


def _predict(
    network: nn.Module,
    images: Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    config: Config,
    tta: Tta = "none",
) -> Tensor:
    return evaluate.predict_logits(network, images, mean, std, tta=tta, precision=PRECISIONS[config.precision])


def _found(config: Config, run: Path, test: bool, resume: bool) -> dict[str, Any] | None:
    """What a new run, or one that is resumed, finds: nothing, or a summary after which nothing is left to train."""
    if not resume:
        _require_new(run)
        return None
    _check_resumable(config, run)
    return _finished(config, run, test)


def _check_resumable(config: Config, run: Path) -> None:
    """Refuse to resume what is not there, or under a configuration that would compute something else."""
    if not (run / "config.yaml").is_file():
        raise CheckpointError(f"{run} holds no config.yaml: there is nothing to resume; leave out --resume to begin")
    before = yaml.safe_load(to_yaml(replace(load(run / "config.yaml"), epochs=config.epochs)))
    now = yaml.safe_load(to_yaml(config))
    for key, old, new in _differences(before, now):
        raise ConfigError(f"{key} is {new!r}, but the run in {run} has {old!r}: a resumed run keeps its options")


def _fitting_batch(config: Config, dataset: Dataset, train_indices: Tensor, device: torch.device) -> int:
    """The recipe's batch size, halved until a step fits in memory."""

    def step(size: int) -> None:
        training = Training(config, dataset, train_indices, device)
        training.network.train()
        batch = train_indices[torch.arange(size) % len(train_indices)].to(device)
        compute = partial(training.gradient, batch, 0, training.images.shape[-1])
        compute()
        training.update(config.optimizer.lr, compute)

    return memory.fitting_batch(config.batch_size, step, device)


def _require_new(run: Path) -> None:
    if run.exists() and (not run.is_dir() or not is_empty(run)):
        raise TrainingError(f"{run} exists: choose another --output, or continue that run with --resume")


def _finished(config: Config, run: Path, test: bool) -> dict[str, Any] | None:
    """The summary of a run that ended, and was tested where that is wanted, after as many epochs as are asked for now.

    One that is damaged is as good as none: it is made again from what it sums up.
    """
    if not (run / "summary.json").is_file() or load(run / "config.yaml").epochs != config.epochs:
        return None
    with contextlib.suppress(DataError, KeyError):
        summary = runs.read_summary(run)
        if summary["final"] and (summary["test"] or not test):
            return summary
    return None


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in before:
        if isinstance(before[key], dict):
            found += _differences(before[key], now[key], f"{prefix}{key}.")
        elif before[key] != now[key]:
            found.append((prefix + key, before[key], now[key]))
    return found


def _due(config: Config, step: int, seconds: float) -> bool:
    """Whether to save within an epoch."""
    by_steps = config.checkpoint_steps is not None and step % config.checkpoint_steps == 0
    return by_steps or (config.checkpoint_minutes is not None and seconds >= 60 * config.checkpoint_minutes)


def _diverged(what: str, config: Config, rate: float) -> str:
    advice = f"a lower --optimizer.lr than {config.optimizer.lr:g}, a longer --schedule.warmup, or --clip-norm 1"
    if config.precision != "fp32":
        advice += f", or --precision fp32 instead of {config.precision}"
    return f"{what}, at learning rate {rate:g}: try {advice}"


def _bad_from_the_start(what: str, config: Config) -> str:
    """Why the first loss of all may not be finite: no update was made, so that no rate and no clipping can mend it."""
    causes = ["the images (`budgetnet data verify`)"]
    if config.distill.teachers:
        causes.append("the teachers")
    advice = f"look at {' and '.join(causes)}"
    if config.precision != "fp32":
        advice += f", or try --precision fp32 instead of {config.precision}"
    return f"{what}, before any update: {advice}"


def _advice(error: BaseException, config: Config, device: torch.device) -> str:
    """What to try against an error of torch's that an option can mend; nothing for all others."""
    if memory.is_out_of_memory(error):
        less = max(2, config.batch_size // 2)
        return (
            f"{device} has not enough memory for batch_size {config.batch_size}: try --batch-size {less} in a new run, "
            "--batch-size auto, which finds one that fits, or a narrower network"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile failed ({(str(error).splitlines() or [''])[0]}): leave it out by --compile false"
    return ""


def _labels(images: data.Images) -> Tensor:
    if images.labels is None:
        raise BudgetnetError("these images have no labels, which training needs")
    return images.labels


def _tags(
    config: Config, dataset: Dataset, sizes: tuple[int, int], network: nn.Module, device: torch.device
) -> dict[str, str]:
    trained, held = sizes
    images = {"train": trained, "val": held, "test": 0 if config.train_on_test else len(dataset.test)}
    return {
        "dataset": dataset.name,
        "data_checksum": dataset.checksum,
        **{f"{name}_images": str(n) for name, n in images.items()},
        "model": config.model.name,
        "parameters": str(models.count_parameters(network)),
        "device": str(device),
        "git_commit": _git_commit(),
        "budgetnet": __version__,
    }


def _git_commit() -> str:
    """The commit of this source, with + when files differ from it; unknown where git does not track this source."""
    here = Path(__file__).parent
    try:
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        commit = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--match=", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip()


def _versions() -> dict[str, str]:
    return {"budgetnet": __version__, "python": platform.python_version(), "torch": torch.__version__}
