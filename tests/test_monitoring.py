"""The drift verdict means what it says: arrivals are held against what was accepted, doubt is admitted, files agree."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from browser import open_page
from nights import FIRST, MODEL, day, night, store

from agewatch.errors import TableError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Member, Preprocessing, Spec
from agewatch.scoring import beside, canaries
from agewatch.scoring.baseline import Baseline
from agewatch.scoring.canaries import Canary, CanaryRun, Record
from agewatch.scoring.predictions import Key
from monitoring import drift, report, summaries
from monitoring.columns import BOUND, ColumnDrift
from monitoring.verdict import Verdict, judge

ROOT = Path(__file__).parents[1]
BASE = Baseline(FIRST, FIRST, is_accepted=False)
KEYS = {
    "schema", "verdict", "headline", "cause", "since", "since_low", "since_high", "advice", "notes", "archive", "model",
    "mode", "baseline", "window", "evidence", "columns", "segments", "windows", "canaries", "model_change", "fit",
    "pictures", "report", "json", "exit_code",
}  # fmt: skip


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
    split = judged(*nights, *(night(n, 300, folder="all", captured=date(2025, 3, n)) for n in range(1, 9)))
    assert split.notes == ()


def test_weeks_months_and_captured_months_are_windows_too() -> None:
    rows = cells(night(0, 4000), *(night(n, 40, captured=date(2020, 1 + n % 3, 1)) for n in range(1, 60)))
    by = {name: judge(rows, BASE, by=name, until=day(400)) for name in ("night", "week", "month", "captured-month")}
    assert [len(by[name].windows) for name in ("night", "week", "month", "captured-month")] == [59, 9, 3, 3]
    assert all(one.value is None for one in by["captured-month"].windows)
    assert by["captured-month"].answer == by["night"].answer
    assert len(judge(rows, BASE, since=day(50), until=day(400)).windows) == 10


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """An unpacked model."""
    folder = tmp_path / "model"
    folder.mkdir()
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    AgeModel(Spec("agewatch", "1", (Member("mobilenetv1_100", 160),), preprocessing), b"weights").save(folder)
    return folder


@pytest.fixture
def model(model_dir: Path) -> str:
    return AgeModel.load(model_dir).id


@pytest.mark.parametrize(
    ("last", "answer", "exit_code"),
    [(0, "no_drift", 0), (12, "drift", 4), (None, "too_little_data", 5)],
    ids=["no_drift", "drift", "too_little_data"],
)
def test_the_json_keeps_its_contract(
    last: float | None, answer: str, exit_code: int, model_dir: Path, model: str, tmp_path: Path
) -> None:
    new = [] if last is None else [night(n, 300, model=model) for n in range(1, 9)]
    if last is not None:
        new.append(night(9, 300, model=model, older=last))
    table = store(tmp_path / "t", night(0, 4000, model=model), *new)
    done = drift.run(None, model=model_dir, predictions_dir=table, out=tmp_path / "new")
    content = json.loads(done.json.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))
    assert set(content) == KEYS
    assert (content["schema"], content["verdict"], content["exit_code"]) == (2, answer, exit_code)
    assert content["baseline"] == {
        "kind": "first nights", "from": "2026-01-01", "until": "2026-01-01", "n_files": 4000, "n_faces": 4000,
    }  # fmt: skip
    assert content["evidence"]["bound"] == BOUND
    assert (content["report"], content["json"]) == (str(done.html), str(done.json))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["drift.json", "index.html"]
    if new:
        assert content["window"]["from"] == content["windows"][-1]["from"] == "2026-01-10"
        assert content["evidence"]["value"] == content["windows"][-1]["value"]
        assert len(content["columns"]) == 10
    if answer == "drift":
        assert content["since_low"] <= content["since"] == "2026-01-10" <= content["since_high"]
        assert content["evidence"]["value"] > BOUND


def test_each_night_says_for_ever_what_its_own_run_said_and_summaries_are_a_cache(
    model_dir: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "write", lambda *_: None)  # the page is another test's
    table = store(tmp_path / "t", night(0, 4000, model=model))

    def content(number: int) -> dict[str, object]:
        done = drift.run(None, model=model_dir, predictions_dir=table, out=tmp_path / "r", until=day(number))
        return done.content()

    said = {}
    for number in range(1, 16):
        store(table, night(number, 300, older=5 * (number > 12), model=model))
        said[number] = content(number)
    assert {answer["verdict"] for answer in said.values()} == {"too_little_data", "no_drift", "drift"}
    kept = beside.folder_of(table, "town") / "summaries.parquet"
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert {number: content(number) for number in said} == said
    shutil.rmtree(kept.parent)
    assert {number: content(number) for number in said} == said


def test_what_is_accepted_is_the_baseline_from_then_on(model_dir: Path, model: str, tmp_path: Path) -> None:
    older = [night(n, 400, older=8 * (n > 5), model=model) for n in range(1, 16)]
    table = store(tmp_path / "t", night(0, 4000, model=model), *older)

    def run() -> drift.DriftRun:
        return drift.run(None, model=model_dir, predictions_dir=table, out=tmp_path / "r")

    assert run().verdict.since == day(6)
    assert drift.accept(None, predictions_dir=table, first=day(6))[1].until == day(15)
    store(table, *(night(n, 400, older=8, model=model) for n in range(16, 20)))
    after = run()
    assert (after.verdict.is_accepted, after.content()["baseline"]["from"]) == (True, "2026-01-07")
    assert after.verdict.answer != "drift"
    store(table, *(night(n, 400, model=model) for n in range(20, 24)))
    back = run()
    assert (back.verdict.answer, back.verdict.since) == ("drift", day(20))
    with pytest.raises(UsageError, match="its nights are 2026-01-01 to 2026-01-24"):
        drift.accept("town", predictions_dir=table, first=date(2030, 1, 1), until=date(2030, 2, 1))


def test_another_model_over_the_same_files_is_no_drift_and_its_change_is_what_the_rows_say(
    model_dir: Path, model: str, tmp_path: Path
) -> None:
    nights = [night(n, 4000 if n == 0 else 300) for n in range(9)]
    table = store(tmp_path / "t", *nights)
    field = nights[0].schema.get_field_index("age")
    new = [
        rows.set_column(field, rows.schema.field("age"), pa.array(rows["age"].to_numpy() * 0.9 + 1, pa.float32()))
        for rows in (night(n, 4000 if n == 0 else 300, model=model) for n in range(9))
    ]
    store(table, *new)
    done = drift.run(None, model=model_dir, predictions_dir=table, out=tmp_path / "r")
    assert done.verdict.answer == "no_drift"
    change = done.model_change
    assert change is not None
    moved = new[0]["age"].to_numpy().astype(float) - nights[0]["age"].to_numpy()
    assert (change.old, change.new, change.n_faces) == (MODEL, model, 4000)
    assert change.years == pytest.approx(moved.mean(), abs=1e-6)
    assert change.largest_years == pytest.approx(np.abs(moved).max(), abs=1e-4)
    assert change.low < change.years < change.high


def seen(spread: float, lost: int = 0, number: int = 8, model: str = MODEL) -> CanaryRun:
    at = datetime(2026, 1, 1 + number, 4, tzinfo=UTC)
    return CanaryRun(
        at=at, run_id="r", model=model, mode="detect", engine="openvino-f32", n=200, moved_years=spread / 2,
        spread_years=spread, largest_years=3 * spread, lost=lost, replaced=2,
    )  # fmt: skip


def test_canaries_that_moved_alarm_whatever_arrived(model_dir: Path, model: str, tmp_path: Path) -> None:
    table = store(tmp_path / "t", *(night(n, 4000 if n == 0 else 300, model=model) for n in range(9)))

    def told(*runs: CanaryRun, until: date | None = None) -> drift.DriftRun:
        canaries._write(table, "town", Record(runs=list(runs)))
        return drift.run(None, model=model_dir, predictions_dir=table, out=tmp_path / "r", until=until)

    calm_run, moved = seen(0.002, number=7, model=model), seen(0.4, model=model)
    quiet = told(calm_run)
    assert (quiet.verdict.answer, quiet.cause, quiet.content()["canaries"]["n"]) == ("no_drift", None, 200)
    assert any("2 canaries were gone or had changed" in note for note in quiet.verdict.notes)
    loud = told(calm_run, moved)
    assert (loud.verdict.answer, loud.cause, loud.exit_code) == ("drift", "instrument", 4)
    assert loud.verdict.headline.startswith("The instrument moved: the same 200 pictures")
    assert told(calm_run, moved, until=day(7)).cause is None
    assert told(seen(0.0, lost=20, model=model)).cause == "instrument"
    assert told().content()["canaries"] is None


def test_an_accept_takes_the_canaries_ages_as_they_are_now(tmp_path: Path) -> None:
    table = store(tmp_path / "t", night(0, 100))
    known = Canary(path="a", content_hash="0", age=30.0, last_age=31.5)
    canaries._write(table, "town", Record(canaries={"m detect": [known, Canary(path="b", content_hash="1", age=20.0)]}))
    drift.accept("town", predictions_dir=table)
    assert [canary.age for canary in canaries.read(table, "town").canaries["m detect"]] == [31.5, 20.0]


def test_the_page_draws_offline_and_agrees_with_the_verdict(model_dir: Path, model: str, tmp_path: Path) -> None:
    name = "<i>Town & sons</i>"
    nights = [night(0, 5000, model=model), night(1, 3000, older=5, refused=900, model=model)]
    table = store(tmp_path / "t", *nights, archive=name, root=tmp_path / "town")
    written = drift.run(None, model=model_dir, predictions_dir=table, out=tmp_path / "r")
    verdict = written.verdict
    drawn = "document.querySelectorAll('.js-plotly-plot .bars').length >= 6"
    page = open_page(written.html, tmp_path / "profile", tmp_path / "page.png", drawn=drawn)
    assert page.problems == []
    assert page.requests == [written.html.as_uri()]
    assert page.text.startswith(verdict.headline)
    assert name in page.text
    told = re.findall(r"Drift in column '(\w+)'\s+Data drift (not )?detected", page.text)
    assert {column: not denied for column, denied in told} == {
        column.name: column.drifted for column in verdict.columns if column.name in summaries.MEASURES
    }
    assert {"age", "refused_share"} <= drifted(verdict)
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_browser_notices_a_page_that_needs_the_network_or_breaks(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<p>here<img src='http://127.0.0.1:9/x.png'><script>throw new Error('broken')</script>")
    seen = open_page(page, tmp_path / "profile", tmp_path / "bad.png", drawn="true")
    assert seen.requests == [page.as_uri(), "http://127.0.0.1:9/x.png"]
    assert any("Network.loadingFailed" in problem for problem in seen.problems)
    assert any("broken" in problem for problem in seen.problems)


def test_a_page_without_a_verdict_claims_neither_drift_nor_its_absence(
    model_dir: Path, model: str, tmp_path: Path
) -> None:
    table = store(tmp_path / "t", night(0, 4000, model=model), night(1, 60, model=model))
    written = drift.run(None, model=model_dir, predictions_dir=table, out=tmp_path / "r")
    drawn = "document.querySelectorAll('.js-plotly-plot .bars').length >= 6"
    page = open_page(written.html, tmp_path / "profile", tmp_path / "page.png", drawn=drawn)
    assert page.problems == []
    assert page.text.startswith("Too little data")
    assert not re.search(r"drift (not )?detected", page.text, re.IGNORECASE)


def test_a_run_judges_the_only_archive_in_its_latest_mode(model_dir: Path, model: str, tmp_path: Path) -> None:
    table = store(tmp_path / "predictions", night(0, 4000, model=model))
    out = drift.run_dir(tmp_path / "reports", "town")
    done = drift.run(None, model=model_dir, predictions_dir=table, out=out)
    assert done.key == Key("town", model, "detect")
    assert done.html == out / "index.html"
    store(table, night(0, 100, model=model), archive="port")
    with pytest.raises(UsageError, match="port, town"):
        drift.run(None, model=model_dir, predictions_dir=table, out=out)
    with pytest.raises(UsageError, match=r"'villa'.*port, town"):
        drift.run("villa", model=model_dir, predictions_dir=table, out=out)
    with pytest.raises(TableError, match="crop"):
        drift.run("town", model=model_dir, predictions_dir=table, out=out, mode="crop")


def test_without_a_table_a_run_says_so(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="agewatch score"):
        drift.run(None, model=model_dir, predictions_dir=tmp_path / "none", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("archive", ["..", ".", "a/b", "../../etc", "Grün & Söhne"])
def test_a_reports_folder_stays_below_the_reports(archive: str, tmp_path: Path) -> None:
    folder = drift.run_dir(tmp_path, archive)
    assert folder.resolve().parents[1] == tmp_path.resolve()


def test_evidently_stays_out_of_the_verdict_and_sends_nothing() -> None:
    script = (
        "import sys, monitoring.verdict; assert 'evidently' not in sys.modules;"
        "import monitoring.report; from evidently.telemetry import event_logger;"
        "print(event_logger.is_enabled())"
    )
    plain = {name: value for name, value in os.environ.items() if "DO_NOT_TRACK" not in name}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=plain, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
