"""metrics.csv and system.csv, a row an epoch: a crash tears the last line at most, and a torn line is never read."""

from __future__ import annotations

import csv
import io
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from budgetnet.errors import DataError, TrainingError
from budgetnet.files import append, atomic_write, remove
from budgetnet.runfiles import METRICS, SYSTEM

"""What a run's folder says of each epoch: what was learnt, and what it took of the machine (`usage`)."""


class Metrics:
    """The file metrics.csv or system.csv of a run: a header from the first row's keys, then a row an epoch.

    A row is on the disk when `append` returns. A last line that a crash has torn is never read and is removed before
    the next row is written.

    Args:
        path: the file, new or of the run that is resumed; its folder exists.
        vary: whether rows may have other names than the first, as a run may be resumed on a machine that measures other
            things; what a row lacks is nan.
    """

    def __init__(self, path: Path, *, vary: bool = False) -> None:
        self._path = path
        self._vary = vary
        self._columns: list[str] | None = None

    def append(self, row: Mapping[str, float | int]) -> None:
        """Add a row.

        Args:
            row: the epoch under "epoch", and numbers under the names that the first row has, or with `vary` others.

        Raises:
            DataError: the file that is there is damaged, or cannot be written.
            TrainingError: the names differ from the file's, and may not.
        """
        columns = self._columns
        if columns is None:
            columns, rows, torn = _parse_metrics(self._path)
            if torn:
                self._rewrite(columns, rows)
        new = not columns
        columns = columns or list(row)
        if self._vary:
            if more := [name for name in row if name not in columns]:
                columns, rows, _ = _parse_metrics(self._path)
                columns += more
                self._rewrite(columns, [cells + ["nan"] * len(more) for cells in rows])
            row = {**dict.fromkeys(columns, math.nan), **row}
        if set(row) != set(columns):
            raise TrainingError(
                f"{self._path}: the columns are {', '.join(columns)} and the new row has {', '.join(row)}; "
                "train into a new folder"
            )
        line = [_number(row[name]) for name in columns]
        if new:
            atomic_write(self._path, _csv([columns, line]))  # so that the file's name is on the disk, too
        else:
            append(self._path, _csv([line]))
        self._columns = columns

    def truncate(self, epoch: int) -> None:
        """Drop what comes after an epoch, damaged or not, which a run that is resumed from there writes again.

        Args:
            epoch: the last epoch that stays; 0 removes the file.

        Raises:
            DataError: the file is damaged before that, or cannot be written.
        """
        if epoch == 0:
            remove(self._path)
            return
        columns, rows, torn = _parse_metrics(self._path, epoch)
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


def of_system(row: Mapping[str, float]) -> dict[str, float]:
    """What was measured in a row of system.csv by MLflow's names, `system/NAME`, which its page shows apart."""
    return {f"system/{name}": value for name, value in row.items() if name != "epoch" and not math.isnan(value)}


def read_epochs(run: Path) -> list[dict[str, float]]:
    """All that a run's folder says of its epochs: rows of metrics.csv, joined by those of system.csv (`of_system`).

    Raises:
        DataError: a file is damaged, or cannot be read.
    """
    used = {row.get("epoch"): of_system(row) for row in read_metrics(run / SYSTEM)}
    return [row | used.get(row.get("epoch"), {}) for row in read_metrics(run / METRICS)]


def _number(value: float | int) -> str:
    return str(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))


def _csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _parse_metrics(path: Path, last: int | None = None) -> tuple[list[str], list[list[str]], bool]:
    """Columns, rows (texts of numbers) and whether more follows them; no columns where there is no file.

    More is a torn line or, where the `last` epoch of interest is given, whatever comes after its row.
    """
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
        try:
            cells = next(csv.reader([line]), [])
            if number == 1:
                columns = cells
                continue
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} cells under {len(columns)} columns")
            [float(cell) for cell in cells]
            if "epoch" in columns and not re.fullmatch("[0-9]{1,9}", cells[columns.index("epoch")]):
                raise ValueError("an epoch that is no number of one")
        except (ValueError, csv.Error) as error:
            raise DataError(f"{path}: line {number} is damaged ({error}); remove that line") from error
        rows.append(cells)
        if last is not None and "epoch" in columns and float(cells[columns.index("epoch")]) >= last:
            return columns, rows, True
    return columns, rows, len(whole) < len(content)
