"""What a drift run found, and how `drift.json` says it."""

from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from agewatch.scoring.predictions import Key
from monitoring.cause import Cause
from monitoring.columns import BOUND
from monitoring.error import MeasuredError
from monitoring.fit import Fit
from monitoring.instrument import Instrument
from monitoring.model_change import ModelChange
from monitoring.page import SCHEMA
from monitoring.pictures import Picture
from monitoring.verdict import Verdict
from monitoring.windows import Window

EXIT_CODES = {"no_drift": 0, "drift": 4, "too_little_data": 5}


@dataclass(frozen=True, slots=True)
class DriftRun:
    """Which rows were judged, the answer, and the files that show it, by their absolute paths.

    `left_to_rescore` files have rows of an older model only, and were not judged.
    """

    key: Key
    verdict: Verdict
    instrument: Instrument | None
    model_change: ModelChange | None
    why: Cause | None
    fit: Fit
    error: MeasuredError | None
    pictures: tuple[Picture, ...]
    html: Path
    json: Path
    left_to_rescore: int = 0

    @property
    def cause(self) -> str | None:
        """Why it drifted: `instrument`, or `camera`, `people`, `mixed` or `unclear`; None where it did not."""
        if self.instrument is not None and self.instrument.moved:
            return "instrument"
        return None if self.why is None else self.why.answer

    @property
    def exit_code(self) -> int:
        """What `agewatch drift` ends with."""
        return EXIT_CODES[self.verdict.answer]

    def content(self) -> dict[str, Any]:
        """What `drift.json` holds."""
        verdict = self.verdict
        seen = self.instrument and self.instrument.run
        return {
            "schema": SCHEMA,
            "verdict": verdict.answer,
            "headline": verdict.headline,
            "cause": self.cause,
            "cause_years": self.why and {part: asdict(self.why)[part] for part in ("quality", "people")},
            "since": _iso(verdict.since),
            "since_low": _iso(verdict.since_low),
            "since_high": _iso(verdict.since_high),
            "advice": verdict.advice,
            "notes": list(verdict.notes),
            **asdict(self.key),
            "baseline": {"kind": "accepted" if verdict.is_accepted else "first nights", **_period(verdict.baseline)},
            "window": _period(verdict.windows[-1].window if verdict.windows else None),
            "evidence": {"bound": BOUND, "value": verdict.value},
            "columns": [_column(asdict(column)) for column in verdict.columns],
            "segments": [_segment(asdict(segment)) for segment in verdict.segments],
            "more_segments": verdict.more_segments,
            "windows": [
                {**_period(one.window), "age_effect": one.age_effect, "value": one.value, "notable": one.notable}
                for one in verdict.shown
            ],
            "canaries": seen and seen.model_dump(mode="json", exclude={"model", "mode"}),
            "model_change": self.model_change and asdict(self.model_change),
            "left_to_rescore": self.left_to_rescore,
            "fit": {
                "estimated_mae": self.fit.estimated_mae and asdict(self.fit.estimated_mae),
                "measured_mae": self.error and measured_mae(self.error),
                "covered": self.fit.covered,
            },
            "pictures": [{"path": p.path, "face": p.face, "age": p.age, "why": p.why} for p in self.pictures],
            "report": str(self.html),
            "json": str(self.json),
            "exit_code": self.exit_code,
        }


def measured_mae(found: MeasuredError) -> dict[str, Any]:
    """The measured error as `drift.json` holds it."""
    before = found.before and asdict(found.before)
    return {**asdict(found.mae), "rose": found.rose, "since": _iso(found.since), "before": before}


def _period(window: Window | None) -> dict[str, Any]:
    if window is None:
        return {"from": None, "until": None, "n_files": None, "n_faces": None}
    return {
        "from": window.first.isoformat(),
        "until": window.until.isoformat(),
        "n_files": window.n_files,
        "n_faces": window.n_faces,
    }


def _column(column: dict[str, Any]) -> dict[str, Any]:
    """A column's figures as JSON holds them: what is infinite or unknown is null."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in column.items()
    }


def _segment(segment: dict[str, Any]) -> dict[str, Any]:
    del segment["since"], segment["log_evidence"]
    return _column(segment)


def _iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
