"""What drift sets in motion: events of Prefect's, and the automation that runs a retraining."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.events import AutomationCore, Event, EventTrigger, Posture, Resource, ResourceSpecification
from prefect.events.actions import DoNothing, RunDeployment
from prefect.exceptions import ObjectNotFound, PrefectException

from agewatch.errors import UsageError
from agewatch.nights.ledger import Ledger
from agewatch.nights.schedule import AUTOMATIONS
from agewatch.release import loop, records
from agewatch.release.loop import LIMITS, Limits, Wanted
from agewatch.settings import Settings
from flows.shown import require_server

DRIFT, WANTED = "agewatch.drift", "agewatch.retrain-wanted"
RETRAIN = "retrain/retrain"
"""The deployment that is run, as FLOW/DEPLOYMENT."""
_LOG = logging.getLogger(__name__)


def tell(content: Mapping[str, Any], *, table: Path | None = None, limits: Limits = LIMITS) -> Wanted:
    """Tell Prefect of a drift run, by what its `drift.json` holds, and ask for a retraining where one is wanted.

    Only drift is told. `table` is by default that of the settings. A server that is away fails nothing: then nothing is
    put on record, and the next night asks again. Raises TableError or ModelError.
    """
    settings = Settings()
    answer, alarm = loop.asked(
        content, table=table or settings.predictions, folder=settings.model_store, limits=limits,
        failed=Ledger(settings.home).retrainings_failed,
    )  # fmt: skip
    if content["verdict"] != "drift":
        return answer
    resource = Resource(
        {
            "prefect.resource.id": f"agewatch.archive.{content['archive']}",
            "prefect.resource.name": content["archive"],
            "agewatch.wanted": answer.answer,
        }
    )
    events = [Event(event=DRIFT, resource=resource, payload=_payload(content, answer))]
    if answer.answer == "retrain":
        payload = {"archive": alarm.archive, "because": alarm.id, "new_labels": alarm.new_labels, "why": answer.why}
        events.append(Event(event=WANTED, resource=resource, payload=payload))
        records.keep(settings.model_store, alarm)  # before it is asked for, as the retraining names it
    try:
        require_server()
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json") for event in events])
    except (httpx.HTTPError, OSError, RuntimeError, PrefectException) as error:
        records.forget(settings.model_store, alarm)
        _LOG.warning("Prefect could not be told of the drift: %r.", error)
    return answer


def automations(deployment: UUID) -> list[AutomationCore]:
    """What reacts to the events: one runs the deployment of the retraining, by its id; one trains nothing.

    The second is for what a person has to look at: an action of a team's own, such as a message, may be added to it.
    """
    because = {"because": {"__prefect_kind": "jinja", "template": "{{ event.payload['because'] }}"}}
    return [
        AutomationCore(
            name=AUTOMATIONS[0],
            description="The people changed, or the error by labels rose, and there are enough new labels.",
            trigger=_each({WANTED}, "retrain"),
            actions=[
                RunDeployment(source="selected", deployment_id=deployment, parameters=because, job_variables=None)
            ],
        ),
        AutomationCore(
            name=AUTOMATIONS[1],
            description="Nothing is trained; the event says what to look at.",
            trigger=_each({DRIFT}, "look"),
            actions=[DoNothing()],
        ),
    ]


def ensure_automations() -> list[str]:
    """Create the automations, or bring them up to date, and return their names; one that a person paused stays so.

    Raises UsageError where the retraining is not deployed, what Prefect raises where its server does not answer.
    """
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(RETRAIN)
        except ObjectNotFound as error:
            raise UsageError(f"There is no deployment {RETRAIN}: run `prefect --no-prompt deploy --all`.") from error
        made = automations(deployment.id)
        for automation in made:
            held = client.read_automations_by_name(automation.name)
            if not held:
                client.create_automation(automation)
                continue
            actions = held[0].actions if isinstance(automation.actions[0], DoNothing) else automation.actions
            kept = automation.model_copy(update={"enabled": held[0].enabled, "actions": actions})
            client.update_automation(held[0].id, kept)
    return [automation.name for automation in made]


def _each(events: set[str], answer: str) -> EventTrigger:
    """Reacts to each event of an archive with an answer."""
    match = ResourceSpecification({"prefect.resource.id": "agewatch.archive.*", "agewatch.wanted": answer})
    return EventTrigger(expect=events, match=match, posture=Posture.Reactive, threshold=1, within=timedelta(0))


def _payload(content: Mapping[str, Any], answer: Wanted) -> dict[str, Any]:
    """What leaves the machine of a drift run: counts, years, its verdict in words; no path."""
    window, age = content["window"], next((c for c in content["columns"] if c["name"] == "age"), None)
    measured = content["fit"]["measured_mae"]
    return {
        **{name: content[name] for name in ("archive", "verdict", "cause", "headline", "since", "model", "mode")},
        "evidence": content["evidence"],
        "faces": window["n_faces"],
        "files": window["n_files"],
        "age_years": age and age["effect"],
        "measured_mae_years": measured and measured["value"],
        "wanted": answer.answer,
        "why": answer.why,
    }
