"""Which archives are scored when: what `prefect.yaml` says, and which nights were due."""

import os
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from cronsim import CronSim, CronSimError

from agewatch.errors import UsageError
from agewatch.nights.ledger import Ledger, Night
from agewatch.nights.night import end_dead

FILE = Path("prefect.yaml")
"""Where it lies: in the folder in which agewatch is run."""
NIGHT, RETRAIN = "night", "retrain"
"""The flows that leave rows in the ledger."""
MOST_GRACE = timedelta(minutes=15)
"""A night that has not begun so long after it was due is missed; less where nights follow each other sooner."""
_LONGEST = 1_000  # nights that are looked back on


@dataclass(frozen=True)
class Planned:
    """A deployment of `prefect.yaml`: which archive is scored when. `folder` and `archive` are empty for `retrain`.

    `schedule` is its text, such as `0 1 * * *`; `every` stands in its place where nights are so many seconds apart.
    """

    deployment: str
    flow: str
    archive: str
    folder: str
    parameters: dict[str, Any]
    cron: str | None
    timezone: str
    every: timedelta | None
    anchor: datetime | None
    is_active: bool

    @property
    def schedule(self) -> str:
        """What says when, as one text: nights are expected since it was said first."""
        when = self.cron or f"{self.every}, {self.anchor}"
        return f"{when} {self.timezone}" if self.is_active else "never"

    def due(self, since: datetime, until: datetime) -> list[datetime]:
        """The times (UTC) in which it was due, after one and not after another; of many, the last."""
        if not self.is_active:
            return []
        if self.every is not None:
            first = self.anchor or since
            steps = range((since - first) // self.every + 1, (until - first) // self.every + 1)
            return [first + step * self.every for step in steps[-_LONGEST:]]
        found: list[datetime] = []
        for when in self._times(since):
            if when > until:
                break
            found.append(when)
        return found[-_LONGEST:]

    def next_due(self, now: datetime) -> datetime | None:
        """When it is due next, UTC."""
        if not self.is_active:
            return None
        if self.every is not None:
            return self.due(now, now + self.every)[-1]
        return next(iter(self._times(now)), None)

    def interval(self, now: datetime) -> timedelta:
        """The time between the two nights that come next."""
        if self.every is not None:
            return self.every
        first = self.next_due(now)
        second = first and self.next_due(first)
        return second - first if first and second else timedelta(days=1)

    def grace(self, now: datetime) -> timedelta:
        """So long after it was due a night may begin."""
        return min(MOST_GRACE, self.interval(now) / 2)

    def _times(self, since: datetime) -> Any:
        assert self.cron is not None
        return (when.astimezone(UTC) for when in CronSim(self.cron, since.astimezone(ZoneInfo(self.timezone))))


def read(file: Path = FILE) -> list[Planned]:
    """The deployments of `prefect.yaml` that leave rows in the ledger.

    Raises UsageError where the file is not there, is no YAML, or says something that no schedule can be.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"There is no {file}: `agewatch init ARCHIVE...` writes one.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is no YAML: {' '.join(str(error).split())}.") from error
    listed = content.get("deployments") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise UsageError(f"{file} holds no deployments: `agewatch init ARCHIVE...` writes some.")
    try:
        return [one for each in listed if (one := _planned(each)) is not None]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} can't be understood: {error!r}.") from error


def definitions(file: Path = FILE) -> dict[str, Any]:
    """What stands under `definitions: agewatch:` of `prefect.yaml`, such as where alerts go. Raises UsageError."""
    read(file)
    told = (yaml.safe_load(file.read_text(encoding="utf-8")).get("definitions") or {}).get("agewatch")
    return told if isinstance(told, dict) else {}


def archive_of(folder: str, name: str | None) -> str:
    """An archive's name in the ledger: the one given, or its folder's."""
    return unicodedata.normalize(
        "NFC", name or os.fsencode(Path(folder).resolve().name).decode(errors="backslashreplace")
    )


def settle(ledger: Ledger, planned: list[Planned], now: datetime) -> None:
    """Write what became of nights that nobody wrote about: dead ones as crashed, those never begun as missed."""
    end_dead(ledger)
    for one in planned:
        since = ledger.watch(one.archive, one.flow, one.schedule, now)
        for due in missing(one, ledger.nights(one.archive, one.flow, _LONGEST), since, now):
            ledger.miss(one.archive, one.flow, due, "It was due and never began: was agewatch running?")


def missing(
    one: Planned, nights: list[Night], since: datetime, now: datetime, *, grace: timedelta | None = None
) -> list[datetime]:
    """The nights that were due and have no row; `grace` is by default the deployment's own.

    A row counts for the night that it is nearest to: where the clock changes, Prefect may be an hour apart from us.
    """
    known, near = [night.due for night in nights], one.interval(now) / 2
    since = max(since, now - _LONGEST * one.interval(now))
    due = one.due(since, now - (one.grace(now) if grace is None else grace))
    return [when for when in due if not any(abs(when - other) < near for other in known)]


def _planned(deployment: dict[str, Any]) -> Planned | None:
    flow = str(deployment["entrypoint"]).rpartition(".")[2].rpartition(":")[2]
    if flow not in (NIGHT, RETRAIN):
        return None
    name, parameters = str(deployment["name"]), deployment.get("parameters") or {}
    schedules = deployment.get("schedules") or []
    if len(schedules) > 1:
        raise ValueError(f"{name} has several schedules; one is supported")
    said: dict[str, Any] = schedules[0] if schedules else {"active": False}
    zone, cron, every = str(said.get("timezone") or "UTC"), said.get("cron"), said.get("interval")
    anchor = said.get("anchor_date")
    try:
        ZoneInfo(zone)
        if cron is not None:
            CronSim(cron, datetime.now(UTC))
    except (ZoneInfoNotFoundError, CronSimError, ValueError) as error:
        raise ValueError(f"{name} has no schedule that can be followed: {error}") from error
    folder = str(parameters.get("archive_folder", ""))
    archive = archive_of(folder, parameters.get("name")) if folder else ""
    return Planned(
        name, flow, archive, folder, parameters, cron, zone,
        None if every is None else timedelta(seconds=float(every)),
        None if anchor is None else _utc(anchor),
        bool(said.get("active", True)) and (cron is not None or every is not None),
    )  # fmt: skip


def _utc(when: Any) -> datetime:
    moment = when if isinstance(when, datetime) else datetime.fromisoformat(str(when))
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
