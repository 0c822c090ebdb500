"""The error that labels measure means what it says: it rises when it rose, and without a change it stays silent."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nights import MODEL, day, night, store

from agewatch.errors import TableError
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Member, Preprocessing, Spec
from agewatch.labelled import late
from agewatch.scoring.beside import folder_of
from agewatch.scoring.predictions import Key
from monitoring import drift, error, report

MONDAY = date(2026, 1, 5)


def errors_of(
    seed: int, weeks: int, each: int = 20, rises: int = 99, by: float = 1.6
) -> tuple[error.Floats, error.Weeks]:
    number = np.repeat(np.arange(weeks), each)
    drawn = np.random.default_rng(seed).gamma(1.3, 3.8, len(number))
    return np.where(number >= rises, by, 1.0) * drawn, number


def faces_of(errors: error.Floats, weeks: error.Weeks) -> pd.DataFrame:
    """Labelled faces of 50 years, alternately estimated too old and too young."""
    n = len(errors)
    nights = [pd.Timestamp(MONDAY + timedelta(days=7 * int(week) + place % 7)) for place, week in enumerate(weeks)]
    sides = errors * np.where(np.arange(n) % 2, 1, -1)
    return pd.DataFrame({
        "content_hash": [f"{place * 2654435761 % 2**32:08x}" for place in range(n)], "age": 50.0,
        "predicted": 50 + sides, "low": 40 + sides, "high": 60 + sides, "covered": errors <= 10,
        "path": [f"{'ab'[place % 2]}/{place}.jpg" for place in range(n)], "night": nights,
    })  # fmt: skip


def test_the_evidence_has_mean_one_where_nothing_changes_and_names_the_week_where_it_does() -> None:
    values = np.array([error.rise(*errors_of(seed, 12))[0] for seed in range(300)])
    assert values.mean() < 1 + 3 * values.std() / np.sqrt(300)
    assert (values >= 1 / error.ALPHA).mean() < error.ALPHA
    found = [error.rise(*errors_of(seed, 18, rises=10)) for seed in range(50)]
    assert np.mean([value >= 1 / error.ALPHA for value, _ in found]) > 0.8
    assert np.median([week for _, week in found]) == 10


def test_the_evidence_is_of_ranks_alone_and_of_no_order_of_labels() -> None:
    errors, weeks = errors_of(0, 15, rises=10)
    shuffled = np.random.default_rng(1).permutation(len(errors))
    assert error.rise(errors**3, weeks) == error.rise(errors, weeks)
    assert error.rise(errors[shuffled], weeks[shuffled]) == pytest.approx(error.rise(errors, weeks))


def test_smaller_errors_are_no_rise_and_one_week_can_not_tell() -> None:
    assert error.of(faces_of(*errors_of(0, 20, rises=10, by=0.4))).rose is False
    assert error.of(faces_of(*errors_of(0, 1))).rose is None


def test_after_a_rise_the_measure_is_of_what_arrived_since() -> None:
    errors, weeks = errors_of(0, 22, rises=10)
    found = error.of(faces_of(errors, weeks))
    assert found.rose
    assert found.since is not None
    assert found.before is not None
    assert abs((found.since - MONDAY).days / 7 - 10) <= 1
    later = weeks >= (found.since - MONDAY).days / 7
    assert found.mae.value == pytest.approx(errors[later].mean())
    assert found.before.value == pytest.approx(errors[~later].mean())
    assert found.before.high < found.mae.value
    accepted = error.of(faces_of(errors, weeks), MONDAY + timedelta(days=7 * 15 - 1))
    assert accepted.rose is False


def test_the_interval_holds_at_every_look() -> None:
    held = 0
    for seed in range(40):
        errors, _ = errors_of(seed, 10)
        means = [error.mean(errors[:n]) for n in (5, 20, 50, 100, 200)]
        held += all(one.low <= 1.3 * 3.8 <= one.high for one in means)
        assert means[-1].high - means[-1].low < 4
    assert held >= 38
    assert error.mean(np.array([130.0])).high <= error.MOST_YEARS + 1


def test_slices_say_how_many_errors_and_coverage_of_each_segment() -> None:
    faces = faces_of(*errors_of(0, 10))
    parts = {(part.dimension, part.value): part for part in error.of(faces).slices}
    assert {("all", "all"), ("month", "2026-01"), ("folder", "a"), ("folder", "b"), ("age", "50-59")} <= set(parts)
    a, b = parts["folder", "a"], parts["folder", "b"]
    assert (a.n, b.n) == (100, 100)
    assert a.bias < 0 < b.bias
    assert parts["all", "all"].coverage == pytest.approx(faces["covered"].mean())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    AgeModel(Spec("agewatch", "1", (Member("mobilenetv1_100", 160),), Preprocessing((0, 0, 0), (1, 1, 1))), b"").save(
        folder
    )
    return folder


def label(table: Path, rows: pa.Table, at: int, off: float, model: str) -> None:
    """Label 20 faces of a night some nights later, off by about so many years."""
    ages = np.clip(rows["age"].to_numpy()[:20] + np.random.default_rng(at).exponential(off, 20), 0, 120)
    file = table.parent / "labels.parquet"
    pq.write_table(pa.table({"path": rows["path"][:20], "age": ages}), file)
    late.add(table, Key("town", model, "detect"), file)
    kept = folder_of(table, "town") / "labels.parquet"
    every = pq.read_table(kept)
    times = [*every["added_at"].to_pylist()[:-20], *[datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(days=at)] * 20]
    pq.write_table(every.set_column(3, "added_at", pa.array(times, pa.timestamp("us", "UTC"))), kept)


def test_drift_says_that_the_error_rose_and_each_day_what_it_knew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "write", lambda *_: None)
    model_id = AgeModel.load(model).id
    nights = [night(7 * n, 4000 if n == 0 else 300, model=model_id) for n in range(20)]
    table = store(tmp_path / "t", pa.concat_tables(nights))

    def content(at: int) -> dict[str, object]:
        done = drift.run(None, model=model, predictions_dir=table, out=tmp_path / "r", until=day(at))
        return json.loads(done.json.read_text())

    assert content(140)["fit"]["measured_mae"] is None
    said = {}
    for n, rows in enumerate(nights):
        label(table, rows, 7 * n + 1, 12.0 if n >= 10 else 4.0, model_id)
        if n in (0, 9, 19):
            said[7 * n + 2] = content(7 * n + 2)
    assert {at: content(at) for at in said} == said
    first, before, after = (said[at]["fit"]["measured_mae"] for at in sorted(said))
    assert (first["rose"], before["rose"], after["rose"]) == (None, False, True)
    assert (first["n"], before["n"]) == (20, 200)
    assert before["low"] < before["value"] < before["high"] < after["value"]
    assert [said[at]["verdict"] for at in sorted(said)] == ["too_little_data", "no_drift", "drift"]
    last = said[max(said)]
    assert (last["exit_code"], last["cause"], last["since"]) == (4, None, after["since"])
    assert last["headline"].startswith(f"Error rose since {after['since']}: by ")
    assert any("By 200 labelled faces the mean error is" in note for note in said[65]["notes"])


def test_damaged_labels_are_told(tmp_path: Path) -> None:
    table = store(tmp_path / "t", night(0, 50))
    label(table, night(0, 50), 1, 4.0, MODEL)
    (folder_of(table, "town") / "labels.parquet").write_bytes(b"PAR1")
    with pytest.raises(TableError, match="labels of 'town'"):
        late.read(table, "town")
