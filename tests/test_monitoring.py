"""The drift verdict means what it says: few false alarms, real shifts found, doubt admitted, files agree."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import open_page
from scipy.stats import wasserstein_distance

from agewatch.errors import ModelError, TableError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Member, Preprocessing, Spec
from agewatch.scoring import predictions
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer
from monitoring import drift
from monitoring.verdict import ColumnDrift, Verdict, _Noise, judge, measures

ROOT = Path(__file__).parents[1]
MEASURES = {"age", "age_interval", "face_score", "brightness", "contrast", "sharpness"}
MODEL = "agewatch-1@0123456789ab"


def rows(
    n: int,
    seed: int,
    *,
    older: float = 0,
    refused: int = 0,
    no_face: int = 0,
    mode: str = "detect",
    model: str = MODEL,
) -> pa.Table:
    """A predictions table with one file each: n faces of one population, then refused and faceless files."""
    rng = np.random.default_rng(seed)
    age, half = rng.gamma(4, 9, n) + older, rng.normal(10, 1.5, n)
    drawn = {
        "age": age, "age_low": age - half, "age_high": age + half,
        "face_score": None if mode == "crop" else rng.beta(9, 1, n),
        "brightness": rng.beta(5, 5, n), "contrast": rng.beta(5, 15, n), "sharpness": rng.gamma(1, 0.02, n),
    }  # fmt: skip
    status = ["ok"] * n + ["unreadable"] * refused + ["no_face"] * no_face
    total, rest = len(status), [None] * (refused + no_face)
    now = datetime(2026, 1, 2, tzinfo=UTC)
    known = {
        "archive": ["town"] * total, "path": [f"{i}.jpg" for i in range(total)], "status": status,
        "face": [0] * n + rest, "model": [model] * total, "mode": [mode] * total,
        "engine": ["torch-f32"] * total, "run_id": ["r"] * total, "scored_at": [now] * total,
        "bytes": [1] * total, "mtime_ns": [1] * total,
    }  # fmt: skip
    known |= {name: [*values, *rest] for name, values in drawn.items() if values is not None}
    columns = [pa.array(known.get(field.name, [None] * total), field.type) for field in predictions.SCHEMA]
    return pa.table(columns, schema=predictions.SCHEMA)


def column(verdict: Verdict, name: str) -> ColumnDrift:
    return next(column for column in verdict.columns if column.name == name)


def drifted(verdict: Verdict) -> set[str]:
    return {column.name for column in verdict.columns if column.drifted}


@pytest.mark.parametrize("n", [50, 1000])
def test_the_threshold_is_what_two_draws_from_one_reference_differ_by(n: int) -> None:
    """Against an oracle: the distances of 1,500 pairs of resamples, by SciPy, and their nine tenths' quantile."""
    ages = measures(rows(800, 1))["age"]
    random = np.random.default_rng(2)
    apart = [wasserstein_distance(random.choice(ages, 800), random.choice(ages, n)) for _ in range(1500)]
    assert _Noise(0.1, seed=0).threshold(ages, n) == pytest.approx(np.quantile(apart, 0.9), rel=0.06)


def test_a_year_is_found_among_many_faces() -> None:
    verdict = judge(rows(20_000, 1), rows(20_000, 2, older=1))
    assert verdict.verdict == "drift"
    assert drifted(verdict) == {"age"}
    assert column(verdict, "age").distance == pytest.approx(1, abs=0.4)
    assert verdict.reason.startswith("age moved by ")
    assert judge(rows(20_000, 1), rows(20_000, 2)).verdict == "no_drift"


def test_a_shift_too_small_to_matter_is_no_drift_however_many_faces_show_it() -> None:
    verdict = judge(rows(200_000, 1), rows(200_000, 2, older=0.3))
    age = column(verdict, "age")
    assert age.distance == pytest.approx(0.3, abs=0.1)
    assert (age.threshold, verdict.verdict) == (0.5, "no_drift")


def test_an_outlier_does_not_hide_a_shift() -> None:
    current = rows(1000, 2, older=8)
    ages = [1e6, *current["age"].to_pylist()[1:]]
    place = current.schema.get_field_index("age")
    verdict = judge(rows(1000, 1), current.set_column(place, "age", pa.array(ages, pa.float32())))
    assert column(verdict, "age").drifted
    assert column(verdict, "age").threshold < 4


def test_few_faces_are_too_little_data_and_the_reason_says_how_many_would_do() -> None:
    for n in (0, 12, 60):
        verdict = judge(rows(2000, 1), rows(n, 2))
        assert verdict.verdict == "too_little_data"
        assert verdict.n_current == n
    found = re.search(r"about (\d+) faces would do", verdict.reason)
    assert found
    assert judge(rows(2000, 1), rows(2 * int(found[1]), 2)).verdict == "no_drift"
    assert not MEASURES & {column.name for column in judge(rows(2000, 1), rows(12, 2, older=50)).columns}


def test_no_number_of_faces_helps_against_a_small_reference() -> None:
    verdict = judge(rows(100, 1), rows(20_000, 2))
    assert verdict.verdict == "too_little_data"
    assert "the reference is too small" in verdict.reason


def test_refused_files_are_drift_though_the_ages_are_the_same() -> None:
    verdict = judge(rows(2000, 1), rows(1400, 2, refused=600))
    assert drifted(verdict) == {"refused_share"}
    assert column(verdict, "refused_share").distance == pytest.approx(0.3)
    assert "30.0 percentage points" in verdict.reason
    assert judge(rows(2000, 1), rows(0, 2, refused=40)).verdict == "drift"


def test_one_refused_file_in_a_small_folder_and_a_share_within_the_budget_are_no_drift() -> None:
    assert not drifted(judge(rows(2000, 1), rows(2, 2, refused=1)))
    assert not drifted(judge(rows(2000, 1), rows(9_600, 2, refused=400)))


def test_each_refused_file_counts_once_however_many_faces_others_have() -> None:
    crowded = rows(3000, 2, refused=1000)
    paths = [f"{i // 3}.jpg" for i in range(3000)] + [f"torn{i}.jpg" for i in range(1000)]
    crowded = crowded.set_column(crowded.schema.get_field_index("path"), "path", pa.array(paths))
    assert column(judge(rows(2000, 1), crowded), "refused_share").distance == pytest.approx(0.5)


def test_files_without_a_face_are_no_drift() -> None:
    assert judge(rows(2000, 1), rows(2000, 2, no_face=2000)).verdict == "no_drift"


@pytest.mark.parametrize(("reference", "current"), [("crop", "crop"), ("crop", "detect"), ("detect", "crop")])
def test_without_a_detector_on_both_sides_its_columns_are_not_judged(reference: str, current: str) -> None:
    verdict = judge(rows(2000, 1, mode=reference), rows(2000, 2, mode=current))
    assert {column.name for column in verdict.columns} == MEASURES - {"face_score"} | {"refused_share"}
    assert verdict.verdict == "no_drift"
    assert verdict.reason.endswith("face_score.")


@pytest.mark.parametrize(
    ("current", "answer", "exit_code"),
    [
        (rows(1500, 2), "no_drift", 0),
        (rows(1500, 2, older=9), "drift", 4),
        (rows(20, 2), "too_little_data", 5),
    ],
    ids=["no_drift", "drift", "too_little_data"],
)
def test_the_json_keeps_its_contract(current: pa.Table, answer: str, exit_code: int, tmp_path: Path) -> None:
    reference = rows(1500, 1)
    written = drift.report_on(Key("town", MODEL, "detect"), reference, current, tmp_path / "new")
    verdict = written.verdict
    content = json.loads(written.json.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))
    assert set(content) == {
        "verdict", "reason", "archive", "model", "mode", "n_reference", "n_current", "columns", "report",
        "json", "exit_code",
    }  # fmt: skip
    assert (content["verdict"], content["exit_code"]) == (answer, exit_code)
    assert (content["n_reference"], content["n_current"]) == (1500, verdict.n_current)
    assert [ColumnDrift(**entry) for entry in content["columns"]] == list(verdict.columns)
    assert (content["report"], content["json"]) == (str(written.html), str(written.json))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["drift.json", "index.html"]


def test_the_page_draws_offline_and_agrees_with_the_verdict(tmp_path: Path) -> None:
    reference, current = rows(5000, 1), rows(30_000, 2, older=5, refused=9_000)
    verdict = judge(reference, current)
    name = "<i>Town & sons</i>"
    written = drift.report_on(Key(name, MODEL, "detect"), reference, current, tmp_path / "r")
    verdict = written.verdict
    drawn = "document.querySelectorAll('.js-plotly-plot .bars').length >= 6"
    page = open_page(written.html, tmp_path / "profile", tmp_path / "page.png", drawn=drawn)
    assert page.problems == []
    assert page.requests == [written.html.as_uri()]
    assert page.text.startswith("Drift found")
    assert verdict.reason in page.text
    assert name in page.text
    told = re.findall(r"Drift in column '(\w+)'\s+Data drift (not )?detected", page.text)
    assert {column: not denied for column, denied in told} == {
        column.name: column.drifted for column in verdict.columns if column.name in MEASURES
    }
    assert drifted(verdict) == {"age", "refused_share"}
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_browser_notices_a_page_that_needs_the_network_or_breaks(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<p>here<img src='http://127.0.0.1:9/x.png'><script>throw new Error('broken')</script>")
    seen = open_page(page, tmp_path / "profile", tmp_path / "bad.png", drawn="true")
    assert seen.requests == [page.as_uri(), "http://127.0.0.1:9/x.png"]
    assert any("Network.loadingFailed" in problem for problem in seen.problems)
    assert any("broken" in problem for problem in seen.problems)


def test_a_page_without_a_verdict_claims_neither_drift_nor_its_absence(tmp_path: Path) -> None:
    reference, current = rows(1000, 1), rows(60, 2)
    written = drift.report_on(Key("town", MODEL, "detect"), reference, current, tmp_path / "r")
    drawn = "document.querySelectorAll('.js-plotly-plot .bars').length >= 6"
    page = open_page(written.html, tmp_path / "profile", tmp_path / "page.png", drawn=drawn)
    assert page.problems == []
    assert page.text.startswith("Too little data for a verdict")
    assert not re.search(r"drift (not )?detected", page.text, re.IGNORECASE)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """An unpacked model whose reference rows hold 1,500 faces in mode detect and 40 older ones in crop."""
    folder = tmp_path / "model"
    folder.mkdir()
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    AgeModel(Spec("agewatch", "1", (Member("mobilenetv1_100", 160),), preprocessing), b"weights").save(folder)
    reference = pa.concat_tables([rows(1500, 1), rows(40, 1, mode="crop", older=40)])
    age_true = pa.array(reference["age"].to_numpy(), pa.float32())
    pq.write_table(reference.append_column("age_true", age_true), folder / "reference.parquet")
    return folder


def store(table_dir: Path, archive: str, table: pa.Table) -> None:
    model, mode = table["model"][0].as_py(), table["mode"][0].as_py()
    writer = Writer(table_dir, Key(archive, model, mode), root=table_dir / archive)
    writer.write([{**row, "archive": archive} for row in table.to_pylist()])


def test_a_run_compares_the_only_archive_in_its_latest_mode_with_the_models_reference(
    model_dir: Path, tmp_path: Path
) -> None:
    model, table_dir = AgeModel.load(model_dir).id, tmp_path / "predictions"
    store(table_dir, "town", rows(1200, 2, model=model))
    store(table_dir, "town", rows(300, 3, older=30))
    out = drift.run_dir(tmp_path / "reports", "town")
    done = drift.run(None, model=model_dir, predictions_dir=table_dir, out=out)
    assert (done.key.archive, done.key.model, done.key.mode) == ("town", model, "detect")
    assert (done.verdict.verdict, done.verdict.n_reference, done.verdict.n_current) == (
        "no_drift",
        1500,
        1200,
    )
    assert done.html == out / "index.html"
    assert json.loads((out / "drift.json").read_text())["model"] == model

    store(table_dir, "port", rows(1200, 4, older=9, model=model))
    found = drift.run("port", model=model_dir, predictions_dir=table_dir, out=out)
    assert found.verdict.verdict == "drift"
    with pytest.raises(UsageError, match="port, town"):
        drift.run(None, model=model_dir, predictions_dir=table_dir, out=out)
    with pytest.raises(UsageError, match=r"'villa'.*port, town"):
        drift.run("villa", model=model_dir, predictions_dir=table_dir, out=out)
    with pytest.raises(TableError, match="crop"):
        drift.run("town", model=model_dir, predictions_dir=table_dir, out=out, mode="crop")


def test_without_a_table_a_run_says_so(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="agewatch score"):
        drift.run(None, model=model_dir, predictions_dir=tmp_path / "none", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reading_the_reference_starts_no_thread(model_dir: Path, tmp_path: Path) -> None:
    """One that calls Python while a run ends at once aborts it now and then."""
    script = (
        "import sys; from pathlib import Path; import psutil\n"
        "from monitoring import drift\n"
        "before = psutil.Process().num_threads()\n"
        "print(len(drift._reference(Path(sys.argv[1]))), psutil.Process().num_threads() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, model_dir], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1540", "0"]


@pytest.mark.parametrize("place", [10, -10])
def test_damaged_reference_rows_are_a_model_error(model_dir: Path, place: int) -> None:
    file = model_dir / "reference.parquet"
    content = bytearray(file.read_bytes())
    content[place:] = bytes(200) + content[place:][200:]
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"reference rows of .* are damaged"):
        drift._reference(model_dir)


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
