"""A drift run -> a page anyone can open: one file, no network; what Evidently draws lies beside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from markupsafe import Markup

from monitoring import first_screen, plots, story, summaries
from monitoring.columns import ColumnDrift
from monitoring.evidence import Floats
from monitoring.fit import Estimate
from monitoring.page import rendered, script, write_page
from monitoring.record import DriftRun
from monitoring.segments import Segment

EVIDENTLY = "evidently.html"
"""Beside the page: Evidently's drawings, opened only when they are wanted, as they are larger than all the rest."""
_LAST_WINDOWS = 30
_FIRST_SEGMENTS = 12
_KINDS = {
    "captured_month": "captured",
    "captured_year": "captured",
    "face_size": "faces",
    "age_band": "aged",
    "refusal": "refused:",
}


@dataclass(frozen=True)
class Seen:
    """What is drawn beside the verdict: rows of the baseline and of now, and the model's reference rows, if it has any.

    `faces` are JPEGs, one for each of the run's pictures, None where one is gone; no tuple at all where none may be
    shown. `index` is the way to the page of all reports.
    """

    before: pa.Table
    now: pa.Table
    reference: pd.DataFrame | None
    faces: tuple[bytes | None, ...] | None = None
    index: str | None = None


def write(found: DriftRun, seen: Seen, project: Path | None = None) -> None:
    """Write the page of a run, and Evidently's beside it, each replaced at once and its user's alone.

    What Evidently draws is also kept in its `project`, a folder of a workspace. Raises OSError.
    """
    before, now = summaries.values(seen.before), summaries.values(seen.now)
    both = [name for name in before if name in now]
    if both:
        from monitoring import evidently_page  # takes seconds to import, and a first night has no use for it

        drawn = evidently_page.draw(found.verdict, before, now)
        write_page(found.html.with_name(EVIDENTLY), evidently_page.page(drawn))
        if project is not None:
            evidently_page.keep(drawn, project, found.key.archive)
    write_page(found.html, _page(found, seen, before, now, has_evidently=bool(both)))


def _page(
    found: DriftRun, seen: Seen, before: dict[str, Floats], now: dict[str, Floats], *, has_evidently: bool
) -> str:
    verdict = found.verdict
    faces: Sequence[bytes | None] = seen.faces or [None] * len(found.pictures)
    return rendered(
        "report.html.jinja",
        archive=found.key.archive,
        screen=first_screen.of_run(found),
        verdict=verdict,
        why=found.why.sentence if found.why is not None and found.cause not in ("people", "instrument") else None,
        hero=_hero(found),
        drawings=_drawings(found, seen, before, now),
        unseen="not seen" if verdict.answer == "too_little_data" else "no",
        reference=seen.reference is not None,
        columns=[(column, _value(column, column.before), _value(column, column.now), story.change(column),
                  story.amount(column.threshold, column.unit)) for column in verdict.columns],
        segments=[(word(part), part, story.change(part)) for part in verdict.segments[:_FIRST_SEGMENTS]],
        pictures=[(picture, face and _uri(face)) for picture, face in zip(found.pictures, faces, strict=True)],
        with_faces=seen.faces is not None,
        windows=verdict.shown[-_LAST_WINDOWS:],
        canaries=found.instrument and found.instrument.run,
        change=found.model_change,
        fit=found.fit.fact,
        facts=_facts(found),
        **script("report.js"),
        evidently=EVIDENTLY if has_evidently else None,
        index=seen.index,
    )  # fmt: skip


def _hero(found: DriftRun) -> tuple[str, Markup] | None:
    """The one drawing of the first screen, and what it is of."""
    verdict = found.verdict
    if found.cause == "instrument" and found.instrument is not None:
        return "The same pictures, estimated again in each run: mean change (years)", plots.canaries(found.instrument)
    if verdict.arrived:
        return "Faces that have arrived so far", plots.filling(verdict)
    drawn = plots.trail(verdict)
    return None if drawn is None or verdict.trail is None else (plots.heading(verdict.trail), drawn)


def _drawings(
    found: DriftRun, seen: Seen, before: dict[str, Floats], now: dict[str, Floats]
) -> dict[str, Markup | None]:
    """The other drawings by name, None where there is nothing to draw."""
    verdict, none = found.verdict, np.array([])
    reference = none if seen.reference is None else seen.reference["age"].to_numpy(np.float64)
    mae = None if found.error is None else found.error.mae
    measured = None if mae is None else Estimate(mae.value, mae.low, mae.high)
    is_instrument = found.cause == "instrument"  # then it is drawn on the first screen
    return {
        "evidence": plots.evidence(verdict),
        "columns": plots.columns(verdict.columns) if verdict.columns else None,
        "ages": plots.ages(before.get("age", none), now.get("age", none), reference),
        "segments": plots.segments(verdict.segments, word),
        "canaries": plots.canaries(found.instrument) if found.instrument and not is_instrument else None,
        "errors": plots.errors(found.fit.estimated_mae, measured),
        "refused": plots.refused(verdict),
    }


def word(part: Segment) -> str:
    """A part of the archive in a few words."""
    return f"{_KINDS.get(part.name, part.name)} {part.value}"


def _facts(found: DriftRun) -> dict[str, str]:
    verdict, key = found.verdict, found.key
    facts = {"Model": key.model, "Mode": key.mode}
    if verdict.baseline is not None:
        base = verdict.baseline
        facts["Accepted"] = f"{base.n_faces:,} faces, {base.first} to {base.until}"
    if verdict.windows:
        last = verdict.windows[-1].window
        facts["Last night"] = (
            f"{last.n_faces:,} faces, {last.first}{f' to {last.until}' if last.until != last.first else ''}"
        )
    return facts | {"Made at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}


def _uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _value(column: ColumnDrift, value: float) -> str:
    return f"{value:.1%}" if column.unit.startswith("share") else f"{value:.3g}"
