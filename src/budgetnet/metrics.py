"""metrics.csv, a row an epoch: a crash tears its last line at most, and a torn line is never read."""

from __future__ import annotations

import csv
import io
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from budgetnet.errors import DataError, TrainingError
from budgetnet.files import atomic_write


class Metrics:
    """The file metrics.csv of a run: a header from the first row's keys, then a row an epoch.

    A row is on the disk when `append` returns. A last line that a crash has torn is never read and is removed before
    the next row is written.

    Args:
        path: the file, new or of the run that is resumed; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] | None = None

    def append(self, row: Mapping[str, float | int]) -> None:
        """Add a row.

        Args:
            row: the epoch under "epoch", and numbers under the names that the first row has.

        Raises:
            DataError: the file that is there is damaged.
            TrainingError: the names differ from the file's, or the file cannot be written.
        """
        columns = self._columns
        if columns is None:
            columns, rows, torn = _parse_metrics(self._path)
            if torn:
                self._rewrite(columns, rows)
        new = not columns
        columns = columns or list(row)
        if set(row) != set(columns):
            raise TrainingError(
                f"{self._path}: the columns are {', '.join(columns)} and the new row has {', '.join(row)}; "
                "train into a new folder"
            )
        lines = [columns] if new else []
        lines.append([_number(row[name]) for name in columns])
        try:
            with self._path.open("ab") as file:
                file.write(_csv(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TrainingError(
                f"cannot write {self._path}: {error.strerror or error}; free some space or choose another folder"
            ) from error
        self._columns = columns

    def truncate(self, epoch: int) -> None:
        """Drop the rows after an epoch, which a run that is resumed from an earlier checkpoint writes again.

        Args:
            epoch: the last epoch that stays.

        Raises:
            DataError: the file is damaged, or cannot be written.
        """
        columns, rows, torn = _parse_metrics(self._path)
        if columns and "epoch" not in columns:
            raise DataError(f"{self._path}: expected a column epoch, found {', '.join(columns)}; remove the file")
        kept = [row for row in rows if float(row[columns.index("epoch")]) <= epoch]
        if torn or len(kept) < len(rows):
            self._rewrite(columns, kept)

    def _rewrite(self, columns: list[str], rows: list[list[str]]) -> None:
        atomic_write(self._path, _csv([columns, *rows]) if columns else b"")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read metrics.csv.

    Args:
        path: the file; where it is missing, no epoch has ended.

    Returns:
        A dictionary an epoch, in the order of the file, without a torn last line.

    Raises:
        DataError: the file is damaged elsewhere than at its end, or cannot be read.
    """
    columns, rows, _ = _parse_metrics(path)
    return [dict(zip(columns, map(float, row), strict=True)) for row in rows]


def _number(value: float | int) -> str:
    return str(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))


def _csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _parse_metrics(path: Path) -> tuple[list[str], list[list[str]], bool]:
    """Columns, rows (texts of numbers) and whether a torn line follows them; no columns where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], [], False
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    whole = content[: content.rfind(b"\n") + 1]
    columns: list[str] = []
    rows: list[list[str]] = []
    for number, line in enumerate(whole.decode(errors="replace").splitlines(), start=1):
        cells = next(csv.reader([line]), [])
        if number == 1:
            columns = cells
            continue
        try:
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} cells under {len(columns)} columns")
            [float(cell) for cell in cells]
        except ValueError as error:
            raise DataError(f"{path}: line {number} is damaged ({error}); remove that line") from error
        rows.append(cells)
    return columns, rows, len(whole) < len(content)
