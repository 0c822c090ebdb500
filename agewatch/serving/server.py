"""The whole server in a `with` block: the door on a thread of its own, its lookers, and TorchServe behind it."""

import asyncio
import os
import resource
import secrets
import shlex
import shutil
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import safetensors
import uvicorn

from agewatch.errors import ModelError, ServeError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.files import write_json
from agewatch.processes import LOOPBACK, interrupted_by_signals
from agewatch.serving import door
from agewatch.serving.backends import Backends, Source
from agewatch.serving.connection import IDLE_SECONDS, PATIENCE_SECONDS, Connection, watch
from agewatch.serving.gate import MOST_CONNECTIONS, Gate
from agewatch.serving.logs import LogFormat, open_log
from agewatch.serving.looking import DEADLINE_SECONDS, Lookers
from agewatch.serving.torchserve import MODEL_NAME, How

DRAIN_SECONDS = 25.0
"""So long what is under way may take when the server is told to stop."""
MEMORY_GB = 3.0
"""For the pictures of a server and the processes that look at them, unless AGEWATCH_MEMORY_GB says otherwise."""
LEAST_FREE_BYTES = 100_000_000
"""For logs and the converted network, or in the temporary folder for the model and what it holds."""
_POLL_SECONDS = 0.01
_MOST_TMPDIR_BYTES = 55
"""A Unix socket's path has at most 107 bytes (unix(7)); ours adds `/agewatch-65535-xxxxxxxx/99999/.ts.sock.99999`."""
_CUT_SECONDS = 2  # for connections whose requests have not arrived by then


@dataclass(frozen=True)
class Wanted:
    """What is to be served: a file, or the store's current model for as long as it is that, and where.

    Beyond loopback a certificate and its key, PEM files, are needed.
    """

    how: How
    model_store: Path
    mar: Path | None = None
    port: int = 8080
    host: str = LOOPBACK
    certificate: Path | None = None
    key: Path | None = None
    log_format: LogFormat = "text"
    open_metrics: bool = False
    memory_gb: float = MEMORY_GB
    is_proven: bool = True
    """Whether a model is held to the pictures in its file before it answers."""


@dataclass(frozen=True)
class Served:
    """A server that answers. The token belongs into the header `Authorization: Bearer TOKEN`."""

    url: str
    model: str
    token: str
    key_file: Path
    log_folder: Path
    ended: "Future[None]"

    @property
    def predictions_url(self) -> str:
        """Where pictures go, by PUT or POST."""
        return f"{self.url}/predictions/{MODEL_NAME}"

    def ask(self, picture: bytes) -> tuple[int, Any]:
        """Send one picture; the status, and what was answered as JSON. Raises OSError where nobody answers."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            answer = httpx.post(self.predictions_url, content=picture, headers=headers, timeout=60, trust_env=False)
        except httpx.TransportError as error:
            raise ConnectionError(f"The server broke off: {error!r}.") from error
        return answer.status_code, answer.json()

    def wait(self) -> None:
        """Block while the server runs. Raises what ended it."""
        self.ended.result()


@contextmanager
def running(wanted: Wanted) -> Iterator[Served]:
    """Serve and yield once a prediction was answered. On leaving, what is under way is answered and all is stopped.

    So it is by SIGTERM and SIGHUP, which arrive as KeyboardInterrupt unless the caller handles them. A second
    interrupt waits for nothing. Raises UsageError for a host that needs a certificate, ModelError where the file is no
    .mar, ServeError where the port is taken or TorchServe does not come up.
    """
    _check(wanted)
    with interrupted_by_signals(), _listening(wanted) as listener:
        server = _Server(wanted, listener)
        thread = threading.Thread(target=server.run, name="door")
        thread.start()
        try:
            yield server.ready.result()
        finally:
            server.stop(DRAIN_SECONDS)
            try:
                thread.join()
            finally:
                server.stop(0)
                thread.join()


class _Server:
    """The event loop, in its thread."""

    def __init__(self, wanted: Wanted, listener: socket.socket) -> None:
        self._wanted, self._listener = wanted, listener
        self.ready: Future[Served] = Future()
        self._ended: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._drain_seconds = 0.0
        self._task: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Serve until `stop`."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            (self._ended if self.ready.done() else self.ready).set_exception(error)
        else:
            self._ended.set_result(None)

    def stop(self, seconds: float) -> None:
        """End it from another thread, after at most so long for what is under way."""

        def stop() -> None:
            self._drain_seconds = seconds
            self._stopping.set()
            if self._task is not None and (not seconds or not self.ready.done()):
                self._task.cancel()

        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(stop)

    async def _serve(self) -> None:
        self._task = asyncio.current_task()
        try:
            await self._serve_until_stopped()
        except OSError as error:  # a full disk, no descriptor
            raise ServeError(f"The server can't start: {error}.") from error

    async def _serve_until_stopped(self) -> None:
        wanted, how = self._wanted, self._wanted.how
        folder = _prepared(how.home / "serve" / str(wanted.port))
        log = open_log(folder / "logs", wanted.log_format)
        async with AsyncExitStack() as undo:
            scratch = _scratch(wanted.port)
            undo.callback(shutil.rmtree, scratch, ignore_errors=True)
            lookers = Lookers(how.workers, wanted.memory_gb)
            undo.callback(lookers.close)
            backends = Backends(
                Source(wanted.mar, wanted.model_store), how, scratch, folder / "logs", lookers, log, wanted.is_proven
            )
            undo.push_async_callback(backends.stop)
            await asyncio.gather(lookers.open(), backends.start())
            token = secrets.token_urlsafe(24)
            key_file = folder / "key_file.json"
            write_json(key_file, {"inference": {"key": token}})
            key_file.chmod(0o600)
            undo.callback(key_file.unlink, missing_ok=True)
            app = door.application(lookers, backends)
            listens = uvicorn.Server(self._configured(app))
            gate = Gate(app, token, lambda: len(listens.server_state.connections), log, wanted.open_metrics)
            listens.config.app = gate
            tasks = [asyncio.create_task(each) for each in (backends.keep(), watch(listens.server_state))]
            undo.callback(lambda: [task.cancel() for task in tasks])
            listening = asyncio.create_task(listens.serve([self._listener]))
            while not listens.started and not listening.done():
                await asyncio.sleep(_POLL_SECONDS)
            self.ready.set_result(
                Served(self._url(), backends.model or "", token, key_file, folder / "logs", self._ended)
            )
            await self._stopping.wait()
            await gate.drained(self._drain_seconds)
            listens.should_exit = True
            await listening

    def _configured(self, app: Any) -> uvicorn.Config:
        wanted = self._wanted
        return uvicorn.Config(
            app, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=_CUT_SECONDS,
            ssl_certfile=wanted.certificate, ssl_keyfile=wanted.key,
        )  # fmt: skip

    def _url(self) -> str:
        host = f"[{self._wanted.host}]" if ":" in self._wanted.host else self._wanted.host
        return f"{'https' if self._wanted.certificate else 'http'}://{host}:{self._wanted.port}"


def _check(wanted: Wanted) -> None:
    """Raise UsageError or ModelError for what would be refused late, or not at all."""
    if not _is_loopback(wanted.host) and not (wanted.certificate and wanted.key):
        raise UsageError(
            f"{wanted.host} is reached from other machines: give --certificate and --key, or leave --host out."
        )
    if wanted.certificate or wanted.key:
        try:
            ssl.create_default_context().load_cert_chain(wanted.certificate or "", wanted.key)
        except (OSError, TypeError) as error:  # ssl's own is an OSError
            raise UsageError(f"The certificate and its key can't be read: {error}.") from error
    mar = Source(wanted.mar, wanted.model_store).file()
    try:
        safetensors.deserialize(AgeModel.load(mar).weights)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ModelError(f"The weights in {mar} are damaged: {error}.") from error
    if mar.is_dir():
        raise ModelError(f"TorchServe serves a .mar file; {mar} is a folder.")


@contextmanager
def _listening(wanted: Wanted) -> Iterator[socket.socket]:
    """The one port, bound before anything starts. Raises ServeError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:  # each connection is a descriptor
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2**16), hard))
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    # By its number asyncio knows TCP, and only then sends at once: else an answer waits 40 ms for the client's ACK.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a server leaves that was stopped just now
        try:
            listener.bind((wanted.host, wanted.port))
        except (OSError, OverflowError) as error:
            why = f"Port {wanted.port} of {wanted.host} can't be used: it is taken, or not allowed"
            raise ServeError(f"{why}; choose another with --port.") from error
        yield listener


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _prepared(folder: Path) -> Path:
    """Make the server's folder; the logs of the run before are kept once, as logs.previous. Raises ServeError."""
    logs, previous = folder / "logs", folder / "logs.previous"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "key_file.json").unlink(missing_ok=True)  # a stale token would pass for the new one
        if logs.exists():
            shutil.rmtree(previous, ignore_errors=True)
            logs.rename(previous)
        logs.mkdir()
    except OSError as error:
        raise ServeError(f"The server's folder can't be written: {error}.") from error
    _require_room(folder)
    return folder


def _require_room(folder: Path) -> None:
    """Raise ServeError where a disk is full: TorchServe would wait for what could not be written, and not say so."""
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise ServeError(f"{folder} has {free / 1e6:.0f} MB free; a server needs {LEAST_FREE_BYTES / 1e6:.0f} MB.")


def _scratch(port: int) -> Path:
    """A private folder with a short path, as it holds sockets: in TMPDIR, or in /tmp where that is too deep.

    What a killed server of this port has left is removed: we have the port, so it is gone.
    """
    prefix = f"agewatch-{port}-"
    folder = Path(tempfile.gettempdir())
    if len(os.fsencode(folder)) > _MOST_TMPDIR_BYTES:
        folder = Path("/tmp")  # noqa: S108 - mkdtemp makes a private folder in it
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    except OSError as error:
        raise ServeError(f"The temporary folder can't be written: {error}.") from error
    _require_room(scratch)
    return scratch


def limits() -> dict[str, float]:
    """The bounds that hold whatever is served."""
    return {
        "request_bytes": door.MOST_REQUEST_BYTES,
        "all_requests_bytes": door.MOST_BYTES,
        "waiting_requests": door.MOST_WAITING,
        "connections": MOST_CONNECTIONS,
        "picture_seconds": DEADLINE_SECONDS,
        "patience_seconds": PATIENCE_SECONDS,
        "idle_seconds": IDLE_SECONDS,
        "drain_seconds": DRAIN_SECONDS,
    }


def curl_line(served: Served) -> str:
    """Return a shell line that sends PICTURE.jpg; the token comes from the key file to curl's standard input, so that
    neither the line nor a list of processes shows it."""
    read = """import json, sys; print('oauth2-bearer =', json.load(open(sys.argv[1]))["inference"]["key"])"""
    config = shlex.join([sys.executable, "-c", read, str(served.key_file)])
    return f"{config} | curl -K - -T PICTURE.jpg {served.predictions_url}"
