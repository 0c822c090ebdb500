"""The ledger: one row for each night that was due, and what became of it, whatever Prefect's database says.

It is an SQLite file, `$AGEWATCH_HOME/nights/ledger.sqlite`; `night.py` says who writes into it.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
    """Something that somebody must be told: an outcome of TROUBLE, or `drift`. `id` grows."""

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
            if not self._reserve.exists():
                self._reserve.write_bytes(bytes(_RESERVE_BYTES))

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

    def of_run(self, run: str) -> Night | None:
        """The row of a Prefect run."""
        with self._opened() as db:
            row = db.execute(f"{_SELECT} WHERE run = ?", (run,)).fetchone()
        return row and _night(row)

    def under_way(self) -> list[tuple[str, str]]:
        """Archives and flows that have rows without an end."""
        with self._opened() as db:
            return db.execute("SELECT DISTINCT archive, flow FROM nights WHERE outcome IS NULL").fetchall()

    def coverer(self, archive: str, flow: str, due: datetime) -> str | None:
        """When another night began, not before this one was due, that has done its work."""
        with self._opened() as db:
            row = db.execute(
                "SELECT started FROM nights WHERE archive = ? AND flow = ? AND due != ? AND started >= ?"
                " AND outcome = 'done' ORDER BY started LIMIT 1",
                (archive, flow, _text(due), _text(due)),
            ).fetchone()
        return row and str(row[0])

    def miss(self, archive: str, flow: str, due: datetime, reason: str) -> None:
        """Write that a night was never begun, unless it has a row."""
        with self._opened() as db:
            made = db.execute(
                "INSERT OR IGNORE INTO nights (archive, flow, due, outcome, reason) VALUES (?, ?, ?, 'missed', ?)",
                (archive, flow, _text(due), reason),
            )
            if made.rowcount:
                _tell(db, archive, flow, due, "missed", reason)

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
        with self._opened() as db:
            db.execute(
                "INSERT INTO nights (archive, flow, due, started, heartbeat, run, attempts)"
                " VALUES (?, ?, ?, ?, ?, ?, 1)"
                " ON CONFLICT DO UPDATE SET started = excluded.started, heartbeat = excluded.heartbeat,"
                " run = excluded.run, ended = NULL, outcome = NULL, reason = NULL, figures = '{}',"
                " attempts = attempts + 1",
                (archive, flow, _text(due), now, now, run),
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
        """Write how a night ended, also on a full disk, and what somebody must be told of it."""
        now = _text(datetime.now(UTC))
        said = (now, now, outcome, reason, json.dumps(figures, allow_nan=False), archive, flow, _text(due))
        try:
            self._write_end(said, archive, flow, due, figures)
        except TableError:  # a full disk: what was set aside makes room for the last words
            with suppress(OSError):
                self._reserve.unlink()
            self._write_end(said, archive, flow, due, figures)

    def _write_end(
        self, said: tuple[Any, ...], archive: str, flow: str, due: datetime, figures: dict[str, Any]
    ) -> None:
        outcome, reason = said[2:4]
        with self._opened() as db:
            before = db.execute(
                "SELECT figures FROM nights WHERE archive = ? AND flow = ? AND due < ? AND ended IS NOT NULL"
                " AND figures != '{}' ORDER BY due DESC LIMIT 1",
                (archive, flow, _text(due)),
            ).fetchone()
            db.execute(
                "UPDATE nights SET ended = ?, heartbeat = ?, outcome = ?, reason = ?, figures = ?"
                " WHERE archive = ? AND flow = ? AND due = ?",
                said,
            )
            if outcome in TROUBLE:
                _tell(db, archive, flow, due, outcome, reason)
            known = json.loads(before[0]) if before else {}
            if figures.get("verdict") == "drift" and _drift(known) != _drift(figures):
                _tell(db, archive, flow, due, "drift", figures.get("headline"))

    def never_begun(
        self, archive: str, flow: str, due: datetime, run: str | None, outcome: Outcome, reason: str
    ) -> None:
        """Write the outcome of a night that never began; a row that a run has begun stays."""
        with self._opened() as db:
            db.execute(
                "INSERT INTO nights (archive, flow, due, ended, outcome, reason, run) VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET outcome = excluded.outcome, reason = excluded.reason, run = excluded.run,"
                " ended = excluded.ended WHERE started IS NULL",
                (archive, flow, _text(due), _text(datetime.now(UTC)), outcome, reason, run),
            )

    def end_dead(self, archive: str, flow: str) -> None:
        """End what a dead run left, as `crashed`; the caller knows that none is alive."""
        with self._opened() as db:
            dead = db.execute(
                "SELECT due, heartbeat FROM nights WHERE archive = ? AND flow = ? AND outcome IS NULL", (archive, flow)
            ).fetchall()
            for due, heard in dead:
                reason = f"It ended without a word; it was last heard of {heard}. What was finished is kept."
                db.execute(
                    "UPDATE nights SET outcome = 'crashed', reason = ?, ended = heartbeat"
                    " WHERE archive = ? AND flow = ? AND due = ?",
                    (reason, archive, flow, due),
                )
                _tell(db, archive, flow, _time(due), "crashed", reason)

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
        except sqlite3.Error as error:
            raise TableError(f"The ledger {self.file} can't be used: {error}.") from error


def _drift(figures: dict[str, Any]) -> tuple[Any, ...]:
    """What makes one drift another."""
    return (figures.get("verdict") == "drift", figures.get("cause"))


def _tell(db: sqlite3.Connection, archive: str, flow: str, due: datetime, what: str, reason: str | None) -> None:
    """Add to the news, once a night and what: a night that crashes in each of its attempts is one piece of news."""
    db.execute(
        "INSERT INTO news (at, archive, flow, due, what, reason) SELECT ?, ?, ?, ?, ?, ? WHERE NOT EXISTS"
        " (SELECT 1 FROM news WHERE archive = ? AND flow = ? AND due = ? AND what = ?)",
        (_text(datetime.now(UTC)), archive, flow, _text(due), what, reason, archive, flow, _text(due), what),
    )


def _night(row: Sequence[Any]) -> Night:
    archive, flow, *times, outcome, reason, figures, run, attempts = row
    due, started, heartbeat, ended = (time and _time(time) for time in times)
    assert outcome is None or outcome in get_args(Outcome)
    return Night(archive, flow, due, started, heartbeat, ended, outcome, reason, json.loads(figures), run, attempts)


def _text(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
