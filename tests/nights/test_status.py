"""What `agewatch status` knows of nights, drift, models and the alerter, and how it says it."""

import fcntl
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agewatch.cli import screen
from agewatch.nights.alerts import compose
from agewatch.nights.ledger import Ledger, Outcome
from agewatch.nights.night import held, turn
from agewatch.nights.status import UP_LOCK, Status, look
from agewatch.settings import Settings

NOW = datetime.now(UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FIGURES = {"found": 1200, "scored": 240, "refused_now": 2, "faces": 1500, "refused": {"truncated": 2}}
CALM: dict[str, Any] = {"verdict": "no_drift", "cause": None, "since": None, "headline": "Nothing moved."}
DRIFT = {
    "verdict": "drift",
    "cause": "people",
    "since": "2026-03-01",
    "headline": "Faces are 4 years older.",
    "advice": "Look.",
}
HEAVY = {
    "prefect",
    "torch",
    "evidently",
    "sklearn",
    "deltalake",
    "pyarrow",
    "pandas",
    "scipy",
    "cv2",
    "openvino",
    "httpx",
}

SAID = [
    "agewatch is not up", "Too many [b]files[/b] were refused.", "drift since 2026-03-01. Faces are 4", "240", "1,500",
    "960 files have rows of an older", "the starter model",
    "not planned", "running", "many refused", "GB free", "nobody asks",
]  # fmt: skip


@pytest.fixture
def ledger(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The ledger of a home whose prefect.yaml has two archives, each scored a day after it was written."""
    monkeypatch.chdir(tmp_path)
    deployments = [
        {"name": name, "entrypoint": "flows.night.night", "parameters": {"archive_folder": name},
         "schedules": [{"interval": 86400, "anchor_date": (NOW - HOUR).isoformat()}]}
        for name in ("town", "village")
    ]  # fmt: skip
    Path("prefect.yaml").write_text(json.dumps({"deployments": deployments}))
    return Ledger(home)


def run(
    ledger: Ledger, archive: str, due: datetime, outcome: Outcome = "done", reason: str | None = None, **found: Any
) -> None:
    with held(ledger, archive, "night", due) as night:
        night.outcome, night.reason, night.figures = outcome, reason, found


def states(now: datetime = NOW) -> tuple[Status, dict[str, Any]]:
    found = look(Settings(), now)
    return found, {state.archive: state for state in found.archives}


def test_a_new_home_has_nothing_to_say(ledger: Ledger) -> None:
    found, archives = states()
    assert [*archives] == ["town", "village"]
    assert archives["town"].last is None
    assert archives["town"].next_due == (NOW + DAY - HOUR)
    assert (found.exit_code, found.is_up, found.model) == (0, False, None)


@pytest.mark.parametrize(
    ("nights", "code"),
    [
        (["done"], 0),
        (["refused"], 0),
        (["done", "failed"], 6),
        (["failed", "done"], 0),
        (["crashed", "skipped"], 6),
        (["failed", "cancelled"], 6),
        (["gone", "stopped"], 6),
        (["missed"], 6),
        (["missed", "done"], 0),
        (["done", "covered"], 0),
    ],
)
def test_a_night_is_missing_until_a_later_one_did_its_work(ledger: Ledger, nights: list[Outcome], code: int) -> None:
    for number, outcome in enumerate(nights):
        run(ledger, "town", NOW + (number - 5) * HOUR + DAY, outcome)
    assert states()[0].exit_code == code


def test_a_night_that_never_began_is_missing_and_made_up_by_its_own_late_run(ledger: Ledger) -> None:
    assert states()[0].exit_code == 0
    found, archives = states(NOW + DAY)
    assert found.exit_code == 6
    assert archives["town"].last.outcome == archives["village"].last.outcome == "missed"
    for name in ("town", "village"):
        run(ledger, name, archives[name].last.due)
    found, archives = states(NOW + DAY)
    assert found.exit_code == 0
    assert archives["town"].last.attempts == 1


def test_drift_stands_until_a_verdict_ends_it(ledger: Ledger) -> None:
    run(ledger, "town", NOW + 1 * DAY, **FIGURES, **CALM)
    assert states()[0].exit_code == 0
    run(ledger, "town", NOW + 2 * DAY, **FIGURES, **DRIFT)
    assert states()[0].exit_code == 4
    run(ledger, "town", NOW + 3 * DAY, "refused")  # a night without a verdict
    found, archives = states()
    assert found.exit_code == 4
    assert archives["town"].content()["drift"]["since"] == "2026-03-01"
    run(ledger, "village", NOW + 3 * DAY, "failed")
    assert states()[0].exit_code == 6
    run(ledger, "village", NOW + 4 * DAY)
    run(ledger, "town", NOW + 4 * DAY, **FIGURES, **CALM)
    assert states()[0].exit_code == 0


def test_an_archive_that_is_no_longer_planned_is_shown_and_decides_nothing(ledger: Ledger) -> None:
    run(ledger, "old", NOW - 50 * DAY, "failed", "It failed.", **DRIFT)
    found, archives = states()
    assert found.exit_code == 0
    assert (archives["old"].is_planned, archives["old"].next_due) == (False, None)


def test_a_night_under_way_waits_or_is_silent(ledger: Ledger) -> None:
    with held(ledger, "town", "night", NOW), turn(ledger, "town"), held(ledger, "village", "night", NOW):
        found, archives = states()
        assert found.exit_code == 0
        assert (archives["town"].waits_for, archives["village"].waits_for) == (None, "town")
        found, archives = states(datetime.now(UTC) + timedelta(minutes=6))
        assert found.exit_code == 6
        assert archives["town"].is_silent
        assert states(NOW - HOUR)[0].exit_code == 0  # a clock that was set back


def test_a_night_that_goes_on_for_more_than_a_day_is_told_once_though_it_is_alive(ledger: Ledger) -> None:
    with held(ledger, "town", "night", NOW):
        for hours in (23, 25, 26):
            assert states(NOW + hours * HOUR)[1]["town"].is_long == (hours > 24)
        told = [news for news in ledger.news() if news.what == "long"]
        assert [news.due for news in told] == [NOW.replace(microsecond=0)]
        text = compose(ledger, told).text
        assert "long. It is under way since" in text
        assert "runs again" not in text
    assert "Since then: done." in compose(ledger, told).text


def test_it_says_whether_up_runs_and_what_the_store_holds(ledger: Ledger, tmp_path: Path) -> None:
    with (ledger.folder / UP_LOCK).open("w") as file:
        assert not states()[0].is_up
        fcntl.flock(file, fcntl.LOCK_EX)
        assert states()[0].is_up
    models = tmp_path / "store"
    (models / "decisions").mkdir(parents=True)
    pointer = {"file": "agewatch-1.mar", "model": "agewatch-1@a", "sha256": "0", "promoted_at": "2026-01-01T00:00:00Z"}
    (models / "current.json").write_text(json.dumps(pointer))
    for name, champion, passed in (
        ("2", "agewatch-1@a", True),
        ("3", "agewatch-1@a", False),
        ("4", "agewatch-0@a", True),
    ):
        record = {
            "champion": champion,
            "challenger": f"agewatch-{name}@b",
            "decided_at": "",
            "decision": {"promote": passed},
        }
        (models / "decisions" / f"{name}.json").write_text(json.dumps(record))
    found, _ = states()
    assert (found.model, found.held, found.problems) == ("agewatch-1@a", ["agewatch-2@b"], [])
    (models / "current.json").write_text("{")
    found, _ = states()
    assert "current.json can't be read" in found.problems[0]


def test_the_screen_says_it_in_words_at_any_width(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(
        ledger,
        "town",
        NOW + DAY,
        "refused",
        "Too many [b]files[/b] were refused.",
        **FIGURES,
        **DRIFT,
        left_to_rescore=960,
    )
    run(ledger, "old", NOW - 50 * DAY)
    with held(ledger, "village", "night", NOW):
        found, _ = states()
        texts = []
        for width in (80, 120):
            monkeypatch.setenv("COLUMNS", str(width))
            monkeypatch.setenv("FORCE_COLOR", "1")
            screen.status(found)
            texts.append(capsys.readouterr().out)
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", text) for text in texts]
    for text in plain:
        for said in SAID:
            assert said in " ".join(text.split()), said
    assert max(map(len, plain[0].splitlines())) <= 80


def agewatch(*arguments: str, python: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *python, "-m", "agewatch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_answers_in_json_and_is_light(ledger: Ledger) -> None:
    run(ledger, "town", NOW + DAY, **FIGURES, **DRIFT)
    done = agewatch("status", "--json", python=("-X", "importtime"))
    content = json.loads(done.stdout)
    assert done.returncode == content["exit_code"] == 4
    assert content["archives"][0]["last"]["figures"]["found"] == 1200
    assert content["archives"][0]["next"].count(":") >= 3  # with its offset
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "rich" in imported or "agewatch" in imported
    assert not imported & HEAVY


def test_without_a_schedule_or_with_a_damaged_ledger_it_is_a_sentence(ledger: Ledger) -> None:
    ledger.file.write_bytes(b"torn" * 999)
    done = agewatch("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    Path("prefect.yaml").unlink()
    done = agewatch("status")
    assert done.returncode == 2
    assert done.stderr == "agewatch: There is no prefect.yaml: `agewatch init ARCHIVE...` writes one.\n"
