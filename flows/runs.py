"""Prefect's flow runs beside the ledger: dead ones are ended, late ones are made one, a night that failed is made up.

Prefect's server can't know that the process of a run is dead; the machine that it ran on can.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Failed

from agewatch.nights import schedule
from agewatch.nights.ledger import TROUBLE, UNFINISHED, Ledger, Night
from agewatch.nights.schedule import Planned
from agewatch.settings import without_paths

POOL = "agewatch"
"""The work pool of `prefect.yaml`: of its own, as a worker takes whatever lies in its pool."""
MOST_ATTEMPTS = 3
"""So many runs a night may take that crashes; then it waits for the next night. One that was stopped goes on."""
_UNDER_WAY = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
_PAGE = 200  # Prefect's own limit
_RUN_ID = "PREFECT__FLOW_RUN_ID"  # in the environment of each flow's process


def processes() -> dict[UUID, list[psutil.Process]]:
    """The processes on this machine that belong to flow runs."""
    found: dict[UUID, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            run = process.environ().get(_RUN_ID)
        except (psutil.Error, OSError):  # it ended meanwhile, or is not ours
            continue
        if run and process.status() != psutil.STATUS_ZOMBIE:
            found.setdefault(UUID(run), []).append(process)
    return found


def end_dead(
    client: SyncPrefectClient, ledger: Ledger, planned: list[Planned], *, after: timedelta, is_ours: bool
) -> list[str]:
    """End runs that Prefect takes for alive and that have no process on this machine, as the ledger says they ended.

    A state that is younger than `after` is left: a worker needs a moment to start a process, or to tell its end. Where
    the server is not `is_ours`, other machines may have workers of the same pool, and only runs that have a row in this
    ledger are ended. Returns the names of the runs that were ended.
    """
    ended = []
    alive = processes()
    for run in _runs(client, planned, _UNDER_WAY):
        night = ledger.of_run(str(run.id))
        if run.id in alive or run.state is None or datetime.now(UTC) - run.state.timestamp < after:
            continue
        if night is None and not is_ours:
            continue
        state = _how_it_ended(run.state, night, [Path(one.folder) for one in planned if one.folder])
        client.set_flow_run_state(run.id, state, force=True)
        ended.append(run.name)
    return ended


def drop_late(client: SyncPrefectClient, planned: list[Planned], now: datetime) -> int:
    """Cancel runs that were due and did not begin; `make_up` starts one an archive in their place. Returns how many."""
    late = list(_runs(client, planned, [StateType.SCHEDULED], before=now))
    for run in late:
        state: State = Cancelled(message="It was due while agewatch was not up; one run makes up for all of these.")
        client.set_flow_run_state(run.id, state, force=True)
    return len(late)


def make_up(
    client: SyncPrefectClient, ledger: Ledger, planned: list[Planned], now: datetime, *, at_start: bool, since: datetime
) -> list[str]:
    """Start one run for each archive whose latest night is unfinished; returns the archives.

    At the start, when nothing runs and late runs were dropped, that is also a night without a row, and the first night
    of an archive that never had one. A later night that is due soon is not waited for. `since` is that start: a run
    that is asked for twice after it is one, and one that was dropped before it is none.
    """
    started = []
    for one in planned:
        due = _to_make_up(ledger, one, now, at_start)
        deployment = _deployment(client, one) if due else None
        if due is None or deployment is None:
            continue
        nights = [night for night in ledger.nights(one.archive, one.flow) if night.due == due]
        attempts = nights[0].attempts if nights else 0
        client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"due": due.isoformat()},
            idempotency_key=f"make up {one.archive} {due.isoformat()} {attempts} {since.isoformat()}",
        )
        started.append(one.archive)
    return started


def _to_make_up(ledger: Ledger, one: Planned, now: datetime, at_start: bool) -> datetime | None:
    """The night that is to be made up for now; None where there is none."""
    if one.flow != schedule.NIGHT or not one.is_active:
        return None
    nights = ledger.nights(one.archive, one.flow)
    if not nights:
        return now.replace(microsecond=0) if at_start else None
    since = ledger.watch(one.archive, one.flow, one.schedule, now)
    missing = schedule.missing(one, nights, since, now, grace=timedelta(0)) if at_start else []
    if missing and missing[-1] > nights[-1].due:
        return missing[-1]
    last = nights[-1]
    is_open = last.outcome in UNFINISHED and last.outcome is not None
    may_go_on = last.attempts < MOST_ATTEMPTS or (at_start and last.outcome == "stopped")
    return last.due if is_open and may_go_on else None


def _deployment(client: SyncPrefectClient, one: Planned) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(f"{one.flow}/{one.deployment}")
    except ObjectNotFound:
        return None


def _how_it_ended(state: State, night: Night | None, folders: list[Path]) -> State:
    reason = without_paths((night and night.reason) or "Its process ended without a word.", *folders)
    if state.is_cancelling() or (night is not None and night.outcome == "cancelled"):
        return Cancelled(message=reason)
    if night is not None and night.outcome in ("done", "covered", "skipped"):
        return Completed(message=reason if night.reason else "It was done; the server was away when it said so.")
    if night is not None and night.outcome in TROUBLE - {"crashed"}:
        return Failed(message=reason)
    return Crashed(message=reason)


def _runs(
    client: SyncPrefectClient, planned: list[Planned], types: list[StateType], before: datetime | None = None
) -> Iterator[FlowRun]:
    """Runs of our deployments in these types of state."""
    expected = None if before is None else FlowRunFilterExpectedStartTime.model_validate({"before_": before})
    asked = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)), expected_start_time=expected
    )
    ours = DeploymentFilter(name=DeploymentFilterName(any_=[one.deployment for one in planned]))
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=asked, deployment_filter=ours, offset=len(found), limit=_PAGE):
        found += page
    yield from found
