"""A night under way: its lock, its heartbeat, and its row in the ledger, whatever ends it.

The lock is one that the kernel frees, so that a row without an end whose lock is free is known to be dead. Whoever
looks next ends it.
"""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from agewatch.errors import AgewatchError, GoneError, TableError
from agewatch.files import is_held, lock
from agewatch.nights.ledger import Ledger, Outcome
from agewatch.scoring.beside import name_of

HEARTBEAT_SECONDS = 30.0
_TURN = "turn.lock"
_LOCK_SECONDS = 1.0  # whoever asks whether a night is alive holds its lock for an instant


class NotNowError(AgewatchError):
    """A night has nothing to do now. `outcome` is `skipped` or `covered`, and stands in the ledger."""

    code = "not_now"

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome: Outcome = outcome


class Night:
    """A night under way: set what it found before it ends."""

    def __init__(self) -> None:
        self.outcome: Outcome = "done"
        self.reason: str | None = None
        self.figures: dict[str, Any] = {}


@contextmanager
def held(ledger: Ledger, archive: str, flow: str, due: datetime, run: str | None = None) -> Iterator[Night]:
    """Hold a night's lock and write its row while the body runs.

    The row ends with what the body sets, or with what it raises: an exception as `failed` (GoneError as `gone`),
    KeyboardInterrupt and the like as `stopped`. A row of the same night that a dead run left is taken over. Raises
    NotNowError where another run of the archive and flow holds the lock, or has covered this night.
    """
    due = due.astimezone(UTC).replace(microsecond=0)
    kept = _lock(ledger, archive, flow, due, run)
    try:
        for left in ledger.under_way():
            if (left.archive, left.flow) == (archive, flow):
                ledger.end_dead(left)
        if (began := ledger.coverer(archive, flow, due)) is not None:
            raise _not_now(ledger, archive, flow, due, run, "covered", f"The night that began {began} did its work.")
        ledger.begin(archive, flow, due, run)
        night, over = Night(), threading.Event()
        beat = threading.Thread(target=_beat, args=(ledger, archive, flow, due, over), daemon=True)
        beat.start()
        try:
            yield night
        except Exception as error:
            night.outcome, night.reason = "gone" if isinstance(error, GoneError) else "failed", sentence(error)
            raise
        except BaseException:
            night.outcome, night.reason = "stopped", "It was told to stop; what was finished is kept."
            raise
        finally:
            over.set()
            beat.join()
            ledger.end(archive, flow, due, night.outcome, night.reason, night.figures)
    finally:
        kept.close()


@contextmanager
def turn(ledger: Ledger, archive: str) -> Iterator[None]:
    """Wait until no other night of this home is at work: they share a machine's memory and cores."""
    with (ledger.folder / _TURN).open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(OSError):  # told by `status`; a full disk holds no night up
            file.truncate(0)
            file.write(archive)
            file.flush()
        yield


def whose_turn(ledger: Ledger) -> str | None:
    """The archive that had its turn last; among nights under way the one that is at work."""
    try:
        return (ledger.folder / _TURN).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def end_dead(ledger: Ledger) -> None:
    """End the rows of nights whose process is dead, as `crashed`."""
    for night in ledger.under_way():  # read before its lock is asked for: one that begins meanwhile is another
        if not is_held(_lock_file(ledger, night.archive, night.flow)):
            ledger.end_dead(night)


def _lock(ledger: Ledger, archive: str, flow: str, due: datetime, run: str | None) -> IO[str]:
    file = _lock_file(ledger, archive, flow)
    with suppress(TableError):
        if (kept := lock(file, exclusive=True, seconds=_LOCK_SECONDS)) is not None:
            return kept
        raise AgewatchError(f"The lock {file} can't be written.")
    running = [night.due for night in ledger.nights(archive, flow) if night.outcome is None]
    since = f", due {running[-1]:%Y-%m-%d %H:%M:%S} UTC," if running else ""
    raise _not_now(ledger, archive, flow, due, run, "skipped", f"Another night of it{since} still runs.")


def _not_now(
    ledger: Ledger, archive: str, flow: str, due: datetime, run: str | None, outcome: Outcome, reason: str
) -> NotNowError:
    ledger.never_begun(archive, flow, due, run, outcome, reason)
    return NotNowError(outcome, reason)


def _beat(ledger: Ledger, archive: str, flow: str, due: datetime, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_SECONDS):
        with suppress(TableError):
            ledger.beat(archive, flow, due)


def _lock_file(ledger: Ledger, archive: str, flow: str) -> Path:
    return ledger.folder / f"{name_of(archive)}.{flow}.lock"


def sentence(error: Exception) -> str:
    """Why a night failed. What a library or the system says may name files; that is kept at home."""
    if isinstance(error, AgewatchError):
        return str(error)
    said = error.strerror if isinstance(error, OSError) else None
    return f"Something unexpected went wrong: {said or type(error).__name__}."
