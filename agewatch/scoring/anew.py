"""After a promotion: which files still stand by an older model only, and in which order they are scored anew.

The baseline comes first and without limit, so that drift is judged on; then what arrived last, while the minutes last.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from time import monotonic

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from agewatch.estimator.spec import Mode
from agewatch.scoring import baseline, predictions
from agewatch.scoring.predictions import Key, open_table
from agewatch.scoring.writer import STATE, Stored, summarise
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


@dataclass(frozen=True)
class Plan:
    """What a run scores: `now` whatever it takes, `later` while its minutes last.

    `held` is what the table holds of the files that older models scored, `anew` the paths of those that did not change.
    """

    now: list[FileRef]
    later: list[FileRef]
    held: dict[str, Stored] = field(default_factory=dict)
    anew: frozenset[str] = frozenset()

    @property
    def files(self) -> int:
        """How many there are in all."""
        return len(self.now) + len(self.later)


def plan(
    pending: Sequence[FileRef],
    known: Container[str],
    table: Path,
    key: Key,
    is_scored: Callable[[FileRef, Stored], bool],
) -> Plan:
    """Put in order what a model is to score: new and changed files, the baseline's, and the others, newest first.

    `known` are the paths that have rows of the model; `is_scored` says whether rows stand for a file as it is. Raises
    TableError where the table can't be read.
    """
    held = _by_older_models(table, key, [file.path for file in pending if file.path not in known])
    fresh, first, rest = list[FileRef](), list[FileRef](), list[tuple[date, FileRef]]()
    accepted = baseline.of_archive(table, key.archive, key.mode) if held else None
    for file in pending:
        state, night = held.get(file.path, (None, date.min))
        if state is None or not is_scored(file, state):
            fresh.append(file)
        elif accepted is not None and accepted.first <= night <= accepted.until:
            first.append(file)
        else:
            rest.append((night, file))
    rest.sort(key=lambda one: one[0], reverse=True)  # within a night by path, as they were
    later = [file for _, file in rest]
    states = {path: state for path, (state, _) in held.items()}
    return Plan([*fresh, *first], later, states, frozenset(file.path for file in (*first, *later)))


def while_minutes_last(shards: Iterator[Sequence[FileRef]], minutes: float) -> Iterator[Sequence[FileRef]]:
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


def _by_older_models(table: Path, key: Key, paths: Sequence[str]) -> dict[str, tuple[Stored, date]]:
    """What older models' rows say of files, and the night in which each arrived; of several models the newest rows."""
    if not paths or not may_hold_others(table, key):
        return {}
    where = _others(key) & pc.field("path").isin(pa.array(paths, pa.string()))
    rows = predictions.read(table, where, [*STATE, "model", "arrived_at", "scored_at"])
    models = rows.group_by("model").aggregate([("scored_at", "max")]).sort_by("scored_at_max")["model"].to_pylist()
    found: dict[str, tuple[Stored, date]] = {}
    for model in models:
        own = rows.filter(pc.equal(rows["model"], model))
        when = pc.coalesce(own["arrived_at"], own["scored_at"]).to_pylist()
        arrived: dict[str, datetime] = dict(zip(own["path"].to_pylist(), when, strict=True))
        states = summarise(own.to_batches())
        found |= {path: (state, arrived[path].astimezone(UTC).date()) for path, state in states.items()}
    return found
