"""Processes that tests start: with a log file, waited for, and always stopped with all that they started."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from agewatch.processes import free_ports

BIN = Path(sys.executable).parent
START_SECONDS = 180


def free_port() -> int:
    """Return a loopback port that nobody uses now."""
    return free_ports(1)[0]


@contextmanager
def started(
    command: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in the background; on leaving, end it and its descendants, whatever their group."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            _end(process)


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path, seconds: float) -> None:
    """Wait until a URL answers 200; fail with the log's end where the process ends or time runs out."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=10, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer; the log ends with:\n{log.read_text()[-4000:]}")


@contextmanager
def prefect_server(folder: Path) -> Iterator["Api"]:
    """A Prefect server on a free port, whose database and log lie in a folder."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = {name: text for name, text in os.environ.items() if not name.startswith(("PREFECT_", "AGEWATCH_"))}
    env |= {"PREFECT_HOME": str(folder), "PREFECT_API_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    env |= {"OMP_NUM_THREADS": "1", "PREFECT_WORKER_QUERY_SECONDS": "2"}
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "server.log"
    with started(command, log=log, cwd=folder, env=env) as process:
        wait_for(f"{url}/health", process, log, START_SECONDS)
        yield Api(url, env)


@dataclass(frozen=True)
class Api:
    """A running Prefect server."""

    url: str
    env: dict[str, str]

    def ask(self, path: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.url}/{path}", json=body, timeout=60, trust_env=False)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment."""
        return list(self.ask("flow_runs/filter", deployments={"name": {"any_": [deployment]}}))

    def artifacts(self, run_id: str) -> dict[str, Any]:
        """The data of a flow run's artifacts by their keys."""
        found = self.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
        return {artifact["key"]: artifact["data"] for artifact in found}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as found:
        yield found


@pytest.fixture
def here(api: Api) -> Iterator[Api]:
    """Flows called in this process report to the server."""
    import flows  # noqa: F401  before prefect: it turns telemetry off

    # isort: split
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    with temporary_settings({PREFECT_API_URL: api.url, PREFECT_HOME: api.env["PREFECT_HOME"]}):
        yield api


def _end(process: "subprocess.Popen[bytes]") -> None:
    # Prefect gives each flow run a session of its own, so a signal to the worker's group would miss them.
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        root.suspend()  # what is suspended starts nothing more
        family = [root]
        while fresh := [child for child in root.children(recursive=True) if child not in family]:
            for child in fresh:
                family.append(child)
                with suppress(psutil.NoSuchProcess):
                    child.suspend()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
