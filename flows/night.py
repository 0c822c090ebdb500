"""An archive's night: score what is new, then judge what arrived. A plain script: `python flows/night.py ARCHIVE`."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from agewatch.errors import AgewatchError
from agewatch.estimator.spec import Mode
from agewatch.files import keep_traceback
from agewatch.nights import schedule
from agewatch.nights.ledger import Ledger, Outcome
from agewatch.nights.night import Night, NotNowError, held, turn
from agewatch.scoring.score import Summary
from agewatch.settings import Settings, without_paths
from agewatch.upkeep.disk import room_for_a_night
from agewatch.words import counted
from flows import events, shown
from flows.score import Share, scored
from flows.steps import step

_OUTCOMES: dict[int, Outcome] = {0: "done", 1: "failed", 3: "refused", 6: "gone"}
DRIFT_SECONDS = 2 * 60 * 60
"""So long a verdict may take; one of a million rows takes seconds."""

Minutes = Annotated[float, Field(ge=0)]


def _name() -> str:
    """What a run is called on Prefect's page: the archive, and the night that it is of."""
    said = flow_run.parameters
    return f"{schedule.archive_of(said['archive_folder'], said.get('name'))} {_due(said.get('due')):%Y-%m-%d %H:%M:%S}"


@flow(name="night", flow_run_name=_name)
def night(
    archive_folder: str,
    name: str | None = None,
    model: str | None = None,
    mode: Mode = "detect",
    max_refused: Share = 0.05,
    max_gone: Share = 0.2,
    exclude: list[str] | None = None,
    anew_minutes: Minutes = 120.0,
    ray: str | None = None,
    due: datetime | None = None,
) -> State[None]:
    """Score what is new in an archive, then say whether what arrived has drifted.

    The night's row in the ledger says what became of it. A run that is due while another of the archive is still going
    ends as skipped; one that a later night has done the work of ends as covered. Rows are committed whatever the
    outcome.

    Args:
        archive_folder: The folder of pictures.
        name: The archive's name; its folder's where this is empty.
        model: A model file; the store's current where this is empty.
        mode: `detect`: faces are found; `crop`: each picture is one face already.
        max_refused: Refused share (0..1) of the files that a night reads above which it fails.
        max_gone: Share (0..1) of the files of the night before above which files that are gone fail it.
        exclude: What to pass over, as in .gitignore.
        anew_minutes: Minutes a night for files that only an older model scored; the baseline's are scored at once.
        ray: HOST:PORT of a Ray cluster whose machines score; this machine alone where this is empty.
        due: The night that this one makes up for; else leave it empty.
    """
    settings, archive = Settings(), schedule.archive_of(archive_folder, name)
    ledger, run = Ledger(settings.home), str(flow_run.id)
    try:
        with held(ledger, archive, schedule.NIGHT, _due(due), run) as row, turn(ledger, archive):
            said = {"model": model, "faces": mode, "max_refused": 1.0, "max_gone": max_gone, "exclude": exclude or ()}
            room_for_a_night(settings)  # on its turn: the nights before it took of it too
            summary = score(archive_folder, {**said, "name": name, "anew_minutes": anew_minutes, "ray": ray})
            row.figures = _figures(summary)
            code, problem = _judged(summary, max_refused)
            row.outcome, row.reason = _OUTCOMES[code], problem
            message = judge(archive, model, mode, row) if summary.found else "Nothing is there to judge."
            return Completed(message=f"{message} {_told(summary)}") if problem is None else Failed(message=problem)
    except NotNowError as not_now:
        return Completed(name=not_now.outcome.capitalize(), message=f"{not_now.outcome}: {not_now}")
    except AgewatchError as error:
        print(f"agewatch: {error}", file=sys.stderr, flush=True)
        return Failed(message=without_paths(str(error), Path(archive_folder)))
    except TerminationSignal:
        if shown.best_effort(_is_cancelled, run):
            ledger.cancel(run)
        raise
    except Exception as error:  # told without a trace, which may hold paths; it is kept at home
        keep_traceback(settings.home, f"night of {archive}")
        return Failed(
            message=f"Something unexpected went wrong ({type(error).__name__}); it is in the home's error.log."
        )


@step()
def score(archive_folder: str, said: dict[str, Any]) -> Summary:
    """Score what is new."""
    return scored(archive_folder, **said)


@step(timeout_seconds=DRIFT_SECONDS)
def judge(archive: str, model: str | None, mode: Mode, row: Night) -> str:
    """Judge what arrived, and add what was found to the night's figures; see `monitoring.drift.run`.

    Drift is told as an event, by which Prefect's automations may start a retraining.
    """
    from monitoring import drift  # a night whose archive is gone needs none of it

    done = drift.run(archive, model=model, mode=mode)
    shown.judged(done)
    content = done.content()
    wanted = events.tell(content)
    row.figures |= {key: content[key] for key in ("verdict", "headline", "cause", "since", "advice")}
    row.figures |= {"report": done.html.parent.name, "wanted": wanted.answer, "why": wanted.why}
    return f"{done.verdict.answer}: {done.verdict.headline}"


def _due(due: datetime | None) -> datetime:
    return due or flow_run.scheduled_start_time or datetime.now(UTC)


def _figures(summary: Summary) -> dict[str, Any]:
    names = "found scored scored_anew left_to_rescore faces no_face refused refused_now ignored disappeared lost"
    return {name: getattr(summary, name) for name in [*names.split(), "model", "mode", "seconds"]}


def _judged(summary: Summary, max_refused: float) -> tuple[int, str | None]:
    """How a night ends, as a code and a sentence: judged on the files that it read, the archive's state beside it."""
    read = summary.scored - summary.scored_anew
    if summary.problem or summary.refused_now <= max_refused * read:
        return summary.exit_code, summary.problem
    reasons = ", ".join(f"{n:,} {code}" for code, n in summary.refused.items())
    return 3, (
        f"{summary.refused_now:,} of the {read:,} files read were refused"
        f" ({summary.refused_now / read:.1%}), more than the {max_refused:.0%} allowed. In all"
        f" {summary.found:,} files: {reasons}. The rows are committed."
    )


def _told(summary: Summary) -> str:
    return (
        f"{summary.scored:,} of {summary.found:,} files were scored now, {summary.refused_now:,} of them refused; in"
        f" all {counted(summary.faces, 'face')}, {counted(summary.no_face, 'file')} without a face,"
        f" {sum(summary.refused.values()):,} refused."
    )


def _is_cancelled(run: str) -> bool:
    """Tell whether a person cancelled this run; otherwise the system told it to stop."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run)).state
    return state is not None and (state.is_cancelling() or state.is_cancelled())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python flows/night.py ARCHIVE")
    sys.exit(0 if night(sys.argv[1], return_state=True).is_completed() else 1)
