"""Which archives are scored when: what `prefect.yaml` says, and which nights were due."""

import itertools
import os
import unicodedata
from collections import deque
from collections.abc import Iterator
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
AUTOMATIONS = ("agewatch: retrain where it is wanted", "agewatch: look where a camera or this machine changed")
"""The names of what Prefect does on its own: `flows.events` makes them."""
NIGHT, RETRAIN = "night", "retrain"
"""The flows that leave rows in the ledger."""
MOST_GRACE = timedelta(minutes=15)
"""A night that has not begun so long after it was due is missed; less where nights follow each other sooner."""
LONG = timedelta(hours=24)
"""Of a night that is under way for so long somebody is told, also where it says that it is alive."""
_LONGEST = 1_000  # nights that are looked back on
_CLOCK_CHANGE = timedelta(hours=3)  # no zone changes its clock by more


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
        """The times (UTC) in which it was due, after one and not after another; of many, the last.

        An interval without an anchor has none: Prefect counts it from when it was deployed.
        """
        if not self.is_active or (self.every is not None and self.anchor is None):
            return []
        found: deque[datetime] = deque(maxlen=_LONGEST)
        for when in self._times(max(since, until - _LONGEST * self.interval(until))):
            if when > until:
                break
            found.append(when)
        return list(found)

    def next_due(self, now: datetime) -> datetime | None:
        """When it is due next, UTC; None where it is never due, or only Prefect knows."""
        if not self.is_active or (self.every is not None and self.anchor is None):
            return None
        return next(self._times(now), None)

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

    def _times(self, since: datetime) -> Iterator[datetime]:
        """All times after one, UTC, as Prefect has them."""
        if self.every is not None and self.anchor is not None:
            for step in itertools.count((since - self.anchor) // self.every + 1):
                yield self.anchor + step * self.every
        zone, last = ZoneInfo(self.timezone), since
        for wall in CronSim(self.cron or "", (since - _CLOCK_CHANGE).astimezone(zone).replace(tzinfo=None)):
            # An hour that comes twice counts the first time, and one that is left out as the hour before it.
            when = min(wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
            if when > last:
                yield when
                last = when


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
        planned = [one for each in listed if (one := _planned(each)) is not None]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = error if isinstance(error, ValueError) else repr(error)
        raise UsageError(f"{file} can't be understood: {why}.") from error
    names = [one.archive or one.flow for one in planned]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{file} has several deployments of {twice}: an archive has one, and its own name.")
    return planned


def definitions(file: Path = FILE) -> dict[str, Any]:
    """What stands under `definitions: agewatch:` of `prefect.yaml`, such as where alerts go. Raises UsageError."""
    read(file)
    told: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key in ("definitions", "agewatch"):
        told = told.get(key) or {}
        if not isinstance(told, dict):
            raise UsageError(f"{file}: what stands under {key} is no mapping.")
    return dict(told)


def archive_of(folder: str, name: str | None) -> str:
    """An archive's name in the ledger: the one given, or its folder's."""
    return unicodedata.normalize(
        "NFC", name or os.fsencode(Path(folder).resolve().name).decode(errors="backslashreplace")
    )


def settle(ledger: Ledger, planned: list[Planned], now: datetime | None = None) -> None:
    """Write what became of nights that nobody wrote about: dead ones as crashed, those never begun as missed.

    One that is under way for LONG is told.
    """
    now = now or datetime.now(UTC)
    end_dead(ledger)
    for night in ledger.under_way():
        if now - (night.started or now) > LONG:
            ledger.tell_long(night)
    for one in planned:
        since = ledger.watch(one.archive, one.flow, one.schedule, now)
        due = missing(one, ledger.nights(one.archive, one.flow, _LONGEST), since, now)
        ledger.miss(one.archive, one.flow, due, "It was due and never began: was agewatch running?")


def missing(
    one: Planned, nights: list[Night], since: datetime, now: datetime, *, grace: timedelta | None = None
) -> list[datetime]:
    """The nights that were due after one time and have no row; `grace` is by default the deployment's own."""
    known = {night.due for night in nights}
    if one.is_active and one.every is not None and one.anchor is None:
        return _gaps(one.every, sorted(known), since, now, one.every if grace is None else grace)
    due = one.due(since, now - (one.grace(now) if grace is None else grace))
    return [when for when in due if when.replace(microsecond=0) not in known]


def _gaps(every: timedelta, known: list[datetime], since: datetime, now: datetime, grace: timedelta) -> list[datetime]:
    """Nights that are missing in a row of equal steps that begin anywhere: each deployment counts its own anew.

    A step of less than two intervals is none too many, so that the last night is waited for an interval.
    """
    found: list[datetime] = []
    last = since if len(known) < _LONGEST else max(since, known[0])
    steps = [(when, every - timedelta(seconds=1)) for when in known if when > last]
    for when, more in [*steps, (now, grace)]:
        while when - last >= every + more and len(found) < _LONGEST:
            last += every
            found.append(last)
        last = when
    return found


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
    if said.get("active", True) and schedules and cron is None and every is None:
        raise ValueError(f"{name} has no cron and no interval")
    if every is not None and float(every) <= 0:
        raise ValueError(f"{name} has an interval of {every} seconds")
    if every is not None and zone != "UTC":
        raise ValueError(f"{name} has an interval in a zone, where Prefect's own dates waver: a cron has none of that")
    try:
        ZoneInfo(zone)
        if cron is not None:
            CronSim(cron, datetime.now(UTC))
    except (ZoneInfoNotFoundError, CronSimError, ValueError) as error:
        raise ValueError(f"{name} has no schedule that can be followed: {error}") from error
    folder = str(parameters.get("archive_folder", ""))
    if flow == NIGHT and not folder:
        raise ValueError(f"{name} names no archive_folder")
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
