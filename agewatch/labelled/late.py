"""True ages that come late: a file of them -> labels of an archive's faces, kept beside its rows.

A label belongs to a content and a face of it, wherever the file lies. Nothing is forgotten: a later label stands in the
place of an earlier one, which stays in the file.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from agewatch.errors import LabelError, TableError, UsageError
from agewatch.files import lock, replacing
from agewatch.labelled.rows import refuse_export, rows_of
from agewatch.scoring import predictions
from agewatch.scoring.beside import folder_of
from agewatch.scoring.predictions import Key
from agewatch.sources.source import encode_path
from agewatch.words import counted

OLDEST = 120.0
"""Years; a label beyond is no age."""
_SCHEMA = pa.schema(
    [
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("face", pa.int32(), nullable=False),
        pa.field("age", pa.float64(), nullable=False),
        pa.field("added_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("origin", pa.string(), nullable=False),  # `given` or `asked`
        pa.field("chance", pa.float64()),
    ]
)
_COLUMNS = ("path", "age", "birth_date", "face", "asked")
_FILE_NAME, _LOCK_NAME = "labels.parquet", "labels.lock"
_YEAR_DAYS = 365.2425

Face = tuple[str, int]
"""A content's hash and the number of a face in it."""
Faces = Mapping[str, Mapping[int, tuple[str, datetime | None]]]
"""Of each path its faces: the content's hash, and when it was taken."""


@dataclass(frozen=True)
class Added:
    """What became of a file of labels: how many are new, how many were known, and how many refused for which reason.

    `told` says each reason in a sentence. `labels` faces of the archive have a label now.
    """

    archive: str
    added: int
    unchanged: int
    refused: dict[str, int]
    told: list[str]
    labels: int


@dataclass
class _Found:
    """Labels by face, each an age in years and the chance with which it was asked for, and the paths refused."""

    labels: dict[Face, tuple[float, float | None]] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


_REASONS = {
    "unknown": "name no picture with a face that has a row in this archive",
    "several_faces": "name a picture of several faces without saying which (column face)",
    "no_such_face": "name a face that their picture does not have",
    "no_age": f"hold no age from 0 to {OLDEST:g}",
    "no_capture_date": "hold a birth date, but it is not known when the picture was taken",
    "no_chance": "hold no chance above 0 and up to 1 in the column asked",
    "contradictory": "give one face different ages",
}


def add(table: Path, key: Key, file: Path) -> Added:
    """Join the labels of a CSV or Parquet file to the faces of an archive that have rows of `key`.

    Columns: path (as in the table or on the disk, below the archive's root) and age (years), or birth_date (ISO), which
    becomes the age at capture and is not kept. Optional: face, where a picture has several, and asked, the chance with
    which a face was drawn. Raises UsageError where there is no such file, LabelError where it is damaged or its
    columns are others, TableError where the table can't be read or nothing can be written beside it.
    """
    if file.suffix.lower() not in (".csv", ".parquet") or not file.is_file():
        raise UsageError(f"There is no CSV or Parquet file {file}.")
    rows = [row for _, row in rows_of(file, _COLUMNS, lambda names: _require(file, names))]
    if not rows:
        raise LabelError(f"{file} holds no labels.")
    found = _joined(rows, _faces(table, key, {str(row["path"] or "") for row in rows}))
    added, labels = _keep(table, key.archive, found)
    told = [
        f"{counted(len(paths), 'label')} {_REASONS[reason]}, such as {paths[0]!r}."
        for reason, paths in found.refused.items()
    ]
    counts = {reason: len(paths) for reason, paths in found.refused.items()}
    return Added(key.archive, added, len(found.labels) - added, counts, told, labels)


def read(table: Path, archive: str, until: date | None = None) -> pd.DataFrame:
    """The label of each face, as it was known on a day (UTC, included), by default now; in the order they were added.

    Columns: content_hash, face, age (years), added_at, origin, chance. Raises TableError where they are damaged.
    """
    every = _read(table, archive)
    if until is not None:
        every = every[every["added_at"].dt.date <= until]
    return every.drop_duplicates(["content_hash", "face"], keep="last")


def of_largest_faces(table: Path, archive: str) -> dict[str, float]:
    """Ages in years by the path of the files that are there and whose largest face has a label. Raises TableError."""
    labels = read(table, archive)
    labels = labels[labels["face"] == 0]
    where = (pc.field("archive") == archive) & (pc.field("face") == 0) & pc.field("gone_at").is_null()
    rows = predictions.read(table, where, ["path", "content_hash", "scored_at"]).to_pandas()
    last = rows.sort_values("scored_at").drop_duplicates("path", keep="last")  # of what an older model saw, if changed
    joined = last.merge(labels[["content_hash", "age"]], on="content_hash")
    return dict(zip(joined["path"], joined["age"].astype(float), strict=True))


def _require(file: Path, names: Iterable[str]) -> None:
    refuse_export(file, names)
    if "path" not in names or ("age" in names) == ("birth_date" in names):
        raise LabelError(f"{file} needs the columns path and age, or path and birth_date.")


def _faces(table: Path, key: Key, paths: set[str]) -> Faces:
    """The faces of these paths, written in either way, that have rows."""
    wanted = pa.array(paths | {encode_path(os.fsencode(path)) for path in paths})
    where = key.where & (pc.field("status") == "ok") & pc.field("path").isin(wanted)
    rows = predictions.read(table, where, ["path", "face", "content_hash", "captured_at"])
    faces: dict[str, dict[int, tuple[str, datetime | None]]] = defaultdict(dict)
    for path, face, digest, taken in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True):
        faces[path][face] = (digest, taken)
    return faces


def _joined(rows: list[Mapping[str, Any]], known: Faces) -> _Found:
    found, at_odds = _Found(), set[Face]()
    for row in rows:
        path = str(row["path"] or "")
        faces = known.get(path) or known.get(encode_path(os.fsencode(path)), {})
        number = _number(row.get("face"))
        if not faces:
            reason = "unknown"
        elif number is None and len(faces) > 1:
            reason = "several_faces"
        elif number is not None and number not in faces:
            reason = "no_such_face"
        else:
            face = next(iter(faces)) if number is None else int(number)
            digest, taken = faces[face]
            age, chance = _age(row, taken), _number(row.get("asked"))
            if age is None or not 0 <= age <= OLDEST:
                reason = "no_capture_date" if taken is None and "birth_date" in row else "no_age"
            elif chance is not None and not 0 < chance <= 1:
                reason = "no_chance"
            elif found.labels.setdefault((digest, face), (age, chance))[0] == age and (digest, face) not in at_odds:
                continue
            else:
                at_odds.add((digest, face))
                del found.labels[digest, face]
                reason = "contradictory"
        found.refused[reason].append(path)
    return found


def _age(row: Mapping[str, Any], taken: datetime | None) -> float | None:
    """The age in years that a row tells; None where it tells none."""
    if "birth_date" not in row:
        return _number(row["age"])
    try:
        born = date.fromisoformat(str(row["birth_date"])[:10])
    except ValueError:
        return None
    return None if taken is None else (taken.date() - born).days / _YEAR_DAYS


def _number(cell: object) -> float | None:
    """A cell as a number, infinite where it is none; None for an empty one or NaN."""
    if cell is None or cell == "" or cell != cell:
        return None
    try:
        return float(str(cell))
    except ValueError:
        return math.inf


def _keep(table: Path, archive: str, found: _Found) -> tuple[int, int]:
    """Append what is new to the archive's labels; return how many that is, and how many faces have a label then."""
    folder = folder_of(table, archive)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = lock(folder / _LOCK_NAME, exclusive=True)
        every = _read(table, archive)
        last = every.drop_duplicates(["content_hash", "face"], keep="last")
        known = dict(zip(zip(last["content_hash"], last["face"], strict=True), last["age"], strict=True))
        new = {whose: label for whose, label in found.labels.items() if known.get(whose) != label[0]}
        now = datetime.now(UTC)
        fresh = [
            (digest, face, age, now, "given" if chance is None else "asked", chance)
            for (digest, face), (age, chance) in new.items()
        ]
        if fresh:
            rows = pa.Table.from_pylist([dict(zip(_SCHEMA.names, label, strict=True)) for label in fresh], _SCHEMA)
            old = pa.Table.from_pandas(every, _SCHEMA, preserve_index=False)
            with replacing(folder / _FILE_NAME) as aside:
                aside.touch(0o600)
                pq.write_table(pa.concat_tables([old, rows]), aside)
        if held is not None:
            held.close()
    except OSError as error:
        raise TableError(f"Labels can't be written beside the table {table}: {error.strerror or error}.") from error
    return len(fresh), len({*known, *new})


def _read(table: Path, archive: str) -> pd.DataFrame:
    file = folder_of(table, archive) / _FILE_NAME
    try:
        with pq.ParquetFile(file) as held:
            rows = held.read(use_threads=False).cast(_SCHEMA)
    except FileNotFoundError:
        rows = _SCHEMA.empty_table()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise TableError(f"The labels of '{archive}', {file}, can't be read: {error}.") from error
    labels: pd.DataFrame = rows.to_pandas()
    return labels
