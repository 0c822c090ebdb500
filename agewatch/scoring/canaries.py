"""Files of the baseline that each run reads and estimates again, beside the table, to see whether the instrument moved.

A change of a library, a processor, a precision or a decoder moves the ages of the same pictures: it shows at once, as
nothing is drawn anew. No row is replaced.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from agewatch.errors import TableError
from agewatch.files import write_json
from agewatch.scoring import baseline, pool, predictions
from agewatch.scoring.baseline import Baseline
from agewatch.scoring.beside import folder_of
from agewatch.scoring.predictions import Key
from agewatch.scoring.scorer import Scoring
from agewatch.sources.source import FileRef

COUNT = 200
"""Canaries of an archive: some seconds' work."""
_STRATA = 5  # of the age, and of the face's size: eight files of each pair
_SHARD = 25
_MOST_DRAWN_FROM = 50_000
_FILE_NAME = "canaries.json"

Listed = Callable[[Sequence[str]], Mapping[str, FileRef]]
"""Which of some paths are in the archive, as files."""


class Canary(BaseModel):
    """A file by its content, and the age of its largest face, in years: at first, and in the last run that looked.

    `lost` where that run found no face in it.
    """

    model_config = ConfigDict(extra="forbid")

    path: str
    content_hash: str
    age: float
    last_age: float | None = None
    lost: bool = False


class CanaryRun(BaseModel):
    """What one run saw: how far the ages lie from the first ones, in years, over `n` files.

    `moved_years` is the mean difference, `spread_years` the mean of its size, `largest_years` the largest size. `lost`
    files have the same content and no face any more; `replaced` ones were gone or had changed, and others took their
    place.
    """

    model_config = ConfigDict(extra="forbid")

    at: datetime
    run_id: str
    model: str
    mode: str
    engine: str
    n: int
    moved_years: float
    spread_years: float
    largest_years: float
    lost: int
    replaced: int


class Record(BaseModel):
    """The canaries of an archive: those of each model and mode, by `MODEL MODE`, and all runs in the order of time."""

    model_config = ConfigDict(extra="forbid")

    canaries: dict[str, list[Canary]] = {}
    runs: list[CanaryRun] = []


def read(table: Path, archive: str) -> Record:
    """What is on record; empty where there is nothing that can be read."""
    try:
        return Record.model_validate_json((folder_of(table, archive) / _FILE_NAME).read_bytes())
    except (OSError, ValidationError):
        return Record()


def accept(table: Path, archive: str) -> None:
    """Take the ages of the last run as those that later ones are compared with, and let go of lost faces.

    Raises TableError where the record can't be written.
    """
    record = read(table, archive)
    for place, some in record.canaries.items():
        record.canaries[place] = [canary for canary in some if not canary.lost]
        for canary in record.canaries[place]:
            canary.age = canary.age if canary.last_age is None else canary.last_age
    if record.canaries:
        _write(table, archive, record)


def look_again(table: Path, job: Scoring, listed: Listed, workers: int) -> CanaryRun | None:
    """Estimate an archive's canaries again and put on record what came out; None before its baseline is full.

    `listed` tells which of some paths the archive holds now. Raises what the pool raises, and TableError where the
    table can't be read or the record not written.
    """
    key, record = job.key, read(table, job.key.archive)
    place = f"{key.model} {key.mode}"
    here = listed([canary.path for canary in record.canaries.get(place, [])])
    known = [canary for canary in record.canaries.get(place, []) if canary.path in here]
    gone = len(record.canaries.get(place, [])) - len(known)
    seen = {row["path"]: row for row in _estimated(job, [here[canary.path] for canary in known], workers)}
    same = [canary for canary in known if seen[canary.path].get("content_hash") == canary.content_hash]
    for canary in same:
        canary.last_age = seen[canary.path].get("age")
        canary.lost = canary.last_age is None
    ages = [(canary.last_age, canary.age) for canary in same if canary.last_age is not None]
    lost = len(same) - len(ages)
    replaced = gone + len(known) - len(same)
    fresh = _drawn(table, key, listed, same, record) if len(same) < COUNT else []
    record.canaries[place] = same + fresh
    if not record.canaries[place]:
        return None
    run = None
    if same:
        run = _run(job, ages, lost, min(replaced, len(fresh)), seen[same[0].path]["engine"])
        record.runs.append(run)
    _write(table, key.archive, record)
    return run


def _run(job: Scoring, ages: Sequence[tuple[float, float]], lost: int, replaced: int, engine: str) -> CanaryRun:
    moved = np.array([now - before for now, before in ages] or [0.0])
    return CanaryRun(
        at=datetime.now(UTC),
        run_id=job.run_id,
        model=job.key.model,
        mode=job.key.mode,
        engine=engine,
        n=len(ages),
        moved_years=round(float(moved.mean()), 4),
        spread_years=round(float(np.abs(moved).mean()), 4),
        largest_years=round(float(np.abs(moved).max()), 4),
        lost=lost,
        replaced=replaced,
    )


def _estimated(job: Scoring, files: Sequence[FileRef], workers: int) -> Iterable[dict[str, Any]]:
    """A row a file: of its largest face, where it has one."""
    most = -(-len(files) // _SHARD)
    for scored in pool.run(job, pool.shards(files, _SHARD), min(workers, most)) if files else ():
        yield from (row for row in scored.rows if row.get("face") in (None, 0))


def _drawn(table: Path, key: Key, listed: Listed, kept: Sequence[Canary], record: Record) -> list[Canary]:
    """Files of the baseline that stand for all its ages and face sizes; those of another model first.

    In each stratum the ones with the smallest hashes, which is by chance and the same for all.
    """
    found = baseline.of_archive(table, key.archive, key.mode)
    if found is None:
        return []
    rows = _faces(table, key, found)
    here = pa.array(list(listed(rows["path"].to_pylist())), pa.string())
    rows = rows.filter(pc.is_in(rows["path"], here)).to_pandas().drop_duplicates("content_hash")
    rows = rows[~rows["content_hash"].isin([canary.content_hash for canary in kept])]
    elsewhere = {canary.content_hash for some in record.canaries.values() for canary in some}
    rows = rows.assign(is_new=~rows["content_hash"].isin(elsewhere))
    for name in ("age", "box_h"):
        rank = rows[name].rank(method="first", pct=True)
        rows[f"{name}_stratum"] = np.minimum((rank * _STRATA).astype(int), _STRATA - 1)
    rows = rows.sort_values(["is_new", "content_hash"])
    turn = rows.groupby(["age_stratum", "box_h_stratum"]).cumcount()
    rows = rows.assign(turn=turn).sort_values(["is_new", "turn", "content_hash"]).head(COUNT - len(kept))
    return [Canary(path=row.path, content_hash=row.content_hash, age=row.age) for row in rows.itertuples()]


def _faces(table: Path, key: Key, accepted: Baseline) -> pa.Table:
    """Rows of the largest faces that arrived in the baseline and are still there, thinned where they are very many."""
    within = predictions.arrived(accepted.first, accepted.until)
    where = key.where & (pc.field("face") == 0) & within & pc.field("gone_at").is_null()
    held = predictions.dataset(predictions.open_table(table), table)
    of = ["path", "content_hash", "age", "box_h"]
    asked = ["face", "arrived_at", "scored_at", "gone_at"]
    count = sum(len(batch) for batch in predictions.pour(held, where, asked))
    where &= predictions.some(count, _MOST_DRAWN_FROM)
    found = predictions.pour(held, where, [*of, *asked])
    schema = pa.schema([predictions.SCHEMA.field(name).with_nullable(True) for name in of])
    rows = pa.Table.from_batches((batch.select(of) for batch in found), schema)
    return rows.filter(pc.and_(pc.is_valid(rows["content_hash"]), pc.is_valid(rows["age"])))


def _write(table: Path, archive: str, record: Record) -> None:
    file = folder_of(table, archive) / _FILE_NAME
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(file, record.model_dump(mode="json"))
        file.chmod(0o600)
    except OSError as error:
        raise TableError(
            f"What the canaries showed can't be written beside the table {table} ({error.strerror or error}); rows that"
            " were committed are kept."
        ) from error
