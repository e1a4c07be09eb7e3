"""Parquet files of images, as Hugging Face's datasets writes them: a column of encoded images, and one of labels.

pyarrow reads them. It is C++ that meets a stranger's bytes, so that `shards` has it run in processes of their own,
whose memory is bounded and whose death is an error message.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgetnet.decoding import MOST_BYTES, MOST_CLASSES, Pixels, read_image
from budgetnet.errors import DataError, first_line, reason

IMAGE, LABEL = ("image", "img"), ("label", "fine_label")
"""Names of the columns, the first that is there; the second of each are those of CIFAR on Hugging Face."""
_BATCH = 64  # rows: a column of a few bytes can be repeated without end, so that many rows may be many gigabytes


@dataclass(frozen=True)
class Table:
    """What a shard holds, without its pixels."""

    labels: list[int] | list[str]
    """Of each image."""
    groups: list[int]
    """Rows of each row group."""
    classes: list[str] | None
    """Names of the classes, where the file says them."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    try:
        # Limits of what the file's own descriptions may claim.
        file = pyarrow.parquet.ParquetFile(
            path,
            pre_buffer=False,
            thrift_string_size_limit=1 << 24,
            thrift_container_size_limit=1 << 20,
            page_checksum_verification=True,
        )
        with file:
            yield file
    except DataError:
        raise
    except OSError as error:
        why = reason(error).splitlines()[0]
        raise DataError(f"{path}: found no sound Parquet file ({why}): it is damaged or something else") from error
    except Exception as error:  # such as it raises of damaged bytes, and of claims that no memory is enough for
        raise DataError(
            f"{path}: found no sound Parquet file ({first_line(error)}): it is damaged or something else"
        ) from error


def scan(path: Path) -> Table:
    """Read the labels of a shard, and see that it has images.

    Raises:
        DataError: the file is damaged, or its columns are not such.
    """
    with _opened(path) as file:
        schema = file.schema_arrow
        _image_column(path, schema)
        name = _column(path, schema, LABEL, "labels")
        kind = str(schema.field(name).type)
        if kind not in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "string", "large_string"):
            raise DataError(f"{path}: found column {name} of {kind}, expected integers or names of classes")
        labels: list[Any] = []
        for batch in file.iter_batches(1 << 14, columns=[name], use_threads=False):
            labels += batch.column(0).to_pylist()
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        if len(labels) != sum(groups) or min(groups, default=0) < 0:
            raise DataError(f"{path}: found {len(labels):,} labels of {sum(groups):,} rows: the file is damaged")
        for row, label in enumerate(labels):
            if label is None or (isinstance(label, str) and not (label.isprintable() and 0 < len(label) <= 200)):
                what = "none" if label is None else repr(label)
                raise DataError(f"{path}: row {row:,}: found {what}, expected a label")
        return Table(labels, groups, _classes(schema.metadata, name))


def _column(path: Path, schema: Any, names: Sequence[str], what: str) -> str:
    found = [name for name in names if name in schema.names]
    if not found or schema.names.count(found[0]) > 1:
        columns = ", ".join(schema.names[:8])
        raise DataError(f"{path}: found columns {columns}, expected one of {what}: {' or '.join(names)}")
    return found[0]


def _image_column(path: Path, schema: Any) -> str:
    """The column that holds the bytes of the images, as Parquet names it."""
    name = _column(path, schema, IMAGE, "images")
    kind = schema.field(name).type
    binary = ("binary", "large_binary")
    if str(kind) in binary:
        return name
    if str(kind).startswith("struct<") and [str(f.type) for f in kind if f.name == "bytes"][:1] in [
        [b] for b in binary
    ]:
        return f"{name}.bytes"
    raise DataError(f"{path}: found column {name} of {str(kind)[:80]}, expected bytes, or a struct that has bytes")


def _classes(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The names that Hugging Face's ClassLabel has, if the file has been given any."""
    try:
        said = json.loads((metadata or {})[b"huggingface"])
        feature = said["info"]["features"][label]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (LookupError, ValueError, TypeError, RecursionError):
        return None
    if not isinstance(names, list) or not 0 < len(names) <= MOST_CLASSES:
        return None
    return names if all(isinstance(name, str) for name in names) else None


def images(path: Path, groups: tuple[int, int], image_size: int) -> Iterator[Pixels]:
    """Decode the images of some row groups: each uint8 (3, image_size, image_size).

    Args:
        path: the file.
        groups: the first row group, and the first that is no more wanted.
        image_size: side in pixels that the images are resized to.

    Raises:
        DataError: the file or an image is damaged.
    """
    with _opened(path) as file:
        column = _image_column(path, file.schema_arrow)
        row = sum(file.metadata.row_group(i).num_rows for i in range(groups[0]))
        for batch in file.iter_batches(_BATCH, row_groups=range(*groups), columns=[column], use_threads=False):
            values = batch.column(0).field("bytes") if column.endswith(".bytes") else batch.column(0)
            for value in values:
                if not value.is_valid or not 0 < value.as_buffer().size <= MOST_BYTES:
                    raise DataError(f"{path}: row {row:,}: found no bytes of an image, expected an encoded image")
                try:
                    yield read_image(io.BytesIO(value.as_buffer()), image_size)
                except DataError as error:
                    raise DataError(f"{path}: row {row:,}: {str(error).removeprefix('the file: ')}") from error
                row += 1
