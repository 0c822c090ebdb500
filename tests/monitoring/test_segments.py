"""Segments: the folder that moved is named, others are not, and however many there are they are told briefly."""

import json
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from nights import day, night

from agewatch.scoring.baseline import Baseline
from monitoring import evidence, pictures, summaries
from monitoring.evidence import Means, of_means
from monitoring.segments import SHOWN, Segment
from monitoring.verdict import Verdict, judge

BASE = Baseline(day(0), day(0), is_accepted=False)


def judged(*rows: pa.Table) -> Verdict:
    return judge(summaries.of_rows(pa.concat_tables(rows)), BASE, until=day(400))


def named(verdict: Verdict) -> list[tuple[str, str]]:
    return [(part.name, part.value) for part in verdict.segments if part.drifted]


def with_camera(rows: pa.Table, camera: str | None) -> pa.Table:
    place = rows.schema.get_field_index("camera")
    return rows.set_column(place, rows.schema.field(place), pa.array([camera] * len(rows), pa.string()))


def folders(number: int, n: int, off: float = 0.0) -> list[pa.Table]:
    """A night's faces of 20 folders, of which the first is off."""
    return [night(number, n, folder=f"box {i}", older=off if i == 0 else 0, seed=1_000 * number + i) for i in range(20)]


def test_the_one_folder_that_moved_is_named_with_its_years_and_night() -> None:
    rows = [*folders(0, 200), *(part for n in range(1, 4) for part in folders(n, 20))]
    assert named(judged(*rows)) == []
    verdict = judged(*rows, *(part for n in range(4, 12) for part in folders(n, 20, off=15)))
    assert verdict.answer == "drift"
    assert named(verdict)[0] == ("folder", "box 0")
    assert not [value for name, value in named(verdict) if name == "folder" and value != "box 0"]
    first = verdict.segments[0]
    assert first.low < 15 < first.high
    assert first.n_faces == pytest.approx(160, abs=21)
    assert "faces in one folder are estimated" in verdict.headline  # it may leave the machine; a folder's name may not
    assert "box" not in verdict.headline + verdict.advice
    assert "Moved: folder box 0." in verdict.notes
    rows = pa.concat_tables([*folders(0, 20), night(1, 20, folder="box 01")])
    moved = pictures.of_what_moved(verdict, rows)  # whose cause is asked, and whose pictures are shown
    assert {path.split("/")[0] for path in moved["path"].to_pylist()} == {"box 0"}


def test_what_was_never_seen_before_is_told_and_harmless() -> None:
    old = [with_camera(night(0, 4000), "A"), with_camera(night(1, 300), "A")]
    verdict = judged(*old, with_camera(night(2, 300, captured=date(2025, 7, 1)), "B <new>"))
    assert verdict.answer != "drift"
    assert named(verdict) == []
    assert {part.value for part in verdict.segments if part.name in ("camera", "captured_month")} <= {
        "B <new>",
        "2025-07",
    }


def test_of_ten_thousand_folders_the_most_telling_are_described_and_the_rest_counted() -> None:
    verdict = judged(night(0, 30_000, folders=5_000), night(1, 30_000, folders=5_000, seed=7))
    assert len(verdict.segments) == SHOWN
    assert verdict.more_segments > 4_900


def test_refusals_of_one_kind_are_named() -> None:
    verdict = judged(night(0, 4000, refused=40), night(1, 300, refused=3), night(2, 300, refused=90))
    assert ("refusal", "unreadable") in named(verdict)
    [part] = [part for part in verdict.segments if part.name == "refusal"]
    assert (part.n_faces, part.unit) == (90, "share of files")
    assert part.effect == pytest.approx(90 / 390 - 40 / 4040, abs=0.001)


def test_folders_below_one_roof_are_told_apart_below_it() -> None:
    rows = [night(n, 600, folder=f"all/years/{year}", seed=n) for n, year in ((0, 2001), (0, 2002), (0, 2003))]
    verdict = judged(*rows, night(1, 300, folder="all/years/2002/may", seed=9))
    assert [part.value for part in verdict.segments if part.name == "folder"] == ["all/years/2002"]


def test_the_evidence_of_many_is_that_of_each() -> None:
    """Against `of_means`, which a brute-force integral holds in test_evidence."""
    rng = np.random.default_rng(4)
    sizes, none = (1, 5, 3), np.zeros(9)
    away, variances, baselines = rng.normal(0, 2, 9), rng.uniform(0.2, 2, 9), np.array([0.1, 0.5, 2.0])
    of = np.repeat(np.arange(3), sizes)
    log_e, start = evidence.last_of_many(of, away, 1 / variances, 1 / baselines, np.array([30.0, 50.0, 9.0]), 4.0)
    for number, groups in enumerate((31, 51, 10)):
        mine = of == number
        shape = none[mine]
        course = of_means(Means(0.0, baselines[number], away[mine], variances[mine], shape, shape, groups), 4.0)
        assert log_e[number] == pytest.approx(course.log_e[-1])
        assert start[number] == np.flatnonzero(mine)[0] + course.log_weight.argmax()


def test_segments_are_plain_json() -> None:
    verdict = judged(night(0, 4000), night(1, 40))
    assert verdict.segments
    for part in verdict.segments:
        assert isinstance(part, Segment)
        json.dumps([part.name, part.value, part.n_faces, part.effect, part.drifted])
