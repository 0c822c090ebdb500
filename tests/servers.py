"""Processes that tests start: with a log file, waited for, and always stopped with all that they started."""

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from agewatch.processes import free_ports


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
