"""The drift run: what arrived in an archive, night by night, against what was accepted before."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal
from uuid import NAMESPACE_URL, uuid5

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from agewatch import api
from agewatch.errors import AgewatchError, TableError, UsageError
from agewatch.estimator.memory import room_of_one
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Mode
from agewatch.files import write_json
from agewatch.scoring import anew, archives, canaries, predictions
from agewatch.scoring import baseline as baselines
from agewatch.scoring.anew import Left
from agewatch.scoring.baseline import Accepted, Baseline
from agewatch.scoring.beside import name_of
from agewatch.scoring.predictions import Key
from agewatch.settings import Settings
from agewatch.sources import door
from monitoring import cause, error, fit, index, instrument, model_change, pictures, report, story, summaries
from monitoring.cause import Cause
from monitoring.error import MeasuredError
from monitoring.fit import Fit
from monitoring.instrument import Instrument
from monitoring.page import taken
from monitoring.pictures import Picture
from monitoring.record import DriftRun
from monitoring.verdict import Verdict, judge
from monitoring.windows import By, Window

_MOST_DRAWN = 20_000


def run(
    archive: str | None = None,
    *,
    model: api.ModelPath = None,
    predictions_dir: Path | None = None,
    out: Path | None = None,
    mode: Mode | None = None,
    by: By | Literal["captured-month"] = "night",
    since: date | None = None,
    until: date | None = None,
    with_pictures: bool = True,
) -> DriftRun:
    """Judge what arrived in one archive and write the report into a folder; `with_pictures` with faces in it.

    By default: the only archive of the table, the current model, the table of the settings, a new folder below their
    reports, the mode that was scored last. `until` is the day that is asked about (UTC, by default today): what arrived
    or was accepted later does not count. `since` leaves out windows before it. Without `out` the report is also entered
    in the page of all reports, and what Evidently draws in its workspace. Raises UsageError where the archive is
    not in the table, or several are and none was named; TableError where there is no table or no row of this model and
    mode; ModelError where the model can't be read; OSError where the report can't be written.
    """
    settings = Settings()
    table = predictions_dir or settings.predictions
    key, model_path = key_of(archive, model, table, mode)
    cells = summaries.read(table, key)
    if not len(cells):
        raise TableError(f"The archive '{key.archive}' has no rows of the model {key.model} in mode {key.mode} yet.")
    if until is None:
        until = datetime.now(UTC).date()
    else:
        cells = cells[cells["night"] <= pd.Timestamp(until)]
    told = [said for said in baselines.accepted(table, key.archive) if said.at.date() <= until]
    still = anew.left(table, key)
    verdict = _judged(table, key, cells, told, still, by=by, since=since, until=until)
    seen = instrument.last(canaries.read(table, key.archive), key, told[-1].at if told else None, until)
    measured = error.measure(table, key, model_path, until, told[-1] if told else None)
    before, now = _drawn(table, key, verdict, int(cells["faces"].sum()))
    reference = fit.reference(model_path, key.mode)
    fitted = fit.fit(reference, (now if len(now) else before).to_pandas())
    parts = pictures.of_what_moved(verdict, before), pictures.of_what_moved(verdict, now)
    why = cause.of_rows(*parts, verdict.drifted) if verdict.moved and not (seen and seen.moved) else None
    moved = tuple(pictures.that_moved(verdict, *parts))
    changed = None if verdict.baseline is None else model_change.since_the_last(table, key, verdict.baseline)
    folder = (out or run_dir(settings.reports, key.archive)).absolute()
    archives.require_outside(table, folder)
    taken(folder)
    verdict = _told(verdict, why, measured, seen, fitted)
    shown = folder / "index.html", folder / "drift.json"
    found = DriftRun(key, verdict, seen, changed, why, fitted, measured, moved, *shown, left_to_rescore=still.files)
    faces = _faces(table, key, moved) if with_pictures else None
    up = None if out else "../../index.html"
    project = None if out else project_dir(settings.evidently, key.archive)
    report.write(found, report.Seen(before, now, reference, faces, up), project)
    write_json(found.json, found.content())
    if out is None:
        index.write(settings.reports)
    return found


def _faces(table: Path, key: Key, moved: Sequence[Picture]) -> tuple[bytes | None, ...]:
    try:
        source = door.at(predictions.archives(table)[key.archive])
    except AgewatchError:  # what lies there now is no archive; the verdict stands
        return (None,) * len(moved)
    return tuple(pictures.faces(moved, source, room_of_one(Settings().memory_gb)))


def _judged(
    table: Path,
    key: Key,
    cells: pd.DataFrame,
    told: list[Accepted],
    still: Left,
    *,
    by: By | Literal["captured-month"],
    since: date | None,
    until: date,
) -> Verdict:
    """The verdict on what this model has scored; what still stands by an older one is told, and not judged."""
    baseline = _baseline(table, key, cells, told)
    cells, lacking = model_change.judged(cells, still, baseline)
    if lacking:
        verdict = Verdict("too_little_data", *story.baseline_by_older(lacking, still.model or ""))
    else:
        verdict = judge(cells, baseline, by=by, since=since, until=until)
    return replace(verdict, notes=(*verdict.notes, *story.by_older(still)))


def _told(
    verdict: Verdict, why: Cause | None, measured: MeasuredError | None, seen: Instrument | None, fitted: Fit
) -> Verdict:
    """The verdict with what else is known; a rise of the error, or an instrument that moved, is drift too."""
    if why is not None:
        verdict = replace(verdict, advice=f"{why.sentence} {verdict.advice}")
    if measured is not None:
        verdict = _with_error(verdict, measured)
    if seen is not None:
        verdict = replace(verdict, notes=(*verdict.notes, *seen.notes))
    if seen is not None and seen.moved:
        notes = (f"Apart from the instrument: {verdict.headline}", *verdict.notes)
        verdict = replace(verdict, answer="drift", headline=seen.headline, advice=seen.advice, notes=notes)
        verdict = replace(verdict, since=verdict.since or seen.since)
    return replace(verdict, notes=(*verdict.notes, *fitted.notes))


def accept(
    archive: str | None = None,
    *,
    predictions_dir: Path | None = None,
    first: date | None = None,
    until: date | None = None,
) -> tuple[str, Accepted]:
    """Accept the nights of an archive from one day to another (UTC, both included) as its baseline.

    By default from the first night that has rows to the last. Raises UsageError where no row arrived in these nights,
    or as `run` does; TableError where the table can't be written.
    """
    table = predictions_dir or Settings().predictions
    archive = _archive(archive, table)
    nights = _nights(table, archive)
    if not nights:
        raise TableError(f"The archive '{archive}' has no rows yet: run `agewatch score` first.")
    first, until = first or nights[0], until or nights[-1]
    if not any(first <= night <= until for night in nights):
        raise UsageError(
            f"Nothing of '{archive}' arrived from {first} to {until}; its nights are {nights[0]} to {nights[-1]}."
        )
    said = baselines.accept(table, archive, first, until)
    canaries.accept(table, archive)
    return archive, said


def key_of(archive: str | None, model: api.ModelPath, table: Path, mode: Mode | None = None) -> tuple[Key, Path]:
    """The rows that a person means, and the file of their model.

    What stands in where nothing is named, and what is raised, is told by `run`.
    """
    archive, model_path = _archive(archive, table), api.model_file(model)
    return _key(archive, AgeModel.load(model_path).id, mode, table), model_path


def run_dir(reports_dir: Path, archive: str) -> Path:
    """A new folder's path for one report: ARCHIVE/RUN under `reports_dir`. RUN is the time in UTC."""
    return archive_dir(reports_dir, archive) / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def archive_dir(reports_dir: Path, archive: str) -> Path:
    """The folder of an archive's reports."""
    return reports_dir / name_of(archive)


def project_dir(workspace: Path, archive: str) -> Path:
    """The folder of an archive's project in Evidently's workspace; the name is the project's id."""
    return workspace / str(uuid5(NAMESPACE_URL, f"agewatch:{archive}"))


def _with_error(verdict: Verdict, measured: MeasuredError) -> Verdict:
    """A verdict with what labels say; where the error rose, that is drift too."""
    if measured.since is None or measured.before is None:
        return replace(verdict, notes=(*verdict.notes, story.measured(measured.mae)))
    headline, advice = story.error_rose(measured.mae, measured.before, measured.since)
    if verdict.answer == "drift":
        return replace(verdict, notes=(headline, *verdict.notes))
    notes = (verdict.headline, *verdict.notes)
    return replace(verdict, answer="drift", headline=headline, advice=advice, notes=notes, since=measured.since)


def _archive(archive: str | None, table: Path) -> str:
    """The archive meant: the one named, or the only one in the table."""
    names = sorted(predictions.archives(table))
    archive = archive and predictions.known_name(table, archive)
    if archive in names:
        return archive
    if not names:
        raise TableError(f"The predictions table at {table} has no archive yet: run `agewatch score` first.")
    if archive is not None:
        raise UsageError(f"There is no archive '{archive}' in the predictions table; it holds {', '.join(names)}.")
    if len(names) > 1:
        raise UsageError(f"The predictions table holds {', '.join(names)}: name one with --archive.")
    return names[0]


def _key(archive: str, model: str, mode: Mode | None, table: Path) -> Key:
    """The rows meant: those of the mode named, or of the one scored last."""
    mode = mode or predictions.latest_mode(table, archive=archive, model=model)
    if mode is None:
        raise TableError(f"The archive '{archive}' has no rows of the model {model} yet: run `agewatch score` first.")
    return Key(archive, model, mode)


def _nights(table: Path, archive: str) -> list[date]:
    rows = predictions.read(table, pc.field("archive") == archive, ["arrived_at", "scored_at"])
    arrived = pc.cast(pc.coalesce(rows["arrived_at"], rows["scored_at"]), pa.date32())
    return sorted(pc.unique(arrived).to_pylist())


def _baseline(table: Path, key: Key, cells: pd.DataFrame, told: list[Accepted]) -> Baseline | None:
    """The baseline, also where this model has not scored all that an older one has."""
    if anew.may_hold_others(table, key):
        return baselines.of_archive(table, key.archive, key.mode, told)
    faces = cells.groupby("night")["faces"].sum()
    return baselines.of_nights([night.date() for night in faces.index], [int(n) for n in faces], told)


def _drawn(table: Path, key: Key, verdict: Verdict, faces: int) -> tuple[pa.Table, pa.Table]:
    """Rows of the baseline, and of what arrived since the drift or in the last window, thinned where they are many.

    Without a baseline none of it, and rows of all of so many faces.
    """
    if verdict.baseline is None:
        return predictions.SCHEMA.empty_table(), _read(table, key, predictions.some(faces, _MOST_DRAWN))
    later = [one.window for one in verdict.windows if verdict.since is None or one.window.first >= verdict.since]
    later = later if verdict.since else later[-1:]
    if not later:
        return _arrived(table, key, verdict.baseline), predictions.SCHEMA.empty_table()
    faces = sum(window.n_faces for window in later)
    return _arrived(table, key, verdict.baseline), _arrived(
        table, key, Window(later[0].first, later[-1].until, 0, faces)
    )


def _arrived(table: Path, key: Key, window: Window) -> pa.Table:
    within = predictions.arrived(window.first, window.until)
    return _read(table, key, within & predictions.some(window.n_faces, _MOST_DRAWN))


def _read(table: Path, key: Key, where: ds.Expression) -> pa.Table:
    columns = dict.fromkeys((*summaries.COLUMNS, *summaries.BOX, "content_hash", "gone_at"))
    return predictions.read(table, key.where & (pc.field("status") == "ok") & where, list(columns))
