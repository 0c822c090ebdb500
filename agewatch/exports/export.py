"""Rows of the predictions table -> a CSV, Parquet or JSON file, or MegaDetector's."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from agewatch.errors import TableError, UsageError
from agewatch.exports import megadetector
from agewatch.files import replacing
from agewatch.scoring.archives import meant
from agewatch.scoring.predictions import SCHEMA, Key, archives, latest_mode, scan

_FLOATS = frozenset(field.name for field in SCHEMA if pa.types.is_float32(field.type))

ExportFormat = Literal["csv", "parquet", "json", "megadetector"]


def export(
    folder: Path, out: Path, *, format: ExportFormat, model: str | None, archive: str | None = None,
    statuses: Sequence[str] = (), with_gone: bool = False,
) -> int:  # fmt: skip
    """Write rows to a file, whole or not at all, and return how many.

    With a model id: its rows, of each archive the mode scored last, so that each path stands once. With None: the
    rows of all models and modes. `statuses` keeps only those; rows of files that are gone are left out unless
    `with_gone`. CSV follows RFC 4180 with the column names as header,
    null as empty field and times in ISO 8601; JSON is one array of objects; `megadetector` is of one model and archive.
    Raises UsageError (no such archive, or several where one is wanted) or TableError (nothing stored, the table can't
    be read, or the file can't be written).
    """
    if format == "megadetector":
        archive = meant(folder, archive)
    where = chosen(folder, archive, model, statuses, with_gone)
    out = out.resolve()  # a link stays, its target is written
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise UsageError(f"{out} is a device, pipe or socket, which an export would replace: name a file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as aside:
            return _EXPORTERS[format](aside, scan(folder, where))
    except OSError as error:
        raise TableError(f"{out} can't be written: {error.strerror or error}.") from error


def chosen(
    folder: Path, archive: str | None, model: str | None, statuses: Sequence[str], with_gone: bool
) -> ds.Expression:
    """The condition that keeps what an export holds; see `export`."""
    where = _latest(folder, sorted(archives(folder)) if archive is None else [meant(folder, archive)], model)
    if statuses:
        where = where & pc.field("status").isin(list(statuses))
    if not with_gone:
        where = where & pc.field("gone_at").is_null()
    return where


def _latest(folder: Path, names: Sequence[str], model: str | None) -> ds.Expression:
    if model is None:
        return pc.field("archive").isin(list(names))
    where, scored = pc.scalar(False), False
    for name in names:
        mode = latest_mode(folder, archive=name, model=model)
        if mode is not None:
            where = where | Key(name, model, mode).where
            scored = True
    if not scored:
        raise TableError(f"The table has no rows of the model {model} there: run `agewatch score` first.")
    return where


def _export_csv(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    rows = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        # A header in quotes tells readers that guess from the first rows (DuckDB) that quotes are to come.
        csv.writer(file, quoting=csv.QUOTE_ALL).writerow(SCHEMA.names)
        writer = csv.writer(file)
        for batch in batches:
            writer.writerows(zip(*(_as_text(column).to_pylist() for column in batch.columns), strict=True))
            rows += len(batch)
    return rows


def _export_json(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    rows = 0
    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            for row in batch.to_pylist():
                file.write(",\n" if rows else "[\n")
                _write_json(row, file)
                rows += 1
        file.write("\n]\n" if rows else "[]\n")
    return rows


def _write_json(row: Mapping[str, Any], file: TextIO) -> None:
    # Through numpy's text, as float32 0.1 would otherwise print as 0.10000000149011612.
    plain = {
        name: float(str(np.float32(value))) if name in _FLOATS and value is not None else value
        for name, value in row.items()
    }
    json.dump(plain, file, ensure_ascii=False, default=lambda time: time.isoformat().replace("+00:00", "Z"))


def _export_parquet(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    rows = 0
    with path.open("wb") as file, pq.ParquetWriter(file, SCHEMA) as writer:  # Arrow takes no name that is not UTF-8
        for batch in batches:
            writer.write_batch(batch.cast(SCHEMA))
            rows += len(batch)
    return rows


_EXPORTERS: dict[str, Callable[[Path, Iterable[pa.RecordBatch]], int]] = {
    "csv": _export_csv,
    "parquet": _export_parquet,
    "json": _export_json,
    "megadetector": megadetector.write,
}


def _as_text(column: pa.Array) -> pa.Array:
    """Numbers in their shortest round-trip form, times as ISO 8601 with Z."""
    if pa.types.is_timestamp(column.type):
        return pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
    return pc.cast(column, pa.string())
