"""What a store keeps of why and how a model was made, the alarm that asked for it, and the training run; and of whose
code may run.

Each record names the one before, by its id: a training run its alarm; the gate's decision (`gate.Record`), the smoke
test and the promotion name the model. What a training run was made of stands in the model file itself.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from agewatch.errors import ModelError
from agewatch.files import now, stamp, write_json
from agewatch.release import store

_CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Kept = TypeVar("Kept")


@dataclass(frozen=True, config=_CHECKED)
class Alarm:
    """A drift run that asked for a retraining: what it said, and what it rested on.

    `since` is an ISO date, `value` the evidence against its `bound`, `report` the name of the run's folder below the
    archive's reports, `new_labels` how many labels there were that the current model had not seen.
    """

    id: str
    archive: str
    verdict: str
    cause: str | None
    headline: str
    since: str | None
    value: float | None
    bound: float
    report: str
    model: str
    new_labels: int
    asked_at: str

    @classmethod
    def of(cls, content: Mapping[str, Any], new_labels: int) -> "Alarm":
        """The alarm of what `drift.json` holds."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", content["archive"]).strip("-") or "archive"
        return cls(
            id=f"{stamp()}-{name}",
            report=Path(content["report"]).parent.name,
            new_labels=new_labels,
            asked_at=now(),
            **{key: content[key] for key in ("archive", "verdict", "cause", "headline", "since", "model")},
            **content["evidence"],
        )


@dataclass(frozen=True, config=_CHECKED)
class Training:
    """A retraining that left a model: its id and file, the model it started from, and the alarm that asked for it.

    `run` is the name of the run's folder below the home's `train`.
    """

    model: str
    file: str
    start: str
    run: str
    because: str | None
    ended_at: str


@dataclass(frozen=True, config=_CHECKED)
class Code:
    """A model file whose code may run here: its SHA-256 and name, and whether it was packaged here or trusted, by whom.

    `differs` names what of its code was not this agewatch's own when it was trusted.
    """

    sha256: str
    file: str
    why: Literal["packaged", "trusted"]
    by: str | None
    at: str
    differs: list[str]

    @classmethod
    def of(cls, file: Path, why: Literal["packaged", "trusted"], differs: Sequence[str] = ()) -> "Code":
        """Of a model file as it is now. Raises OSError."""
        return cls(store.sha256(file), file.name, why, store.user(), now(), list(differs))


_FOLDERS: dict[type[Any], str] = {Alarm: "alarms", Training: "trainings", Code: "code"}


def keep(store: Path, record: Alarm | Training | Code) -> None:
    """Keep a record in a store. Raises OSError."""
    file = _file(store, record)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(record))


def forget(store: Path, alarm: Alarm) -> None:
    """Take back an alarm that reached nobody."""
    _file(store, alarm).unlink(missing_ok=True)


def alarms(store: Path) -> list[Alarm]:
    """All alarms that asked, the latest first. Raises ModelError where a record is damaged."""
    return sorted(_read(store, Alarm), key=lambda alarm: alarm.asked_at, reverse=True)


def trainings(store: Path) -> list[Training]:
    """All retrainings that left a model, the latest first. Raises ModelError where a record is damaged."""
    return sorted(_read(store, Training), key=lambda training: training.ended_at, reverse=True)


def training(store: Path, model: str) -> Training | None:
    """The retraining that made a model, by its id; None where none is on record. Raises as `trainings`."""
    return next((made for made in trainings(store) if made.model == model), None)


def may_run(folder: Path, sha256: str) -> bool:
    """Whether a model file is on record as one whose code may run. Raises ModelError where a record is damaged."""
    return any(code.sha256 == sha256 for code in _read(folder, Code))


def _file(store: Path, record: Alarm | Training | Code) -> Path:
    match record:
        case Alarm():
            name = record.id
        case Training():
            name = record.model
        case Code():
            name = record.sha256
    return store / _FOLDERS[type(record)] / f"{name}.json"


def _read(store: Path, kind: type[Kept]) -> list[Kept]:
    found = []
    for file in sorted((store / _FOLDERS[kind]).glob("*.json")):
        try:
            found.append(TypeAdapter(kind).validate_json(file.read_bytes()))
        except (OSError, ValueError) as error:  # pydantic's is a ValueError
            raise ModelError(f"The record {file} can't be read: {error!r}.") from error
    return found
