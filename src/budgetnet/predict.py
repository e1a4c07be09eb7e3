"""Submissions: CSV files of predicted labels, checked before they are written and scored where the labels are known."""

from __future__ import annotations

import csv
import io
import operator
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from budgetnet.errors import DataError
from budgetnet.files import atomic_write

HEADER = ("ID", "Labels")

# Of at most 18 digits, which fit in 64 bits; int() alone would also take spaces, underscores and other scripts' digits.
_INTEGER = re.compile(r"-?[0-9]{1,18}")

_Value = TypeVar("_Value")


def write_submission(path: Path, ids: Sequence[int], labels: Sequence[int], num_classes: int) -> None:
    """Write a submission: the header `ID,Labels` and one row an image, in the order given; whole or not at all.

    Args:
        path: the file, replaced if it is there; its folder exists.
        ids: integers, one an image, each once.
        labels: integers in [0, num_classes), one an image.
        num_classes: classes there are.

    Raises:
        DataError: the rows are not such, or the file cannot be written; nothing is written then.
    """
    numbers = _checked_ids(path, ids, len(labels), "labels")
    rows = [HEADER]
    for number, label in zip(numbers, labels, strict=True):
        value = _integer(path, "label", label)
        if not 0 <= value < num_classes:
            raise DataError(
                f"{path} is not written: the label of ID {number} is {value}, expected 0 to {num_classes - 1}"
            )
        rows.append((str(number), str(value)))
    _write_csv(path, rows)


def write_probabilities(
    path: Path,
    ids: Sequence[int],
    probabilities: Tensor,
    classes: Sequence[str],
    *,
    files: Sequence[str] | None = None,
) -> None:
    """Write the probability of each class: the columns `ID`, `File` if there are files, and one a class by its name.

    Nine significant digits are written, which read back as the same float32.

    Args:
        path: the file, replaced if it is there; its folder exists.
        ids: integers, one an image, each once.
        probabilities: float (n, classes); each row sums to 1.
        classes: the names, one a class, each once.
        files: the name of each image's file, for images that were read from a folder.

    Raises:
        DataError: the rows are not such, or the file cannot be written; nothing is written then.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != len(classes):
        raise DataError(
            f"{path} is not written: the probabilities are {tuple(probabilities.shape)}, expected (n, {len(classes)})"
        )
    numbers = _checked_ids(path, ids, len(probabilities), "rows of probabilities")
    if files is not None and len(files) != len(numbers):
        raise DataError(f"{path} is not written: there are {len(files)} file names for {len(numbers)} images")
    header = [HEADER[0], *([] if files is None else ["File"]), *classes]
    repeated = _first_repeated(header)
    if repeated is not None:
        raise DataError(f"{path} is not written: two columns would be called {repeated!r}; rename that class")

    values = probabilities.detach().cpu().double()
    # NaN is in no range, and so is refused here too.
    wrong = ~(((values >= 0) & (values <= 1 + 1e-4)).all(dim=1) & ((values.sum(dim=1) - 1).abs() <= 1e-4))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"{path} is not written: the row of ID {numbers[row]} sums to {float(values[row].sum()):.6g}, expected "
            "probabilities that sum to 1"
        )
    rows: list[Sequence[str]] = [header]
    for i, (number, row_values) in enumerate(zip(numbers, values.tolist(), strict=True)):
        rows.append([str(number), *([] if files is None else [files[i]]), *(f"{value:.9g}" for value in row_values)])
    _write_csv(path, rows)


def read_submission(path: Path, num_classes: int | None = None) -> tuple[list[int], list[int]]:
    """Read a submission, strictly: the header `ID,Labels`, then two integers a row, each ID once.

    Args:
        path: the file, also as spreadsheets and R write it: lines may end in a newline or a carriage return and a
            newline, cells may be quoted or have a space before them, and a byte order mark may come first.
        num_classes: labels are to be below it; None only asks that they are not negative.

    Returns:
        The IDs and the labels, in the order of the file.

    Raises:
        DataError: the file cannot be read or is not a submission; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; expected a submission") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text, expected a CSV file with the header {','.join(HEADER)}") from error
    if _cells(lines[0]) != [*HEADER]:
        raise DataError(f"{path}, line 1: the header is {_short(lines[0])}, expected {','.join(HEADER)!r}")

    labels_of: dict[int, int] = {}
    for line_number, line in enumerate(lines[1:], start=2):
        cells = _cells(line)
        if len(cells) != 2 or not all(_INTEGER.fullmatch(cell) for cell in cells):
            raise DataError(
                f"{path}, line {line_number}: found {_short(line)}, expected two integers, an ID and a label"
            )
        number, label = int(cells[0]), int(cells[1])
        if number in labels_of:
            raise DataError(f"{path}, line {line_number}: ID {number} is there a second time, expected each once")
        if label < 0 or (num_classes is not None and label >= num_classes):
            expected = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
            raise DataError(f"{path}, line {line_number}: the label is {label}, expected {expected}")
        labels_of[number] = label
    if not labels_of:
        raise DataError(f"{path} has a header and no rows, expected one row an image")
    return list(labels_of), list(labels_of.values())


def _cells(line: str) -> list[str]:
    """Those of one line; none of what is no line of a CSV file."""
    try:
        return next(csv.reader([line], skipinitialspace=True, strict=True))
    except csv.Error:  # a quote that is not closed, say
        return []


def true_labels(ids: Sequence[int], labels: Path, num_classes: int) -> Tensor:
    """The true labels of predictions, from a file in the form of a submission; they are matched by ID.

    Args:
        ids: an ID for each prediction.
        labels: the true labels, of the same IDs in any order.
        num_classes: classes there are.

    Returns:
        int64 (n,), in the order of `ids`.

    Raises:
        DataError: `labels` is no such file, or has other IDs.
    """
    true_of = dict(zip(*read_submission(labels, num_classes), strict=True))
    predicted = set(ids)
    missing = [number for number in true_of if number not in predicted]
    if missing:
        raise DataError(
            f"the prediction lacks {len(missing)} of the {len(true_of)} IDs of {labels} (the first is {missing[0]}), "
            "expected the same IDs in both"
        )
    extra = [number for number in ids if number not in true_of]
    if extra:
        raise DataError(
            f"the prediction has {len(extra)} IDs that are not in {labels} (the first is {extra[0]}), "
            "expected the same IDs in both"
        )
    return torch.tensor([true_of[number] for number in ids])


def _checked_ids(path: Path, ids: Sequence[int], n: int, what: str) -> list[int]:
    if len(ids) != n:
        raise DataError(f"{path} is not written: there are {len(ids)} IDs and {n} {what}, expected one row an image")
    if n == 0:
        raise DataError(f"{path} is not written: there are no images, expected at least one")
    numbers = [_integer(path, "ID", number) for number in ids]
    repeated = _first_repeated(numbers)
    if repeated is not None:
        raise DataError(f"{path} is not written: ID {repeated} is there more than once, expected each ID once")
    return numbers


def _integer(path: Path, what: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(f"{path} is not written: the {what} {value!r} is no integer, expected one") from error


def _first_repeated(values: Iterable[_Value]) -> _Value | None:
    seen: set[_Value] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    # A file name need not be text; its bytes are written as they are.
    atomic_write(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _short(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + "...")
