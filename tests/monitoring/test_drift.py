"""The drift verdict means what it says: arrivals are held against what was accepted, doubt is admitted, files agree."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from browser import open_page
from nights import MODEL, day, night, store

from agewatch.errors import TableError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Member, Preprocessing, Spec
from agewatch.scoring import beside, canaries
from agewatch.scoring.canaries import Canary, CanaryRun, Record
from agewatch.scoring.predictions import Key
from monitoring import drift, report
from monitoring.columns import BOUND
from monitoring.record import DriftRun
from monitoring.verdict import Verdict

ROOT = Path(__file__).parents[2]
KEYS = {
    "schema", "verdict", "headline", "cause", "cause_years", "since", "since_low", "since_high", "advice", "notes",
    "archive", "model", "mode", "baseline", "window", "evidence", "columns", "segments", "more_segments", "windows",
    "canaries",
    "model_change", "left_to_rescore", "fit", "pictures", "report", "json", "exit_code",
}  # fmt: skip


def drifted(verdict: Verdict) -> set[str]:
    return {column.name for column in verdict.columns if column.drifted}


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
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "drift.json", *(["evidently.html"] if new else []), "index.html"
    ]  # fmt: skip
    if new:
        assert content["window"]["from"] == content["windows"][-1]["from"] == "2026-01-10"
        assert content["evidence"]["value"] == content["windows"][-1]["value"]
        assert len(content["columns"]) == 10
    assert (content["cause"] is None) == (content["cause_years"] is None) == (answer != "drift")
    if answer == "drift":
        assert (content["cause"], content["cause_years"]["quality"]) == ("people", None)
        assert content["cause_years"]["people"]["low"] < 12 < content["cause_years"]["people"]["high"]
        assert content["advice"].startswith("The people: ages moved by +1")
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

    def run() -> DriftRun:
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

    def told(*runs: CanaryRun, until: date | None = None) -> DriftRun:
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
    drift.accept("town", predictions_dir=table)
    assert told(moved).cause is None, "it was accepted after that run"


def test_an_accept_takes_the_canaries_ages_as_they_are_now(tmp_path: Path) -> None:
    table = store(tmp_path / "t", night(0, 100))
    known = Canary(path="a", content_hash="0", age=30.0, last_age=31.5)
    fresh = Canary(path="b", content_hash="1", age=20.0)
    lost = Canary(path="c", content_hash="2", age=40.0, lost=True)
    canaries._write(table, "town", Record(canaries={"m detect": [known, fresh, lost]}))
    drift.accept("town", predictions_dir=table)
    assert [canary.age for canary in canaries.read(table, "town").canaries["m detect"]] == [31.5, 20.0]


def test_the_browser_notices_a_page_that_needs_the_network_or_breaks(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<p>here<img src='http://127.0.0.1:9/x.png'><script>throw new Error('broken')</script>")
    seen = open_page(page, tmp_path / "profile", tmp_path / "bad.png", drawn="true")
    assert seen.requests == [page.as_uri(), "http://127.0.0.1:9/x.png"]
    assert any("Network.loadingFailed" in problem for problem in seen.problems)
    assert any("broken" in problem for problem in seen.problems)


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
        "import sys, monitoring.drift; assert 'evidently' not in sys.modules;"
        "import monitoring.evidently_page; from evidently.telemetry import event_logger;"
        "print(event_logger.is_enabled())"
    )
    plain = {name: value for name, value in os.environ.items() if "DO_NOT_TRACK" not in name}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=plain, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
