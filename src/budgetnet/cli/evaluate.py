"""`budgetnet evaluate`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from budgetnet.cli.common import command_parser, json_text, path, progress_on
from budgetnet.cli.model import (
    Prepared,
    add_data,
    add_engine,
    add_model,
    add_remedies,
    brief,
    check_remedies,
    classifier_of,
    computed_by,
    dataset_of,
    fits,
    int8_cost,
    int8_line,
    logits_of,
    prepare,
)
from budgetnet.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from budgetnet.classifier import Classifier
    from budgetnet.data import Dataset, Images
    from budgetnet.robustness import ShiftScores


SHIFT_SEED = 0  # of generated corruptions: one benchmark for all


def add(commands: Any) -> None:
    """Add what this file is for to the command line."""
    command = command_parser(commands, "evaluate", _evaluate, "score a model on labelled images")
    add_model(command)
    add_data(command)
    add_engine(command)
    command.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="which images (default test)"
    )
    command.add_argument("--limit", type=int, metavar="N", help="only N of its images, each class in its share")
    add_remedies(command)
    command.add_argument(
        "--shift",
        metavar="NAME",
        help="corrupt the images: a corruption's name, or all 19; or test on cifar10.1, cifar10.2 or cifar10.2-train",
    )
    command.add_argument("--severity", type=int, metavar="N", help="of the corruptions, 1 to 5 (default: each)")
    command.add_argument(
        "--output",
        type=path,
        metavar="FILE",
        help="draw a heat map of the corruptions (.svg, .png), or write their record (.json)",
    )


def _evaluate(options: Namespace) -> int:
    from budgetnet import checkpoint, cifar, evaluate, origin
    from budgetnet.files import atomic_write
    from budgetnet.remedies import gain, render_scored

    corruptions, severities = _corruptions(options)
    check_remedies(options)
    classifier = classifier_of(options)
    trained = origin.trained_on(options.checkpoint, classifier)
    outside = options.shift in cifar.TEST_SETS
    dataset = None
    if not outside or options.precision == "int8" or fits(options):
        dataset = dataset_of(options, classifier, trained)
    if outside:
        images = _test_set(options, classifier)
    else:
        assert dataset is not None
        images = _split_images(options, dataset, trained)
    images = _limited(images, options)
    ready = prepare(options, classifier, dataset, trained)
    result = {
        "checkpoint": str(options.checkpoint),
        "dataset": options.shift if dataset is None or outside else dataset.name,
        "split": options.split,
        "limit": options.limit,
        **computed_by(ready.network),
        "tta": options.tta,
    }
    labels = images.targets
    if corruptions:
        assert dataset is not None
        result["weights"] = checkpoint.digest({}, classifier.network.state_dict())
        lines = _evaluate_shift(options, dataset, images, corruptions, severities, ready, result)
    else:
        stages = ready.classify(images.images)
        found = [evaluate.score(logits, labels) for logits in stages]
        right = [logits.argmax(1) == labels for logits in stages]
        for i, remedy in enumerate(ready.remedies):
            remedy |= {"before": brief(found[i]), "after": brief(found[i + 1]), "gain": gain(right[i], right[i + 1])}
        result |= found[-1].to_dict()
        lines = [evaluate.render(found[-1], classifier.classes)]
    if ready.remedies:
        result["remedies"] = ready.remedies
        lines += ["", *(render_scored(remedy, options.split) for remedy in ready.remedies)]
    if options.precision == "int8":
        exactly, quantized = (
            logits_of(each, classifier, images.images, options) for each in (ready.exact, ready.network)
        )
        result["int8"] = int8_cost(exactly, quantized, labels, options.split)
        lines += ["", int8_line(result["int8"])]
    if corruptions and options.output and options.output.suffix.lower() == ".json":
        atomic_write(options.output, (json_text(result) + "\n").encode())
    print(json_text(result) if options.json else "\n".join(lines))
    return 0


def _corruptions(options: Namespace) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The corruptions and severities that are asked for, none without; what makes no sense is refused."""
    from budgetnet import checkpoint, cifar, files, pictures, shift

    if options.shift is None or options.shift in cifar.TEST_SETS:
        for name in ("severity", "output"):
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name} is for corruptions: give --shift all, or leave it out")
        if options.shift and options.split != "test":
            raise ConfigError(f"{options.shift} is a test set, never to choose by: leave out --split {options.split}")
        return (), ()
    if options.shift not in ("all", *shift.NAMES, *cifar.TEST_SETS) and options.shift.startswith("cifar"):
        raise ConfigError(f"{options.shift!r} is no test set, expected {', '.join(cifar.TEST_SETS)}")
    names = shift.NAMES if options.shift == "all" else (options.shift,)
    severities = shift.SEVERITIES if options.severity is None else (options.severity,)
    shift.check(names[0], severities[0])
    if options.output:
        files.require_apart([options.output], checkpoint.files_of(options.checkpoint))
    if options.output and options.output.suffix.lower() == ".json":
        if not options.output.parent.is_dir():
            raise ConfigError(f"cannot write {options.output}: there is no folder {options.output.parent}; create it")
    elif options.output:
        pictures.require_picture(options.output)
    return names, severities


def _test_set(options: Namespace, classifier: Classifier) -> Images:
    from budgetnet import cifar, data
    from budgetnet.images import SIDE

    if classifier.classes != cifar.CIFAR10_CLASSES or classifier.image_size != SIDE:
        raise DataError(
            f"{options.checkpoint} knows {len(classifier.classes)} classes ({', '.join(classifier.classes[:3])}, ...) "
            f"in images of {classifier.image_size} pixels, but {options.shift} has those of CIFAR-10 in {SIDE}"
        )
    return cifar.read_test_set(options.shift, options.data or data.default_folder())


def _split_images(options: Namespace, dataset: Dataset, trained: dict[str, Any]) -> Images:
    """The images of a split, whose ids are their places in the training set or the test set."""
    import torch

    from budgetnet import data, origin

    images = dataset.test if options.split == "test" else dataset.train
    if options.split == "test":
        if trained.get("train_on_test") and trained["data_checksum"] == dataset.checksum:
            raise ConfigError(
                f"{options.checkpoint} was trained on these test images too (train_on_test): it has no test score; use "
                "--split val"
            )
        return data.Images(images.images, images.labels, torch.arange(len(images)))
    if "val_size" not in trained:
        raise ConfigError(
            f"{options.checkpoint} does not say which images it was chosen by: only --split test is known"
        )
    if dataset.checksum != trained["data_checksum"]:
        raise DataError(
            f"{options.checkpoint} was trained on other data (checksum {trained['data_checksum'][:12]}, found "
            f"{dataset.checksum[:12]}): of these images none are known as its {options.split} split"
        )
    chosen = origin.known_split(dataset, trained)[options.split == "val"]
    if not len(chosen):
        raise ConfigError(f"{options.checkpoint} was trained with val_size 0: there is no validation split")
    return data.Images(images.images[chosen], images.targets[chosen], chosen)


def _limited(images: Images, options: Namespace) -> Images:
    """Some of the images, the same each time, each class in its share."""
    from budgetnet import data, splits

    if options.limit is None or options.limit == len(images):
        return images
    if not 1 <= options.limit <= len(images):
        raise ConfigError(f"--limit is {options.limit:,}, expected 1 to {len(images):,}, the images that there are")
    _, chosen = splits.split(images.targets, options.limit, 0)
    ids = None if images.ids is None else images.ids[chosen]
    return data.Images(images.images[chosen], images.targets[chosen], ids)


def _evaluate_shift(
    options: Namespace,
    dataset: Dataset,
    images: Images,
    names: tuple[str, ...],
    severities: tuple[int, ...],
    ready: Prepared,
    result: dict[str, Any],
) -> list[str]:
    """Score corrupted images; `result` and the remedies are completed, and what a person reads is returned."""
    from budgetnet import cifar, data, pictures, robustness, shift

    labels, ids = images.targets, images.ids
    assert ids is not None
    shift.require_size(*images.images.shape[2:])
    official = None
    if options.split == "test":
        official = cifar.locate_corrupted(dataset.name, options.data or data.default_folder(), dataset.test.targets)

    def corrupted(name: str, severity: int) -> torch.Tensor:
        if official is not None:
            return official.images(name, severity, ids)
        return shift.corrupt(images.images, name, severity, indices=ids, seed=SHIFT_SEED)

    progress = progress_on(options.json, sys.stderr)
    try:
        tables = robustness.measure(ready.classify, images.images, labels, corrupted, names, severities, progress.score)
    finally:
        progress.end()
    final = tables[-1]
    if official is not None:
        source = str(official.folder)
        line = f"corrupted as in {source}"
    else:
        source = "generated"
        line = f"corruptions generated with seed {SHIFT_SEED}"
        line += "\n(frost is a stand-in for the photographs that CIFAR-10-C shows)" if "frost" in names else ""
    result |= {"images": len(labels), "source": source, "seed": None if official else SHIFT_SEED, **final.to_dict()}
    for remedy, before, after in zip(ready.remedies, tables, tables[1:], strict=False):
        remedy |= {"before": _shift_brief(before), "after": _shift_brief(after), "gain": _shift_gain(before, after)}
    lines = [robustness.render(final), "", f"{len(labels):,} images of the {options.split} split; {line}"]
    if options.output:
        result["output"] = str(options.output)
        lines.append(f"written to {options.output}")
        if options.output.suffix.lower() != ".json":
            pictures.draw_shift(final, options.output, f"{options.checkpoint}: {options.split} images under corruption")
            lines[-1] = f"drawn to {options.output}"
    return lines


def _shift_brief(scores: ShiftScores) -> dict[str, Any]:
    """The mean over what sums up the corruptions; and clean."""
    mean = scores.mean(_summed_up(scores))
    assert mean is not None
    return {**brief(mean), "clean": brief(scores.clean)}


def _shift_gain(before: ShiftScores, after: ShiftScores) -> dict[str, Any]:
    from budgetnet.remedies import gain

    names = _summed_up(before)
    return {
        **gain(before.shares_right(names), after.shares_right(names)),
        "clean": gain(before.clean_right, after.clean_right),
    }


def _summed_up(scores: ShiftScores) -> Sequence[str]:
    """The 15 corruptions where all were measured, else those that were."""
    from budgetnet.shift import COMMON

    return COMMON if scores.mean(COMMON) else [*scores.cells]
