"""The ledger and the nights that write it: with real processes that are killed, and real disks that are full."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agewatch.errors import GoneError, TableError
from agewatch.nights.ledger import Ledger, Outcome
from agewatch.nights.night import NotNowError, end_dead, held, turn, whose_turn

DUE = datetime(2026, 3, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
HOLD = """
import sys, time
from datetime import datetime
from pathlib import Path
from agewatch.nights.ledger import Ledger
from agewatch.nights.night import held
with held(Ledger(Path(sys.argv[1])), "town", "night", datetime.fromisoformat(sys.argv[2]), "run-1") as night:
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "home")


@contextmanager
def holding(ledger: Ledger, due: datetime = DUE) -> "Iterator[subprocess.Popen[str]]":
    """A process that holds town's night."""
    command = [sys.executable, "-c", HOLD, str(ledger.folder.parent), due.isoformat()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def outcomes(ledger: Ledger, archive: str = "town") -> list[Outcome | None]:
    return [night.outcome for night in ledger.nights(archive)]


def told(ledger: Ledger) -> list[tuple[str, datetime, str]]:
    return [(news.archive, news.due, news.what) for news in ledger.news()]


def run(ledger: Ledger, due: datetime = DUE, outcome: Outcome = "done", **figures: object) -> None:
    with held(ledger, "town", "night", due) as night:
        night.outcome, night.figures = outcome, figures


def test_a_night_that_is_killed_is_crashed_for_whoever_looks_next_and_then_made_up(ledger: Ledger) -> None:
    with holding(ledger) as process:
        end_dead(ledger)
        assert outcomes(ledger) == [None]
        process.kill()
        process.wait()
        end_dead(ledger)
    [night] = ledger.nights()
    assert (night.outcome, night.run, night.attempts) == ("crashed", "run-1", 1)
    assert night.ended == night.heartbeat
    assert "last heard of" in str(night.reason)
    with held(ledger, "town", "night", DUE, "run-2") as again:
        again.figures = {"found": 3}
    [night] = ledger.nights()
    assert (night.outcome, night.run, night.attempts, night.figures) == ("done", "run-2", 2, {"found": 3})
    assert told(ledger) == [("town", DUE, "crashed")]


def test_the_next_night_ends_the_one_that_was_killed(ledger: Ledger) -> None:
    with holding(ledger) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(ledger, DUE + DAY)
    assert outcomes(ledger) == ["crashed", "done"]


def test_a_night_that_overlaps_is_skipped_and_one_that_came_too_late_is_covered(ledger: Ledger) -> None:
    now = datetime.now(UTC)
    with holding(ledger, now - 2 * DAY), pytest.raises(NotNowError, match="still runs"):
        run(ledger, now - DAY)
    run(ledger, now)
    with pytest.raises(NotNowError, match="did its work"):
        run(ledger, now - DAY / 2)
    assert outcomes(ledger) == ["crashed", "skipped", "covered", "done"]
    assert [what for _, _, what in told(ledger)] == ["crashed"]
    with pytest.raises(NotNowError, match="did its work"):
        run(ledger, now - 2 * DAY)
    assert outcomes(ledger)[0] == "crashed"  # it did begin, and its later run did not


def test_what_a_night_raises_is_its_outcome(ledger: Ledger) -> None:
    for number, (error, outcome) in enumerate(
        [
            (GoneError("It is gone."), "gone"),
            (OSError(5, "Input/output error"), "failed"),
            (KeyboardInterrupt(), "stopped"),
        ]
    ):
        with pytest.raises(type(error)), held(ledger, "town", "night", DUE + number * DAY, f"run-{number}"):
            raise error
        assert ledger.nights()[-1].outcome == outcome
    assert ledger.nights()[1].reason == "Something unexpected went wrong: Input/output error."
    ledger.cancel("run-2")
    ledger.cancel("run-1")
    assert outcomes(ledger) == ["gone", "failed", "cancelled"]
    assert [what for _, _, what in told(ledger)] == ["gone", "failed"]


def test_a_night_is_told_of_once_however_often_it_fails(ledger: Ledger) -> None:
    ledger.miss("town", "night", [DUE], "It never began.")
    ledger.miss("town", "night", [DUE], "It never began.")
    run(ledger, outcome="failed")
    run(ledger, outcome="refused")
    run(ledger)
    ledger.miss("town", "night", [DUE], "It never began.")
    assert outcomes(ledger) == ["done"]
    assert told(ledger) == [("town", DUE, "missed")]


def test_drift_is_told_where_it_begins_and_each_cause_of_it_once(ledger: Ledger) -> None:
    nights: list[tuple[Outcome, dict[str, object]]] = [
        ("done", {"verdict": "no_drift", "cause": None}),
        ("done", {"verdict": "drift", "cause": "people"}),
        ("failed", {}),  # a night without a verdict ends no drift
        ("refused", {"verdict": "drift", "cause": "people"}),
        ("done", {"verdict": "drift", "cause": "camera"}),
        ("done", {"verdict": "drift", "cause": "people"}),  # it wavers
        ("done", {"verdict": "no_drift", "cause": None}),
        ("done", {"verdict": "drift", "cause": "camera"}),
    ]
    for number, (outcome, figures) in enumerate(nights):
        run(ledger, datetime.now(UTC) + number * DAY, outcome, **figures)
    run(ledger, ledger.nights()[-1].due, verdict="drift", cause="camera")  # the same night again
    days = [(news.what, (news.due - ledger.nights()[0].due).days) for news in ledger.news()]
    assert days == [("drift", 1), ("failed", 2), ("refused", 3), ("drift", 4), ("drift", 7)]


WRITERS = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from agewatch.nights.ledger import Ledger
from agewatch.nights.night import end_dead, held
ledger, name = Ledger(Path(sys.argv[1])), sys.argv[2]
for number in range(12):
    end_dead(ledger)
    with held(ledger, name, "night", datetime(2100, 3, 1, tzinfo=UTC) + timedelta(days=number)) as night:
        ledger.beat(name, "night", datetime(2100, 3, 1, tzinfo=UTC))
        night.outcome = "failed" if number % 2 else "done"
"""


def test_many_write_at_once_and_each_dead_night_is_told_once(ledger: Ledger) -> None:
    with holding(ledger) as process:
        process.kill()
        process.wait()
        assert outcomes(ledger) == [None]
        command = [sys.executable, "-c", WRITERS, str(ledger.folder.parent)]
        writers = [subprocess.Popen([*command, f"archive {number}"]) for number in range(5)]
        assert [writer.wait() for writer in writers] == [0] * 5
    assert Counter(night.outcome for night in ledger.nights()) == {"done": 30, "failed": 30, "crashed": 1}
    assert Counter(news.what for news in ledger.news()) == {"failed": 30, "crashed": 1}


FULL = """
import errno, os, subprocess, sys
from datetime import UTC, datetime
from pathlib import Path
disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", disk], check=True)
from agewatch.nights.ledger import Ledger
from agewatch.nights.night import held

def fill(name):
    with (disk / name).open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC

for number in (1, 2):
    try:
        with held(Ledger(disk / "home"), "town", "night", datetime(2100, 3, number, tzinfo=UTC)):
            fill(f"a{number}")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        pass
fill("b")
ledger = Ledger(disk / "home")
fill("c")
ledger.miss("village", "night", [datetime(2100, 3, 1, 5, tzinfo=UTC)], "It never began.")
print([(night.archive, night.outcome, night.reason) for night in Ledger(disk / "home").nights()])
"""


def test_a_full_disk_still_takes_a_nights_last_words(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    small = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", FULL, str(tmp_path / "disk")]
    done = subprocess.run(small, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, f"This test mounts a tmpfs in a user namespace, which must be allowed: {done.stderr}"
    said = "Something unexpected went wrong: No space left on device."
    assert eval(done.stdout) == [
        ("town", "failed", said),
        ("village", "missed", "It never began."),
        ("town", "failed", said),
    ]


def test_a_damaged_ledger_is_a_sentence(ledger: Ledger) -> None:
    ledger.miss("town", "night", [DUE + number * DAY for number in range(300)], "It never began.")
    whole = ledger.file.read_bytes()
    for torn in (b"no database at all " * 999, whole[: len(whole) // 2], bytes(4096) + whole[4096:]):
        ledger.file.write_bytes(torn)
        with pytest.raises(TableError, match=r"damaged.*move it away"):
            Ledger(ledger.folder.parent).nights()
    ledger.file.write_bytes(whole)
    with sqlite3.connect(ledger.file) as db:
        db.execute("UPDATE nights SET outcome = 'eaten' WHERE due LIKE '2026-03-02%'")
    with pytest.raises(TableError, match="damaged"):
        ledger.nights()


def test_nights_take_turns_and_the_ledger_is_the_owners_alone(ledger: Ledger) -> None:
    with turn(ledger, "town"):
        assert whose_turn(ledger) == "town"
    with turn(ledger, "häuser"):
        assert whose_turn(ledger) == "häuser"
    assert (ledger.file.stat().st_mode & 0o777, ledger.folder.stat().st_mode & 0o777) == (0o600, 0o700)
