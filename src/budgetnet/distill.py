"""Learning from trained networks: what they say of the training images, and how far a student is from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet import checkpoint, models, origin
from budgetnet.classifier import Classifier
from budgetnet.config import Config
from budgetnet.data import Dataset
from budgetnet.errors import ConfigError
from budgetnet.logits import predict_logits


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """How far a student is from its teachers: the mean of T^2 KL(targets || softmax(logits / T)).

    T^2 keeps the size of the gradients, which softening divides by about as much; 0 where the two agree.

    Args:
        logits: (n, classes) float, the student's.
        targets: (n, classes) float, the teachers' probabilities at the same temperature.
        temperature: T, above 0; more is softer.

    Returns:
        A scalar.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    return F.kl_div(student, targets, reduction="batchmean") * temperature**2


class Teachers:
    """Trained networks, and their mean probabilities for the images that a student sees.

    They are in evaluation mode, have no gradients, and draw nothing. What they see is the student's view, in their own
    normalisation (Beyer et al. 2022, arXiv:2106.05237, "consistent teaching"); or, with `config.cached`, each training
    image as it is, and mirrored where that is asked for, once.

    Args:
        config: of the student; `distill` names one teacher or more.
        dataset: what the student learns.
        indices: int64 (n,), places of the images that are trained on.
        device: where to compute.
        layout: memory format of images and weights.
        precision: of the teachers' arithmetic; None is that of their weights.

    Attributes:
        digests: SHA-256 of each teacher's file, as hexadecimal digits, in their order.

    Raises:
        CheckpointError: a teacher's file is missing, damaged, or holds no model.
        ConfigError: a teacher has other classes or images, cannot take images as small as the student's, or was trained
            on images that the student is chosen by or tested on: it would tell of them.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        indices: Tensor,
        *,
        device: torch.device,
        layout: torch.memory_format,
        precision: torch.dtype | None,
    ) -> None:
        self.temperature = config.distill.temperature
        self.digests: list[str] = []
        self._networks: list[tuple[nn.Module, Tensor, Tensor]] = []  # with the factor and term of its normalisation
        self._cached: Tensor | None = None
        teachers = [self._load(name, config, dataset) for name in config.distill.teachers]
        if config.distill.cached:
            mirrored = config.augment.flip != "none"
            images = dataset.train.images[indices]
            each = [
                self._probabilities(
                    predict_logits(
                        teacher.network.to(device=device, memory_format=layout),  # type: ignore[call-overload]
                        view,
                        teacher.mean,
                        teacher.std,
                        precision=precision,
                    )
                )
                for teacher in teachers
                for view in ((images, images.flip(3)) if mirrored else (images,))
            ]
            table = torch.zeros(len(dataset.train.images), len(dataset.classes))
            table[indices] = torch.stack(each).mean(0)
            self._cached = table.to(device)
            return
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
        for teacher in teachers:
            own_mean, own_std = (torch.tensor(values).view(1, -1, 1, 1) for values in (teacher.mean, teacher.std))
            network = teacher.network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
            self._networks.append((network, (std / own_std).to(device), ((mean - own_mean) / own_std).to(device)))

    def targets(self, images: Tensor, index: Tensor) -> Tensor:
        """The mean of the teachers' probabilities at the temperature, without gradients.

        Args:
            images: float (n, c, h, w), as the student sees them, in the data set's normalisation.
            index: int64 (n,), their places in the training set.

        Returns:
            float32 (n, classes), on the device of `images`; rows sum to 1.
        """
        if self._cached is not None:
            return self._cached[index]
        with torch.no_grad():
            each = [self._probabilities(network(images * factor + term)) for network, factor, term in self._networks]
            return torch.stack(each).mean(0)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return (logits.float() / self.temperature).softmax(1)

    def _load(self, name: str, config: Config, dataset: Dataset) -> Classifier:
        path = checkpoint.weights_file(checkpoint.located(Path(name).expanduser()))
        teacher = checkpoint.load_classifier(path)
        self.digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        if teacher.classes != dataset.classes:
            raise ConfigError(
                f"teacher {name} knows the classes {_some(teacher.classes)}, but {dataset.name} has "
                f"{_some(dataset.classes)}: choose a teacher that was trained on the same classes"
            )
        origin.require_unseen(f"teacher {name}", origin.trained_on(path, teacher), config, dataset)
        side = dataset.train.images.shape[-1]
        if teacher.image_size != side:
            raise ConfigError(
                f"teacher {name} takes images of {teacher.image_size} pixels, but those of {dataset.name} have {side}: "
                "choose a teacher that was trained on the same size"
            )
        smallest = side if config.distill.cached else config.progressive.size or side
        try:
            models.check_budget(teacher.model, len(teacher.classes), budget=None, image_size=smallest)
        except ConfigError as error:
            raise ConfigError(f"teacher {name} cannot take the smallest images of progressive.size: {error}") from error
        return teacher


def _some(names: Sequence[str]) -> str:
    """A few of many names."""
    shown = ", ".join(names[:4])
    return f"{shown}, ... ({len(names)})" if len(names) > 4 else shown
