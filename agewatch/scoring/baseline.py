"""What of an archive was accepted: the nights that later ones are compared with. It travels in the table's properties.

By itself the baseline is an archive's first nights until FULL faces are there, the last of them whole. A person may
accept more, or cut it, with `agewatch drift accept`.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties
from deltalake.exceptions import CommitFailedError, DeltaError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agewatch.errors import TableError
from agewatch.estimator.spec import Mode
from agewatch.scoring import predictions
from agewatch.scoring.predictions import BASELINE_PROPERTY, open_table, plain, require_writable

FULL = 2_000
"""Faces of a baseline that nobody accepted."""
_ATTEMPTS = 20


class Accepted(BaseModel):
    """A person's word, given at some time: the nights `first` to `until`, both included, are as they should be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    first: date = Field(alias="from")
    until: date


@dataclass(frozen=True, slots=True)
class Baseline:
    """The nights `first` to `until`, both included (UTC dates), and whether a person accepted them."""

    first: date
    until: date
    is_accepted: bool


_Told = TypeAdapter(tuple[Accepted, ...])


def accepted(table: Path, archive: str) -> tuple[Accepted, ...]:
    """What was accepted of an archive, in the order of time. Raises TableError where the table can't be read."""
    text = open_table(table).metadata().configuration.get(BASELINE_PROPERTY + archive)
    try:
        return _Told.validate_json(text or "[]")
    except ValidationError as error:
        raise TableError(f"What the table {table} holds of the baseline of '{archive}' is damaged.") from error


def accept(table: Path, archive: str, first: date, until: date) -> Accepted:
    """Note that the nights from `first` to `until` are accepted, beside what was accepted before.

    Raises TableError where the table can't be written.
    """
    said = Accepted.model_validate({"at": datetime.now(UTC), "from": first, "until": until})
    for tries in range(_ATTEMPTS):
        told = _Told.dump_json((*accepted(table, archive), said), by_alias=True).decode()
        held = open_table(table)
        require_writable(table)
        try:
            held.alter.set_table_properties(
                {BASELINE_PROPERTY + archive: told},
                raise_if_not_exists=False,
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except CommitFailedError:
            time.sleep(random.uniform(0, min(1.0, 0.05 * 2**tries)))
        except (DeltaError, OSError) as error:
            raise TableError(f"The table {predictions.shown(table)} can't be written: {plain(error)}.") from error
        else:
            return said
    raise TableError(f"The table {table} stayed busy: {_ATTEMPTS} commits were refused.")


def of_archive(table: Path, archive: str, mode: Mode, told: Sequence[Accepted] | None = None) -> Baseline | None:
    """The baseline of an archive scored in a mode, the same for every model; `told` is by default all on record.

    A night has as many faces as the model has that found most: a newer one may not have seen them all, or not yet.
    Raises TableError where the table can't be read.
    """
    told = accepted(table, archive) if told is None else told
    if told:
        return of_nights([], [], told)
    where = (pc.field("archive") == archive) & (pc.field("mode") == mode) & (pc.field("status") == "ok")
    faces = Counter[tuple[str, date]]()
    held = predictions.dataset(open_table(table), table)
    for batch in predictions.pour(held, where, ["model", "arrived_at", "scored_at", "status"]):
        arrived = pc.cast(pc.coalesce(batch["arrived_at"], batch["scored_at"]), pa.date32())
        counted = pa.table({"model": batch["model"], "night": arrived}).group_by(["model", "night"], use_threads=False)
        for row in counted.aggregate([([], "count_all")]).to_pylist():
            faces[row["model"], row["night"]] += row["count_all"]
    nights: dict[date, int] = {}
    for (_, night), count in faces.items():
        nights[night] = max(count, nights.get(night, 0))
    ordered = sorted(nights)
    return of_nights(ordered, [nights[night] for night in ordered], ())


def of_nights(nights: Sequence[date], faces: Sequence[int], told: Sequence[Accepted]) -> Baseline | None:
    """The baseline, given an archive's nights in order and the faces that arrived in each; None before it is full."""
    if told:
        return Baseline(told[-1].first, told[-1].until, is_accepted=True)
    full = next((night for night, sum_ in zip(nights, accumulate(faces), strict=True) if sum_ >= FULL), None)
    return None if full is None else Baseline(nights[0], full, is_accepted=False)
