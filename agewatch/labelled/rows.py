"""Rows of a CSV or Parquet file of labels."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from agewatch.errors import LabelError

Require = Callable[[Iterable[str]], None]
"""Raises LabelError where columns of these names can't be labels."""


def rows_of(table: Path, columns: Sequence[str], require: Require) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield each row of a table that ends in .csv (text cells) or .parquet, and where it stands, of these columns.

    `require` is asked about the names of all columns first. Raises LabelError where the file is damaged.
    """
    return _csv_rows(table, require) if table.suffix.lower() == ".csv" else _parquet_rows(table, columns, require)


def _csv_rows(table: Path, require: Require) -> Iterator[tuple[str, Mapping[str, object]]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            require(reader.fieldnames or ())
            for row in reader:
                if any(row.pop(None, None) or ()):
                    raise LabelError(f"{table}, line {reader.line_num}: there are more fields than columns.")
                yield f"line {reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{table} can't be read as a CSV file in UTF-8: {error}.") from error


def _parquet_rows(table: Path, columns: Sequence[str], require: Require) -> Iterator[tuple[str, Mapping[str, object]]]:
    try:
        with pq.ParquetFile(table) as file:
            require(file.schema_arrow.names)
            wanted = [name for name in columns if name in file.schema_arrow.names]
            rows = [row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist()]
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise LabelError(f"{table} can't be read as a Parquet file: {error}.") from error
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def refuse_export(table: Path, names: Iterable[str]) -> None:
    """Raise LabelError where a table's columns are those of an export: its ages are estimates."""
    if {"age_low", "run_id"} <= set(names):
        raise LabelError(f"{table} is an export of estimates, and no labels to learn from.")
