"""What `agewatch status` knows: of each archive its last and next night, what runs now, and drift; and of this home.

Light on purpose: a timer asks for it every few minutes, also while nothing else of agewatch runs.
"""

import json
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from agewatch.errors import ModelError, TableError
from agewatch.files import is_held
from agewatch.nights import alerts, schedule
from agewatch.nights.alerts import Alerter
from agewatch.nights.ledger import Ledger, Night, Outcome
from agewatch.nights.night import whose_turn
from agewatch.nights.schedule import NIGHT, RETRAIN, Planned
from agewatch.release import store
from agewatch.settings import Settings

UP_LOCK = "up.lock"
"""In the ledger's folder: `agewatch up` holds it (flock) as long as it runs."""
PAGES = Path("nights") / "pages.json"
"""Below the home: where `agewatch up` shows the reports, and where Prefect's API is."""
SILENT = timedelta(minutes=5)
"""A run that was not heard of for so long hangs, or its machine sleeps."""
MISSING: frozenset[Outcome] = frozenset({"missed", "crashed", "failed", "gone"})
"""Outcomes that leave a night to be made up."""
_BESIDE: frozenset[Outcome] = frozenset({"skipped", "covered"})  # another night did the work, and tells of it
_NO_ANSWER: frozenset[Outcome] = _BESIDE | {"cancelled", "stopped"}


@dataclass(frozen=True)
class ArchiveState:
    """Where an archive stands, by the ledger. Times are UTC.

    `last` is its last night that ended, `running` the one under way, `judged` the last one with a verdict on drift.
    `waits_for` is the archive whose turn it is meanwhile. `is_missing`: the last night that was due is not made up;
    `is_silent`: the one under way was not heard of for SILENT; `is_long`: it goes on for schedule.LONG. `next_due` is
    None where it is paused or no longer planned, or not known.
    """

    archive: str
    is_planned: bool
    is_paused: bool
    next_due: datetime | None
    last: Night | None
    running: Night | None
    waits_for: str | None
    judged: Night | None
    is_missing: bool
    is_silent: bool
    is_long: bool

    @property
    def drifts(self) -> bool:
        """Whether the last verdict was drift."""
        return self.judged is not None and self.judged.figures["verdict"] == "drift"

    def content(self) -> dict[str, Any]:
        """As `status --json` holds it."""
        verdict = self.judged.figures if self.judged else {}
        return {
            "archive": self.archive,
            "planned": self.is_planned,
            "paused": self.is_paused,
            "next": _iso(self.next_due),
            "missing": self.is_missing,
            "silent": self.is_silent,
            "long": self.is_long,
            "last": _row(self.last) if self.last else None,
            "running": {**_row(self.running), "waits_for": self.waits_for} if self.running else None,
            "drift": {key: verdict.get(key) for key in ("verdict", "headline", "cause", "since", "advice")},
        }


@dataclass(frozen=True)
class Status:
    """Where everything stands at a time, UTC. `disk_free` is in bytes; `model` None is the starter model.

    `held` are models that passed against the current one and wait for approval; `retraining` is the last row of the
    flow of that name. `problems` are sentences about what could not be looked up.
    """

    at: datetime
    home: Path
    is_up: bool
    archives: list[ArchiveState]
    model: str | None
    model_since: str | None
    held: list[str]
    retraining: Night | None
    disk_free: int
    alerter: Alerter
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """6 where a night is missing, late, silent or long; else 4 where drift stands; else 0."""
        planned = [state for state in self.archives if state.is_planned]
        if any(state.is_missing or state.is_silent or state.is_long for state in planned):
            return 6
        return 4 if any(state.drifts for state in planned) else 0

    def content(self) -> dict[str, Any]:
        """As `status --json` holds it."""
        return {
            "at": _iso(self.at),
            "home": str(self.home),
            "up": self.is_up,
            "archives": [state.content() for state in self.archives],
            "model": self.model,
            "model_since": self.model_since,
            "held_for_approval": self.held,
            "retraining": self.retraining and _row(self.retraining),
            "disk_free": self.disk_free,
            "alerts": {
                "channels": self.alerter.channels,
                "sent": _iso(self.alerter.sent),
                "asked": _iso(self.alerter.asked),
                "unsent": self.alerter.unsent,
            },
            "problems": self.problems,
            "exit_code": self.exit_code,
        }


def look(settings: Settings, now: datetime | None = None) -> Status:
    """Bring the ledger up to date and say where everything stands.

    Raises UsageError where there is no `prefect.yaml` or it can't be understood, TableError where the ledger can't be
    read.
    """
    now = now or datetime.now(UTC)
    planned, channels, problems = schedule.read(), alerts.channels(), []
    ledger = Ledger(settings.home)
    try:
        schedule.settle(ledger, planned, now)
    except TableError as error:  # a full disk: what it held before is told all the same
        problems.append(str(error))
    model = since = None
    held: list[str] = []
    try:
        if (pointer := store.read_pointer(settings.model_store)) is not None:
            model, since = pointer.model, pointer.promoted_at
        held = _held(settings.model_store, pointer)
    except ModelError as error:
        problems.append(str(error))
    wanted = {one.archive: one for one in planned if one.flow == NIGHT}
    others = ledger.archives(NIGHT) - {*wanted}
    return Status(
        now, settings.home, is_up(ledger),
        [_state(ledger, name, wanted.get(name), now) for name in [*wanted, *sorted(others)]],
        model, since, held, next(iter(ledger.nights("", RETRAIN, newest=1)), None),
        shutil.disk_usage(settings.home).free, alerts.look(ledger, channels), problems,
    )  # fmt: skip


def is_up(ledger: Ledger) -> bool:
    """Tell whether `agewatch up` runs for this home."""
    return is_held(ledger.folder / UP_LOCK)


def shown_at(home: Path, what: Literal["url", "api"]) -> str | None:
    """The address of the reports, or of Prefect's API, while `agewatch up` runs."""
    try:
        return str(json.loads((home / PAGES).read_text(encoding="utf-8"))[what])
    except (OSError, ValueError, KeyError):
        return None


def _state(ledger: Ledger, archive: str, one: Planned | None, now: datetime) -> ArchiveState:
    nights = ledger.nights(archive, NIGHT, newest=_ENOUGH)
    ended = [night for night in nights if night.outcome is not None]
    running = next((night for night in reversed(nights) if night.outcome is None), None)
    answered = next((night for night in reversed(ended) if night.outcome not in _NO_ANSWER), None)
    judged = [night for night in ended if night.figures.get("verdict") is not None]
    turn = whose_turn(ledger) if running else None
    return ArchiveState(
        archive,
        one is not None,
        one is not None and not one.is_active,
        None if one is None else _next(one, nights, now),
        next((night for night in reversed(ended) if night.outcome not in _BESIDE), ended[-1] if ended else None),
        running,
        turn if turn != archive else None,
        max(reversed(judged), key=lambda night: night.ended or night.due, default=None),
        answered is not None and answered.outcome in MISSING,
        running is not None and now - (running.heartbeat or running.due) > SILENT,
        running is not None and now - (running.started or now) > schedule.LONG,
    )


def _next(one: Planned, nights: list[Night], now: datetime) -> datetime | None:
    """When an archive is due next; of an interval without an anchor, from its last night on."""
    if one.every is None or one.anchor is not None or not nights:
        return one.next_due(now)
    return nights[-1].due + one.every * ((now - nights[-1].due) // one.every + 1)


def _held(models: Path, pointer: store.Pointer | None) -> list[str]:
    """Models that passed against the current one and were not promoted, the latest first."""
    if pointer is None:
        return []
    found = []
    for file in sorted((models / "decisions").glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["champion"] == pointer.model and record["decision"]["promote"]:
                found.append((str(record["decided_at"]), str(record["challenger"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"The decision {file} can't be read: {error!r}.") from error
    return list(dict.fromkeys(model for _, model in sorted(found, reverse=True)))


def _row(night: Night) -> dict[str, Any]:
    return {
        "due": _iso(night.due),
        "started": _iso(night.started),
        "heartbeat": _iso(night.heartbeat),
        "ended": _iso(night.ended),
        "outcome": night.outcome,
        "reason": night.reason,
        "attempts": night.attempts,
        "figures": night.figures,
    }


def _iso(when: datetime | None) -> str | None:
    """A time in this machine's zone, with its offset."""
    return None if when is None else when.astimezone().isoformat(timespec="seconds")


_ENOUGH = 200  # nights in which the last verdict and the last answer are looked for
