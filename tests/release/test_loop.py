"""When drift asks for a retraining: a table, and what is read from the records of a store."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from models import tiny_model
from rows import row, writer

from agewatch import files
from agewatch.estimator.model import AgeModel
from agewatch.labelled import late
from agewatch.nights.ledger import Ledger
from agewatch.release import loop, records, smoke, store
from agewatch.release.loop import Finding, Past, wanted
from agewatch.release.package import package
from agewatch.scoring.predictions import Key

NOW = datetime(2026, 6, 30, tzinfo=UTC)
PEOPLE, ROSE = Finding("drift", "people"), Finding("drift", "unclear", error_rose=True)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


@pytest.mark.parametrize(
    ("finding", "labels", "past", "answer", "why"),
    [
        (PEOPLE, 200, Past(), "retrain", "The people changed, and 200 labels came"),
        (ROSE, 200, Past(), "retrain", "The error by labels rose, and 200"),
        (Finding("drift", "mixed", error_rose=True), 200, Past(), "retrain", "The error by labels rose, and 200"),
        (PEOPLE, 199, Past(), "wait", "199 labels came that the current model has not seen; 200 are needed"),
        (Finding("no_drift"), 999, Past(), "wait", "There is no drift."),
        (Finding("too_little_data", "people"), 999, Past(), "wait", "There is no drift."),
        (Finding("drift", "camera"), 999, Past(), "look", "Nothing is trained."),
        (Finding("drift", "camera", error_rose=True), 999, Past(), "look", "Nothing is trained."),
        (Finding("drift", "instrument"), 999, Past(), "look", "what was updated on this machine"),
        (Finding("drift", "mixed"), 999, Past(), "look", "the pictures too"),
        (Finding("drift"), 999, Past(), "look", "not clear"),
        (PEOPLE, 999, Past(asked_at=ago(1)), "wait", "A retraining was asked for on 2026-06-29"),
        (PEOPLE, 999, Past(asked_at=ago(15)), "retrain", ""),  # that one was lost
        (PEOPLE, 999, Past(asked_at=ago(15), ended_at=ago(13)), "wait", "A retraining ended on 2026-06-17"),
        (PEOPLE, 999, Past(asked_at=ago(16), ended_at=ago(14)), "retrain", ""),
        (PEOPLE, 999, Past(asked_at=ago(0.9), failed=1), "retrain", ""),
        (PEOPLE, 999, Past(asked_at=ago(0.9), failed=2), "wait", "asked for on 2026-06-29 and has left no model"),
        (PEOPLE, 999, Past(asked_at=ago(3), ended_at=ago(2), failed=1), "wait", "A retraining ended on 2026-06-28"),
        (PEOPLE, 999, Past(ago(40), ago(39), "agewatch-7@0"), "wait", "agewatch-7@0 passed and waits for approval"),
    ],
)
def test_what_is_wanted_is_a_function_of_what_is_known(
    finding: Finding, labels: int, past: Past, answer: str, why: str
) -> None:
    found = wanted(finding, labels, past, NOW)
    assert found.answer == answer
    assert why in found.why


def test_a_persistent_alarm_asks_once_until_its_retraining_ended_and_the_cool_down_passed() -> None:
    asked: list[int] = []
    past = Past()
    for day in range(60):
        now = NOW + timedelta(days=day)
        if wanted(PEOPLE, 300, past, now).answer == "retrain":
            asked.append(day)
            past = Past(asked_at=now, ended_at=now + timedelta(days=2))
    assert asked == [0, 16, 32, 48]


def test_a_cause_that_wavers_asks_once_on_a_night_of_people() -> None:
    answers, past = list[str](), Past()
    for day, cause in enumerate(["people", "mixed", "mixed", "people", "mixed", "people"]):
        now, labels = NOW + timedelta(days=day), 300 if day else 0
        answers.append(wanted(Finding("drift", cause), labels, past, now).answer)
        if answers[-1] == "retrain":
            past = Past(asked_at=now)
    assert answers == ["wait", "look", "look", "retrain", "look", "wait"]


def test_one_that_fails_is_asked_for_the_next_night_and_then_ever_more_seldom(tmp_path: Path) -> None:
    asked, ledger = list[int](), Ledger(tmp_path)
    asked_at: datetime | None = None
    for day in range(60):
        now = NOW + timedelta(days=day)
        failed = ledger.retrainings_failed(asked_at) if asked_at else 0
        if wanted(PEOPLE, 300, Past(asked_at, failed=failed), now).answer == "retrain":
            asked_at = now
            asked.append(day)
            ledger.begin("", "retrain", now, None)
            assert ledger.retrainings_failed(now - timedelta(days=9)) == 0, "one is under way"
            ledger.end("", "retrain", now, "failed", "No.", {})
    assert asked == [0, 1, 3, 11, 25, 39, 53]
    assert ledger.retrainings_failed(datetime.now(UTC) + timedelta(days=1)) == 7, "one was lost, and none the more"
    ledger.begin("", "retrain", NOW + timedelta(days=99), None)
    ledger.end("", "retrain", NOW + timedelta(days=99), "cancelled", None, {})
    assert ledger.retrainings_failed(NOW) == 0, "a person's will"


def content(archive: str, model: str) -> dict[str, object]:
    return {
        "archive": archive, "verdict": "drift", "cause": "people", "headline": "Drift since 2026-06-01.",
        "since": "2026-06-01", "model": model, "report": f"/x/reports/{archive}/20260630T010203.000000Z/index.html",
        "evidence": {"bound": 20.0, "value": 1e4}, "fit": {"measured_mae": None},
    }  # fmt: skip


def test_labels_that_the_current_model_has_not_seen_are_counted_and_the_alarm_is_kept_and_waited_for(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "store"
    store.promote(folder, package(tiny_model(tmp_path / "run"), version="1", store=folder))
    held = writer(tmp_path, tmp_path)
    held.write([row(f"{n}.jpg", content_hash=f"{n:016x}" * 4) for n in (1, 2, 3)])  # the model knows the key 1
    table = tmp_path / "table"
    (tmp_path / "labels.csv").write_text("path,age\n1.jpg,30\n2.jpg,40\n3.jpg,50.5\n")
    late.add(table, Key("a", "m-1@0", "detect"), tmp_path / "labels.csv")
    assert late.of_largest_faces(table, "a") == {"1.jpg": 30.0, "2.jpg": 40.0, "3.jpg": 50.5}

    model = AgeModel.load(folder / "agewatch-1.mar").id
    few = loop.Limits(new_labels=2)
    answer, alarm = loop.asked(content("a", model), table=table, folder=folder, limits=few)
    assert (answer.answer, alarm.new_labels, alarm.report) == ("retrain", 2, "20260630T010203.000000Z")
    records.keep(folder, alarm)
    assert records.alarms(folder) == [alarm]
    assert loop.asked(content("a", model), table=table, folder=folder, limits=few)[0].answer == "wait"
    assert loop.past(folder, "b") == Past()  # another archive's alarm

    new = package(tiny_model(tmp_path / "other", seed=3), version="2", store=folder)
    made = records.Training(AgeModel.load(new).id, new.name, model, "run", alarm.id, files.now())
    records.keep(folder, made)
    smoke.keep(folder, smoke.Smoke(made.model, True, "", files.now()))
    assert loop.past(folder, "a").waiting is None  # it was not compared
    assert loop.past(folder, "a").ended_at is not None
    records.forget(folder, alarm)
    assert records.alarms(folder) == []
