"""`agewatch init` and `agewatch up`, with a real Prefect server, worker and TorchServe, as a user starts them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from datetime import time as time_of_day
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from desks import noise, statuses
from pictures import torn
from servers import free_port, started

from agewatch.errors import UsageError
from agewatch.estimator.model import AgeModel
from agewatch.nights import init, schedule
from agewatch.nights.ledger import Ledger, Night
from agewatch.nights.night import turn
from agewatch.nights.systemd import units

ROOT = Path(__file__).parents[2]
SECONDS = 300
BIN = Path(sys.executable).parent


def test_init_writes_what_up_and_prefect_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / 'Käthe\'s "best" & {{ 50 % }}: #1'
    for folder in (odd, tmp_path / "labelled"):
        folder.mkdir()
    init.write([odd], labelled=[Path("labelled")], at=time_of_day(22, 15), timezone="Europe/Berlin")
    night, retrain = schedule.read()
    assert (night.archive, night.folder, night.cron, night.timezone) == (
        odd.name,
        str(odd),
        "15 22 * * *",
        "Europe/Berlin",
    )
    assert retrain.parameters["sources"] == [str(tmp_path / "labelled")]
    assert not set("/%&<>") & set(night.deployment), "Prefect takes no such names"
    with pytest.raises(UsageError, match="is there already"):
        init.write([odd], labelled=[], at=time_of_day(1), timezone=None)


@pytest.mark.parametrize(
    ("archives", "zone", "sentence"),
    [
        (["nowhere"], None, "There is no folder"),
        (["a"], "Mars/Olympus", "no time zone"),
        (["a", "b/a"], None, "named a"),
    ],
)
def test_init_refuses_what_can_not_be_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archives: list[str], zone: str | None, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b/a"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=sentence):
        init.write([Path(name) for name in archives], labelled=[], at=time_of_day(1), timezone=zone)
    assert not (tmp_path / "prefect.yaml").exists()


def test_archives_of_one_folder_name_are_told_apart_by_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b/a", "c=d"):
        (tmp_path / name).mkdir(parents=True)
    init.write([Path("a"), Path("press=b/a"), Path("c=d")], labelled=[], at=time_of_day(1), timezone="UTC")
    assert {each.archive: each.folder for each in schedule.read()} == {
        "a": str(tmp_path / "a"),
        "press": str(tmp_path / "b" / "a"),
        "c=d": str(tmp_path / "c=d"),
    }


def test_the_file_of_the_repository_is_what_init_writes_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = (ROOT / "prefect.yaml").read_text()
    assert shipped == init.example()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.yaml").write_text(shipped)
    (tmp_path / "mine").mkdir()
    init.write([Path("mine")], labelled=[], at=time_of_day(1), timezone="UTC")
    assert [each.archive for each in schedule.read()] == ["mine"]


def test_the_units_pass_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = units(serve=True, port=4300)
    parts = re.split(r"^# (agewatch-\S+)\n", told, flags=re.MULTILINE)[1:]
    assert parts[::2] == ["agewatch-up.service", "agewatch-alert.service", "agewatch-alert.timer"]
    assert " -m agewatch up --serve --port 4300\n" in parts[1]
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        (tmp_path / name).write_text(text)
    names = [str(tmp_path / name) for name in parts[::2]]
    done = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def up(desk: Path, *options: str) -> Iterator["tuple[subprocess.Popen[bytes], int]"]:
    """`agewatch up` in a desk, ready, on a free port; yields its process and the port."""
    port, log = free_port(), desk / "up.log"
    env = {name: text for name, text in os.environ.items() if not name.startswith(("PREFECT_", "AGEWATCH_"))}
    env |= {"OMP_NUM_THREADS": "1", "PREFECT_WORKER_QUERY_SECONDS": "2"}
    command = [str(BIN / "agewatch"), "up", "--port", str(port), *options]
    with started(command, log=log, cwd=desk, env=env) as process:
        until(lambda: "\nready\n" in log.read_text(), desk, process)
        yield process, port


def until(found: Callable[[], Any], desk: Path, process: "subprocess.Popen[bytes] | None" = None) -> Any:
    """Wait for something to be there."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        if result := found():
            return result
        time.sleep(0.5)
    logs = [desk / "up.log", *(desk / ".agewatch" / "nights" / "logs").glob("*.log")]
    raise AssertionError("\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs))


def nights(desk: Path, outcome: str) -> list[Night]:
    return [night for night in Ledger(desk / ".agewatch").nights(flow="night") if night.outcome == outcome]


def runs(port: int, *states: str) -> list[dict[str, Any]]:
    """Prefect's flow runs in these types of state."""
    asked = {"flow_runs": {"state": {"type": {"any_": list(states)}}}}
    answer = httpx.post(f"http://127.0.0.1:{port}/api/flow_runs/filter", json=asked, timeout=60, trust_env=False)
    return list(answer.raise_for_status().json())


def told_in(found: list[dict[str, Any]], words: str) -> list[dict[str, Any]]:
    """Runs whose message holds some words."""
    return [run for run in found if words in run["state"]["message"]]


def every(desk: Path, seconds: dict[str, int], parameters: dict[str, dict[str, Any]]) -> None:
    """Put seconds in the place of nights, by deployment; one without goes."""
    file = desk / "prefect.yaml"
    content = yaml.safe_load(file.read_text())
    anchor = datetime.now(UTC).isoformat()
    content["deployments"] = [each for each in content["deployments"] if each["name"] in seconds]
    for deployment in content["deployments"]:
        deployment["schedules"] = [{"interval": seconds[deployment["name"]], "anchor_date": anchor, "active": True}]
        deployment["parameters"] |= parameters.get(deployment["name"], {})
    file.write_text(yaml.safe_dump(content))


def test_nights_and_retraining_run_by_their_schedules_and_links_open(desk: Path) -> None:
    noise(desk / "archive", 39, seed=4)
    (desk / "archive" / "torn.png").write_bytes(torn((desk / "archive" / "4-000.png").read_bytes()))
    for age in (10, 30, 50, 70):
        noise(desk / "labelled" / str(age), 40, seed=age, brightness=60 + 2 * age)
    (desk / "recipe.toml").write_text("epochs = 1\nbatch_size = 16\n")
    init.write(
        [desk / "archive"], labelled=[desk / "labelled"], at=time_of_day(1), timezone="UTC", file=desk / "prefect.yaml"
    )
    told = {"night-archive": {"mode": "crop", "max_refused": 0.2}, "retrain": {"recipe": "recipe.toml"}}
    every(desk, {"night-archive": 3600, "retrain": 60}, told)
    pointer = (desk / "model_store" / "current.json").read_bytes()

    with up(desk) as (process, port):
        [night] = until(lambda: nights(desk, "done"), desk, process)
        retrained = until(lambda: told_in(runs(port, "COMPLETED"), "is in the store"), desk, process)
        command = [BIN / "agewatch", "doctor", "--json"]
        doctor = subprocess.run(command, cwd=desk, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert '"automations", "state": "ok"' in doctor.stdout, doctor.stdout
        asked = {"artifacts": {"flow_run_id": {"any_": [night.run]}}}
        shown = httpx.post(
            f"http://127.0.0.1:{port}/api/artifacts/filter", json=asked, timeout=60, trust_env=False
        ).json()
        [link] = [each["data"] for each in shown if each["key"] == "drift-verdict"]
        address = re.search(r"\((http://127[^)]*)\)", link)
        assert address, link
        page = httpx.get(address[1], trust_env=False)
        assert "<html" in page.text[:1000]
        assert httpx.get(re.sub(r"(//[^/]+/)[^/]+", r"\1guess", address[1]), trust_env=False).status_code == 404

    assert night.figures["verdict"] == "too_little_data"
    assert statuses(desk) == {f"4-{index:03d}.png": "ok" for index in range(39)} | {"torn.png": "truncated"}
    new = AgeModel.load(desk / "model_store" / "agewatch-2.mar").id
    assert new in retrained[0]["state"]["message"]
    assert (desk / "model_store" / "current.json").read_bytes() == pointer, "nobody promoted it"


def test_what_dies_is_started_again_and_a_night_that_died_is_made_up(desk: Path) -> None:
    noise(desk / "archive", 5, seed=5)
    init.write([desk / "archive"], labelled=[], at=time_of_day(1), timezone="UTC", file=desk / "prefect.yaml")
    every(desk, {"night-archive": 3600}, {"night-archive": {"mode": "crop"}})
    ledger = Ledger(desk / ".agewatch")
    with up(desk) as (process, port):
        second = subprocess.run(
            [BIN / "agewatch", "up"], cwd=desk, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert second.returncode == 1
        assert "is up already" in second.stderr
        [row] = until(ledger.nights, desk, process)
        for victim in [*children(process, "server"), *children(process, "worker"), *flows_of(row)]:
            victim.kill()
        [made_up] = until(lambda: nights(desk, "done"), desk, process)
        until(lambda: not runs(port, "RUNNING", "PENDING", "CANCELLING"), desk, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 130
    assert (made_up.due, made_up.attempts) == (row.due, 2)
    assert [(news.what, news.due) for news in ledger.news()] == [("crashed", row.due)]
    assert len(statuses(desk)) == 5
    assert not [each for each in psutil.process_iter() if of_desk(each, desk)], "nothing is left"


def test_a_night_that_is_stopped_is_no_crash_and_goes_on_at_the_next_start(desk: Path) -> None:
    """It waits for its turn, which another night of the machine has."""
    noise(desk / "archive", 5, seed=6)
    init.write([desk / "archive"], labelled=[], at=time_of_day(1), timezone="UTC", file=desk / "prefect.yaml")
    every(desk, {"night-archive": 3600}, {"night-archive": {"mode": "crop"}})
    ledger = Ledger(desk / ".agewatch")
    with turn(ledger, "another"), up(desk) as (process, _):
        [row] = until(ledger.nights, desk, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 130
    assert [(night.due, night.outcome) for night in ledger.nights()] == [(row.due, "stopped")]
    with up(desk) as (process, _):
        [done] = until(lambda: nights(desk, "done"), desk, process)
    assert (done.due, done.attempts) == (row.due, 2)
    assert ledger.news() == [], "a stop is no trouble"


def children(process: "subprocess.Popen[bytes]", word: str) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if word in child.cmdline()]


def flows_of(row: Night) -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if environment(each).get("PREFECT__FLOW_RUN_ID") == row.run]


def of_desk(process: psutil.Process, desk: Path) -> bool:
    return process.pid != os.getpid() and environment(process).get("AGEWATCH_HOME") == str(desk / ".agewatch")


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}
