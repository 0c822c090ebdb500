"""A verdict -> a page anyone can open: one file, no network. Ours comes first, then Evidently's drawings."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agewatch.files import write_text
from agewatch.scoring.predictions import Key
from monitoring import evidently_page
from monitoring.verdict import ColumnDrift, Floats, Verdict, amount, measures, refused

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

_templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
_templates.filters["amount"] = amount


def write(page: Path, verdict: Verdict, reference: pa.Table, current: pa.Table, key: Key) -> None:
    """Write the page of a verdict on two tables, replaced at once. Raises OSError where it can't be written."""
    before, now = measures(reference), measures(current)
    header = _templates.get_template("report.html.jinja").render(
        verdict=verdict,
        headline=_HEADLINES[verdict.verdict],
        labels=_LABELS,
        typical={
            column.name: (_typical(column, before, reference), _typical(column, now, current))
            for column in verdict.columns
        },
        unseen="not seen" if verdict.verdict == "too_little_data" else "no",
        facts={
            "Archive": key.archive,
            "Model": key.model,
            "Mode": key.mode,
            "Faces now": f"{verdict.n_current:,}",
            "Faces in the reference": f"{verdict.n_reference:,}",
            "Made at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        },
    )
    drawn = evidently_page.page(verdict, before, now)
    write_text(page, drawn.replace("<body>", f"<body>{header}", 1))


def _typical(column: ColumnDrift, measured: dict[str, Floats], table: pa.Table) -> str:
    if column.name in measured:
        return f"{np.nanmedian(measured[column.name]):.3g}"
    counted, files = refused(table)
    return f"{counted / files:.1%} of {files:,} files"
