"""The one screen of `agewatch status`."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from agewatch.nights.alerts import Alerter
    from agewatch.nights.ledger import Night
    from agewatch.nights.status import ArchiveState, Status

_BAD, _GOOD, _DIM, _WARN = "red", "green", "dim", "yellow"
_WORDS = {
    "done": "done", "refused": "many refused", "gone": "gone", "failed": "failed", "crashed": "crashed",
    "stopped": "stopped", "cancelled": "cancelled", "missed": "missed", "skipped": "skipped", "covered": "covered",
}  # fmt: skip
_FIGURES = (("found", "files"), ("scored", "new"), ("refused_now", "refused"), ("faces", "faces"))
_WIDE = 110  # columns of a terminal from which on an archive's figures stand in its line
_UNHEARD = timedelta(days=1)


def status(found: "Status") -> None:
    """Print it: a line an archive, what needs a look, and the rest."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    wide, local = console.width >= _WIDE, found.at.astimezone()
    up = Text("agewatch is up", _GOOD) if found.is_up else Text("agewatch is not up", _BAD)
    up.append("." if found.is_up else ": nights begin by themselves after `agewatch up`.", "default")
    console.print(up.append(f" Times are {local:%Z}; it is {local:%H:%M:%S}.", _DIM))
    console.print()
    console.print(_archives(found, wide))
    looks = [line for state in found.archives for line in _looks(state, found.at, wide)]
    looks += [Text(problem, _BAD) for problem in found.problems]
    if looks:
        console.print()
        console.print(Group(*looks))
    console.print()
    console.print(_rest(found))


def _archives(found: "Status", wide: bool) -> Table:
    grid = Table(box=None, pad_edge=False)
    figured = _FIGURES if wide else ()
    grid.add_column("archive", overflow="fold", min_width=10)
    grid.add_column("last night", no_wrap=True)
    grid.add_column("", no_wrap=True)
    for _, name in figured:
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("drift", no_wrap=True)
    grid.add_column("next night", no_wrap=True)
    for state in found.archives:
        last, figures = state.last, state.last.figures if state.last else {}
        grid.add_row(
            state.archive,
            _when(last.due, found.at) if last else "",
            _outcome(last),
            *(f"{figures[key]:,}" if isinstance(figures.get(key), int) else "" for key, _ in figured),
            _drift(state),
            _next(state, found.at),
        )
    return grid


def _outcome(last: "Night | None") -> Text:
    if last is None:
        return Text("none yet", _DIM)
    style = _GOOD if last.outcome == "done" else _DIM if last.outcome in ("skipped", "covered", "cancelled") else _BAD
    told = Text(_WORDS[str(last.outcome)], style)
    if last.outcome == "done" and last.started and last.ended:
        told.append(f", {_long(last.ended - last.started)}", "default")
    return told


def _drift(state: "ArchiveState") -> Text:
    if state.judged is None:
        return Text("", _DIM)
    verdict = state.judged.figures
    if not state.drifts:
        return Text("no", _GOOD) if verdict["verdict"] == "no_drift" else Text("too early", _DIM)
    return Text(str(verdict.get("cause") or "yes"), _BAD)


def _next(state: "ArchiveState", now: datetime) -> Text:
    if state.running is not None:
        return Text("waits" if state.waits_for else "running", _WARN)
    if not state.is_planned:
        return Text("not planned", _DIM)
    if state.is_paused:
        return Text("paused", _DIM)
    return Text(
        _when(state.next_due, now) if state.next_due else "not known yet", "default" if state.next_due else _DIM
    )


def _looks(state: "ArchiveState", now: datetime, wide: bool) -> list[Text]:
    """What is to be said of an archive beside its line."""
    lines = []

    def say(told: str, style: str = "default") -> None:
        lines.append(Text.assemble((state.archive, "bold"), (": ", "bold"), (told, style)))

    if state.running is not None:
        began, heard = state.running.started or now, state.running.heartbeat or now
        told = f"under way for {_long(now - began)}, heard of {_long(now - heard)} ago"
        told += f"; it waits for {state.waits_for}" if state.waits_for else ""
        hangs = state.is_silent or state.is_long
        say(f"{told}. Does it hang?" if hangs else f"{told}.", _BAD if hangs else _WARN)
    figures = state.last.figures if state.last is not None and not wide else {}
    if told := ", ".join(f"{figures[key]:,} {name}" for key, name in _FIGURES if isinstance(figures.get(key), int)):
        say(f"{told}.", _DIM)
    if left := state.last.figures.get("left_to_rescore") if state.last is not None else 0:
        say(f"{left:,} files have rows of an older model only; the next nights go on.")
    if state.last is not None and state.last.reason and state.last.outcome not in ("skipped", "covered"):
        say(state.last.reason)
    if state.drifts and state.judged is not None:
        verdict = state.judged.figures
        since = f"drift since {verdict['since']}" if verdict.get("since") else "drift"
        say(" ".join(filter(None, (f"{since}.", verdict.get("headline"), verdict.get("advice")))))
    return lines


def _rest(found: "Status") -> Table:
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    model = f"{found.model}, current since {found.model_since}" if found.model else "the starter model"
    grid.add_row("model", model)
    if found.retraining is not None:
        last = found.retraining
        told = _WORDS[last.outcome] if last.outcome else "under way"
        grid.add_row("retraining", f"{_when(last.due, found.at)}: {told}. {last.reason or ''}".strip())
    for model in found.held:
        grid.add_row("held", f"{model} passed; it waits for `agewatch models promote`")
    grid.add_row("disk", f"{found.disk_free / 1e9:,.1f} GB free for {found.home}")
    grid.add_row("alerts", _alerts(found.alerter, found.at))
    return grid


def _alerts(alerter: "Alerter", now: datetime) -> Text:
    told = Text(", ".join(alerter.channels) or "no way named in prefect.yaml", "default" if alerter.channels else _WARN)
    told.append(f"; sent last {_when(alerter.sent, now)}" if alerter.sent else "; none sent yet")
    quiet = alerter.asked is None or now - alerter.asked > _UNHEARD
    asked = (
        f"; asked for last {_when(alerter.asked, now)}" if alerter.asked else "; nobody asks: `agewatch status --alert`"
    )
    told.append(asked, _WARN if quiet else "default")
    if alerter.unsent:
        told.append(f"; {alerter.unsent:,} to be sent", _WARN)
    return told


def _when(when: datetime, now: datetime) -> str:
    """A time in this machine's zone, short: with seconds where it has some, with the year where that is another."""
    local, today = when.astimezone(), now.astimezone()
    clock = f"{local:%H:%M:%S}" if local.second else f"{local:%H:%M}"
    if local.date() == today.date():
        return f"today {clock}"
    return f"{local:%a %d %b} {clock}" if local.year == today.year else f"{local:%Y-%m-%d} {clock}"


def _long(span: timedelta) -> str:
    """A time's length in words."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 2 * 3600:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 48 * 3600 else f"{seconds // 86400} days"
