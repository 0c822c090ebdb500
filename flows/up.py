"""`agewatch up`: Prefect's server, the deployments, one worker, and with `serve` TorchServe, all on loopback.

Prefect's own runner could stand in the worker's place. It is the worker, because a team's Prefect has workers, and the
same `prefect.yaml` is deployed there.
"""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, PrefectException
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from agewatch.errors import AgewatchError, TableError, UsageError
from agewatch.files import lock
from agewatch.nights import schedule
from agewatch.nights.ledger import Ledger
from agewatch.nights.schedule import Planned
from agewatch.nights.status import UP_LOCK
from agewatch.processes import LOOPBACK, interrupted_by_signals, is_free
from agewatch.settings import Settings
from agewatch.upkeep import retention
from flows import events, pages, runs
from flows.parts import Part
from monitoring import index

START_SECONDS = 180.0
"""So long Prefect's server may take to answer; its first start makes its database."""
SWEEP_SECONDS = 30.0
"""So often dead runs are ended and unfinished nights made up for."""
MOST_IN_VAIN = 4
"""After so many looks in vain a server that does not answer is started again."""
UNTOLD = timedelta(seconds=45)
"""A worker may take so long to start a run's process, or to tell its end."""
ALERT_SECONDS = 60.0
"""The shortest time between two alerts."""
KEPT_DAYS = 90
"""Prefect's own records of runs that ended before are deleted; the ledger keeps its rows."""
_CALM = {"LATE_RUNS": "30", "PAUSE_EXPIRATIONS": "300", "CLEANUP_RECONCILER": "60", "REPOSSESSOR": "60"}
"""How often Prefect's server looks after what a night a day hardly needs; every 5 seconds by its own default."""
_WRONG_PARAMETER = re.compile(r"Validation failed for field '(\w+)'. Failure reason: (.*?)\"")
_TIDIED = "tidied"
_LOCK_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_STOP_SECONDS = 25.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What is to run: with TorchServe, with Prefect's server on a port of loopback."""

    serve: bool = False
    server: bool = True
    port: int = 4200


def run(wanted: Wanted, tell: Tell) -> None:
    """Start all that is wanted, keep it running, and stop it when interrupted (also by SIGTERM).

    `tell` is given lines for a person. Raises UsageError where `prefect.yaml` is missing or wrong, AgewatchError where
    another `up` runs, or Prefect's server does not answer.
    """
    planned, settings = schedule.read(), Settings()
    home = settings.home.resolve()
    ledger = Ledger(home)
    with ExitStack() as undo:
        undo.enter_context(_alone(home))
        undo.enter_context(interrupted_by_signals())
        env = _environment(wanted, home)
        reports = undo.enter_context(pages.shown(home, settings.reports.resolve(), env["PREFECT_API_URL"]))
        up = _Up(wanted, planned, ledger, env, home, tell)
        undo.callback(up.stop)
        up.start()
        tell(f"{'Prefect':<16}{up.api.removesuffix('/api')}\n{'reports':<16}{reports}/\n{up.nights()}\nready")
        up.keep()


class _Up:
    def __init__(
        self, wanted: Wanted, planned: list[Planned], ledger: Ledger, env: dict[str, str], home: Path, tell: Tell
    ) -> None:
        self.wanted, self.planned, self.ledger, self.tell, self._env = wanted, planned, ledger, tell, env
        self.api = env["PREFECT_API_URL"]
        logs = home / "nights" / "logs"

        def part(name: str, *command: str, before: Callable[[], None] = lambda: None) -> Part:
            return Part(name, [sys.executable, *command], env, logs / f"{name}.log", before)

        prefect = ("-m", "prefect")
        where = ("--host", LOOPBACK, "--port", str(wanted.port))
        self._server = part("server", *prefect, "server", "start", *where) if wanted.server else None
        self._worker = part("worker", *prefect, "worker", "start", "--pool", runs.POOL, "--type", "process",
                            before=self._before_worker)  # fmt: skip
        self._serve = part("torchserve", "-m", "agewatch", "serve") if wanted.serve else None
        self._in_vain = 0
        self._said = schedule.FILE.read_bytes()
        self._again: list[str] = []
        self._since, self._swept = datetime.now(UTC), time.monotonic()
        self._alert: subprocess.Popen[str] | None = None
        self._alerted, self._next_alert = 0, 0.0

    @property
    def _parts(self) -> list[Part]:
        return [part for part in (self._server, self._worker, self._serve) if part is not None]

    def start(self) -> None:
        """Start all in their order, and make up for what was missed."""
        if self._server is not None:
            if _answers(self.api):
                raise AgewatchError(
                    f"Something answers at {self.api} already: stop it, take another port with --port, or use it with"
                    " --no-server and PREFECT_API_URL."
                )
            if not is_free(self.wanted.port):
                raise AgewatchError(
                    f"Port {self.wanted.port} is another program's: stop it, or take another port with --port."
                )
            self._server.start()
        self._wait_for_server()
        with self._client() as client:
            _make_pool(client)
            self._end_dead(client, timedelta(0))
            runs.drop_late(client, self.planned, datetime.now(UTC))
            self._deploy(client, self.planned)
            now = datetime.now(UTC)
            again = runs.make_up(client, self.ledger, self.planned, now, at_start=True, since=self._since)
            schedule.settle(self.ledger, self.planned, now)
        if again:
            self.tell(f"{'tonight':<16}begins now for {', '.join(again)}")
        for part in self._parts[1 if self.wanted.server else 0 :]:
            part.start()

    def keep(self) -> None:
        """Look after the parts and the nights until interrupted."""
        while True:
            time.sleep(_LOOK_SECONDS)
            for part in self._parts:
                part.look(self.tell)
            if time.monotonic() - self._swept >= SWEEP_SECONDS:
                self._swept = time.monotonic()
                try:
                    self._sweep()
                    self._in_vain = 0
                except (httpx.HTTPError, PrefectException, AgewatchError, OSError) as error:
                    self._in_vain += 1
                    self.tell(f"The nights can't be looked after now ({error}); it is tried again.")
                if self._server is not None and self._in_vain >= MOST_IN_VAIN and not _answers(self.api):
                    self._in_vain = 0
                    self.tell("Prefect's server runs and does not answer: it is started again.")
                    self._server.stop()

    def stop(self) -> None:
        """Stop all: the nights first, as a worker that ends kills them before they can say that they were stopped."""
        started = [process for found in runs.processes().values() for process in found if self._is_ours(process)]
        pids = {process.pid for process in started}
        for process in started:
            _end(process, pids)
        deadline = time.monotonic() + _STOP_SECONDS
        while any(map(_is_alive, started)) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS / 10)
        self._worker.stop()
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for part in (self._serve, self._server):
            if part is not None:
                part.stop()

    def nights(self) -> str:
        """When each archive's next night is, as lines."""
        now = datetime.now(UTC)
        lines = []
        for one in self.planned:
            due = one.next_due(now)
            otherwise = f"every {one.every}" if one.is_active and one.every else "no schedule"
            when = f"next {due.astimezone():%a %Y-%m-%d %H:%M %Z}" if due else otherwise
            lines.append(f"{one.archive or one.flow:<15} {when}")
        return "\n".join(lines)

    def _sweep(self) -> None:
        """Look after the ledger, which needs nobody, and then after Prefect's runs."""
        now = datetime.now(UTC)
        schedule.settle(self.ledger, self.planned, now)
        self._send_alerts()
        self._tidy(now)
        if not _answers(self.api):  # its client would try again for minutes
            raise AgewatchError("Prefect's server does not answer")
        with self._client() as client:
            self._follow_the_file(client)
            ended = self._end_dead(client, UNTOLD)
            again = runs.make_up(client, self.ledger, self.planned, now, at_start=False, since=self._since)
        if ended:
            self.tell(f"Ended without a word: {', '.join(ended)}.")
        if new := [archive for archive in again if archive not in self._again]:
            self.tell(f"Begins again, to make up for what is unfinished: {', '.join(new)}.")
        self._again = again

    def _end_dead(self, client: SyncPrefectClient, after: timedelta) -> list[str]:
        return runs.end_dead(client, self.ledger, self.planned, after=after, is_ours=self.wanted.server)

    def _follow_the_file(self, client: SyncPrefectClient) -> None:
        """Deploy what `prefect.yaml` says now, where somebody has changed it; what is wrong in it is told once."""
        try:
            said = schedule.FILE.read_bytes()
            if said == self._said:
                return
            self._said = said
            planned = schedule.read()
            self._deploy(client, planned)
            self.planned = planned
        except (UsageError, OSError) as error:
            self.tell(f"{error} What it said before goes on.")
            return
        self.tell(f"{schedule.FILE} was changed and is deployed anew:\n{self.nights()}")

    def _send_alerts(self) -> None:
        """Send what is new where `prefect.yaml` says so, in a process of its own: a channel may take minutes."""
        if self._alert is not None and self._alert.poll() is not None:
            if self._alert.returncode:
                self.tell(" ".join((self._alert.communicate()[1] or "").split()) or "An alert could not be sent.")
                self._alerted, self._next_alert = 0, time.monotonic() + 10 * ALERT_SECONDS
            self._alert = None
        news = self.ledger.news(self._alerted)
        if not news or self._alert is not None or time.monotonic() < self._next_alert:
            return
        self._next_alert = time.monotonic() + ALERT_SECONDS
        if not schedule.definitions().get("alert"):
            return
        self._alerted = news[-1].id
        command = [sys.executable, "-m", "agewatch", "status", "--alert"]
        env = {**os.environ, **self._env}
        self._alert = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def _tidy(self, now: datetime) -> None:
        """Once a day, clear away what is old."""
        if self.ledger.kept(_TIDIED) == now.date().isoformat():
            return
        self.ledger.keep(_TIDIED, now.date().isoformat())
        for problem in retention.tidy(Settings(), now).problems:
            self.tell(problem)
        with suppress(OSError):  # the next report makes it anew
            index.write(Settings().reports)

    def _before_worker(self) -> None:
        """A worker that starts before the server answers would end at once."""
        if not _answers(self.api):
            raise AgewatchError("Prefect's server does not answer yet")

    def _wait_for_server(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.api):
            if self._server is not None:
                self._server.look(self.tell)
            if time.monotonic() > deadline:
                raise AgewatchError(f"Prefect's server does not answer at {self.api}.")
            time.sleep(_LOOK_SECONDS / 2)

    def _deploy(self, client: SyncPrefectClient, planned: list[Planned]) -> None:
        """Deploy what `prefect.yaml` says, and end what it says no longer, where the server is ours."""
        file = str(schedule.FILE)
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file]
        done = subprocess.run(command, env={**os.environ, **self._env}, capture_output=True, text=True, check=False)
        if done.returncode:
            log = self._worker.log.with_name("deploy.log")
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(done.stdout + done.stderr, encoding="utf-8")
            said = _WRONG_PARAMETER.search(done.stdout + done.stderr)
            why = f"{said[1]} of a deployment is wrong: {said[2]}" if said else "Prefect does not take it"
            raise UsageError(f"{file} can't be deployed: {why}. {log} has all that was said.")
        if any(one.flow == schedule.RETRAIN for one in planned):
            events.ensure_automations()
        known = {one.deployment for one in planned}
        for deployment in client.read_deployments() if self.wanted.server else ():
            if deployment.work_pool_name == runs.POOL and deployment.name not in known:
                client.delete_deployment(deployment.id)

    @contextmanager
    def _client(self) -> Iterator[SyncPrefectClient]:
        settings = {PREFECT_API_URL: self.api}
        if "PREFECT_HOME" in self._env:
            settings[PREFECT_HOME] = self._env["PREFECT_HOME"]
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client

    def _is_ours(self, process: psutil.Process) -> bool:
        """Another worker of this machine may run flows of the same Prefect, for another home or none."""
        try:
            told = process.environ()
        except psutil.Error:
            return False
        return all(told.get(name) == self._env[name] for name in ("AGEWATCH_HOME", "PREFECT_API_URL"))


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    try:  # `status` holds it for an instant
        held = lock(home / "nights" / UP_LOCK, exclusive=True, seconds=_LOCK_SECONDS)
    except TableError as error:
        raise AgewatchError(f"agewatch is up already for {home}: `agewatch status` says what it does.") from error
    if held is None:
        raise AgewatchError(f"{home / 'nights'} can't be written.")
    with held:
        yield


def _environment(wanted: Wanted, home: Path) -> dict[str, str]:
    """What parts and flows are told. Prefect keeps its own things at home, but where the server is another's."""
    told = {"AGEWATCH_HOME": str(home), "AGEWATCH_MODEL_STORE": str(Settings().model_store.resolve())}
    if not wanted.server:
        url = PREFECT_API_URL.value()
        if not url:
            raise UsageError("--no-server needs a Prefect server: name its address in PREFECT_API_URL.")
        return told | {"PREFECT_API_URL": str(url)}
    services = "PREFECT_SERVER_SERVICES"
    return (
        told
        | {f"{services}_{name}_LOOP_SECONDS": seconds for name, seconds in _CALM.items()}
        | {
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": f"http://{LOOPBACK}:{wanted.port}/api",
            "PREFECT_SERVER_UI_API_URL": f"http://{LOOPBACK}:{wanted.port}/api",
            f"{services}_DB_VACUUM_ENABLED": "events,flow_runs",
            f"{services}_DB_VACUUM_RETENTION_PERIOD": str(KEPT_DAYS * 24 * 60 * 60),
        }
    )


def _answers(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=10, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _make_pool(client: SyncPrefectClient) -> None:
    try:
        client.create_work_pool(WorkPoolCreate(name=runs.POOL, type="process"))
    except ObjectAlreadyExists:
        return


def _end(process: psutil.Process, pids: set[int]) -> None:
    """Tell a flow to end, unless it is what another of them has started and ends itself."""
    with suppress(psutil.NoSuchProcess):
        if process.ppid() not in pids:
            process.terminate()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # its worker has yet to hear of it
    except psutil.NoSuchProcess:
        return False
