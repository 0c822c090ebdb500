"""Shard + engine -> rows: the main path of batch scoring.

Worker processes turn shards of files into rows; this process alone writes them, one commit a shard.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

from agewatch.errors import REFUSAL_CODES, GoneError, TableError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Mode
from agewatch.files import stamp
from agewatch.scoring import anew, baseline, canaries, pool, predictions, served
from agewatch.scoring.content import SharedKeys
from agewatch.scoring.pending import Again, Pending
from agewatch.scoring.predictions import Key, Rows
from agewatch.scoring.scorer import Execution, Job, Scored, Scoring, cores
from agewatch.scoring.writer import Missed, Writer
from agewatch.sources import door
from agewatch.sources.ahead import Ahead
from agewatch.sources.source import FileRef, Sieve, Source


@dataclass
class Summary:
    """State of one archive for one model and mode after a run; counts are over all files found.

    `scored` files went through this run, `skipped` ones had rows already; `faces_per_s` is of this run. Within minutes,
    `scored_anew` of the scored had rows of an older model, and `left_to_rescore` of the skipped have such rows only,
    which are counted in their place. `refused_now` of the other scored files were refused. `disappeared` files have
    rows and are no longer there; `lost` of them were there when it was scored last. `nested` archives
    inside are not opened. `problem` says in a sentence why `exit_code` is not 0.
    """

    archive: str
    run_id: str
    model: str
    mode: Mode
    engine: str | None
    found: int
    ignored: int
    ignored_suffixes: dict[str, int]
    skipped: int
    scored: int
    faces: int
    no_face: int
    refused: dict[str, int]
    disappeared: int
    seconds: float
    faces_per_s: float
    predictions: str
    exit_code: int = 0
    problem: str | None = None
    lost: int = 0
    refused_now: int = 0
    scored_anew: int = 0
    left_to_rescore: int = 0
    unlisted: list[str] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    disappeared_paths: list[str] = field(default_factory=list)

    @property
    def refused_share(self) -> float:
        """Refused files over files found, 0..1."""
        return sum(self.refused.values()) / max(self.found, 1)


@dataclass(frozen=True)
class Limits:
    """What a run may find without an alarm: the share (0..1) of files refused, and of those gone since the last run."""

    refused: float = 0.05
    gone: float = 0.2


def score_archive(
    place: Path | str,
    *,
    model_path: Path | None,
    table: Path,
    how: Execution,
    mode: Mode = "detect",
    limits: Limits = Limits(),
    name: str | None = None,
    again: Again = "nothing",
    exclude: Sequence[str] = (),
    anew_minutes: float | None = None,
) -> Summary:
    """Score every picture of a place that the table does not hold yet, and return the archive's state.

    Where `how` names a server, its model runs; a `model_path` must be of the same one then.

    A place is what `sources.door` opens. `exclude` adds to what is litter (`litter.Litter`). With `anew_minutes`, files
    that only an older model scored are scored after the others, the baseline's whatever it takes, then the newest first
    while these minutes last: the next runs go on. `exit_code` of the summary is 1 where a folder can't be listed, as
    what it holds is not known; 6 where more of the files were lost than `limits` allow; 3 where more were refused; else
    0. Rows are committed whatever it is, and files that are gone are marked so unless too many are. Raises UsageError
    (no such place, archive name taken, all anew within minutes), GoneError (no such place, which the table holds rows
    of), ModelError, TableError, ServeError where a server does not answer or another of its models does, or
    AgewatchError where no worker can start; what was committed before stays.
    """
    started = perf_counter()
    if anew_minutes is not None and again == "all":
        raise UsageError("To score everything again takes what it takes: give it no minutes.")
    source = door.at(place)
    name = predictions.known_name(table, _name(name or source.name))
    _require_there(source, name, table)
    with Ahead(source, exclude) as listing:
        job = _job(source, name, model_path, mode, how)
        key = job.key
        writer = Writer(table, key, root=source.root)
        todo = Pending(listing, writer.known, table, key, again, anew_minutes is not None, how.workers)
        done = _write_scores(job, todo, anew_minutes or 0.0, writer, how)
    missed = writer.missed(todo.found_keys())
    lost, is_alarm = _note_the_gone(writer, listing.sieve, limits, missed, todo.found)
    if not is_alarm:
        _look_at_canaries(table, job, todo, writer, min(how.workers, cores()))
    seconds = perf_counter() - started
    summary = Summary(
        **asdict(key),
        run_id=job.run_id,
        engine=done.engine,
        scored=done.files,
        scored_anew=done.anew,
        left_to_rescore=todo.files - done.files,
        seconds=round(seconds, 3),
        faces_per_s=round(done.rows["ok"] / seconds, 1),
        predictions=predictions.shown(table if predictions.is_remote(table) else table.resolve()),
        lost=lost,
        refused_now=done.refused,
        **_state(listing.sieve, todo, writer, missed, done.files),
    )
    code, problem = _judged(summary, limits, is_alarm, listing.sieve.damage)
    return replace(summary, exit_code=code, problem=problem)


def _job(source: Source, name: str, model_path: Path | None, mode: Mode, how: Execution) -> Scoring:
    """What is to be done to the files. Raises ModelError, and ServeError where a server does not answer."""
    run_id = f"{stamp()}-{uuid.uuid4().hex[:6]}"
    if how.server is not None:
        return served.job(source, name, mode, run_id, how.server, model_path)
    if model_path is None:
        raise UsageError("A model is needed, or a server that has one.")
    key = Key(name, AgeModel.load(model_path).id, mode)
    return Job(source, key, run_id, model_path, how.cache, how.engine, how.precision, room=how.room())


def _name(name: str) -> str:
    if not name or "/" in name or not name.isprintable():
        raise UsageError(f"An archive's name is printable text without '/', not {name!r}: choose one with --archive.")
    return name


def _require_there(source: Source, name: str, table: Path) -> None:
    """Raise UsageError where a place is not there, GoneError where the table holds rows of it."""
    try:
        source.require_there()
    except UsageError:
        with suppress(TableError):
            if predictions.archives(table).get(name) == source.root:
                raise GoneError(
                    f"The archive '{name}' is gone: its folder is not there. Its rows are kept. Is a disk not mounted?"
                    f" If it was moved, run `agewatch archives move {name} FOLDER`."
                ) from None
        raise


def _note_the_gone(writer: Writer, sieve: Sieve, limits: Limits, missed: Missed, found: int) -> tuple[int, bool]:
    """Mark files that are gone, or are back; returns how many were lost, and whether these are too many to believe.

    What is passed over now, as `--exclude` or a newer agewatch says so, is marked and not lost.
    """
    away = {path for path in missed.lost if not sieve.may_hold(path)}
    passed_over = {path for path in away if sieve.litter.covers(path)}
    lost = away - passed_over
    is_alarm = bool(lost) and (len(lost) > limits.gone * (missed.held - len(passed_over)) or not found)
    writer.mark(passed_over if is_alarm else away, datetime.now(UTC))
    writer.mark(missed.back, None)
    return len(lost), is_alarm


def _look_at_canaries(table: Path, job: Scoring, todo: Pending, writer: Writer, workers: int) -> None:
    """Estimate the canaries again, once there can be a baseline to draw them from. Raises what `look_again` raises."""
    is_known = todo.faces() >= baseline.FULL or bool(baseline.accepted(table, job.key.archive))
    if is_known and predictions.may_write(table):  # who may only read the table may still ask for its state
        canaries.look_again(table, job, writer.listed, workers)


def _judged(run: Summary, limits: Limits, is_alarm: bool, damage: str | None) -> tuple[int, str | None]:
    """The exit code of a run, and the sentence that says why it is not 0."""
    if damage is not None:
        return 1, damage
    if run.unlisted:
        folders = "A folder" if len(run.unlisted) == 1 else f"{len(run.unlisted):,} folders"
        return 1, f"{folders} can't be listed; what is in there is not counted."
    if is_alarm and not run.found:
        return 6, (
            f"Nothing is found where {run.lost:,} files were when the archive was scored last. Their rows are kept as"
            f" they were. Is a disk not mounted? If it is empty on purpose: `agewatch archives remove {run.archive}`."
        )
    if is_alarm:
        return 6, (
            f"{run.lost:,} files are gone that were there when the archive was scored last: more than {limits.gone:.0%}"
            " of them. Their rows are kept as they were. Is a disk not mounted? If they were taken away on"
            " purpose, run again with --max-gone 1."
        )
    if run.refused_share > limits.refused:
        reasons = ", ".join(f"{n:,} {code}" for code, n in run.refused.items())
        return 3, (
            f"{sum(run.refused.values()):,} of {run.found:,} files were refused ({run.refused_share:.1%}; {reasons}),"
            f" more than the {limits.refused:.0%} allowed. The rows are committed."
        )
    return 0, None


@dataclass
class _Done:
    """What a run did: files, those of them scored anew, the others that were refused, rows by status, the engine."""

    files: int = 0
    anew: int = 0
    refused: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    engine: str | None = None


def _write_scores(job: Scoring, todo: Pending, minutes: float, writer: Writer, how: Execution) -> _Done:
    """Score and commit shard by shard, while the place is listed."""
    done = _Done()
    for scored in _score(job, todo, minutes, writer, how, lambda: how.progress(0, todo.files, done.rows)):
        writer.write(scored.rows)
        are_anew = todo.is_anew([row["path"] for row in scored.rows]).tolist()
        for row, is_anew in zip(scored.rows, are_anew, strict=True):
            done.rows[row["status"]] += 1
            done.anew += is_anew and row.get("face") in (None, 0)
            done.refused += not is_anew and row["status"] in REFUSAL_CODES
        done.files += scored.files
        done.engine = scored.rows[0]["engine"] if scored.rows else done.engine
        how.progress(done.files, todo.files, done.rows)
    if done.files < todo.files:
        how.progress(done.files, done.files, done.rows)  # the minutes are over
    return done


def _score(
    job: Scoring, todo: Pending, minutes: float, writer: Writer, how: Execution, begins: Callable[[], None]
) -> Iterator[Scored]:
    """Score shards, with the table's own rows in place of new ones for content that it holds already."""
    shards = chain(todo.now(), anew.while_minutes_last(todo.later(), minutes))
    first = next(filter(None, shards), None)
    if first is not None:
        writer.require_writable()
    begins()
    if first is None:
        return
    mistaken: list[FileRef] = []
    known = SharedKeys(writer.known.contents() if todo.again == "nothing" else ())
    for scored in how.run(replace(job, known=known), chain([first], shards), how.workers):
        copies, unknown = _copies(writer, scored.same, job.run_id)
        mistaken += unknown
        yield Scored(scored.files - len(unknown), scored.rows + copies, [])
    yield from how.run(job, pool.shards(mistaken, len(first)), how.workers) if mistaken else ()


def _copies(writer: Writer, same: Sequence[tuple[FileRef, str]], run_id: str) -> tuple[Rows, list[FileRef]]:
    """Rows for files whose content the table holds, and files of which that was not true after all.

    A file that was only touched keeps its rows but for the time; one that was copied or moved gets rows of its own.
    """
    if not same:
        return [], []
    holders = writer.holders({file.path: digest for file, digest in same})
    rows_at: dict[str, Rows] = {}
    for row in writer.rows_of(set(holders.values())):
        rows_at.setdefault(row["path"], []).append(row)
    copies: Rows = []
    unknown: list[FileRef] = []
    for file, digest in same:
        found = [row for row in rows_at.get(holders.get(file.path, ""), []) if row["content_hash"] == digest]
        if not found:
            unknown.append(file)
        changed: dict[str, Any] = asdict(file)
        if found and found[0]["path"] != file.path:
            changed |= {"run_id": run_id, "scored_at": datetime.now(UTC)}
        copies += [row | changed for row in found]
    return copies, unknown


def _state(sieve: Sieve, todo: Pending, writer: Writer, missed: Missed, scored: int) -> dict[str, Any]:
    """The part of a summary that counts what the table holds of the files found, and what it holds beyond."""
    statuses, faces = todo.tally()
    gone = sorted(path for path in missed.away if path in writer.known and not sieve.may_hold(path))
    return {
        "found": todo.found,
        "ignored": sum(sieve.ignored.values()),
        "ignored_suffixes": dict(sieve.ignored.most_common()),
        "skipped": todo.found - scored,
        "faces": faces,
        "no_face": statuses["no_face"],
        "refused": {code: n for code, n in sorted(statuses.items()) if code not in ("ok", "no_face")},
        "disappeared": len(gone),
        "unlisted": sorted(sieve.unlisted),
        "nested": sieve.nested,
        "disappeared_paths": gone,
    }
