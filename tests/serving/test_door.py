"""What a real door and TorchServe answer, and what they refuse."""

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
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from doors import WAIT_SECONDS, behind, bomb, refused, send
from pictures import ASTRONAUT, encoded, torn
from PIL import Image

from agewatch.errors import ImageError
from agewatch.estimator.spec import Cut
from agewatch.scoring import predictions
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution
from agewatch.serving import connection, door
from agewatch.serving.looking import Lookers
from agewatch.serving.server import Served, curl_line

OPEN = ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/agewatch/ready"]


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
