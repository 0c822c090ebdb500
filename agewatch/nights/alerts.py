"""Alerts: what somebody must be told of the nights, and the ways on which it goes out.

Each way keeps how far it has told, so that one that is broken is told again and the others are not. What goes out
holds counts, names of archives and reasons; see design, Privacy.
"""

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agewatch.errors import AgewatchError, UsageError
from agewatch.nights import schedule
from agewatch.nights.ledger import TROUBLE, Ledger, News
from agewatch.settings import without_paths

COMMAND_SECONDS, WEBHOOK_SECONDS = 60.0, 10.0
WEBHOOK_TRIES, MOST_WAIT_SECONDS = 4, 8.0
PRINTED = "printed"
"""The way that alerts take where `prefect.yaml` names none."""
_COUNTS = ("found", "scored", "faces", "no_face", "refused", "refused_now", "disappeared", "lost")
_ASKED, _SENT, _TOLD = "alerts.asked", "alerts.sent", "alerts.told."
_LINES = 20


class AlertError(AgewatchError):
    """A way did not take an alert. The text says which and why, without what is secret about it."""

    code = "alert"


class Channels(BaseModel):
    """What `prefect.yaml` says under `definitions: agewatch: alert:`, one or several of these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: Annotated[list[str], Field(min_length=1)] | None = None
    webhook: Annotated[str, Field(pattern=r"^https?://[^/\s]+")] | None = None
    block: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")] | None = None

    @property
    def names(self) -> list[str]:
        """Those that are set."""
        return [name for name, told in self if told is not None]


@dataclass(frozen=True)
class Item:
    """A night that needs a look. `what` is an outcome, `drift` or `long`; `since_then` what became of it after that.

    `counts` are of files and faces; `cause`, `since` and `advice`, what is to be done about it, are of drift only.
    """

    archive: str
    flow: str
    due: str
    what: str
    reason: str | None
    counts: dict[str, Any]
    cause: str | None = None
    since: str | None = None
    advice: str | None = None
    since_then: str | None = None


@dataclass(frozen=True)
class Alert:
    """One message: a subject, a text, and its items."""

    subject: str
    text: str
    items: tuple[Item, ...]

    def content(self) -> dict[str, Any]:
        """As commands and webhooks get it."""
        return asdict(self)


@dataclass(frozen=True)
class Alerter:
    """How alerts go out: by which ways, when one was sent last and asked for last (UTC), and how many items wait."""

    channels: list[str]
    sent: datetime | None
    asked: datetime | None
    unsent: int


@dataclass(frozen=True)
class Sent:
    """What was done about what is new: by way, the alert that it took, or why it did not take it."""

    taken: dict[str, Alert]
    failed: dict[str, str]


def channels(file: Path = schedule.FILE) -> Channels:
    """The ways that `prefect.yaml` names. Raises UsageError."""
    try:
        return Channels.model_validate(schedule.definitions(file).get("alert") or {})
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UsageError(f"{file}: definitions, agewatch, alert can't be understood: {said}.") from error


def look(ledger: Ledger, ways: Channels) -> Alerter:
    """How alerts went out until now."""
    sent, asked = (text and datetime.fromisoformat(text) for text in (ledger.kept(_SENT), ledger.kept(_ASKED)))
    unsent = max(len(ledger.news(_told(ledger, name))) for name in ways.names or [PRINTED])
    return Alerter(ways.names, sent or None, asked or None, unsent)


def send(ledger: Ledger, ways: Mapping[str, Callable[[Alert], None]], folders: Sequence[Path] = ()) -> Sent:
    """Send what is new on each way; each keeps how far it has told only when it took it.

    A way raises AlertError where it did not take the alert. `folders` are the archives', which no alert names.
    """
    taken: dict[str, Alert] = {}
    failed: dict[str, str] = {}
    with (ledger.folder / "alert.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two timers at once tell it once
        ledger.keep(_ASKED, _now())
        for name, told in {name: _told(ledger, name) for name in ways}.items():
            ledger.keep(_TOLD + name, str(told))  # a new way that is broken does not follow the others later
        for name, way in ways.items():
            news = ledger.news(_told(ledger, name))
            try:
                if news:
                    alert = compose(ledger, news, folders)
                    way(alert)
                    ledger.keep(_TOLD + name, str(news[-1].id))
                    ledger.keep(_SENT, _now())
                    taken[name] = alert
            except AlertError as error:
                failed[name] = str(error)
    return Sent(taken, failed)


def compose(ledger: Ledger, news: list[News], folders: Sequence[Path] = ()) -> Alert:
    """One message of all that is new."""
    items = tuple(_item(ledger, each, folders) for each in news)
    nights = [item for item in items if item.what != "drift"]
    parts = []
    if nights:
        parts.append(f"{len(nights)} night{'s need' if len(nights) > 1 else ' needs'} a look: {_names(nights)}")
    if drifts := [item for item in items if item.what == "drift"]:
        parts.append(f"{'drift' if nights else 'Drift'} in {_names(drifts)}")
    lines = [_line(item) for item in items[-_LINES:]]
    if len(items) > _LINES:
        lines.insert(0, f"{len(items) - _LINES:,} older ones are not listed here.")
    return Alert("; ".join(parts), "\n".join([*lines, "`agewatch status` shows where everything stands."]), items)


def by_command(command: list[str], alert: Alert) -> None:
    """Start a program of the user's, without a shell, and give it the alert as JSON. Raises AlertError."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, text=True
        )
    except OSError as error:
        raise AlertError(f"The alert's command {command[0]} can't be started: {error.strerror}.") from error
    try:
        process.communicate(json.dumps(alert.content()), timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise AlertError(f"The alert's command {command[0]} had not ended after {COMMAND_SECONDS:.0f} s.") from error
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
    if process.returncode:
        raise AlertError(f"The alert's command {command[0]} ended with {process.returncode}.")


def by_webhook(url: str, alert: Alert) -> None:
    """Post the alert as JSON, again after a while where that may help. Raises AlertError."""
    import httpx  # `status` alone does without
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

    def may_pass(error: BaseException) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code >= 500 or error.response.status_code in (408, 429)
        return isinstance(error, httpx.TransportError)

    tries = Retrying(
        stop=stop_after_attempt(WEBHOOK_TRIES),
        wait=wait_random_exponential(max=MOST_WAIT_SECONDS),
        retry=retry_if_exception(may_pass),
        reraise=True,
    )
    where = urlsplit(url).netloc.rpartition("@")[2]  # the rest of a webhook's address is its secret
    try:
        tries(lambda: httpx.post(url, json=alert.content(), timeout=WEBHOOK_SECONDS).raise_for_status())
    except httpx.HTTPStatusError as error:
        raise AlertError(f"The alert's webhook at {where} answered {error.response.status_code}.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise AlertError(f"The alert's webhook at {where} was not reached ({type(error).__name__}).") from error


def _told(ledger: Ledger, name: str) -> int:
    """The id of the last news that went out on a way; a new way begins where the others are."""
    own = ledger.kept(_TOLD + name)
    if own is not None:
        return int(own)
    return max((int(ledger.kept(_TOLD + each) or 0) for each in (*Channels.model_fields, PRINTED)), default=0)


def _item(ledger: Ledger, news: News, folders: Sequence[Path]) -> Item:
    row = ledger.night(news.archive, news.flow, news.due)
    figures = row.figures if row else {}
    what, reason, then = news.what, news.reason, None
    if row is not None and what != "drift":
        if row.outcome in TROUBLE:  # what its row says now is the last word
            what, reason = row.outcome, row.reason
        elif row.outcome or what != "long":
            then = row.outcome or "running"
    counts = {name: figures[name] for name in _COUNTS if name in figures}
    drift = {"cause": "cause", "since": "since", "advice": "why"} if what == "drift" else {}
    said = {name: figures.get(figure) for name, figure in drift.items()}
    reason = reason and without_paths(reason, *folders)  # it leaves the machine
    return Item(news.archive, news.flow, news.due.isoformat(), what, reason, counts, **said, since_then=then)


def _line(item: Item) -> str:
    due = datetime.fromisoformat(item.due).astimezone()
    # The same drift is told again where its cause becomes clearer: without the cause both would read alike.
    what = f"{item.what}, cause {item.cause}" if item.cause else item.what
    line = " ".join(filter(None, (f"{_name(item)}, {due:%a %d %b %Y %H:%M:%S %Z}: {what}.", item.reason, item.advice)))
    if item.since_then is None:
        return line
    made_up = {"running": " It runs again now."} | dict.fromkeys(("done", "covered"), " It was made up since.")
    said = {} if item.what == "long" else made_up
    return line + said.get(item.since_then, f" Since then: {item.since_then}.")


def _names(items: list[Item]) -> str:
    return ", ".join(dict.fromkeys(map(_name, items)))


def _name(item: Item) -> str:
    return item.archive or "retraining"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
