"""The error to expect is told where the model's reference knows such faces, with an honest band, and nowhere else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import tiny_model
from nights import night, store

from agewatch.estimator.model import AgeModel
from monitoring import drift
from monitoring.fit import Fit, fit, reference
from monitoring.record import DriftRun

Ages = tuple[float, float]
Table = pd.DataFrame


def faces(n: int, seed: int, *, source: str = "a", ages: Ages = (0, 80), worse: float = 1, sharper: float = 0) -> Table:
    """Faces whose error grows with their age, of which the interval's width tells half."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(*ages, n)
    size = 1 + true / 10
    age = true + rng.normal(0, size * worse)
    half = size * rng.uniform(0.8, 1.2, n)
    known = {
        "archive": source, "status": "ok", "mode": "detect", "age_true": true, "age": age, "age_low": age - half,
        "age_high": age + half, "brightness": rng.normal(0.5, 0.1, n), "contrast": rng.normal(0.2, 0.03, n),
        "sharpness": 2 ** rng.normal(-11 + sharper, 1, n), "box_w": 80 + rng.normal(0, 2, n), "box_h": 100.0,
    }  # fmt: skip
    return pd.DataFrame(known)


KNOWN = pd.concat([faces(800, 1), faces(800, 2, source="b")], ignore_index=True)


def mae(rows: Table) -> float:
    return float((rows["age"] - rows["age_true"]).abs().mean())


def filled(rows: pa.Table, name: str, value: float | str) -> pa.Table:
    field = rows.schema.field(name)
    return rows.set_column(rows.schema.get_field_index(name), field, pa.array([value] * len(rows), field.type))


def said(known: Table | None, rows: Table) -> Fit:
    """What is said without the truth, the same twice."""
    blind = rows.drop(columns="age_true")
    found = fit(known, blind)
    assert found == fit(known, blind)
    return found


@pytest.mark.parametrize("ages", [(0, 80), (0, 12), (45, 80)], ids=["all", "children", "older"])
def test_the_error_of_other_people_is_told_without_their_ages(ages: Ages) -> None:
    rows = faces(1_000, 3, ages=ages)
    found = said(KNOWN, rows)
    assert found.estimated_mae is not None
    assert found.covered
    assert found.estimated_mae.value == pytest.approx(mae(rows), rel=0.1)
    assert found.estimated_mae.low < mae(rows) < found.estimated_mae.high
    assert found.notes == ()


@pytest.mark.parametrize(
    "changed",
    [{"brightness": 0.05}, {"sharpness": 2.0**-3}, {"box_w": 130.0}, {"age": 110.0}, {"contrast": np.nan}],
    ids=["dark", "sharp", "wide", "old", "unknown"],
)
def test_of_faces_that_the_reference_does_not_hold_nothing_is_said(changed: dict[str, float]) -> None:
    rows = faces(400, 4)
    found = said(KNOWN, rows.assign(**changed))
    assert (found.covered, found.estimated_mae, found.fact) == (False, None, "can't say")
    assert "not guaranteed here" in found.notes[0]
    few = rows.copy()
    few.loc[:20, list(changed)] = list(changed.values())
    assert said(KNOWN, few).covered, "one face in twenty decides nothing"


def test_faces_like_those_of_one_source_have_its_error() -> None:
    sharp = faces(400, 5, source="c", worse=2, sharper=4)
    known = pd.concat([KNOWN, sharp], ignore_index=True)
    for rows in (faces(400, 6), faces(400, 7, worse=2, sharper=4)):
        found = said(known, rows)
        assert found.estimated_mae is not None
        assert found.estimated_mae.value == pytest.approx(mae(rows), rel=0.15)


def test_the_band_is_as_wide_as_sources_differ_in_what_no_face_shows() -> None:
    rows = faces(3_000, 8)
    worse = pd.concat([faces(800, 1), faces(800, 2, source="b", worse=1.8)], ignore_index=True)
    one, other = said(KNOWN, rows).estimated_mae, said(worse, rows).estimated_mae
    assert one is not None
    assert other is not None
    assert 1.1 < one.high / one.value < 1.5 < other.high / other.value
    assert other.low < mae(rows) < other.high


def test_without_a_reference_or_with_few_faces_nothing_is_known(tmp_path: Path) -> None:
    assert reference(tiny_model(tmp_path / "model"), "detect") is None
    assert said(None, faces(100, 9)) == said(KNOWN[:100], faces(100, 9)) == said(KNOWN, faces(10, 9)) == Fit()
    assert Fit().fact is None


def test_a_report_says_the_error_to_expect_of_what_arrived(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    model = AgeModel.load(folder).id

    def boxed(number: int, n: int, *, older: float = 0) -> pa.Table:
        rows = night(number, n, model=model, older=older)
        return filled(filled(rows, "box_w", 90.0), "box_h", 90.0)

    known = boxed(99, 1_000)
    off = np.random.default_rng(0).normal(0, 5, 1_000)
    known = known.append_column("age_true", pa.array(known["age"].to_numpy() + off, pa.float32()))
    crops = filled(known, "mode", "crop")
    table = store(tmp_path / "t", boxed(0, 2_500), boxed(1, 300))

    def run(rows: pa.Table) -> DriftRun:
        pq.write_table(rows, folder / "reference.parquet")
        return drift.run(None, model=folder, predictions_dir=table, out=tmp_path / "r")

    told = run(pa.concat_tables([known, crops.slice(0, 500)]))
    content = told.content()["fit"]
    assert (content["covered"], content["measured_mae"]) == (True, None)
    assert content["estimated_mae"]["low"] < np.abs(off).mean() < content["estimated_mae"]["high"]
    assert content["estimated_mae"]["value"] == pytest.approx(np.abs(off).mean(), rel=0.1)
    assert "Mean error to expect of these faces" in told.html.read_text()
    assert run(crops).content()["fit"] == {"estimated_mae": None, "measured_mae": None, "covered": None}
    unlike = run(filled(known, "brightness", 0.0))
    assert unlike.content()["fit"]["covered"] is False
    assert "not guaranteed here" in unlike.html.read_text()
