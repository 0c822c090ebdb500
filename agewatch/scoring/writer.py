"""Writing the predictions table: one archive's rows of one model and mode, by compare-and-swap."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from agewatch.errors import TableError, UsageError
from agewatch.files import lock
from agewatch.scoring import merging
from agewatch.scoring.content import Arrivals, Holders, hash_key
from agewatch.scoring.known import NUMBERS, STATE, Keys, Known, States, count_distinct, path_keys, places, summarise
from agewatch.scoring.predictions import (
    LOCK_FILE,
    MODE_NOTE,
    ROOT_PROPERTY,
    SCHEMA,
    Key,
    Rows,
    dataset,
    is_remote,
    lacking,
    note_of,
    place,
    plain,
    pour,
    read_table,
    require_columns,
    require_writable,
    shown,
    storage_options,
)
from agewatch.sources import door
from agewatch.sources.ahead import NONE
from agewatch.sources.source import FileRef

_PATHS_AT_ONCE = 5_000  # that one commit marks
_MAX_ATTEMPTS = 50
T = TypeVar("T")


@dataclass(frozen=True)
class Missed:
    """How many files were there by the archive's rows, and which paths in these are not found, lost, and back.

    `away` are all that are not found, of which those are `lost` that were not gone before.
    """

    held: int
    away: set[str]
    lost: set[str]
    back: set[str]


class Writer:
    """Writes one archive's rows of one model and mode; other runs may write to the same table meanwhile.

    Raises UsageError where the archive's name already belongs to another root, TableError where the table can't be
    written.
    """

    def __init__(self, folder: Path, key: Key, *, root: Path | str) -> None:
        self._folder = folder
        self._key = key
        self._started = datetime.now(UTC)  # what this run finds is there by now
        self._table = self._claim(door.at(root).root)
        self._lock = None if is_remote(folder) else lock(folder / LOCK_FILE, exclusive=False)
        self._start = dataset(self._table, folder)  # the table as it was, whatever is written meanwhile
        self.known = Known(pour(self._start, key.where, STATE))
        self._arrivals: Arrivals | None = None  # of no use to a run that writes nothing
        self._others_wrote = False
        self._holders: Holders | None = None

    def write(self, rows: Rows) -> int:
        """Commit the rows of some files at once, replacing those files' earlier rows; returns the rows written.

        Each row gets its `arrived_at` here: when the archive first held its content, in whatever model or mode.
        Compare-and-swap on the snapshot that was read: where another run committed first, files that it has already
        scored in the same state are dropped from ours.
        """
        left = rows

        def attempt() -> int:
            nonlocal left
            if self._others_wrote:
                self._table.update_incremental()  # a file that they have scored again since is no reason to drop ours
                left = self._without_scored_elsewhere(left)
            if not left:
                return 0
            arrivals = self._known_arrivals()
            found = [row | {"arrived_at": arrivals.of(row), "gone_at": None} for row in left]
            table = pa.Table.from_pylist(found, SCHEMA)
            self._commit(table)
            self._learn(*summarise(table.select(STATE).to_batches()))
            self._tidy()
            return len(found)

        return self._insist(attempt)

    def mark(self, paths: Iterable[str], gone_at: datetime | None) -> None:
        """Note when files were found gone, or with None that they are back, in their rows of every model and mode."""
        ordered = sorted(paths)
        if ordered:
            require_writable(self._folder)
        for start in range(0, len(ordered), _PATHS_AT_ONCE):
            some = ordered[start : start + _PATHS_AT_ONCE]
            self._insist(partial(self._mark, some, gone_at))

    def missed(self, found: Keys) -> Missed:
        """What the archive's rows, of whatever model and mode, said at the start of files beyond those found.

        `found` are their keys, sorted.
        """
        missed, held = Missed(0, set(), set(), set()), [np.empty(0, np.int64)]
        for batch in pour(self._start, _in_archive(self._key), ["path", "gone_at"]):
            keys, paths = path_keys(batch["path"]), batch["path"]
            is_found = places(found, keys)[1]
            is_gone = pc.is_valid(batch["gone_at"]).to_numpy(zero_copy_only=False)
            for some, which in (
                (missed.away, ~is_found), (missed.lost, ~is_found & ~is_gone), (missed.back, is_found & is_gone)
            ):  # fmt: skip
                some.update(paths.filter(pa.array(which)).to_pylist())
            held.append(keys[~is_gone])
        return replace(missed, held=count_distinct(np.concatenate(held)))

    def _mark(self, paths: Sequence[str], gone_at: datetime | None) -> None:
        # Read and written again, as delta-rs's own update writes a type of text that Arrow can't compare.
        where = _in_archive(self._key) & pc.field("path").isin(pa.array(paths, pa.string()))
        rows = read_table(self._table, self._folder, where)
        times = pa.array([gone_at] * len(rows), SCHEMA.field("gone_at").type)
        marked = rows.set_column(SCHEMA.get_field_index("gone_at"), SCHEMA.field("gone_at"), times)
        self._gain_columns()
        merging.require_room(self._folder, marked.nbytes + self._bytes_around(paths, archive=self._key.archive))
        known = f"archive = {_quote(self._key.archive)} AND path IN ({', '.join(map(_quote, paths))})"
        write_deltalake(self._table, marked, mode="overwrite", predicate=known, commit_properties=self._as_ours())

    def _insist(self, attempt: Callable[[], T]) -> T:
        """Try until no other run commits first. Raises TableError where the table can't be written, or stays busy."""
        for tries in range(_MAX_ATTEMPTS):
            try:
                return attempt()
            except CommitFailedError:
                time.sleep(random.uniform(0, min(1.0, 0.05 * 2**tries)))
                self._table.update_incremental()
                self._others_wrote = True  # from here on `known` may lack what they wrote
            except (DeltaError, OSError) as error:
                raise TableError(f"The table {shown(self._folder)} can't be written: {plain(error)}.") from error
        raise TableError(f"The table {shown(self._folder)} stayed busy: {_MAX_ATTEMPTS} commits were refused.")

    def holders(self, contents: Mapping[str, str]) -> dict[str, str]:
        """Map paths, each with the hash of its content, to those of stored files that seem to hold it: itself rather.

        What nobody holds is left out.
        """
        states, is_known = self.known.find(path_keys(contents))
        wanted = np.fromiter(map(hash_key, contents.values()), np.uint64, len(contents))
        own = is_known & states["is_read"] & (states["content"] == wanted)
        found = {path: path for path, is_own in zip(contents, own, strict=True) if is_own}
        if len(found) < len(contents) and self._holders is None:  # read once, when the first copied file turns up
            self._holders = Holders(pour(self._start, self._key.where, Holders.COLUMNS))
        for path, digest in contents.items():
            if path not in found and self._holders is not None and (holder := self._holders.of(digest)) is not None:
                found[path] = holder
        return found

    def _tidy(self) -> None:
        """Now and then: merge small files, and open the table afresh, whose log grows slow to hold.

        Another run that writes at this moment comes first; a disk that is nearly full puts it off.
        """
        if not (below := merging.due(self._table.version())):
            return
        with suppress(CommitFailedError, TableError):
            merging.merge(self._table, self._folder, below)
        version = self._table.version()
        self._table = DeltaTable(place(self._folder), storage_options=storage_options(self._folder))
        self._others_wrote |= self._table.version() != version

    def listed(self, paths: Iterable[str]) -> dict[str, FileRef]:
        """Those of some paths that were found in this run, as the table knows them now."""
        asked = list(paths)
        states, is_known = self.known.find(path_keys(asked))
        numbers = zip(*(states[name].tolist() for name in NUMBERS), strict=True)
        return {
            path: FileRef(path, *(None if number == NONE else number for number in row))
            for path, row, is_here in zip(asked, numbers, is_known & states["is_found"], strict=True)
            if is_here
        }

    def require_writable(self) -> None:
        """Raise TableError where this user may not write to the table."""
        require_writable(self._folder)

    def rows_of(self, paths: Iterable[str]) -> Rows:
        """Return the stored rows of some files of this archive, model and mode."""
        wanted = pa.array(paths, pa.string())  # typed, as there may be none
        rows: Rows = read_table(self._table, self._folder, self._key.where & pc.field("path").isin(wanted)).to_pylist()
        return rows

    def _commit(self, table: pa.Table) -> None:
        paths = sorted(set(table["path"].to_pylist()))
        self._gain_columns()
        replaces = self.known.has(path_keys(paths)).any()
        around = self._bytes_around(paths, **asdict(self._key)) if replaces else 0
        merging.require_room(self._folder, table.nbytes + around)
        if replaces:
            known = f"{_predicate(self._key)} AND path IN ({', '.join(map(_quote, paths))})"
            write_deltalake(
                self._table, table, mode="overwrite", predicate=known, commit_properties=self._as_ours(MODE_NOTE)
            )
        else:
            write_deltalake(self._table, table, mode="append", commit_properties=self._as_ours(MODE_NOTE))

    def _gain_columns(self) -> None:
        """Add the columns that a table of an older agewatch lacks."""
        if young := lacking(self._table):
            fields = [field for field in Schema.from_arrow(SCHEMA).fields if field.name in young]
            self._table.alter.add_columns(fields, commit_properties=self._as_ours())

    def _as_ours(self, *notes: str) -> CommitProperties:
        """A commit that fails where another came first, with notes of what rows it holds."""
        told = {note: note_of(self._key) for note in notes}
        return CommitProperties(max_commit_retries=0, custom_metadata=told)

    def _bytes_around(self, paths: Sequence[str], **names: str) -> int:
        """Size of the files that may, by their statistics, hold rows of sorted paths: a rewrite may copy them.

        `names` are values that the rows have in other columns.
        """
        actions = self._table.get_add_actions(flatten=True)
        may_hold = np.ones(len(actions["size_bytes"]), bool)
        bounds = {column: (name, name) for column, name in names.items()} | {"path": (paths[0], paths[-1])}
        for column, (low, high) in bounds.items():
            pairs = zip(actions[f"min.{column}"].to_pylist(), actions[f"max.{column}"].to_pylist(), strict=True)
            may_hold &= [None in (least, most) or (least <= high and low <= most) for least, most in pairs]
        return int(np.array(actions["size_bytes"].to_pylist())[may_hold].sum())

    def _without_scored_elsewhere(self, rows: Rows) -> Rows:
        paths = sorted({row["path"] for row in rows})
        keys, newer = summarise(self._rows(self._key.where & pc.field("path").isin(paths), STATE))
        known, is_known = self.known.find(keys)
        newer["is_found"] = known["is_found"]
        is_changed = ~is_known | (known != newer)
        changed = dict(zip(keys[is_changed].tolist(), newer[is_changed], strict=True))
        contents = [row["content_hash"] for row in rows if row.get("content_hash")]
        self._known_arrivals().learn(
            self._rows(_in_archive(self._key) & pc.field("content_hash").isin(contents), Arrivals.COLUMNS)
        )
        self._learn(keys, newer)
        return [row for row in rows if not _is_of(row, changed.get(hash(row["path"])))]

    def _learn(self, keys: Keys, states: States) -> None:
        """Note what the table holds now of files of ours, which were found."""
        states["is_found"] = True
        self.known.update(keys, states)

    def _rows(self, where: ds.Expression, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from dataset(self._table, self._folder).to_batches(columns=list(columns), filter=where)
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise TableError(f"The predictions table can't be read: {plain(error)}.") from error

    def _known_arrivals(self) -> Arrivals:
        if self._arrivals is None:
            held = dataset(self._table, self._folder)
            self._arrivals = Arrivals(pour(held, _in_archive(self._key), Arrivals.COLUMNS), now=self._started)
        return self._arrivals

    def _claim(self, root: str) -> DeltaTable:
        """Open or create the table and bind the archive's name to its root in the table's own properties."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                table = DeltaTable.create(
                    place(self._folder), schema=SCHEMA, mode="ignore", storage_options=storage_options(self._folder)
                )
                require_columns(table, self._folder)
                known = table.metadata().configuration.get(ROOT_PROPERTY + self._key.archive)
                if known == root:
                    return table
                if known is not None:
                    raise UsageError(
                        f"The archive name '{self._key.archive}' already stands for {known}: if that was moved, run"
                        f" `agewatch archives move {self._key.archive} {root}`, else choose another name with --archive"
                        " NAME."
                    )
                require_writable(self._folder)
                table.alter.set_table_properties(
                    {ROOT_PROPERTY + self._key.archive: root},
                    raise_if_not_exists=False,
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
            except CommitFailedError:
                time.sleep(random.uniform(0, 0.2))
            except (DeltaError, OSError) as error:
                raise TableError(f"The table {shown(self._folder)} can't be opened: {plain(error)}.") from error
        raise TableError(f"The table {shown(self._folder)} stayed busy.")


def _is_of(row: Mapping[str, Any], state: Any) -> bool:
    """Whether a state is that of the file that a row is of, and was read."""
    told = [NONE if row[name] is None else row[name] for name in ("bytes", "mtime_ns")]
    return state is not None and bool(state["is_read"]) and told == [state["bytes"], state["mtime_ns"]]


def _in_archive(key: Key) -> ds.Expression:
    return pc.field("archive") == key.archive


def _predicate(key: Key) -> str:
    """The key as delta-rs takes it."""
    return " AND ".join(f"{column} = {_quote(name)}" for column, name in asdict(key).items())


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
