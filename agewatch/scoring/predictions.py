"""The predictions table (Delta Lake): its schema, and reading it.

One row a face; a file without a face, or that could not be read, has exactly one row with `face` null. The table
is current state; Delta's time travel is the history. `writer` writes it.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from agewatch.errors import TableError, UsageError
from agewatch.estimator.spec import Mode
from agewatch.sources.storage import aws_options, url_of

_TIME = pa.timestamp("us", "UTC")
SCHEMA = pa.schema(
    [
        pa.field("archive", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("face", pa.int32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("content_hash", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("box_x", pa.float32()),
        pa.field("box_y", pa.float32()),
        pa.field("box_w", pa.float32()),
        pa.field("box_h", pa.float32()),
        pa.field("face_score", pa.float32()),
        pa.field("age", pa.float32()),
        pa.field("age_low", pa.float32()),
        pa.field("age_high", pa.float32()),
        pa.field("brightness", pa.float32()),
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("captured_at", _TIME),
        pa.field("model", pa.string(), nullable=False),
        pa.field("mode", pa.string(), nullable=False),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("scored_at", _TIME, nullable=False),
        pa.field("arrived_at", _TIME),
        pa.field("gone_at", _TIME),
        pa.field("ctime_ns", pa.int64()),
        pa.field("camera", pa.string()),
        pa.field("rendition", pa.string()),
        pa.field("turn", pa.int32()),
    ]
)
ADDED = 6
"""So many columns, the last ones, are younger than the others: a table that lacks them is read with nulls."""
LOCK_FILE = ".agewatch-lock"
"""In the table's folder: shared by runs that write, held alone by what makes the table anew."""
MODE_NOTE = "agewatch.rows"
"""Under this name a commit notes whose rows it holds."""
ROOT_PROPERTY = "agewatch.root."
"""What the table's properties call an archive's root, before its name."""
BASELINE_PROPERTY = "agewatch.baseline."
"""What the table's properties call what was accepted of an archive, before its name."""
_NO_PLACE = re.compile(r"[\x00-\x1f\x7f\[\]\\^|]|%[0-9A-Fa-f]{2}")  # delta-rs fails, or takes another folder
_POURED_ROWS = 32_768

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Key:
    """What rows belong together: those of one archive, model id and mode. Each path stands once among them."""

    archive: str
    model: str
    mode: Mode

    @property
    def where(self) -> ds.Expression:
        """The condition that keeps these rows."""
        return (
            (pc.field("archive") == self.archive) & (pc.field("model") == self.model) & (pc.field("mode") == self.mode)
        )


def read(folder: Path, where: ds.Expression | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the current rows, all or those that a condition keeps. Raises TableError where there is no table."""
    return read_table(open_table(folder), folder, where, columns)


def archives(folder: Path) -> dict[str, str]:
    """Map each archive's name to its root, as `sources.door` takes it. Raises TableError where there is no table."""
    properties = open_table(folder).metadata().configuration
    return {
        name.removeprefix(ROOT_PROPERTY): str(root)
        for name, root in properties.items()
        if name.startswith(ROOT_PROPERTY)
    }


def known_name(folder: Path, name: str) -> str:
    """An archive's name as the table spells it: accented letters may be written in two ways (Unicode's NFC and NFD).

    A name that the table does not hold comes back in NFC.
    """
    composed = unicodedata.normalize("NFC", name)
    try:
        names = archives(folder)
    except TableError:
        return composed
    return next((known for known in names if unicodedata.normalize("NFC", known) == composed), composed)


def latest_mode(folder: Path, *, archive: str, model: str) -> Mode | None:
    """Return the mode in which rows of an archive and model were committed last, None where there are none.

    By the order of commits, as a clock may have been wrong; in a table, or a part of its history, that does not tell,
    by `scored_at`. Raises TableError where the table can't be read.
    """
    where = (pc.field("archive") == archive) & (pc.field("model") == model)
    rows = read(folder, where, ["mode", "scored_at"])
    modes = pc.unique(rows["mode"]).to_pylist()
    if len(modes) < 2:
        return cast(Mode, modes[0]) if modes else None
    notes = {note_of(Key(archive, model, mode)): mode for mode in modes}
    for commit in open_table(folder).history():  # the newest first
        if (mode := notes.get(commit.get(MODE_NOTE, ""))) is not None:
            return cast(Mode, mode)
    newest = pc.index(rows["scored_at"], pc.max(rows["scored_at"]))
    return cast(Mode, rows["mode"][newest.as_py()].as_py())


def note_of(key: Key) -> str:
    """A key as a commit of its rows notes it."""
    return json.dumps(asdict(key), sort_keys=True)


def scan(folder: Path, where: ds.Expression, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read the current rows that a condition keeps, batch by batch.

    Raises TableError, at the first or a later batch, where there is no table or it can't be read.
    """
    table = open_table(folder)
    try:
        yield from dataset(table, folder).to_batches(columns=list(columns or SCHEMA.names), filter=where)
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise TableError(f"The predictions table can't be read: {plain(error)}.") from error


def pour(held: ds.Dataset, where: ds.Expression, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read all rows that a condition on these columns, archive, model or mode keeps, a few at a time.

    Arrow's own scan has hundreds of megabytes of a large file at hand. Raises TableError.
    """
    names = list(dict.fromkeys([*columns, "archive", "model", "mode"]))
    try:
        for fragment in held.get_fragments(filter=where):
            with fragment.filesystem.open_input_file(fragment.path) as file:
                parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
                there = [name for name in names if name in parquet.schema_arrow.names]
                for batch in parquet.iter_batches(_POURED_ROWS, columns=there, use_threads=False):
                    rows = pa.table([
                        batch[name] if name in there else pa.nulls(len(batch), SCHEMA.field(name).type)
                        for name in names
                    ], names)  # fmt: skip
                    yield from rows.filter(where).select(list(columns)).to_batches()
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise TableError(f"The predictions table can't be read: {plain(error)}.") from error


def arrived(first: date, until: date) -> ds.Expression:
    """The condition that keeps rows of files that arrived from one day to another (UTC, both included)."""
    low, high = (datetime.combine(day, time(), UTC) for day in (first, until))
    when = pc.coalesce(pc.field("arrived_at"), pc.field("scored_at"))
    return (when >= pa.scalar(low, _TIME)) & (when < pa.scalar(high + timedelta(days=1), _TIME))


def some(rows: int, most: int) -> ds.Expression:
    """The condition that keeps about `most` of so many rows, always the same; hashes are evenly spread."""
    if rows <= most:
        return ds.scalar(True)
    return pc.field("content_hash") < f"{int(2**32 * most / rows):08x}"


def plain(error: Exception) -> str:
    """An error's text in one line; delta-rs writes coloured trees and traces of its own calls."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error).split("\n   0: ")[0]).split())


def is_remote(folder: Path) -> bool:
    """Tell whether a table lies in object storage: `s3://BUCKET/PREFIX`."""
    return url_of(folder) is not None


def shown(folder: Path) -> str:
    """A table as sentences name it."""
    return url_of(folder) or str(folder)


def place(folder: Path) -> str:
    """A table's absolute path or URL as delta-rs and Arrow take it. Raises UsageError where delta-rs can't."""
    if (url := url_of(folder)) is not None:
        if not url.startswith("s3://"):
            raise UsageError(f"A table lies in a folder or at s3://BUCKET/PREFIX, not at {url}.")
        return url
    path = folder.resolve()
    try:
        place = os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"The predictions table can't lie at {str(path)!r}: its name is not UTF-8.") from error
    if found := _NO_PLACE.search(place):
        raise UsageError(f"The predictions table can't lie at {place!r}: its name holds {found[0]!r}.")
    return place


def storage_options(folder: Path) -> dict[str, str] | None:
    """What delta-rs needs to reach a table. Commits are conditional puts, so that of two at once one is refused."""
    return aws_options() if is_remote(folder) else None


def open_table(folder: Path) -> DeltaTable:
    """Open a predictions table. Raises TableError where there is none, or where it is one of other things."""
    try:
        table = DeltaTable(place(folder), storage_options=storage_options(folder))
    except TableNotFoundError as error:
        raise TableError(f"There is no predictions table at {shown(folder)}: run `agewatch score` first.") from error
    except (DeltaError, OSError) as error:
        raise TableError(f"The predictions table {shown(folder)} can't be opened: {plain(error)}.") from error
    require_columns(table, folder)
    return table


def require_columns(table: DeltaTable, folder: Path) -> None:
    """Raise TableError where a table lacks what even the oldest predictions table has."""
    if missing := [name for name in lacking(table) if name not in SCHEMA.names[-ADDED:]]:
        raise TableError(
            f"The table {shown(folder)} holds other things than predictions: it lacks {', '.join(missing)}."
        )


def may_write(folder: Path) -> bool:
    """Tell whether this user may write to a table; in object storage that is seen when it is done."""
    # Asked first, as delta-rs prints a panic before it raises.
    places = () if is_remote(folder) else (folder, folder / "_delta_log")
    return all(os.access(place, os.W_OK | os.X_OK) for place in places)


def require_writable(folder: Path) -> None:
    """Raise TableError where this user may not write to a table."""
    if not may_write(folder):
        raise TableError(f"The table {folder} can't be written by this user, only read.")


def lacking(table: DeltaTable) -> list[str]:
    """The columns that a table does not have."""
    columns = {column.name for column in table.schema().fields}
    return [name for name in SCHEMA.names if name not in columns]


def dataset(table: DeltaTable, folder: Path) -> ds.Dataset:
    """The rows of a table for Arrow, with nulls in columns that it lacks."""
    return table.to_pyarrow_dataset(filesystem=file_system(folder)).replace_schema(SCHEMA)


def file_system(folder: Path) -> fs.FileSystem:
    """A table's files for Arrow."""
    # Arrow's own: delta-rs's calls back into Python from reader threads, which aborts one exit in ten.
    if not is_remote(folder):
        return fs.SubTreeFileSystem(place(folder), fs.LocalFileSystem())
    told = aws_options()
    storage = fs.S3FileSystem(
        access_key=told.get("aws_access_key_id"), secret_key=told.get("aws_secret_access_key"),
        session_token=told.get("aws_session_token"), region=told.get("aws_region"),
        endpoint_override=told.get("aws_endpoint"),
    )  # fmt: skip
    return fs.SubTreeFileSystem(place(folder).removeprefix("s3://"), storage)


def read_table(
    table: DeltaTable, folder: Path, where: ds.Expression | None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the rows of an open table that a condition keeps. Raises TableError where it can't be read."""
    try:
        found = dataset(table, folder).to_table(columns=list(columns or SCHEMA.names), filter=where)
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise TableError(f"The predictions table can't be read: {plain(error)}.") from error
    return found
