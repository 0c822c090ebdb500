"""From drift to a better model: when a retraining is wanted, and when a person has to look."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from agewatch.estimator.model import AgeModel
from agewatch.labelled import late
from agewatch.labelled.dataset import known_splits
from agewatch.release import gate, records, smoke, store
from agewatch.release.records import Alarm, Training
from agewatch.scoring.content import hash_keys

_LOOK = {
    "camera": "The pictures changed, and the people in them did not: look at the newest pictures, the camera and what"
    " prepares them. Nothing is trained.",
    "instrument": "The same pictures are estimated otherwise than before: look at what was updated on this machine."
    " Nothing is trained.",
}
_BOTH = (
    "The people changed, and the pictures too: look at these first. Nothing is trained unless labels show that the"
    " error rose: `agewatch labels ask` asks for some."
)
_UNCLEAR = "Why it drifted is not clear: look at the newest pictures, and label some with `agewatch labels ask`."


@dataclass(frozen=True)
class Limits:
    """From how many new labels a retraining is worth it, and how many days apart two of them are at least."""

    new_labels: int = 200
    cool_down_days: float = 14.0


LIMITS = Limits()
_AGAIN_DAYS, _LONGER = 0.5, 4.0  # after one that failed the next night asks, after two two days later, and so on


@dataclass(frozen=True)
class Finding:
    """What a drift run found: its verdict and cause as in `drift.json`, and whether labels say that the error rose."""

    verdict: str
    cause: str | None = None
    error_rose: bool = False

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Finding":
        """The finding of what `drift.json` holds."""
        measured = content["fit"]["measured_mae"] or {}
        return cls(content["verdict"], content["cause"], bool(measured.get("rose")))


@dataclass(frozen=True)
class Past:
    """What was asked and done before: when the archive last asked, when a retraining last ended, what waits.

    `waiting` is a model that passed the gate and its smoke test and is held for approval; `failed` how many retrainings
    left no model since one did, in a row.
    """

    asked_at: datetime | None = None
    ended_at: datetime | None = None
    waiting: str | None = None
    failed: int = 0


@dataclass(frozen=True)
class Wanted:
    """What is to be done about a finding, and why, in a sentence."""

    answer: Literal["retrain", "look", "wait"]
    why: str


def wanted(finding: Finding, new_labels: int, past: Past, now: datetime, limits: Limits = LIMITS) -> Wanted:
    """Say what a drift finding asks for. A pure function of what is known at a time.

    `new_labels` are those of the archive that the current model has not seen. A cause in the pictures or in the machine
    is never trained away, whatever labels say. An alarm that goes on asks again when its retraining has ended and the
    cool-down passed since, or where no retraining ended, when it passed since it asked. One that failed has trained
    nothing: the next night asks again, and each time it fails the wait is longer, up to the cool-down.
    """
    if finding.verdict != "drift":
        return Wanted("wait", "There is no drift.")
    if finding.cause in _LOOK:
        return Wanted("look", _LOOK[finding.cause])
    if finding.cause != "people" and not finding.error_rose:
        return Wanted("look", _BOTH if finding.cause == "mixed" else _UNCLEAR)
    if past.waiting is not None:
        return Wanted(
            "wait", f"{past.waiting} passed and waits for approval: `agewatch models promote` makes it current."
        )
    last = max((at for at in (past.asked_at, past.ended_at) if at is not None), default=None)
    ended = past.ended_at is not None and past.ended_at == last
    days = limits.cool_down_days
    if past.failed and not ended:
        days = min(days, _AGAIN_DAYS * _LONGER ** (past.failed - 1))
    if last is not None and now - last < timedelta(days=days):
        what = "A retraining ended" if ended else "A retraining was asked for"
        none = " and has left no model" if past.failed and not ended else ""
        return Wanted("wait", f"{what} on {last.date()}{none}: the next may begin {days:g} days later.")
    if new_labels < limits.new_labels:
        return Wanted(
            "wait",
            f"{new_labels:,} labels came that the current model has not seen; {limits.new_labels:,} are needed:"
            " `agewatch labels ask` asks for more.",
        )
    cause = "The people changed" if finding.cause == "people" else "The error by labels rose"
    return Wanted("retrain", f"{cause}, and {new_labels:,} labels came that the current model has not seen.")


def new_labels(table: Path, archive: str, model_path: Path) -> int:
    """How many labelled faces of an archive a model has not seen. Raises TableError or ModelError."""
    labels = late.read(table, archive)
    if labels.empty:
        return 0
    known = np.array(list(known_splits(model_path)), np.uint64)
    return int((~np.isin(hash_keys(pa.array(labels["content_hash"])), known)).sum())


def past(folder: Path, archive: str, failed: Callable[[datetime], int] = lambda _: 0) -> Past:
    """What a store has on record of retrainings, and of the alarms of an archive. Raises ModelError.

    `failed` says how many retrainings failed in a row until now, where the last one was asked for at a time.
    """
    alarms = [alarm for alarm in records.alarms(folder) if alarm.archive == archive]
    made = records.trainings(folder)
    asked_at = _time(alarms[0].asked_at) if alarms else None
    return Past(
        asked_at=asked_at,
        ended_at=_time(made[0].ended_at) if made else None,
        waiting=_waiting(folder, made[0]) if made else None,
        failed=failed(asked_at) if asked_at else 0,
    )


def asked(
    content: Mapping[str, Any],
    *,
    table: Path,
    folder: Path,
    limits: Limits = LIMITS,
    failed: Callable[[datetime], int] = lambda _: 0,
) -> tuple[Wanted, Alarm]:
    """What a drift run's `drift.json` asks for now, and the alarm to keep where it asks for a retraining.

    `table` is the predictions table, `folder` the model store, `failed` as of `past`. Raises TableError or ModelError.
    """
    archive, current = content["archive"], store.resolve(None, folder)
    count = new_labels(table, archive, current) if content["verdict"] == "drift" else 0
    answer = wanted(Finding.of(content), count, past(folder, archive, failed), datetime.now(UTC), limits)
    return answer, Alarm.of(content, count)


def _waiting(folder: Path, made: Training) -> str | None:
    """The model of the last retraining, where it passed over the current model and is not current yet."""
    pointer, tested = store.read_pointer(folder), smoke.of(folder, made.model)
    if pointer is None or tested is None or not tested.passed or not (folder / made.file).is_file():
        return None
    if not (AgeModel.load(folder / made.file).id == made.model != pointer.model):
        return None
    over = (record for record in gate.records(folder) if record.challenger == made.model)
    passed = any(record.decision.promote and record.champion == pointer.model for record in over)
    return made.model if passed else None


def _time(iso: str) -> datetime:
    return datetime.fromisoformat(iso)
