"""A verdict is a pure function of the sums of nights: what is drift, what is none, and what can't be told."""

import re
from collections.abc import Callable
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from nights import FIRST, day, night

from agewatch.scoring.baseline import Baseline
from monitoring import summaries, windows
from monitoring.columns import ColumnDrift
from monitoring.verdict import Verdict, judge

BASE = Baseline(FIRST, FIRST, is_accepted=False)


def cells(*nights: pa.Table) -> pd.DataFrame:
    return summaries.of_rows(pa.concat_tables(nights))


def judged(*nights: pa.Table, base: Baseline | None = BASE) -> Verdict:
    return judge(cells(*nights), base, until=day(400))


def column(verdict: Verdict, name: str) -> ColumnDrift:
    return next(column for column in verdict.columns if column.name == name)


def drifted(verdict: Verdict) -> set[str]:
    return {column.name for column in verdict.columns if column.drifted}


def calm(first: int, last: int, n: int = 300) -> list[pa.Table]:
    return [night(number, n) for number in range(first, last + 1)]


def test_nights_like_the_baseline_are_no_drift_and_the_headline_says_what_would_have_been_seen() -> None:
    verdict = judged(night(0, 4000), *calm(1, 12))
    assert (verdict.answer, verdict.since, drifted(verdict)) == ("no_drift", None, set())
    assert verdict.headline.startswith("No drift in 3,600 faces that arrived since 2026-01-02")
    assert float(re.findall(r"by (\d+\.\d) years", verdict.headline)[0]) < 3


def test_a_strong_shift_is_found_in_its_first_night_among_any_number_of_old_rows() -> None:
    verdict = judged(night(0, 40_000), *calm(1, 3), night(4, 300, older=10))
    assert (verdict.answer, verdict.since) == ("drift", day(4))
    age = column(verdict, "age")
    assert age.effect == pytest.approx(10, abs=2)
    assert age.low < 10 < age.high
    assert verdict.headline.startswith("Drift since 2026-01-05: faces are estimated ")
    assert " years older (" in verdict.headline


def test_a_weak_shift_is_found_in_time_and_dated() -> None:
    nights = [night(0, 20_000), *calm(1, 20), *(night(n, 300, older=2) for n in range(21, 41))]
    verdict = judged(*nights)
    assert verdict.answer == "drift"
    assert verdict.since is not None
    assert verdict.since_low is not None
    assert verdict.since_high is not None
    assert verdict.since_low <= day(21) <= verdict.since_high
    assert abs((verdict.since - day(21)).days) <= 3


def test_when_the_nights_are_as_before_again_it_is_no_drift_and_the_bad_one_stays_notable() -> None:
    verdict = judged(night(0, 4000), *calm(1, 5), night(6, 300, older=12), *calm(7, 30))
    assert verdict.answer == "no_drift"
    assert [one.window.first for one in verdict.windows if one.notable] == [day(6)]
    assert judged(night(0, 4000), *calm(1, 5), night(6, 300, older=12)).answer == "drift"


def test_a_shift_too_small_to_matter_is_no_drift_however_many_faces_show_it() -> None:
    verdict = judged(night(0, 100_000), *(night(n, 20_000, older=0.3) for n in range(1, 6)))
    assert verdict.answer == "no_drift"
    assert column(verdict, "age").threshold >= 0.5


def test_children_among_adults_are_seen_by_the_shape() -> None:
    mixed = pa.concat_tables([night(1, 850), night(1, 150, older=-200, seed=7)])
    verdict = judged(night(0, 20_000), mixed)
    assert "youngest_share" in drifted(verdict)
    assert verdict.answer == "drift"


def test_a_refused_folder_and_pictures_without_faces_are_seen_though_the_ages_are_the_same() -> None:
    torn = judged(night(0, 4000), night(1, 200, refused=100))
    assert drifted(torn) == {"refused_share"}
    assert "33.3% in place of 0.0%" in torn.headline
    assert drifted(judged(night(0, 4000, no_face=200), night(1, 200, no_face=100))) == {"no_face_share"}
    assert not drifted(judged(night(0, 4000), night(1, 200, refused=4)))


def test_folders_that_differ_are_noise_that_the_baseline_knows() -> None:
    """Each folder is a family with an offset of its own: with whole groups as the noise, a night of three is calm."""
    rng = np.random.default_rng(5)

    def families(number: int, count: int) -> list[pa.Table]:
        return [
            night(number, 20, older=rng.normal(0, 8), folder=f"{number}-{i}", seed=1000 * number + i)
            for i in range(count)
        ]

    accepted = families(0, 150)
    assert judged(*accepted, *(part for n in range(1, 30) for part in families(n, 3))).answer != "drift"


def test_few_faces_wait_for_the_next_window() -> None:
    verdict = judged(night(0, 4000), night(1, 20, older=40), night(2, 5, older=40))
    assert (verdict.answer, verdict.windows) == ("too_little_data", ())
    assert any("25 faces that arrived since 2026-01-02 wait" in note for note in verdict.notes)
    verdict = judged(night(0, 4000), night(1, 20, older=40), night(2, 15, older=40))
    assert [(one.window.first, one.window.until, one.window.n_faces) for one in verdict.windows] == [
        (day(1), day(2), 35)
    ]


def test_without_a_baseline_or_anything_new_there_is_too_little_data_and_the_headline_says_what_lacks() -> None:
    none = judged(night(0, 120), base=None)
    assert (none.answer, none.baseline) == ("too_little_data", None)
    assert "120 of the 2,000 faces" in none.headline
    only = judged(night(0, 2500))
    assert (only.answer, only.value) == ("too_little_data", None)
    assert "2,500 faces of the baseline" in only.headline
    small = judged(night(0, 60), *calm(1, 40, 60))
    assert small.answer == "too_little_data"
    assert "against a baseline of 60 faces in 3 folders" in small.advice


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.Table], pa.Table]:
    def apply(rows: pa.Table) -> pa.Table:
        field = rows.schema.get_field_index(name)
        values = change(rows[name].to_numpy().copy())
        return rows.set_column(field, rows.schema.field(name), pa.array(values, pa.float32()))

    return apply


def first_is(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.concatenate([[value], values[1:]])


def test_odd_values_neither_alarm_nor_hide_a_shift() -> None:
    thinned = changed("age", lambda values: np.where(np.arange(len(values)) % 10 < 3, np.nan, values))
    for odd in (changed("age", first_is(1e6)), changed("sharpness", first_is(1e6)), thinned):
        calm_nights = [night(0, 4000), *calm(1, 8), odd(night(9, 300))]
        assert judged(*calm_nights).answer == "no_drift"
        assert "age" in drifted(judged(*calm_nights, odd(night(10, 300, older=12))))
    flat = [changed("contrast", lambda values: values * 0 + 0.2)(night(n, 4000 if n == 0 else 300)) for n in range(9)]
    verdict = judged(*flat)
    assert verdict.answer == "no_drift"
    assert any("contrast" in note for note in verdict.notes)
    ends = [
        changed("age", lambda values: np.where(values > 36, 100.0, 0.0))(rows) for rows in [night(0, 4000), *calm(1, 8)]
    ]
    assert judged(*ends).answer != "drift"


def test_a_clock_that_was_ahead_is_said_and_not_judged() -> None:
    verdict = judge(cells(night(0, 4000), *calm(1, 8), night(9000, 300, older=30)), BASE, until=day(8))
    assert verdict.answer == "no_drift"
    assert any("300 faces with an arrival after 2026-01-09 (up to 2050-08-23)" in note for note in verdict.notes)


def test_two_runs_a_night_are_one_window_and_nights_may_be_missing() -> None:
    later = night(3, 300, seed=99)
    verdict = judged(night(0, 4000), *calm(1, 3), later, *calm(14, 18))
    sizes = {one.window.first: one.window.n_faces for one in verdict.windows}
    assert sizes == {day(n): 600 if n == 3 else 300 for n in (1, 2, 3, 14, 15, 16, 17, 18)}


def test_one_folder_without_dates_is_judged_picture_by_picture_and_says_so() -> None:
    def flat(number: int, n: int, older: float = 0) -> pa.Table:
        return night(number, n, folder="all", older=older)

    verdict = judged(flat(0, 4000), *(flat(n, 300) for n in range(1, 9)))
    assert verdict.answer == "no_drift"
    assert any("one folder without capture dates" in note for note in verdict.notes)
    assert judged(flat(0, 4000), flat(1, 300, older=9)).answer == "drift"


def test_where_the_baseline_is_one_folder_and_others_follow_one_night_is_no_evidence() -> None:
    verdict = judged(night(0, 4000, folder="first"), night(1, 300, folder="second", older=9))
    assert verdict.answer == "too_little_data"
    assert any("a single folder" in note for note in verdict.notes)


def test_a_flat_archive_with_dates_is_grouped_by_the_day_of_capture() -> None:
    nights = [night(0, 40, folder="all", captured=date(2025, 1, 1 + n % 28), seed=n) for n in range(60)]
    later = [night(n, 300, folder="all", captured=date(2025, 3, n)) for n in range(1, 9)]
    divided = windows.split(cells(*nights, *later), BASE)
    assert (divided.alike, divided.groups, len(divided.windows)) == ("capture day", 28, 8)
    undated = windows.split(cells(night(0, 2400, folder="all"), night(1, 300, folder="all")), BASE)
    assert (undated.alike, undated.groups) == ("picture", 2400)


def test_weeks_months_and_captured_months_are_windows_too() -> None:
    rows = cells(night(0, 4000), *(night(n, 40, captured=date(2020, 1 + n % 3, 1)) for n in range(1, 60)))
    by = {name: judge(rows, BASE, by=name, until=day(400)) for name in ("night", "week", "month", "captured-month")}
    assert [len(by[name].shown) for name in ("night", "week", "month", "captured-month")] == [59, 9, 3, 3]
    months = by["captured-month"].months
    assert [one.window.first for one in months] == [date(2020, n, 1) for n in (1, 2, 3)]
    assert [one.window.n_faces for one in months] == [760, 800, 800]
    assert all(one.value is None for one in months)
    frame = rows[rows["day"] == pd.Timestamp(2020, 2, 1)]
    accepted = rows[rows["day"].isna()]
    means = [some["age_sum"].sum() / some["age_n"].sum() for some in (frame, accepted)]
    assert months[1].age_effect == pytest.approx(means[0] - means[1])
    assert by["captured-month"].windows == by["night"].windows
    assert by["captured-month"].answer == by["night"].answer
    assert len(judge(rows, BASE, since=day(50), until=day(400)).windows) == 10
