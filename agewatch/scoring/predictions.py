"""The predictions table (Delta Lake): schema, compare-and-swap writing, reading.

One row a face; a file without a face, or that could not be read, has exactly one row with `face` null. The table
is current state; Delta's time travel is the history.
"""

import builtins
import os
import random
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as fs
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from agewatch.errors import TableError, UsageError

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
    ]
)
TIDY_COMMITS = 100
"""So many commits apart a table's small files are merged."""
_STATE = ["path", "status", "bytes", "mtime_ns", "content_hash"]
_ROOT_PROPERTY = "agewatch.root."
_MAX_ATTEMPTS = 50
_NO_PLACE = re.compile(r"[\x00-\x1f\x7f\[\]\\^|]|%[0-9A-Fa-f]{2}")  # delta-rs fails, or takes another folder
_SPARE_BYTES = 2**20  # what a commit writes beyond its rows: footers, log, checkpoint

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the table knows of one file."""

    status: str
    bytes: int | None
    mtime_ns: int | None
    content_hash: builtins.bytes | None
    faces: int


def read(
    folder: Path,
    *,
    archive: str | None = None,
    model: str | None = None,
    mode: str | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read the current rows, all or those of one archive, model id and mode. Raises TableError where there is none."""
    return _read(_open(folder), folder, _filter(archive=archive, model=model, mode=mode), columns)


def archives(folder: Path) -> dict[str, Path]:
    """Map each archive's name to its root. Raises TableError where there is no table."""
    properties = _open(folder).metadata().configuration
    return {
        name.removeprefix(_ROOT_PROPERTY): Path(str(root))
        for name, root in properties.items()
        if name.startswith(_ROOT_PROPERTY)
    }


def latest_mode(folder: Path, *, archive: str, model: str) -> str:
    """Return the mode in which an archive was scored last by a model. Raises TableError where it never was."""
    mode = mode_scored_last(folder, archive=archive, model=model)
    if mode is None:
        raise TableError(f"The archive '{archive}' has no rows of the model {model} yet: run `agewatch score` first.")
    return mode


def mode_scored_last(folder: Path, *, archive: str, model: str) -> str | None:
    """Return what `latest_mode` does, None where it never was. Raises TableError where the table can't be read."""
    rows = read(folder, archive=archive, model=model, columns=["mode", "scored_at"])
    if not len(rows):
        return None
    newest = pc.index(rows["scored_at"], pc.max(rows["scored_at"]))
    return str(rows["mode"][newest.as_py()].as_py())


def scan(folder: Path, where: ds.Expression) -> Iterator[pa.RecordBatch]:
    """Read the current rows that a condition keeps, batch by batch.

    Raises TableError, at the first or a later batch, where there is no table or it can't be read.
    """
    table = _open(folder)
    try:
        yield from _dataset(table, folder).to_batches(columns=SCHEMA.names, filter=where)
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise TableError(f"The predictions table can't be read: {_plain(error)}.") from error


class Writer:
    """Writes one archive's rows of one model and mode; other runs may write to the same table meanwhile.

    Raises UsageError where the archive's name already belongs to another root, TableError where the table can't be
    written.
    """

    def __init__(self, folder: Path, *, archive: str, root: Path, model: str, mode: str) -> None:
        self._folder = folder
        self._archive = archive
        self._names = {"archive": archive, "model": model, "mode": mode}
        self._key = _filter(**self._names)
        self._predicate = f"archive = {_quote(archive)} AND model = {_quote(model)} AND mode = {_quote(mode)}"
        self._table = self._claim(_as_text(root.resolve()))
        self.stored = self._state(self._key)
        self._others_wrote = False
        self._holders: dict[bytes | None, str] | None = None

    def write(self, rows: Rows) -> int:
        """Commit the rows of some files at once, replacing those files' earlier rows; returns the rows written.

        Compare-and-swap on the snapshot that was read: where another run committed first, files that it has already
        scored in the same state are dropped from ours.
        """
        for attempt in range(_MAX_ATTEMPTS):
            if self._others_wrote:
                rows = self._without_scored_elsewhere(rows)
            if not rows:
                return 0
            try:
                table = pa.Table.from_pylist(rows, SCHEMA)
                self._commit(table)
                self.stored.update(_summarise(table.to_batches()))
                self._tidy()
                return len(rows)
            except CommitFailedError:
                time.sleep(random.uniform(0, min(1.0, 0.05 * 2**attempt)))
                self._table.update_incremental()
                self._others_wrote = True  # from here on `stored` may lack what they wrote
            except (DeltaError, OSError) as error:
                raise TableError(f"The table {self._folder} can't be written: {_plain(error)}.") from error
        raise TableError(f"The table {self._folder} stayed busy: {_MAX_ATTEMPTS} commits were refused.")

    def require_writable(self) -> None:
        """Raise TableError where this user may not write to the table."""
        # Asked first, as delta-rs prints a panic before it raises.
        if not all(os.access(place, os.W_OK | os.X_OK) for place in (self._folder, self._folder / "_delta_log")):
            raise TableError(f"The table {self._folder} can't be written by this user, only read.")

    def holder(self, content_hash: str, *, rather: str) -> str | None:
        """Return the path of a stored file with this content, `rather` where it is one, None where there is none."""
        digest = bytes.fromhex(content_hash)
        stored = self.stored.get(rather)
        if stored is not None and stored.content_hash == digest:
            return rather
        if self._holders is None:  # built once, when the first copied or moved file turns up
            self._holders = {file.content_hash: path for path, file in self.stored.items()}
        return self._holders.get(digest)

    def _tidy(self) -> None:
        """Every so many commits: merge small files, and open the table afresh, whose log grows slow to hold.

        Another run that writes at this moment comes first; a disk that is nearly full puts it off.
        """
        version = self._table.version()
        if version % TIDY_COMMITS:
            return
        with suppress(CommitFailedError, TableError):
            self._require_room(sum(self._table.get_add_actions()["size_bytes"].to_pylist()))
            self._table.optimize.compact(commit_properties=CommitProperties(max_commit_retries=0))
        version = self._table.version()
        self._table = DeltaTable(_place(self._folder))
        self._others_wrote |= self._table.version() != version

    def rows_of(self, paths: Iterable[str]) -> Rows:
        """Return the stored rows of some files of this archive, model and mode."""
        wanted = pa.array(paths, pa.string())  # typed, as there may be none
        rows: Rows = _read(self._table, self._folder, self._key & pc.field("path").isin(wanted)).to_pylist()
        return rows

    def _commit(self, table: pa.Table) -> None:
        paths = sorted(set(table["path"].to_pylist()))
        once = CommitProperties(max_commit_retries=0)
        replaces = any(path in self.stored for path in paths)
        self._require_room(table.nbytes + (self._bytes_around(paths) if replaces else 0))
        if replaces:
            known = f"{self._predicate} AND path IN ({', '.join(map(_quote, paths))})"
            write_deltalake(self._table, table, mode="overwrite", predicate=known, commit_properties=once)
        else:
            write_deltalake(self._table, table, mode="append", commit_properties=once)

    def _bytes_around(self, paths: Sequence[str]) -> int:
        """Size of the files that may, by their statistics, hold rows of sorted paths: an overwrite may copy them."""
        actions = self._table.get_add_actions(flatten=True)
        may_hold = np.ones(len(actions["size_bytes"]), bool)
        bounds = {column: (name, name) for column, name in self._names.items()} | {"path": (paths[0], paths[-1])}
        for column, (low, high) in bounds.items():
            pairs = zip(actions[f"min.{column}"].to_pylist(), actions[f"max.{column}"].to_pylist(), strict=True)
            may_hold &= [None in (least, most) or (least <= high and low <= most) for least, most in pairs]
        return int(np.array(actions["size_bytes"].to_pylist())[may_hold].sum())

    def _require_room(self, needed: int) -> None:
        # Asked first, as delta-rs, which meets a full disk on its way, prints a panic before it raises.
        needed += _SPARE_BYTES
        if (room := shutil.disk_usage(self._folder).free) < needed:
            raise TableError(
                f"The disk that holds {self._folder} is full: {room / 1e6:.1f} MB are free and the next commit may need"
                f" {needed / 1e6:.1f} MB. Rows committed before are kept; make room and run again."
            )

    def _without_scored_elsewhere(self, rows: Rows) -> Rows:
        paths = list({row["path"] for row in rows})
        newer = self._state(self._key & pc.field("path").isin(paths))
        changed = {path for path, stored in newer.items() if self.stored.get(path) != stored}
        self.stored.update(newer)
        return [row for row in rows if not (row["path"] in changed and _same_file(row, newer[row["path"]]))]

    def _state(self, where: ds.Expression) -> dict[str, Stored]:
        try:
            return _summarise(_dataset(self._table, self._folder).to_batches(columns=_STATE, filter=where))
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise TableError(f"The predictions table can't be read: {_plain(error)}.") from error

    def _claim(self, root: str) -> DeltaTable:
        """Open or create the table and bind the archive's name to its root in the table's own properties."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                table = DeltaTable.create(_place(self._folder), schema=SCHEMA, mode="ignore")
                _require_columns(table, self._folder)
                known = table.metadata().configuration.get(_ROOT_PROPERTY + self._archive)
                if known == root:
                    return table
                if known is not None:
                    raise UsageError(
                        f"The archive name '{self._archive}' already stands for {known}; choose another for {root}"
                        " with --archive NAME."
                    )
                self.require_writable()
                table.alter.set_table_properties(
                    {_ROOT_PROPERTY + self._archive: root},
                    raise_if_not_exists=False,
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
            except CommitFailedError:
                time.sleep(random.uniform(0, 0.2))
            except (DeltaError, OSError) as error:
                raise TableError(f"The table {self._folder} can't be opened: {_plain(error)}.") from error
        raise TableError(f"The table {self._folder} stayed busy.")


def _plain(error: Exception) -> str:
    """An error's text in one line; delta-rs writes coloured trees and traces of its own calls."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error).split("\n   0: ")[0]).split())


def _as_text(path: Path) -> str:
    """An absolute path as UTF-8; one that is none as a file URI, which no path looks like."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        return path.as_uri()


def _place(folder: Path) -> str:
    """The table's absolute path as delta-rs and Arrow take it. Raises UsageError where delta-rs can't."""
    path = folder.resolve()
    try:
        place = os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"The predictions table can't lie at {str(path)!r}: its name is not UTF-8.") from error
    if found := _NO_PLACE.search(place):
        raise UsageError(f"The predictions table can't lie at {place!r}: its name holds {found[0]!r}.")
    return place


def _open(folder: Path) -> DeltaTable:
    try:
        table = DeltaTable(_place(folder))
    except TableNotFoundError as error:
        raise TableError(f"There is no predictions table at {folder}: run `agewatch score` first.") from error
    except (DeltaError, OSError) as error:
        raise TableError(f"The predictions table {folder} can't be opened: {_plain(error)}.") from error
    _require_columns(table, folder)
    return table


def _require_columns(table: DeltaTable, folder: Path) -> None:
    columns = {column.name for column in table.schema().fields}
    if missing := [name for name in SCHEMA.names if name not in columns]:
        raise TableError(f"The table {folder} holds other things than predictions: it lacks {', '.join(missing)}.")


def _dataset(table: DeltaTable, folder: Path) -> ds.Dataset:
    # Arrow's own file system: delta-rs's calls back into Python from reader threads, which aborts one exit in ten.
    files = fs.SubTreeFileSystem(_place(folder), fs.LocalFileSystem())
    return table.to_pyarrow_dataset(filesystem=files)


def _read(
    table: DeltaTable, folder: Path, where: ds.Expression | None, columns: Sequence[str] | None = None
) -> pa.Table:
    try:
        found = _dataset(table, folder).to_table(columns=list(columns or SCHEMA.names), filter=where)
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise TableError(f"The predictions table can't be read: {_plain(error)}.") from error
    return found


def _filter(**equal: str | None) -> ds.Expression | None:
    where = None
    for column, value in equal.items():
        if value is not None:
            term = pc.field(column) == value
            where = term if where is None else where & term
    return where


def _summarise(batches: Iterable[pa.RecordBatch]) -> dict[str, Stored]:
    state: dict[str, Stored] = {}
    for rows in batches:  # by batches, and in few objects, as an archive may have ten million files
        columns = (rows[name].to_pylist() for name in _STATE)
        for path, status, size, mtime_ns, digest in zip(*columns, strict=True):
            faces = (state[path].faces if path in state else 0) + (status == "ok")
            state[path] = Stored(intern(status), size, mtime_ns, digest and bytes.fromhex(digest), faces)
    return state


def _same_file(row: Mapping[str, Any], stored: Stored) -> bool:
    return (row["bytes"], row["mtime_ns"]) == (stored.bytes, stored.mtime_ns) and stored.content_hash is not None


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
