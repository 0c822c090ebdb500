"""The ledger: one row for each night that was due, and what became of it, whatever Prefect's database says.

It is an SQLite file, `$AGEWATCH_HOME/nights/ledger.sqlite`; `night.py` says who writes into it.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

from agewatch.errors import TableError

Outcome = Literal[
    "done", "refused", "gone", "failed", "crashed", "stopped", "cancelled", "missed", "skipped", "covered"
]
"""`refused`: over its budget; `gone`: the archive is missing; `crashed`: ended without a word; `stopped`: told to end
by the system, `cancelled` by a person; `missed`: never begun; `skipped`: the one before still ran; `covered`: a night
that began after this one was due has done its work."""
TROUBLE: frozenset[Outcome] = frozenset({"refused", "gone", "failed", "crashed", "missed"})
"""Outcomes that somebody must be told of."""
UNFINISHED: frozenset[Outcome | None] = frozenset({None, "crashed", "stopped", "missed"})
"""Outcomes after which a later run of the same night takes over."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS nights (
  archive TEXT NOT NULL, flow TEXT NOT NULL, due TEXT NOT NULL, started TEXT, heartbeat TEXT, ended TEXT, outcome TEXT,
  reason TEXT, figures TEXT NOT NULL DEFAULT '{}', run TEXT, attempts INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (archive, flow, due)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS news (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, archive TEXT NOT NULL, flow TEXT NOT NULL, due TEXT NOT NULL,
  what TEXT NOT NULL, reason TEXT);
CREATE TABLE IF NOT EXISTS watched (
  archive TEXT NOT NULL, flow TEXT NOT NULL, schedule TEXT NOT NULL, since TEXT NOT NULL, PRIMARY KEY (archive, flow));
CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_SELECT = "SELECT archive, flow, due, started, heartbeat, ended, outcome, reason, figures, run, attempts FROM nights"
_RESERVE_BYTES = 128 * 1024  # given up on a full disk, so that a night can still say why it failed


@dataclass(frozen=True)
class Night:
    """A row of the ledger. Times are UTC; `due` is when the night was to begin; `run` is the id of its Prefect run.

    `outcome` None is a night under way. `figures` are what the night found, as JSON holds it; `attempts` the runs that
    have begun it.
    """

    archive: str
    flow: str
    due: datetime
    started: datetime | None = None
    heartbeat: datetime | None = None
    ended: datetime | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    run: str | None = None
    attempts: int = 0


@dataclass(frozen=True)
class News:
    """Something that somebody must be told: an outcome of TROUBLE, `drift`, or `long` of one without an end.

    `id` grows.
    """

    id: int
    at: datetime
    archive: str
    flow: str
    due: datetime
    what: str
    reason: str | None


class Ledger:
    """The ledger of a home. Raises TableError where it can't be opened, read or written."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "nights"
        self.file = self.folder / "ledger.sqlite"
        self._reserve = self.folder / "reserve"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise TableError(f"The ledger's folder {self.folder} can't be made: {error.strerror}.") from error
        with self._opened() as db:
            db.executescript(_SCHEMA)
        with suppress(OSError):
            self.file.chmod(0o600)
        self._set_aside()

    def nights(self, archive: str | None = None, flow: str | None = None, newest: int | None = None) -> list[Night]:
        """Rows in the order of their due times; of one archive or flow, and at most the `newest` of them."""
        where, values = ["1"], []
        for column, value in (("archive", archive), ("flow", flow)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        with self._opened() as db:
            rows = db.execute(
                f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY due DESC LIMIT ?",
                (*values, -1 if newest is None else newest),
            ).fetchall()
            return [_night(row) for row in reversed(rows)]

    def night(self, archive: str, flow: str, due: datetime) -> Night | None:
        """One row."""
        with self._opened() as db:
            row = db.execute(
                f"{_SELECT} WHERE archive = ? AND flow = ? AND due = ?", (archive, flow, _text(due))
            ).fetchone()
            return row and _night(row)

    def archives(self, flow: str) -> set[str]:
        """The archives that have rows of a flow."""
        with self._opened() as db:
            return {name for (name,) in db.execute("SELECT DISTINCT archive FROM nights WHERE flow = ?", (flow,))}

    def of_run(self, run: str) -> Night | None:
        """The row of a Prefect run."""
        with self._opened() as db:
            row = db.execute(f"{_SELECT} WHERE run = ?", (run,)).fetchone()
            return row and _night(row)

    def under_way(self) -> list[Night]:
        """The rows without an end."""
        with self._opened() as db:
            return [_night(row) for row in db.execute(f"{_SELECT} WHERE outcome IS NULL ORDER BY due").fetchall()]

    def coverer(self, archive: str, flow: str, due: datetime) -> str | None:
        """When another night began, not before this one was due, that has done its work."""
        with self._opened() as db:
            row = db.execute(
                "SELECT started FROM nights WHERE archive = ? AND flow = ? AND due != ? AND started >= ?"
                " AND outcome = 'done' ORDER BY started LIMIT 1",
                (archive, flow, _text(due), _text(due)),
            ).fetchone()
        return row and str(row[0])

    def miss(self, archive: str, flow: str, nights: Sequence[datetime], reason: str) -> None:
        """Write of nights, by when they were due, that they were never begun, unless they have rows."""

        def write(db: sqlite3.Connection) -> None:
            for due in nights:
                made = db.execute(
                    "INSERT OR IGNORE INTO nights (archive, flow, due, outcome, reason) VALUES (?, ?, ?, 'missed', ?)",
                    (archive, flow, _text(due), reason),
                )
                if made.rowcount:
                    _tell(db, archive, flow, due, "missed", reason)

        if nights:
            self._write(write)

    def cancel(self, run: str) -> None:
        """Write that the night of a Prefect run was cancelled by a person, where it was only told to stop."""
        with self._opened() as db:
            db.execute(
                "UPDATE nights SET outcome = 'cancelled', reason = 'It was cancelled; what was finished is kept.'"
                " WHERE run = ? AND outcome = 'stopped'",
                (run,),
            )

    def watch(self, archive: str, flow: str, schedule: str, now: datetime) -> datetime:
        """Since when nights of this schedule are expected: the first time that it was asked for."""
        with self._opened() as db:
            row = db.execute(
                "SELECT schedule, since FROM watched WHERE archive = ? AND flow = ?", (archive, flow)
            ).fetchone()
            if row and row[0] == schedule:
                return _time(row[1])
            db.execute("INSERT OR REPLACE INTO watched VALUES (?, ?, ?, ?)", (archive, flow, schedule, _text(now)))
        return _time(_text(now))

    def news(self, after: int = 0) -> list[News]:
        """What somebody must be told, the oldest first, behind one that is known."""
        with self._opened() as db:
            rows = db.execute(
                "SELECT id, at, archive, flow, due, what, reason FROM news WHERE id > ? ORDER BY id", (after,)
            ).fetchall()
        return [News(id, _time(at), archive, flow, _time(due), *rest) for id, at, archive, flow, due, *rest in rows]

    def kept(self, name: str) -> str | None:
        """A value that was kept under a name."""
        with self._opened() as db:
            row = db.execute("SELECT value FROM kept WHERE name = ?", (name,)).fetchone()
        return row and str(row[0])

    def keep(self, name: str, value: str) -> None:
        """Keep a value under a name, such as how far alerts were sent."""
        with self._opened() as db:
            db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, value))

    def begin(self, archive: str, flow: str, due: datetime, run: str | None) -> None:
        """Write that a night begins; a row that it has already is taken over."""
        now = _text(datetime.now(UTC))
        self._write(
            lambda db: db.execute(
                "INSERT INTO nights (archive, flow, due, started, heartbeat, run, attempts)"
                " VALUES (?, ?, ?, ?, ?, ?, 1)"
                " ON CONFLICT DO UPDATE SET started = excluded.started, heartbeat = excluded.heartbeat,"
                " run = excluded.run, ended = NULL, outcome = NULL, reason = NULL, figures = '{}',"
                " attempts = attempts + 1",
                (archive, flow, _text(due), now, now, run),
            )
        )

    def beat(self, archive: str, flow: str, due: datetime) -> None:
        """Write that a night is alive."""
        with self._opened() as db:
            db.execute(
                "UPDATE nights SET heartbeat = ? WHERE archive = ? AND flow = ? AND due = ?",
                (_text(datetime.now(UTC)), archive, flow, _text(due)),
            )

    def end(
        self, archive: str, flow: str, due: datetime, outcome: Outcome, reason: str | None, figures: dict[str, Any]
    ) -> None:
        """Write how a night ended, and what somebody must be told of it."""
        now = _text(datetime.now(UTC))
        said = (now, now, outcome, reason, json.dumps(figures, allow_nan=False), archive, flow, _text(due))

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE nights SET ended = ?, heartbeat = ?, outcome = ?, reason = ?, figures = ?"
                " WHERE archive = ? AND flow = ? AND due = ?",
                said,
            )
            if outcome in TROUBLE:
                _tell(db, archive, flow, due, outcome, reason)
            if figures.get("verdict") is not None:
                _tell_drift(db, archive, flow, due, figures)

        self._write(write)

    def never_begun(
        self, archive: str, flow: str, due: datetime, run: str | None, outcome: Outcome, reason: str
    ) -> None:
        """Write the outcome of a night that never began; a row that a run has begun stays."""
        self._write(
            lambda db: db.execute(
                "INSERT INTO nights (archive, flow, due, ended, outcome, reason, run) VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET outcome = excluded.outcome, reason = excluded.reason, run = excluded.run,"
                " ended = excluded.ended WHERE started IS NULL",
                (archive, flow, _text(due), _text(datetime.now(UTC)), outcome, reason, run),
            )
        )

    def end_dead(self, night: Night) -> None:
        """End what a dead run left, as `crashed`; the caller knows that it is dead. A row that has moved on stays."""
        heard = _text(night.heartbeat or night.due)
        reason = f"It ended without a word; it was last heard of {heard}. What was finished is kept."

        def write(db: sqlite3.Connection) -> None:
            ended = db.execute(
                "UPDATE nights SET outcome = 'crashed', reason = ?, ended = heartbeat"
                " WHERE archive = ? AND flow = ? AND due = ? AND attempts = ? AND outcome IS NULL",
                (reason, night.archive, night.flow, _text(night.due), night.attempts),
            )
            if ended.rowcount:
                _tell(db, night.archive, night.flow, night.due, "crashed", reason)

        self._write(write)

    def forget(self, before: datetime) -> int:
        """Delete the nights that were due before a time, and their news; how many nights. One under way stays."""
        when = _text(before)
        with self._opened() as db:
            gone = db.execute("DELETE FROM nights WHERE due < ? AND outcome IS NOT NULL", (when,)).rowcount
            db.execute("DELETE FROM news WHERE at < ?", (when,))
            # Else they would be missed from then on.
            db.execute("UPDATE watched SET since = ? WHERE since < ?", (when, when))
        return gone

    def tell_long(self, night: Night) -> None:
        """Note, once, that somebody must be told of a night that goes on and on."""
        began = _text(night.started or night.due)
        with self._opened() as db:
            _tell(db, night.archive, night.flow, night.due, "long", f"It is under way since {began}. Does it hang?")

    def retrainings_failed(self, asked_at: datetime) -> int:
        """How many runs of the flow `retrain` failed in a row until now; one that was asked for and never began is one.

        None has failed while one is under way. What a person cancelled is no failure.
        """
        begun = [(night.started, night.outcome) for night in self.nights("", "retrain", newest=50) if night.started]
        failed = list(takewhile(lambda one: one[1] in {"failed", "crashed", "stopped"}, reversed(begun)))
        is_lost = not begun or (begun[-1][1] is not None and begun[-1][0] < asked_at.replace(microsecond=0))
        return max(len(failed), int(is_lost))

    def _write(self, write: Callable[[sqlite3.Connection], object]) -> None:
        """Write in one transaction, also on a full disk: what was set aside makes room for these words."""
        try:
            with self._opened() as db:
                write(db)
        except TableError:
            with suppress(OSError):
                self._reserve.unlink()
            with self._opened() as db:
                write(db)
            self._set_aside()

    def _set_aside(self) -> None:
        """Take what is given up on a full disk, or as much of it as there is."""
        with suppress(OSError):
            if not self._reserve.exists() or self._reserve.stat().st_size < _RESERVE_BYTES:
                self._reserve.write_bytes(bytes(_RESERVE_BYTES))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection in one transaction, that waits for others. No WAL: it has no place on network folders."""
        try:
            db = sqlite3.connect(self.file, timeout=60, isolation_level="IMMEDIATE")
            try:
                with db:
                    yield db
            finally:
                db.close()
        except (sqlite3.OperationalError, OSError) as error:  # locked, full, not allowed
            raise TableError(f"The ledger {self.file} can't be used: {error}.") from error
        except (sqlite3.Error, ValueError) as error:
            raise TableError(
                f"The ledger {self.file} is damaged ({error}): restore a backup, or move it away and a new one is"
                " begun. The pictures' rows lie elsewhere."
            ) from error


def _tell(db: sqlite3.Connection, archive: str, flow: str, due: datetime, what: str, reason: str | None) -> None:
    """Note that a night needs a look, once a night: of one that fails again when it is made up, the row says more."""
    db.execute(
        "INSERT INTO news (at, archive, flow, due, what, reason) SELECT ?, ?, ?, ?, ?, ? WHERE NOT EXISTS"
        " (SELECT 1 FROM news WHERE archive = ? AND flow = ? AND due = ? AND what != 'drift')",
        (_text(datetime.now(UTC)), archive, flow, _text(due), what, reason, archive, flow, _text(due)),
    )


def _tell_drift(db: sqlite3.Connection, archive: str, flow: str, due: datetime, figures: dict[str, Any]) -> None:
    """Note drift where it begins, and each cause once until it ends: where two are near, the word may waver nightly."""
    name, is_drift, cause = f"drift.{flow}.{archive}", figures["verdict"] == "drift", figures.get("cause")
    known = db.execute("SELECT value FROM kept WHERE name = ?", (name,)).fetchone()
    told = json.loads(known[0]) if known and is_drift else []
    if is_drift and cause not in told:
        told.append(cause)
        db.execute(
            "INSERT INTO news (at, archive, flow, due, what, reason) VALUES (?, ?, ?, ?, 'drift', ?)",
            (_text(datetime.now(UTC)), archive, flow, _text(due), figures.get("headline")),
        )
    db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, json.dumps(told)))


def _night(row: Sequence[Any]) -> Night:
    archive, flow, *times, outcome, reason, figures, run, attempts = row
    due, started, heartbeat, ended = (time and _time(time) for time in times)
    if outcome is not None and outcome not in get_args(Outcome):
        raise ValueError(f"a night's outcome is {outcome!r}")
    return Night(archive, flow, due, started, heartbeat, ended, outcome, reason, json.loads(figures), run, attempts)


def _text(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
