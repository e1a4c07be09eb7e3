"""What changes while a network is trained: one step of it, and the end of an epoch.

The weights after a step are a pure function of those before it and of (seed, epoch, step), from which order, crops,
flips and dropout are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet import advice, cache, draws, memory, models, optim, origin, splits, start
from budgetnet.augment import Augment
from budgetnet.config import Config
from budgetnet.data import Dataset
from budgetnet.distill import Teachers, distillation_loss
from budgetnet.distributed import Group, Part
from budgetnet.errors import TrainingError
from budgetnet.inputs import normalize, resize
from budgetnet.mixing import REACH, mix
from budgetnet.policies import jensen_shannon
from budgetnet.position import Position

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# Images whose activations give the norm statistics of averaged weights: more pixels than the second digit needs.
_NORM_IMAGES = 10_000

# Of the loss in fp16. Above it, gradients that still overflow are above 6e7.
_LEAST_SCALE = 2.0**-10


@dataclass(frozen=True)
class _Outcome:
    """What came of a step, on the device."""

    step: int
    """Of the epoch."""
    images: int
    """Of the batch, that of all processes."""
    loss: Tensor
    """float scalar: this process's share of their mean loss."""
    correct: Tensor
    """int64 scalar: how many of this process's images are classified right."""


class Training:
    """All that changes while training.

    Args:
        config: what to compute.
        dataset: what is trained on, and what its normalisation and classes are taken from.
        train_indices: int64 (n,), places of the training images that are trained on.
        device: where to compute.
        group: the processes that train together; None is this one alone.

    Attributes:
        at: where the training stands.
        dataset: what is trained on.
        network: what is trained, on the device.
        forward: computes its logits as a step does: connected to the other processes, perhaps compiled.
        layout: of its weights and inputs in memory.
        images: uint8 (m, c, h, w), all training images, on the device.
        labels: int64 (m,), their classes, on the device.
        indices: `train_indices`.
        steps: in an epoch.
        classes: how many there are.
        augment: what training images go through.
        start: what is known of the file that the weights started from; None where they were drawn.
        teachers: what is learnt from besides the labels; None without `distill`.
        average: of the weights, or None without `ema` and `swa`.
        optimizer: moves the weights, with its memory.
        plateau: the factor of the learning rate that follows validation.
        scaler: of the loss in fp16; else it does nothing.

    Raises:
        BudgetError: the network is over the budget.
        ConfigError: a teacher or a start does not fit.
        CheckpointError: the file of one is missing or damaged.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        train_indices: Tensor,
        device: torch.device,
        group: Group | None = None,
    ) -> None:
        self.config, self.dataset, self.device, self.group = config, dataset, device, group or Group()
        self.at = Position()
        self._unseen: list[_Outcome] = []

        network = _untrained(config, dataset, train_indices)
        self.start = start.load(network, config, dataset, train_indices) if config.start is not None else None
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network = network.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]
        self.forward: Callable[[Tensor], Tensor] = self.group.connect(self.network, config)

        # All images stay on the device, as uint8, and a step takes its own from them.
        self.images, self.labels = dataset.train.images.to(device), dataset.train.targets.to(device)
        cache.expect_random(self.images)
        self.indices, self.steps = train_indices, len(splits.batches(train_indices, config.batch_size))
        self.classes = len(dataset.classes)
        self.augment = Augment(config.augment, dataset.mean, dataset.std, config.seed)
        self.teachers = (
            Teachers(
                config,
                dataset,
                train_indices,
                device=device,
                layout=self.layout,
                precision=PRECISIONS[config.precision],
            )
            if config.distill.teachers
            else None
        )

        averaged = bool(config.ema or config.swa)
        self.average = optim.WeightAverage(self.network, config.ema or None) if averaged else None
        self.optimizer = optim.make_optimizer(self.network, config.optimizer)
        self.plateau = optim.Plateau(config.schedule)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    @property
    def candidates(self) -> dict[str, nn.Module]:
        """The networks that are validated, of which the best is kept, the first of equals: average (if any) and raw."""
        raw = {"raw": self.network}
        return {"average": self.average.network} | raw if self.average and self.average.updates else raw

    def loss(
        self, index: Tensor, seed: int, size: int, *, strong: bool = True, part: Part | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch of training images, and how many of them are classified right, on the device.

        A mixed image is right where the class with the largest share of it is found; of several views of an image the
        first counts. Nothing here, in `gradient` or in `update` makes the host wait for an accelerator, but in fp16 the
        look for overflows.

        Args:
            index: int64 (n,), places in the training set, on the device.
            seed: of augmentation and dropout.
            size: side in pixels that the augmented images are shrunk to.
            strong: whether images are mixed, and augmented by more than crop and flip.
            part: of the batch that the loss is of, its images augmented and mixed as in the whole; None is all of it.
        """
        # For dropout, which draws from the global generator. Where a CPU computes, of that alone: torch.manual_seed
        # takes a trace of the stack for each kind of device that is not there.
        seeded = torch.default_generator if self.device.type == "cpu" else torch
        seeded.manual_seed(seed + (part.start if part else 0))
        x, y, labels, index = self._inputs(index, seed, strong, part)
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

    def _inputs(
        self, index: Tensor, seed: int, strong: bool, part: Part | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a batch, or a part of it, is trained on; the arguments are those of `loss`.

        Returns:
            The images, augmented and mixed, three views of each with a consistency loss; what they shall be classified
            as, int64 (n,), or where mixed float (n, classes); the class that counts as right, int64 (n,); and their
            places in the training set, int64 (n,).
        """
        before = 0
        if part is None or part.whole:
            rng = torch.Generator(self.device).manual_seed(seed)
        else:
            # An image is mixed with those before it in the batch, so that a part needs some that others train on.
            before = REACH[self.config.mix.name] if strong else 0
            rows = part.rows(before, self.device)
            index, rng = index[rows], draws.Share(rows, part.total).manual_seed(seed)
        x = self.augment(self.images[index], index, self.at.epoch, rng, strong=strong)
        y = labels = self.labels[index]
        if strong and self.config.mix.name != "none":
            x, y = mix(x, y, self.classes, self.config.mix, rng)
            labels = y.argmax(1)
        return x[before:], y[before:], labels[before:], index[before:]

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
            # The processes average their gradients once, with the last part.
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
        if self.average and self.config.ema:
            self.average.update(self.network)

    def wrong(self, network: nn.Module) -> str:
        """What is wrong with a network, though no loss said so; nothing where it is sound. Waits for the device.

        Validation would find most of it, but there may be none; and with a loss scale, gradients that always overflow
        leave every update out, in silence.
        """
        state = network.state_dict()
        sound = torch.stack([value.isfinite().all() for value in state.values()]).tolist()  # one wait for all
        bad = [name for name, good in zip(state, sound, strict=True) if not good]
        if bad:
            return f"{len(bad)} tensors of the network are not finite (the first is {bad[0]})"
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        if scale < _LEAST_SCALE:
            return f"gradients overflow in fp16 however small the loss is scaled (now {scale:g}), and no update is made"
        return ""

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step of the current epoch, the plateau's factor included."""
        at, config = self.at, self.config
        factor = optim.lr_factor(config.schedule, at.epoch * self.steps + step, self.steps, config.epochs)
        return config.optimizer.lr * self.plateau.factor * factor

    def note(self, images: int, loss: Tensor, correct: Tensor) -> None:
        """Take what came of the current step, which stays on the device until `settle`.

        Args:
            images: of the batch, that of all processes.
            loss: float scalar, this process's share of their mean loss.
            correct: int64 scalar, how many of this process's images are classified right.
        """
        self._unseen.append(_Outcome(self.at.step, images, loss, correct))

    def settle(self) -> None:
        """Wait for the device, and count what came of the steps since the last time.

        Raises:
            TrainingError: a loss is not finite.
        """
        if not self._unseen:
            return
        at, config = self.at, self.config
        values = [value.float() for seen in self._unseen for value in (seen.loss, seen.correct)]
        outcomes = self.group.sum(torch.stack(values)).tolist()
        for seen, loss, correct in zip(self._unseen, outcomes[::2], outcomes[1::2], strict=True):
            if not math.isfinite(loss):
                where = f"the loss is {loss} in epoch {at.epoch + 1}, step {seen.step + 1}"
                if at.epoch == seen.step == 0:
                    raise TrainingError(advice.bad_from_the_start(where, config))
                raise TrainingError(advice.diverged(where, config, self.learning_rate(seen.step)))
            at.images += seen.images
            at.loss_sum += loss * seen.images
            at.correct += int(correct)
        self._unseen.clear()

    def end_epoch(self) -> dict[str, float]:
        """Close the epoch: what metrics.csv says of its steps; weights go into the average where `swa` wants them."""
        at = self.at
        row = {
            "epoch": at.epoch + 1,
            "lr": self.learning_rate(self.steps - 1),
            "train_loss": at.loss_sum / at.images,
            "train_accuracy": at.correct / at.images,
        }
        at.epoch, at.step, at.images, at.loss_sum, at.correct, at.epoch_seconds = at.epoch + 1, 0, 0, 0.0, 0, 0.0
        self._average_weights()
        return row

    def _average_weights(self) -> None:
        """With `swa` and in its share of the run, take the weights of the epoch just completed into the average.

        Norm statistics of the average are then estimated on up to 10,000 training images, always the same ones, as
        they are: normalised and not augmented, like the images that the weights will be used on.
        """
        if not self.average or self.config.epochs - self.at.epoch >= self.config.swa * self.config.epochs:
            return
        self.average.update(self.candidates["raw"])
        order = splits.epoch_order(len(self.indices), self.config.seed, 0)
        chosen = self.indices[order[:_NORM_IMAGES]].to(self.device)
        precision = PRECISIONS[self.config.precision]
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            optim.estimate_norms(
                self.average.network,
                (
                    normalize(self.images[batch], self.augment.mean, self.augment.std).contiguous(
                        memory_format=self.layout
                    )
                    for batch in splits.batches(chosen, self.config.batch_size)
                ),
            )


def _untrained(config: Config, dataset: Dataset, train_indices: Tensor) -> nn.Module:
    """The network before its first step, by the draws of `config.seed`."""
    torch.manual_seed(config.seed)
    network = models.build(
        config.model, len(dataset.classes), image_size=dataset.train.images.shape[-1], budget=config.budget
    )
    if config.init == "kaiming":
        models.kaiming_(network)
    if isinstance(network, models.Initializable):
        enough = 5000 * 32**2 // dataset.train.images[0, 0].numel()  # pixels are what counts, and what costs memory
        chosen, _ = origin.some_of(train_indices, max(1, enough)).sort()
        sample = dataset.train.images[chosen]
        network.initialize(normalize(sample, dataset.mean, dataset.std))
    return network


def fitting_batch(config: Config, dataset: Dataset, train_indices: Tensor, device: torch.device) -> int:
    """The recipe's batch size, halved until a step fits in memory.

    Raises:
        RuntimeError: as `memory.fitting_batch`.
    """

    def step(size: int) -> None:
        training = Training(config, dataset, train_indices, device)
        training.network.train()
        batch = train_indices[torch.arange(size) % len(train_indices)].to(device)
        compute = partial(training.gradient, batch, 0, training.images.shape[-1])
        compute()
        training.update(config.optimizer.lr, compute)

    return memory.fitting_batch(config.batch_size, step, device)
