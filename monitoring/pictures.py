"""Faces that moved a verdict most: by what each adds to the change, not by how extreme it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from agewatch.estimator.faces import Face
from agewatch.estimator.memory import Room
from agewatch.scoring import thumbnails
from agewatch.sources.source import Source
from monitoring import story, summaries
from monitoring.columns import ColumnDrift
from monitoring.evidence import Floats
from monitoring.verdict import Verdict

MOST = 24
_BINS = 20
_SHOWN = ("path", "face", "age", "age_low", "age_high", "content_hash", "face_score", *summaries.BOX)
_AGES = ("youngest_share", "oldest_share")


@dataclass(frozen=True, slots=True)
class Picture:
    """A face that arrived since the drift: its file's path in the archive, its estimated age, and why it is shown.

    `low` and `high` are its 90 % interval; `content_hash` and `box` (upright pixels; with the detector's score, None in
    crop mode) say what of which content it is.
    """

    path: str
    face: int
    age: float
    why: str
    low: float
    high: float
    content_hash: str
    box: Face

    @property
    def folder(self) -> str:
        """The folder that it lies in; empty at the top."""
        return self.path.rpartition("/")[0]


def of_what_moved(verdict: Verdict, rows: pa.Table) -> pa.Table:
    """Those of the rows that are of the folder or camera that moved, where the archive as a whole did not."""
    part = next((part for part in verdict.segments if part.drifted), None)
    if verdict.drifted or part is None:
        return rows
    if part.name == "camera":
        return rows.filter(pc.equal(rows["camera"], part.value))
    if part.name != "folder":
        return rows
    inside = pc.starts_with(rows["path"], part.value + "/")
    return rows.filter(pc.invert(pc.match_substring(rows["path"], "/")) if part.value == "." else inside)


def that_moved(verdict: Verdict, before: pa.Table, now: pa.Table) -> list[Picture]:
    """The faces among rows of what moved that moved it most; nothing where none is there any more.

    A face counts by how far it lies from the baseline's mean on the side of the change, times the share of faces like
    it that are more than the baseline would lead one to expect: old people who were always there explain nothing.
    """
    found = _meant(verdict)
    if verdict.answer != "drift" or found is None or not len(before) or not len(now):
        return []
    name, way, label, unit = found
    old, new = (summaries.values(rows).get(name, np.full(len(rows), np.nan)) for rows in (before, now))
    known = old[np.isfinite(old)]
    if not len(known):
        return []
    center = float(known.mean())
    moved = np.where(np.isfinite(new), way * (new - center), 0.0) * _excess(known, new)
    moved = np.where(pc.is_null(now["gone_at"]).to_numpy(), moved, 0.0)
    best = np.argsort(-moved, kind="stable")[:MOST]
    best = best[moved[best] > 0]
    rows = now.take(pa.array(best)).select(_SHOWN).to_pylist()
    return [
        _picture(row, _why(label, float(new[number]), float(new[number] - center), unit))
        for row, number in zip(rows, best, strict=True)
    ]


def faces(shown: Sequence[Picture], source: Source, room: Room) -> list[bytes | None]:
    """The faces as small JPEGs, read from their archive; None where the file is gone or is another by now."""
    return [thumbnails.thumbnail(source, one.path, one.content_hash, one.box, room=room) for one in shown]


def _picture(row: dict[str, Any], why: str) -> Picture:
    known = [row[name] or 0.0 for name in summaries.BOX]
    face = Face((known[0], known[1], known[2], known[3]), row["face_score"])
    return Picture(
        row["path"], row["face"], row["age"], why, row["age_low"], row["age_high"], row["content_hash"], face
    )


def _why(label: str, value: float, away: float, unit: str) -> str:
    said = f"{value:.0f} years" if unit == "years" else f"{value:.3g}"
    return f"{label} {said}, {story.amount(away, unit)} {'above' if away > 0 else 'below'} the accepted mean"


def _meant(verdict: Verdict) -> tuple[str, float, str, str] | None:
    """The measure that moved, which way, its label and unit."""
    moved: list[ColumnDrift] = [column for column in verdict.columns if column.drifted]
    measured = [column for column in moved if column.name in (*summaries.MEASURES, *_AGES)]
    if measured:
        column = next((one for one in measured if one.name == "age"), measured[0])
        if column.name in _AGES:
            grew = column.effect > 0
            return "age", 1.0 if grew == (column.name == "oldest_share") else -1.0, "estimated", "years"
        label = "estimated" if column.name == "age" else column.name.replace("_", " ")
        return column.name, float(np.sign(column.effect)), label, column.unit
    part = next((part for part in verdict.segments if part.drifted and part.unit == "years"), None)
    return None if part is None or moved else ("age", float(np.sign(part.effect)), "estimated", "years")


def _excess(old: Floats, new: Floats) -> Floats:
    """Of each face now, the share of those like it that are more than the baseline's part; bins of the baseline."""
    edges = np.unique(np.quantile(old, np.linspace(0, 1, _BINS + 1)[1:-1]))
    slot = np.searchsorted(edges, np.nan_to_num(new), side="right")
    size = len(edges) + 1
    was = np.bincount(np.searchsorted(edges, old, side="right"), minlength=size) / len(old)
    is_now = np.bincount(slot, minlength=size) / max(len(new), 1)
    return np.asarray(np.clip(1 - np.divide(was, is_now, out=np.ones(size), where=is_now > 0), 0, 1)[slot])
