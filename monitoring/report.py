"""A verdict -> a page anyone can open (`index.html`, one file, no network) and `drift.json` for machines."""

import html
import os
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

os.environ["DO_NOT_TRACK"] = os.environ["ITERATIVE_DO_NOT_TRACK"] = "1"  # before evidently is imported

import evidently
from evidently.legacy.calculations.stattests import StatTest, register_stattest
from evidently.legacy.core import ColumnType
from evidently.metrics import MedianValue, ValueDrift

from agewatch.files import write_json, write_text
from monitoring.verdict import ColumnDrift, Floats, Verdict, amount, measures, refused

EXIT_CODES = {"no_drift": 0, "drift": 4, "too_little_data": 5}
MAX_DRAWN = 20_000
"""Faces drawn a side; a million take 10 s and more and look the same. The verdict is over all of them."""
MIN_DRAWN = 1_000
"""Above this the larger side is drawn with as many faces as the smaller, so that bars can be compared."""

_HEADLINES = {
    "no_drift": "No drift found",
    "drift": "Drift found",
    "too_little_data": "Too little data for a verdict",
}
_LABELS = {
    "age": "Estimated age",
    "age_interval": "Width of the 90 % age interval",
    "face_score": "Face detector's confidence",
    "brightness": "Brightness of the faces",
    "contrast": "Contrast of the faces",
    "sharpness": "Sharpness of the faces",
    "refused_share": "Files that could not be read",
}


@dataclass(frozen=True, slots=True)
class Report:
    """The two files written, as absolute paths."""

    html: Path
    json: Path


def write(
    verdict: Verdict,
    reference: pa.Table,
    current: pa.Table,
    out_dir: Path,
    *,
    archive: str,
    model: str,
    mode: str,
) -> Report:
    """Write `index.html` and `drift.json` into `out_dir`, each replaced at once; drift.json comes last.

    `reference` and `current` are the tables that were judged. Raises OSError where `out_dir` is not writable.
    """
    out_dir = out_dir.absolute()
    out_dir.mkdir(parents=True, exist_ok=True)
    report = Report(out_dir / "index.html", out_dir / "drift.json")
    before, now = measures(reference), measures(current)
    typical = {
        column.name: (_typical(column, before, reference), _typical(column, now, current)) for column in verdict.columns
    }
    header = _header(verdict, typical, {"Archive": archive, "Model": model, "Mode": mode})
    page = _evidently_page(verdict, before, now)
    write_text(report.html, page.replace("<body>", f"<body>{header}", 1))
    write_json(report.json, _content(verdict, report, archive, model, mode))
    return report


def _content(verdict: Verdict, report: Report, archive: str, model: str, mode: str) -> dict[str, object]:
    return {
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "archive": archive,
        "model": model,
        "mode": mode,
        "n_reference": verdict.n_reference,
        "n_current": verdict.n_current,
        "columns": [asdict(column) for column in verdict.columns],
        "report": str(report.html),
        "json": str(report.json),
        "exit_code": EXIT_CODES[verdict.verdict],
    }


def _typical(column: ColumnDrift, measured: dict[str, Floats], table: pa.Table) -> str:
    if column.name in measured:
        return f"{np.nanmedian(measured[column.name]):.3g}"
    counted, files = refused(table)
    return f"{counted / files:.1%} of {files:,} files"


# Evidently draws from a sample and would judge by it; this test of ours hands it the verdict over all rows.
_judged: ContextVar[dict[str, ColumnDrift]] = ContextVar("_judged")


def _as_judged(_: pd.Series, current: pd.Series, __: ColumnType, ___: float) -> tuple[float, bool]:
    column = _judged.get()[str(current.name)]
    return column.distance, column.drifted


_METHOD = "agewatch_wasserstein"
register_stattest(StatTest(_METHOD, "1-Wasserstein distance", [ColumnType.Numerical]), _as_judged)


def _evidently_page(verdict: Verdict, before: dict[str, Floats], now: dict[str, Floats]) -> str:
    names = [name for name in before if name in now]
    can_tell = verdict.verdict != "too_little_data"  # else Evidently would say "drift not detected"
    judged = {column.name: column for column in verdict.columns if column.name in names and can_tell}
    metrics = [
        ValueDrift(column=name, method=_METHOD, threshold=judged[name].threshold)
        if name in judged
        else MedianValue(column=name)
        for name in names
    ]
    definition = evidently.DataDefinition(numerical_columns=names)
    sides = [pd.DataFrame({name: side[name] for name in names}) for side in (before, now)]
    drawn = min(MAX_DRAWN, max(MIN_DRAWN, min(len(side) for side in sides)))
    sides = [side.sample(drawn, random_state=0) if len(side) > drawn else side for side in sides]
    reference, current = (evidently.Dataset.from_pandas(side, data_definition=definition) for side in sides)
    token = _judged.set(judged)
    try:
        snapshot = evidently.Report(metrics, include_tests=True).run(current_data=current, reference_data=reference)
    finally:
        _judged.reset(token)
    for result in snapshot.metric_results.values():
        for widget in result.widget or []:
            widget.tabs.reverse()  # the histogram says more than the values in the order of the rows
    return str(snapshot.get_html_str(as_iframe=False))


def _header(verdict: Verdict, typical: dict[str, tuple[str, str]], facts: dict[str, str]) -> str:
    facts = facts | {
        "Faces now": f"{verdict.n_current:,}",
        "Faces in the reference": f"{verdict.n_reference:,}",
        "Made at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    told = " &middot; ".join(f"{name}: <b>{html.escape(value)}</b>" for name, value in facts.items())
    unseen = "not seen" if verdict.verdict == "too_little_data" else "no"
    rows = "".join(_row(column, typical[column.name], unseen) for column in verdict.columns)
    return (
        f"<style>{_STYLE}</style><section id='agewatch' class='{verdict.verdict}'>"
        f"<h1>{_HEADLINES[verdict.verdict]}</h1><p>{html.escape(verdict.reason)}</p>"
        f"<p class='facts'>{told}</p><table><thead><tr><th>What was compared</th>"
        "<th>Reference (median or share)</th><th>Now</th><th>Moved by</th><th>Threshold</th><th>Drift</th>"
        f"</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _row(column: ColumnDrift, typical: tuple[str, str], unseen: str) -> str:
    cells = [*typical, amount(column.distance, column.unit), amount(column.threshold, column.unit)]
    told = "".join(f"<td>{cell}</td>" for cell in [*cells, "yes" if column.drifted else unseen])
    mark = " class='drifted'" if column.drifted else ""
    return f"<tr{mark}><th>{_LABELS[column.name]} <code>{column.name}</code></th>{told}</tr>"


_STYLE = """
#agewatch {font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 24px auto; padding: 8px 32px 24px;
  border-left: 10px solid #2e7d32; background: #f6f7f6; color: #1b1b1b}
#agewatch.drift {border-color: #b3261e} #agewatch.too_little_data {border-color: #8a6d00}
#agewatch h1 {font-size: 28px; margin: 12px 0 4px} #agewatch .facts {color: #444; font-size: 14px}
#agewatch table {border-collapse: collapse; width: 100%; font-size: 15px}
#agewatch th, #agewatch td {text-align: left; padding: 6px 10px; border-bottom: 1px solid #d5d8d5;
  font-weight: normal}
#agewatch thead th, #agewatch .drifted th, #agewatch .drifted td {font-weight: 600}
#agewatch .drifted td:last-child {color: #b3261e} #agewatch code {color: #666; font-size: 13px}
"""
