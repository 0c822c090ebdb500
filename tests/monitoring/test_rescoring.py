"""Drift while an archive is scored anew by a new model: the verdict goes on, on what that model has scored."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from models import tiny_model
from nights import day, night, store

from agewatch.estimator.model import AgeModel
from agewatch.release.package import package
from agewatch.scoring import predictions
from monitoring import drift


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return package(tiny_model(folder / "run"), version="2", store=folder / "store")


def judged(table: Path, mar: Path) -> drift.DriftRun:
    return drift.run("town", model=mar, predictions_dir=table, out=table.parent / "report", until=day(40))


def test_the_verdict_goes_on_with_the_baseline_and_whole_nights_of_the_new_model(tmp_path: Path, mar: Path) -> None:
    new = AgeModel.load(mar).id
    table = store(tmp_path / "table", *(night(number, 2400 if number == 0 else 300) for number in range(6)))
    anew = night(0, 2400, model=new)
    store(table, anew.slice(0, 1000))  # a night that was killed
    found = judged(table, mar)
    assert found.verdict.answer == "too_little_data"
    assert found.verdict.headline.startswith("Too little data: 1,400 files of the baseline still stand by agewatch-1@")

    store(table, anew.slice(1000), night(5, 300, model=new), night(4, 300, model=new, older=40).slice(0, 90))
    store(table, night(6, 3000, model=new))
    found = judged(table, mar)
    assert found.verdict.answer == "no_drift", "half a night, however odd, is not judged"
    assert [one.window.first for one in found.verdict.windows] == [day(5), day(6)]
    assert found.left_to_rescore == found.content()["left_to_rescore"] == 3 * 300 + 210
    assert any("1,110 files that arrived from 2026-01-02 to 2026-01-05 still" in note for note in found.verdict.notes)
    assert found.model_change is not None
    assert (found.model_change.n_faces, found.model_change.years) == (2400, 0)

    store(table, *(night(number, 300, model=new, older=12) for number in range(7, 9)))
    found = judged(table, mar)
    assert (found.verdict.answer, found.verdict.since) == ("drift", day(7))


def test_a_baseline_that_lost_files_is_not_filled_up_with_later_nights(tmp_path: Path, mar: Path) -> None:
    new = AgeModel.load(mar).id
    table = store(tmp_path / "table", night(0, 2100), night(1, 900))
    gone = night(0, 2100).slice(0, 300)  # they can't be scored anew
    place = gone.schema.get_field_index("gone_at")
    gone = gone.set_column(place, gone.schema.field("gone_at"), gone["arrived_at"])
    held = predictions.read(table)
    kept = held.filter(pa.compute.invert(pa.compute.is_in(held["path"], gone["path"])))
    write_deltalake(table, pa.concat_tables([kept, gone]), mode="overwrite")
    store(table, night(0, 2100, model=new).slice(300), night(1, 900, model=new))
    found = judged(table, mar)
    assert found.left_to_rescore == 0
    assert found.verdict.baseline is not None
    assert (found.verdict.baseline.until, found.verdict.baseline.n_faces) == (day(0), 1800)
