"""A verdict -> a page anyone can open: one file, no network. Ours comes first, then Evidently's drawings."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agewatch.files import write_text
from monitoring import evidently_page, story, summaries
from monitoring.columns import ColumnDrift
from monitoring.record import DriftRun
from monitoring.segments import Segment

_LAST_WINDOWS = 30
_FIRST_SEGMENTS = 12

_templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


def write(found: DriftRun, baseline: pa.Table, current: pa.Table) -> None:
    """Write the page of a run, with drawings of rows of both sides, replaced at once. Raises OSError."""
    verdict = found.verdict
    header = _templates.get_template("report.html.jinja").render(
        verdict=verdict,
        unseen="not seen" if verdict.answer == "too_little_data" else "no",
        columns=[(column, _value(column, column.before), _value(column, column.now), _change(column))
                 for column in verdict.columns],
        segments=[(part, _change(part)) for part in verdict.segments[:_FIRST_SEGMENTS]],
        pictures=found.pictures,
        amount=story.amount,
        windows=verdict.shown[-_LAST_WINDOWS:],
        facts=_facts(found),
    )  # fmt: skip
    drawn = evidently_page.page(verdict, summaries.values(baseline), summaries.values(current))
    write_text(found.html, drawn.replace("<body>", f"<body>{header}", 1))


def _facts(found: DriftRun) -> dict[str, str]:
    verdict, key = found.verdict, found.key
    facts = {"Archive": key.archive, "Model": key.model, "Mode": key.mode}
    if verdict.baseline is not None:
        base = verdict.baseline
        facts["Baseline"] = f"{base.n_faces:,} faces, {base.first} to {base.until}"
    if verdict.windows:
        last = verdict.windows[-1].window
        facts["Last window"] = f"{last.n_faces:,} faces, {last.first} to {last.until}"
    if found.fit.fact is not None:
        facts["Estimated mean error"] = found.fit.fact
    return facts | {"Made at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}


def _value(column: ColumnDrift, value: float) -> str:
    return f"{value:.1%}" if column.unit.startswith("share") else f"{value:.3g}"


def _change(column: ColumnDrift | Segment) -> str:
    low, high = (story.signed(value, column.unit) for value in (column.low, column.high))
    return f"{story.signed(column.effect, column.unit)} ({low} to {high})"
