"""Sums of nights and a baseline -> drift, no drift, or too little data to tell. A pure function.

What it rests on, and what it can't see: docs/drift.md.
"""

import math
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

import numpy as np
import pandas as pd

from agewatch.errors import REFUSAL_CODES
from agewatch.scoring.baseline import Baseline
from monitoring import columns, segments, story, windows
from monitoring.columns import BOUND, Column, ColumnDrift, Trail
from monitoring.evidence import Means
from monitoring.segments import Segment, Source
from monitoring.windows import By, Split, Window

VISIBLE_YEARS = 3.0
""""No drift" is only said where a lasting change of the mean age by so much would have been seen."""
_NOTABLE = 100.0
"""A window is notable where its own evidence, which pays for no life, passes this: without change one in 100."""
_AGES = {"age", "youngest_share", "oldest_share"}
_MOST_LOG = 690.0
"""JSON and people hold no number beyond 1e300; what passes that bound is beyond every other too."""

Answer = Literal["drift", "no_drift", "too_little_data"]


@dataclass(frozen=True, slots=True)
class WindowEvidence:
    """A window, how far its mean age lies from the baseline's (years), and the evidence at its end."""

    window: Window
    age_effect: float | None
    value: float | None
    notable: bool


@dataclass(frozen=True)
class Verdict:
    """The answer and what it rests on.

    `value` is the evidence at the end of the last window, to be held against columns.BOUND. `since`, between
    `since_low` and `since_high`, is the first night of the window in which the drift began. `more_segments` are those
    that are not described. `trail` is of the column that drifted most, else of the mean age. `visible_years` is the
    lasting change of the mean age that would have been seen by now, infinite where none, and `windows_more` after how
    many windows more one that matters will be. `arrived` are nights and faces while no baseline is full. `source` is
    where most of a drift of the ages comes from, and `refused` are the files of each window by reason.
    """

    answer: Answer
    headline: str
    advice: str
    notes: tuple[str, ...] = ()
    since: date | None = None
    since_low: date | None = None
    since_high: date | None = None
    value: float | None = None
    baseline: Window | None = None
    is_accepted: bool = False
    columns: tuple[ColumnDrift, ...] = ()
    segments: tuple[Segment, ...] = ()
    more_segments: int = 0
    windows: tuple[WindowEvidence, ...] = ()
    trail: Trail | None = None
    visible_years: float | None = None
    windows_more: int | None = None
    arrived: tuple[tuple[date, int], ...] = ()
    source: Source | None = None
    refused: tuple[tuple[str, tuple[int, ...]], ...] = ()
    months: tuple[WindowEvidence, ...] = ()

    @property
    def drifted(self) -> list[str]:
        """The names of the columns that drifted."""
        return [column.name for column in self.columns if column.drifted]

    @property
    def moved(self) -> bool:
        """Whether what arrived drifted, by a column or a segment of it."""
        return bool(self.drifted) or any(part.drifted for part in self.segments)

    @property
    def shown(self) -> tuple[WindowEvidence, ...]:
        """The windows that were asked for: of arrival, on which the answer rests, or the months of capture."""
        return self.months or self.windows


def judge(
    cells: pd.DataFrame,
    baseline: Baseline | None,
    *,
    by: By | Literal["captured-month"] = "night",
    since: date | None = None,
    until: date,
) -> Verdict:
    """Judge what arrived up to `until` (UTC date, included) against the baseline.

    `cells` are the sums of one archive, model and mode (`summaries.read`). With `since`, windows before it are left
    out. By captured month the windows are described, and the evidence is of nights.
    """
    is_ahead = cells["night"] > pd.Timestamp(until)
    ahead = cells[is_ahead]
    notes = (story.ahead(int(ahead["faces"].sum()), ahead["night"].max().date(), until),) if len(ahead) else ()
    cells = cells[~is_ahead] if len(ahead) else cells
    if baseline is None:
        faces = cells.groupby(cells["night"].dt.date)["faces"].sum()
        arrived = tuple((night, int(n)) for night, n in zip(faces.index, faces, strict=True))
        return Verdict("too_little_data", *story.no_baseline(arrived), notes, arrived=arrived)
    divided = windows.split(cells, baseline, "night" if by == "captured-month" else by, since)
    if divided.baseline is None or not divided.baseline.n_faces:
        return Verdict("too_little_data", *story.empty_baseline(baseline), notes)
    known = Verdict(
        "too_little_data",
        *story.nothing_new(divided),
        (*notes, *story.notes(divided)),
        baseline=divided.baseline,
        is_accepted=baseline.is_accepted,
    )
    found = _judged(divided, known) if divided.windows else known
    if by != "captured-month":
        return found
    months = windows.captured_months(cells, baseline)
    return replace(found, months=tuple(WindowEvidence(window, apart, None, False) for window, apart in months))


def _judged(divided: Split, known: Verdict) -> Verdict:
    judged, left_out = columns.of_split(divided)
    if not judged:
        return known
    drifts = [columns.drift(column) for column in judged]
    shown = replace(
        known,
        notes=(*known.notes, *story.left_out(left_out)),
        columns=tuple(drifts),
        windows=_windows(divided, judged),
    )
    drifted = [column for column, drift in zip(judged, drifts, strict=True) if drift.drifted]
    strongest = max(drifted, key=lambda column: float(column.course.log_e[-1]) - column.log_bound, default=None)
    spans = columns.since(strongest.course) if strongest else None
    parts, more = segments.of_split(divided, spans[1] if spans else len(divided.windows) - 1, bool(spans))
    most = max([math.log(shown.windows[-1].value or 1), *(part.log_evidence + math.log(BOUND) for part in parts)])
    trailed = strongest or next((column for column in judged if column.name == "age"), judged[0])
    shown = replace(
        shown, segments=tuple(parts), more_segments=more, value=math.exp(min(most, _MOST_LOG)),
        trail=columns.trail(trailed), visible_years=columns.visible_ages(divided)[1],
        refused=_refused(divided),
    )  # fmt: skip
    moved = [drift for drift in drifts if drift.drifted]
    moved.sort(key=lambda drift: strongest is None or drift.name != strongest.name)
    moved_parts = [part for part in parts if part.drifted]
    if not moved and not moved_parts:
        return _calm(shown, divided)
    low, first, high = (divided.windows[n].first for n in spans or (moved_parts[0].since,) * 3)
    headline, advice = story.drift(moved, moved_parts, first)
    notes = (*shown.notes, *story.places(moved_parts))
    measure = "age" if _AGES & {drift.name for drift in moved} else trailed.name
    if spans and measure in windows.TRACED:
        shown = replace(shown, source=segments.source(divided, spans[1], measure))
    shown = replace(shown, answer="drift", headline=headline, advice=advice, notes=notes)
    return replace(shown, since=first, since_low=low, since_high=high)


def _calm(shown: Verdict, divided: Split) -> Verdict:
    """No drift, where one that matters would have been seen."""
    _, by_now, ever = columns.visible_ages(divided)
    if by_now <= VISIBLE_YEARS:
        headline, advice = story.calm(divided, max(by_now, columns.MATERIAL["age"]))
        return replace(shown, answer="no_drift", headline=headline, advice=advice)
    ages = columns.ages(divided)
    more = columns.windows_until(divided, VISIBLE_YEARS) if ever <= VISIBLE_YEARS else None
    apart = 0.0 if ages is None else ages.apart
    headline, advice = story.too_little(divided, by_now, ever, VISIBLE_YEARS, apart, more)
    return replace(shown, headline=headline, advice=advice, windows_more=more)


def _windows(divided: Split, judged: list[Column]) -> tuple[WindowEvidence, ...]:
    parts = np.array([[column.part] for column in judged])
    logs, alone = (
        np.log(parts) + [getattr(column.course, name) for column in judged] for name in ("log_e", "log_alone")
    )
    value, is_notable = np.exp(np.minimum(logs.max(axis=0), _MOST_LOG)), alone.max(axis=0) >= math.log(_NOTABLE)
    ages = next((column.data for column in judged if column.name == "age"), None)
    return tuple(
        WindowEvidence(window, _age_effect(ages, number), float(value[number]), bool(is_notable[number]))
        for number, window in enumerate(divided.windows)
    )


def _refused(divided: Split) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The reasons for which files were refused after the baseline, each with its files by window."""
    cells, size = divided.cells[divided.cells["window"] >= 0], len(divided.windows)
    counts = {code: np.bincount(cells["window"].astype(int), cells[code], size) for code in REFUSAL_CODES}
    return tuple((code, tuple(int(n) for n in files)) for code, files in counts.items() if files.any())


def _age_effect(ages: object, number: int) -> float | None:
    if not isinstance(ages, Means) or not np.isfinite(ages.variances[number]):
        return None
    return float(ages.windows[number] - ages.baseline)
