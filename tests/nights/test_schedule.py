"""When nights are due, against Prefect's own dates, and which of them are missing."""

import asyncio
import shutil
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import flows  # noqa: F401  before prefect
from agewatch.errors import UsageError
from agewatch.nights import schedule
from agewatch.nights.ledger import TROUBLE, Ledger, Night, Outcome
from agewatch.nights.night import NotNowError, held
from agewatch.nights.schedule import Planned, definitions, missing, read, settle

# isort: split

from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule

BERLIN = "Europe/Berlin"
SECOND = timedelta(seconds=1)
CHANGES = [(3, 7), (3, 28), (4, 4), (7, 1), (10, 3), (10, 24), (10, 31)]
"""Days before a clock changes somewhere, and one on which none does."""
START = datetime(2026, 3, 1, tzinfo=UTC)


def planned(**said: object) -> Planned:
    known: dict[str, object] = {"cron": None, "timezone": "UTC", "every": None, "anchor": None, "is_active": True}
    return Planned("town", "night", "town", "town", {}, **(known | said))  # type: ignore[arg-type]


def prefects(dates: CronSchedule | IntervalSchedule, after: datetime, until: datetime) -> list[datetime]:
    found = asyncio.run(dates.get_dates(n=900, start=after, end=until))
    return sorted({when.astimezone(UTC) for when in found if when > after})


def rows(due: list[datetime]) -> list[Night]:
    return [Night("town", "night", when, outcome="done") for when in due]


@pytest.mark.parametrize("zone", [BERLIN, "America/St_Johns", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize(
    "cron", ["30 2 * * *", "0 3 * * *", "0 1 * * *", "*/30 * * * *", "*/10 1-4 * * *", "15 1 * * 1-5", "45 23 * * 0"]
)
def test_a_cron_is_due_when_prefect_says_also_where_the_clock_changes(cron: str, zone: str) -> None:
    ours, theirs = planned(cron=cron, timezone=zone), CronSchedule(cron=cron, timezone=zone)
    for month, day in CHANGES:
        after = datetime(2026, month, day, 11, 7, tzinfo=UTC)
        until = after + timedelta(hours=50)
        due = prefects(theirs, after, until)
        assert ours.due(after, until) == due
        assert missing(ours, rows(due), after, until) == []
        if due and due[0] <= until - ours.grace(until):
            assert ours.next_due(after) == due[0]
            assert missing(ours, rows(due[1:]), after, until) == due[:1]


def test_an_interval_is_due_when_prefect_says() -> None:
    anchor = datetime(2026, 1, 1, 0, 0, 7, tzinfo=UTC)
    for every in (20 * SECOND, timedelta(hours=1), timedelta(days=1)):
        theirs = IntervalSchedule(interval=every, anchor_date=anchor)
        until = START + 30 * every
        due = prefects(theirs, START, until)
        assert planned(every=every, anchor=anchor).due(START, until) == due
        assert missing(planned(every=every, anchor=anchor), rows(due[:5] + due[6:]), START, until) == [due[5]]


def test_an_interval_without_an_anchor_begins_anew_with_each_deployment() -> None:
    one, at = planned(every=20 * SECOND), lambda seconds: START + seconds * SECOND
    assert one.next_due(START) is None
    runs = [13, 33, 53, *(64 + 20 * step for step in range(5))]  # deployed anew after 44 s
    assert missing(one, rows([at(each) for each in runs]), START, at(170)) == []
    without = [each for each in runs if each not in (33, 104, 124)]
    assert missing(one, rows([at(each) for each in without]), START, at(170)) == [at(33), at(104), at(124)]
    assert missing(one, rows([at(each) for each in runs]), START, at(184)) == [at(164)]
    assert missing(one, [], START, at(65)) == [at(20), at(40)]


def test_a_run_that_a_person_began_stands_for_no_night() -> None:
    one, by_hand = planned(cron="0 1 * * *"), START + timedelta(hours=14)
    assert missing(one, rows([by_hand]), START + timedelta(hours=2), START + timedelta(hours=30)) == [
        START + timedelta(hours=25)
    ]


def test_a_schedule_that_was_written_today_has_missed_nothing(tmp_path: Path) -> None:
    ledger, one = Ledger(tmp_path), planned(cron="0 1 * * *")
    settle(ledger, [one], START)
    assert ledger.nights() == []
    settle(ledger, [one], START + timedelta(days=2, hours=1, minutes=10))  # the third has some time yet
    assert [(night.due.day, night.outcome) for night in ledger.nights()] == [(1, "missed"), (2, "missed")]
    other = planned(cron="0 5 * * *")
    settle(ledger, [other], START + timedelta(days=9))
    assert len(ledger.nights()) == 2
    settle(ledger, [planned(cron="0 5 * * *", is_active=False)], START + timedelta(days=12))
    settle(ledger, [other], START + timedelta(days=15))
    assert len(ledger.nights()) == 2  # it was paused meanwhile


def test_a_clock_that_is_set_back_adds_and_loses_no_night(tmp_path: Path) -> None:
    ledger, one = Ledger(tmp_path), planned(cron="0 * * * *")
    for now in (0.0, 3.9, 2.9, 3.9, 4.9):
        settle(ledger, [one], START + timedelta(hours=now))
    assert [night.due.hour for night in ledger.nights()] == [1, 2, 3, 4]
    assert len(ledger.news()) == 4


class Nights(RuleBasedStateMachine):
    """A schedule of 20 s, a worker that is there or not, and somebody who looks now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.ledger, self.now = Ledger(self.home), START
        self.one = planned(every=20 * SECOND, anchor=START)
        settle(self.ledger, [self.one], self.now)

    @rule(steps=st.integers(1, 4))
    def time_passes(self, steps: int) -> None:
        self.now += steps * 7 * SECOND

    @rule(back=st.integers(0, 3), outcome=st.sampled_from(["done", "failed", "refused", None]))
    def a_night_runs(self, back: int, outcome: Outcome | None) -> None:
        due = self.one.due(START, self.now)[-1 - back :][:1]
        if due and outcome is None:  # killed: nobody holds its lock
            self.ledger.begin("town", "night", due[0], None)
        elif due:
            with suppress(NotNowError), held(self.ledger, "town", "night", due[0]) as night:
                night.outcome = outcome or "done"

    @rule()
    def somebody_looks(self) -> None:
        settle(self.ledger, [self.one], self.now)
        known = {night.due: night for night in self.ledger.nights()}
        assert all(night.outcome is not None for night in known.values())
        assert set(self.one.due(START, self.now - self.one.grace(self.now))) <= {*known}
        for night in known.values():
            assert (night.outcome in ("missed", "covered")) == (night.attempts == 0)

    @invariant()
    def each_night_is_told_of_at_most_once_and_each_that_is_in_trouble_is(self) -> None:
        told = [news.due for news in self.ledger.news()]
        assert len(told) == len({*told})
        assert {night.due for night in self.ledger.nights() if night.outcome in TROUBLE} <= {*told}

    def teardown(self) -> None:
        shutil.rmtree(self.home)


TestNights = Nights.TestCase
TestNights.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)

YAML = """
deployments:
- name: town
  entrypoint: flows/night.py:night
  parameters: {archive_folder: pictures/town}
  schedules: [SCHEDULE]
"""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{cron: '0 1 * *'}", "no schedule that can be followed"),
        ("{cron: 0 1 * * *, timezone: Mars}", "no schedule that can be followed"),
        ("{interval: 0}", "an interval of 0 seconds"),
        ("{interval: soon}", "can't be understood"),
        ("{interval: 86400, timezone: Europe/Berlin}", "a cron has none of that"),
        ("{rrule: 'FREQ=DAILY'}", "no cron and no interval"),
        ("{cron: 0 1 * * *}, {cron: 0 2 * * *}", "several schedules"),
        ("[", "is no YAML"),
    ],
)
def test_a_schedule_that_can_not_be_followed_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(YAML.replace("SCHEDULE", text))
    with pytest.raises(UsageError, match=sentence):
        read(file)


def test_a_night_without_a_folder_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(YAML.replace("archive_folder", "archive_foldr").replace("SCHEDULE", "{cron: 0 1 * * *}"))
    with pytest.raises(UsageError, match=r"understood: town names no archive_folder\.$"):
        read(file)


def test_prefect_yaml_says_what_is_scored_when(tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    with pytest.raises(UsageError, match="agewatch init"):
        read(file)
    file.write_text(YAML.replace("SCHEDULE", "{interval: 20, anchor_date: '2026-01-01T00:00:00Z'}"))
    [one] = read(file)
    assert (one.flow, one.archive, one.folder, one.every) == (schedule.NIGHT, "town", "pictures/town", 20 * SECOND)
    assert definitions(file) == {}
    file.write_text(
        file.read_text() + "- name: other\n  entrypoint: flows.night.night\n  parameters: {archive_folder: town/}"
    )
    with pytest.raises(UsageError, match="several deployments of town"):
        read(file)
    file.write_text("definitions: {agewatch: [alert]}\n" + YAML.replace("SCHEDULE", "{interval: 20}"))
    with pytest.raises(UsageError, match="no mapping"):
        definitions(file)
