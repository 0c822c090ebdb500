"""The table's files: small ones are merged, those that no version of the last month had are deleted."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from deltalake.exceptions import CommitFailedError, DeltaError

from agewatch.errors import TableError
from agewatch.files import lock
from agewatch.scoring import merging
from agewatch.scoring.predictions import (
    LOCK_FILE,
    is_remote,
    open_table,
    plain,
    require_writable,
    shown,
)
from agewatch.upkeep.clearing import Cleared, age

HISTORY = timedelta(days=30)
"""Rows that were replaced are readable so long, as is the table's log: Delta's own default for the log. Whoever has an
older version open goes on for as long."""
_ATTEMPTS = 5
_DATA = re.compile(r"part-.+\.parquet")  # as delta-rs names them; a person may have put others there


@dataclass(frozen=True)
class TidiedTable:
    """How many files the table's rows lay in and lie in now, with so many bytes, and what was deleted.

    `is_kept` says that nothing was looked for that could be deleted, as the table lies in object storage.
    """

    files_before: int
    files: int
    bytes: int
    deleted: int
    deleted_bytes: int
    is_kept: bool


def tidy(table: Path, now: datetime) -> TidiedTable:
    """Merge a table's small files, and delete those that no version of the last HISTORY had; runs may go on meanwhile.

    Raises TableError where there is no table, or it can't be written, or other runs commit all the time.
    """
    before = len(open_table(table).get_add_actions()["path"])
    require_writable(table)
    shared = None if is_remote(table) else lock(table / LOCK_FILE, exclusive=False)
    try:
        _merge(table)
        cleared = clear_versions(table, now)
    except (DeltaError, OSError, ValueError) as error:
        raise TableError(f"The table {shown(table)} can't be tidied: {plain(error)}.") from error
    finally:
        if shared is not None:
            shared.close()
    sizes = open_table(table).get_add_actions()["size_bytes"].to_pylist()
    return TidiedTable(before, len(sizes), sum(sizes), cleared.n, cleared.bytes, is_remote(table))


def _merge(table: Path) -> None:
    for _ in range(_ATTEMPTS):
        with suppress(CommitFailedError):
            held = open_table(table)
            merging.merge(held, table, merging.LARGE_BYTES)
            held.create_checkpoint()
            return
    raise TableError(f"The table {shown(table)} stayed busy: {_ATTEMPTS} attempts to merge its files came too late.")


def clear_versions(table: Path, now: datetime) -> Cleared:
    """Delete data files that no version of the last HISTORY had.

    delta-rs names the candidates. It forgets after a week which files were removed when, and then goes by when they
    were written: a file of long ago that was replaced yesterday would go. So those that a recent commit names stay.
    Raises TableError, ValueError where a commit can't be read, OSError where a file can't be deleted.
    """
    cleared = Cleared()
    if not (table / "_delta_log").is_dir():
        return cleared
    held = open_table(table)
    shared = lock(table / LOCK_FILE, exclusive=False)
    try:
        hours = int(HISTORY / timedelta(hours=1))
        candidates = held.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
        recent = _named_lately(table / "_delta_log", now) if candidates else set()
        for name in candidates:
            file = table / name
            if _DATA.fullmatch(name) and name not in recent and age(file, now) > HISTORY:
                cleared.file(file)
    finally:
        if shared is not None:
            shared.close()
    return cleared


def _named_lately(log: Path, now: datetime) -> set[str]:
    """The data files that commits of the last HISTORY added or removed. Raises ValueError where one can't be read."""
    named: set[str] = set()
    for commit in log.glob("*.json"):
        with suppress(FileNotFoundError):  # delta-rs deletes commits that are older than this
            actions = [json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines() if line]
            times = [action["commitInfo"].get("timestamp", 0) / 1000 for action in actions if "commitInfo" in action]
            # The later of both: a clock may have been set back, a log copied.
            if now.timestamp() - max(commit.stat().st_mtime, *times, 0) <= HISTORY.total_seconds():
                named |= {action[kind]["path"] for action in actions for kind in ("add", "remove") if kind in action}
    return named
