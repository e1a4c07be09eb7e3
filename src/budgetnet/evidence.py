"""What there is to show of a run besides its own record: its network, its data, and what the one makes of the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from budgetnet import checkpoint, evaluate, splits
from budgetnet import data as datasets
from budgetnet.classifier import Classifier
from budgetnet.config import DatasetName
from budgetnet.data import Dataset
from budgetnet.errors import BudgetnetError, DataError
from budgetnet.evaluate import Scores
from budgetnet.gallery import Judged
from budgetnet.logits import predict_logits
from budgetnet.runfiles import WEIGHTS
from budgetnet.runs import Run
from budgetnet.training import PRECISIONS
from budgetnet.words import VIEWS


@dataclass
class Evidence:
    """What there is to show of a run besides its own record; each part is looked for once, when it is first needed."""

    run: Run
    folder: Path | None
    """Where to look for the data, as `--data`; None is the usual places."""
    given: Dataset | None
    """The data, where it was read already."""
    device: torch.device
    """On which the network computes, if it has to."""

    @cached_property
    def classifier(self) -> Classifier | str:
        """The chosen network, or why there is none."""
        if not (self.run.folder / WEIGHTS).is_file():
            return f"no weights were chosen yet (there is no {WEIGHTS})"
        try:
            return checkpoint.load_classifier(self.run.folder / WEIGHTS)
        except BudgetnetError as error:
            return str(error)

    @cached_property
    def dataset(self) -> Dataset | str:
        """The data that the run was trained on, or why it is not here."""
        found = self.given
        if found is None:
            size = self.run.option("image_size", int) or 32
            name: Any = self.run.option("dataset", str) or "cifar10"
            if name not in get_args(DatasetName):
                return f"this version does not know the data set {name!r}"
            try:
                # A folder is always named, as the data would be downloaded otherwise.
                found = datasets.load(name, self.folder or datasets.default_folder(), size)
            except BudgetnetError as error:
                return str(error)
        own = self.run.checksum
        if own is None and isinstance(self.classifier, Classifier):
            own = self.classifier.provenance.get("data_checksum")
        if own != found.checksum:
            return f"the data found here are others (checksum {found.checksum[:12]}, the run's {str(own)[:12]})"
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where nobody knows.

        Raises:
            DataError: the weights know other classes than the scores.
        """
        count = len(self.scores.confusion) if isinstance(self.scores, Scores) else None
        if isinstance(self.classifier, Classifier):
            known = self.classifier.classes
        elif isinstance(self.dataset, Dataset):
            known = self.dataset.classes
        else:
            return tuple(map(str, range(count or 0)))
        if count is not None and count != len(known):
            raise DataError(
                f"{self.run.folder}: {len(known)} classes are known and {count} scored: its files are of two runs"
            )
        return known

    @property
    def split(self) -> str:
        """Which images the pictures show."""
        return "test" if self.run.test is not None else "validation"

    @cached_property
    def images(self) -> tuple[Tensor, Tensor] | str:
        """The images that the pictures show, uint8 (n, c, h, w), and their labels, or why there are none."""
        dataset = self.dataset
        if isinstance(dataset, str):
            return dataset
        if self.run.test is not None:
            shown = dataset.test
        else:
            size, seed = self.run.option("val_size", int), self.run.option("split_seed", int)
            if not size:
                return "there is no test score, and no validation images were held out: all images were trained on"
            _, held = splits.split(dataset.train.targets, size, seed or 0)
            shown = datasets.Images(dataset.train.images[held], dataset.train.targets[held])
        return shown.images, shown.targets

    @cached_property
    def logits(self) -> tuple[Tensor, Tensor] | str:
        """What the network says of those images, and their labels, or why that is not known."""
        kept = self.run.predictions()
        if kept is not None:
            return kept
        if isinstance(self.classifier, str):
            return self.classifier
        if isinstance(self.images, str):
            return self.images
        tta: Any = self.run.views if self.run.test is not None else "none"
        return self.predict(self.images[0], tta), self.images[1]

    @cached_property
    def scores(self) -> Scores | str:
        """The scores of the record on the test images, else those on the validation images, or why there are none."""
        if self.run.test is not None:
            return self.run.test
        return self.logits if isinstance(self.logits, str) else evaluate.score(*self.logits)

    @cached_property
    def judged(self) -> Judged | str:
        """The images with what the network makes of them."""
        if isinstance(self.images, str):
            return self.images
        if isinstance(self.logits, str):
            return self.logits
        if not torch.equal(self.logits[1], self.images[1]):
            return "the predictions that were kept are of other images"
        probabilities = torch.softmax(self.logits[0].double(), 1)
        return Judged(images=self.images[0], labels=self.images[1], probabilities=probabilities, classes=self.classes)

    def predict(self, images: Tensor, tta: Any = "none") -> Tensor:
        """float32 logits (n, classes) of uint8 images (n, c, h, w) as the run computes them; needs the classifier."""
        assert isinstance(self.classifier, Classifier)
        network = self.classifier.network.to(self.device)
        if self.run.option("channels_last", bool):
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        precision = PRECISIONS.get(self.run.option("precision", str) or "fp32")
        mean, std = self.classifier.mean, self.classifier.std
        return predict_logits(network, images, mean, std, tta=tta, precision=precision)

    @property
    def said(self) -> str:
        """Which images a picture shows, as a sentence."""
        n = f"{self.scores.n:,} " if isinstance(self.scores, Scores) else ""
        if self.run.test is not None:
            return f"On the {n}test images, {VIEWS.get(self.run.views, self.run.views)}."
        return f"On the {n}validation images, by which the weights were chosen: rather too good."
