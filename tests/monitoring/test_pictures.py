"""The pictures that moved an archive most are those that are new in it, and are still there."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from nights import day, night

from agewatch.scoring import predictions
from agewatch.scoring.baseline import Baseline
from monitoring import pictures, summaries
from monitoring.verdict import Verdict, judge

BASE = Baseline(day(0), day(0), is_accepted=False)
OLD, NEW = night(0, 4000), night(1, 400)


def with_ages(rows: pa.Table, ages: np.ndarray, wanted: np.ndarray) -> pa.Table:
    place = rows.schema.get_field_index("age")
    values = np.where(wanted, ages, rows["age"].to_numpy())
    return rows.set_column(place, predictions.SCHEMA.field("age"), pa.array(values, pa.float32()))


def judged(now: pa.Table) -> Verdict:
    return judge(summaries.of_rows(pa.concat_tables([OLD, now])), BASE, until=day(9))


def test_the_faces_that_are_new_come_before_the_oldest() -> None:
    """A quarter of the new faces are 60 years old; some of 90 were always there."""
    is_new = np.arange(400) % 4 == 0
    now = with_ages(NEW, np.full(400, 60.0), is_new)
    verdict = judged(now)
    assert verdict.answer == "drift"
    found = pictures.that_moved(verdict, OLD, now)
    assert len(found) == pictures.MOST
    new_paths = {path for path, flag in zip(now["path"].to_pylist(), is_new, strict=True) if flag}
    assert sum(picture.path in new_paths for picture in found) >= 20
    assert found[0].why.startswith("estimated 6")
    assert found[0].why.endswith("above the accepted mean")


def test_files_that_are_gone_and_archives_that_did_not_move_are_not_shown() -> None:
    now = with_ages(NEW, np.full(400, 75.0), np.ones(400, bool))
    verdict = judged(now)
    gone = pa.array([1 if n < 390 else None for n in range(400)], pa.timestamp("us", tz="UTC"))
    now = now.set_column(now.schema.get_field_index("gone_at"), "gone_at", gone)
    found = pictures.that_moved(verdict, OLD, now)
    assert {picture.path for picture in found} == set(now["path"].to_pylist()[390:])
    assert pictures.that_moved(replace(verdict, answer="no_drift"), OLD, now) == []


def test_faces_of_another_darkness_are_shown_where_brightness_moved() -> None:
    place = NEW.schema.get_field_index("brightness")
    dark = pa.array(np.where(np.arange(400) < 200, 0.05, NEW["brightness"].to_numpy()), pa.float32())
    now = NEW.set_column(place, predictions.SCHEMA.field("brightness"), dark)
    found = pictures.that_moved(judged(now), OLD, now)
    assert {picture.path for picture in found} <= set(now.filter(pc.less(now["brightness"], 0.06))["path"].to_pylist())
    assert "brightness 0.05" in found[0].why
