"""After a promotion: which files still stand by an older model only, and in which order they are scored anew.

The baseline comes first and without limit, so that drift is judged on; then what arrived last, while the minutes last.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from time import monotonic

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from agewatch.estimator.spec import Mode
from agewatch.scoring import predictions
from agewatch.scoring.known import STATE, Known, summarise
from agewatch.scoring.predictions import Key, dataset, open_table, pour
from agewatch.sources.source import FileRef


@dataclass(frozen=True)
class Left:
    """Files that are not gone and have rows of older models only: how many arrived in each night (UTC dates).

    `model` is the one that most of them stand by, None where there are none.
    """

    nights: dict[date, int] = field(default_factory=dict)
    model: str | None = None

    @property
    def files(self) -> int:
        """How many there are."""
        return sum(self.nights.values())


def while_minutes_last(shards: Iterator[list[FileRef]], minutes: float) -> Iterator[list[FileRef]]:
    """Hand out shards until so many minutes have gone by since the first was asked for; of any minutes at least one."""
    ends: float | None = None
    for shard in shards if minutes > 0 else ():
        if ends is None:
            ends = monotonic() + 60 * minutes
        elif monotonic() >= ends:
            return
        yield shard


def left(table: Path, key: Key) -> Left:
    """The files of an archive and mode that have rows, but none of this model. Raises TableError."""
    if not may_hold_others(table, key):
        return Left()
    ours = pc.unique(predictions.read(table, key.where, ["path"])["path"])
    where = _others(key) & pc.field("gone_at").is_null()
    rows = predictions.read(table, where, ["path", "model", "arrived_at", "scored_at"])
    rows = rows.filter(pc.invert(pc.is_in(rows["path"], ours)))
    when = pc.coalesce(rows["arrived_at"], rows["scored_at"])
    files = pa.table({"path": rows["path"], "model": rows["model"], "when": when}).group_by("path", use_threads=False)
    first = files.aggregate([("when", "min"), ("model", "max")])
    nights = Counter(pc.cast(first["when_min"], pa.date32()).to_pylist())
    models = Counter(first["model_max"].to_pylist())
    return Left(dict(sorted(nights.items())), max(models, key=lambda model: models[model], default=None))


def standing(table: Path, model: str, archives: Sequence[str] | None = None) -> dict[str, Left]:
    """Of each archive, by default all of the table's, what has no row of a model; those that have all are left out.

    The mode is the one in which the model scored the archive last, else any model. Raises TableError.
    """
    found = {}
    for name in sorted(predictions.archives(table)) if archives is None else archives:
        mode = predictions.latest_mode(table, archive=name, model=model) or _last_mode(table, name)
        if mode is not None and (still := left(table, Key(name, model, mode))).files:
            found[name] = still
    return found


def may_hold_others(table: Path, key: Key) -> bool:
    """Whether the table's statistics leave room for rows of another model: most tables hold one, and are not read."""
    actions = open_table(table).get_add_actions(flatten=True)
    if not actions.num_rows:
        return False
    names = ("min.archive", "max.archive", "min.model", "max.model")
    return any(
        None in (low, high, least, most) or (low <= key.archive <= high and not least == most == key.model)
        for low, high, least, most in zip(*(actions[name].to_pylist() for name in names), strict=True)
    )


def _last_mode(table: Path, archive: str) -> Mode | None:
    rows = predictions.read(table, pc.field("archive") == archive, ["mode", "scored_at"])
    if not len(rows):
        return None
    mode: Mode = rows["mode"][pc.index(rows["scored_at"], pc.max(rows["scored_at"])).as_py()].as_py()
    return mode


def _others(key: Key) -> ds.Expression:
    return (pc.field("archive") == key.archive) & (pc.field("mode") == key.mode) & (pc.field("model") != key.model)


def by_older_models(table: Path, key: Key, known: Known) -> Known:
    """What older models' rows say of files that have none of this model, with the night in which each arrived.

    Of several models the newest rows count. Raises TableError where the table can't be read.
    """
    held = Known()
    if may_hold_others(table, key):
        now = dataset(open_table(table), table)
        newest: dict[str, datetime] = {}
        for batch in pour(now, _others(key), ["model", "scored_at"]):
            models = (
                pa.Table.from_batches([batch]).group_by("model", use_threads=False).aggregate([("scored_at", "max")])
            )
            for model, when in zip(models["model"].to_pylist(), models["scored_at_max"].to_pylist(), strict=True):
                newest[model] = max(when, newest.get(model, when))
        for model in sorted(newest, key=lambda one: newest[one]):
            where = Key(key.archive, model, key.mode).where
            keys, states = summarise(pour(now, where, [*STATE, "arrived_at", "scored_at"]))
            is_other = ~known.has(keys)
            held.update(keys[is_other], states[is_other])
    return held
