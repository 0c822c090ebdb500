"""Files that appear whole or not at all, and the time as records hold it."""

import fcntl
import json
import os
import secrets
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from agewatch.errors import TableError

_USERS = os.umask(0o077)
os.umask(_USERS)


def keep_private() -> None:
    """Let what this process and its children create from now on be its user's alone: folders 0700, files 0600.

    Called at the doors, the command line and the flows: what is written holds faces' data almost everywhere.
    """
    os.umask(0o077)


@contextmanager
def shared(named: Path | None, home: Path) -> Iterator[None]:
    """Let what a person named outside the home have the rights that their own umask gives, while the body writes it.

    What the body writes into the home meanwhile is kept private by the home's own rights.
    """
    if named is None or named.resolve().is_relative_to(home.resolve()):
        yield
        return
    before = os.umask(_USERS)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a new path beside `file` to write to; what is written there takes the file's place on leaving.

    A reader, or a power cut, finds the old file or the new one, whole. Where the body raises, the old one stays and
    nothing is left beside it. Raises OSError.
    """
    aside = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
    try:
        yield aside
        _sync(aside)
        aside.replace(file)
        with suppress(OSError):  # a folder may be written to and not read
            _sync(file.parent)
    finally:
        with suppress(OSError):  # moved away, never made, or its folder is none
            aside.unlink()


def write_text(file: Path, text: str) -> None:
    """Replace a file by a text in UTF-8; see `replacing`."""
    with replacing(file) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(file: Path, content: Any) -> None:
    """Replace a file by JSON; see `replacing`. NaN and infinity, which JSON lacks, raise ValueError."""
    write_text(file, json.dumps(content, indent=1, allow_nan=False))


def lock(file: Path, *, exclusive: bool, seconds: float = 0.0) -> IO[str] | None:
    """Lock a file with flock(2) for as long as what is returned is kept open; the kernel frees it when a process ends.

    None where the file can't be written. Raises TableError where another process holds it, for so many seconds, in a
    way that excludes this.
    """
    try:
        held = file.open("a")
    except OSError:
        return None
    ends = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(held, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= ends:
                held.close()
                raise TableError(f"Another run uses {file.parent}: try again when it has ended.") from error
            time.sleep(0.1)
        else:
            return held


def is_held(file: Path) -> bool:
    """Tell whether a process holds a file's lock for itself. Asking holds it for an instant."""
    try:
        free = lock(file, exclusive=False) if file.exists() else None
    except TableError:
        return True
    if free is not None:
        free.close()
    return False


def keep_traceback(home: Path, what: str) -> str:
    """Append the exception that is handled now to a home's error log; returns a sentence that says where."""
    log = home / "error.log"
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"\n{now()} agewatch {what}\n{traceback.format_exc()}")
    except OSError:
        return "The details could not be kept."
    return f"The details are in {log}."


def now() -> str:
    """The time as records hold it: UTC, ISO 8601, whole seconds, with Z."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def stamp() -> str:
    """The time as names of runs begin, in UTC: they sort by it."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
